//! What a rebuild has to tell a person about, by what is at stake.

use geminga_common::error::{Code, Coded};
use geminga_common::ids::{LedgerId, TopicId};
use geminga_common::names::TopicName;

/// Something that is not attached again, or not as a whole.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Finding {
    /// No whole object of this ledger was found.
    #[error(
        "damaged: {key}: {what}; no other attempt of its ledger is whole, put the object back from a version or copy of the bucket"
    )]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer build.
    #[error("too new: {key}: {what}; rebuild with a build as new as the one that wrote it")]
    TooNew {
        /// The object.
        key: String,
        /// Which version.
        what: String,
    },
    /// Messages between two ledgers of a topic are in no object.
    #[error(
        "hole: {topic}: {messages} messages between ledgers {after} and {before} are in no object; readers go on behind them"
    )]
    Hole {
        /// The topic.
        topic: TopicName,
        /// The ledger before the hole.
        after: LedgerId,
        /// The ledger behind it.
        before: LedgerId,
        /// How many are missing.
        messages: u64,
    },
    /// The objects of a topic do not say what it is called.
    #[error(
        "nameless: topic id {topic} has {ledgers} ledgers ({bytes} bytes) and none of its objects holds its name (offload.hide_names); pass \
         --name {topic}=persistent://tenant/namespace/topic"
    )]
    Nameless {
        /// The topic's id.
        topic: TopicId,
        /// Its ledgers.
        ledgers: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// A topic was left as it is.
    #[error("not attached: {topic}: {why}")]
    NotAttached {
        /// The topic.
        topic: TopicName,
        /// Why.
        why: String,
    },
    /// A topic that was deleted before another of its name was made.
    #[error(
        "older: topic id {id} was called {topic} before topic id {by} was; its {ledgers} ledgers ({bytes} bytes) are left where they are"
    )]
    Older {
        /// The name.
        topic: TopicName,
        /// The older one.
        id: TopicId,
        /// The one that is attached.
        by: TopicId,
        /// Ledgers of the older one.
        ledgers: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// An object that is not needed.
    #[error("spare: {key}, {size} bytes: {why}; it is left where it is")]
    Spare {
        /// The object.
        key: String,
        /// Its bytes.
        size: u64,
        /// Why not.
        why: &'static str,
    },
    /// An upload that was not finished.
    #[error("unfinished upload: {id} of {key}; it is left where it is")]
    Upload {
        /// The object that it would have become.
        key: String,
        /// The store's name for it.
        id: String,
    },
}

impl Coded for Finding {
    fn code(&self) -> Code {
        match self {
            Finding::Damaged { .. } => Code::OBJECT_DAMAGED,
            Finding::TooNew { .. } => Code::FORMAT_TOO_NEW,
            Finding::Hole { .. } => Code::LEDGERS_MISSING,
            Finding::Nameless { .. } | Finding::NotAttached { .. } => Code::TOPIC_NOT_REBUILT,
            Finding::Older { .. } | Finding::Spare { .. } => Code::OBJECT_UNKNOWN,
            Finding::Upload { .. } => Code::UPLOAD_UNKNOWN,
        }
    }
}

impl Finding {
    /// Whether messages are at stake; else it is only space.
    #[must_use]
    pub fn is_grave(&self) -> bool {
        !matches!(self, Finding::Older { .. } | Finding::Spare { .. } | Finding::Upload { .. })
    }
}
