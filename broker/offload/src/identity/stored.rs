//! Bytes of an identity: the object in the bucket (table in the README) and the metadata's record, which is protobuf.

use super::StoreId;
use bytes::Bytes;
use geminga_common::checksum::crc32c;
use prost::Message;
use std::fmt;

/// Bytes of the object.
const LEN: usize = 192;
const MAGIC: &[u8; 8] = b"GMSTORE1";
const VERSION: u16 = 1;
/// Bytes of a cluster's name that are told; the rest is cut off.
const NAME_MAX: usize = 128;
const NAME_AT: usize = 36;
const CHECKSUM_AT: usize = LEN - 4;
/// Version of the metadata's record.
const RECORD_VERSION: u32 = 1;

/// The identity as the bucket holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Which store.
    pub id: StoreId,
    /// Name of the cluster that made it, for people.
    pub cluster: String,
    /// When, ms since 1970.
    pub made_ms: u64,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Somebody else wrote it.
        let shown: String = self.cluster.chars().filter(|c| !c.is_control()).collect();
        write!(f, "cluster {shown}, store {}", self.id)
    }
}

/// An identity that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TagError {
    /// A newer build wrote it.
    #[error("version {0} is not known")]
    Version(u16),
    /// Not these bytes.
    #[error("its bytes are damaged")]
    Damaged,
}

impl TagError {
    /// What to do about it.
    pub(super) fn help(&self) -> &'static str {
        match self {
            TagError::Version(_) => "use a build that is not older than the others of this cluster",
            TagError::Damaged => {
                "put it back from an older version of the object or from a copy of the bucket"
            }
        }
    }
}

impl Tag {
    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let name = &self.cluster[..self.cluster.floor_char_boundary(NAME_MAX)];
        let mut bytes = vec![0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(name.len() as u16).to_le_bytes());
        bytes[12..28].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.made_ms.to_le_bytes());
        bytes[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        let checksum = crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes.into()
    }

    /// Reads the object's bytes.
    ///
    /// # Errors
    /// See [`TagError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TagError> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| TagError::Damaged)?;
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..8] != *MAGIC {
            return Err(TagError::Damaged);
        }
        // A newer version may keep its checksum elsewhere.
        if number(8) != VERSION {
            return Err(TagError::Version(number(8)));
        }
        if bytes[CHECKSUM_AT..] != crc32c(&bytes[..CHECKSUM_AT]).to_le_bytes() {
            return Err(TagError::Damaged);
        }
        let name = bytes[NAME_AT..].get(..usize::from(number(10)).min(NAME_MAX)).unwrap_or_default();
        let (mut id, mut made) = ([0; 16], [0; 8]);
        id.copy_from_slice(&bytes[12..28]);
        made.copy_from_slice(&bytes[28..36]);
        Ok(Self {
            id: StoreId(u128::from_le_bytes(id)),
            cluster: String::from_utf8_lossy(name).into_owned(),
            made_ms: u64::from_le_bytes(made),
        })
    }
}

/// The identity as the metadata holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Which store.
    pub id: StoreId,
    /// Whether the bucket has it. Before that nothing else is written there.
    pub confirmed: bool,
    /// What it was called when it was used last, without secrets. While it is only intended: where.
    pub place: String,
    /// When it was intended, ms since 1970.
    pub made_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredIdentity {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(fixed64, tag = "2")]
    id_high: u64,
    #[prost(fixed64, tag = "3")]
    id_low: u64,
    #[prost(bool, tag = "4")]
    confirmed: bool,
    #[prost(string, tag = "5")]
    place: String,
    #[prost(uint64, tag = "6")]
    made_ms: u64,
}

impl Recorded {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        StoredIdentity {
            version: RECORD_VERSION,
            id_high: (self.id.0 >> 64) as u64,
            id_low: self.id.0 as u64,
            confirmed: self.confirmed,
            place: self.place.clone(),
            made_ms: self.made_ms,
        }
        .encode_to_vec()
        .into()
    }

    /// Reads the record's bytes.
    ///
    /// # Errors
    /// Damaged, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, TagError> {
        let stored = StoredIdentity::decode(bytes).map_err(|_| TagError::Damaged)?;
        match stored.version {
            RECORD_VERSION => Ok(Self {
                id: StoreId(u128::from(stored.id_high) << 64 | u128::from(stored.id_low)),
                confirmed: stored.confirmed,
                place: stored.place,
                made_ms: stored.made_ms,
            }),
            0 => Err(TagError::Damaged),
            newer => Err(TagError::Version(newer.min(u32::from(u16::MAX)) as u16)),
        }
    }
}
