//! A bookie as a process of a cluster: store, service, registration, liveness.
//!
//! Start: the store opens; its address is bound; the cluster's record of it is compared with what its disk says
//! ([`registration`]); the service answers; the liveness key appears. Stop: the liveness key goes first, so that nobody places
//! ledgers here; streams end once what is open has been answered; the store closes.
//!
//! | file | what it holds |
//! |---|---|
//! | `registration` | the record `b/{id}`: what a start may find there and what follows (pure), and the transaction |
//! | `news` | what is told in that record later: damage, room on the disk |
//! | `liveness` | the leased key `live/b/{id}`, kept by a thread of its own |

mod liveness;
mod news;
pub mod registration;

use crate::service::{self, Service};
use crate::{Bookie, Health, OpenError};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::registry::record::{BookieRecord, Labels, LiveRecord, NodeState};
use geminga_bookie_client::registry::{Registry, View};
use geminga_common::clock::Clock;
use geminga_common::disk::Disk;
use geminga_common::error::{Code, Coded};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store.
    pub store: crate::Config,
    /// Its service.
    pub service: service::Config,
    /// Address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// `host:port` that others reach it by. `None`: the address it listens on.
    pub advertised: Option<String>,
    /// Where it stands.
    pub labels: Labels,
    /// Size of its data volume in bytes, 0 when not known.
    pub capacity_bytes: u64,
    /// Life of its lease. Default 10 s, 1 s to 60 s. Shorter notices death sooner and stalls too.
    pub lease_ttl: Duration,
}

impl Config {
    /// Defaults for a store, listening on the loopback.
    #[must_use]
    pub fn new(store: crate::Config) -> Self {
        Self {
            service: service::Config::new(&store),
            store,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertised: None,
            labels: Labels::default(),
            capacity_bytes: 0,
            lease_ttl: Duration::from_secs(10),
        }
    }
}

/// What a node is given.
#[derive(Clone)]
pub struct Parts {
    /// Cluster metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// Disk.
    pub disk: Arc<dyn Disk>,
    /// Clock.
    pub clock: Arc<dyn Clock>,
}

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The store did not open.
    #[error("opening the store: {0}")]
    Open(#[from] OpenError),
    /// It cannot listen there.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// Another process lives under this name, with another store.
    #[error("another bookie named {0} is alive, with another store; give this one a name of its own")]
    NameTaken(String),
    /// The store is known to the cluster under another name.
    #[error(
        "the data directory holds the store of bookie {other}, not of {id}: were directories swapped, or was the name changed? \
         Put this bookie's own directory back, or start it as {other}; nothing was registered"
    )]
    OtherBookie {
        /// Who started.
        id: String,
        /// Whose store it is.
        other: String,
    },
    /// The cluster has given this store up: ledgers no longer count on it.
    #[error("the cluster has given up the store of bookie {0}; start it with an empty data directory")]
    Retired(String),
    /// The record in metadata cannot be read.
    #[error("the record of bookie {0} in metadata cannot be read; it may be of a newer version")]
    Record(String),
    /// Metadata refuses.
    #[error(transparent)]
    Metadata(#[from] MetaError),
    /// A write or sync failed: the store takes nothing any more.
    #[error("the store has failed; see the log, repair the volume, start again")]
    Failed,
    /// The store lost something, and the cluster has let go of what it was: it may start again as another.
    #[error("the cluster has let go of the damaged store; it becomes a new one")]
    Released,
    /// Told to stop before it was ready.
    #[error("stopped before it was ready")]
    Stopped,
    /// The service ended.
    #[error("the service ended: {0}")]
    Service(String),
}

impl Coded for NodeError {
    fn code(&self) -> Code {
        match self {
            Self::Open(error) => error.code(),
            Self::Listen { .. } => Code::PORT_IN_USE,
            Self::OtherBookie { .. } => Code::DATA_DIRECTORY_FOREIGN,
            Self::NameTaken(_) => Code::BOOKIE_NAME_TAKEN,
            Self::Retired(_) => Code::BOOKIE_RETIRED,
            Self::Record(_) => Code::FORMAT_TOO_NEW,
            Self::Metadata(_) => Code::METADATA_UNAVAILABLE,
            Self::Failed => Code::DISK_FAILED,
            Self::Released => Code::DATA_LOSS,
            Self::Stopped => Code::SHUTTING_DOWN,
            Self::Service(_) => Code::INTERNAL,
        }
    }
}

/// How long open calls may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long to wait for a store that somebody still holds.
const RENEW_PAUSE: Duration = Duration::from_millis(100);
/// How long threads may take to end.
const STOP: Duration = Duration::from_secs(5);

/// A running node.
pub struct Node {
    bookie: Bookie,
    address: SocketAddr,
    state: NodeState,
    liveness: liveness::Liveness,
    service_tasks: TaskGroup,
    storage_tasks: TaskGroup,
    ended: watch::Receiver<Option<String>>,
    registry: Registry,
}

/// Runs a node until it is told to stop or fails; `ready` is called each time it serves: a store that lost something becomes another
/// one once the cluster has let go of what it was.
///
/// # Errors
/// It did not start, or its store failed.
pub async fn run(
    config: Config,
    parts: Parts,
    ready: impl Fn(&Node),
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    loop {
        let started = tokio::select! {
            node = Node::start(config.clone(), parts.clone()) => node,
            () = shutdown.cancelled() => return Err(NodeError::Stopped),
        };
        let end = match started {
            Ok(node) => {
                ready(&node);
                let end = tokio::select! {
                    () = shutdown.cancelled() => Ok(()),
                    error = node.failure() => Err(error),
                };
                node.stop().await;
                end
            }
            Err(error) => Err(error),
        };
        match end {
            Err(NodeError::Released) => renew(&config.store, &parts).await?,
            end => return end,
        }
    }
}

/// Gives a store that lost something a new incarnation, with all of it that can be read.
async fn renew(config: &crate::Config, parts: &Parts) -> Result<(), NodeError> {
    // Whoever still holds the store that was open lets go of it soon.
    let mut left = DRAIN.as_millis() / RENEW_PAUSE.as_millis();
    loop {
        let (tasks, config) = (TaskGroup::new(), config.clone());
        let (disk, clock) = (parts.disk.clone(), parts.clock.clone());
        match on_thread(&tasks, "bookie-renew", move || crate::promote(config, disk, clock)).await {
            Err(OpenError::InUse) if left > 0 => {
                left -= 1;
                tokio::time::sleep(RENEW_PAUSE).await;
            }
            renewed => {
                let incarnation = renewed?;
                tracing::warn!(%incarnation, "the store starts again as a new one, with what can be read of the old one");
                return Ok(());
            }
        }
    }
}

impl Node {
    /// Starts a node; it serves and is registered when this answers. Waits for metadata for as long as that is away.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(config: Config, parts: Parts) -> Result<Self, NodeError> {
        let (service_tasks, storage_tasks) = (TaskGroup::new(), TaskGroup::new());
        let started = Self::start_in(config, parts, service_tasks.clone(), storage_tasks.clone()).await;
        if started.is_err() {
            service_tasks.stop();
            storage_tasks.stop();
            storage_tasks.join(STOP).await;
        }
        started
    }

    async fn start_in(
        config: Config,
        parts: Parts,
        service_tasks: TaskGroup,
        storage_tasks: TaskGroup,
    ) -> Result<Self, NodeError> {
        let bookie = open(&config.store, &parts, &storage_tasks).await?;
        let listen = |error| NodeError::Listen { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let advertised = config.advertised.clone().unwrap_or_else(|| address.to_string());
        let keys = Keys::new(&config.store.cluster);
        let mine = BookieRecord {
            incarnation: bookie.incarnation(),
            boot: bookie.boot(),
            address: advertised.clone(),
            labels: config.labels.clone(),
            state: NodeState::ReadWrite,
            capacity_bytes: config.capacity_bytes,
            damage: *bookie.damage().borrow(),
            room: *bookie.room().borrow(),
        };
        let mine =
            registration::Mine { data_loss: *bookie.health().borrow() == Health::DataLoss, record: mine };
        let live = LiveRecord {
            incarnation: bookie.incarnation(),
            address: advertised,
            process: Rng::from_system().next_u64(),
        };
        registration::wait_for_name(&*parts.metadata, &keys, bookie.id(), &live, config.lease_ttl).await?;
        let state = registration::register(&*parts.metadata, &keys, bookie.id(), &mine).await?;
        if state == NodeState::DataLoss {
            bookie.declare_data_loss();
        }
        // Copies for repair come from the other bookies.
        let registry = Registry::start(parts.metadata.clone(), keys.clone(), &service_tasks).await?;
        let calls = grpc::Config::new(&config.store.cluster, bookie.id().as_str());
        let peers = GrpcBookies::new(calls, registry.resolve(), service_tasks.clone());
        let service = Service::new(
            bookie.clone(),
            &config.store.cluster,
            config.service,
            Arc::new(peers),
            service_tasks.clone(),
        );
        let (tell, ended) = watch::channel(None);
        service_tasks.spawn("bookie-service", OnFailure::StopProcess, async move {
            let why = service.serve(listener).await.err().map(|error| error.to_string());
            tell.send_replace(Some(why.unwrap_or_else(|| "stopped".to_owned())));
        });
        news::keep_told(parts.metadata.clone(), keys.clone(), &bookie, &service_tasks);
        let key = keys.live_bookie(bookie.id());
        let liveness =
            liveness::Liveness::start(parts.metadata, key, live.encode(), config.lease_ttl, &storage_tasks);
        Ok(Self { bookie, address, state, liveness, service_tasks, storage_tasks, ended, registry })
    }

    /// Its store.
    #[must_use]
    pub fn bookie(&self) -> &Bookie {
        &self.bookie
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The state it registered with.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.state
    }

    /// Waits until the node can go on no longer.
    pub async fn failure(&self) -> NodeError {
        let (mut health, mut ended) = (self.bookie.health(), self.ended.clone());
        let (id, incarnation) = (self.bookie.id(), self.bookie.incarnation());
        let let_go = |view: &View| {
            let record = view.bookies.get(id).and_then(|known| known.record.as_ref());
            record.is_some_and(|r| r.incarnation == incarnation && r.state == NodeState::Lost)
        };
        let released = async {
            if self.state != NodeState::DataLoss || self.registry.until(let_go).await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = released => NodeError::Released,
            _ = health.wait_for(|health| *health == Health::Failed) => NodeError::Failed,
            ended = ended.wait_for(Option::is_some) => {
                NodeError::Service(ended.ok().and_then(|why| why.clone()).unwrap_or_default())
            }
        }
    }

    /// Stops in order; each phase has a deadline, and what is late is named.
    pub async fn stop(self) {
        self.liveness.end(DRAIN).await;
        self.service_tasks.stop();
        for late in self.service_tasks.join(DRAIN).await {
            tracing::warn!(task = %late, "still running at the deadline");
        }
        self.storage_tasks.stop();
        for late in self.storage_tasks.join(STOP).await {
            tracing::warn!(task = %late, "still running at the deadline");
        }
    }
}

/// A node that is dropped ends at once, as if killed: what is open is not waited for.
impl Drop for Node {
    fn drop(&mut self) {
        self.service_tasks.stop();
        self.storage_tasks.stop();
    }
}

/// Opens the store on a thread: it blocks on the disk until the journal is replayed.
async fn open(config: &crate::Config, parts: &Parts, tasks: &TaskGroup) -> Result<Bookie, NodeError> {
    let (config, disk, clock) = (config.clone(), parts.disk.clone(), parts.clock.clone());
    let group = tasks.clone();
    Ok(on_thread(tasks, "bookie-open", move || Bookie::open(config, disk, clock, &group)).await?)
}

/// Runs what blocks on the disk. Nobody waits any more when the start was given up; the store then closes with its group.
async fn on_thread<T: Send + 'static>(
    tasks: &TaskGroup,
    name: &'static str,
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let (tell, told) = oneshot::channel();
    tasks.thread(name, OnFailure::StopProcess, move || drop(tell.send(work())));
    told.await.unwrap_or_else(|_| Err(OpenError::Disk(std::io::Error::other("the thread ended"))))
}
