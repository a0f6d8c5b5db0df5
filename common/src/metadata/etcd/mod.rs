//! The metadata store of a cluster: etcd, 3.4 and above.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | where etcd is and how to log in |
//! | `call` | one call: time limit, what its failure means, when it may be made again |
//! | `txn` | transactions in etcd's terms |
//! | `watch` | a watch that outlives connections and compactions |
//! | `local` | a real etcd for tests; `differential` holds the store in memory against it |
//!
//! Owner: a thread of its own, on whose runtime connections and watches live, so that an executor busy with messages neither
//! delays them nor lets a lease run out. Handles are cheap.
//!
//! Invariants:
//! - Reads are linearizable: they go through the leader, conditions of a transaction that writes nothing included.
//! - A transaction is sent again only when the first attempt certainly never left this process. Everything else that has no
//!   answer is [`MetaError::Unknown`]: a second attempt would answer for itself and hide what became of the first.
//! - A page of a listing holds as many records as asked for unless the prefix ends, and one call shows one revision.
//! - A watch begins at the revision of a linearizable read; after a gap it says [`super::WatchEvent::Resync`].

mod call;
mod config;
#[cfg(test)]
mod differential;
#[cfg(any(test, feature = "test-util"))]
pub mod local;
#[cfg(test)]
mod tests;
mod txn;
mod watch;

pub use config::{Config, Tls};

use super::{LeaseId, MetaError, MetadataStore, Record, Revision, Txn, TxnOutcome, WatchStream};
use crate::retry::Reminders;
use crate::tasks::{OnFailure, TaskGroup};
use call::{Calls, Failure};
use etcd_client::{Client, GetOptions, KeyValue};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Records asked for at once; halved when they are too large for one answer.
const PAGE: usize = 512;
/// Attempts at one listing: enough to halve a page down to one record, and to begin again after compactions.
const LIST_ATTEMPTS: usize = 24;

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error("etcd cannot be used as configured: {0}")]
    Config(String),
    /// Nobody answered in time.
    #[error("etcd at {endpoints} does not answer: {error}")]
    NoAnswer {
        /// Whom was asked.
        endpoints: String,
        /// The last failure.
        error: String,
    },
}

/// A handle to the store.
pub struct EtcdStore {
    client: Client,
    calls: Calls,
    tasks: TaskGroup,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    /// Keys of `ValueBelow` conditions that had no value when last looked at; only a hint.
    absent_bounds: Mutex<HashSet<String>>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects; waits for an answer for as long as the configuration says. The thread ends when `tasks` is told to stop.
    ///
    /// # Errors
    /// A configuration that cannot be used, or nobody answers.
    pub async fn connect(config: Config, tasks: &TaskGroup) -> Result<Self, ConnectError> {
        let options = config.options()?;
        let (send, started) = tokio::sync::oneshot::channel();
        let stop = tasks.token();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ConnectError::Config(format!("no runtime: {error}")))?;
        let (handle, until, settings) = (runtime.handle().clone(), stop.clone(), config.clone());
        tasks.thread("etcd-client", OnFailure::StopProcess, move || {
            runtime.block_on(async move {
                // Connections belong to the runtime on which they are made.
                let connected = connect(&settings, options).await;
                if send.send(connected).is_ok() {
                    until.cancelled().await;
                }
            });
        });
        let stopped = |_| ConnectError::Config("shutting down".to_owned());
        let client = started.await.map_err(stopped)??;
        Ok(Self {
            client,
            calls: Calls::new(config.call_timeout),
            tasks: tasks.clone(),
            runtime: handle,
            stop,
            absent_bounds: Mutex::default(),
        })
    }

    /// Forgets history below the newest revision, as an operator's auto-compaction does.
    ///
    /// # Errors
    /// As any call.
    #[cfg(any(test, feature = "test-util"))]
    pub async fn compact(&self) -> Result<(), MetaError> {
        let now = self.revision().await?;
        let call = || {
            let mut kv = self.client.kv_client();
            async move { kv.compact(now.0 as i64, None).await.map(drop) }
        };
        match self.calls.idempotent(call).await {
            // Compacted to there already.
            Ok(()) | Err(Failure::TooFar) => Ok(()),
            Err(failure) => Err(failure.of_read()),
        }
    }

    fn check(&self) -> Result<(), MetaError> {
        if self.stop.is_cancelled() {
            Err(MetaError::Unavailable("shutting down".to_owned()))
        } else {
            Ok(())
        }
    }

    /// The newest revision.
    async fn revision(&self) -> Result<Revision, MetaError> {
        watch::revision(&self.client, &self.calls).await
    }

    async fn get_one(&self, key: &str) -> Result<Option<Record>, MetaError> {
        self.check()?;
        if key.is_empty() {
            return Ok(None);
        }
        let call = || {
            let mut kv = self.client.kv_client();
            async move { kv.get(key, None).await }
        };
        self.calls.read(call).await?.kvs().first().map(record).transpose()
    }

    /// A listing at one revision. Pages shrink while they are too large for an answer; a compaction of the revision begins anew.
    async fn list_from(&self, prefix: &str, start: Vec<u8>, limit: usize) -> Result<Vec<Record>, MetaError> {
        let mut page = PAGE;
        for _ in 0..LIST_ATTEMPTS {
            match self.pages(prefix, &start, limit, page).await {
                Ok(records) => return Ok(records),
                Err(Failure::TooFar) => page = (page / 2).max(1),
                Err(failure) => return Err(failure.of_read()),
            }
        }
        Err(MetaError::Unavailable(format!("the records below {prefix} are too large to be listed")))
    }

    async fn pages(
        &self,
        prefix: &str,
        start: &[u8],
        limit: usize,
        page: usize,
    ) -> Result<Vec<Record>, Failure> {
        let end = end_of(prefix);
        let mut records: Vec<Record> = Vec::new();
        let (mut from, mut revision) = (start.to_vec(), 0);
        loop {
            let wanted = page.min(limit - records.len());
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(wanted as i64).with_revision(revision);
            let call = || {
                let (mut kv, from, options) = (self.client.kv_client(), from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            let mut answer = self.calls.idempotent(call).await?;
            revision = answer.header().map_or(revision, |header| header.revision().max(revision));
            if let Some(last) = answer.kvs().last() {
                from = after(last.key());
            }
            for kv in answer.take_kvs() {
                records.push(record(&kv).map_err(|error| Failure::Refused(error.to_string()))?);
            }
            if records.len() >= limit || !answer.more() {
                return Ok(records);
            }
            // The first page decides at which revision the rest is read.
        }
    }
}

async fn connect(config: &Config, options: etcd_client::ConnectOptions) -> Result<Client, ConnectError> {
    let calls = Calls::new(config.call_timeout);
    let attempt = async || {
        let client = tokio::time::timeout(
            config.call_timeout,
            Client::connect(&config.endpoints, Some(options.clone())),
        );
        let client = match client.await {
            Ok(Ok(client)) => client,
            Ok(Err(etcd_client::Error::InvalidUri(error))) => {
                return Err(ConnectError::Config(error.to_string()));
            }
            Ok(Err(etcd_client::Error::InvalidArgs(error))) => return Err(ConnectError::Config(error)),
            Ok(Err(error)) => return Err(config.no_answer(error.to_string())),
            Err(_) => return Err(config.no_answer("timed out".to_owned())),
        };
        watch::revision(&client, &calls).await.map_err(|error| config.no_answer(error.to_string()))?;
        Ok(client)
    };
    let last = Mutex::new(String::new());
    let patience = async || {
        let (begun, mut reminders) = (tokio::time::Instant::now(), Reminders::default());
        let endpoints = config.endpoints.join(", ");
        loop {
            let settled = attempt().await;
            let waited = begun.elapsed();
            match settled {
                Err(ConnectError::NoAnswer { error, .. }) => {
                    if reminders.due(waited) {
                        tracing::warn!(%error, %endpoints, ?waited, "waiting for etcd");
                    }
                    *last.lock() = error;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                settled => {
                    if settled.is_ok() && reminders.has_spoken() {
                        tracing::info!(%endpoints, ?waited, "etcd answers");
                    }
                    return settled;
                }
            }
        }
    };
    match tokio::time::timeout(config.start_timeout, patience()).await {
        Ok(settled) => settled,
        Err(_) => {
            let waited = config.start_timeout.as_secs_f32();
            let why = last.lock();
            Err(config.no_answer(format!(
                "waited {waited} s; is it running, and is this its client URL? Last: {why}"
            )))
        }
    }
}

/// The key right behind `key`.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// First key beyond a prefix; etcd's sign for all keys when there is none.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // Text holds no byte 0xff.
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

fn record(kv: &KeyValue) -> Result<Record, MetaError> {
    let key = kv.key_str().map_err(|_| MetaError::Invalid("etcd holds a key that is not text"))?;
    Ok(Record {
        key: key.to_owned(),
        value: kv.value().to_vec().into(),
        mod_revision: Revision(kv.mod_revision() as u64),
    })
}

impl MetadataStore for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.get_one(key).boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        async move {
            self.check()?;
            let start = match after_key {
                Some(key) if key >= prefix => after(key.as_bytes()),
                _ if prefix.is_empty() => vec![0],
                _ => prefix.as_bytes().to_vec(),
            };
            if limit == 0 || (!prefix.is_empty() && start >= end_of(prefix)) {
                return Ok(Vec::new());
            }
            self.list_from(prefix, start, limit).await
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        async move {
            txn.check()?;
            self.check()?;
            self.run(txn).await
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        async move {
            self.check()?;
            let from = self.revision().await?;
            let (told, stream) = super::watches::Watch::new(prefix);
            let run = watch::run(self.client.clone(), self.calls, told, from, self.stop.clone());
            // On the store's own thread, whatever thread asks.
            let _here = self.runtime.enter();
            self.tasks.spawn(format!("watch {prefix}"), OnFailure::StopProcess, run);
            Ok(stream)
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        async move {
            self.check()?;
            // Whole seconds, never less than asked for.
            let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            let call = || {
                let mut lease = self.client.lease_client();
                async move { lease.grant(seconds as i64, None).await }
            };
            // A lease that was granted unheard runs out by itself.
            Ok(LeaseId(self.calls.read(call).await?.id() as u64))
        }
        .boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        async move {
            self.check()?;
            let call = || {
                let mut client = self.client.lease_client();
                async move { client.keep_alive(lease.0 as i64).await.map(drop) }
            };
            self.calls.idempotent(call).await.map_err(|failure| failure.of_lease(lease))
        }
        .boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        async move {
            self.check()?;
            let call = || {
                let mut client = self.client.lease_client();
                async move { client.revoke(lease.0 as i64).await.map(drop) }
            };
            self.calls.idempotent(call).await.map_err(|failure| failure.of_lease(lease))
        }
        .boxed()
    }
}
