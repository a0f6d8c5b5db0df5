//! An entry: its id, a fixed header, an opaque payload, and one checksum over all of it.
//!
//! The checksum binds the bytes to their ledger and id, so that a misdirected write shows. Term, LAC and LAFR travel *beside*
//! an entry, never under its checksum: a recovery's write-back is byte-identical to the first write.
//!
//! # Header, 32 bytes, little endian
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind: 1 messages, 2 cursor log |
//! | 2 | 2 | flags, 0 |
//! | 4 | 4 | messages in this entry, ≥ 1 for kind 1 |
//! | 8 | 8 | index of the first message along the topic (kind 1) |
//! | 16 | 8 | broker time stamp, ms since 1970 |
//! | 24 | 6 | bytes of this ledger before this entry: headers and payloads of all lower ids |
//! | 30 | 2 | reserved, 0 |
//!
//! The broker-entry metadata of the Pulsar wire (time stamp, index of the last message) is made of this header at dispatch.
//! The bytes before an entry let a recovery tell the length of a ledger from its last entry alone; the writer fills them in.
//! An unknown version or kind is an error, never skipped.

use bytes::Bytes;
use geminga_common::checksum::Crc32c;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex};

/// Bytes of an encoded [`Header`].
pub const HEADER_LEN: usize = 32;

/// Payloads of fewer bytes are summed rather than reckoned with.
const PASS_BELOW: usize = 8 << 10;

/// What an entry holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Messages as a producer framed them: magic, CRC, metadata, payload.
    Messages,
    /// Records of a cursor log.
    CursorLog,
}

/// The fixed header of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// How many messages the payload holds.
    pub messages: u32,
    /// Index of its first message along the topic.
    pub first_index: MessageIndex,
    /// When the broker took it, ms since 1970.
    pub timestamp_ms: u64,
    /// Bytes of headers and payloads of all lower ids of the ledger, below 2^48. Filled in by the writer; leave it 0.
    pub bytes_before: u64,
}

/// A header that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Written by a newer version.
    #[error("entry header version {0} is not known")]
    Version(u8),
    /// Of a kind this version does not know.
    #[error("entry kind {0} is not known")]
    Kind(u8),
    /// Flags or reserved bytes that this version does not know.
    #[error("entry header has unknown flags")]
    Flags,
}

impl Header {
    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = 1;
        out[1] = match self.kind {
            Kind::Messages => 1,
            Kind::CursorLog => 2,
        };
        out[4..8].copy_from_slice(&self.messages.to_le_bytes());
        out[8..16].copy_from_slice(&self.first_index.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.timestamp_ms.to_le_bytes());
        debug_assert!(self.bytes_before < 1 << 48, "a ledger is rolled long before 2^48 bytes");
        out[24..30].copy_from_slice(&self.bytes_before.to_le_bytes()[..6]);
        out
    }

    /// Reads a header back.
    ///
    /// # Errors
    /// A version, kind or flag that this build does not know.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let kind = match (bytes[0], bytes[1]) {
            (1, 1) => Kind::Messages,
            (1, 2) => Kind::CursorLog,
            (1, kind) => return Err(HeaderError::Kind(kind)),
            (version, _) => return Err(HeaderError::Version(version)),
        };
        if bytes[2..4] != [0; 2] || bytes[30..32] != [0; 2] {
            return Err(HeaderError::Flags);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            kind,
            messages: u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes")),
            first_index: MessageIndex(word(8)),
            timestamp_ms: word(16),
            bytes_before: word(24),
        })
    }
}

/// An entry as it travels and is stored. Cloning shares the payload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Its id in the ledger.
    pub id: EntryId,
    /// CRC32C over ledger, id, header and payload.
    pub crc: u32,
    /// Fixed header.
    pub header: Header,
    /// Opaque payload.
    pub payload: Bytes,
}

impl Entry {
    /// An entry with its checksum computed.
    #[must_use]
    pub fn new(ledger: LedgerId, id: EntryId, header: Header, payload: Bytes) -> Self {
        let crc = checksum(ledger, id, &header.encode(), &payload);
        Self { id, crc, header, payload }
    }

    /// Whether the checksum holds for this ledger and id.
    #[must_use]
    pub fn verify(&self, ledger: LedgerId) -> bool {
        self.crc == checksum(ledger, self.id, &self.header.encode(), &self.payload)
    }

    /// Checksum of the payload, where it costs less than a pass over it: of what [`Entry::verify`] has found good it follows from the
    /// entry's own. A copy that then differs from what was checked shows as damage.
    #[must_use]
    pub fn payload_crc(&self, ledger: LedgerId) -> Option<u32> {
        if self.payload.len() < PASS_BELOW {
            return None;
        }
        let head = Crc32c::new().update(&head(ledger, self.id, &self.header.encode()));
        Some(head.tail_of(self.crc, self.payload.len() as u32))
    }

    /// Bytes this entry counts against budgets and ledger lengths: header and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// The checksum of an entry.
#[must_use]
pub fn checksum(ledger: LedgerId, id: EntryId, header: &[u8; HEADER_LEN], payload: &[u8]) -> u32 {
    Crc32c::new().update(&head(ledger, id, header)).update(payload).value()
}

/// What the checksum covers before the payload.
fn head(ledger: LedgerId, id: EntryId, header: &[u8; HEADER_LEN]) -> [u8; 16 + HEADER_LEN] {
    let mut head = [0_u8; 16 + HEADER_LEN];
    head[..8].copy_from_slice(&ledger.0.to_le_bytes());
    head[8..16].copy_from_slice(&id.0.to_le_bytes());
    head[16..].copy_from_slice(header);
    head
}
