//! [`BookieRpc`] over gRPC: what reaches bookies that are processes of their own.
//!
//! | file | what it holds |
//! |---|---|
//! | [`table`] | the bytes of batches: many adds, or many entries, in one message |
//! | [`convert`] | words of the wire and words of the room |
//! | [`health`] | which bookies are slow |
//! | [`connect`] | how connections are made |
//! | `window` | adds queued, in flight, answered: a machine |
//! | `lane` | one stream to one bookie, opened again when it breaks |
//! | `adds`, `reads` | what travels on lanes |
//! | `control` | unary calls |
//!
//! Three connections for each bookie: adds, reads (a stream for each class), control. Adds for one ledger go over one stream, so they
//! arrive in call order; every add is answered once, by the bookie, by its deadline or by the end of its stream.

mod adds;
pub mod connect;
mod control;
pub mod convert;
pub mod health;
mod lane;
mod reads;
pub mod table;
mod window;

use crate::rpc::{
    Add, AddDone, BookieRef, BookieRpc, ControlError, Doubt, IdRange, LedgerStat, Presence, Read, ReadAnswer,
    ReadClass, Replicate, ReplicateError, Replicated, Tail,
};
use adds::Adds;
use connect::Connector;
use control::Control;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use geminga_common::ids::{BookieId, EntryId, LedgerId, Term};
use geminga_common::retry::Backoff;
use geminga_common::tasks::TaskGroup;
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{Hello, Welcome};
use health::Health;
use lane::Lane;
use parking_lot::{Mutex, RwLock};
use reads::Reads;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tonic::transport::Channel;

/// The protocol version this build speaks, lowest and highest.
pub const PROTOCOL: u32 = 1;
/// HTTP/2 window of a stream, in bytes.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// HTTP/2 window of a connection, in bytes.
pub const CONNECTION_WINDOW: u32 = 32 << 20;
/// Largest message taken from a bookie: a tail with many runs, or one large entry.
const MESSAGE_MAX: usize = 64 << 20;
/// An unanswered ping of this age ends a connection.
const PING: Duration = Duration::from_secs(4);

/// Tells where a bookie is, `host:port`; `None` while nobody knows. Asked at every connection.
pub type Resolve = Arc<dyn Fn(&BookieId) -> Option<String> + Send + Sync>;

/// Settings of the transport.
#[derive(Clone, Debug)]
pub struct Config {
    /// Cluster; a bookie of another one refuses.
    pub cluster: String,
    /// Who calls, for the bookies' logs.
    pub client: String,
    /// Time from an add's call to `Unknown`. Default 3 s. Shorter replaces bookies that only breathe in, longer holds publishers up.
    pub add_deadline: Duration,
    /// Time from a read's call to `Unknown`. Default 10 s.
    pub read_deadline: Duration,
    /// Time from a control call to `Unknown`. Default 10 s.
    pub control_deadline: Duration,
    /// Time for a connection and its hello. Default 2 s.
    pub connect_timeout: Duration,
    /// Bytes queued and in flight for one bookie; what is above is refused, and its writer looks for another bookie. Default 128 MiB. Must be
    /// above what the owner lets publishers have in flight, or a burst looks like a slow bookie.
    pub window_bytes: usize,
    /// A batch of adds is closed at this many bytes. Default 512 KiB, 64 KiB to 4 MiB.
    pub batch_bytes: usize,
    /// Reads of one class waiting for one bookie; more are `Unknown`. Default 4096.
    pub reads_waiting_max: usize,
    /// Pauses between attempts to reach a bookie. Default 50 ms, doubled up to 2 s.
    pub backoff: Backoff,
    /// Makes connections; `None`: TCP.
    pub connector: Option<Connector>,
    /// Seed of what is random in the pauses; `None` takes the system's randomness.
    pub seed: Option<u64>,
}

impl Config {
    /// Defaults for a client of this cluster.
    #[must_use]
    pub fn new(cluster: &str, client: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            client: client.to_owned(),
            add_deadline: Duration::from_secs(3),
            read_deadline: Duration::from_secs(10),
            control_deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            window_bytes: 128 << 20,
            batch_bytes: 512 << 10,
            reads_waiting_max: 4096,
            backoff: Backoff {
                first: Duration::from_millis(50),
                max: Duration::from_secs(2),
                attempts_max: None,
            },
            connector: None,
            seed: None,
        }
    }
}

/// What the parts of one transport share.
struct Shared {
    config: Config,
    resolve: Resolve,
    tasks: TaskGroup,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn hello(&self, bookie: &BookieId) -> Hello {
        Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            cluster: self.config.cluster.clone(),
            bookie: bookie.as_str().to_owned(),
            client: self.config.client.clone(),
            features: Vec::new(),
            read_class: 0,
        }
    }

    fn check(&self, bookie: &BookieId, welcome: &Welcome) -> Result<(), String> {
        if welcome.protocol != PROTOCOL {
            return Err(format!("it speaks protocol {}", welcome.protocol));
        }
        if welcome.cluster != self.config.cluster || welcome.bookie != bookie.as_str() {
            return Err(format!("bookie {} of cluster {} is there", welcome.bookie, welcome.cluster));
        }
        Ok(())
    }

    fn client(&self, channel: Channel) -> BookieClient<Channel> {
        BookieClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(usize::MAX)
    }
}

/// A connection to one bookie, made when first used, made again when it breaks or the bookie moves.
struct Endpoint {
    id: BookieId,
    made: Mutex<Option<(String, Channel)>>,
}

impl Endpoint {
    fn new(id: &BookieId) -> Arc<Self> {
        Arc::new(Self { id: id.clone(), made: Mutex::new(None) })
    }

    fn channel(&self, shared: &Shared) -> Result<Channel, String> {
        let address = (shared.resolve)(&self.id).ok_or("nobody knows where it is")?;
        let mut made = self.made.lock();
        if let Some((_, channel)) = made.as_ref().filter(|(of, _)| *of == address) {
            return Ok(channel.clone());
        }
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| format!("{address} is no address"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_timeout(shared.config.connect_timeout)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let _entered = shared.runtime.enter();
        let channel = match &shared.config.connector {
            Some(connector) => endpoint.connect_with_connector_lazy(connector.clone()),
            None => endpoint.connect_lazy(),
        };
        *made = Some((address, channel.clone()));
        Ok(channel)
    }
}

/// Everything about one bookie.
struct Pair {
    adds: Arc<Lane<Adds>>,
    reads: Arc<Endpoint>,
    lanes: [OnceLock<Arc<Lane<Reads>>>; 3],
    control: Arc<Endpoint>,
}

impl Pair {
    fn reads(&self, shared: &Arc<Shared>, class: ReadClass) -> &Arc<Lane<Reads>> {
        let at = match class {
            ReadClass::Tail => 0,
            ReadClass::CatchUp => 1,
            ReadClass::Repair => 2,
        };
        self.lanes[at].get_or_init(|| {
            let reads = Reads::new(class, shared.config.reads_waiting_max);
            Lane::start(shared, self.reads.clone(), reads)
        })
    }
}

/// Bookies over gRPC. Cheap to clone; ends with its task group, after which everything is `Unknown`.
#[derive(Clone)]
pub struct GrpcBookies {
    shared: Arc<Shared>,
    pairs: Arc<RwLock<HashMap<BookieId, Arc<Pair>>>>,
    health: Arc<Health>,
}

impl GrpcBookies {
    /// A transport whose tasks run in `tasks` on the current runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn new(config: Config, resolve: Resolve, tasks: TaskGroup) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared { config, resolve, tasks, runtime });
        Self { shared, pairs: Arc::default(), health: Arc::default() }
    }

    /// Which bookies are slow, as adds of this transport tell.
    #[must_use]
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    fn pair(&self, id: &BookieId) -> Arc<Pair> {
        if let Some(pair) = self.pairs.read().get(id) {
            return pair.clone();
        }
        let mut pairs = self.pairs.write();
        let make = || {
            let config = &self.shared.config;
            let limits = window::Limits {
                batch: config.batch_bytes,
                window: config.window_bytes,
                deadline: config.add_deadline,
            };
            let adds = Adds::new(limits, id.clone(), self.health.clone());
            Arc::new(Pair {
                adds: Lane::start(&self.shared, Endpoint::new(id), adds),
                reads: Endpoint::new(id),
                lanes: Default::default(),
                control: Endpoint::new(id),
            })
        };
        pairs.entry(id.clone()).or_insert_with(make).clone()
    }

    fn control<T: Send + 'static, F: Future<Output = Result<T, ControlError>> + Send + 'static>(
        &self,
        to: &BookieRef,
        call: impl FnOnce(Control) -> F,
    ) -> BoxFuture<'static, Result<T, ControlError>> {
        match Control::new(&self.shared, &self.pair(&to.id).control) {
            Some(control) => call(control).boxed(),
            None => ready(Err(ControlError::Unknown("nobody knows where the bookie is"))).boxed(),
        }
    }
}

impl BookieRpc for GrpcBookies {
    fn add(&self, to: &BookieRef, add: Add, done: AddDone) {
        let incarnation = to.incarnation;
        self.pair(&to.id).adds.offer(|adds, reachable| adds.offer(incarnation, add, done, reachable));
    }

    fn read(&self, to: &BookieRef, read: Read) -> BoxFuture<'static, ReadAnswer> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let incarnation = to.incarnation;
        let pair = self.pair(&to.id);
        pair.reads(&self.shared, read.class)
            .offer(|reads, reachable| reads.offer(incarnation, read, answer, reachable));
        let deadline = self.shared.config.read_deadline;
        async move {
            let unreachable = ReadAnswer::Unknown(Doubt::Unreachable);
            match tokio::time::timeout(deadline, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => unreachable,
            }
        }
        .boxed()
    }

    fn fence_tail(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> BoxFuture<'static, Result<Tail, ControlError>> {
        let incarnation = to.incarnation;
        self.control(to, move |control| control.fence_tail(incarnation, ledger, term, from))
    }

    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        let incarnation = to.incarnation;
        self.control(to, move |control| control.seal(incarnation, ledger, last))
    }

    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>> {
        let incarnation = to.incarnation;
        self.control(to, move |control| control.delete(incarnation, ledger))
    }

    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>> {
        let incarnation = to.incarnation;
        self.control(to, move |control| control.stat(incarnation, ledger))
    }

    fn replicate(
        &self,
        to: &BookieRef,
        request: Replicate,
    ) -> BoxFuture<'static, Result<Replicated, ReplicateError>> {
        match Control::new(&self.shared, &self.pair(&to.id).control) {
            Some(control) => control.replicate(to.incarnation, &request).boxed(),
            None => ready(Err(ControlError::Unknown("nobody knows where the bookie is").into())).boxed(),
        }
    }

    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>> {
        let incarnation = to.incarnation;
        self.control(to, move |control| control.presence(incarnation, ledger, ids))
    }
}
