//! The seam for object stores. Keys are made for one attempt and written by nobody else, so an object is never overwritten and
//! no call needs a condition: what holds is decided in the topic record alone.
//!
//! | file | thought |
//! |---|---|
//! | [`store`] | real stores by URL: S3 and what speaks like it, a local directory |
//! | [`sim`] | a store in memory with faults, for tests |

#[cfg(any(test, feature = "test-util"))]
pub mod sim;
pub mod store;

use bytes::Bytes;
use futures::future::BoxFuture;
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
    /// Anything else. A write may have happened or not, or may still happen.
    #[error("the object store did not answer for {key}: {reason}")]
    Failed {
        /// The object.
        key: String,
        /// What went wrong.
        reason: String,
    },
}

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
    /// Stores a whole object.
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>) -> Answer<'a, ()>;
    /// Begins an upload in parts. Nothing is there for readers before it is completed.
    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, UploadId>;
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
    /// Ends the upload if one is given, and removes the object; what is not there is fine. Afterwards neither the object nor
    /// parts of it are there, whatever an attempt has got to.
    fn discard<'a>(&'a self, key: &'a str, upload: Option<&'a UploadId>) -> Answer<'a, ()>;
    /// Objects below a prefix, for reports only: nothing is ever decided by a listing. At most `limit`, keys rising, above
    /// `after`.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>>;
}
