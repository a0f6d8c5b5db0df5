//! The seam for cluster metadata: small records, compare-and-set transactions, watches as hints, leases for liveness.
//!
//! Implementations: [`memory::MemoryStore`], [`redb::RedbStore`] (standalone), [`etcd::EtcdStore`] (cluster). One conformance
//! suite holds for all. Nothing hot lives here: no call is made per message. A transaction whose answer is lost has an
//! *unknown* outcome ([`MetaError::Unknown`]): read back and compare the `op_id` you wrote, never guess.

use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod etcd;
pub mod keys;
mod lease;
pub mod memory;
pub mod redb;
pub mod session;
mod watches;

/// A store-wide revision: every committed transaction that writes takes the next one. 0 is before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease: its keys vanish when it is not kept alive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(pub u64);

/// A stored record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision of the transaction that last wrote it.
    pub mod_revision: Revision,
}

/// A condition of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compare {
    /// The key has no value.
    Absent(String),
    /// The key has some value.
    Exists(String),
    /// The key was last written at this revision.
    ModRevision(String, Revision),
    /// The key holds exactly this value.
    ValueIs(String, Bytes),
    /// The key holds a value below this one, byte by byte; an absent key counts as below everything.
    ValueBelow(String, Bytes),
}

impl Compare {
    /// The key it looks at.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent(key) | Compare::Exists(key) => key,
            Compare::ModRevision(key, _) => key,
            Compare::ValueIs(key, _) | Compare::ValueBelow(key, _) => key,
        }
    }

    /// Whether it holds for what the key has now.
    #[must_use]
    pub fn holds(&self, current: Option<(Revision, &[u8])>) -> bool {
        match self {
            Compare::Absent(_) => current.is_none(),
            Compare::Exists(_) => current.is_some(),
            Compare::ModRevision(_, wanted) => current.is_some_and(|(revision, _)| revision == *wanted),
            Compare::ValueIs(_, wanted) => current.is_some_and(|(_, value)| value == &wanted[..]),
            Compare::ValueBelow(_, bound) => current.is_none_or(|(_, value)| value < &bound[..]),
        }
    }
}

/// A write of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Stores a value; `lease` ties it to a lease's life.
    Put {
        /// Key.
        key: String,
        /// Value.
        value: Bytes,
        /// Lease, if the key must vanish with its writer.
        lease: Option<LeaseId>,
    },
    /// Removes a key; absent is fine.
    Delete {
        /// Key.
        key: String,
    },
}

impl Op {
    /// A put without lease.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Op::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// A delete.
    #[must_use]
    pub fn delete(key: impl Into<String>) -> Self {
        Op::Delete { key: key.into() }
    }
}

/// All `compares` hold → all `ops` happen, atomically; else nothing happens. No key may be written twice in one transaction.
/// One that changes nothing (no ops, or deletes of absent keys only) takes no revision and answers the current one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// Conditions.
    pub compares: Vec<Compare>,
    /// Writes. At most [`TXN_OPS_MAX`].
    pub ops: Vec<Op>,
}

/// Most writes, and most conditions, one transaction may hold (etcd's default).
pub const TXN_OPS_MAX: usize = 128;
/// Most bytes of keys and values in one transaction: below etcd's request limit of 1.5 MiB, so that what a standalone process
/// may write a cluster may too.
pub const TXN_BYTES_MAX: usize = 1_400_000;

impl Txn {
    /// Whether any store may be asked to run it. Stores call this before they look at anything.
    ///
    /// # Errors
    /// [`MetaError::TooLarge`] when its keys and values have more than [`TXN_BYTES_MAX`] bytes; [`MetaError::Invalid`] when it has
    /// too many writes, writes a key twice or names an empty key.
    pub fn check(&self) -> Result<(), MetaError> {
        if self.ops.len() > TXN_OPS_MAX || self.compares.len() > TXN_OPS_MAX {
            return Err(MetaError::Invalid("more than 128 writes or conditions in one transaction"));
        }
        let mut keys = std::collections::HashSet::with_capacity(self.ops.len());
        let mut bytes = 0;
        for op in &self.ops {
            let (key, value_bytes) = match op {
                Op::Put { key, value, .. } => (key, value.len()),
                Op::Delete { key } => (key, 0),
            };
            bytes += key.len() + value_bytes;
            if !keys.insert(key.as_str()) {
                return Err(MetaError::Invalid("a key is written twice in one transaction"));
            }
        }
        for compare in &self.compares {
            let value_bytes = match compare {
                Compare::ValueIs(_, value) | Compare::ValueBelow(_, value) => value.len(),
                _ => 0,
            };
            bytes += compare.key().len() + value_bytes;
        }
        if keys.contains("") || self.compares.iter().any(|compare| compare.key().is_empty()) {
            return Err(MetaError::Invalid("an empty key"));
        }
        if bytes > TXN_BYTES_MAX {
            return Err(MetaError::TooLarge(bytes));
        }
        Ok(())
    }

    /// The leases its writes hang on.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> + '_ {
        self.ops.iter().filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        })
    }
}

/// How a transaction ended, when that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxnOutcome {
    /// All conditions held; the writes are durable at this revision.
    Committed(Revision),
    /// Some condition did not hold; nothing was written.
    CompareFailed,
}

/// A change, as a watch tells it. A hint: it may come late, twice or not at all; what counts is read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// A key was written.
    Put(Record),
    /// A key was removed at this revision.
    Deleted(String, Revision),
    /// Events were lost (slow reader, compaction): list again.
    Resync,
}

impl WatchEvent {
    /// Revision of the change.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        match self {
            WatchEvent::Put(record) => Some(record.mod_revision),
            WatchEvent::Deleted(_, revision) => Some(*revision),
            WatchEvent::Resync => None,
        }
    }
}

/// Why a metadata call did not give its answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// The store could not be reached or is shutting down; nothing was written.
    #[error("metadata store is unavailable: {0}")]
    Unavailable(String),
    /// The outcome of the transaction is not known; read back.
    #[error("outcome of the metadata transaction is unknown: {0}")]
    Unknown(String),
    /// The request itself is malformed (too many ops, a key twice, an empty key): a defect of the caller.
    #[error("metadata request refused: {0}")]
    Invalid(&'static str),
    /// The request holds so many bytes, more than [`TXN_BYTES_MAX`]; nothing was written, and asking again does not help.
    #[error(
        "{0} bytes are more than one metadata change may hold ({TXN_BYTES_MAX}); nothing was changed, send less"
    )]
    TooLarge(usize),
    /// The lease has expired or never was.
    #[error("lease {} is gone", .0.0)]
    LeaseGone(LeaseId),
}

/// A watch: events in revision order.
pub type WatchStream = tokio::sync::mpsc::Receiver<WatchEvent>;

/// The store. Cheap to share as `Arc<dyn MetadataStore>`; reads are linearizable.
pub trait MetadataStore: Send + Sync + 'static {
    /// The record of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>>;
    /// Records whose key starts with `prefix` and is above `after` (exclusive), in key order, at most `limit`.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>>;
    /// Runs a transaction.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>>;
    /// Watches a prefix from now on.
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>>;
    /// Grants a lease.
    fn lease_grant(&self, ttl: std::time::Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>>;
    /// Renews a lease for another full time to live.
    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>>;
    /// Ends a lease and removes its keys.
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>>;
}

/// Lists a whole prefix, page by page.
///
/// # Errors
/// As [`MetadataStore::list`].
pub async fn list_all(store: &dyn MetadataStore, prefix: &str) -> Result<Vec<Record>, MetaError> {
    const PAGE: usize = 1000;
    let mut all: Vec<Record> = Vec::new();
    loop {
        let after = all.last().map(|r| r.key.clone());
        let page = store.list(prefix, after.as_deref(), PAGE).await?;
        let whole = page.len() < PAGE;
        all.extend(page);
        if whole {
            return Ok(all);
        }
    }
}
