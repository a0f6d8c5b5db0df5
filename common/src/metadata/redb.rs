//! The metadata store of a standalone process: a redb database, one thread, one commit for whatever has queued up.
//!
//! Owner: its thread holds the database; handles only send requests down a bounded queue, so no disk call is made on an async
//! worker. While one commit waits for the disk the next requests gather (natural batching); each transaction of a batch is
//! evaluated in order on the outcome of those before it, and all are answered after the one durable commit.
//!
//! Invariants:
//! - An answer `Committed` is given, and a watch told, only after the durable commit. Reads see durable commits only.
//! - Leases live in memory and end with the process. Their keys are listed in a table of their own, which the process's first opening
//!   purges; no later one does.
//! - Without requests there are no writes.
//!
//! After a failed call to the disk (full, I/O error) redb answers nothing any more. The store shuts the database and opens it again,
//! by itself and for as long as it takes; `outage.rs` is the machine, with its picture. What holds in the meantime:
//! - A transaction whose *commit* failed answers `Unknown`. One that failed before its commit, or finds the store out of service,
//!   answers `Unavailable`: then it is certain that nothing was written. No transaction is retried.
//! - Pages that failed to sync look written. What was written since the last good sync is therefore written again and synced before
//!   the database is opened (`RedbFile::reopen`): what is read afterwards is what the disk holds.
//! - A batch commits as a whole and takes a revision, so the reopened database is at the last known revision, or at that of the one
//!   commit in doubt: which of the two tells whether it happened. At any other it is not the file that was open, or has lost what was
//!   acknowledged, and is not served.
//! - If it did happen, the book of leases becomes the commit's and every watch is told `Resync`; if not, nothing has changed anywhere.
//! - Leases are renewed meanwhile, because that needs no disk; they do not run out before their keys can go, and those that ran out go
//!   before the first request after the outage is served.
//! - The directory's lock belongs to whoever opened the store and is not touched.
//!
//! Reads share the thread and so wait for at most one commit. A second thread for reads would spare them that, and is not here
//! because nothing hot reads metadata.

use super::{LeaseId, MetaError, MetadataStore, Record, Txn, TxnOutcome, WatchStream};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::tasks::{OnFailure, TaskGroup};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

#[cfg(test)]
mod failing_tests;
mod file;
mod outage;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

const FORMAT_VERSION: u64 = 1;

/// Requests that may wait.
const QUEUE: usize = 1024;
/// Most requests taken into one commit.
const BATCH: usize = 256;
/// redb's page cache in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed.
    #[error("the metadata store's disk failed: {0}")]
    Disk(io::Error),
    /// redb refused the file: it is damaged, or none of its own.
    #[error("the metadata store is damaged: {0}")]
    Database(redb::Error),
    /// Written by a newer program; nothing was changed.
    #[error("the metadata store has format {0}; this program reads up to {FORMAT_VERSION}")]
    FormatTooNew(u64),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        // What redb says of a file that ends too soon or does not begin as its own do.
        let damage = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
        if damage { Self::Database(redb::Error::Io(error)) } else { Self::Disk(error) }
    }
}

fn refused(error: impl Into<redb::Error>) -> OpenError {
    match error.into() {
        redb::Error::Io(error) => error.into(),
        other => OpenError::Database(other),
    }
}

type Answer<T> = oneshot::Sender<Result<T, MetaError>>;

enum Request {
    Get(String, Answer<Option<Record>>),
    List { prefix: String, after: Option<String>, limit: usize, answer: Answer<Vec<Record>> },
    Txn(Txn, Answer<TxnOutcome>),
    Watch(String, Answer<WatchStream>),
    Grant(Duration, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<()>),
    Revoke(LeaseId, Answer<()>),
}

/// A handle to the store. Its thread ends when the group is told to stop, or with the last handle.
#[derive(Debug)]
pub struct RedbStore {
    requests: mpsc::Sender<Request>,
}

impl RedbStore {
    /// Opens the store in the file `path`, whose directory exists and stays locked by the caller, and starts its thread in
    /// `tasks`. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk or redb fails, or the format is newer than this program's.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        clock: Arc<dyn Clock>,
        tasks: &TaskGroup,
    ) -> Result<Self, OpenError> {
        let (file, database, revision) = file::File::open(disk, path)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let worker = worker::Worker::new(file, database, revision, clock);
        let stop = tasks.token();
        let timers = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        tasks.thread("metadata-store", OnFailure::StopProcess, move || {
            timers.block_on(worker.run(queue, stop))
        });
        Ok(Self { requests })
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, MetaError> {
        let stopped = || MetaError::Unavailable("shutting down".to_owned());
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| stopped())?;
        // The thread answers every request that it took; it drops those it never looked at.
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl MetadataStore for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.ask(|answer| Request::Get(key.to_owned(), answer)).boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
        self.ask(move |answer| Request::List { prefix, after, limit, answer }).boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        async move {
            txn.check()?;
            self.ask(|answer| Request::Txn(txn, answer)).await
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.ask(|answer| Request::Watch(prefix.to_owned(), answer)).boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        self.ask(move |answer| Request::Grant(ttl, answer)).boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.ask(move |answer| Request::KeepAlive(lease, answer)).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.ask(move |answer| Request::Revoke(lease, answer)).boxed()
    }
}
