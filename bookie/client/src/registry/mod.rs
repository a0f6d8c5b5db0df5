//! Which bookies there are: their records and who of them is alive, kept up with metadata.
//!
//! Owner: one task for each process. It opens a watch on both prefixes, lists them, and follows the watch; events only hint, so both
//! are listed anew when a watch ends or says that it missed something, and every minute besides. While metadata is away the last
//! picture stands: bookies do not die of it.

pub mod absence;
pub mod record;

use geminga_common::ids::BookieId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, WatchEvent, list_all};
use geminga_common::retry::Backoff;
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use record::{BookieRecord, LiveRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Everything is listed anew this often, in case a watch lost something without saying so.
const LIST_AGAIN: Duration = Duration::from_secs(60);
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5), attempts_max: None };

/// What is known of one bookie. It may be alive before its record has been seen, and the other way round.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Its record.
    pub record: Option<BookieRecord>,
    /// Present while its lease is alive.
    pub live: Option<LiveRecord>,
}

/// All bookies, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// By name.
    pub bookies: BTreeMap<BookieId, Known>,
}

impl View {
    /// Where a bookie's service is; a live process's own word first.
    #[must_use]
    pub fn address(&self, id: &BookieId) -> Option<String> {
        let known = self.bookies.get(id)?;
        let live = known.live.as_ref().map(|live| &live.address);
        live.or(known.record.as_ref().map(|record| &record.address)).cloned()
    }

    fn apply(&mut self, keys: &Keys, key: &str, value: Option<&[u8]>) {
        let unreadable = |error| tracing::error!(key, %error, "bookie record cannot be read");
        if let Some(id) = keys.bookie_of_key(key) {
            match value.map(BookieRecord::decode).transpose() {
                Ok(record) => self.bookies.entry(id.clone()).or_default().record = record,
                Err(error) => unreadable(error),
            }
            self.forget(&id);
        } else if let Some(id) = keys.live_bookie_of_key(key) {
            match value.map(LiveRecord::decode).transpose() {
                Ok(live) => self.bookies.entry(id.clone()).or_default().live = live,
                Err(error) => unreadable(error),
            }
            self.forget(&id);
        }
    }

    fn forget(&mut self, id: &BookieId) {
        if self.bookies.get(id).is_some_and(|known| *known == Known::default()) {
            self.bookies.remove(id);
        }
    }
}

/// A handle to the picture. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    view: watch::Receiver<Arc<View>>,
}

impl Registry {
    /// Lists once, then follows in a task of the group.
    ///
    /// # Errors
    /// The first listing fails.
    pub async fn start(
        meta: Arc<dyn MetadataStore>,
        keys: Keys,
        tasks: &TaskGroup,
    ) -> Result<Self, MetaError> {
        let first = list(&*meta, &keys).await?;
        let (tell, view) = watch::channel(Arc::new(first));
        let stop = tasks.token();
        tasks.spawn("bookie-registry", OnFailure::StopProcess, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow_always(&*meta, &keys, &tell) => {}
            }
        });
        Ok(Self { view })
    }

    /// A picture that never changes, for tests and tools.
    #[must_use]
    pub fn fixed(view: View) -> Self {
        Self { view: watch::channel(Arc::new(view)).1 }
    }

    /// The picture now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Tells of every new picture.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Waits until the picture is as wanted; `None` when the registry has stopped.
    pub async fn until(&self, wanted: impl Fn(&View) -> bool) -> Option<Arc<View>> {
        let mut view = self.view.clone();
        view.wait_for(|view| wanted(view)).await.ok().map(|view| view.clone())
    }

    /// Tells the transport where bookies are.
    #[must_use]
    pub fn resolve(&self) -> crate::grpc::Resolve {
        let view = self.view.clone();
        Arc::new(move |id| view.borrow().address(id))
    }
}

async fn list(meta: &dyn MetadataStore, keys: &Keys) -> Result<View, MetaError> {
    let mut view = View::default();
    for prefix in [keys.bookies_prefix(), keys.live_bookies_prefix()] {
        for record in list_all(meta, &prefix).await? {
            view.apply(keys, &record.key, Some(&record.value));
        }
    }
    Ok(view)
}

async fn follow_always(meta: &dyn MetadataStore, keys: &Keys, tell: &watch::Sender<Arc<View>>) {
    let (mut rng, mut failures) = (Rng::from_system(), 0);
    loop {
        match follow(meta, keys, tell).await {
            Ok(()) => failures = 0,
            Err(error) => {
                tracing::warn!(%error, "bookies cannot be listed, the last picture stands");
                tokio::time::sleep(BACKOFF.delay(failures, &mut rng)).await;
                failures += 1;
            }
        }
    }
}

/// Follows until something was missed or a minute has gone by.
async fn follow(
    meta: &dyn MetadataStore,
    keys: &Keys,
    tell: &watch::Sender<Arc<View>>,
) -> Result<(), MetaError> {
    // Watched before listed, so that nothing falls between.
    let mut records = meta.watch(&keys.bookies_prefix()).await?;
    let mut lives = meta.watch(&keys.live_bookies_prefix()).await?;
    publish(tell, list(meta, keys).await?);
    let until = tokio::time::Instant::now() + LIST_AGAIN;
    loop {
        let event = tokio::select! {
            event = records.recv() => event,
            event = lives.recv() => event,
            () = tokio::time::sleep_until(until) => return Ok(()),
        };
        let mut view = View::clone(&tell.borrow());
        match event {
            Some(WatchEvent::Put(record)) => view.apply(keys, &record.key, Some(&record.value)),
            Some(WatchEvent::Deleted(key, _)) => view.apply(keys, &key, None),
            Some(WatchEvent::Resync) => return Ok(()),
            None => return Err(MetaError::Unavailable("the watch on bookies ended".to_owned())),
        }
        publish(tell, view);
    }
}

fn publish(tell: &watch::Sender<Arc<View>>, view: View) {
    tell.send_if_modified(|current| {
        let differs = **current != view;
        if differs {
            *current = Arc::new(view);
        }
        differs
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::clock::ManualClock;
    use geminga_common::ids::Incarnation;
    use geminga_common::metadata::memory::MemoryStore;
    use geminga_common::metadata::{Op, Txn};
    use record::{Labels, NodeState};

    fn id() -> BookieId {
        BookieId::new("b1").unwrap()
    }

    fn record(address: &str) -> BookieRecord {
        BookieRecord {
            incarnation: Incarnation(1),
            boot: 1,
            address: address.into(),
            labels: Labels::default(),
            state: NodeState::ReadWrite,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        }
    }

    async fn put(store: &MemoryStore, op: Op) {
        store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
    }

    #[tokio::test]
    async fn records_and_leases_are_followed() {
        let clock = Arc::new(ManualClock::default());
        let (store, keys, tasks) =
            (Arc::new(MemoryStore::new(clock.clone())), Keys::new("test"), TaskGroup::new());
        put(&store, Op::put(keys.bookie(&id()), record("h:1").encode())).await;
        let registry = Registry::start(store.clone(), keys.clone(), &tasks).await.unwrap();
        assert_eq!((registry.resolve())(&id()), Some("h:1".into()));
        put(&store, Op::put(keys.bookie(&id()), record("h:2").encode())).await;
        registry.until(|view| view.address(&id()).as_deref() == Some("h:2")).await.unwrap();
        let lease = store.lease_grant(Duration::from_secs(10)).await.unwrap();
        let live = LiveRecord { incarnation: Incarnation(1), address: "h:3".into(), process: 7 };
        let (key, value) = (keys.live_bookie(&id()), live.encode());
        put(&store, Op::Put { key, value, lease: Some(lease) }).await;
        registry.until(|view| view.address(&id()).as_deref() == Some("h:3")).await.unwrap();
        clock.advance(Duration::from_secs(11));
        store.tick();
        let view = registry.until(|view| view.bookies[&id()].live.is_none()).await.unwrap();
        assert_eq!(view.address(&id()).as_deref(), Some("h:2"), "a record outlives its process");
        put(&store, Op::delete(keys.bookie(&id()))).await;
        registry.until(|view| view.bookies.is_empty()).await.unwrap();
        tasks.stop();
        assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test]
    async fn what_a_full_watch_missed_is_listed() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::default())));
        let (keys, tasks) = (Keys::new("test"), TaskGroup::new());
        let registry = Registry::start(store.clone(), keys.clone(), &tasks).await.unwrap();
        // Far more than a watch holds, without letting the follower run in between.
        for n in 0..3000 {
            let op = Op::put(keys.bookie(&id()), record(&format!("h:{n}")).encode());
            futures::executor::block_on(put(&store, op));
        }
        registry.until(|view| view.address(&id()).as_deref() == Some("h:2999")).await.unwrap();
        tasks.stop();
    }
}
