//! The part of a SEND or MESSAGE frame after the command, which is also what is stored as an entry:
//! `[0x0e02 size broker-entry]? [0x0e01 crc32c]? [metadata size][metadata][payload]`.
//!
//! Owner: producer intake, dispatch, peek. Invariants: bytes are never copied; the checksum covers everything from the
//! metadata size to the end, hence neither the command nor the broker entry, which a broker may add or strip without
//! touching what the producer signed. A part without the 0x0e01 mark carries no checksum and is accepted. The marks cannot
//! be confused with a metadata size: they would announce 234 MiB of metadata, beyond any frame limit.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use crate::{checksum::crc32c, frame::FrameError, pulsar::MessageMetadata};

/// Marks a checksum.
pub const MAGIC_CHECKSUM: u16 = 0x0e01;
/// Marks a broker entry block.
pub const MAGIC_BROKER_ENTRY: u16 = 0x0e02;

/// Where the pieces of a message lie in its bytes.
///
/// Positions rather than slices: cutting a `Bytes` costs an atomic count each, and most callers want one piece only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageParts {
    bytes: Bytes,
    /// Start and end of the broker entry's contents.
    broker_entry: Option<(usize, usize)>,
    /// First byte after the broker entry block.
    message_at: usize,
    checksum: Option<u32>,
    /// Position of the metadata size field.
    covered_at: usize,
    /// End of the metadata, start of the payload.
    payload_at: usize,
}

/// Takes `n` bytes of `bytes` at `at`.
fn take<'a>(bytes: &'a [u8], at: usize, n: usize, field: &'static str) -> Result<&'a [u8], FrameError> {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.get(..n).ok_or(FrameError::PayloadTruncated { field, needed: n, found: rest.len() })
}

/// Reads a big-endian `u32` at `at`.
fn take_u32(bytes: &[u8], at: usize, field: &'static str) -> Result<u32, FrameError> {
    let found = take(bytes, at, 4, field)?;
    Ok(found.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

fn has_magic(bytes: &[u8], at: usize, magic: u16) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(&magic.to_be_bytes()))
}

/// Finds the pieces of a message. The checksum is read, not verified, and the metadata is not decoded.
///
/// # Errors
/// [`FrameError::PayloadTruncated`] when a size reaches past the end.
pub fn parse_payload(rest: Bytes) -> Result<MessageParts, FrameError> {
    let mut at = 0;
    let mut broker_entry = None;
    if has_magic(&rest, at, MAGIC_BROKER_ENTRY) {
        let size = take_u32(&rest, at + 2, "broker entry size")? as usize;
        take(&rest, at + 6, size, "broker entry")?;
        broker_entry = Some((at + 6, at + 6 + size));
        at += 6 + size;
    }
    let message_at = at;
    let mut checksum = None;
    if has_magic(&rest, at, MAGIC_CHECKSUM) {
        checksum = Some(take_u32(&rest, at + 2, "checksum")?);
        at += 6;
    }
    let covered_at = at;
    let size = take_u32(&rest, at, "metadata size")? as usize;
    take(&rest, at + 4, size, "metadata")?;
    Ok(MessageParts {
        broker_entry,
        message_at,
        checksum,
        covered_at,
        payload_at: at + 4 + size,
        bytes: rest,
    })
}

impl MessageParts {
    /// Contents of the broker entry block, for [`crate::broker_entry::BrokerEntry::decode`].
    ///
    /// A client never sends one: in a SEND its presence is an offence.
    #[must_use]
    pub fn broker_entry(&self) -> Option<&[u8]> {
        self.broker_entry.and_then(|(start, end)| self.bytes.get(start..end))
    }

    /// The checksum carried, if any.
    #[must_use]
    pub const fn checksum(&self) -> Option<u32> {
        self.checksum
    }

    /// The encoded `MessageMetadata`.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        self.bytes.get(self.covered_at + 4..self.payload_at).unwrap_or_default()
    }

    /// The encoded `MessageMetadata`, sharing memory.
    #[must_use]
    pub fn metadata_bytes(&self) -> Bytes {
        self.bytes.slice(self.covered_at + 4..self.payload_at)
    }

    /// The payload as the producer sent it: perhaps a batch, perhaps compressed, perhaps encrypted.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.payload_at..).unwrap_or_default()
    }

    /// The payload, sharing memory.
    #[must_use]
    pub fn payload_bytes(&self) -> Bytes {
        self.bytes.slice(self.payload_at..)
    }

    /// All bytes, broker entry included: the entry as stored.
    #[must_use]
    pub const fn entry(&self) -> &Bytes {
        &self.bytes
    }

    /// The message without its broker entry block, sharing memory: what goes to a client that cannot read the block.
    #[must_use]
    pub fn without_broker_entry(&self) -> Bytes {
        self.bytes.slice(self.message_at..)
    }

    /// Compares the checksum, if there is one, with the bytes it covers.
    ///
    /// # Errors
    /// [`FrameError::ChecksumMismatch`].
    pub fn verify_checksum(&self) -> Result<(), FrameError> {
        let Some(stored) = self.checksum else { return Ok(()) };
        let computed = crc32c(self.bytes.get(self.covered_at..).unwrap_or_default());
        if stored == computed { Ok(()) } else { Err(FrameError::ChecksumMismatch { stored, computed }) }
    }
}

/// Appends checksum block, metadata and payload: the inverse of [`parse_payload`], used by clients and for messages that
/// a broker itself writes.
///
/// # Panics
/// If the metadata takes 4 GiB, which no frame can carry.
pub fn encode_payload(metadata: &MessageMetadata, payload: &[u8], out: &mut BytesMut) {
    let size = metadata.encoded_len();
    out.reserve(10 + size + payload.len());
    out.put_u16(MAGIC_CHECKSUM);
    let checksum_at = out.len();
    out.put_u32(0);
    let covered_at = out.len();
    out.put_u32(u32::try_from(size).expect("metadata is far below 4 GiB"));
    metadata.encode(out).expect("BytesMut grows as needed");
    out.put_slice(payload);
    let checksum = crc32c(&out[covered_at..]);
    out[checksum_at..covered_at].copy_from_slice(&checksum.to_be_bytes());
}
