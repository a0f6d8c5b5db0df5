//! Which code a failure of storage or metadata has, so that REST and the wire tell it beside the reason.

use super::TopicError;
use crate::cursor::{self, Failed, WriteError};
use crate::managed_ledger::{self as ml, PoisonReason, ReadError};
use geminga_bookie_client::ledgers::{AppendError, RecoverError};
use geminga_common::error::{Code, Coded};
use geminga_common::metadata::MetaError;

impl TopicError {
    /// A failure of the ledgers below.
    pub(crate) fn storage(error: &impl Coded) -> Self {
        Self::Persistence(error.code(), error.to_string())
    }

    /// A failed read. What is lost for good is no failure of storage, and tells its code itself.
    pub(crate) fn read(error: &ReadError) -> Self {
        match error {
            ReadError::Lost(..) => Self::Lost(error.to_string()),
            error => Self::storage(error),
        }
    }

    /// A failure of metadata.
    pub(crate) fn metadata(error: &MetaError) -> Self {
        Self::Metadata(error.code(), error.to_string())
    }
}

/// The code of a failed append.
pub(super) fn append(error: &AppendError) -> Code {
    match error {
        AppendError::DiskFull => Code::DISK_FULL,
        AppendError::NotEnoughBookies => Code::NOT_ENOUGH_BOOKIES,
        AppendError::TooLarge { .. } => Code::MESSAGE_TOO_LARGE,
        AppendError::Fenced => Code::LEDGER_FENCED,
        AppendError::Closed => Code::PERSISTENCE,
    }
}

fn recover(error: &RecoverError) -> Code {
    match error {
        RecoverError::Metadata(error) => error.code(),
        RecoverError::NoRecord(_) => Code::LEDGER_NOT_FOUND,
        RecoverError::Superseded(_) => Code::LEDGER_FENCED,
        RecoverError::Undecided(_) => Code::NOT_ENOUGH_BOOKIES,
        RecoverError::Damaged(..) => Code::ONLY_COPY_DAMAGED,
    }
}

impl Coded for WriteError {
    fn code(&self) -> Code {
        match self {
            Self::AlreadyExists => Code::CONFLICT,
            Self::NoSuchCursor(_) => Code::SUBSCRIPTION_NOT_FOUND,
            Self::TooLarge { .. } => Code::TOO_LARGE_TO_STORE,
            Self::Busy => Code::TOO_MANY_REQUESTS,
            Self::Failed(Failed::Writer(error)) => append(error),
            Self::Failed(Failed::Lost) => Code::NOT_OWNER,
            Self::Failed(Failed::Unavailable) => Code::NOT_ENOUGH_BOOKIES,
            Self::Failed(Failed::Closed) => Code::SUBSCRIPTION_FENCED,
        }
    }
}

impl Coded for cursor::OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Metadata(error) => error.code(),
            Self::Recover(error) => recover(error),
            Self::Read { error: geminga_bookie_client::ledgers::ReadError::Damaged(..), .. } => {
                Code::ONLY_COPY_DAMAGED
            }
            Self::Read { .. } => Code::PERSISTENCE,
            Self::Chain(_) | Self::NotOurs(..) | Self::Replay(_) => Code::RECORD_UNREADABLE,
            Self::Lost => Code::NOT_OWNER,
        }
    }
}

impl Coded for ml::OpenError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound => Code::TOPIC_NOT_FOUND,
            Self::CreationLost => Code::CONFLICT,
            Self::NotOwner => Code::NOT_OWNER,
            Self::Recovery(error) => recover(error),
            Self::LedgerLost => Code::DATA_LOSS,
            Self::Record(_) => Code::RECORD_UNREADABLE,
            Self::Metadata(error) => error.code(),
            Self::OutcomeUnknown => Code::METADATA_UNKNOWN,
        }
    }
}

impl Coded for ReadError {
    fn code(&self) -> Code {
        match self {
            Self::Trimmed(_) => Code::INVALID_POSITION,
            Self::Unavailable(_) => Code::PERSISTENCE,
            Self::Damaged(..) => Code::ONLY_COPY_DAMAGED,
            Self::ObjectStore(..) => Code::OBJECT_STORE_UNAVAILABLE,
            Self::NoObjectStore(_) => Code::OBJECT_STORE_NOT_CONFIGURED,
            Self::Missing(_) => Code::DATA_LOSS,
            Self::Lost(..) => Code::LOST_FOR_GOOD,
        }
    }
}

impl Coded for ml::ChangeError {
    fn code(&self) -> Code {
        match self {
            Self::MetadataUnavailable => Code::METADATA_UNAVAILABLE,
            Self::Terminated => Code::TOPIC_TERMINATED,
            Self::Offload(_) => Code::PRECONDITION_FAILED,
            Self::Dead => Code::TOPIC_FENCED,
        }
    }
}

impl Coded for PoisonReason {
    fn code(&self) -> Code {
        match self {
            Self::RecordLost => Code::NOT_OWNER,
            Self::Writer(error) => append(error),
            Self::OutcomeUnknown => Code::METADATA_UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_below_keeps_its_code() {
        let full = WriteError::Failed(Failed::Writer(AppendError::DiskFull));
        let told = TopicError::storage(&full).to_string();
        assert_eq!(told, "GM-4002: storage: cursor log cannot be written: disk is full");
        let position = geminga_common::ids::Position::new(
            geminga_common::ids::LedgerId(1),
            geminga_common::ids::EntryId(2),
        );
        let lost = TopicError::read(&ReadError::Lost(position, position.entry)).to_string();
        assert_eq!(lost.matches("GM-").count(), 1, "{lost}");
        let place = "/d/1.seg does not check at offset 0".to_owned();
        let damaged = RecoverError::Damaged(geminga_common::ids::LedgerId(7), place.clone());
        let told = TopicError::storage(&ml::OpenError::Recovery(damaged)).to_string();
        assert!(told.starts_with("GM-4020: storage: tail of ledger 7"), "{told}");
        assert!(told.contains(&place) && told.contains("`geminga admin accept-loss`"), "{told}");
        let log = cursor::OpenError::Read {
            ledger: geminga_common::ids::LedgerId(7),
            error: geminga_bookie_client::ledgers::ReadError::Damaged(position.entry, place),
        };
        assert!(TopicError::storage(&log).to_string().starts_with("GM-4020"));
        let few = ml::OpenError::Recovery(RecoverError::Undecided(geminga_common::ids::LedgerId(7)));
        assert!(TopicError::storage(&few).to_string().starts_with("GM-4007: storage: tail of ledger 7"));
    }
}
