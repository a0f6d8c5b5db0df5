//! Every PRODUCER gets an answer, whatever closes the topic's producers before it was given.
#![allow(clippy::disallowed_methods)] // real time: the peer is a real socket

use super::super::admin::Request;
use super::super::messages::{AccessMode, Admission, Message};
use super::*;
use crate::namespace::{BacklogQuota, BacklogQuotaType, QuotaPolicy};
use crate::{Broker, Config, Deps};
use bytes::BytesMut;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_common::clock::SystemClock;
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::names::TopicName;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::frame::{FrameLimits, next_frame};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand, ServerError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

async fn broker() -> Arc<Broker> {
    let tasks = TaskGroup::new();
    let metadata: Arc<dyn MetadataStore> = Arc::new(MemoryStore::new(SystemClock::shared()));
    let bookies = MemoryBookies::new(1);
    let ledgers = LedgerClient::new(Parts {
        placement: Arc::new(StaticPlacement::new(bookies.refs())),
        rpc: Arc::new(bookies),
        meta: metadata.clone(),
        keys: Keys::new("standalone"),
        quorum: QuorumSpec::SINGLE,
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::seeded(1),
        tasks: tasks.clone(),
    });
    let deps = Deps::alone(metadata, Arc::new(ledgers), &tasks, "127.0.0.1:1").await;
    Broker::start(Config::default(), deps).await.unwrap()
}

fn name() -> TopicName {
    TopicName::parse("persistent://public/default/t").unwrap()
}

fn command(kind: Type, set: impl FnOnce(&mut BaseCommand)) -> BaseCommand {
    let mut command = BaseCommand { r#type: kind as i32, ..Default::default() };
    set(&mut command);
    command
}

fn producer(request: u64) -> BaseCommand {
    let producer = wire::CommandProducer {
        topic: name().to_string(),
        producer_id: 1,
        request_id: request,
        ..Default::default()
    };
    command(Type::Producer, |c| c.producer = Some(Box::new(producer)))
}

/// What a client is told, in order.
struct Heard {
    socket: TcpStream,
    buffer: BytesMut,
}

impl Heard {
    /// The next command, or `None` when the connection has ended.
    async fn next(&mut self) -> Option<BaseCommand> {
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, FrameLimits::default()).unwrap() {
                return Some(prost::Message::decode(frame.command).unwrap());
            }
            let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.buffer));
            if read.await.expect("an answer").unwrap() == 0 {
                return None;
            }
        }
    }

    async fn say(&mut self, command: &BaseCommand) {
        let mut out = BytesMut::new();
        encode_command(command, &mut out);
        self.socket.write_all(&out).await.unwrap();
    }

    async fn ask(&mut self, command: &BaseCommand) -> BaseCommand {
        self.say(command).await;
        self.next().await.expect("the connection stays")
    }
}

/// Publishes 1 KB messages until the broker closes the producer.
async fn fill(client: &mut Heard) {
    for sequence_id in 0..100 {
        let send = wire::CommandSend { producer_id: 1, sequence_id, ..Default::default() };
        let metadata = wire::MessageMetadata {
            producer_name: "p".into(),
            sequence_id,
            publish_time: 1,
            ..Default::default()
        };
        let mut out = BytesMut::new();
        let send = command(Type::Send, |c| c.send = Some(Box::new(send)));
        encode_with_payload(&send, &metadata, &[7; 1000], &mut out);
        client.socket.write_all(&out).await.unwrap();
        if client.next().await.unwrap().r#type() == Type::CloseProducer {
            return;
        }
    }
    panic!("100 KB went past a quota of 20 KB");
}

/// The first PRODUCER on a topic that was just loaded is refused as every later one is.
#[tokio::test]
async fn the_first_producer_of_a_loaded_topic_over_its_quota_is_refused() {
    for (policy, expected) in [
        (QuotaPolicy::ProducerException, ServerError::ProducerBlockedQuotaExceededException),
        (QuotaPolicy::ProducerRequestHold, ServerError::ProducerBlockedQuotaExceededError),
    ] {
        let broker = broker().await;
        let quota = BacklogQuota { limit_size: 20_000, limit_time: -1, policy: Some(policy) };
        let change = |policies: &mut crate::namespace::Policies| {
            policies.backlog_quota_map.insert(BacklogQuotaType::DestinationStorage, quota.clone());
            Ok(())
        };
        broker.namespaces.update_policies(name().namespace(), change).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        broker.serve(listener, TcpListener::bind("127.0.0.1:0").await.unwrap(), crate::doors::Bounds::NONE);
        let socket = TcpStream::connect(address).await.unwrap();
        let mut client = Heard { socket, buffer: BytesMut::new() };
        let connect = wire::CommandConnect {
            client_version: "t".into(),
            protocol_version: Some(21),
            ..Default::default()
        };
        client.ask(&command(Type::Connect, |c| c.connect = Some(Box::new(connect)))).await;
        let subscribe = wire::CommandSubscribe {
            topic: name().to_string(),
            subscription: "s".into(),
            request_id: 1,
            ..Default::default()
        };
        let subscribe = command(Type::Subscribe, |c| c.subscribe = Some(Box::new(subscribe)));
        assert_eq!(client.ask(&subscribe).await.r#type(), Type::Success);
        assert_eq!(client.ask(&producer(2)).await.r#type(), Type::ProducerSuccess);
        fill(&mut client).await;
        let topic = broker.topic(&name(), false).await.unwrap();
        topic.ask(Message::Unload).await.unwrap();
        assert_eq!(client.next().await.unwrap().r#type(), Type::CloseConsumer);
        for request in [77, 78] {
            let answer = client.ask(&producer(request)).await;
            let error = answer.error.unwrap_or_else(|| panic!("{:?} for {request}", answer.r#type));
            assert_eq!((error.request_id, error.error()), (request, expected), "{}", error.message);
        }
    }
}

/// A producer of a client that reads nothing yet, as the connection makes it; its slot is the test's.
fn spec(peer: &Arc<Peer>, request: u64, mode: AccessMode) -> Box<AddProducer> {
    let (id, request) = (ProducerId(request), RequestId(request));
    peer.slots().producers.insert(id, ProducerSlot::Pending(request));
    Box::new(AddProducer {
        peer: peer.clone(),
        id,
        request,
        name: String::new(),
        epoch: 0,
        mode,
        topic_epoch: None,
        metadata: Default::default(),
        initial_subscription: None,
        encrypted: false,
        turn: Arc::new(|_| {}),
    })
}

/// All that a client was told: the requests that got an ERROR with its code, and `None` for anything else.
async fn told(peer: &Peer) -> Vec<Option<(u64, ServerError)>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    peer.outbox.finish();
    // The writer drops its half at the end of what was queued.
    peer.outbox.drain_into(ours.unwrap().into_split().1).await;
    let mut heard = Heard { socket: theirs.unwrap().0, buffer: BytesMut::new() };
    let mut told = Vec::new();
    while let Some(command) = heard.next().await {
        told.push(command.error.map(|error| (error.request_id, error.error())));
    }
    told
}

/// Whatever closes producers: one that was let in and not told yet gets an ERROR, and no CLOSE_PRODUCER.
#[tokio::test]
async fn a_producer_that_is_closed_before_its_answer_is_refused() {
    type Close = fn(Reply<()>) -> Message;
    let table: [(&str, Close, ServerError); 4] = [
        ("unload", Message::Unload, ServerError::ServiceNotReady),
        ("lost bundle", Message::Leave, ServerError::ServiceNotReady),
        ("delete", |r| Message::Admin(Request::Delete(true, r)), ServerError::ServiceNotReady),
        (
            "terminate",
            |r| Message::Admin(Request::Terminate(Reply::new(move |done| r.send(done.map(drop))))),
            ServerError::TopicTerminatedError,
        ),
    ];
    for (what, close, expected) in table {
        let (broker, peer) = (broker().await, Peer::new(1, "/t".into()));
        let topic = broker.topic(&name(), true).await.unwrap();
        let add = spec(&peer, 77, AccessMode::Shared);
        let admitted = topic.ask(|reply| Message::AddProducer(add, reply)).await.unwrap();
        assert!(matches!(admitted, Admission::Admitted(_)), "{what}");
        // One of another topic with an id that its client has given up here: none of this topic's business.
        let other = spec(&peer, 5, AccessMode::Shared);
        topic.ask(|reply| Message::AddProducer(other, reply)).await.unwrap();
        peer.slots().producers.insert(ProducerId(5), ProducerSlot::Pending(RequestId(6)));
        topic.ask(close).await.unwrap();
        let left = peer.slots().producers.keys().copied().collect::<Vec<_>>();
        assert_eq!(left, [ProducerId(5)], "{what}");
        assert_eq!(told(&peer).await, [Some((77, expected))], "{what}");
    }
}

/// Exclusive access: who waits or is let in and not told, and is fenced, hears of it; so does who waits when the topic leaves.
#[tokio::test]
async fn whoever_waits_for_exclusive_access_hears_how_it_ended() {
    let broker = broker().await;
    let [owner, waits, fences] = [1, 2, 3].map(|id| Peer::new(id, "/t".into()));
    let topic = broker.topic(&name(), true).await.unwrap();
    let add = async |spec| {
        let admission = topic.ask(|reply| Message::AddProducer(spec, reply)).await.unwrap();
        let Admission::Admitted(admitted) = admission else { panic!("the name is held") };
        admitted
    };
    add(spec(&owner, 1, AccessMode::Exclusive)).await;
    let waiting = add(spec(&waits, 2, AccessMode::WaitForExclusive)).await;
    assert!(!waiting.ready);
    let producer = ProducerRef {
        topic: topic.clone(),
        key: waiting.key,
        name: "w".into(),
        schema_version: Default::default(),
    };
    waits.slots().producers.insert(ProducerId(2), ProducerSlot::Waiting(producer));
    add(spec(&fences, 3, AccessMode::ExclusiveWithFencing)).await;
    assert_eq!(told(&owner).await, [Some((1, ServerError::ProducerFenced))]);
    assert_eq!(told(&waits).await, [Some((2, ServerError::ProducerFenced))]);
    // Its epoch is stored while the topic leaves: nobody is let into a topic that ends.
    let again = Peer::new(4, "/t".into());
    let (reply, answer) = Reply::channel();
    topic.put(Message::AddProducer(spec(&again, 4, AccessMode::ExclusiveWithFencing), reply));
    topic.ask(Message::Unload).await.unwrap();
    assert!(matches!(answer.await.unwrap(), Err(TopicError::NotReady)));
    assert_eq!(told(&fences).await, [Some((3, ServerError::ServiceNotReady))]);
}
