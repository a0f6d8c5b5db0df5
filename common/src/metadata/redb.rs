//! The metadata store of a standalone process: a redb database, one thread, one commit for whatever has queued up.
//!
//! Owner: its thread holds the database; handles only send requests down a bounded queue, so no disk call is made on an async
//! worker. While one commit waits for the disk the next requests gather (natural batching); each transaction of a batch is
//! evaluated in order on the outcome of those before it, and all are answered after the one durable commit.
//!
//! Invariants:
//! - An answer `Committed` is given, and a watch told, only after the durable commit. Reads see durable commits only.
//! - A failed commit is final: its transactions answer `Unknown`, everything after `Unavailable`. Nothing is retried, because
//!   pages that failed to sync may look written.
//! - Leases live in memory and end with the process. Their keys are listed in a table of their own, which opening purges.
//! - Without requests there are no writes.
//!
//! Reads share the thread and so wait for at most one commit. A second thread for reads would spare them that, and is not here
//! because nothing hot reads metadata.
//!
//! A stored value is `mod_revision: u64 big-endian | version: u8 = 1 | value`.

use super::lease::Leases;
use super::watches::Watches;
use super::{
    LeaseId, MetaError, MetadataStore, Op, Record, Revision, Txn, TxnOutcome, WatchEvent, WatchStream,
};
use crate::clock::Clock;
use crate::disk::{Disk, RedbFile};
use crate::tasks::{OnFailure, TaskGroup};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition, WriteTransaction};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod tests;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const LEASED: TableDefinition<'_, &str, ()> = TableDefinition::new("leased");
const STORE: TableDefinition<'_, &str, u64> = TableDefinition::new("store");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
const VALUE_VERSION: u8 = 1;
const VALUE_HEAD: usize = 9;

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
    /// Opens the store in the file `path`, whose directory exists and is locked by the caller, and starts its thread in
    /// `tasks`. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk or redb fails, or the format is newer than this program's.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        clock: Arc<dyn Clock>,
        tasks: &TaskGroup,
    ) -> Result<Self, OpenError> {
        let backend = RedbFile::open(disk, path)?;
        // Reads it all once, against its checksums: without that redb panics on a page that is not what it seems, perhaps days later.
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(refused)?;
        let revision = prepare(&database).map_err(OpenFailure::into_open_error)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let worker = Worker {
            database,
            clock,
            revision,
            leases: Leases::default(),
            watches: Watches::default(),
            failed: None,
        };
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

enum OpenFailure {
    Database(redb::Error),
    FormatTooNew(u64),
}

impl OpenFailure {
    fn into_open_error(self) -> OpenError {
        match self {
            OpenFailure::Database(error) => refused(error),
            OpenFailure::FormatTooNew(found) => OpenError::FormatTooNew(found),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for OpenFailure {
    fn from(error: E) -> Self {
        OpenFailure::Database(error.into())
    }
}

/// Makes the tables if they are not there, and removes what leases of an earlier process left. One commit, or none.
fn prepare(database: &Database) -> Result<Revision, OpenFailure> {
    let mut txn = database.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    let mut changed = false;
    let mut revision;
    {
        let mut store = txn.open_table(STORE)?;
        let format = store.get(FORMAT)?.map(|v| v.value());
        revision = store.get(REVISION)?.map_or(0, |v| v.value());
        match format {
            Some(FORMAT_VERSION) => {}
            Some(newer) => return Err(OpenFailure::FormatTooNew(newer)),
            None => {
                store.insert(FORMAT, FORMAT_VERSION)?;
                changed = true;
            }
        }
        let mut leased = txn.open_table(LEASED)?;
        let mut records = txn.open_table(RECORDS)?;
        let mut left = Vec::new();
        for entry in leased.iter()? {
            left.push(entry?.0.value().to_owned());
        }
        for key in &left {
            records.remove(key.as_str())?;
            leased.remove(key.as_str())?;
        }
        if !left.is_empty() {
            revision += 1;
            store.insert(REVISION, revision)?;
            changed = true;
        }
    }
    if changed {
        txn.commit()?
    } else {
        txn.abort()?
    }
    Ok(Revision(revision))
}

fn encode(revision: Revision, value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(VALUE_HEAD + value.len());
    stored.extend_from_slice(&revision.0.to_be_bytes());
    stored.push(VALUE_VERSION);
    stored.extend_from_slice(value);
    stored
}

fn decode(stored: &[u8]) -> Result<(Revision, &[u8]), redb::Error> {
    match stored.split_first_chunk::<8>() {
        Some((revision, [VALUE_VERSION, value @ ..])) => Ok((Revision(u64::from_be_bytes(*revision)), value)),
        _ => Err(redb::Error::Corrupted("a metadata value without its head".to_owned())),
    }
}

/// An answer that waits for the commit.
enum Held {
    Txn(Answer<TxnOutcome>, Result<TxnOutcome, MetaError>),
    Revoke(Answer<()>, Result<(), MetaError>),
}

impl Held {
    /// Answers; the asker may be gone, which is fine.
    fn give(self) {
        match self {
            Held::Txn(answer, outcome) => drop(answer.send(outcome)),
            Held::Revoke(answer, outcome) => drop(answer.send(outcome)),
        }
    }

    fn fail(self, error: MetaError) {
        match self {
            Held::Txn(answer, _) => drop(answer.send(Err(error))),
            Held::Revoke(answer, _) => drop(answer.send(Err(error))),
        }
    }
}

struct Worker {
    database: Database,
    clock: Arc<dyn Clock>,
    revision: Revision,
    leases: Leases,
    watches: Watches,
    /// Set once, by the first failure.
    failed: Option<String>,
}

/// What a batch has written so far, not yet durable.
struct Draft {
    revision: Revision,
    /// One list per transaction that changed something.
    changes: Vec<Vec<WatchEvent>>,
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let lease_ends =
                self.leases.next_deadline().map(|deadline| deadline.saturating_sub(self.clock.mono()));
            tokio::select! {
                biased;
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                taken = queue.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep(lease_ends.unwrap_or_default()), if lease_ends.is_some() => {}
            }
            self.end_leases();
            self.serve(&mut batch);
        }
    }

    fn fail(&mut self, what: &str, error: &redb::Error) {
        tracing::error!(%error, "metadata store failed while {what}; it stays failed until restart");
        self.failed.get_or_insert_with(|| format!("{what} failed: {error}"));
    }

    fn check(&self) -> Result<(), MetaError> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(MetaError::Unavailable(why.clone())))
    }

    fn end_leases(&mut self) {
        let expired = self.leases.expired(self.clock.mono());
        if !expired.is_empty() {
            self.commit(expired, Vec::new());
        }
    }

    fn serve(&mut self, batch: &mut Vec<Request>) {
        let mut writes = Vec::new();
        for request in batch.drain(..) {
            match request {
                Request::Get(key, answer) => drop(answer.send(self.read(|records| get(records, &key)))),
                Request::List { prefix, after, limit, answer } => {
                    let found = self.read(|records| list(records, &prefix, after.as_deref(), limit));
                    drop(answer.send(found));
                }
                Request::Watch(prefix, answer) => {
                    let stream = self.check().map(|()| self.watches.add(&prefix));
                    drop(answer.send(stream));
                }
                Request::Grant(ttl, answer) => {
                    let now = self.clock.mono();
                    drop(answer.send(self.check().map(|()| self.leases.grant(ttl, now))));
                }
                Request::KeepAlive(lease, answer) => {
                    let now = self.clock.mono();
                    drop(answer.send(self.check().and_then(|()| self.leases.keep_alive(lease, now))));
                }
                write @ (Request::Txn(..) | Request::Revoke(..)) => writes.push(write),
            }
        }
        if !writes.is_empty() {
            self.commit(Vec::new(), writes);
        }
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, MetaError> {
        self.check()?;
        let look = || -> Result<T, redb::Error> { read(&self.database.begin_read()?.open_table(RECORDS)?) };
        match look() {
            Ok(found) => Ok(found),
            Err(error) => {
                self.fail("reading", &error);
                self.check().and(Err(MetaError::Unavailable(error.to_string())))
            }
        }
    }

    /// Ends leases and runs transactions in one durable commit, then answers and tells the watches.
    fn commit(&mut self, expired: Vec<LeaseId>, writes: Vec<Request>) {
        let mut held = Vec::with_capacity(writes.len());
        let mut draft = Draft { revision: self.revision, changes: Vec::new() };
        let drafted = match self.check() {
            Ok(()) => self.draft(expired, writes, &mut draft, &mut held),
            Err(error) => return refuse(writes, &error),
        };
        let committed = match drafted {
            Ok(txn) if draft.changes.is_empty() => txn.abort().map_err(redb::Error::from),
            Ok(txn) => match txn.commit() {
                Ok(()) => Ok(()),
                Err(error) => {
                    self.fail("committing", &error.into());
                    let why = self.failed.clone().unwrap_or_default();
                    return held.into_iter().for_each(|held| held.fail(MetaError::Unknown(why.clone())));
                }
            },
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            self.fail("preparing a commit", &error);
            let why = self.failed.clone().unwrap_or_default();
            return held.into_iter().for_each(|held| held.fail(MetaError::Unavailable(why.clone())));
        }
        self.revision = draft.revision;
        for changes in &draft.changes {
            self.watches.tell(changes);
        }
        held.into_iter().for_each(Held::give);
    }

    fn draft(
        &mut self,
        expired: Vec<LeaseId>,
        writes: Vec<Request>,
        draft: &mut Draft,
        held: &mut Vec<Held>,
    ) -> Result<WriteTransaction, redb::Error> {
        // Every request gets its place first, so that a failure half-way finds all of them.
        let mut work = Vec::with_capacity(writes.len());
        for request in writes {
            let pending = || MetaError::Unavailable("not run".to_owned());
            match request {
                Request::Txn(txn, answer) => {
                    work.push(Work::Txn(txn));
                    held.push(Held::Txn(answer, Err(pending())));
                }
                Request::Revoke(lease, answer) => {
                    work.push(Work::Revoke(lease));
                    held.push(Held::Revoke(answer, Err(pending())));
                }
                _ => unreachable!("only writes are committed"),
            }
        }
        let mut txn = self.database.begin_write()?;
        txn.set_durability(redb::Durability::Immediate).map_err(redb::Error::from)?;
        {
            let mut tables = Tables { records: txn.open_table(RECORDS)?, leased: txn.open_table(LEASED)? };
            for lease in expired {
                let keys = self.leases.revoke(lease).expect("an expired lease is in the book");
                tables.remove_all(keys, draft)?;
            }
            for (work, held) in work.into_iter().zip(held) {
                match (work, held) {
                    (Work::Txn(txn), Held::Txn(_, outcome)) => {
                        *outcome = tables.run(txn, &mut self.leases, draft)?
                    }
                    (Work::Revoke(lease), Held::Revoke(_, outcome)) => {
                        *outcome = match self.leases.revoke(lease) {
                            Ok(keys) => Ok(tables.remove_all(keys, draft)?),
                            Err(error) => Err(error),
                        };
                    }
                    _ => unreachable!("work and answers were pushed in pairs"),
                }
            }
            if draft.revision != self.revision {
                txn.open_table(STORE)?.insert(REVISION, draft.revision.0)?;
            }
        }
        Ok(txn)
    }
}

enum Work {
    Txn(Txn),
    Revoke(LeaseId),
}

fn refuse(writes: Vec<Request>, error: &MetaError) {
    for request in writes {
        match request {
            Request::Txn(_, answer) => drop(answer.send(Err(error.clone()))),
            Request::Revoke(_, answer) => drop(answer.send(Err(error.clone()))),
            _ => {}
        }
    }
}

struct Tables<'t> {
    records: redb::Table<'t, &'static str, &'static [u8]>,
    leased: redb::Table<'t, &'static str, ()>,
}

impl Tables<'_> {
    /// Runs one transaction on top of the draft. The outer error is the store's, the inner one the caller's.
    fn run(
        &mut self,
        txn: Txn,
        leases: &mut Leases,
        draft: &mut Draft,
    ) -> Result<Result<TxnOutcome, MetaError>, redb::Error> {
        for compare in &txn.compares {
            let stored = self.records.get(compare.key())?;
            let current = stored.as_ref().map(|stored| decode(stored.value())).transpose()?;
            if !compare.holds(current) {
                return Ok(Ok(TxnOutcome::CompareFailed));
            }
        }
        for lease in txn.leases() {
            if let Err(gone) = leases.check(lease) {
                return Ok(Err(gone));
            }
        }
        let revision = Revision(draft.revision.0 + 1);
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    leases.tie(&key, lease);
                    match lease {
                        Some(_) => drop(self.leased.insert(key.as_str(), ())?),
                        None => drop(self.leased.remove(key.as_str())?),
                    }
                    self.records.insert(key.as_str(), &encode(revision, &value)[..])?;
                    changes.push(WatchEvent::Put(Record { key, value, mod_revision: revision }));
                }
                Op::Delete { key } => {
                    leases.tie(&key, None);
                    self.leased.remove(key.as_str())?;
                    if self.records.remove(key.as_str())?.is_some() {
                        changes.push(WatchEvent::Deleted(key, revision));
                    }
                }
            }
        }
        draft.add(revision, changes);
        Ok(Ok(TxnOutcome::Committed(draft.revision)))
    }

    fn remove_all(&mut self, keys: Vec<String>, draft: &mut Draft) -> Result<(), redb::Error> {
        let revision = Revision(draft.revision.0 + 1);
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            self.leased.remove(key.as_str())?;
            if self.records.remove(key.as_str())?.is_some() {
                changes.push(WatchEvent::Deleted(key, revision));
            }
        }
        draft.add(revision, changes);
        Ok(())
    }
}

impl Draft {
    fn add(&mut self, revision: Revision, changes: Vec<WatchEvent>) {
        if !changes.is_empty() {
            self.revision = revision;
            self.changes.push(changes);
        }
    }
}

fn get(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>, redb::Error> {
    let Some(stored) = records.get(key)? else { return Ok(None) };
    record(key, stored.value()).map(Some)
}

fn record(key: &str, stored: &[u8]) -> Result<Record, redb::Error> {
    let (mod_revision, value) = decode(stored)?;
    Ok(Record { key: key.to_owned(), value: Bytes::copy_from_slice(value), mod_revision })
}

fn list(
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Record>, redb::Error> {
    let from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let mut found = Vec::new();
    for entry in records.range::<&str>((from, Bound::Unbounded))? {
        let (key, stored) = entry?;
        if found.len() >= limit || !key.value().starts_with(prefix) {
            break;
        }
        found.push(record(key.value(), stored.value())?);
    }
    Ok(found)
}
