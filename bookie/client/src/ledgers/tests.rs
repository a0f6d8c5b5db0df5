//! The client over bookies in memory: stories of whole ledgers.

use super::*;
use crate::entry::Kind;
use crate::memory::MemoryBookies;
use crate::placement::StaticPlacement;
use crate::record::{LedgerKind, LedgerRecord, LedgerState, RepairRange};
use crate::recovery::Timing;
use crate::rpc::{AddError, BookieRef};
use crate::writer::state::Limits;
use geminga_common::clock::ManualClock;
use geminga_common::ids::{MessageIndex, OwnerEpoch, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::time::Duration;
use tokio::sync::mpsc;

struct World {
    bookies: MemoryBookies,
    meta: Arc<MemoryStore>,
    keys: Keys,
    client: LedgerClient,
}

fn world(bookies: usize, (e, w, a): (u32, u32, u32)) -> World {
    let bookies = MemoryBookies::new(bookies);
    let meta = Arc::new(MemoryStore::new(Arc::new(ManualClock::at_wall_ms(0))));
    let keys = Keys::new("test");
    let client = client(&bookies, meta.clone(), &keys, (e, w, a));
    World { bookies, meta, keys, client }
}

fn client(bookies: &MemoryBookies, meta: Arc<MemoryStore>, keys: &Keys, q: (u32, u32, u32)) -> LedgerClient {
    let known = bookies.clone();
    LedgerClient::new(Parts {
        rpc: Arc::new(bookies.clone()),
        meta,
        keys: keys.clone(),
        placement: Arc::new(move |count: usize, exclude: &[BookieRef]| {
            StaticPlacement::new(known.refs()).choose(count, exclude)
        }),
        quorum: QuorumSpec::new(q.0, q.1, q.2).unwrap(),
        limits: Limits::default(),
        recovery: Timing { patience: Duration::from_millis(20), deadline: Duration::from_millis(200) },
        rng: Rng::seeded(7),
        tasks: TaskGroup::new(),
    })
}

use crate::placement::Placement as _;

fn attributes() -> LedgerAttributes {
    LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "persistent://t/n/orders".into(),
        topic: TopicId(9),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    }
}

fn entry(text: &str) -> NewEntry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(0),
        timestamp_ms: 5,
        bytes_before: 0,
    };
    NewEntry { header, payload: text.as_bytes().to_vec().into() }
}

struct Open {
    writer: Box<dyn Writer>,
    events: mpsc::Receiver<WriterEvent>,
}

impl Open {
    async fn until(&mut self, met: impl Fn(&Progress) -> bool) -> Progress {
        loop {
            let progress = self.writer.progress();
            if met(&progress) {
                return progress;
            }
            let event = tokio::time::timeout(Duration::from_secs(5), self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("nothing more happens at {progress:?}")).unwrap();
            self.writer.on_event(event);
        }
    }

    fn append(&mut self, texts: &[&str]) -> EntryId {
        self.writer.append(texts.iter().map(|t| entry(t)).collect()).unwrap()
    }
}

async fn commit(w: &World, compares: Vec<Compare>, ops: Vec<Op>) -> Revision {
    match w.meta.txn(Txn { compares, ops }).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::CompareFailed => panic!("lost"),
    }
}

async fn open(w: &World) -> Open {
    let id = w.client.allocate_id(None).await.unwrap();
    let plan = w.client.plan_create(id, attributes()).unwrap();
    let revision = commit(w, plan.compares.clone(), plan.ops.clone()).await;
    let (tx, events) = mpsc::channel(10_000);
    let writer = w.client.writer(plan, revision, Arc::new(move |event| tx.try_send(event).unwrap()));
    Open { writer, events }
}

async fn read_all(w: &World, view: &LedgerView, last: u64) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() as u64 <= last {
        let first = EntryId(texts.len() as u64);
        let run = w.client.read(view, first, EntryId(last), 1 << 20, ReadClass::CatchUp).await.unwrap();
        texts.extend(run.iter().map(|e| String::from_utf8(e.payload.to_vec()).unwrap()));
    }
    texts
}

async fn record(w: &World, id: LedgerId) -> Option<LedgerRecord> {
    let stored = w.meta.get(&w.keys.ledger(id)).await.unwrap()?;
    Some(LedgerRecord::decode(&stored.value).unwrap())
}

const THREE: (u32, u32, u32) = (3, 3, 2);

#[tokio::test]
async fn one_append_is_one_add_and_what_is_closed_reads_back() {
    let w = world(1, (1, 1, 1));
    let mut o = open(&w).await;
    o.append(&["a", "b", "c"]);
    assert_eq!(w.bookies.adds(), 1);
    o.append(&["d"]);
    let progress = o.until(Progress::drained).await;
    assert_eq!((progress.lac, progress.lafr), (Some(EntryId(3)), Some(EntryId(3))));
    let plan = o.writer.plan_close().unwrap();
    assert_eq!(plan.closed.length, 4 * 33);
    assert!(plan.closed.repair.is_empty());
    commit(&w, plan.compares, plan.ops).await;
    assert_eq!(record(&w, plan.closed.id).await, None, "a healthy closed ledger leaves no record");
    assert_eq!(read_all(&w, &plan.closed.view(), 3).await, ["a", "b", "c", "d"]);
    assert_eq!(o.writer.append(vec![entry("e")]), Err(AppendError::Closed));
}

#[tokio::test]
async fn recovery_of_a_single_copy_closes_at_the_last_entry_and_fences_the_writer() {
    let w = world(1, (1, 1, 1));
    let mut o = open(&w).await;
    o.append(&["a", "b"]);
    o.until(Progress::drained).await;
    let adds = w.bookies.adds();
    let recovered = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!(w.bookies.adds(), adds, "what is durable on its only bookie is not written again");
    assert_eq!((recovered.closed.last, recovered.closed.length), (Some(EntryId(1)), 66));
    assert_eq!(recovered.last_header.unwrap().bytes_before, 33);
    assert_eq!(recovered.attributes.as_deref(), Some(&attributes()));
    let again = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!((again.closed, again.revision), (recovered.closed.clone(), recovered.revision));
    o.append(&["late"]);
    let progress = o.until(|p| p.failed.is_some()).await;
    assert_eq!((progress.failed, progress.lac), (Some(AppendError::Fenced), Some(EntryId(1))));
    assert_eq!(o.writer.plan_close().unwrap_err(), AppendError::Fenced);
    commit(&w, recovered.compares, recovered.ops).await;
    let gone = w.client.recover(o.writer.ledger()).await.unwrap_err();
    assert_eq!(gone, RecoverError::NoRecord(o.writer.ledger()));
}

#[tokio::test]
async fn an_empty_ledger_recovers_empty() {
    let w = world(3, THREE);
    let o = open(&w).await;
    let recovered = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!((recovered.closed.last, recovered.closed.length), (None, 0));
    assert_eq!(recovered.last_header, None);
}

#[tokio::test]
async fn a_dead_bookie_is_replaced_and_nothing_is_lost() {
    let w = world(4, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let dead = w.bookies.refs()[1].id.clone();
    w.bookies.faults(&dead, |f| f.down = true);
    o.append(&["b", "c"]);
    let progress = o.until(|p| p.drained() && p.lafr == Some(EntryId(2))).await;
    assert_eq!(progress.failed, None);
    let view = o.writer.view();
    assert_eq!(view.fragments.len(), 2);
    assert_eq!(
        view.fragments[1].first,
        EntryId(1),
        "nothing of the append was acknowledged before the change"
    );
    assert!(!view.fragments[1].ensemble.contains(&Some(w.bookies.refs()[1].clone())));
    let plan = o.writer.plan_close().unwrap();
    assert!(plan.closed.repair.is_empty(), "{:?}", plan.closed.repair);
    commit(&w, plan.compares, plan.ops).await;
    assert_eq!(read_all(&w, &plan.closed.view(), 2).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn without_a_spare_the_slot_is_vacant_and_recorded_until_one_comes() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    let dead = w.bookies.refs()[0].clone();
    w.bookies.faults(&dead.id, |f| f.down = true);
    o.append(&["a"]);
    // The placement here knows every bookie, but members are excluded by name: nothing is left.
    o.until(|p| p.drained() && p.lac == Some(EntryId(0))).await;
    let stored = record(&w, o.writer.ledger()).await.unwrap();
    assert_eq!(stored.fragments, o.writer.view().fragments);
    assert_eq!(stored.fragments[0].ensemble[0], None);
    assert_eq!(stored.repair, [RepairRange { first: EntryId(0), last: None, slot: 0 }]);
    w.bookies.faults(&dead.id, |f| f.down = false);
    o.until(|p| p.changing).await;
    o.until(Progress::drained).await;
    assert_eq!(o.writer.view().fragments[1].ensemble[0], Some(dead));
    let plan = o.writer.plan_close().unwrap();
    assert_eq!(plan.closed.repair, [RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 0 }]);
    commit(&w, plan.compares, plan.ops).await;
    let state = record(&w, plan.closed.id).await.unwrap().state;
    assert_eq!(state, LedgerState::Closed { last: Some(EntryId(0)), length: 33 }, "kept for the repairer");
}

#[tokio::test]
async fn below_the_ack_quorum_the_writer_fails_and_closes_at_what_was_acknowledged() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    for bookie in &w.bookies.refs()[..2] {
        w.bookies.faults(&bookie.id, |f| f.refuse_adds = Some(AddError::DiskFull));
    }
    o.append(&["b"]);
    let progress = o.until(|p| p.failed.is_some()).await;
    assert_eq!((progress.failed, progress.lac), (Some(AppendError::DiskFull), Some(EntryId(0))));
    let mut revision = o.writer.plan_close();
    // A change may still have been under way when the writer gave up.
    while o.writer.progress().changing {
        let event = o.events.recv().await.unwrap();
        o.writer.on_event(event);
        revision = o.writer.plan_close();
    }
    let plan = revision.unwrap();
    assert_eq!(plan.closed.last, Some(EntryId(0)));
    commit(&w, plan.compares, plan.ops).await;
}

#[tokio::test]
async fn a_recovery_with_one_bookie_down_writes_the_tail_to_a_spare() {
    let w = world(4, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.append(&["b"]);
    o.until(|p| p.lafr == Some(EntryId(1))).await;
    let dead = w.bookies.refs()[2].clone();
    w.bookies.faults(&dead.id, |f| f.down = true);
    let recovered = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!(recovered.closed.last, Some(EntryId(1)));
    let last = recovered.closed.fragments.last().unwrap();
    assert!(!last.ensemble.contains(&Some(dead)), "{last:?}");
    assert_eq!(read_all(&w, &recovered.closed.view(), 1).await, ["a", "b"]);
}

#[tokio::test]
async fn an_undecided_recovery_never_closes_and_a_later_one_does() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let refs = w.bookies.refs();
    refs[..2].iter().for_each(|b| w.bookies.faults(&b.id, |f| f.down = true));
    let id = o.writer.ledger();
    assert_eq!(w.client.recover(id).await.unwrap_err(), RecoverError::Undecided(id));
    assert_eq!(record(&w, id).await.unwrap().state, LedgerState::Recovering);
    refs[..2].iter().for_each(|b| w.bookies.faults(&b.id, |f| f.down = false));
    let recovered = w.client.recover(id).await.unwrap();
    assert_eq!((recovered.closed.last, recovered.term.0), (Some(EntryId(0)), 3));
}

/// T3: a bookie that never answers does not hold recovery up beyond the patience.
#[tokio::test]
async fn t3_one_hung_bookie_does_not_block_recovery() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    w.bookies.faults(&w.bookies.refs()[0].id, |f| f.hold_answers = true);
    let recovered = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!(recovered.closed.last, Some(EntryId(0)));
}

#[tokio::test]
async fn damage_on_one_bookie_is_read_around_and_never_looks_like_the_end() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let (id, view, refs) = (o.writer.ledger(), o.writer.view(), w.bookies.refs());
    w.bookies.with_store(&refs[0].id, |s| s.damage(id, EntryId(0)));
    assert_eq!(read_all(&w, &view, 0).await, ["a"]);
    refs[1..].iter().for_each(|b| w.bookies.faults(&b.id, |f| f.down = true));
    let read = |id| w.client.read(&view, EntryId(id), EntryId(id), 1, ReadClass::Tail);
    assert_eq!(read(0).await, Err(ReadError::Unavailable(EntryId(0))));
    assert_eq!(read(1).await, Err(ReadError::Unavailable(EntryId(1))), "one \"not found\" proves nothing");
    w.bookies.faults(&refs[1].id, |f| f.down = false);
    assert_eq!(read(1).await, Err(ReadError::NoSuchEntry(EntryId(1))));
}

#[tokio::test]
async fn delete_needs_every_bookie() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let (view, refs) = (o.writer.view(), w.bookies.refs());
    w.bookies.faults(&refs[0].id, |f| f.down = true);
    assert!(!w.client.delete(&view).await);
    w.bookies.faults(&refs[0].id, |f| f.down = false);
    assert!(w.client.delete(&view).await);
    o.append(&["zombie"]);
    assert_eq!(o.until(|p| p.failed.is_some()).await.failed, Some(AppendError::Fenced));
}

#[tokio::test]
async fn ids_rise_across_clients_and_above_what_the_caller_has() {
    let w = world(1, (1, 1, 1));
    let other = client(&w.bookies, w.meta.clone(), &w.keys, (1, 1, 1));
    assert_eq!(w.client.allocate_id(None).await.unwrap(), LedgerId(1));
    assert_eq!(w.client.allocate_id(None).await.unwrap(), LedgerId(2));
    assert_eq!(other.allocate_id(None).await.unwrap(), LedgerId(10_001));
    assert_eq!(w.client.allocate_id(Some(LedgerId(5000))).await.unwrap(), LedgerId(5001));
    assert_eq!(w.client.allocate_id(Some(LedgerId(10_001))).await.unwrap(), LedgerId(20_001));
    assert_eq!(other.allocate_id(Some(LedgerId(90_000))).await.unwrap(), LedgerId(90_001));
}

#[tokio::test]
async fn no_ledger_is_created_at_or_below_the_watermark() {
    let w = world(1, (1, 1, 1));
    let id = w.client.allocate_id(None).await.unwrap();
    commit(&w, vec![], vec![Op::put(w.keys.wm_create(), client::watermark_value(id))]).await;
    let plan = w.client.plan_create(id, attributes()).unwrap();
    let txn = Txn { compares: plan.compares, ops: plan.ops };
    assert_eq!(w.meta.txn(txn).await.unwrap(), TxnOutcome::CompareFailed);
}

#[tokio::test]
async fn too_few_bookies_make_no_ledger_and_enough_make_a_flagged_one() {
    let w = world(1, THREE);
    let refused = w.client.plan_create(LedgerId(1), attributes()).unwrap_err();
    assert_eq!(refused, CreateError::NotEnoughBookies { available: 1, needed: 2 });
    let w = world(2, THREE);
    let o = open(&w).await;
    let stored = record(&w, o.writer.ledger()).await.unwrap();
    assert_eq!(stored.repair, [RepairRange { first: EntryId(0), last: None, slot: 2 }]);
}

#[tokio::test]
async fn a_striped_ledger_acknowledges_reads_and_recovers() {
    let w = world(5, (5, 3, 2));
    let mut o = open(&w).await;
    let texts: Vec<String> = (0..23).map(|i| format!("entry {i}")).collect();
    for chunk in texts.chunks(7) {
        o.append(&chunk.iter().map(String::as_str).collect::<Vec<_>>());
    }
    o.until(|p| p.drained() && p.lafr == p.lac).await;
    w.bookies.faults(&w.bookies.refs()[3].id, |f| f.down = true);
    let recovered = w.client.recover(o.writer.ledger()).await.unwrap();
    assert_eq!(recovered.closed.last, Some(EntryId(22)));
    assert_eq!(read_all(&w, &recovered.closed.view(), 22).await, texts);
}

#[tokio::test]
async fn an_idle_ledger_replaces_a_member_that_is_gone_when_it_is_told() {
    let w = world(4, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let [_, dead, wiped, spare] = &w.bookies.refs()[..] else { panic!() };
    // All are suspect and answer: nothing happens.
    o.writer.probe(&|_| true);
    for _ in 0..3 {
        let event = o.events.recv().await.unwrap();
        assert!(!o.writer.on_event(event).changing);
    }
    w.bookies.faults(&dead.id, |f| f.down = true);
    o.writer.probe(&|bookie| bookie == dead);
    o.until(|p| p.changing).await;
    let progress = o.until(Progress::drained).await;
    assert_eq!(o.writer.view().fragments[1].ensemble[1], Some(spare.clone()));
    assert_eq!(progress.copies, Copies::Full, "a dead bookie still has its copies");
    w.bookies.wipe(&wiped.id, true);
    o.writer.probe(&|bookie| bookie == wiped);
    o.until(|p| p.changing).await;
    let progress = o.until(Progress::drained).await;
    let fresh = w.bookies.refs()[2].clone();
    assert_eq!(o.writer.view().fragments[1].ensemble[2], Some(fresh), "its new store is as good as any");
    assert_eq!(progress.copies, Copies::RepairDue);
    let stored = record(&w, o.writer.ledger()).await.unwrap();
    assert_eq!(stored.repair, [RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 2 }]);
    o.append(&["b"]);
    o.until(|p| p.lafr == Some(EntryId(1))).await;
    assert_eq!(read_all(&w, &o.writer.view(), 1).await, ["a", "b"]);
}

/// Some bookies are given up.
struct GivenUp(StaticPlacement, BookieRef);

impl crate::placement::Placement for GivenUp {
    fn choose(&self, count: usize, exclude: &[BookieRef]) -> Vec<BookieRef> {
        self.0.choose(count, exclude)
    }

    fn given_up(&self, bookie: &BookieRef) -> bool {
        *bookie == self.1
    }
}

#[tokio::test]
async fn deletion_waits_for_who_cannot_be_reached_and_not_for_who_is_given_up_or_wiped() {
    let w = world(3, THREE);
    let mut o = open(&w).await;
    o.append(&["a"]);
    o.until(|p| p.lafr == Some(EntryId(0))).await;
    let (view, refs) = (o.writer.view(), w.bookies.refs());
    w.bookies.faults(&refs[0].id, |f| f.down = true);
    assert!(!w.client.delete(&view).await, "out of reach is not gone");
    let placement = Arc::new(GivenUp(StaticPlacement::new(w.bookies.refs()), refs[0].clone()));
    let knowing = LedgerClient::new(Parts {
        rpc: Arc::new(w.bookies.clone()),
        meta: w.meta.clone(),
        keys: w.keys.clone(),
        placement,
        quorum: QuorumSpec::new(3, 3, 2).unwrap(),
        limits: Limits::default(),
        recovery: Timing::default(),
        rng: Rng::seeded(1),
        tasks: TaskGroup::new(),
    });
    assert!(knowing.delete(&view).await);
    w.bookies.faults(&refs[1].id, |f| f.down = true);
    assert!(!knowing.delete(&view).await, "another one is only out of reach");
    w.bookies.faults(&refs[1].id, |f| f.down = false);
    w.bookies.faults(&refs[0].id, |f| f.down = false);
    w.bookies.wipe(&refs[0].id, true);
    assert!(w.client.delete(&view).await, "the store that held it is gone");
}
