//! The broker: what all its rooms share, the topics it has loaded, and the order in which it starts and stops.
//!
//! Topics are loaded once: whoever asks while a topic is being opened waits for the same opening. Shutdown has phases: take no
//! new connections, unload every topic (acks written, ledgers closed), end the connections.

use crate::bookies::Sweeps;
use crate::config::Config;
use crate::cursor::{self, CursorLog};
use crate::managed_ledger::{self as ml, CacheBudget, ManagedLedger};
use crate::namespace::ownership::{self, GatedStore, Grant, Member, Ownership};
use crate::namespace::{
    BacklogQuotaType, DomainMode, NamespaceError, Namespaces, PublishRate, QuotaPolicy, ResolveError,
    SchemaCompatibility,
};
use crate::schema::SchemaRegistry;
use crate::topic::lifecycle::{Quota, Rules};
use crate::topic::mailbox::mailbox;
use crate::topic::messages::Message;
use crate::topic::setbacks::Setbacks;
use crate::topic::worker::{Parts, Worker};
use crate::topic::{TopicError, TopicHandle};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use geminga_bookie_client::ledgers::Ledgers;
use geminga_bookie_client::placement::Figures as PlacementFigures;
use geminga_common::budget::Budget;
use geminga_common::clock::Clock;
use geminga_common::error::Code;
use geminga_common::ids::OwnerEpoch;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::session::{Session, Standing};
use geminga_common::metadata::{Compare, MetadataStore};
use geminga_common::names::{Bundle, NamespaceName, TopicName};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use geminga_offload::Tier;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What CONNECTED and `/brokers/version` say: the Pulsar release whose behaviour is offered.
pub(crate) const SERVER_VERSION: &str = "Pulsar Server Geminga-4.2.4";

/// How often a creation is begun anew because its namespace or its partitioned parent was changed meanwhile.
const CREATION_ATTEMPTS: usize = 32;
type Loading = Shared<BoxFuture<'static, Result<TopicHandle, TopicError>>>;

enum Slot {
    Loading(u64, Loading),
    Ready(TopicHandle),
}

/// What a broker is made of; everything that touches the world comes from outside.
pub struct Deps {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Cluster metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// Where that is, for REST to show.
    pub metadata_url: String,
    /// The process's lease there. The broker ends it when it has drained.
    pub session: Session,
    /// The ledger protocol, over a [`GatedStore`].
    pub ledgers: Arc<dyn Ledgers>,
    /// Where its tasks run.
    pub tasks: TaskGroup,
    /// Names of the bookies, for REST.
    pub bookies: Vec<String>,
    /// Unique for each start of a broker in the cluster: its process id, and part of generated producer names.
    pub boot: u64,
    /// Where clients reach it.
    pub addresses: Addresses,
    /// Whether other brokers may share the metadata, so that their orphans are to be looked for.
    pub in_cluster: bool,
    /// What repairing ledgers takes; `None` where there is one bookie and nothing to copy from.
    pub repair: Option<crate::repair::Means>,
    /// The object store, where one is configured.
    pub tier: Option<Arc<Tier>>,
}

#[cfg(any(test, feature = "test-util"))]
impl Deps {
    /// What a broker that is alone in its cluster is made of, with a lease that outlives any test.
    ///
    /// # Panics
    /// The store refuses the lease.
    pub async fn alone(
        metadata: Arc<dyn MetadataStore>,
        ledgers: Arc<dyn Ledgers>,
        tasks: &TaskGroup,
        address: &str,
    ) -> Self {
        let clock = geminga_common::clock::SystemClock::shared();
        let ttl = Duration::from_secs(24 * 3600);
        let settings = geminga_common::metadata::session::Settings { ttl, keys: Vec::new() };
        let session = Session::start(metadata.clone(), clock.clone(), settings, tasks).await;
        Self {
            clock,
            metadata,
            metadata_url: "memory:".to_owned(),
            session: session.expect("the store grants a lease"),
            ledgers,
            tasks: tasks.clone(),
            bookies: Vec::new(),
            boot: 1,
            addresses: Addresses {
                pulsar: format!("pulsar://{address}"),
                http: format!("http://{address}"),
                loopback: true,
            },
            in_cluster: false,
            repair: None,
            tier: None,
        }
    }
}

/// A broker.
pub struct Broker {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) strangers: crate::seldom::Seldom,
    pub(crate) tasks: TaskGroup,
    pub(crate) namespaces: Namespaces,
    pub(crate) schemas: SchemaRegistry,
    pub(crate) publish_budget: Budget,
    /// Cancelled when topics are to unload.
    pub(crate) draining: CancellationToken,
    pub(crate) ownership: Ownership,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) keys: Arc<Keys>,
    /// The store of topics and cursor logs: it changes nothing while the session is in doubt.
    pub(crate) gated: Arc<dyn MetadataStore>,
    metadata_url: String,
    session: Session,
    ledgers: Arc<dyn Ledgers>,
    cache: Arc<CacheBudget>,
    topic_ids: Arc<ml::TopicIds>,
    topics: Mutex<HashMap<TopicName, Slot>>,
    pub(crate) cursor_logs: tokio::sync::Mutex<HashMap<Bundle, (u64, CursorLog)>>,
    addresses: Addresses,
    next_id: AtomicU64,
    boot: u64,
    bookie_names: Vec<String>,
    in_cluster: bool,
    repair: Option<crate::repair::Means>,
    repair_status: Arc<crate::repair::Status>,
    pub(crate) sweeps: Sweeps,
    pub(crate) tier: Option<Arc<Tier>>,
    /// Topics whose disk is full.
    pub(crate) setbacks: Mutex<Setbacks>,
}

/// Where a broker is reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// `pulsar://host:port`.
    pub pulsar: String,
    /// `http://host:port`.
    pub http: String,
    /// Whether both are on the loopback.
    pub loopback: bool,
}

impl Addresses {
    /// The broker as others know it: its name in the cluster is the address of its Pulsar port.
    #[must_use]
    pub fn member(&self) -> Member {
        let id = self.pulsar.trim_start_matches("pulsar://").to_owned();
        Member { id, pulsar_url: self.pulsar.clone(), http_url: self.http.clone() }
    }
}

/// Limits that policies put on a topic; `None` is unbounded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TopicLimits {
    pub(crate) producers_max: Option<u64>,
    pub(crate) consumers_max: Option<u64>,
    pub(crate) consumers_per_subscription_max: Option<u64>,
    pub(crate) subscriptions_max: Option<u64>,
    pub(crate) encryption_required: bool,
}

impl Broker {
    /// A broker over what it is given; nothing listens yet.
    ///
    /// # Errors
    /// Metadata that cannot be read or written.
    pub async fn start(config: Config, deps: Deps) -> Result<Arc<Self>, NamespaceError> {
        let defaults = crate::namespace::Defaults::of_cluster(&config.cluster);
        let namespaces = Namespaces::start(deps.metadata.clone(), defaults, &deps.tasks).await?;
        namespaces.bootstrap().await?;
        let keys = Arc::new(Keys::new(&config.cluster));
        let (ownership, lost) = Ownership::start(
            ownership::Deps {
                metadata: deps.metadata.clone(),
                keys: keys.clone(),
                member: deps.addresses.member(),
                process: deps.boot,
                session: deps.session.clone(),
                rng: Rng::from_system(),
            },
            &deps.tasks,
        );
        let broker = Arc::new(Self {
            ownership,
            gated: Arc::new(GatedStore::new(deps.metadata.clone(), deps.session.clone())),
            metadata_url: deps.metadata_url,
            session: deps.session,
            schemas: SchemaRegistry::new(deps.metadata.clone(), &config.cluster),
            keys,
            publish_budget: Budget::new(config.publish_budget.0),
            cache: CacheBudget::new(config.cache.0 as usize),
            topic_ids: Arc::default(),
            draining: CancellationToken::new(),
            topics: Mutex::default(),
            cursor_logs: tokio::sync::Mutex::default(),
            addresses: deps.addresses,
            in_cluster: deps.in_cluster,
            repair: deps.repair,
            repair_status: Arc::default(),
            sweeps: Sweeps::default(),
            tier: deps.tier,
            setbacks: Mutex::default(),
            next_id: AtomicU64::new(1),
            boot: deps.boot,
            bookie_names: deps.bookies,
            namespaces,
            config,
            clock: deps.clock,
            strangers: crate::seldom::Seldom::default(),
            tasks: deps.tasks,
            metadata: deps.metadata,
            ledgers: deps.ledgers,
        });
        let (unload, stop) = (broker.clone().unload_lost(lost), broker.tasks.token());
        broker.tasks.spawn("lost bundles", OnFailure::StopProcess, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = unload => {}
            }
        });
        Ok(broker)
    }

    /// Serves clients and REST on bound listeners, so many at once.
    pub fn serve(
        self: &Arc<Self>,
        pulsar: tokio::net::TcpListener,
        http: tokio::net::TcpListener,
        bounds: crate::doors::Bounds,
    ) {
        self.tasks.spawn("sweep of deleted ledgers", OnFailure::Log, crate::bookies::sweep(self.clone()));
        match self.tier.clone() {
            Some(tier) => {
                let sweep = crate::offload::sweep(self.clone(), tier);
                self.tasks.spawn("sweep of the object store", OnFailure::Log, sweep);
            }
            None => {
                let (tell, stop) = (crate::offload::unconfigured::tell(self.clone()), self.tasks.token());
                self.tasks.spawn("look for offloaded ledgers", OnFailure::Log, async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tell => {}
                    }
                });
            }
        }
        self.tasks.spawn("policy changes", OnFailure::StopProcess, tell_of_policies(self.clone()));
        if let Some(means) = &self.repair {
            let deps = crate::repair::Deps {
                means: means.clone(),
                clock: self.clock.clone(),
                metadata: self.gated.clone(),
                keys: self.keys.clone(),
                session: self.session.clone(),
                member: self.addresses.member().id,
                process: self.boot,
                status: self.repair_status.clone(),
            };
            crate::repair::Controller::start(deps, &self.tasks);
        }
        let doors = crate::doors::Doors::new(bounds);
        let accept = crate::service::accept(self.clone(), pulsar, doors.pulsar.clone());
        self.tasks.spawn("pulsar listener", OnFailure::StopProcess, accept);
        let rest = crate::rest::Rest {
            namespaces: self.namespaces.clone(),
            schemas: self.schemas.clone(),
            broker: Arc::new(crate::admin::Admin(self.clone())),
            clock: self.clock.clone(),
            version: SERVER_VERSION.into(),
            metadata_url: self.metadata_url.as_str().into(),
            failures: Arc::default(),
            doors,
        };
        let stop = self.tasks.token();
        self.tasks.spawn("http listener", OnFailure::StopProcess, async move {
            rest.serve(http, stop).await;
        });
        let (broker, stop) = (self.clone(), self.draining.clone());
        self.tasks.spawn("orphans", OnFailure::Log, async move {
            let again = broker.in_cluster;
            tokio::select! {
                () = stop.cancelled() => {}
                () = broker.adopt_orphans(again) => {}
            }
        });
    }

    /// Unloads every topic, then ends the session, so that others may serve them at once.
    pub async fn drain(&self) {
        self.draining.cancel();
        let handles: Vec<TopicHandle> = self.loaded();
        for handle in handles {
            // Gone already is as good.
            let _gone = handle.ask(Message::Unload).await;
        }
        self.cursor_logs.lock().await.clear();
        self.ownership.release_all();
        self.session.end().await;
    }

    /// Every loaded topic.
    pub(crate) fn loaded(&self) -> Vec<TopicHandle> {
        let topics = self.topics.lock();
        topics
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(handle) => Some(handle.clone()),
                Slot::Loading(..) => None,
            })
            .collect()
    }

    /// A number that nothing else in this process has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A producer name that nobody in the cluster has.
    pub(crate) fn producer_name(&self) -> String {
        format!("{}-{}-{}", self.config.cluster, self.boot, self.next_id())
    }

    /// Where clients reach it.
    pub(crate) fn service_url(&self) -> String {
        self.addresses.pulsar.clone()
    }

    /// How placing ledgers stands; `None` where there is nothing to place on.
    pub(crate) fn placement(&self) -> Option<PlacementFigures> {
        let placement = self.repair.as_ref().map(|means| &means.placement)?;
        Some(PlacementFigures { degraded: placement.degraded(), slow_verdicts: placement.slow_verdicts() })
    }

    /// How repairs stand here; `None` where nothing is repaired.
    pub(crate) fn repairs(&self) -> Option<crate::repair::Figures> {
        self.repair.as_ref().map(|_| self.repair_status.figures())
    }

    /// Where REST is.
    pub(crate) fn http_url(&self) -> String {
        self.addresses.http.clone()
    }

    /// Whether it listens on the loopback only.
    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses.loopback
    }

    /// Names of the bookies that entries are written to.
    pub(crate) async fn bookies(&self) -> Vec<String> {
        let known = self.metadata.list(&self.keys.bookies_prefix(), None, 1000).await.unwrap_or_default();
        let ids: Vec<String> = known
            .iter()
            .filter_map(|record| self.keys.bookie_of_key(&record.key))
            .map(|id| id.to_string())
            .collect();
        if ids.is_empty() { self.bookie_names.clone() } else { ids }
    }

    /// The topic that the health check uses.
    pub(crate) fn health_topic(&self) -> TopicName {
        TopicName::parse("persistent://pulsar/system/healthcheck").expect("a well-formed name")
    }

    /// A loaded topic, if it is.
    pub(crate) fn topic_if_loaded(&self, name: &TopicName) -> Option<TopicHandle> {
        match self.topics.lock().get(name) {
            Some(Slot::Ready(handle)) => Some(handle.clone()),
            _ => None,
        }
    }

    /// The topic, opened if it is not; with `may_create` made if there is none and the namespace allows it.
    pub(crate) async fn topic(
        self: &Arc<Self>,
        name: &TopicName,
        may_create: bool,
    ) -> Result<TopicHandle, TopicError> {
        let create = if may_create { self.creation(name)? } else { false };
        self.open(name, create).await
    }

    /// Opens a topic; `create` makes it whatever the auto-creation rules say.
    pub(crate) async fn open(
        self: &Arc<Self>,
        name: &TopicName,
        create: bool,
    ) -> Result<TopicHandle, TopicError> {
        loop {
            let (id, loading, mine) = {
                let mut topics = self.topics.lock();
                match topics.get(name) {
                    Some(Slot::Ready(handle)) => return Ok(handle.clone()),
                    Some(Slot::Loading(id, loading)) => (*id, loading.clone(), false),
                    None => {
                        if self.draining.is_cancelled() {
                            return Err(TopicError::NotReady);
                        }
                        let id = self.next_id();
                        let load = self.clone().load(name.clone(), create, id);
                        let loading: Loading = load.boxed().shared();
                        topics.insert(name.clone(), Slot::Loading(id, loading.clone()));
                        // It goes on even when whoever asked first hangs up.
                        let run = loading.clone().map(drop);
                        self.tasks.spawn(format!("open {name}"), OnFailure::Log, run);
                        (id, loading, true)
                    }
                }
            };
            let outcome = loading.await;
            if outcome.is_err() {
                let mut topics = self.topics.lock();
                if matches!(topics.get(name), Some(Slot::Loading(other, _)) if *other == id) {
                    topics.remove(name);
                }
            }
            match outcome {
                // Somebody who may not create it was first; this one may.
                Err(TopicError::NotFound(_)) if create && !mine => {}
                outcome => return outcome,
            }
        }
    }

    async fn load(
        self: Arc<Self>,
        name: TopicName,
        create: bool,
        id: u64,
    ) -> Result<TopicHandle, TopicError> {
        if !name.is_persistent() {
            let text = "non-persistent topics are not supported by this broker";
            return Err(TopicError::NotAllowed(text.to_owned()));
        }
        self.namespaces.check_load(&name).map_err(|error| refusal(&name, error))?;
        let grant = self.grant(&name).await?;
        let cursors = self.cursor_log_under(&grant).await?;
        let (mailbox, inbox) = mailbox();
        let handle = TopicHandle::new(Arc::new(name.clone()), mailbox);
        let events = handle.clone();
        let events: ml::Events = Arc::new(move |event| events.put(Message::Ledger(event)));
        let ledger = self.open_ledger(&name, &grant, create, events).await?;
        let stored =
            cursors.subscriptions(ledger.topic_id()).await.map_err(|error| TopicError::storage(&error))?;
        let parts = Parts { broker: self.clone(), handle: handle.clone(), inbox, ledger, cursors, stored };
        let worker = Worker::new(parts);
        {
            let mut topics = self.topics.lock();
            let wanted = matches!(topics.get(&name), Some(Slot::Loading(other, _)) if *other == id);
            // A bundle that was lost meanwhile was looked through before this topic was in the list.
            if !wanted || !self.ownership.stands(&grant) {
                return Err(TopicError::NotReady);
            }
            topics.insert(name.clone(), Slot::Ready(handle.clone()));
        }
        // Policies may have changed between the worker's look at them and its place on the list.
        handle.put(Message::PoliciesChanged);
        self.tasks.spawn(format!("topic {name}"), OnFailure::StopProcess, worker.run());
        Ok(handle)
    }

    /// Opens a topic's ledgers, or creates the topic while everything that allows it still holds.
    async fn open_ledger(
        self: &Arc<Self>,
        name: &TopicName,
        grant: &Grant,
        create: bool,
        events: ml::Events,
    ) -> Result<ManagedLedger, TopicError> {
        let mut mode = ml::CreateMode::MustExist;
        let mut room = None;
        for _ in 0..CREATION_ATTEMPTS {
            match ManagedLedger::open(
                self.ledger_deps(grant.epoch, grant.guard.clone()),
                name.clone(),
                mode,
                events.clone(),
            )
            .await
            {
                Ok(ledger) => return Ok(ledger),
                Err(ml::OpenError::NotFound | ml::OpenError::CreationLost) if create => {
                    if name.partition_index().is_none() && room.is_none() {
                        let found = self.namespaces.room_for(name.namespace(), 1).await;
                        room = found.map_err(|error| refusal(name, error))?;
                    }
                    let guard = self.namespaces.topic_creation_guard(name).await;
                    let guard = guard.map_err(|error| refusal(name, error))?;
                    mode = ml::CreateMode::CreateIfMissing(Default::default(), guard);
                }
                Err(ml::OpenError::NotFound) => return Err(TopicError::NotFound(name.clone())),
                Err(ml::OpenError::NotOwner) => {
                    self.doubt(name);
                    return Err(TopicError::NotReady);
                }
                Err(other) => return Err(TopicError::storage(&other)),
            }
        }
        Err(TopicError::Metadata(
            Code::CONFLICT,
            "the topic's namespace keeps changing; try again".to_owned(),
        ))
    }

    pub(crate) fn ledger_deps(&self, owner_epoch: OwnerEpoch, guard: Vec<Compare>) -> ml::Deps {
        let session = self.session.clone();
        ml::Deps {
            ledgers: self.ledgers.clone(),
            meta: self.gated.clone(),
            keys: self.keys.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            cache: self.cache.clone(),
            topic_ids: self.topic_ids.clone(),
            config: Arc::new(ml::Config {
                roll_bytes: self.config.ledger_size.0,
                roll_entries: self.config.ledger_entries,
                entry_bytes_max: self.config.max_message() + 64 * 1024,
                // The publish budget is the bound; the ledger's own must not be met before it.
                pending_bytes_max: usize::MAX,
                ..ml::Config::default()
            }),
            tier: self.tier.clone(),
            owner_epoch,
            guard,
            tombstones_left: self.sweeps.left.clone(),
            may_change: Arc::new(move || session.standing() == Standing::Held),
        }
    }

    /// Takes a topic off the list, if it is still this one.
    pub(crate) fn forget(&self, handle: &TopicHandle) {
        let mut topics = self.topics.lock();
        if matches!(topics.get(&**handle.name()), Some(Slot::Ready(other)) if other.is_same(handle)) {
            topics.remove(&**handle.name());
        }
    }

    /// The cursor log of a bundle that this broker owns.
    pub(crate) async fn cursor_log_under(&self, grant: &Grant) -> Result<CursorLog, TopicError> {
        let mut logs = self.cursor_logs.lock().await;
        let current = logs.get(&grant.bundle);
        if let Some((_, log)) = current.filter(|(epoch, log)| *epoch == grant.epoch.0 && !log.has_failed()) {
            return Ok(log.clone());
        }
        let deps = cursor::Deps {
            ledgers: self.ledgers.clone(),
            metadata: self.gated.clone(),
            keys: (*self.keys).clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            rng: Arc::new(Mutex::new(Rng::from_system())),
            guard: grant.guard.clone(),
            owner_epoch: grant.epoch,
            tombstones_left: self.sweeps.left.clone(),
            tombstone: ml::record::encode_tombstone,
            config: cursor::Config {
                ledger_bytes_max: self.config.cursor_ledger_size.0,
                ..cursor::Config::default()
            },
        };
        let log = CursorLog::open(deps, &grant.bundle).await.map_err(|error| TopicError::storage(&error))?;
        logs.insert(grant.bundle.clone(), (grant.epoch.0, log.clone()));
        Ok(log)
    }

    pub(crate) fn policies(&self, name: &TopicName) -> Result<Arc<crate::namespace::Policies>, TopicError> {
        self.namespaces.policies(name.namespace()).ok_or_else(|| TopicError::NamespaceNotFound(name.clone()))
    }

    /// Whether first use may make this topic.
    fn creation(&self, name: &TopicName) -> Result<bool, TopicError> {
        let rule = self.namespaces.auto_creation(name.namespace()).map_err(|error| refusal(name, error))?;
        // A partition of a partitioned topic is part of what was created already.
        Ok(rule.allowed || (name.partition_index().is_some() && self.namespaces.check_load(name).is_ok()))
    }

    /// Refuses a topic whose namespace is not there.
    pub(crate) async fn check_namespace(&self, name: &TopicName) -> Result<(), TopicError> {
        self.policies(name).map(drop)
    }

    /// Partitions of a topic, 0 for a plain one.
    pub(crate) async fn partitions(&self, name: &TopicName, may_create: bool) -> Result<u32, TopicError> {
        self.namespaces.partition_metadata(name, may_create).await.map_err(|error| refusal(name, error))
    }

    /// Names of a namespace's topics.
    pub(crate) async fn topics_of(
        &self,
        namespace: &NamespaceName,
        mode: DomainMode,
    ) -> Result<Vec<TopicName>, NamespaceError> {
        self.namespaces.topics(namespace, mode).await
    }

    /// Whether first use may make a subscription of this topic.
    pub(crate) fn may_create_subscription(&self, name: &TopicName) -> bool {
        let topic = self.namespaces.topic_record(name).and_then(|r| r.policies.auto_subscription_creation);
        let namespace = || {
            let policies = self.namespaces.policies(name.namespace())?;
            policies.auto_subscription_creation.as_ref().map(|own| own.allow_auto_subscription_creation)
        };
        topic.or_else(namespace).unwrap_or(self.namespaces.defaults().auto_subscription_creation)
    }

    /// The schema strategy of a topic, and whether producers may add versions.
    pub(crate) fn schema_rules(&self, name: &TopicName) -> (SchemaCompatibility, bool) {
        let policies = self.namespaces.policies(name.namespace());
        let topic = self.namespaces.topic_record(&name.base()).and_then(|r| r.policies.schema_compatibility);
        let own = topic.or(policies.as_ref().map(|p| p.schema_compatibility_strategy));
        let strategy =
            own.filter(|s| *s != SchemaCompatibility::Undefined).unwrap_or(SchemaCompatibility::Full);
        (strategy, policies.and_then(|p| p.is_allow_auto_update_schema).unwrap_or(true))
    }

    /// Whether producers without a schema are kept off topics that have one.
    pub(crate) fn schema_validation_enforced(&self, name: &TopicName) -> bool {
        let topic = self.namespaces.topic_record(&name.base());
        let own = topic.and_then(|r| r.policies.schema_validation_enforced);
        let shared = || self.namespaces.policies(name.namespace()).map(|p| p.schema_validation_enforced);
        own.or_else(shared).unwrap_or(false)
    }

    /// What policies limit on a topic; the topic's own come first. 0 is unbounded.
    pub(crate) fn topic_limits(&self, name: &TopicName) -> TopicLimits {
        let Some(ns) = self.namespaces.policies(name.namespace()) else { return TopicLimits::default() };
        let record = self.namespaces.topic_record(&name.base());
        let topic = record.as_ref().map(|r| &r.policies);
        let limit = |own: Option<i32>, shared: Option<i32>| {
            own.or(shared).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)
        };
        TopicLimits {
            producers_max: limit(topic.and_then(|t| t.max_producers), ns.max_producers_per_topic),
            consumers_max: limit(topic.and_then(|t| t.max_consumers), ns.max_consumers_per_topic),
            consumers_per_subscription_max: limit(
                topic.and_then(|t| t.max_consumers_per_subscription),
                ns.max_consumers_per_subscription,
            ),
            subscriptions_max: limit(topic.and_then(|t| t.max_subscriptions), ns.max_subscriptions_per_topic),
            encryption_required: ns.encryption_required,
        }
    }

    /// The dispatchers' settings on a topic: the topic's own limits first, then the namespace's, then the broker's.
    pub(crate) fn dispatch(&self, name: &TopicName) -> crate::dispatch::DispatchConfig {
        let defaults = self.config.dispatch();
        let record = self.namespaces.topic_record(&name.base());
        let topic = record.as_ref().map(|r| &r.policies);
        let ns = self.namespaces.policies(name.namespace());
        let limit = |own: Option<i32>, shared: Option<i32>, default: u32| {
            own.or(shared).map_or(default, |n| u32::try_from(n).unwrap_or(0))
        };
        crate::dispatch::DispatchConfig {
            unacked_messages_per_consumer_max: limit(
                topic.and_then(|t| t.max_unacked_on_consumer),
                ns.as_ref().and_then(|n| n.max_unacked_messages_per_consumer),
                defaults.unacked_messages_per_consumer_max,
            ),
            unacked_messages_per_subscription_max: limit(
                topic.and_then(|t| t.max_unacked_on_subscription),
                ns.as_ref().and_then(|n| n.max_unacked_messages_per_subscription),
                defaults.unacked_messages_per_subscription_max,
            ),
            ..defaults
        }
    }

    /// The bound on publishing to a topic: its own, else the namespace's for this cluster.
    pub(crate) fn publish_rate(&self, name: &TopicName) -> Option<PublishRate> {
        let topic = self.namespaces.topic_record(&name.base());
        let own = topic.and_then(|r| r.policies.publish_rate);
        let shared = || {
            let policies = self.namespaces.policies(name.namespace())?;
            policies.publish_max_message_rate.get(&self.config.cluster).copied()
        };
        own.or_else(shared)
    }

    /// What the lifecycle engine of a topic goes by: the topic's own policies first, then the namespace's.
    pub(crate) fn lifecycle_rules(&self, name: &TopicName) -> Rules {
        let record = self.namespaces.topic_record(&name.base());
        let topic = record.as_ref().map(|r| &r.policies);
        let ns = self.namespaces.policies(name.namespace());
        let ttl = topic.and_then(|t| t.message_ttl_seconds);
        let ttl = ttl.or(ns.as_ref().and_then(|n| n.message_ttl_in_seconds));
        let quota = |kind: BacklogQuotaType| {
            let own = topic.and_then(|t| t.backlog_quotas.get(&kind));
            own.or(ns.as_ref().and_then(|n| n.backlog_quota_map.get(&kind))).cloned()
        };
        let limited =
            |limit: Option<u64>, policy| limit.map(|limit| Quota { limit, policy: policy_or_hold(policy) });
        let size = quota(BacklogQuotaType::DestinationStorage);
        let age = quota(BacklogQuotaType::MessageAge);
        Rules {
            ttl_ms: ttl.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0).map(|s| s * 1000),
            // Below zero is unbounded; an age of zero is, too.
            size: size.and_then(|q| limited(u64::try_from(q.limit_size).ok(), q.policy)),
            age: age.and_then(|q| {
                let seconds = u64::try_from(q.limit_time).ok().filter(|s| *s > 0);
                limited(seconds.map(|s| s * 1000), q.policy)
            }),
            retention: self.retention(name),
        }
    }

    /// How long acknowledged messages of a topic are kept.
    pub(crate) fn retention(&self, name: &TopicName) -> ml::Retention {
        let record = self.namespaces.topic_record(&name.base());
        let own = record.and_then(|r| r.policies.retention);
        let kept = own.or_else(|| self.namespaces.policies(name.namespace())?.retention_policies);
        let Some(kept) = kept else { return ml::Retention::NONE };
        // Below zero is for ever.
        let ms = u64::try_from(kept.time_minutes).ok().map(|minutes| minutes * 60_000);
        let bytes = u64::try_from(kept.size_mb).ok().map(|mb| mb << 20);
        ml::Retention { time_ms: ms, size_bytes: bytes }
    }
}

/// Tells loaded topics when some policy has changed; many changes in one moment are told once.
async fn tell_of_policies(broker: Arc<Broker>) {
    const SETTLE: Duration = Duration::from_millis(20);
    let (mut changes, stop) = (broker.namespaces.changes(), broker.tasks.token());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(SETTLE).await;
        changes.borrow_and_update();
        broker.loaded().into_iter().for_each(|topic| topic.put(Message::PoliciesChanged));
    }
}

/// A quota without a policy holds producers, as Pulsar's default does.
fn policy_or_hold(policy: Option<QuotaPolicy>) -> QuotaPolicy {
    policy.unwrap_or(QuotaPolicy::ProducerRequestHold)
}

/// A refusal of the control plane as one of a topic.
pub(crate) fn refusal(name: &TopicName, error: NamespaceError) -> TopicError {
    match error {
        NamespaceError::NamespaceNotFound(_)
        | NamespaceError::TenantNotFound(_)
        | NamespaceError::NamespaceDeleting(_) => TopicError::NamespaceNotFound(name.clone()),
        NamespaceError::Resolve(ResolveError::NotFound(_)) => TopicError::NotFound(name.clone()),
        NamespaceError::Resolve(error) => TopicError::NotAllowed(error.to_string()),
        NamespaceError::TooManyTopics(_) => TopicError::NotAllowed(error.to_string()),
        NamespaceError::Metadata(error) => TopicError::metadata(&error),
        NamespaceError::Decode(_) => TopicError::Metadata(Code::RECORD_UNREADABLE, error.to_string()),
        other => TopicError::Metadata(Code::CONFLICT, other.to_string()),
    }
}

#[cfg(test)]
#[path = "broker_tests.rs"]
mod tests;
