//! A metadata store in memory: what simulations and unit tests use, and the plainest statement of the trait's meaning.
//!
//! Owner: whoever made it; nothing survives it. One lock makes every call atomic. Leases run out by the given [`Clock`], looked
//! at on every call and by [`MemoryStore::tick`]; no task runs beside the callers, so a simulation stays deterministic.

use super::lease::Leases;
use super::watches::Watches;
use super::{
    LeaseId, MetaError, MetadataStore, Op, Record, Revision, Txn, TxnOutcome, WatchEvent, WatchStream,
};
use crate::clock::Clock;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    records: BTreeMap<String, (Revision, Bytes)>,
    leases: Leases,
    watches: Watches,
}

/// The store.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("state", &self.state).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Lets leases run out whose time is over, for tests that wait on a watch while nobody calls.
    pub fn tick(&self) {
        self.with(|_| ());
    }

    fn with<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        let now = self.clock.mono();
        let mut state = self.state.lock();
        for lease in state.leases.expired(now) {
            let keys = state.leases.revoke(lease).expect("an expired lease is in the book");
            state.remove_all(keys);
        }
        call(&mut state)
    }

    fn answer<'a, T: Send + 'a>(&self, call: impl FnOnce(&mut State) -> T) -> BoxFuture<'a, T> {
        ready(self.with(call)).boxed()
    }
}

impl State {
    fn get(&self, key: &str) -> Option<Record> {
        let (mod_revision, value) = self.records.get(key)?;
        Some(Record { key: key.to_owned(), value: value.clone(), mod_revision: *mod_revision })
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Record> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.records
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (revision, value))| Record {
                key: key.clone(),
                value: value.clone(),
                mod_revision: *revision,
            })
            .collect()
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnOutcome, MetaError> {
        txn.check()?;
        let holds = txn.compares.iter().all(|compare| {
            let current = self.records.get(compare.key());
            compare.holds(current.map(|(revision, value)| (*revision, &value[..])))
        });
        if !holds {
            return Ok(TxnOutcome::CompareFailed);
        }
        for lease in txn.leases() {
            self.leases.check(lease)?;
        }
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    self.leases.tie(&key, lease);
                    self.records.insert(key.clone(), (revision, value.clone()));
                    changes.push(WatchEvent::Put(Record { key, value, mod_revision: revision }));
                }
                Op::Delete { key } => {
                    self.leases.tie(&key, None);
                    if self.records.remove(&key).is_some() {
                        changes.push(WatchEvent::Deleted(key, revision));
                    }
                }
            }
        }
        Ok(TxnOutcome::Committed(self.tell(revision, &changes)))
    }

    fn remove_all(&mut self, keys: Vec<String>) {
        let revision = Revision(self.revision.0 + 1);
        let removed: Vec<_> = keys.into_iter().filter(|key| self.records.remove(key).is_some()).collect();
        let changes: Vec<_> = removed.into_iter().map(|key| WatchEvent::Deleted(key, revision)).collect();
        self.tell(revision, &changes);
    }

    /// Takes the revision if there were changes.
    fn tell(&mut self, revision: Revision, changes: &[WatchEvent]) -> Revision {
        if !changes.is_empty() {
            self.revision = revision;
            self.watches.tell(changes);
        }
        self.revision
    }
}

impl MetadataStore for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.answer(|state| Ok(state.get(key)))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        self.answer(|state| Ok(state.list(prefix, after, limit)))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        self.answer(|state| state.txn(txn))
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.answer(|state| Ok(state.watches.add(prefix)))
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        let now = self.clock.mono();
        self.answer(|state| Ok(state.leases.grant(ttl, now)))
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        let now = self.clock.mono();
        self.answer(|state| state.leases.keep_alive(lease, now))
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.answer(|state| {
            let keys = state.leases.revoke(lease)?;
            state.remove_all(keys);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::metadata::conformance::{self, Fixture};

    #[tokio::test]
    async fn keeps_the_rules_of_a_store() {
        conformance::run(|| {
            let clock = Arc::new(ManualClock::default());
            let store = Arc::new(MemoryStore::new(clock.clone()));
            let advance = move |by| {
                clock.advance(by);
                ready(()).boxed()
            };
            Fixture::manual(store, advance)
        })
        .await;
    }

    #[tokio::test]
    async fn a_tick_lets_leases_run_out_while_nobody_calls() {
        let clock = Arc::new(ManualClock::default());
        let store = MemoryStore::new(clock.clone());
        let lease = store.lease_grant(Duration::from_secs(1)).await.unwrap();
        let put = Op::Put { key: "a".into(), value: "x".into(), lease: Some(lease) };
        store.txn(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
        let mut watch = store.watch("").await.unwrap();
        clock.advance(Duration::from_secs(2));
        store.tick();
        assert_eq!(watch.try_recv(), Ok(WatchEvent::Deleted("a".into(), Revision(2))));
    }
}
