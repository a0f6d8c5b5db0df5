//! The repair controller: closed ledgers that are below their write quorum get back to it, without a restart of anything.
//!
//! | file | what it holds |
//! |---|---|
//! | `leader` | which broker repairs |
//! | `round` | one look at what may need repair, ledger by ledger |
//! | `holders` | where closed ledgers are written down, and the transaction that changes it |
//! | `status` | figures and reasons for people |
//!
//! What needs repair is found in two places. `l/{id}`: a ledger that closed while some id lacked a copy keeps its record; these few are
//! listed and watched. Everywhere else: a store that is lost takes the copies of all its ledgers with it; when the set of stores
//! changes, every topic and cursor log is looked at once, a page at a time. There is no queue to be kept: the records themselves say
//! what is to be done, and an interrupted repair is found again as it was left.
//!
//! Owners never wait for a repair and are not told: an owner whose transaction finds its record moved reads it back (see
//! [`super::managed_ledger`]). Open ledgers are their writers' own affair.

mod holders;
mod leader;
mod round;
mod status;
#[cfg(test)]
mod tests;

use geminga_bookie_client::placement::Placement;
use geminga_bookie_client::record::{LedgerRecord, LedgerState};
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::repair::standing::Absences;
use geminga_bookie_client::rpc::BookieRpc;
use geminga_common::clock::Clock;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::session::Session;
use geminga_common::metadata::{MetadataStore, WatchEvent, WatchStream};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use round::Round;
pub use status::{Figures, Status};
use std::sync::Arc;
use std::time::Duration;

/// Pauses before what is stuck is tried again: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// Changes are given this long to come together: a bookie that returns brings several.
const SETTLE: Duration = Duration::from_millis(300);
/// While something is stuck, a ledger that closes with repair due is looked at this long after the last round at the earliest: with a bookie
/// away every ledger closes so, and each look is a look at all of them.
const STUCK_PAUSE: Duration = Duration::from_secs(5);
/// While something counts on a store that lost data, every ledger is looked at this often.
const COUNTED_ON_AGAIN: Duration = Duration::from_secs(20);
/// Every ledger is looked at this often, whatever happened: what a watch missed, and what an owner folded meanwhile.
const AUDIT: Duration = Duration::from_secs(6 * 3600);

/// What repairing takes.
#[derive(Clone)]
pub struct Means {
    /// Calls to bookies.
    pub rpc: Arc<dyn BookieRpc>,
    /// Which bookies there are.
    pub registry: Registry,
    /// Where copies go.
    pub placement: Arc<dyn Placement>,
    /// How long a bookie may be away before what it held is copied elsewhere.
    pub grace: Duration,
}

/// What the controller is given.
pub(crate) struct Deps {
    pub(crate) means: Means,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) session: Session,
    /// Name of this broker, and of this start of it.
    pub(crate) member: String,
    pub(crate) process: u64,
    pub(crate) status: Arc<Status>,
}

pub(crate) struct Controller {
    deps: Deps,
    rng: Mutex<Rng>,
}

impl Controller {
    /// Repairs in `tasks`, whenever this broker leads.
    pub(crate) fn start(deps: Deps, tasks: &TaskGroup) {
        let controller = Self { deps, rng: Mutex::new(Rng::from_system()) };
        let stop = tasks.token();
        tasks.spawn("repair", OnFailure::StopProcess, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = controller.run() => {}
            }
        });
    }

    async fn run(&self) {
        let d = &self.deps;
        loop {
            let generation = leader::elected(&*d.metadata, &d.keys, &d.session, &d.member, d.process).await;
            tracing::info!("this broker repairs ledgers from now on");
            d.status.change(|f| f.leader = true);
            let mut generations = d.session.generations();
            tokio::select! {
                // The lease is gone, and with it the key.
                _ = generations.wait_for(|now| *now != generation) => {}
                () = self.lead() => {}
            }
            d.status
                .change(|f| *f = Figures { leader: false, due: 0, stuck: Default::default(), ..f.clone() });
        }
    }

    /// Round after round, each when something changed or what was stuck may go on.
    async fn lead(&self) {
        let d = &self.deps;
        let mut absences = Absences::default();
        let mut seen = None;
        let mut pause = RETRY.0;
        let mut audit_at = d.clock.mono();
        let mut again = std::collections::BTreeSet::new();
        let mut watched = round::Open::new();
        loop {
            let mut registry = d.means.registry.subscribe();
            registry.borrow_and_update();
            let watch = d.metadata.watch(&d.keys.ledgers_prefix()).await;
            let now = d.clock.mono();
            let (standings, given_up_at) = absences.look(d.means.registry.view(), now, d.means.grace);
            let stores = standings.stores();
            let all = now >= audit_at || seen.as_ref() != Some(&stores);
            let round = Round::new(d, &self.rng, standings);
            let done = round.run(all, &again).await;
            let finished = watch.is_ok() && done.as_ref().is_ok_and(|found| !found.stuck);
            match &done {
                Ok(_) if all => {
                    seen = Some(stores);
                    audit_at = now + AUDIT;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "ledgers cannot be looked at for repair now"),
            }
            pause = if finished { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            let retry_at = (!finished).then(|| now + pause);
            let mut vanished = false;
            // Behind a round that failed, what is watched stays so.
            if let Ok(found) = done {
                if found.counted_on {
                    audit_at = audit_at.min(now + COUNTED_ON_AGAIN);
                }
                again = found.stuck_owners;
                // Folded while nobody watched: between one watch and the next, or in the pause behind a stuck round.
                vanished = !all && !watched.is_subset(&found.open_on_lost);
                watched = found.open_on_lost;
            }
            if vanished {
                seen = None;
                continue;
            }
            let wake =
                [retry_at, given_up_at, Some(audit_at)].into_iter().flatten().min().unwrap_or(audit_at);
            let sleep = wake.saturating_sub(d.clock.mono());
            let earliest = tokio::time::Instant::now() + if finished { Duration::ZERO } else { STUCK_PAUSE };
            let told = async {
                let folded = news(d, watch.ok(), &watched).await;
                tokio::time::sleep_until(earliest).await;
                folded
            };
            let folded = tokio::select! {
                _ = registry.changed() => false,
                folded = told => folded,
                () = tokio::time::sleep(sleep) => false,
            };
            if folded {
                // A ledger that was open over a lost store has closed: its owner's record is to be looked at.
                seen = None;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Waits for a ledger to close with repair due (answers false), or for one of `watched` to be folded (true).
async fn news(deps: &Deps, watch: Option<WatchStream>, watched: &round::Open) -> bool {
    let Some(mut watch) = watch else { return std::future::pending().await };
    while let Some(event) = watch.recv().await {
        match event {
            WatchEvent::Put(record) => {
                let due = LedgerRecord::decode(&record.value)
                    .is_ok_and(|r| matches!(r.state, LedgerState::Closed { .. }) && !r.repair.is_empty());
                if due {
                    return false;
                }
            }
            WatchEvent::Deleted(key, _) => {
                if deps.keys.ledger_of_key(&key).is_some_and(|id| watched.contains(&id)) {
                    return true;
                }
            }
            WatchEvent::Resync => return false,
        }
    }
    // The store is on its way down; the next watch tells.
    tokio::time::sleep(RETRY.0).await;
    false
}
