//! The state machine of one closed ledger's offload, as the topic record holds it. Pure: a change is applied to a state and
//! answers the next state and what becomes garbage; whoever commits the one commits the other in the same transaction.
//!
//! ```text
//!            prepare            commit             release
//!   Bookies ────────▶ Prepared ───────▶ Committed ────────▶ Released
//!      ▲                │  │ ▲            │ (lag passed; the ledger is tombstoned)
//!      ├────abandon─────┘  └─┘ prepare    │
//!      └────return (the object is gone)────┘
//! ```
//!
//! Invariants (named functions of this module, used by the record's owner, the tests and the exploration alike):
//! - An attempt is referenced by at most one state, and garbage never names a referenced attempt: [`Step::is_safe`].
//! - Bookie copies go by `release` or by removal of the ledger, and `release` needs `Committed`, that is: read back and verified; and
//!   [`Seen`], that is: its object was looked at once more.
//! - A state that references an object never loses it but to [`Offload::remove`], with the ledger itself, and to `return`, which needs
//!   bookies to have the ledger still, and [`Gone`], that is: the cluster's store was asked and has no such object.
//!
//! Several ledgers of a topic may share one attempt and its object: what holds of them together is in [`chain`].

use crate::key::{self, AttemptId};
use crate::mutant::{Mutant, active};
use crate::writer::Shape;
use geminga_common::ids::{LedgerId, OwnerEpoch, TopicId};

pub mod chain;

/// One try at an upload. Its key is made for it alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attempt {
    /// Names it.
    pub id: AttemptId,
    /// When it was begun, ms since 1970; part of the key.
    pub begun_ms: u64,
    /// From when on nothing of its author can reach its key any more, ms since 1970.
    pub settled_ms: u64,
    /// Epoch of the owner that began it.
    pub owner_epoch: OwnerEpoch,
    /// The first of the ledgers that go together, which names the object; `None` where a ledger goes by itself.
    pub together: Option<LedgerId>,
}

/// Where a ledger lies in an object that holds several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Part {
    /// The first of them, which names the object.
    pub first: LedgerId,
    /// Where its bytes begin.
    pub offset: u64,
    /// Bytes of the whole object.
    pub whole: u64,
}

/// Names what an object holds of one ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartId(pub(crate) AttemptId, pub(crate) u64);

/// An object that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ObjectRef {
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// When that was begun, ms since 1970; part of the key.
    pub begun_ms: u64,
    /// Size and checksum of what it holds of the ledger: all of it, or a part.
    pub shape: Shape,
    /// Where that lies; `None` where the object is the ledger's alone.
    pub part: Option<Part>,
}

impl ObjectRef {
    /// Its key in the store.
    #[must_use]
    pub fn key(&self, cluster: &str, topic: TopicId, ledger: LedgerId) -> String {
        let named = self.part.map_or(ledger, |part| part.first);
        key::object(cluster, self.begun_ms, topic, named, self.attempt)
    }

    /// Where the ledger's bytes begin in it: offsets of the index count from there.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.part.map_or(0, |part| part.offset)
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn whole(&self) -> u64 {
        self.part.map_or(self.shape.size, |part| part.whole)
    }

    /// Names the ledger's bytes.
    #[must_use]
    pub fn id(&self) -> PartId {
        PartId(self.attempt, self.base())
    }
}

/// Where a closed ledger is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Offload {
    /// On bookies alone.
    #[default]
    Bookies,
    /// On bookies; an upload may be under way.
    Prepared(Attempt),
    /// On bookies and in the store.
    Committed(ObjectRef, u64),
    /// In the store alone.
    Released(ObjectRef),
}

/// That the object of an attempt was found in the cluster's store, as its record says. Only [`crate::release::look`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Seen(PartId);

impl Seen {
    pub(crate) fn of(object: &ObjectRef) -> Self {
        Self(object.id())
    }
}

/// That the cluster's store has no object of an attempt that its record names. Only [`crate::release::gone`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gone(PartId);

impl Gone {
    pub(crate) fn of(object: &ObjectRef) -> Self {
        Self(object.id())
    }
}

/// What is to happen to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// An attempt begins. One before it, whoever's, is given up.
    Prepare(Attempt),
    /// This attempt is given up.
    Abandon(AttemptId),
    /// This attempt's object was read back whole, at this time (ms since 1970), and holds this of the ledger.
    Commit(AttemptId, Shape, Option<Part>, u64),
    /// Bookie copies go, if they were to stay until this time (ms since 1970) at most, and the object was seen just now.
    Release {
        /// What was seen.
        seen: Seen,
        /// Now, ms since 1970.
        now_ms: u64,
        /// How long both copies stay, ms.
        lag_ms: u64,
    },
    /// The object is gone from the store while bookies have the ledger: it is theirs alone again, and may go anew.
    Return {
        /// What is gone.
        gone: Gone,
        /// Now, ms since 1970.
        now_ms: u64,
        /// How long its key is left alone, ms: as that of a ledger that left its topic.
        grace_ms: u64,
    },
}

/// A key under which something may lie that nobody will ever read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Garbage {
    /// The attempt that wrote there.
    pub attempt: AttemptId,
    /// When that was begun, ms since 1970; part of the key.
    pub begun_ms: u64,
    /// When it may be removed, ms since 1970.
    pub not_before_ms: u64,
}

/// A change that was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The state after it.
    pub next: Offload,
    /// What is to be removed from the store.
    pub garbage: Option<Garbage>,
    /// Whether the ledger is to be tombstoned.
    pub bury: bool,
}

impl Step {
    /// Whether what it throws away is referenced no more.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.garbage.as_ref().is_none_or(|garbage| self.next.attempt() != Some(garbage.attempt))
    }
}

/// A change that the state does not allow: nothing is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The ledger has an object already.
    #[error("the ledger is offloaded already")]
    Offloaded,
    /// Another attempt is under way, or none.
    #[error("the attempt is not the one the topic record names")]
    OtherAttempt,
    /// Some of the ledgers that share an attempt were left out.
    #[error("the attempt has other ledgers as well")]
    OtherLedgers,
    /// No verified object, not for long enough, or another one was seen.
    #[error("the bookie copies are still needed")]
    StillNeeded,
    /// There is no object that both could be gone and not be needed.
    #[error("the object is not one whose ledger bookies have as well")]
    NotOnBookies,
}

impl Offload {
    /// The attempt the record names.
    #[must_use]
    pub fn attempt(&self) -> Option<AttemptId> {
        match self {
            Offload::Bookies => None,
            Offload::Prepared(attempt) => Some(attempt.id),
            Offload::Committed(object, _) | Offload::Released(object) => Some(object.attempt),
        }
    }

    /// The ledger that names what the record's attempt makes of this one, `ledger`.
    #[must_use]
    pub fn named_by(&self, ledger: LedgerId) -> LedgerId {
        let first = match self {
            Offload::Bookies => None,
            Offload::Prepared(attempt) => attempt.together,
            Offload::Committed(object, _) | Offload::Released(object) => object.part.map(|part| part.first),
        };
        first.unwrap_or(ledger)
    }

    /// The verified object.
    #[must_use]
    pub fn object(&self) -> Option<&ObjectRef> {
        match self {
            Offload::Bookies | Offload::Prepared(_) => None,
            Offload::Committed(object, _) | Offload::Released(object) => Some(object),
        }
    }

    /// Whether bookies hold it.
    #[must_use]
    pub fn on_bookies(&self) -> bool {
        !matches!(self, Offload::Released(_))
    }

    /// Applies a change.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn apply(&self, change: &Change) -> Result<Step, Refused> {
        let step = |next, garbage, bury| Ok(Step { next, garbage, bury });
        match (self, change) {
            (Offload::Bookies, Change::Prepare(new)) => step(Offload::Prepared(new.clone()), None, false),
            (Offload::Prepared(old), Change::Prepare(new)) => {
                step(Offload::Prepared(new.clone()), Some(given_up(old)), false)
            }
            (Offload::Committed(..) | Offload::Released(_), Change::Prepare(_)) => Err(Refused::Offloaded),
            (Offload::Prepared(old), Change::Abandon(id)) if old.id == *id => {
                step(Offload::Bookies, Some(given_up(old)), false)
            }
            (Offload::Prepared(old), Change::Commit(id, shape, part, at_ms))
                if old.id == *id && old.together == part.map(|part| part.first) =>
            {
                let object = ObjectRef { attempt: *id, begun_ms: old.begun_ms, shape: *shape, part: *part };
                step(Offload::Committed(object, *at_ms), None, false)
            }
            (Offload::Committed(old, _), Change::Commit(id, shape, part, at_ms))
                if active(Mutant::CommitTwice) =>
            {
                let object = ObjectRef { attempt: *id, begun_ms: old.begun_ms, shape: *shape, part: *part };
                step(Offload::Committed(object, *at_ms), Some(removed(old, 0)), false)
            }
            (_, Change::Abandon(_) | Change::Commit(..)) => Err(Refused::OtherAttempt),
            (Offload::Committed(object, at_ms), Change::Release { seen, now_ms, lag_ms })
                if seen.0 == object.id() && *now_ms >= at_ms.saturating_add(*lag_ms) =>
            {
                step(Offload::Released(*object), None, true)
            }
            (Offload::Committed(object, _), Change::Return { gone, now_ms, grace_ms })
                if gone.0 == object.id() =>
            {
                step(Offload::Bookies, Some(removed(object, now_ms.saturating_add(*grace_ms))), false)
            }
            (Offload::Released(object), Change::Return { now_ms, .. }) if active(Mutant::ReturnReleased) => {
                step(Offload::Bookies, Some(removed(object, *now_ms)), false)
            }
            (Offload::Prepared(attempt), Change::Release { .. }) if active(Mutant::ReleaseUnverified) => {
                step(Offload::Prepared(attempt.clone()), None, true)
            }
            (_, Change::Release { .. }) => Err(Refused::StillNeeded),
            (_, Change::Return { .. }) => Err(Refused::NotOnBookies),
        }
    }

    /// What goes with the ledger when it leaves its topic: garbage in the store, and whether a tombstone is needed. Objects of
    /// readers under way stay for `grace_ms`.
    #[must_use]
    pub fn remove(&self, now_ms: u64, grace_ms: u64) -> (Option<Garbage>, bool) {
        let garbage = match self {
            Offload::Bookies => None,
            Offload::Prepared(attempt) => Some(given_up(attempt)),
            Offload::Committed(object, _) | Offload::Released(object) => {
                Some(removed(object, now_ms.saturating_add(grace_ms)))
            }
        };
        (garbage, self.on_bookies())
    }
}

/// What an attempt that is given up leaves: something may still come to lie under its key until it has settled.
fn given_up(attempt: &Attempt) -> Garbage {
    Garbage { attempt: attempt.id, begun_ms: attempt.begun_ms, not_before_ms: attempt.settled_ms }
}

fn removed(object: &ObjectRef, not_before_ms: u64) -> Garbage {
    Garbage { attempt: object.attempt, begun_ms: object.begun_ms, not_before_ms }
}

#[cfg(test)]
mod tests;
