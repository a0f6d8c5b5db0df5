//! The seam for object stores. Keys are made for one attempt and written by nobody else, so an object is never overwritten and
//! no call about them needs a condition: what holds is decided in the topic record alone.
//!
//! What makes something new under a key (`put`, `begin`) ends by itself: past its time the *store* refuses it, however long its
//! author or the network slept. So a key that was swept after that time stays swept.
//!
//! | file | thought |
//! |---|---|
//! | [`store`] | real stores by URL, and what they have in common |
//! | `s3` | S3: writes that expire, uploads under a key |
//! | `metered` | what S3 is asked for, counted |
//! | `profile` | credentials from the files that AWS's tools share |
//! | `directory` | a local directory |
//! | `pace` | how fast a store is asked that answers that it is too much |
//! | [`sim`] | a store in memory with faults, for tests |
//! | `conformance` | what every store must do, run on each |

#[cfg(test)]
mod conformance;
mod directory;
mod metered;
mod pace;
mod profile;
mod s3;
#[cfg(any(test, feature = "test-util"))]
pub mod sim;
pub mod store;

use crate::identity::Refusal;
use crate::mutant::{Mutant, active};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::error::{Code, Coded};
pub use pace::Throttled;
use std::ops::Range;

/// Why a call to the store did not give its answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlobError {
    /// The store says that there is no such object.
    #[error("no object {0} in the store")]
    Absent(String),
    /// Credentials, bucket or permissions: a person has to act.
    #[error("the object store refuses {key}: {reason}")]
    Refused {
        /// The object.
        key: String,
        /// What it says.
        reason: String,
    },
    /// It is not the cluster's store.
    #[error("{}: {_0}", _0.code())]
    Wrong(Box<Refusal>),
    /// Anything else. A write may have happened or not, or may still happen.
    #[error("the object store did not answer for {key}: {reason}")]
    Failed {
        /// The object.
        key: String,
        /// What went wrong.
        reason: String,
    },
}

impl Coded for BlobError {
    fn code(&self) -> Code {
        match self {
            BlobError::Absent(_) => Code::OBJECT_MISSING,
            BlobError::Refused { .. } => Code::OBJECT_STORE_REFUSED,
            BlobError::Wrong(refusal) => refusal.code(),
            BlobError::Failed { .. } => Code::OBJECT_STORE_UNAVAILABLE,
        }
    }
}

/// Most bytes of an object that is read by [`Blobs::small`].
pub const SMALL_MAX: u64 = 64 << 10;

/// Names an upload in parts, as the store calls it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct UploadId(pub String);

/// A part as the store confirmed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part(pub String);

/// An object in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
}

/// What every call answers with.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BlobError>>;

/// An object store. Writes are durable when they are answered.
pub trait Blobs: Send + Sync + 'static {
    /// Whether it may be used at all, by what it says now; asked before anything about it is recorded, and behind what was verified
    /// there. A store of its own always may.
    fn ready(&self) -> Answer<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }
    /// Whether and how it holds requests back because it answered that there were too many.
    fn throttled(&self) -> Throttled {
        Throttled::default()
    }
    /// Stores a whole object where there is none; answers whether this call did. It never replaces one: S3 is asked by
    /// `If-None-Match`. For the few bytes that say whose store it is; objects of ledgers need no condition.
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool>;
    /// A whole object of at most [`SMALL_MAX`] bytes.
    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes>;
    /// Stores a whole object. The store refuses a request that reaches it after `until_ms` (ms since 1970, by its own clock).
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()>;
    /// Begins an upload in parts. Nothing is there for readers before it is completed. The store refuses a request that reaches
    /// it after `until_ms`, as with `put`; an answer that was lost may leave an upload that [`Blobs::uploads`] tells of.
    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId>;
    /// Stores part `number` (from 0). All parts but the last have the same size, at least 5 MiB; they are given in order.
    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part>;
    /// Makes the parts an object.
    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()>;
    /// Bytes of an object.
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64>;
    /// Bytes from a range that lies within the object; fewer than asked for is an error.
    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes>;
    /// Uploads in parts that were begun and neither completed nor ended, below a prefix or exactly there.
    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>>;
    /// Ends an upload in parts and frees what it holds; one that is not there is fine.
    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()>;
    /// Removes an object; one that is not there is fine.
    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;
    /// Objects below a prefix, for reports only: nothing is ever decided by a listing. At most `limit`, keys rising, above
    /// `after`.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>>;
}

/// Ends every upload in parts under exactly this key.
///
/// # Errors
/// The store did not answer: something may be left.
pub async fn end_uploads(blobs: &dyn Blobs, key: &str) -> Result<(), BlobError> {
    if active(Mutant::ForgetUploads) {
        return Ok(());
    }
    for (of, upload) in blobs.uploads(key).await? {
        if of == key {
            blobs.abort(key, &upload).await?;
        }
    }
    Ok(())
}

/// Removes whatever an attempt has got to under its key: uploads first, because a completed one is an object.
///
/// # Errors
/// The store did not answer: something may be left.
pub async fn discard(blobs: &dyn Blobs, key: &str) -> Result<(), BlobError> {
    end_uploads(blobs, key).await?;
    blobs.remove(key).await
}
