//! Taking a bundle: the pure machine. It says what to read or commit next, and takes the answers in.
//!
//! One transaction takes a bundle: it compares that the owner key is as it was read (absent, or our own former self) and that
//! the epoch counter has not moved, puts the owner key under the session's lease, and raises the counter. So of any number of
//! takers one wins, and epochs rise with every taking, whatever happened to leases in between.
//!
//! An answer that is lost is not guessed: the owner key is read again, and holds exactly the value of this taking or does not.
//! While it does not and the counter stands still, the same transaction is committed again; its conditions let it happen once.

use super::record::{Member, Owner, decode_epoch, encode_epoch};
use bytes::Bytes;
use geminga_common::ids::OwnerEpoch;
use geminga_common::metadata::{Compare, LeaseId, MetaError, Op, Record, Revision, Txn, TxnOutcome};

/// Rounds before a taking gives up: each lost round means that somebody else wrote.
const ROUNDS_MAX: u32 = 16;

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read the owner key, then [`Take::owner`].
    ReadOwner,
    /// Read the epoch counter, then [`Take::counter`].
    ReadCounter,
    /// Commit, then [`Take::committed`].
    Commit(Txn),
    /// Over.
    Done(Outcome),
}

/// How a taking ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The bundle is ours, with this value under the owner key.
    Mine(Owner),
    /// It is another broker's.
    Other(Owner),
    /// The lease is gone: whatever was taken is void.
    LeaseGone,
    /// Not now: the store does not answer, or others keep writing.
    Undecided(String),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Owner,
    /// The owner key held this.
    Counter(Option<Bytes>),
    Commit {
        over: Option<Bytes>,
        counter: Option<(Revision, OwnerEpoch)>,
    },
    Done(Outcome),
}

/// Who takes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Taker {
    /// This broker.
    pub member: Member,
    /// This start of it.
    pub process: u64,
    /// The session's lease.
    pub lease: LeaseId,
    /// Unique for this taking.
    pub take: u64,
}

/// The keys of a bundle.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BundleKeys {
    /// `owner/{bundle}`.
    pub owner: String,
    /// `bd/{bundle}`.
    pub counter: String,
}

/// A taking under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Take {
    keys: BundleKeys,
    taker: Taker,
    phase: Phase,
    rounds: u32,
}

impl Take {
    /// Begins.
    #[must_use]
    pub fn new(keys: BundleKeys, taker: Taker) -> Self {
        Self { keys, taker, phase: Phase::Owner, rounds: 0 }
    }

    /// The keys it is about.
    #[must_use]
    pub fn keys(&self) -> &BundleKeys {
        &self.keys
    }

    /// What to do next.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.phase {
            Phase::Owner => Step::ReadOwner,
            Phase::Counter(_) => Step::ReadCounter,
            Phase::Commit { over, counter } => Step::Commit(self.txn(over.as_ref(), *counter)),
            Phase::Done(outcome) => Step::Done(outcome.clone()),
        }
    }

    fn owned(&self, epoch: OwnerEpoch) -> Owner {
        let Taker { member, process, take, .. } = self.taker.clone();
        Owner { epoch, process, take, member }
    }

    fn txn(&self, over: Option<&Bytes>, counter: Option<(Revision, OwnerEpoch)>) -> Txn {
        let BundleKeys { owner, counter: counter_key } = self.keys.clone();
        let epoch = OwnerEpoch(counter.map_or(0, |(_, last)| last.0) + 1);
        let owner_unchanged = match over {
            None => Compare::Absent(owner.clone()),
            Some(value) => Compare::ValueIs(owner.clone(), value.clone()),
        };
        let counter_unchanged = match counter {
            None => Compare::Absent(counter_key.clone()),
            Some((revision, _)) => Compare::ModRevision(counter_key.clone(), revision),
        };
        let value = self.owned(epoch).encode();
        Txn {
            compares: vec![owner_unchanged, counter_unchanged],
            ops: vec![
                Op::Put { key: owner, value, lease: Some(self.taker.lease) },
                Op::put(counter_key, encode_epoch(epoch)),
            ],
        }
    }

    fn done(&mut self, outcome: Outcome) {
        self.phase = Phase::Done(outcome);
    }

    fn again(&mut self, why: &str) {
        self.rounds += 1;
        if self.rounds >= ROUNDS_MAX {
            self.done(Outcome::Undecided(why.to_owned()));
        } else {
            self.phase = Phase::Owner;
        }
    }

    /// The owner key was read.
    pub fn owner(&mut self, read: Result<Option<Record>, MetaError>) {
        if self.phase != Phase::Owner {
            return;
        }
        match read {
            Ok(None) => self.phase = Phase::Counter(None),
            Ok(Some(record)) => match Owner::decode(&record.value) {
                // Put by a commit of ours whose answer was lost: nobody else has this value.
                Ok(owner) if owner.process == self.taker.process && owner.take == self.taker.take => {
                    self.done(Outcome::Mine(owner));
                }
                // An earlier start of this broker, or a taking that its session has outlived: both are over.
                Ok(owner) if owner.member.id == self.taker.member.id => {
                    self.phase = Phase::Counter(Some(record.value));
                }
                Ok(owner) => self.done(Outcome::Other(owner)),
                Err(error) => self.done(Outcome::Undecided(error.to_string())),
            },
            Err(error) => self.done(Outcome::Undecided(error.to_string())),
        }
    }

    /// The epoch counter was read.
    pub fn counter(&mut self, read: Result<Option<Record>, MetaError>) {
        let Phase::Counter(over) = &self.phase else { return };
        let over = over.clone();
        match read {
            Ok(None) => self.phase = Phase::Commit { over, counter: None },
            Ok(Some(record)) => match decode_epoch(&record.value) {
                Ok(last) => self.phase = Phase::Commit { over, counter: Some((record.mod_revision, last)) },
                Err(error) => self.done(Outcome::Undecided(error.to_string())),
            },
            Err(error) => self.done(Outcome::Undecided(error.to_string())),
        }
    }

    /// The transaction was answered.
    pub fn committed(&mut self, answer: Result<TxnOutcome, MetaError>) {
        let Phase::Commit { counter, .. } = &self.phase else { return };
        let epoch = OwnerEpoch(counter.map_or(0, |(_, last)| last.0) + 1);
        match answer {
            Ok(TxnOutcome::Committed(_)) => self.done(Outcome::Mine(self.owned(epoch))),
            Ok(TxnOutcome::CompareFailed) => self.again("other brokers keep taking the bundle"),
            Err(MetaError::LeaseGone(_)) => self.done(Outcome::LeaseGone),
            Err(MetaError::Unknown(why)) => self.again(&why),
            Err(error @ (MetaError::Unavailable(_) | MetaError::Invalid(_) | MetaError::TooLarge(_))) => {
                self.done(Outcome::Undecided(error.to_string()));
            }
        }
    }
}
