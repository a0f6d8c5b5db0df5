//! The members of a batch: `[size u32be][SingleMessageMetadata][payload]` repeated, once decompressed and decrypted.
//!
//! Owner: everything that looks into stored messages (peek, examine, compaction); dispatch never does. Invariants: payloads
//! share the batch's memory; nothing is allocated by the announced count; after the first error the iterator ends.

use bytes::Bytes;
use prost::Message as _;

use crate::{decode::DecodeError, pulsar::SingleMessageMetadata, wire::Reader};

/// One message of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchMember {
    /// Header of the message.
    pub metadata: SingleMessageMetadata,
    /// Payload of the message; empty for one that compaction removed.
    pub payload: Bytes,
}

/// Walks the members of an uncompressed batch payload.
#[derive(Clone, Debug)]
pub struct BatchIter {
    rest: Bytes,
    left: usize,
}

impl BatchIter {
    /// A walk over `count` members, the batch header's `num_messages_in_batch` (negative counts as none). Bytes after the
    /// last member are ignored, as clients ignore them.
    #[must_use]
    pub fn new(payload: Bytes, count: i32) -> Self {
        Self { rest: payload, left: usize::try_from(count).unwrap_or(0) }
    }

    fn read_member(&mut self) -> Result<BatchMember, DecodeError> {
        let size = u32::from_be_bytes(*self.rest.first_chunk::<4>().ok_or(DecodeError::Truncated)?) as usize;
        if self.rest.len() - 4 < size {
            return Err(DecodeError::BadSize("single message metadata size"));
        }
        let mut body = self.rest.split_off(4);
        let header = body.split_to(size);
        if !has_payload_size(&header)? {
            return Err(DecodeError::Missing("payload_size"));
        }
        let metadata = SingleMessageMetadata::decode(header)?;
        let payload_size = usize::try_from(metadata.payload_size)
            .ok()
            .filter(|&n| n <= body.len())
            .ok_or(DecodeError::BadSize("payload_size"))?;
        let payload = body.split_to(payload_size);
        self.rest = body;
        Ok(BatchMember { metadata, payload })
    }
}

/// The generated decoder reads a missing size as 0, which would turn the payload into the next header.
fn has_payload_size(header: &[u8]) -> Result<bool, DecodeError> {
    let mut reader = Reader::new(header);
    let mut found = false;
    while let Some(key) = reader.next_key()? {
        found |= key.field == 3;
        reader.skip(key)?;
    }
    Ok(found)
}

impl Iterator for BatchIter {
    type Item = Result<BatchMember, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let member = self.read_member();
        if member.is_err() {
            self.left = 0;
        }
        Some(member)
    }
}
