//! Records of one prefix in memory. Fresh by two ways: the watch, and this process's own writes at once, so that a caller who
//! has just written reads what it wrote.
//!
//! Invariant: a record never goes back to an older revision, although a late watch event and an own write may arrive in
//! either order; a removal therefore leaves its revision behind until the watch has passed it.

use bytes::Bytes;
use geminga_common::error::Code;
use geminga_common::metadata::{
    MetaError, MetadataStore, Record, Revision, WatchEvent, WatchStream, list_all,
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a write of this process ended.
#[derive(Debug)]
pub(super) enum Applied {
    /// The record now is this, written at this revision; `None` if it was removed.
    Written(Revision, Option<Bytes>),
    /// Nothing was to be changed.
    Unchanged,
}

#[derive(Debug)]
struct Cells<V> {
    live: BTreeMap<String, (Revision, Arc<V>)>,
    removed: BTreeMap<String, Revision>,
}

/// A cached prefix.
#[derive(Debug)]
pub(super) struct Table<V> {
    prefix: String,
    cells: RwLock<Cells<V>>,
}

impl<V: DeserializeOwned> Table<V> {
    pub(super) fn new(prefix: String) -> Self {
        let cells = Cells { live: BTreeMap::new(), removed: BTreeMap::new() };
        Self { prefix, cells: RwLock::new(cells) }
    }

    /// The record of a key.
    pub(super) fn get(&self, key: &str) -> Option<Arc<V>> {
        self.cells.read().live.get(key).map(|(_, value)| value.clone())
    }

    /// Visits the records below a prefix in key order.
    pub(super) fn below<T>(&self, prefix: &str, mut visit: impl FnMut(&str, &Arc<V>) -> Option<T>) -> Vec<T> {
        let cells = self.cells.read();
        let range = cells.live.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        range.filter_map(|(key, (_, value))| visit(key, value)).collect()
    }

    /// Takes in an own write.
    pub(super) fn applied(&self, key: &str, applied: Applied) {
        match applied {
            Applied::Written(revision, Some(value)) => self.put(key, revision, &value),
            Applied::Written(revision, None) => self.remove(key, revision),
            Applied::Unchanged => {}
        }
    }

    fn put(&self, key: &str, revision: Revision, value: &[u8]) {
        let value = match super::decode::<V>(value) {
            Ok(value) => Arc::new(value),
            Err(error) => {
                // The last readable state is kept: a damaged record must not make a namespace vanish.
                tracing::error!(code = %Code::RECORD_UNREADABLE, key, %error, "metadata record is not readable");
                return;
            }
        };
        let mut cells = self.cells.write();
        let newest = cells.live.get(key).map(|(r, _)| *r).max(cells.removed.get(key).copied());
        if newest.is_some_and(|newest| newest >= revision) {
            return;
        }
        cells.removed.remove(key);
        cells.live.insert(key.to_owned(), (revision, value));
    }

    fn remove(&self, key: &str, revision: Revision) {
        let mut cells = self.cells.write();
        if cells.live.get(key).is_some_and(|(at, _)| *at > revision) {
            return;
        }
        cells.live.remove(key);
        cells.removed.insert(key.to_owned(), revision);
    }

    fn event(&self, event: WatchEvent) -> bool {
        let revision = match event {
            WatchEvent::Put(record) => {
                self.put(&record.key, record.mod_revision, &record.value);
                record.mod_revision
            }
            WatchEvent::Deleted(key, revision) => {
                self.remove(&key, revision);
                revision
            }
            WatchEvent::Resync => return false,
        };
        // The watch is in revision order: nothing older than this event can still arrive.
        self.cells.write().removed.retain(|_, at| *at > revision);
        true
    }

    /// Reads the whole prefix anew. What was cached before the listing began and is not in it has been removed.
    async fn reload(&self, store: &dyn MetadataStore) -> Result<(), MetaError> {
        let before: Vec<(String, Revision)> =
            self.cells.read().live.iter().map(|(key, (revision, _))| (key.clone(), *revision)).collect();
        let listed: Vec<Record> = list_all(store, &self.prefix).await?;
        let there: std::collections::HashSet<&str> = listed.iter().map(|r| r.key.as_str()).collect();
        for (key, revision) in before {
            if !there.contains(key.as_str()) {
                self.remove(&key, revision);
            }
        }
        for record in &listed {
            self.put(&record.key, record.mod_revision, &record.value);
        }
        Ok(())
    }

    /// Opens the watch and reads the prefix, in this order, so that nothing is missed between.
    pub(super) async fn open(&self, store: &dyn MetadataStore) -> Result<WatchStream, MetaError> {
        let stream = store.watch(&self.prefix).await?;
        self.reload(store).await?;
        Ok(stream)
    }

    /// Follows the watch until it must be opened again.
    pub(super) async fn follow(&self, stream: &mut WatchStream, mut changed: impl FnMut()) {
        while let Some(event) = stream.recv().await {
            if !self.event(event) {
                return;
            }
            changed();
        }
    }
}
