//! One connection to a broker, shared by many producers and consumers, and the pool that hands connections out.
//!
//! Owner: a reader task cuts frames and calls the producer or consumer concerned, in order and without a queue between; a
//! writer task sends whatever has been put into the output buffer. The buffer is bounded by what its writers may have
//! outstanding: the windows of the producers, and acks and permits of what the consumers received.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use geminga_common::tasks::{OnFailure, TaskGroup};
use geminga_proto::decode::decode_command;
use geminga_proto::encode::{encode_command, pong};
use geminga_proto::frame::{Frame, FrameLimits, next_frame};
use geminga_proto::pulsar::{
    BaseCommand, CommandConnect, CommandMessage, CommandSendError, CommandSendReceipt, FeatureFlags,
    base_command::Type,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

/// The newest protocol version whose commands this client can take.
const PROTOCOL_VERSION: i32 = 20;
/// Slot of the CONNECT among the requests that wait; real request ids start above.
const CONNECT_REQUEST: u64 = 0;
/// Bytes asked for at each read.
const READ_CHUNK: usize = 256 * 1024;
/// Largest message of a broker that names no limit, in bytes: Pulsar's default.
const MESSAGE_MAX_DEFAULT: usize = 5 << 20;
/// Longest wait for the answer to a request.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Takes the reason for which a run cannot go on; only the first one counts.
pub(crate) type FailureSender = mpsc::Sender<String>;

/// What a connection tells a producer.
pub(crate) trait ReceiptSink: Send + Sync {
    /// An entry is on stable storage. An error closes the connection.
    fn receipt(&self, receipt: &CommandSendReceipt) -> Result<()>;
    /// An entry was refused. An error closes the connection.
    fn refused(&self, error: &CommandSendError) -> Result<()>;
}

/// What a connection tells a consumer.
pub(crate) trait MessageSink: Send + Sync {
    /// An entry arrived. An error closes the connection.
    fn message(&self, connection: &Connection, message: &CommandMessage, rest: Bytes) -> Result<()>;
}

#[derive(Default)]
struct Sinks {
    producers: HashMap<u64, Arc<dyn ReceiptSink>>,
    consumers: HashMap<u64, Arc<dyn MessageSink>>,
}

/// One connection.
pub(crate) struct Connection {
    out: Mutex<BytesMut>,
    wake: Notify,
    waiting: Mutex<HashMap<u64, oneshot::Sender<BaseCommand>>>,
    sinks: Mutex<Sinks>,
    next_id: AtomicU64,
    /// Largest message the broker takes, in bytes, once it has said so.
    message_max: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Connection {
    /// Connects and shakes hands. `broker` is named when `address` is a proxy in front of it.
    async fn open(
        address: &str,
        broker: Option<&str>,
        tasks: &TaskGroup,
        failure: FailureSender,
    ) -> Result<Arc<Self>> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let connection = Arc::new(Self {
            out: Mutex::default(),
            wake: Notify::new(),
            waiting: Mutex::default(),
            sinks: Mutex::default(),
            next_id: AtomicU64::new(CONNECT_REQUEST + 1),
            message_max: AtomicUsize::new(MESSAGE_MAX_DEFAULT),
        });
        tasks.spawn("perf-reader", OnFailure::StopProcess, {
            let (connection, failure, address) = (connection.clone(), failure.clone(), address.to_owned());
            async move {
                let why = connection.read_frames(reader).await.err();
                let why = why.unwrap_or_else(|| anyhow!("closed by the broker"));
                connection.close(&failure, format!("connection to {address}: {why:#}"));
            }
        });
        tasks.spawn("perf-writer", OnFailure::StopProcess, {
            let (connection, address) = (connection.clone(), address.to_owned());
            async move {
                if let Err(why) = connection.write_frames(writer).await {
                    connection.close(&failure, format!("connection to {address}: {why:#}"));
                }
            }
        });
        let connect = CommandConnect {
            client_version: format!("geminga-perf-{}", env!("CARGO_PKG_VERSION")),
            protocol_version: Some(PROTOCOL_VERSION),
            proxy_to_broker_url: broker.map(str::to_owned),
            feature_flags: Some(FeatureFlags::default()),
            ..CommandConnect::default()
        };
        let command = BaseCommand {
            r#type: Type::Connect as i32,
            connect: Some(Box::new(connect)),
            ..Default::default()
        };
        let answer = connection.exchange(CONNECT_REQUEST, &command).await?;
        let Some(connected) = &answer.connected else {
            bail!("{address} refused the connection: {}", describe_error(&answer));
        };
        let limit = connected.max_message_size.and_then(|limit| usize::try_from(limit).ok());
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            connection.message_max.store(limit, Ordering::Relaxed);
        }
        Ok(connection)
    }

    /// Largest message that the broker takes, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.message_max.load(Ordering::Relaxed)
    }

    /// A fresh id, for requests, producers and consumers alike.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request that carries `request_id` and waits for the answer. An ERROR becomes an error.
    pub(crate) async fn request(&self, request_id: u64, command: &BaseCommand) -> Result<BaseCommand> {
        let answer = self.exchange(request_id, command).await?;
        if answer.error.is_some() {
            bail!("{}", describe_error(&answer));
        }
        Ok(answer)
    }

    async fn exchange(&self, request_id: u64, command: &BaseCommand) -> Result<BaseCommand> {
        let (answer, wait) = oneshot::channel();
        lock(&self.waiting).insert(request_id, answer);
        self.write(|out| encode_command(command, out));
        self.flush();
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, wait).await;
        lock(&self.waiting).remove(&request_id);
        answered.context("no answer within 30 s")?.context("the connection was lost")
    }

    /// Adds frames to the output without sending yet; [`Self::flush`] sends.
    pub(crate) fn write(&self, frames: impl FnOnce(&mut BytesMut)) {
        frames(&mut lock(&self.out));
    }

    /// Has the writer send what is in the output.
    pub(crate) fn flush(&self) {
        self.wake.notify_one();
    }

    /// Registers who takes the receipts of a producer id.
    pub(crate) fn add_producer(&self, id: u64, sink: Arc<dyn ReceiptSink>) {
        lock(&self.sinks).producers.insert(id, sink);
    }

    /// Registers who takes the messages of a consumer id.
    pub(crate) fn add_consumer(&self, id: u64, sink: Arc<dyn MessageSink>) {
        lock(&self.sinks).consumers.insert(id, sink);
    }

    fn close(&self, failure: &FailureSender, why: String) {
        // A full channel already holds an earlier reason.
        let _ = failure.try_send(why);
        lock(&self.waiting).clear();
        *lock(&self.sinks) = Sinks::default();
    }

    async fn write_frames(&self, mut writer: OwnedWriteHalf) -> Result<()> {
        loop {
            let mut bytes = lock(&self.out).split();
            if bytes.is_empty() {
                self.wake.notified().await;
                continue;
            }
            writer.write_all_buf(&mut bytes).await?;
        }
    }

    async fn read_frames(&self, mut reader: OwnedReadHalf) -> Result<()> {
        let mut buffer = BytesMut::with_capacity(READ_CHUNK);
        loop {
            while let Some(frame) = next_frame(&mut buffer, FrameLimits::default())? {
                self.handle(frame)?;
            }
            buffer.reserve(READ_CHUNK);
            if reader.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    fn handle(&self, frame: Frame) -> Result<()> {
        let command = decode_command(frame.command)?;
        if let Some(receipt) = &command.send_receipt {
            let sink = lock(&self.sinks).producers.get(&receipt.producer_id).cloned();
            return sink.map_or(Ok(()), |sink| sink.receipt(receipt));
        }
        if let Some(message) = &command.message {
            let sink = lock(&self.sinks).consumers.get(&message.consumer_id).cloned();
            return sink.map_or(Ok(()), |sink| sink.message(self, message, frame.rest));
        }
        if let Some(error) = &command.send_error {
            let sink = lock(&self.sinks).producers.get(&error.producer_id).cloned();
            return sink.map_or(Ok(()), |sink| sink.refused(error));
        }
        if command.ping.is_some() {
            self.write(pong);
            self.flush();
            return Ok(());
        }
        if command.close_producer.is_some() || command.close_consumer.is_some() {
            bail!("the broker closed a producer or consumer: its topic moves or was unloaded");
        }
        if let Some(id) = answered_request(&command)
            && let Some(waiting) = lock(&self.waiting).remove(&id)
        {
            // Nobody waits any more when the request timed out.
            let _ = waiting.send(command);
        }
        Ok(())
    }
}

/// The request that a command answers.
fn answered_request(command: &BaseCommand) -> Option<u64> {
    if command.connected.is_some() {
        return Some(CONNECT_REQUEST);
    }
    if let Some(error) = &command.error {
        // Failures before the handshake is over carry request id -1.
        return Some(if error.request_id == u64::MAX { CONNECT_REQUEST } else { error.request_id });
    }
    let success = command.success.as_ref().map(|c| c.request_id);
    success
        .or_else(|| command.producer_success.as_ref().map(|c| c.request_id))
        .or_else(|| command.lookup_topic_response.as_ref().map(|c| c.request_id))
        .or_else(|| command.partition_metadata_response.as_ref().map(|c| c.request_id))
}

/// The words of an ERROR command.
fn describe_error(command: &BaseCommand) -> String {
    match &command.error {
        Some(error) => format!("{}: {}", error.error().as_str_name(), error.message),
        None => format!("unexpected answer of type {}", command.r#type),
    }
}

/// Connections by broker and proxy, several per broker in turn.
pub(crate) struct Pool {
    service: String,
    per_broker: usize,
    tasks: TaskGroup,
    failure: FailureSender,
    open: HashMap<(String, Option<String>, usize), Arc<Connection>>,
    turn: usize,
}

impl Pool {
    /// A pool that starts from a service URL.
    pub(crate) fn new(
        url: &str,
        per_broker: usize,
        tasks: TaskGroup,
        failure: FailureSender,
    ) -> Result<Self> {
        let service = address(url)?;
        Ok(Self { service, per_broker, tasks, failure, open: HashMap::new(), turn: 0 })
    }

    /// The first connection to the service URL, for lookups.
    pub(crate) async fn service(&mut self) -> Result<Arc<Connection>> {
        let service = self.service.clone();
        self.get(service, None, 0).await
    }

    /// The first connection to another broker, for lookups it is to answer.
    pub(crate) async fn redirected(&mut self, url: &str) -> Result<Arc<Connection>> {
        self.get(address(url)?, None, 0).await
    }

    /// A connection to the broker at `url`, through the service URL if so asked.
    pub(crate) async fn broker(&mut self, url: &str, through_service: bool) -> Result<Arc<Connection>> {
        self.turn += 1;
        let nth = self.turn % self.per_broker;
        let broker = address(url)?;
        if through_service && broker != self.service {
            let service = self.service.clone();
            return self.get(service, Some(broker), nth).await;
        }
        self.get(broker, None, nth).await
    }

    async fn get(&mut self, to: String, broker: Option<String>, nth: usize) -> Result<Arc<Connection>> {
        let key = (to, broker, nth);
        if let Some(connection) = self.open.get(&key) {
            return Ok(connection.clone());
        }
        let opened = Connection::open(&key.0, key.1.as_deref(), &self.tasks, self.failure.clone()).await?;
        self.open.insert(key, opened.clone());
        Ok(opened)
    }
}

/// `host:port` of a service URL.
fn address(url: &str) -> Result<String> {
    let Some(rest) = url.strip_prefix("pulsar://") else {
        bail!("{url} is not a pulsar:// URL; TLS is not supported by this load generator")
    };
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        bail!("{url} does not name one host");
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { host.to_owned() } else { format!("{host}:6650") })
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn a_url_names_one_host_and_maybe_a_port() {
        assert_eq!(address("pulsar://a:1").expect("valid"), "a:1");
        assert_eq!(address("pulsar://a/").expect("valid"), "a:6650");
        assert_eq!(address("pulsar://[::1]:7").expect("valid"), "[::1]:7");
        for bad in ["http://a:1", "pulsar+ssl://a", "pulsar://", "pulsar://a/b"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
