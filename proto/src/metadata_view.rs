//! The fields of a message header that a broker needs, read in one pass without allocating.
//!
//! Owner: producer intake and dispatch. Decoding the whole `MessageMetadata` allocates for every string and property; a
//! broker looks at a few numbers and keys and passes the rest on unread. Invariants: text and bytes borrow from the message;
//! presence is kept where it carries meaning (a batch of one is still a batch); whatever the generated decoder accepts, with
//! the required fields there, is accepted here with the same values. Properties and fields not listed here are passed over
//! unread, so a view may accept bytes that the generated decoder refuses.

use crate::{decode::DecodeError, wire::Reader};

/// What a broker reads of a message header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataView<'a> {
    /// Name of the producer, unique on its topic.
    pub producer_name: &'a str,
    /// Sequence id of the message, or of the first one of a batch.
    pub sequence_id: u64,
    /// When the client sent the message, milliseconds since the epoch, by the client's clock.
    pub publish_time: u64,
    /// Cluster the message was replicated from.
    pub replicated_from: Option<&'a str>,
    /// Number of clusters listed as targets of replication; 0 means the topic's own policy decides.
    pub replicate_to: usize,
    /// Key of the message, base64 if [`MetadataView::partition_key_b64_encoded`].
    pub partition_key: Option<&'a str>,
    /// The partition key is base64 of the real one.
    pub partition_key_b64_encoded: bool,
    /// Key that overrides the partition key for ordered dispatch.
    pub ordering_key: Option<&'a [u8]>,
    /// Compression type number; 0 is none.
    pub compression: i32,
    /// Size of the payload before compression, in bytes.
    pub uncompressed_size: u32,
    /// Messages in the batch. Its presence, not its value, marks a batch.
    pub num_messages_in_batch: Option<i32>,
    /// Application time, milliseconds since the epoch.
    pub event_time: Option<u64>,
    /// Number of wrapped data keys; more than 0 marks an encrypted message.
    pub encryption_keys: usize,
    /// Version of the schema the payload was written with.
    pub schema_version: Option<&'a [u8]>,
    /// Milliseconds since the epoch before which the message is to be held back.
    pub deliver_at_time: Option<i64>,
    /// Set on internal markers.
    pub marker_type: Option<i32>,
    /// Lower half of the transaction id.
    pub txnid_least_bits: Option<u64>,
    /// Upper half of the transaction id.
    pub txnid_most_bits: Option<u64>,
    /// Sequence id of the last message of a batch.
    pub highest_sequence_id: Option<u64>,
    /// The message has no value: a tombstone for compaction.
    pub null_value: bool,
    /// Common name of the chunks of one message.
    pub uuid: Option<&'a str>,
    /// Number of chunks of the message.
    pub num_chunks_from_msg: Option<i32>,
    /// Size of the whole chunked message in bytes.
    pub total_chunk_msg_size: Option<i32>,
    /// Place of this chunk, from 0.
    pub chunk_id: Option<i32>,
    /// The message has no key, as opposed to an empty one.
    pub null_partition_key: bool,
}

impl<'a> MetadataView<'a> {
    /// Scans an encoded `MessageMetadata`.
    ///
    /// # Errors
    /// Malformed protobuf, or producer name, sequence id or publish time missing.
    pub fn parse(metadata: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(metadata);
        let mut view = Self::default();
        // One bit per required field: 1, 2 and 3.
        let mut required = 0u8;
        while let Some(key) = reader.next_key()? {
            match key.field {
                1 => view.producer_name = reader.str(key)?,
                2 => view.sequence_id = reader.u64(key)?,
                3 => view.publish_time = reader.u64(key)?,
                5 => view.replicated_from = Some(reader.str(key)?),
                6 => view.partition_key = Some(reader.str(key)?),
                7 => {
                    reader.bytes(key)?;
                    view.replicate_to += 1;
                }
                8 => view.compression = reader.i32(key)?,
                9 => view.uncompressed_size = reader.u32(key)?,
                11 => view.num_messages_in_batch = Some(reader.i32(key)?),
                12 => view.event_time = Some(reader.u64(key)?),
                13 => {
                    reader.bytes(key)?;
                    view.encryption_keys += 1;
                }
                16 => view.schema_version = Some(reader.bytes(key)?),
                17 => view.partition_key_b64_encoded = reader.bool(key)?,
                18 => view.ordering_key = Some(reader.bytes(key)?),
                19 => view.deliver_at_time = Some(reader.i64(key)?),
                20 => view.marker_type = Some(reader.i32(key)?),
                22 => view.txnid_least_bits = Some(reader.u64(key)?),
                23 => view.txnid_most_bits = Some(reader.u64(key)?),
                24 => view.highest_sequence_id = Some(reader.u64(key)?),
                25 => view.null_value = reader.bool(key)?,
                26 => view.uuid = Some(reader.str(key)?),
                27 => view.num_chunks_from_msg = Some(reader.i32(key)?),
                28 => view.total_chunk_msg_size = Some(reader.i32(key)?),
                29 => view.chunk_id = Some(reader.i32(key)?),
                30 => view.null_partition_key = reader.bool(key)?,
                _ => reader.skip(key)?,
            }
            if key.field <= 3 {
                required |= 1 << (key.field - 1);
            }
        }
        for (bit, name) in ["producer_name", "sequence_id", "publish_time"].into_iter().enumerate() {
            if required & (1 << bit) == 0 {
                return Err(DecodeError::Missing(name));
            }
        }
        Ok(view)
    }

    /// The payload is a batch (of one or more).
    #[must_use]
    pub const fn is_batch(&self) -> bool {
        self.num_messages_in_batch.is_some()
    }

    /// Most messages that a payload of so many bytes can hold: 1 unless it is a batch. What a header announces is the sender's word;
    /// this is what its bytes allow, compressed ones at the best ratio there is (zstd: 128 KiB in 4 bytes). Nothing is decompressed.
    #[must_use]
    pub fn members_max(&self, payload_bytes: usize) -> u32 {
        /// Size field and the one required field of a member's header; its payload may be empty.
        const MEMBER_BYTES_MIN: usize = 6;
        const RATIO_MAX: usize = 1 << 15;
        if !self.is_batch() {
            return 1;
        }
        let announced = usize::try_from(self.uncompressed_size).unwrap_or(usize::MAX);
        let plain = match self.compression {
            0 => payload_bytes,
            _ => announced.min(payload_bytes.saturating_mul(RATIO_MAX)),
        };
        u32::try_from(plain / MEMBER_BYTES_MIN).unwrap_or(u32::MAX).max(1)
    }

    /// The message is an internal marker, which no application sees.
    #[must_use]
    pub const fn is_marker(&self) -> bool {
        self.marker_type.is_some()
    }

    /// The message is one chunk of a larger one.
    #[must_use]
    pub fn is_chunk(&self) -> bool {
        self.num_chunks_from_msg.is_some_and(|chunks| chunks > 1)
    }
}
