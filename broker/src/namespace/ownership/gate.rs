//! [`GatedStore`]: the metadata store as topics, cursor logs and ledgers see it. It changes nothing while the session is in
//! doubt or lost, so that no roll, trim, ensemble change or new topic begins under a lease that may be another's by now.
//!
//! One choke point instead of a check in each place. It saves work and noise; safety does not rest on it, because the guards of
//! the transactions and the terms of the bookies hold without it.

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use geminga_common::metadata::session::{Session, Standing};
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Record, Txn, TxnOutcome, WatchStream};
use std::sync::Arc;
use std::time::Duration;

/// A store behind a session.
pub struct GatedStore {
    inner: Arc<dyn MetadataStore>,
    session: Session,
}

impl GatedStore {
    /// Puts a gate before a store.
    #[must_use]
    pub fn new(inner: Arc<dyn MetadataStore>, session: Session) -> Self {
        Self { inner, session }
    }
}

impl MetadataStore for GatedStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.inner.get(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        self.inner.list(prefix, after, limit)
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        match self.session.standing() {
            Standing::Held => self.inner.txn(txn),
            Standing::Doubtful | Standing::Lost => {
                let why = "this broker's lease is in doubt: nothing is changed until it is renewed";
                ready(Err(MetaError::Unavailable(why.to_owned()))).boxed()
            }
        }
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.inner.watch(prefix)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_revoke(lease)
    }
}
