//! The record that owners contend for: which ledgers there are, in order, and the one that is open.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | epoch, big endian |
//! | 8 | the open ledger's id, big endian |
//! | for each closed ledger 4 | length, big endian |
//! | so many | its record, as `l/{id}` would hold it |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use geminga_bookie_client::record::{
    ClosedLedger, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId,
};
use geminga_common::ids::{LedgerId, MessageIndex, OwnerEpoch, TopicId};
use std::sync::Arc;

pub(crate) const KEY: &str = "sim1/topic";

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Topic {
    pub(crate) epoch: u64,
    pub(crate) current: u64,
    pub(crate) closed: Vec<ClosedLedger>,
}

pub(crate) fn attributes(epoch: u64, ordinal: u64) -> LedgerAttributes {
    LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "persistent://sim/one/topic".into(),
        topic: TopicId(1),
        ordinal,
        predecessor: None,
        owner_epoch: OwnerEpoch(epoch),
        first_index: MessageIndex(0),
    }
}

impl Topic {
    pub(crate) fn current(&self) -> Option<LedgerId> {
        (self.current > 0).then_some(LedgerId(self.current))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(self.epoch);
        out.put_u64(self.current);
        for closed in &self.closed {
            let ClosedLedger { id, last, length, term, quorum, fragments, repair } = closed.clone();
            let state = LedgerState::Closed { last, length };
            let attributes = Arc::new(attributes(0, 0));
            let record =
                LedgerRecord { id, term, state, quorum, fragments, repair, attributes, op_id: OpId(0) }
                    .encode();
            out.put_u32(record.len() as u32);
            out.put(record);
        }
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Self {
        let (epoch, current) = (bytes.get_u64(), bytes.get_u64());
        let mut closed = Vec::new();
        while bytes.has_remaining() {
            let length = bytes.get_u32() as usize;
            let record = LedgerRecord::decode(&bytes[..length]).expect("only records are stored there");
            closed.push(record.closed().expect("only closed ones"));
            bytes.advance(length);
        }
        Self { epoch, current, closed }
    }
}
