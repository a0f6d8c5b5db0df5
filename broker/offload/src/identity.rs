//! Whose object store this is. A cluster's objects lie in one store; its identity is a random number that an object there and the
//! metadata both hold, so that another bucket or prefix than the one in use is noticed before anything is read, written or removed
//! there. The identity decides, not the URL: a store whose content was moved is the same store.
//!
//! Metadata goes first, with what is intended; then the bucket, by a write that never replaces anything; then metadata confirms.
//! [`decide`] says what comes next of any two observations, so that whatever was interrupted is gone on with:
//!
//! | metadata \ bucket | nothing | this id | another id | unreadable |
//! |---|---|---|---|---|
//! | nothing | intend a new id | – | refused | refused |
//! | intended, here | write it | confirm | refused | refused |
//! | intended, elsewhere | intend a new id | confirm | refused | refused |
//! | confirmed | refused | good | refused | refused |
//!
//! Invariants: an object is written, read or removed in the confirmed store alone ([`guard`]); what is confirmed never changes; an
//! identity in a bucket is never replaced; of several that claim at the same time, with whatever URLs, one store is confirmed.

pub mod guard;
mod stored;
#[cfg(test)]
mod tests;

use crate::blob::{BlobError, Blobs};
use crate::key;
use geminga_common::error::{Code, Coded};
use std::fmt;
pub use stored::{Recorded, Tag, TagError};

/// A random number that names one object store of one cluster, for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(pub u128);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {self}")
    }
}

/// What the bucket says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InBucket {
    /// No identity.
    Nothing,
    /// This one.
    Is(Tag),
    /// Something that cannot be read.
    Unreadable(TagError),
}

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It is the cluster's store.
    Good,
    /// The metadata is to name a new id for this place.
    Intend,
    /// This id is to be written to the bucket, which has none.
    Write(StoreId),
    /// The metadata is to say that the bucket has it.
    Confirm,
    /// It is not the cluster's store.
    Refuse(Refusal),
}

/// Why an object store is not used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The metadata names a store, and this one has no identity.
    #[error(
        "the object store {here} is not the one in use: it carries no identity, and this cluster's offloaded ledgers lie in {there}; \
         {}set offload.url and offload.endpoint back, or to where all of that was copied to (with {key})",
        mounted(.here)
    )]
    Empty {
        /// The store that is configured.
        here: String,
        /// The one in use, as it was called last.
        there: String,
        /// The identity's object.
        key: String,
    },
    /// The metadata names a store, and this is another one.
    #[error(
        "the object store {here} is that of another cluster ({owner}), and this cluster's offloaded ledgers lie in {there}; set \
         offload.url and offload.endpoint back"
    )]
    Foreign {
        /// The store that is configured.
        here: String,
        /// The one in use, as it was called last.
        there: String,
        /// Whom it belongs to.
        owner: String,
    },
    /// The metadata names none, and this one belongs to somebody.
    #[error(
        "the object store {here} is in use by {owner}, of which this cluster's metadata knows nothing; set offload.url to a prefix of \
         its own, or put back the metadata that belongs to it; where that is lost, see `geminga admin storage rebuild`"
    )]
    Taken {
        /// The store that is configured.
        here: String,
        /// Whom it belongs to.
        owner: String,
    },
    /// Its identity cannot be read.
    #[error("the identity {key} of the object store {here} cannot be read: {why}; {}", why.help())]
    Unreadable {
        /// The store that is configured.
        here: String,
        /// The identity's object.
        key: String,
        /// What is wrong.
        why: TagError,
    },
}

fn mounted(here: &str) -> &'static str {
    if here.starts_with("file:") { "look whether its file system is mounted there; else " } else { "" }
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Refusal::Empty { .. } => Code::OBJECT_STORE_EMPTY,
            Refusal::Foreign { .. } | Refusal::Taken { .. } => Code::OBJECT_STORE_FOREIGN,
            Refusal::Unreadable { why: TagError::Version(_), .. } => Code::FORMAT_TOO_NEW,
            Refusal::Unreadable { .. } => Code::DATA_LOSS,
        }
    }
}

/// What comes next, of what the metadata and the bucket at `here` say.
#[must_use]
pub fn decide(cluster: &str, here: &str, recorded: Option<&Recorded>, bucket: &InBucket) -> Step {
    let (here_is, key) = (here.to_owned(), key::identity(cluster));
    let refuse = |refusal| Step::Refuse(refusal);
    match (recorded, bucket) {
        (_, InBucket::Unreadable(why)) => {
            refuse(Refusal::Unreadable { here: here_is, key, why: why.clone() })
        }
        (Some(recorded), InBucket::Is(tag)) if tag.id == recorded.id => {
            if recorded.confirmed {
                Step::Good
            } else {
                Step::Confirm
            }
        }
        (Some(recorded), InBucket::Is(tag)) if recorded.confirmed => {
            let there = recorded.place.clone();
            refuse(Refusal::Foreign { here: here_is, there, owner: tag.to_string() })
        }
        (_, InBucket::Is(tag)) => refuse(Refusal::Taken { here: here_is, owner: tag.to_string() }),
        (Some(recorded), InBucket::Nothing) if recorded.confirmed => {
            refuse(Refusal::Empty { here: here_is, there: recorded.place.clone(), key })
        }
        // What was intended for another place may still arrive there.
        (Some(recorded), InBucket::Nothing) if recorded.place == here => Step::Write(recorded.id),
        (_, InBucket::Nothing) => Step::Intend,
    }
}

/// Looks at the bucket's identity.
///
/// # Errors
/// The store does not answer, or refuses.
pub async fn look(blobs: &dyn Blobs, cluster: &str) -> Result<InBucket, BlobError> {
    let key = key::identity(cluster);
    match blobs.small(&key).await {
        Ok(bytes) => Ok(Tag::decode(&bytes).map_or_else(InBucket::Unreadable, InBucket::Is)),
        Err(BlobError::Absent(_)) => Ok(InBucket::Nothing),
        Err(error) => Err(error),
    }
}
