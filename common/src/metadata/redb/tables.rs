//! What is in the database: its tables, the bytes of a value, and transactions drafted on them.
//!
//! Owner: the worker. A [`Draft`] holds everything that a commit will change outside of the database too, so that a commit whose
//! outcome is not known changes nothing until the database itself has told which of the two it is.
//!
//! A stored value is `mod_revision: u64 big-endian | version: u8 = 1 | value`. Table `leased` lists the keys that hang on a lease.

use super::super::lease::Leases;
use super::super::{LeaseId, MetaError, Op, Record, Revision, Txn, TxnOutcome, WatchEvent};
use super::{FORMAT_VERSION, OpenError, refused};
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition, WriteTransaction};
use std::ops::Bound;
use std::sync::Arc;

pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const LEASED: TableDefinition<'_, &str, ()> = TableDefinition::new("leased");
pub(super) const STORE: TableDefinition<'_, &str, u64> = TableDefinition::new("store");
const REVISION: &str = "revision";
pub(super) const FORMAT: &str = "format";
const VALUE_VERSION: u8 = 1;
const VALUE_HEAD: usize = 9;

pub(super) enum OpenFailure {
    Database(redb::Error),
    FormatTooNew(u64),
}

impl OpenFailure {
    pub(super) fn into_open_error(self) -> OpenError {
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
pub(super) fn prepare(database: &Database) -> Result<Revision, OpenFailure> {
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

/// The revision of a database that was prepared before. Writes nothing: leases live as long as the process does.
pub(super) fn revision(database: &Database) -> Result<Revision, OpenFailure> {
    let store = database.begin_read()?.open_table(STORE)?;
    match store.get(FORMAT)?.map(|v| v.value()) {
        Some(FORMAT_VERSION) => Ok(Revision(store.get(REVISION)?.map_or(0, |v| v.value()))),
        other => Err(OpenFailure::FormatTooNew(other.unwrap_or_default())),
    }
}

/// Commits the revision that is there already, to learn whether the disk takes a commit.
pub(super) fn try_commit(database: &Database, revision: Revision) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    txn.open_table(STORE)?.insert(REVISION, revision.0)?;
    Ok(txn.commit()?)
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

/// What a batch has written so far, not yet durable.
pub(super) struct Draft {
    /// The store's revision after it.
    pub(super) revision: Revision,
    /// One list per transaction that changed something.
    pub(super) changes: Vec<Vec<WatchEvent>>,
    /// The book of leases after it.
    pub(super) leases: Arc<Leases>,
}

/// The tables a draft is written to.
pub(super) struct Tables<'t> {
    records: redb::Table<'t, &'static str, &'static [u8]>,
    leased: redb::Table<'t, &'static str, ()>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self { records: txn.open_table(RECORDS)?, leased: txn.open_table(LEASED)? })
    }

    /// Runs one transaction on top of the draft. The outer error is the store's, the inner one the caller's.
    pub(super) fn run(
        &mut self,
        txn: Txn,
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
            if let Err(gone) = draft.leases.check(lease) {
                return Ok(Err(gone));
            }
        }
        let revision = Revision(draft.revision.0 + 1);
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    draft.tie(&key, lease);
                    match lease {
                        Some(_) => drop(self.leased.insert(key.as_str(), ())?),
                        None => drop(self.leased.remove(key.as_str())?),
                    }
                    self.records.insert(key.as_str(), &encode(revision, &value)[..])?;
                    changes.push(WatchEvent::Put(Record { key, value, mod_revision: revision }));
                }
                Op::Delete { key } => {
                    draft.tie(&key, None);
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

    /// Ends a lease and removes its keys; the errors as in [`Tables::run`].
    pub(super) fn revoke(
        &mut self,
        lease: LeaseId,
        draft: &mut Draft,
    ) -> Result<Result<(), MetaError>, redb::Error> {
        if let Err(gone) = draft.leases.check(lease) {
            return Ok(Err(gone));
        }
        let keys = Arc::make_mut(&mut draft.leases).revoke(lease).expect("it was just seen in the book");
        let revision = Revision(draft.revision.0 + 1);
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            self.leased.remove(key.as_str())?;
            if self.records.remove(key.as_str())?.is_some() {
                changes.push(WatchEvent::Deleted(key, revision));
            }
        }
        draft.add(revision, changes);
        Ok(Ok(()))
    }
}

impl Draft {
    /// Copies the book only for what changes it, which is seldom.
    fn tie(&mut self, key: &str, lease: Option<LeaseId>) {
        if lease.is_some() || self.leases.is_tied(key) {
            Arc::make_mut(&mut self.leases).tie(key, lease);
        }
    }

    /// Writes the revision, if the draft took one.
    pub(super) fn seal(&self, txn: &WriteTransaction) -> Result<(), redb::Error> {
        if !self.changes.is_empty() {
            txn.open_table(STORE)?.insert(REVISION, self.revision.0)?;
        }
        Ok(())
    }

    fn add(&mut self, revision: Revision, changes: Vec<WatchEvent>) {
        if !changes.is_empty() {
            self.revision = revision;
            self.changes.push(changes);
        }
    }
}

pub(super) fn get(
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

pub(super) fn list(
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
