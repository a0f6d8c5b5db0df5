//! The block a broker puts in front of a stored entry: when the entry arrived, and the topic-wide index of its last message.
//!
//! Owner: producer intake writes it, dispatch and index lookups read it. It lies outside the producer's checksum, so adding
//! it neither copies nor re-signs the message. Invariant: [`BrokerEntry::encode`] writes at most [`MAX_ENCODED`] bytes.

use bytes::{BufMut, BytesMut};

use crate::{
    decode::DecodeError,
    payload::MAGIC_BROKER_ENTRY,
    wire::{Reader, put_small_field, small_field_len},
};

/// Upper bound of the whole block in bytes: mark, size and two varint fields.
pub const MAX_ENCODED: usize = 2 + 4 + 11 + 11;

/// What the broker knows of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerEntry {
    /// Arrival at the broker, milliseconds since the epoch.
    pub broker_timestamp: Option<u64>,
    /// Index of the entry's last message: messages, not entries, counted from 0 over the life of the topic.
    pub index: Option<u64>,
}

impl BrokerEntry {
    /// Appends the whole block, mark and size included.
    pub fn encode(&self, out: &mut BytesMut) {
        let size = self.broker_timestamp.map_or(0, small_field_len) + self.index.map_or(0, small_field_len);
        out.reserve(MAX_ENCODED);
        out.put_u16(MAGIC_BROKER_ENTRY);
        // At most 22: two fields of at most eleven bytes.
        out.put_u32(size as u32);
        if let Some(at) = self.broker_timestamp {
            put_small_field(1, at, out);
        }
        if let Some(index) = self.index {
            put_small_field(2, index, out);
        }
    }

    /// Reads the contents of a block, as [`crate::payload::MessageParts::broker_entry`] gives them; unknown fields are
    /// skipped.
    ///
    /// # Errors
    /// Malformed protobuf.
    pub fn decode(contents: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(contents);
        let mut entry = Self::default();
        while let Some(key) = reader.next_key()? {
            match key.field {
                1 => entry.broker_timestamp = Some(reader.u64(key)?),
                2 => entry.index = Some(reader.u64(key)?),
                _ => reader.skip(key)?,
            }
        }
        Ok(entry)
    }
}
