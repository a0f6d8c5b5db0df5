//! Ownership over the store in memory: one owner, lost leases, the gate, orphans.

use super::orphans::Sweep;
use super::*;
use geminga_common::clock::{Clock, ManualClock, SystemClock};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::session::Settings;
use geminga_common::metadata::{Op, Txn, TxnOutcome};
use geminga_common::names::{BundleRange, NamespaceName};

/// Longer than any test: only what a test does ends a lease.
const TTL: Duration = Duration::from_secs(1000);

fn bundle() -> Bundle {
    let namespace = NamespaceName::parse("public/default").unwrap();
    Bundle { namespace, range: BundleRange::parse("0x00000000_0x40000000").unwrap() }
}

fn member(n: u64) -> Member {
    Member { id: format!("h:{n}"), pulsar_url: format!("pulsar://h:{n}"), http_url: format!("http://h:{n}") }
}

struct Broker {
    ownership: Ownership,
    session: Session,
    lost: mpsc::Receiver<Bundle>,
}

async fn broker(store: &Arc<MemoryStore>, clock: Arc<dyn Clock>, n: u64, tasks: &TaskGroup) -> Broker {
    let settings = Settings { ttl: TTL, keys: Vec::new() };
    let session = Session::start(store.clone(), clock, settings, tasks).await.unwrap();
    let deps = Deps {
        metadata: store.clone(),
        keys: Arc::new(Keys::new("test")),
        member: member(n),
        process: n,
        session: session.clone(),
        rng: Rng::seeded(n),
    };
    let (ownership, lost) = Ownership::start(deps, tasks);
    Broker { ownership, session, lost }
}

async fn mine(broker: &Broker) -> Grant {
    match broker.ownership.resolve(&bundle()).await {
        Ok(Place::Mine(grant)) => grant,
        other => panic!("{other:?}"),
    }
}

async fn guarded(store: &MemoryStore, grant: &Grant) -> TxnOutcome {
    let txn = Txn { compares: grant.guard.clone(), ops: vec![Op::put("written", "x")] };
    store.txn(txn).await.unwrap()
}

#[tokio::test]
async fn a_bundle_has_one_owner_until_its_lease_is_lost_and_the_next_is_an_epoch_later() {
    let (clock, tasks) = (SystemClock::shared(), TaskGroup::new());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let mut first = broker(&store, clock.clone(), 1, &tasks).await;
    let second = broker(&store, clock, 2, &tasks).await;
    let grant = mine(&first).await;
    assert_eq!(grant.epoch, OwnerEpoch(1));
    assert_eq!(second.ownership.resolve(&bundle()).await, Ok(Place::Other(member(1))));
    assert!(matches!(guarded(&store, &grant).await, TxnOutcome::Committed(_)));

    // The lease goes without the broker doing anything: the watch says so.
    store.lease_revoke(first.session.held().unwrap().0).await.unwrap();
    assert_eq!(guarded(&store, &grant).await, TxnOutcome::CompareFailed, "at once, whoever believes what");
    assert_eq!(first.lost.recv().await, Some(bundle()));
    assert!(!first.ownership.stands(&grant));
    let next = mine(&second).await;
    assert_eq!(next.epoch, OwnerEpoch(2));
    assert!(matches!(guarded(&store, &next).await, TxnOutcome::Committed(_)));
    assert_eq!(guarded(&store, &grant).await, TxnOutcome::CompareFailed);
    tasks.stop();
}

#[tokio::test]
async fn asked_at_once_by_many_it_is_taken_once() {
    let (clock, tasks) = (SystemClock::shared(), TaskGroup::new());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let one = broker(&store, clock, 1, &tasks).await;
    let grants = futures::future::join_all((0..10).map(|_| mine(&one))).await;
    assert!(grants.iter().all(|grant| *grant == grants[0] && grant.epoch == OwnerEpoch(1)));
    tasks.stop();
}

#[tokio::test]
async fn in_doubt_nothing_is_changed_and_what_is_loaded_goes_on() {
    let (clock, tasks) = (Arc::new(ManualClock::default()), TaskGroup::new());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let one = broker(&store, clock.clone(), 1, &tasks).await;
    let gate = GatedStore::new(store.clone(), one.session.clone());
    let change = || Txn { compares: vec![], ops: vec![Op::put("k", "v")] };
    assert!(gate.txn(change()).await.is_ok());
    let grant = mine(&one).await;
    // The keeper wakes after a quarter of the lease by real time: not within this test.
    clock.advance(TTL * 2 / 3 + Duration::from_secs(1));
    assert!(matches!(gate.txn(change()).await, Err(MetaError::Unavailable(_))));
    assert!(gate.get("k").await.unwrap().is_some());
    assert!(one.ownership.stands(&grant), "topics that are loaded are served on");
    let other = Bundle { range: BundleRange::parse("0x40000000_0x80000000").unwrap(), ..bundle() };
    assert_eq!(one.ownership.resolve(&other).await, Err(Undecided::NoSession), "but no more is taken");
    tasks.stop();
}

#[tokio::test]
async fn orphans_are_found_once_and_by_the_first_in_line() {
    let (clock, tasks) = (SystemClock::shared(), TaskGroup::new());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let keys = Keys::new("test");
    let one = broker(&store, clock, 1, &tasks).await;
    mine(&one).await;
    let open = crate::cursor::chain::Chain {
        open: Some(geminga_common::ids::LedgerId(5)),
        ..crate::cursor::chain::Chain::default()
    };
    let put = Op::put(keys.cursor_log(&bundle()), open.encode());
    store.txn(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
    let look = async |sweep: &mut Sweep, member: &str| sweep.look(&*store, &keys, member).await.unwrap();
    let mut sweep = Sweep::default();
    assert_eq!(look(&mut sweep, "h:1").await, [], "it has an owner");
    one.session.end().await;
    let found = look(&mut sweep, "h:1").await;
    assert_eq!(found.iter().map(|orphan| &orphan.bundle).collect::<Vec<_>>(), [&bundle()]);
    // With more brokers alive exactly one of them is first in line.
    for n in [1, 2, 3] {
        let put = Op::put(keys.live_broker(&member(n).id), member(n).encode());
        store.txn(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
    }
    let mut finders = 0;
    for n in [1, 2, 3] {
        finders += look(&mut Sweep::default(), &member(n).id).await.len();
    }
    assert_eq!(finders, 1);
    // Closed: looked at once more, then known.
    store.txn(Txn { compares: vec![], ops: vec![Op::delete(keys.cursor_log(&bundle()))] }).await.unwrap();
    assert_eq!(look(&mut sweep, "nobody is before zzz").await, []);
    tasks.stop();
}
