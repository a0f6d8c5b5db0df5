//! What a broker does when bookies go and come back: whoever has one in an open ledger asks it, and deletions that waited for one go
//! on. Driven by the registry; the only timer is the end of a grace while some bookie has no lease, or of a pause while some
//! deletion is unfinished.

use crate::broker::Broker;
use crate::managed_ledger as ml;
use crate::topic::messages::Message;
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::registry::absence::{Absence, Suspect};
use geminga_common::ids::OwnerEpoch;
use geminga_common::tasks::OnFailure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Deletions that a stop or crash interrupted, or that waited for a bookie, are taken up so long after the start or its return.
const SWEEP_AFTER: Duration = Duration::from_secs(2);
/// Between one ledger and the next.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);
/// Again after this when some could not be finished.
const SWEEP_AGAIN: Duration = Duration::from_secs(600);

/// What wakes the sweep of deleted ledgers.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    /// A deletion could not be finished: look again after a while.
    pub(crate) left: Arc<Notify>,
    /// A bookie that deletions may have waited for is back, or is given up: look now.
    pub(crate) now: Notify,
}

impl Broker {
    /// Follows the bookies: those without a lease for longer than `grace`, wiped or given up are replaced in open ledgers that have
    /// them, whether or not something is published.
    pub fn follow_bookies(self: &Arc<Self>, registry: &Registry, grace: Duration) {
        let (broker, stop, mut views) = (self.clone(), self.tasks.token(), registry.subscribe());
        let mut absence = Absence::new(grace);
        self.tasks.spawn("bookies that go and come", OnFailure::StopProcess, async move {
            loop {
                let view = views.borrow_and_update().clone();
                let observed = absence.observe(&view, broker.clock.mono());
                if observed.settled {
                    broker.sweeps.now.notify_one();
                }
                if !observed.suspects.is_empty() {
                    broker.probe(observed.suspects).await;
                }
                let again = observed.again.map(|at| at.saturating_sub(broker.clock.mono()));
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    changed = views.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
                }
            }
        });
    }

    /// Tells everyone with an open ledger who is said to be gone.
    async fn probe(&self, suspects: Vec<Suspect>) {
        tracing::info!(?suspects, "bookies are said to be gone; open ledgers that have them ask");
        let suspects = Arc::new(suspects);
        self.loaded().into_iter().for_each(|topic| topic.put(Message::Bookies(suspects.clone())));
        for (_, log) in self.cursor_logs.lock().await.values() {
            log.probe(suspects.clone());
        }
    }
}

/// Finishes deletions: those begun before this start, and those that some bookie did not answer.
pub(crate) async fn sweep(broker: Arc<Broker>) {
    // A tombstone stands for itself, whoever owned the topic: deleting what it names needs no ownership.
    let (deps, stop) = (broker.ledger_deps(OwnerEpoch(0), Vec::new()), broker.tasks.token());
    let mut wait = Some(SWEEP_AFTER);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = broker.sweeps.now.notified() => {
                wait = Some(SWEEP_AFTER);
                continue;
            }
            () = broker.sweeps.left.notified(), if wait.is_none() => {
                wait = Some(SWEEP_AGAIN);
                continue;
            }
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
        wait = match ml::sweep_tombstones(&deps, SWEEP_PAUSE).await {
            Ok(0) => None,
            Ok(left) => {
                tracing::info!(left, "deleted ledgers wait for their bookies");
                Some(SWEEP_AGAIN)
            }
            Err(error) => {
                tracing::warn!(%error, "deleted ledgers cannot be listed; tried again later");
                Some(SWEEP_AGAIN)
            }
        };
    }
}
