//! Metadata as a client sees it: answers take time, and while it is troubled calls fail before or after they took effect.

use futures::FutureExt;
use futures::future::BoxFuture;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Record, Txn, TxnOutcome, WatchStream};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How metadata fares, for everybody.
#[derive(Default, Debug)]
pub(crate) struct Trouble {
    /// Per 1000 calls: not answered, before or after the effect.
    pub(crate) unknown: AtomicU64,
    /// Not reached at all.
    pub(crate) down: std::sync::atomic::AtomicBool,
}

#[derive(Clone)]
pub(crate) struct Flaky {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) trouble: Arc<Trouble>,
    pub(crate) rng: Arc<Mutex<Rng>>,
}

enum Fate {
    Good,
    Before,
    After,
}

impl Flaky {
    async fn pause(&self) {
        let micros = 200 + self.rng.lock().below(4000);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    /// The way there.
    async fn arrive(&self) -> Result<Fate, MetaError> {
        self.pause().await;
        if self.trouble.down.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            return Err(MetaError::Unavailable("cut off".into()));
        }
        let mut rng = self.rng.lock();
        if rng.below(1000) >= self.trouble.unknown.load(Ordering::Relaxed) {
            return Ok(Fate::Good);
        }
        Ok(if rng.below(2) == 0 { Fate::Before } else { Fate::After })
    }

    async fn plainly<T>(&self, call: impl Future<Output = Result<T, MetaError>>) -> Result<T, MetaError> {
        match self.arrive().await? {
            Fate::Good => {}
            Fate::Before | Fate::After => return Err(MetaError::Unavailable("no answer".into())),
        }
        let answer = call.await;
        self.pause().await;
        answer
    }
}

impl MetadataStore for Flaky {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.plainly(self.store.get(key)).boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        self.plainly(self.store.list(prefix, after, limit)).boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        async move {
            let fate = self.arrive().await?;
            if matches!(fate, Fate::Before) {
                return Err(MetaError::Unknown("no answer".into()));
            }
            let outcome = self.store.txn(txn).await;
            self.pause().await;
            if matches!(fate, Fate::After) { Err(MetaError::Unknown("no answer".into())) } else { outcome }
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.plainly(self.store.watch(prefix)).boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        self.plainly(self.store.lease_grant(ttl)).boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.plainly(self.store.lease_keep_alive(lease)).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.plainly(self.store.lease_revoke(lease)).boxed()
    }
}
