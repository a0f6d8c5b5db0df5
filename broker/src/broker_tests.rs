//! Stories of a broker's start and of first use, over bookies and metadata in memory.

use super::*;
use bytes::Bytes;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{ClosedLedger, Fragment};
use geminga_common::clock::SystemClock;
use geminga_common::ids::{EntryId, LedgerId, Term, TopicId};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{Op, Txn};

struct Rig {
    store: Arc<MemoryStore>,
    bookies: MemoryBookies,
    tasks: TaskGroup,
}

impl Rig {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new(SystemClock::shared()));
        Self { store, bookies: MemoryBookies::new(1), tasks: TaskGroup::new() }
    }

    async fn broker(&self) -> Arc<Broker> {
        let config = Config::default();
        let ledgers = LedgerClient::new(Parts {
            rpc: Arc::new(self.bookies.clone()),
            meta: self.store.clone(),
            keys: Keys::new(&config.cluster),
            placement: Arc::new(StaticPlacement::new(self.bookies.refs())),
            quorum: QuorumSpec::SINGLE,
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::seeded(1),
            tasks: self.tasks.clone(),
        });
        let deps = Deps::alone(self.store.clone(), Arc::new(ledgers), &self.tasks, "127.0.0.1:1").await;
        Broker::start(config, deps).await.expect("an empty store")
    }
}

#[tokio::test]
async fn deletions_that_were_interrupted_are_finished_after_the_start() {
    let rig = Rig::new();
    let broker = rig.broker().await;
    let gone = ClosedLedger {
        id: LedgerId(7),
        last: Some(EntryId(0)),
        length: 100,
        term: Term(1),
        quorum: QuorumSpec::SINGLE,
        fragments: vec![Fragment {
            first: EntryId(0),
            ensemble: rig.bookies.refs().into_iter().map(Some).collect(),
        }],
        repair: Vec::new(),
    };
    let key = broker.keys.tombstone(gone.id);
    let value: Bytes = ml::record::encode_tombstone(&gone, TopicId(1), 1);
    let put = Txn { compares: Vec::new(), ops: vec![Op::put(key.clone(), value)] };
    rig.store.txn(put).await.expect("written");
    let any = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    broker.serve(any().await, any().await);
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
