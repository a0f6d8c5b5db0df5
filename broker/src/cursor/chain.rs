//! The record `cl/{bundle}`: which ledgers a bundle's cursor log consists of. Pure; this file owns its format.
//!
//! The steps of a roll, each one transaction; after any of them a crash loses nothing:
//! 1. [`Chain::rolled`]: the old ledger closes, the new one opens. Replay: old ledgers, then the (empty) new one.
//! 2. The snapshot is appended to the new ledger. Replay: a part of it is ignored.
//! 3. [`Chain::dropped`]: the closed ledgers leave the record, a tombstone for each enters. Replay: the snapshot alone.
//! 4. Bookies confirm the deletion, the tombstones go. Until then any deleter may finish the work.
//!
//! Stored as protobuf: 1 version (1), 2 op id, 3 log id, 4 next ordinal, 5 closed ledgers (each as
//! [`ClosedLedger::encode`] writes it), 6 open ledger + 1.

use bytes::Bytes;
use geminga_bookie_client::record::ClosedLedger;
use geminga_common::ids::{LedgerId, TopicId};
use prost::Message;

const VERSION: u32 = 1;

/// A record that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainError {
    /// Not protobuf of this shape.
    #[error("cursor log record is damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    /// Written by a newer version.
    #[error("cursor log record version {0} is not known")]
    Version(u32),
    /// A closed ledger in it cannot be read.
    #[error("cursor log record: {0}")]
    Ledger(#[from] geminga_bookie_client::record::DecodeError),
    /// Ledger ids do not rise.
    #[error("ledger ids of the cursor log do not rise")]
    Order,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(fixed64, tag = "2")]
    op_id: u64,
    #[prost(uint64, tag = "3")]
    log_id: u64,
    #[prost(uint64, tag = "4")]
    next_ordinal: u64,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    closed: Vec<Bytes>,
    #[prost(uint64, tag = "6")]
    open_plus_one: u64,
}

/// The ledgers of a cursor log.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chain {
    /// The write that made this version: decides unknown outcomes.
    pub op_id: u64,
    /// The log's id, in its ledgers' attributes: the number of its first ledger.
    pub log_id: TopicId,
    /// Ordinal of the next ledger.
    pub next_ordinal: u64,
    /// Ledgers to be replayed, in order.
    pub closed: Vec<ClosedLedger>,
    /// The ledger being written, which comes after them.
    pub open: Option<LedgerId>,
}

impl Chain {
    /// The last ledger of the chain; a new one's id must lie above.
    #[must_use]
    pub fn last(&self) -> Option<LedgerId> {
        self.open.or(self.closed.last().map(|ledger| ledger.id))
    }

    /// The open ledger was closed, by its writer or by recovery.
    ///
    /// # Panics
    /// When another ledger than the open one is handed in.
    #[must_use]
    pub fn closed(&self, ledger: ClosedLedger) -> Self {
        assert_eq!(self.open, Some(ledger.id), "only the open ledger can close");
        let mut next = self.clone();
        next.closed.push(ledger);
        next.open = None;
        next
    }

    /// A new ledger opens; `old` is the one that closes with it.
    ///
    /// # Panics
    /// When an open ledger would be left behind, or ids do not rise.
    #[must_use]
    pub fn rolled(&self, old: Option<ClosedLedger>, new: LedgerId) -> Self {
        assert!(self.last().is_none_or(|last| last < new), "ledger ids of a chain rise");
        let mut next = old.map_or_else(|| self.clone(), |old| self.closed(old));
        assert!(next.open.is_none(), "one ledger is open at most");
        if next.next_ordinal == 0 {
            next.log_id = TopicId(new.0);
        }
        next.next_ordinal += 1;
        next.open = Some(new);
        next
    }

    /// The snapshot in the open ledger is durable: all before it may go. Answers those.
    #[must_use]
    pub fn dropped(&self, count: usize) -> (Self, Vec<ClosedLedger>) {
        let mut next = self.clone();
        let gone = next.closed.drain(..count.min(self.closed.len())).collect();
        (next, gone)
    }

    /// Takes over where closed ledgers are, from what a repairer made of this record. False when one of them differs in anything
    /// else, or is not here: then nothing is taken over, and the record is not ours.
    #[must_use]
    pub fn adopt(&mut self, stored: &Self) -> bool {
        let at = |moved: &ClosedLedger| self.closed.iter().position(|own| own.is_repaired(moved));
        let places: Option<Vec<usize>> = stored.closed.iter().map(at).collect();
        let Some(places) = places else { return false };
        for (at, moved) in places.into_iter().zip(&stored.closed) {
            self.closed[at].clone_from(moved);
        }
        true
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Stored {
            version: VERSION,
            op_id: self.op_id,
            log_id: self.log_id.0,
            next_ordinal: self.next_ordinal,
            closed: self.closed.iter().map(ClosedLedger::encode).collect(),
            open_plus_one: self.open.map_or(0, |id| id.0 + 1),
        }
        .encode_to_vec()
        .into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version, damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChainError> {
        let stored = Stored::decode(bytes)?;
        if stored.version != VERSION {
            return Err(ChainError::Version(stored.version));
        }
        let closed = stored.closed.iter().map(|bytes| ClosedLedger::decode(bytes));
        let closed = closed.collect::<Result<Vec<_>, _>>()?;
        let open = stored.open_plus_one.checked_sub(1).map(LedgerId);
        let ids: Vec<LedgerId> = closed.iter().map(|ledger| ledger.id).chain(open).collect();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(ChainError::Order);
        }
        let (log_id, next_ordinal) = (TopicId(stored.log_id), stored.next_ordinal);
        Ok(Self { op_id: stored.op_id, log_id, next_ordinal, closed, open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_bookie_client::quorum::QuorumSpec;
    use geminga_bookie_client::record::Fragment;
    use geminga_common::ids::{EntryId, Term};

    fn closed(id: u64) -> ClosedLedger {
        ClosedLedger {
            id: LedgerId(id),
            last: Some(EntryId(3)),
            length: 200,
            term: Term(1),
            quorum: QuorumSpec::new(1, 1, 1).unwrap(),
            fragments: vec![Fragment { first: EntryId(0), ensemble: vec![None] }],
            repair: Vec::new(),
        }
    }

    #[test]
    fn a_chain_rolls_and_drops() {
        let chain = Chain::default().rolled(None, LedgerId(5)).rolled(Some(closed(5)), LedgerId(9));
        assert_eq!((chain.log_id, chain.next_ordinal, chain.last()), (TopicId(5), 2, Some(LedgerId(9))));
        assert_eq!(Chain::decode(&chain.encode()).unwrap(), chain);
        let (chain, gone) = chain.dropped(1);
        assert_eq!((gone, chain.closed.len(), chain.open), (vec![closed(5)], 0, Some(LedgerId(9))));
    }

    #[test]
    fn golden_bytes_and_refusals() {
        let chain =
            Chain { op_id: 2, log_id: TopicId(5), next_ordinal: 1, closed: vec![], open: Some(LedgerId(5)) };
        let golden = [8, 1, 17, 2, 0, 0, 0, 0, 0, 0, 0, 24, 5, 32, 1, 48, 6];
        assert_eq!(chain.encode()[..], golden);
        assert_eq!(Chain::decode(&[8, 2]), Err(ChainError::Version(2)));
        let falling = Chain { closed: vec![closed(5)], ..chain };
        assert_eq!(Chain::decode(&falling.encode()), Err(ChainError::Order));
    }
}
