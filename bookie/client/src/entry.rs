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

/// Payload of an entry, and its checksum where a pass over these very bytes has found it. Equal by its bytes; cloning shares them.
#[derive(Clone, Default)]
pub struct Payload {
    bytes: Bytes,
    crc: Option<u32>,
}

impl Payload {
    /// Bytes whose CRC32C, which `crc` tells, is known from a pass over them. It is not asked about short ones: they cost less to sum than to
    /// reckon with.
    #[must_use]
    pub fn summed(bytes: Bytes, crc: impl FnOnce() -> u32) -> Self {
        let crc = (bytes.len() >= PASS_BELOW).then(crc);
        Self { bytes, crc }
    }

    /// The bytes alone.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    fn add_to(&self, head: Crc32c) -> Crc32c {
        match self.crc {
            Some(crc) => head.append(crc, self.bytes.len() as u32),
            None => head.update(&self.bytes),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, crc: None }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl std::ops::Deref for Payload {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Payload {}

impl std::hash::Hash for Payload {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.fmt(f)
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
    pub payload: Payload,
}

impl Entry {
    /// An entry with its checksum computed.
    #[must_use]
    pub fn new(ledger: LedgerId, id: EntryId, header: Header, payload: impl Into<Payload>) -> Self {
        let payload = payload.into();
        let head = head(ledger, id, &header);
        let crc = payload.add_to(head).value();
        // The pass was just made.
        let len = payload.len() as u32;
        let payload = Payload::summed(payload.bytes, || head.tail_of(crc, len));
        Self { id, crc, header, payload }
    }

    /// Whether the checksum holds for this ledger and id.
    #[must_use]
    pub fn verify(&self, ledger: LedgerId) -> bool {
        self.crc == self.payload.add_to(head(ledger, self.id, &self.header)).value()
    }

    /// Checksum of the payload, where it costs less than a pass over it: of what [`Entry::verify`] has found good it follows from the
    /// entry's own. A copy that then differs from what was checked shows as damage.
    #[must_use]
    pub fn payload_crc(&self, ledger: LedgerId) -> Option<u32> {
        let len = self.payload.len();
        (len >= PASS_BELOW).then(|| head(ledger, self.id, &self.header).tail_of(self.crc, len as u32))
    }

    /// Bytes this entry counts against budgets and ledger lengths: header and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// The checksum of an entry.
#[must_use]
pub fn checksum(ledger: LedgerId, id: EntryId, header: &Header, payload: &[u8]) -> u32 {
    head(ledger, id, header).update(payload).value()
}

/// Checksum of what comes before the payload: ledger, id and header.
fn head(ledger: LedgerId, id: EntryId, header: &Header) -> Crc32c {
    let mut head = [0_u8; 16 + HEADER_LEN];
    head[..8].copy_from_slice(&ledger.0.to_le_bytes());
    head[8..16].copy_from_slice(&id.0.to_le_bytes());
    head[16..].copy_from_slice(&header.encode());
    Crc32c::new().update(&head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::checksum::crc32c;

    fn entry(payload: impl Into<Payload>) -> Entry {
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(5),
            timestamp_ms: 6,
            bytes_before: 7,
        };
        Entry::new(LedgerId(1), EntryId(2), header, payload)
    }

    #[test]
    fn a_known_checksum_gives_what_a_pass_gives() {
        for len in [0, 1, PASS_BELOW - 1, PASS_BELOW, 100_000] {
            let bytes: Bytes = (0..len).map(|n| (n * n / 5) as u8).collect();
            let passed = entry(bytes.clone());
            let known = entry(Payload::summed(bytes.clone(), || crc32c(&bytes)));
            assert_eq!(passed, known);
            assert!(passed.verify(LedgerId(1)) && !passed.verify(LedgerId(2)));
            // As it comes from elsewhere: nothing is known of its bytes.
            let read = Entry { payload: bytes.clone().into(), ..passed };
            assert!(read.verify(LedgerId(1)) && !read.verify(LedgerId(2)));
            let sum = (len >= PASS_BELOW).then(|| crc32c(&bytes));
            assert_eq!((read.payload_crc(LedgerId(1)), known.payload_crc(LedgerId(1))), (sum, sum));
        }
    }

    #[test]
    fn other_bytes_under_the_same_checksum_are_found_out() {
        let good = entry(vec![1; PASS_BELOW]);
        let mut bytes = vec![1; PASS_BELOW];
        bytes[PASS_BELOW / 2] = 2;
        assert!(!Entry { payload: bytes.clone().into(), ..good.clone() }.verify(LedgerId(1)));
        assert!(!Entry { crc: good.crc ^ 1, ..good }.verify(LedgerId(1)));
    }
}
