//! Stored forms: the offload state inside a topic record, and a record of garbage. Protobuf; this file owns both. Field numbers
//! are never reused.

use crate::key::AttemptId;
use crate::state::{Attempt, Garbage, ObjectRef, Offload, Part};
use crate::writer::Shape;
use bytes::Bytes;
use geminga_common::ids::{LedgerId, OwnerEpoch, TopicId};
use prost::Message;

/// Version of a garbage record.
const VERSION: u32 = 1;

/// A stored form that cannot be taken as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoredError {
    /// Not protobuf of this shape.
    #[error("offload state does not decode: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Written by a newer version.
    #[error("version {0} of an object's removal is not known")]
    Version(u32),
    /// A state this build does not know.
    #[error("offload state {0} is not known")]
    State(u32),
    /// A part that its object cannot hold.
    #[error("a part of an object lies outside of it")]
    Part,
}

#[derive(Clone, PartialEq, Message)]
struct StoredOffload {
    /// 1 prepared, 2 committed, 3 released; 4, 5, 6 the same, together with other ledgers.
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(fixed64, tag = "2")]
    attempt: u64,
    #[prost(uint64, tag = "3")]
    begun_ms: u64,
    #[prost(uint64, tag = "4")]
    settled_ms: u64,
    #[prost(uint64, tag = "5")]
    owner_epoch: u64,
    // 6 was the store's name for an upload in parts, before the first release.
    #[prost(uint64, tag = "7")]
    size: u64,
    #[prost(uint64, tag = "8")]
    footer_offset: u64,
    #[prost(fixed32, tag = "9")]
    footer_crc: u32,
    #[prost(uint64, tag = "10")]
    committed_ms: u64,
    /// From here on for what goes together with other ledgers: the first of them, which names the object.
    #[prost(uint64, tag = "11")]
    first: u64,
    /// Where the part begins.
    #[prost(uint64, tag = "12")]
    offset: u64,
    /// Bytes of the whole object.
    #[prost(uint64, tag = "13")]
    whole: u64,
}

/// What is added to a state's number where ledgers go together.
const TOGETHER: u32 = 3;

#[derive(Clone, PartialEq, Message)]
struct StoredGarbage {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    topic_id: u64,
    #[prost(uint64, tag = "3")]
    ledger: u64,
    #[prost(fixed64, tag = "4")]
    attempt: u64,
    #[prost(uint64, tag = "5")]
    begun_ms: u64,
    // 6 was an upload in parts, before the first release.
    #[prost(uint64, tag = "7")]
    not_before_ms: u64,
}

impl Offload {
    /// The stored form; `None` for a ledger that is on bookies alone, which costs nothing.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        let object = |state, object: &ObjectRef| StoredOffload {
            state: state + object.part.map_or(0, |_| TOGETHER),
            first: object.part.map_or(0, |part| part.first.0),
            offset: object.part.map_or(0, |part| part.offset),
            whole: object.part.map_or(0, |part| part.whole),
            attempt: object.attempt.0,
            begun_ms: object.begun_ms,
            size: object.shape.size,
            footer_offset: object.shape.footer_offset,
            footer_crc: object.shape.footer_crc,
            ..StoredOffload::default()
        };
        let stored = match self {
            Offload::Bookies => return None,
            Offload::Prepared(attempt) => StoredOffload {
                state: 1 + attempt.together.map_or(0, |_| TOGETHER),
                first: attempt.together.map_or(0, |first| first.0),
                attempt: attempt.id.0,
                begun_ms: attempt.begun_ms,
                settled_ms: attempt.settled_ms,
                owner_epoch: attempt.owner_epoch.0,
                ..StoredOffload::default()
            },
            Offload::Committed(at, committed_ms) => {
                StoredOffload { committed_ms: *committed_ms, ..object(2, at) }
            }
            Offload::Released(at) => object(3, at),
        };
        Some(stored.encode_to_vec().into())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// It is damaged, or of a state this build does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let stored = StoredOffload::decode(bytes)?;
        let (attempt, begun_ms) = (AttemptId(stored.attempt), stored.begun_ms);
        let shape =
            Shape { size: stored.size, footer_offset: stored.footer_offset, footer_crc: stored.footer_crc };
        let (state, first) = match stored.state {
            4..=6 => (stored.state - TOGETHER, Some(LedgerId(stored.first))),
            alone => (alone, None),
        };
        let part = first.map(|first| Part { first, offset: stored.offset, whole: stored.whole });
        let holds = |part: Part| part.offset.checked_add(shape.size).is_some_and(|end| end <= part.whole);
        if state != 1 && !part.is_none_or(holds) {
            return Err(StoredError::Part);
        }
        let object = ObjectRef { attempt, begun_ms, shape, part };
        match state {
            1 => Ok(Offload::Prepared(Attempt {
                id: attempt,
                begun_ms,
                settled_ms: stored.settled_ms,
                owner_epoch: OwnerEpoch(stored.owner_epoch),
                together: first,
            })),
            2 => Ok(Offload::Committed(object, stored.committed_ms)),
            3 => Ok(Offload::Released(object)),
            _ => Err(StoredError::State(stored.state)),
        }
    }
}

impl Garbage {
    /// The stored form.
    #[must_use]
    pub fn encode(&self, topic: TopicId, ledger: LedgerId) -> Bytes {
        StoredGarbage {
            version: VERSION,
            topic_id: topic.0,
            ledger: ledger.0,
            attempt: self.attempt.0,
            begun_ms: self.begun_ms,
            not_before_ms: self.not_before_ms,
        }
        .encode_to_vec()
        .into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// It is damaged or newer than this build.
    pub fn decode(bytes: &[u8]) -> Result<(Self, TopicId, LedgerId), StoredError> {
        let stored = StoredGarbage::decode(bytes)?;
        if stored.version != VERSION {
            return Err(StoredError::Version(stored.version));
        }
        let garbage = Self {
            attempt: AttemptId(stored.attempt),
            begun_ms: stored.begun_ms,
            not_before_ms: stored.not_before_ms,
        };
        Ok((garbage, TopicId(stored.topic_id), LedgerId(stored.ledger)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn states() -> Vec<Offload> {
        let attempt = Attempt {
            id: AttemptId(0x0102_0304_0506_0708),
            begun_ms: 9,
            settled_ms: 10,
            owner_epoch: OwnerEpoch(11),
            together: None,
        };
        let shape = Shape { size: 12, footer_offset: 13, footer_crc: 14 };
        let object = ObjectRef { attempt: attempt.id, begun_ms: 9, shape, part: None };
        let part = Some(Part { first: LedgerId(16), offset: 17, whole: 29 });
        let of_several = ObjectRef { part, ..object };
        let together = Attempt { together: Some(LedgerId(16)), ..attempt.clone() };
        vec![
            Offload::Prepared(attempt),
            Offload::Committed(object, 15),
            Offload::Released(object),
            Offload::Prepared(together),
            Offload::Committed(of_several, 15),
            Offload::Released(of_several),
        ]
    }

    #[test]
    fn golden_bytes_never_change() {
        let golden = [
            "08011108070605040302011809200a280b",
            "08021108070605040302011809380c400d4d0e000000500f",
            "08031108070605040302011809380c400d4d0e000000",
            "08041108070605040302011809200a280b5810",
            "08051108070605040302011809380c400d4d0e000000500f58106011681d",
            "08061108070605040302011809380c400d4d0e00000058106011681d",
        ];
        assert_eq!(states().len(), golden.len());
        for (state, golden) in states().iter().zip(golden) {
            let stored = state.encode().unwrap();
            assert_eq!(hex(&stored), golden);
            assert_eq!(Offload::decode(&stored), Ok(state.clone()));
        }
        assert_eq!(Offload::Bookies.encode(), None);
        assert_eq!(Offload::decode(&[8, 7]), Err(StoredError::State(7)));
    }

    #[test]
    fn a_part_outside_of_its_object_is_refused() {
        let shape = Shape { size: 12, footer_offset: 1, footer_crc: 0 };
        for (offset, whole) in [(18, 29), (u64::MAX, 29), (0, 11)] {
            let part = Some(Part { first: LedgerId(1), offset, whole });
            let object = ObjectRef { attempt: AttemptId(1), begun_ms: 0, shape, part };
            let stored = Offload::Released(object).encode().unwrap();
            assert_eq!(Offload::decode(&stored), Err(StoredError::Part), "{offset} of {whole}");
        }
    }

    #[test]
    fn garbage_is_read_back_and_newer_garbage_refused() {
        let garbage = Garbage { attempt: AttemptId(1), begun_ms: 2, not_before_ms: 3 };
        let stored = garbage.encode(TopicId(4), LedgerId(5));
        assert_eq!(hex(&stored), "08011004180521010000000000000028023803");
        assert_eq!(Garbage::decode(&stored), Ok((garbage, TopicId(4), LedgerId(5))));
        assert_eq!(Garbage::decode(&[8, 2]), Err(StoredError::Version(2)));
    }
}
