//! The store in memory, on which simulations rest, held against real etcd: the same random scripts, the same answers, revision for
//! revision, and the same events, over compactions and restarts of etcd.

use super::local::{LocalEtcd, find};
use super::*;
use crate::clock::ManualClock;
use crate::metadata::memory::MemoryStore;
use crate::metadata::{Compare, Op, WatchEvent, list_all};
use crate::rng::Rng;
use bytes::Bytes;
use std::sync::Arc;

const SCRIPTS: u64 = 40;
const STEPS: usize = 120;
const TTL: Duration = Duration::from_secs(600);
const KEYS: [&str; 7] = ["a", "a/1", "a/2", "b", "b/é", "c", "wm"];

struct Pair {
    memory: MemoryStore,
    etcd: EtcdStore,
    server: LocalEtcd,
    /// etcd's revision when the store in memory was empty.
    base: u64,
    leases: Vec<(LeaseId, LeaseId)>,
    watches: (WatchStream, WatchStream),
    rng: Rng,
}

impl Pair {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u64) as usize]
    }

    fn value(&mut self) -> Bytes {
        let length = self.rng.below(3) as usize;
        (0..length).map(|_| b'a' + self.rng.below(3) as u8).collect::<Vec<_>>().into()
    }

    /// What etcd calls this revision.
    fn there(&self, revision: Revision) -> Revision {
        Revision(if revision.0 == 0 { 0 } else { revision.0 + self.base })
    }

    fn compare(&mut self, newest: u64) -> (Compare, Compare) {
        let key = self.pick(&KEYS).to_owned();
        let same = |compare: Compare| (compare.clone(), compare);
        match self.rng.below(7) {
            0 => same(Compare::Absent(key)),
            1 => same(Compare::Exists(key)),
            2 | 3 => {
                // Often the newest revisions, sometimes any, 0 included.
                let back = self.rng.below(8);
                let revision = Revision(newest.saturating_sub(back));
                (Compare::ModRevision(key.clone(), revision), Compare::ModRevision(key, self.there(revision)))
            }
            4 => same(Compare::ValueIs(key, self.value())),
            _ => same(Compare::ValueBelow(key, self.value())),
        }
    }

    fn op(&mut self, key: &str) -> (Op, Op) {
        let value = self.value();
        let leased = !self.leases.is_empty() && self.rng.below(3) == 0;
        let lease = if leased { Some(self.pick(&self.leases.clone())) } else { None };
        let put = |lease| Op::Put { key: key.to_owned(), value: value.clone(), lease };
        match self.rng.below(4) {
            0 => (Op::delete(key), Op::delete(key)),
            _ => (put(lease.map(|l| l.0)), put(lease.map(|l| l.1))),
        }
    }

    fn lease_there(&self, error: MetaError) -> MetaError {
        match error {
            MetaError::LeaseGone(id) => {
                MetaError::LeaseGone(self.leases.iter().find(|l| l.0 == id).map_or(id, |l| l.1))
            }
            other => other,
        }
    }

    async fn txn(&mut self) {
        let newest = match self.memory.txn(Txn::default()).await {
            Ok(TxnOutcome::Committed(revision)) => revision.0,
            other => panic!("{other:?}"),
        };
        let (mut here, mut there) = (Txn::default(), Txn::default());
        for _ in 0..self.rng.below(3) {
            let (a, b) = self.compare(newest);
            here.compares.push(a);
            there.compares.push(b);
        }
        let keys: Vec<&str> = KEYS.into_iter().filter(|_| self.rng.below(4) == 0).collect();
        for key in keys {
            let (a, b) = self.op(key);
            here.ops.push(a);
            there.ops.push(b);
        }
        let expected = self.memory.txn(here.clone()).await;
        let answer = self.etcd.txn(there).await;
        let same = match (&expected, &answer) {
            (Ok(TxnOutcome::Committed(here)), Ok(TxnOutcome::Committed(there))) => {
                here.0 + self.base == there.0
            }
            // Of several leases etcd does not say which is gone.
            (Err(MetaError::LeaseGone(_)), Err(MetaError::LeaseGone(_))) => true,
            (here, there) => here == there,
        };
        assert!(same, "{here:?}: {expected:?} in memory at {}, {answer:?} in etcd", self.base);
    }

    async fn lease(&mut self) {
        if self.leases.len() < 3 || self.rng.below(2) == 0 {
            let here = self.memory.lease_grant(TTL).await.unwrap();
            self.leases.push((here, self.etcd.lease_grant(TTL).await.unwrap()));
            return;
        }
        let (here, there) = self.pick(&self.leases.clone());
        if self.rng.below(2) == 0 {
            let expected = self.memory.lease_keep_alive(here).await.map_err(|e| self.lease_there(e));
            assert_eq!(self.etcd.lease_keep_alive(there).await, expected);
        } else {
            let expected = self.memory.lease_revoke(here).await.map_err(|e| self.lease_there(e));
            assert_eq!(self.etcd.lease_revoke(there).await, expected);
        }
    }

    async fn read(&mut self) {
        let key = self.pick(&KEYS);
        let moved = |record: Record| Record { mod_revision: self.there(record.mod_revision), ..record };
        let expected = self.memory.get(key).await.unwrap().map(moved);
        assert_eq!(self.etcd.get(key).await.unwrap(), expected);
        let (prefix, after) = (self.pick(&["", "a", "a/", "b", "zz"]), self.pick(&KEYS));
        let after = Some(after).filter(|_| self.rng.below(2) == 0);
        let limit = self.rng.below(5) as usize;
        let moved = |record: Record| Record { mod_revision: self.there(record.mod_revision), ..record };
        let expected: Vec<_> =
            self.memory.list(prefix, after, limit).await.unwrap().into_iter().map(moved).collect();
        assert_eq!(
            self.etcd.list(prefix, after, limit).await.unwrap(),
            expected,
            "{prefix} {after:?} {limit}"
        );
    }

    /// etcd must have told all that memory has; a gap is said.
    async fn events(&mut self) {
        let mut expected = Vec::new();
        while let Ok(event) = self.watches.0.try_recv() {
            expected.push(match event {
                WatchEvent::Put(record) => {
                    WatchEvent::Put(Record { mod_revision: self.there(record.mod_revision), ..record })
                }
                WatchEvent::Deleted(key, revision) => WatchEvent::Deleted(key, self.there(revision)),
                WatchEvent::Resync => WatchEvent::Resync,
            });
        }
        // The order of keys within one revision is the store's own.
        let order = |event: &WatchEvent| match event {
            WatchEvent::Put(record) => (record.mod_revision, record.key.clone()),
            WatchEvent::Deleted(key, revision) => (*revision, key.clone()),
            WatchEvent::Resync => panic!("a short script overruns no watch"),
        };
        let mut told = Vec::new();
        while told.len() < expected.len() {
            let event = tokio::time::timeout(Duration::from_secs(20), self.watches.1.recv()).await;
            match event.expect("an event").expect("the watch goes on") {
                WatchEvent::Resync => {
                    // What is told from here on is not comparable one by one; the listings are.
                    self.watches.1 = self.etcd.watch("a").await.unwrap();
                    return;
                }
                event => told.push(event),
            }
        }
        expected.sort_by_key(order);
        told.sort_by_key(order);
        assert_eq!(told, expected);
    }

    async fn restart(&mut self) {
        self.server.kill();
        self.server.resume();
        let back = async { while self.etcd.get("a").await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(20), back).await.expect("etcd comes back");
    }
}

async fn scripts_on(version: &str, first_seed: u64) {
    let Some(binary) = find("the store in memory against etcd", Some(version)) else { return };
    let (mut server, tasks) = (Some(LocalEtcd::start(&binary)), TaskGroup::new());
    for seed in first_seed..first_seed + SCRIPTS {
        let etcd = server.take().expect("it goes from script to script");
        let store = super::tests::connect(&etcd, &tasks).await;
        let all = etcd_client::DeleteOptions::new().with_from_key();
        store.client.kv_client().delete("\0", Some(all)).await.unwrap();
        let memory = MemoryStore::new(Arc::new(ManualClock::default()));
        let watches = (memory.watch("a").await.unwrap(), store.watch("a").await.unwrap());
        let base = store.revision().await.unwrap().0;
        let rng = Rng::seeded(seed);
        let mut pair = Pair { memory, etcd: store, server: etcd, base, leases: Vec::new(), watches, rng };
        for step in 0..STEPS {
            match pair.rng.below(100) {
                0..60 => pair.txn().await,
                60..75 => pair.lease().await,
                75..97 => pair.read().await,
                97..99 => pair.etcd.compact().await.unwrap(),
                _ if step % 3 == 0 => pair.restart().await,
                _ => pair.events().await,
            }
        }
        pair.events().await;
        let here = list_all(&pair.memory, "").await.unwrap();
        let here: Vec<_> = here.into_iter().map(|r| (r.key, r.value, r.mod_revision.0 + base)).collect();
        let there = list_all(&pair.etcd, "").await.unwrap();
        let there: Vec<_> = there.into_iter().map(|r| (r.key, r.value, r.mod_revision.0)).collect();
        assert_eq!(there, here, "seed {seed}");
        server = Some(pair.server);
    }
    tasks.stop();
}

#[tokio::test]
async fn answers_as_etcd_3_4_does() {
    scripts_on("3.4", 0).await;
}

#[tokio::test]
async fn answers_as_etcd_3_6_does() {
    scripts_on("3.6", 1000).await;
}
