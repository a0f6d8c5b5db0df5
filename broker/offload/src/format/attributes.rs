//! What an object tells about its ledger: enough to attach it to its topic again when all metadata is gone. Protobuf, so that
//! fields can be added; checksummed with the footer that holds it.

use super::FormatError;
use bytes::Bytes;
use geminga_common::ids::{LedgerId, MessageIndex, OwnerEpoch, TopicId};
use prost::Message;

/// Who the ledger of an object belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the topic; `None` where names must not be in the bucket in clear.
    pub topic: Option<String>,
    /// The topic's id.
    pub topic_id: TopicId,
    /// The ledger.
    pub ledger: LedgerId,
    /// Index of its first message along the topic.
    pub first_index: MessageIndex,
    /// When it was closed, ms since 1970.
    pub closed_ms: u64,
    /// Epoch of the owner that uploaded it.
    pub owner_epoch: OwnerEpoch,
    /// The attempt that uploaded it, as in its key.
    pub attempt: u64,
    /// The closed ledger's record in the ledger protocol's own stored form: quorum, fragments, term.
    pub record: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, optional, tag = "2")]
    topic: Option<String>,
    #[prost(uint64, tag = "3")]
    topic_id: u64,
    #[prost(uint64, tag = "4")]
    ledger: u64,
    #[prost(uint64, tag = "5")]
    first_index: u64,
    #[prost(uint64, tag = "6")]
    closed_ms: u64,
    #[prost(uint64, tag = "7")]
    owner_epoch: u64,
    #[prost(fixed64, tag = "8")]
    attempt: u64,
    #[prost(bytes = "bytes", tag = "9")]
    record: Bytes,
}

impl Attributes {
    pub(super) fn encode(&self) -> Vec<u8> {
        Stored {
            cluster: self.cluster.clone(),
            topic: self.topic.clone(),
            topic_id: self.topic_id.0,
            ledger: self.ledger.0,
            first_index: self.first_index.0,
            closed_ms: self.closed_ms,
            owner_epoch: self.owner_epoch.0,
            attempt: self.attempt,
            record: self.record.clone(),
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let stored =
            Stored::decode(bytes).map_err(|_| FormatError::Inconsistent("attributes do not decode"))?;
        Ok(Self {
            cluster: stored.cluster,
            topic: stored.topic,
            topic_id: TopicId(stored.topic_id),
            ledger: LedgerId(stored.ledger),
            first_index: MessageIndex(stored.first_index),
            closed_ms: stored.closed_ms,
            owner_epoch: OwnerEpoch(stored.owner_epoch),
            attempt: stored.attempt,
            record: stored.record,
        })
    }
}
