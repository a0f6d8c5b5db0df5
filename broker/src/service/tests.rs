//! Strangers and floods, over real sockets.
#![allow(clippy::disallowed_methods)] // real time: the peer is a real socket

use crate::{Broker, Config, Deps};
use bytes::BytesMut;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_common::clock::SystemClock;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Record, Txn, TxnOutcome, WatchStream};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use geminga_proto::encode::{encode_command, ping};
use geminga_proto::frame::{FrameLimits, next_frame};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{BaseCommand, CommandConnect, CommandPartitionedTopicMetadata};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// Bytes of PINGs.
const FLOOD: usize = 24 << 20;

/// A store that takes its time once it is told to: what asks it waits.
struct Stalling {
    inner: MemoryStore,
    stalls: watch::Sender<bool>,
}

impl Stalling {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemoryStore::new(SystemClock::shared()), stalls: watch::Sender::new(false) })
    }

    async fn turn(&self) {
        self.stalls.subscribe().wait_for(|stalls| !stalls).await.unwrap();
    }
}

impl MetadataStore for Stalling {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        async move {
            self.turn().await;
            self.inner.get(key).await
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        self.inner.list(prefix, after, limit)
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        self.inner.txn(txn)
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.inner.watch(prefix)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_revoke(lease)
    }
}

async fn broker() -> SocketAddr {
    broker_over(Stalling::new()).await
}

async fn broker_over(metadata: Arc<Stalling>) -> SocketAddr {
    let tasks = TaskGroup::new();
    let metadata: Arc<dyn MetadataStore> = metadata;
    let bookies = MemoryBookies::new(1);
    let ledgers = LedgerClient::new(Parts {
        placement: Arc::new(StaticPlacement::new(bookies.refs())),
        rpc: Arc::new(bookies),
        meta: metadata.clone(),
        keys: Keys::new("standalone"),
        quorum: QuorumSpec::new(1, 1, 1).unwrap(),
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::seeded(1),
        tasks: tasks.clone(),
    });
    let ledgers = Arc::new(ledgers);
    let deps = Deps::alone(metadata, ledgers, &tasks, "127.0.0.1:1").await;
    let broker = Broker::start(Config::default(), deps).await.unwrap();
    // Connections inherit the listener's buffer: the system is to keep little of a flood.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let pulsar = socket.listen(16).unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = pulsar.local_addr().unwrap();
    broker.serve(pulsar, http, crate::doors::Bounds::NONE);
    address
}

fn connect() -> BaseCommand {
    let connect = CommandConnect { client_version: "t".into(), ..Default::default() };
    BaseCommand { r#type: Type::Connect as i32, connect: Some(Box::new(connect)), ..Default::default() }
}

fn partitions_of(topic: &str) -> BaseCommand {
    let asked = CommandPartitionedTopicMetadata {
        topic: topic.into(),
        request_id: 7,
        metadata_auto_creation_enabled: Some(false),
        ..Default::default()
    };
    let kind = Type::PartitionedMetadata as i32;
    BaseCommand { r#type: kind, partition_metadata: Some(Box::new(asked)), ..Default::default() }
}

/// The broker stops reading from a client that takes no answers and goes on when it takes them; a stranger it sends away.
#[tokio::test]
async fn a_flood_of_pings_whose_answers_nobody_reads_is_not_kept_in_memory() {
    let address = broker().await;
    for greeted in [false, true] {
        // Small buffers on this side too.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.set_send_buffer_size(16 << 10).unwrap();
        let mut socket = socket.connect(address).await.unwrap();
        let mut out = BytesMut::new();
        if greeted {
            encode_command(&connect(), &mut out);
            socket.write_all(&out).await.unwrap();
            socket.readable().await.unwrap();
        }
        out.clear();
        (0..80_000).for_each(|_| ping(&mut out));
        // Far more than the sockets' own buffers and what the broker may keep.
        let mut written = 0;
        while written < FLOOD {
            let rest = &out[written % out.len()..];
            match tokio::time::timeout(Duration::from_millis(500), socket.write(rest)).await {
                Ok(Ok(n)) => written += n,
                // A stranger is not waited for.
                Ok(Err(_closed)) if !greeted => break,
                Ok(Err(error)) => panic!("after {written} bytes: {error}"),
                Err(_stopped) => break,
            }
        }
        assert!(written < FLOOD, "greeted {greeted}: all of it was read");
        if !greeted {
            continue;
        }
        let mut took = vec![0; 1 << 20];
        let mut answered = 0;
        while answered < written / 2 {
            answered += socket.read(&mut took).await.unwrap();
        }
    }
}

/// A client that asks on and on without an answer is not read until it has some; then all are answered.
#[tokio::test]
async fn a_flood_of_requests_that_take_their_time_is_not_kept_in_memory() {
    let metadata = Stalling::new();
    let mut socket = TcpStream::connect(broker_over(metadata.clone()).await).await.unwrap();
    let mut out = BytesMut::new();
    encode_command(&connect(), &mut out);
    socket.write_all(&out).await.unwrap();
    socket.readable().await.unwrap();
    metadata.stalls.send_replace(true);
    out.clear();
    encode_command(&partitions_of("persistent://public/default/there-is-none"), &mut out);
    let (one, many) = (out.len(), FLOOD / out.len());
    let out = out.repeat(many);
    let (mut reader, mut writer) = socket.into_split();
    let (told, mut written) = watch::channel(0);
    let writing = tokio::spawn(async move {
        for chunk in out.chunks(1 << 16) {
            writer.write_all(chunk).await.unwrap();
            told.send_modify(|written| *written += chunk.len());
        }
        writer
    });
    while tokio::time::timeout(Duration::from_millis(500), written.changed()).await.is_ok() {
        assert!(*written.borrow() < FLOOD / 2, "all of it is read");
    }
    metadata.stalls.send_replace(false);
    let mut buffer = BytesMut::new();
    let mut answers = 0;
    while answers < many {
        assert!(reader.read_buf(&mut buffer).await.unwrap() > 0, "closed after {answers} of {many}");
        while let Some(frame) = next_frame(&mut buffer, FrameLimits::default()).unwrap() {
            let kind = geminga_proto::decode::peek_type(&frame.command);
            answers += usize::from(kind == Some(Type::PartitionedMetadataResponse as i32));
        }
    }
    assert_eq!(*written.borrow(), many * one);
    drop(writing.await.unwrap());
}

/// What a stranger's frame holds besides CONNECT is not decoded: it may be malformed.
#[tokio::test]
async fn only_connect_is_decoded_before_connect() {
    let address = broker().await;
    let mut command = prost::Message::encode_to_vec(&connect());
    // An ACK beside it, whose body is no message.
    command.extend([0x52, 2, 0xff, 0xff]);
    let mut out = BytesMut::new();
    out.extend_from_slice(&(command.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(&(command.len() as u32).to_be_bytes());
    out.extend_from_slice(&command);
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&out).await.unwrap();
    let mut buffer = BytesMut::new();
    let frame = loop {
        assert!(socket.read_buf(&mut buffer).await.unwrap() > 0, "the connection was closed");
        if let Some(frame) = next_frame(&mut buffer, FrameLimits::default()).unwrap() {
            break frame;
        }
    };
    assert_eq!(geminga_proto::decode::peek_type(&frame.command), Some(Type::Connected as i32));
}
