//! The stored form of a topic record and of a tombstone: protobuf, version first. This file owns both formats.
//!
//! A record of another version is refused, never guessed at; so is one whose chain does not hold together.

use super::state::{OpenTail, Segment, State};
use bytes::Bytes;
use geminga_bookie_client::record::{self as ledger_record, ClosedLedger};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Position, TopicId};
use geminga_offload::state::Offload;
use geminga_offload::stored::StoredError;
use prost::Message;
use std::collections::BTreeMap;

/// Version of both formats.
const VERSION: u32 = 1;
/// Version of a topic record that tells of ledgers in the object store: a build that does not know of them must not write it.
const VERSION_OFFLOAD: u32 = 2;

/// A record that cannot be taken as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Not protobuf of this shape.
    #[error("topic record does not decode: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A ledger in it does not decode.
    #[error(transparent)]
    Ledger(#[from] ledger_record::DecodeError),
    /// Written by a newer version.
    #[error("topic record version {0} is not known")]
    Version(u32),
    /// Where a ledger is does not decode.
    #[error(transparent)]
    Offload(#[from] StoredError),
    /// Decodes, but breaks a rule of the format.
    #[error("topic record is inconsistent: {0}")]
    Inconsistent(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct StoredTopic {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    topic_id: u64,
    #[prost(uint64, tag = "3")]
    writer_epoch: u64,
    #[prost(fixed64, tag = "4")]
    op_id: u64,
    #[prost(message, repeated, tag = "5")]
    segments: Vec<StoredSegment>,
    #[prost(message, optional, tag = "6")]
    open: Option<StoredOpen>,
    /// Index after the last segment; the open ledger's first index when there is one.
    #[prost(uint64, tag = "7")]
    next_index: u64,
    #[prost(uint64, optional, tag = "8")]
    topic_epoch: Option<u64>,
    #[prost(bool, tag = "9")]
    terminated: bool,
    #[prost(uint64, optional, tag = "10")]
    last_ledger: Option<u64>,
    #[prost(uint64, tag = "11")]
    last_entry: u64,
    #[prost(btree_map = "string, string", tag = "12")]
    properties: BTreeMap<String, String>,
    #[prost(uint64, tag = "13")]
    created_ms: u64,
    #[prost(uint64, tag = "14")]
    last_stamp_ms: u64,
    #[prost(uint64, tag = "15")]
    next_ordinal: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredSegment {
    /// In the ledger protocol's own stored form.
    #[prost(bytes = "bytes", tag = "1")]
    ledger: Bytes,
    #[prost(uint64, tag = "2")]
    first_index: u64,
    #[prost(uint64, tag = "3")]
    first_publish_ms: u64,
    #[prost(uint64, tag = "4")]
    closed_ms: u64,
    /// In the offload's own stored form; absent while the ledger is on bookies alone.
    #[prost(bytes = "bytes", optional, tag = "5")]
    offload: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredOpen {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    first_index: u64,
    #[prost(uint64, tag = "3")]
    created_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredTombstone {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "bytes", tag = "2")]
    ledger: Bytes,
    #[prost(uint64, tag = "3")]
    topic_id: u64,
    #[prost(uint64, tag = "4")]
    deleted_ms: u64,
}

/// The stored form of a topic record, written under `op_id`.
#[must_use]
pub fn encode(state: &State, op_id: u64) -> Bytes {
    let open = state.open();
    let segment = |s: &Segment| StoredSegment {
        ledger: s.ledger().encode(),
        first_index: s.first_index.0,
        first_publish_ms: s.first_publish_ms,
        closed_ms: s.closed_ms,
        offload: s.offload.encode(),
    };
    let offloads = state.segments().iter().any(|s| s.offload != Offload::Bookies);
    // While a ledger is open its content is not the record's business: recovery tells what it held.
    let last = match (open, state.last) {
        (Some(o), Some(last)) if last.ledger == o.id => {
            state.segments().last().map(|s| Position::new(s.id(), s.last()))
        }
        (_, last) => last,
    };
    StoredTopic {
        version: if offloads { VERSION_OFFLOAD } else { VERSION },
        topic_id: state.topic_id.0,
        writer_epoch: state.writer_epoch.0,
        op_id,
        segments: state.segments().iter().map(segment).collect(),
        open: open.map(|o| StoredOpen { id: o.id.0, first_index: o.first_index.0, created_ms: o.created_ms }),
        next_index: open.map_or(state.next_index.0, |o| o.first_index.0),
        topic_epoch: state.topic_epoch,
        terminated: state.terminated,
        last_ledger: last.map(|p| p.ledger.0),
        last_entry: last.map_or(0, |p| p.entry.0),
        properties: state.properties.clone(),
        created_ms: state.created_ms,
        last_stamp_ms: state.last_stamp_ms,
        next_ordinal: state.next_ordinal,
    }
    .encode_to_vec()
    .into()
}

/// Reads a topic record; the answer is the state and the op id it was written under. A ledger that is open in it has a writer
/// that is not ours: it is to be recovered.
///
/// # Errors
/// A record that is damaged or newer than this build.
pub fn decode(bytes: &[u8]) -> Result<(State, u64), RecordError> {
    let stored = known(bytes)?;
    let mut state = State::new(TopicId(stored.topic_id), stored.properties, stored.created_ms);
    state.writer_epoch = OwnerEpoch(stored.writer_epoch);
    state.topic_epoch = stored.topic_epoch;
    state.terminated = stored.terminated;
    state.next_index = MessageIndex(stored.next_index);
    state.next_ordinal = stored.next_ordinal;
    state.last_stamp_ms = stored.last_stamp_ms;
    state.last = stored.last_ledger.map(|l| Position::new(LedgerId(l), EntryId(stored.last_entry)));
    let mut segments = Vec::with_capacity(stored.segments.len());
    for s in stored.segments {
        let ledger = ClosedLedger::decode(&s.ledger)?;
        let segment = Segment::new(ledger, MessageIndex(s.first_index), s.first_publish_ms, s.closed_ms);
        let mut segment = segment.ok_or(RecordError::Inconsistent("a segment is empty"))?;
        if let Some(offload) = &s.offload {
            segment.offload = Offload::decode(offload)?;
        }
        segments.push(segment);
    }
    let open = stored.open.map(|o| {
        OpenTail::new(LedgerId(o.id), MessageIndex(o.first_index), o.created_ms, std::time::Duration::ZERO)
    });
    if !state.set_chain(segments, open) {
        return Err(RecordError::Inconsistent("ledger ids do not rise"));
    }
    Ok((state, stored.op_id))
}

/// The closed ledgers of a topic record that bookies hold: one whose copies there were released has an object instead.
///
/// # Errors
/// As [`decode`].
pub fn closed_ledgers(bytes: &[u8]) -> Result<Vec<ClosedLedger>, RecordError> {
    let mut held = Vec::new();
    for segment in known(bytes)?.segments {
        let offload = segment.offload.as_ref().map(|offload| Offload::decode(offload)).transpose()?;
        if offload.is_none_or(|offload| offload.on_bookies()) {
            held.push(ClosedLedger::decode(&segment.ledger)?);
        }
    }
    Ok(held)
}

/// The record as stored, if its version is known.
fn known(bytes: &[u8]) -> Result<StoredTopic, RecordError> {
    let stored = StoredTopic::decode(bytes)?;
    if ![VERSION, VERSION_OFFLOAD].contains(&stored.version) {
        return Err(RecordError::Version(stored.version));
    }
    Ok(stored)
}

/// The record with `ledger` in the place of the closed ledger of that id, and nothing else changed, the op id neither: what a repair
/// writes. `None` when it holds no such ledger.
///
/// # Errors
/// As [`decode`].
pub fn with_ledger(bytes: &[u8], ledger: &ClosedLedger) -> Result<Option<Bytes>, RecordError> {
    let mut stored = known(bytes)?;
    for segment in &mut stored.segments {
        if ClosedLedger::decode(&segment.ledger)?.id == ledger.id {
            segment.ledger = ledger.encode();
            return Ok(Some(stored.encode_to_vec().into()));
        }
    }
    Ok(None)
}

/// The stored form of a tombstone: all that a deleter needs.
#[must_use]
pub fn encode_tombstone(ledger: &ClosedLedger, topic: TopicId, deleted_ms: u64) -> Bytes {
    StoredTombstone { version: VERSION, ledger: ledger.encode(), topic_id: topic.0, deleted_ms }
        .encode_to_vec()
        .into()
}

/// Reads a tombstone.
///
/// # Errors
/// A tombstone that is damaged or newer than this build.
pub fn decode_tombstone(bytes: &[u8]) -> Result<(ClosedLedger, TopicId), RecordError> {
    let stored = StoredTombstone::decode(bytes)?;
    if stored.version != VERSION {
        return Err(RecordError::Version(stored.version));
    }
    Ok((ClosedLedger::decode(&stored.ledger)?, TopicId(stored.topic_id)))
}

/// The stored form of the topic id counter: version 1, then the last id given, big endian.
#[must_use]
pub fn encode_counter(last: u64) -> Bytes {
    let mut value = vec![1];
    value.extend_from_slice(&last.to_be_bytes());
    value.into()
}

/// Reads the topic id counter.
///
/// # Errors
/// Another version or length.
pub fn decode_counter(bytes: &[u8]) -> Result<u64, RecordError> {
    match bytes.split_first() {
        Some((1, id)) => {
            let id = id.try_into().map_err(|_| RecordError::Inconsistent("length of the id counter"))?;
            Ok(u64::from_be_bytes(id))
        }
        Some((version, _)) => Err(RecordError::Version(u32::from(*version))),
        None => Err(RecordError::Inconsistent("length of the id counter")),
    }
}
