//! Stories of a broker's start and of first use, over bookies and metadata in memory.

use super::*;
use crate::admin::Admin;
use crate::rest::api::{ApiError, BrokerApi as _, Target};
use bytes::Bytes;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{ClosedLedger, Fragment, LedgerRecord};
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::registry::record::{BookieRecord, Labels, LiveRecord, NodeState};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::clock::SystemClock;
use geminga_common::ids::{EntryId, LedgerId, Position, Term, TopicId};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{Op, Txn};
use geminga_common::names::SubscriptionName;

struct Rig {
    store: Arc<MemoryStore>,
    bookies: MemoryBookies,
    tasks: TaskGroup,
}

impl Rig {
    fn new() -> Self {
        Self::over(1)
    }

    fn over(bookies: usize) -> Self {
        let store = Arc::new(MemoryStore::new(SystemClock::shared()));
        Self { store, bookies: MemoryBookies::new(bookies), tasks: TaskGroup::new() }
    }

    async fn broker(&self) -> Arc<Broker> {
        let config = Config::default();
        let ledgers = LedgerClient::new(Parts {
            rpc: Arc::new(self.bookies.clone()),
            meta: self.store.clone(),
            keys: Keys::new(&config.cluster),
            placement: Arc::new(StaticPlacement::new(self.bookies.refs())),
            quorum: if self.bookies.refs().len() > 1 { two() } else { QuorumSpec::SINGLE },
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::seeded(1),
            tasks: self.tasks.clone(),
        });
        let deps = Deps::alone(self.store.clone(), Arc::new(ledgers), &self.tasks, "127.0.0.1:1").await;
        Broker::start(config, deps).await.expect("an empty store")
    }
}

/// A ledger of one entry to be deleted from these bookies.
fn deleted(id: u64, bookies: &[BookieRef]) -> ClosedLedger {
    ClosedLedger {
        id: LedgerId(id),
        last: Some(EntryId(0)),
        length: 100,
        term: Term(1),
        quorum: QuorumSpec::SINGLE,
        fragments: vec![Fragment {
            first: EntryId(0),
            ensemble: bookies.iter().cloned().map(Some).collect(),
        }],
        repair: Vec::new(),
    }
}

/// Two copies, of which one acknowledges.
fn two() -> QuorumSpec {
    QuorumSpec::new(2, 2, 1).expect("a quorum")
}

#[tokio::test]
async fn deletions_that_were_interrupted_are_finished_after_the_start() {
    let rig = Rig::new();
    let broker = rig.broker().await;
    let gone = deleted(7, &rig.bookies.refs());
    let key = broker.keys.tombstone(gone.id);
    let value: Bytes = ml::record::encode_tombstone(&gone, TopicId(1), 1);
    let put = Txn { compares: Vec::new(), ops: vec![Op::put(key.clone(), value)] };
    rig.store.txn(put).await.expect("written");
    let any = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    broker.serve(any().await, any().await, crate::doors::Bounds::NONE);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if rig.store.get(&key).await.expect("readable").is_none() {
            return;
        }
    }
    panic!("the tombstone is still there");
}

#[tokio::test]
async fn first_use_makes_no_topic_in_a_namespace_that_is_going() {
    let rig = Rig::new();
    let broker = rig.broker().await;
    let name = TopicName::parse("persistent://public/default/late").expect("a name");
    let going = |policies: &mut crate::namespace::Policies| {
        policies.deleted = true;
        Ok(())
    };
    // Another broker marks the namespace; this one has not heard of it yet.
    let other = rig.broker().await;
    other.namespaces.update_policies(name.namespace(), going).await.expect("marked");
    let refused = broker.open(&name, true).await.err();
    assert!(matches!(refused, Some(TopicError::NamespaceNotFound(_))), "{refused:?}");
    assert!(rig.store.get(&broker.keys.topic(&name)).await.expect("readable").is_none());
}

async fn put(rig: &Rig, ops: Vec<Op>) {
    rig.store.txn(Txn { compares: Vec::new(), ops }).await.expect("written");
}

fn live(broker: &Broker, bookie: &BookieRef) -> Op {
    let live = LiveRecord { incarnation: bookie.incarnation, address: "h:1".into(), process: 1 };
    Op::put(broker.keys.live_bookie(&bookie.id), live.encode())
}

/// Registers all bookies, with a lease.
async fn register(rig: &Rig, broker: &Broker) {
    for bookie in &rig.bookies.refs() {
        let record = BookieRecord {
            incarnation: bookie.incarnation,
            boot: 1,
            address: "h:1".into(),
            labels: Labels::default(),
            state: NodeState::ReadWrite,
            capacity_bytes: 1,
            damage: 0,
            room: Default::default(),
        };
        let record = Op::put(broker.keys.bookie(&bookie.id), record.encode());
        put(rig, vec![record, live(broker, bookie)]).await;
    }
}

/// Makes a cursor, so that a ledger is open.
async fn make_cursor(broker: &Arc<Broker>) {
    broker.namespaces.bootstrap().await.expect("namespaces");
    let name = TopicName::parse("persistent://public/default/idle").expect("a name");
    let grant = broker.grant(&name).await.expect("granted");
    let log = broker.cursor_log_under(&grant).await.expect("opened");
    let image = cursor::record::CursorImage {
        acked: cursor::Acked::below(Position::new(LedgerId(0), EntryId(0))),
        ack_properties: Vec::new(),
        properties: Default::default(),
        created_ms: 1,
        replicated: false,
    };
    let subscription = SubscriptionName::parse("s").expect("a name");
    log.create(TopicId(1), subscription, image).await.expect("durable");
}

/// Waits until the first slot of the one open ledger is this bookie's.
async fn first_member_is(rig: &Rig, broker: &Broker, wanted: &BookieRef) {
    for _ in 0..500 {
        let records = rig.store.list(&broker.keys.ledgers_prefix(), None, 10).await.expect("listed");
        let record = records.first().map(|stored| LedgerRecord::decode(&stored.value).expect("a record"));
        if record.and_then(|record| record.last_fragment().ensemble[0].clone()).as_ref() == Some(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{wanted} does not come in");
}

/// A bookie without a lease is replaced in the open ledger of an idle cursor log, and its return lets deletions go on.
#[tokio::test]
async fn bookies_that_go_and_come_are_followed_by_who_has_them() {
    let rig = Rig::over(3);
    let broker = rig.broker().await;
    let bookies = rig.bookies.refs();
    register(&rig, &broker).await;
    let registry = Registry::start(rig.store.clone(), (*broker.keys).clone(), &rig.tasks).await;
    broker.follow_bookies(&registry.expect("listed"), Duration::from_millis(300));
    let any = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    broker.serve(any().await, any().await, crate::doors::Bounds::NONE);
    make_cursor(&broker).await;
    first_member_is(&rig, &broker, &bookies[0]).await;
    // It is dead and its lease goes; nothing is written.
    rig.bookies.faults(&bookies[0].id, |f| f.down = true);
    put(&rig, vec![Op::delete(broker.keys.live_bookie(&bookies[0].id))]).await;
    first_member_is(&rig, &broker, &bookies[2]).await;
    // A deletion that waits for it goes on when it is back.
    let gone = deleted(7, &bookies[..1]);
    let key = broker.keys.tombstone(gone.id);
    put(&rig, vec![Op::put(key.clone(), ml::record::encode_tombstone(&gone, TopicId(1), 1))]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(rig.store.get(&key).await.expect("readable").is_some(), "out of reach is not gone");
    rig.bookies.faults(&bookies[0].id, |f| f.down = false);
    put(&rig, vec![live(&broker, &bookies[0])]).await;
    for _ in 0..500 {
        if rig.store.get(&key).await.expect("readable").is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the tombstone is still there");
}

fn topic(local: &str) -> TopicName {
    TopicName::parse(&format!("persistent://public/default/{local}")).expect("a name")
}

/// The answers to what is asked all at once.
async fn at_once<T>(asked: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures::future::join_all(asked).await
}

#[tokio::test]
async fn of_many_who_create_one_topic_at_once_one_has_created_it() {
    let rig = Rig::new();
    let admin = Admin(rig.broker().await);
    admin.0.namespaces.bootstrap().await.expect("namespaces");
    let name = topic("new");
    let answers = at_once((0..8).map(|_| admin.create_topic(&name))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(()) | Err(ApiError::Exists(_)))), "{answers:?}");
}

#[tokio::test]
async fn a_bound_on_topics_holds_however_many_are_created_at_once() {
    let rig = Rig::new();
    let broker = rig.broker().await;
    broker.namespaces.bootstrap().await.expect("namespaces");
    let bounded = |policies: &mut crate::namespace::Policies| {
        policies.max_topics_per_namespace = Some(5);
        Ok(())
    };
    broker.namespaces.update_policies(topic("x").namespace(), bounded).await.expect("bounded");
    let opened = at_once((0..12).map(|n| {
        let broker = broker.clone();
        async move { broker.open(&topic(&format!("t{n}")), true).await.is_ok() }
    }));
    assert_eq!(opened.await.iter().filter(|opened| **opened).count(), 5);
    // Partitions count, and first use of a partitioned topic too.
    let admin = Admin(broker.clone());
    admin.delete_topic(&topic("t0"), true).await.expect("deleted");
    let refused = broker.namespaces.create_partitioned(&topic("p"), 2, Default::default()).await;
    assert!(matches!(refused, Err(NamespaceError::TooManyTopics(_))), "{refused:?}");
    broker.namespaces.create_partitioned(&topic("p"), 1, Default::default()).await.expect("room for one");
    let refused = broker.namespaces.grow_partitioned(&topic("p"), 2).await;
    assert!(matches!(refused, Err(NamespaceError::TooManyTopics(_))), "{refused:?}");
    broker.namespaces.grow_partitioned(&topic("p"), 1).await.expect("no more than there are");
}

#[tokio::test]
async fn subscriptions_that_are_made_and_deleted_at_once_leave_the_topic_standing() {
    let rig = Rig::new();
    let admin = Admin(rig.broker().await);
    admin.0.namespaces.bootstrap().await.expect("namespaces");
    let bounded = |policies: &mut crate::namespace::Policies| {
        policies.max_subscriptions_per_topic = Some(3);
        Ok(())
    };
    let name = topic("many");
    admin.0.namespaces.update_policies(name.namespace(), bounded).await.expect("bounded");
    admin.create_topic(&name).await.expect("created");
    let subscriptions: Vec<_> =
        (0..9).map(|n| SubscriptionName::parse(&format!("s{n}")).expect("a name")).collect();
    let made = at_once(
        subscriptions
            .iter()
            .map(|sub| admin.create_subscription(&name, sub, Target::Earliest, Default::default())),
    );
    let made = made.await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3, "{made:?}");
    let first = &subscriptions[made.iter().position(Result::is_ok).expect("one")];
    let deleted = at_once((0..8).map(|_| admin.delete_subscription(&name, first, true))).await;
    assert_eq!(deleted.iter().filter(|deleted| deleted.is_ok()).count(), 1, "{deleted:?}");
    assert!(
        deleted.iter().all(|d| matches!(d, Ok(()) | Err(ApiError::SubscriptionNotFound { .. }))),
        "{deleted:?}"
    );
    // The topic is still the same one, and ends once however often that is asked for.
    let ends = at_once((0..3).map(|_| admin.terminate_topic(&name))).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    admin.terminate_topic(&name).await.expect("answered again");
}
