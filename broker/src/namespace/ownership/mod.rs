//! Who serves which bundle.
//!
//! | file | what it holds |
//! |---|---|
//! | `state` | taking a bundle: the pure machine |
//! | `record` | stored forms of owner and epoch |
//! | `gate` | the store that refuses changes while the session is in doubt |
//! | `orphans` | bundles without owner whose ledgers were left open |
//!
//! The rules. An owner key hangs on its broker's lease; its value never repeats, and every transaction on a topic or cursor log
//! compares it. A lost lease therefore stops control actions; fencing (a higher term at the bookies) stops data. Neither is
//! trusted alone. Between two thirds of the lease's time and its loss nothing new is begun, while loaded topics go on. What was
//! owned under a lost lease is void for good: its topics are unloaded, and the bundle is taken anew, at a higher epoch.
//!
//! Watches are hints: whatever one says about a bundle of ours is read back before it counts.

mod gate;
pub(crate) mod orphans;
mod record;
pub mod state;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;

pub use gate::GatedStore;
pub use record::{Member, Owner};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use geminga_common::ids::OwnerEpoch;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::session::{Session, Standing};
use geminga_common::metadata::{Compare, MetaError, MetadataStore, WatchEvent, WatchStream};
use geminga_common::names::Bundle;
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use state::{BundleKeys, Outcome, Step, Take, Taker};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Lost bundles that may wait to be unloaded before the watcher pauses.
const LOST_QUEUE: usize = 1024;
/// Pause before the owners are watched anew.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// Ownership of one bundle, as transactions need it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The bundle.
    pub bundle: Bundle,
    /// Its epoch.
    pub epoch: OwnerEpoch,
    /// What every transaction compares.
    pub guard: Vec<Compare>,
    take: u64,
    generation: u64,
}

/// Where a bundle is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Here.
    Mine(Grant),
    /// By another broker.
    Other(Member),
}

/// Why it is not known where a bundle is served. Always worth another try.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Undecided {
    /// This broker's own session is in doubt or lost.
    #[error("this broker has no sure lease in the metadata store right now")]
    NoSession,
    /// Metadata does not tell.
    #[error("{0}")]
    Metadata(String),
}

type Taking = Shared<BoxFuture<'static, Result<Place, Undecided>>>;

/// What ownership works with.
pub struct Deps {
    /// The store itself, not a gated one.
    pub metadata: Arc<dyn MetadataStore>,
    /// Key layout.
    pub keys: Arc<Keys>,
    /// This broker.
    pub member: Member,
    /// This start of it.
    pub process: u64,
    /// Its session.
    pub session: Session,
    /// Source of take ids.
    pub rng: Rng,
}

struct Inner {
    metadata: Arc<dyn MetadataStore>,
    keys: Arc<Keys>,
    member: Member,
    process: u64,
    session: Session,
    rng: Mutex<Rng>,
    held: Mutex<HashMap<Bundle, Grant>>,
    taking: Mutex<HashMap<Bundle, Taking>>,
    lost: mpsc::Sender<Bundle>,
}

/// A handle. Cheap to clone.
#[derive(Clone)]
pub struct Ownership {
    inner: Arc<Inner>,
}

impl Ownership {
    /// Watches ownership in `tasks`. Bundles that are lost come through the receiver after they have ceased to be held.
    #[must_use]
    pub fn start(deps: Deps, tasks: &TaskGroup) -> (Self, mpsc::Receiver<Bundle>) {
        let Deps { metadata, keys, member, process, session, rng } = deps;
        let (lost, told) = mpsc::channel(LOST_QUEUE);
        let inner = Inner {
            metadata,
            keys,
            member,
            process,
            session,
            rng: Mutex::new(rng),
            held: Mutex::default(),
            taking: Mutex::default(),
            lost,
        };
        let ownership = Self { inner: Arc::new(inner) };
        let (follower, stop) = (ownership.clone(), tasks.token());
        tasks.spawn("ownership", OnFailure::StopProcess, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.follow() => {}
            }
        });
        (ownership, told)
    }

    /// This broker's name in the cluster.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.inner.member
    }

    /// How sure this broker may be of what it owns.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.inner.session.standing()
    }

    /// Where the bundle is served; takes it when nobody does.
    ///
    /// # Errors
    /// [`Undecided`].
    pub async fn resolve(&self, bundle: &Bundle) -> Result<Place, Undecided> {
        if let Some(grant) = self.held(bundle) {
            return Ok(Place::Mine(grant));
        }
        let taking = {
            let mut taking = self.inner.taking.lock();
            let begin = || self.clone().take(bundle.clone()).boxed().shared();
            taking.entry(bundle.clone()).or_insert_with(begin).clone()
        };
        let outcome = taking.clone().await;
        let mut under_way = self.inner.taking.lock();
        if under_way.get(bundle).is_some_and(|other| other.ptr_eq(&taking)) {
            under_way.remove(bundle);
        }
        outcome
    }

    /// The grant of a bundle that is held under the session's present lease.
    #[must_use]
    pub fn held(&self, bundle: &Bundle) -> Option<Grant> {
        let generation = *self.inner.session.generations().borrow();
        let held = self.inner.held.lock();
        held.get(bundle).filter(|grant| grant.generation == generation).cloned()
    }

    /// Whether a grant still stands, as far as this broker knows.
    #[must_use]
    pub fn stands(&self, grant: &Grant) -> bool {
        self.held(&grant.bundle).is_some_and(|held| held.take == grant.take)
    }

    /// Bundles held.
    #[must_use]
    pub fn bundles(&self) -> Vec<Bundle> {
        self.inner.held.lock().keys().cloned().collect()
    }

    /// A transaction that compared the grant's guard was lost: reads the owner key, and gives the bundle up unless it is ours.
    pub async fn verify(&self, bundle: &Bundle) {
        let Some(grant) = self.inner.held.lock().get(bundle).cloned() else { return };
        let read = self.inner.metadata.get(&self.inner.keys.owner(bundle)).await;
        let ours = match read {
            Ok(Some(record)) => Owner::decode(&record.value).is_ok_and(|owner| owner.take == grant.take),
            Ok(None) => false,
            // No answer is no reason to stop serving.
            Err(_) => return,
        };
        if !ours {
            self.give_up(&grant).await;
        }
    }

    /// Forgets every grant because this broker stops: its topics are unloaded, and the end of its lease frees the owner keys.
    pub fn release_all(&self) {
        self.inner.held.lock().clear();
    }

    async fn give_up(&self, grant: &Grant) {
        let gone = {
            let mut held = self.inner.held.lock();
            match held.get(&grant.bundle) {
                Some(now) if now.take == grant.take => held.remove(&grant.bundle).is_some(),
                _ => false,
            }
        };
        if gone {
            tracing::warn!(bundle = %grant.bundle, epoch = %grant.epoch, "bundle is no longer ours");
            // Nobody unloads any more when the broker is gone.
            let _told = self.inner.lost.send(grant.bundle.clone()).await;
        }
    }

    async fn take(self, bundle: Bundle) -> Result<Place, Undecided> {
        let Some((lease, generation)) = self.inner.session.held() else { return Err(Undecided::NoSession) };
        let keys =
            BundleKeys { owner: self.inner.keys.owner(&bundle), counter: self.inner.keys.bundle(&bundle) };
        let take = self.inner.rng.lock().next_u64();
        let taker = Taker { member: self.inner.member.clone(), process: self.inner.process, lease, take };
        match run(&*self.inner.metadata, Take::new(keys.clone(), taker)).await {
            Outcome::Mine(owner) => {
                let guard = vec![Compare::ValueIs(keys.owner, owner.encode())];
                let grant = Grant { bundle: bundle.clone(), epoch: owner.epoch, guard, take, generation };
                tracing::info!(%bundle, epoch = %grant.epoch, "bundle taken");
                self.inner.held.lock().insert(bundle.clone(), grant);
                // The lease may have been lost meanwhile.
                self.held(&bundle).map(Place::Mine).ok_or(Undecided::NoSession)
            }
            Outcome::Other(owner) => Ok(Place::Other(owner.member)),
            Outcome::LeaseGone => Err(Undecided::NoSession),
            Outcome::Undecided(why) => Err(Undecided::Metadata(why)),
        }
    }

    /// Gives up what the session or a watch shows to be lost, for ever.
    async fn follow(&self) {
        let mut generations = self.inner.session.generations();
        loop {
            let mut watch = match self.inner.metadata.watch(&self.inner.keys.all_owners_prefix()).await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(%error, "owners cannot be watched yet");
                    tokio::time::sleep(WATCH_PAUSE).await;
                    continue;
                }
            };
            self.verify_all().await;
            self.follow_watch(&mut watch, &mut generations).await;
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }

    async fn follow_watch(
        &self,
        watch: &mut WatchStream,
        generations: &mut tokio::sync::watch::Receiver<u64>,
    ) {
        loop {
            tokio::select! {
                changed = generations.changed() => {
                    if changed.is_err() {
                        // The session is gone with its process; nothing is left to follow.
                        return std::future::pending().await;
                    }
                    let generation = *generations.borrow_and_update();
                    self.end_generations_before(generation).await;
                }
                event = watch.recv() => match event {
                    Some(WatchEvent::Put(record)) => {
                        let ours = Owner::decode(&record.value).is_ok_and(|o| o.process == self.inner.process);
                        if !ours {
                            self.verify_key(&record.key).await;
                        }
                    }
                    Some(WatchEvent::Deleted(key, _)) => self.verify_key(&key).await,
                    Some(WatchEvent::Resync) => self.verify_all().await,
                    None => return,
                }
            }
        }
    }

    async fn verify_key(&self, key: &str) {
        if let Some(bundle) = self.inner.keys.bundle_of_owner_key(key) {
            self.verify(&bundle).await;
        }
    }

    async fn verify_all(&self) {
        for bundle in self.bundles() {
            self.verify(&bundle).await;
        }
    }

    async fn end_generations_before(&self, generation: u64) {
        let void = |grant: &&Grant| grant.generation != generation;
        let lost: Vec<Grant> = self.inner.held.lock().values().filter(void).cloned().collect();
        for grant in lost {
            self.give_up(&grant).await;
        }
    }
}

/// Drives a taking against the store.
async fn run(store: &dyn MetadataStore, mut take: Take) -> Outcome {
    loop {
        match take.step() {
            Step::ReadOwner => {
                let read = store.get(&take.keys().owner).await;
                take.owner(read);
            }
            Step::ReadCounter => {
                let read = store.get(&take.keys().counter).await;
                take.counter(read);
            }
            Step::Commit(txn) => {
                let answer = store.txn(txn).await;
                let pause = matches!(answer, Err(MetaError::Unknown(_)));
                take.committed(answer);
                if pause {
                    tokio::time::sleep(WATCH_PAUSE).await;
                }
            }
            Step::Done(outcome) => return outcome,
        }
    }
}
