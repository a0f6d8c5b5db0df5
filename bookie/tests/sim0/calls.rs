//! Calls to bookies and metadata: what is asked, what comes back, and how long a caller waits.

use crate::meta::MetaReply;
use crate::plan::{SECOND, Us};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{
    Add, AddError, ControlError, Doubt, IdRange, LedgerStat, Presence, Read, ReadAnswer, Replicate,
    ReplicateError, Replicated, Tail,
};
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::MetaError;

/// A call to a bookie.
#[derive(Clone, Debug)]
pub(crate) enum Req {
    Add(Add),
    Fence {
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    },
    Read(Read),
    Seal {
        ledger: LedgerId,
        last: Option<EntryId>,
    },
    Delete {
        ledger: LedgerId,
    },
    Stat {
        ledger: LedgerId,
    },
    Presence {
        ledger: LedgerId,
        ids: IdRange,
    },
    Replicate(Replicate),
    /// Of a bookie to its own store: copies it has fetched.
    Copies {
        ledger: LedgerId,
        entries: Vec<Entry>,
    },
    /// Of a bookie to its own store: the dead-id watermark it has read.
    Watermark {
        to: LedgerId,
    },
}

/// What a call comes back with.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Add(Result<(), AddError>),
    Tail(Result<Tail, ControlError>),
    Control(Result<(), ControlError>),
    Stat(Result<LedgerStat, ControlError>),
    Presence(Result<Presence, ControlError>),
    Replicated(Result<Replicated, ReplicateError>),
    Read(ReadAnswer),
    Meta(Result<MetaReply, MetaError>),
    Slept,
}

impl Req {
    /// How long a caller waits before it is told that it cannot know.
    pub(crate) fn patience(&self) -> Us {
        match self {
            Self::Add(_) | Self::Copies { .. } => 5 * SECOND,
            Self::Read(_) => 3 * SECOND,
            // The recovery has a patience of its own; the transport's deadline is far behind it.
            Self::Fence { .. } => 30 * SECOND,
            Self::Seal { .. } | Self::Delete { .. } | Self::Stat { .. } => 10 * SECOND,
            Self::Presence { .. } | Self::Watermark { .. } => 10 * SECOND,
            Self::Replicate(_) => 20 * SECOND,
        }
    }

    /// The answer of a bookie that cannot serve the call.
    pub(crate) fn failed(&self, error: ControlError) -> Outcome {
        match self {
            Self::Add(_) | Self::Copies { .. } => Outcome::Add(Err(match error {
                ControlError::WrongIncarnation => AddError::WrongIncarnation,
                ControlError::Unknown(why) => AddError::Unknown(why),
                _ => AddError::Failed,
            })),
            Self::Read(_) => Outcome::Read(ReadAnswer::Unknown(match error {
                ControlError::WrongIncarnation => Doubt::WrongIncarnation,
                _ => Doubt::Unreachable,
            })),
            Self::Fence { .. } => Outcome::Tail(Err(error)),
            Self::Seal { .. } | Self::Delete { .. } | Self::Watermark { .. } => Outcome::Control(Err(error)),
            Self::Stat { .. } => Outcome::Stat(Err(error)),
            Self::Presence { .. } => Outcome::Presence(Err(error)),
            Self::Replicate(_) => Outcome::Replicated(Err(error.into())),
        }
    }
}
