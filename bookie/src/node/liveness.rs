//! The liveness key: present while this process is, by a lease that a thread of its own renews, so that a busy runtime cannot let
//! it run out. A lost lease is granted again and the key put again; until then others may take this node for dead, which costs
//! copies of nothing: fencing gives safety, leases only liveness.

use bytes::Bytes;
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Op, Txn};
use geminga_common::retry::Reminders;
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A kept key.
pub(super) struct Liveness {
    end: CancellationToken,
    ended: watch::Receiver<bool>,
}

struct Keeper {
    meta: Arc<dyn MetadataStore>,
    key: String,
    value: Bytes,
    ttl: Duration,
}

impl Liveness {
    /// Keeps the key until told to end. The thread belongs to `tasks`.
    pub(super) fn start(
        meta: Arc<dyn MetadataStore>,
        key: String,
        value: Bytes,
        ttl: Duration,
        tasks: &TaskGroup,
    ) -> Self {
        let (end, (tell, ended)) = (tasks.token().child_token(), watch::channel(false));
        let (keeper, until) = (Keeper { meta, key, value, ttl }, end.clone());
        tasks.thread("bookie-lease", OnFailure::StopProcess, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("the system grants a small runtime at start-up");
            runtime.block_on(keeper.keep(&until));
            tell.send_replace(true);
        });
        Self { end, ended }
    }

    /// Takes the key away; waits at most this long.
    pub(super) async fn end(&self, deadline: Duration) {
        self.end.cancel();
        let mut ended = self.ended.clone();
        if tokio::time::timeout(deadline, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!("the liveness key was not taken away in time; it goes with its lease");
        }
    }
}

impl Keeper {
    async fn keep(&self, end: &CancellationToken) {
        let mut lease = None;
        let mut trouble: Option<(tokio::time::Instant, Reminders)> = None;
        loop {
            let kept = tokio::select! {
                kept = self.renew(lease) => kept,
                () = end.cancelled() => break,
            };
            let pause = match kept {
                Ok(kept) => {
                    lease = Some(kept);
                    if let Some((since, _)) = trouble.take() {
                        tracing::info!(key = self.key, after = ?since.elapsed(), "lease renewed again");
                    }
                    self.ttl / 3
                }
                Err(error) => {
                    let (since, reminders) =
                        trouble.get_or_insert_with(|| (tokio::time::Instant::now(), Reminders::default()));
                    if reminders.due(since.elapsed()) {
                        tracing::warn!(key = self.key, %error, since = ?since.elapsed(), "lease not renewed, trying again");
                    }
                    if matches!(error, MetaError::LeaseGone(_)) {
                        lease = None;
                    }
                    (self.ttl / 20).max(Duration::from_millis(10))
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => break,
            }
        }
        if let Some(lease) = lease {
            let revoked = tokio::time::timeout(self.ttl, self.meta.lease_revoke(lease)).await;
            if !matches!(revoked, Ok(Ok(()))) {
                tracing::warn!(key = self.key, "lease not revoked; it runs out by itself");
            }
        }
    }

    /// Renews a lease, or takes one and puts the key under it.
    async fn renew(&self, lease: Option<LeaseId>) -> Result<LeaseId, MetaError> {
        if let Some(lease) = lease {
            self.meta.lease_keep_alive(lease).await?;
            // The lease may be alive and the key gone, or another's: what counts is read back.
            let there = self.meta.get(&self.key).await?;
            if there.is_some_and(|there| there.value == self.value) {
                return Ok(lease);
            }
        }
        let lease = match lease {
            Some(lease) => lease,
            None => self.meta.lease_grant(self.ttl).await?,
        };
        let put = Op::Put { key: self.key.clone(), value: self.value.clone(), lease: Some(lease) };
        self.meta.txn(Txn { compares: Vec::new(), ops: vec![put] }).await?;
        Ok(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::clock::ManualClock;
    use geminga_common::metadata::WatchEvent;
    use geminga_common::metadata::memory::MemoryStore;

    #[tokio::test]
    async fn the_key_comes_back_after_its_lease_ran_out_and_goes_at_the_end() {
        let clock = Arc::new(ManualClock::default());
        let (store, tasks) = (Arc::new(MemoryStore::new(clock.clone())), TaskGroup::new());
        let mut events = store.watch("live").await.unwrap();
        let ttl = Duration::from_millis(60);
        let liveness = Liveness::start(store.clone(), "live".into(), "me".into(), ttl, &tasks);
        assert!(matches!(events.recv().await, Some(WatchEvent::Put(_))));
        clock.advance(Duration::from_secs(1));
        store.tick();
        assert!(matches!(events.recv().await, Some(WatchEvent::Deleted(..))));
        assert!(matches!(events.recv().await, Some(WatchEvent::Put(_))), "put again");
        store.txn(Txn { compares: vec![], ops: vec![Op::delete("live")] }).await.unwrap();
        assert!(matches!(events.recv().await, Some(WatchEvent::Deleted(..))));
        assert!(matches!(events.recv().await, Some(WatchEvent::Put(_))), "even when its lease is alive");
        liveness.end(Duration::from_secs(5)).await;
        assert_eq!(store.get("live").await.unwrap(), None);
        tasks.stop();
        assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
    }
}
