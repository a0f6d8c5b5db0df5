//! A round over bookies and metadata in memory: what is published, and what is left alone.

use super::holders::{self, Published};
use super::round::Round;
use super::{Controller, Deps, Means, Status};
use crate::cursor::chain::Chain;
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::zones::ZonePlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{
    ClosedLedger, Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange,
};
use geminga_bookie_client::registry::record::{BookieRecord, Labels, LiveRecord, NodeState};
use geminga_bookie_client::registry::{Known, Registry, View};
use geminga_bookie_client::repair::standing::Absences;
use geminga_bookie_client::rpc::{Add, BookieRef};
use geminga_common::clock::ManualClock;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::session::{self, Session};
use geminga_common::metadata::{MetadataStore, Op, Txn};
use geminga_common::names::Bundle;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const LAST: u64 = 29;
const BUNDLE: &str = "public/default/0x00000000_0x40000000";

/// One round, as told.
#[derive(Default)]
struct Look<'l> {
    /// Bookies without a lease.
    dead: &'l [usize],
    /// One that has found damage in its store.
    damaged: Option<usize>,
    /// One whose store has lost data.
    lost_data: Option<usize>,
    /// Every closed ledger is looked at.
    all: bool,
    /// Owners that are looked at again.
    again: BTreeSet<String>,
}

struct Scene {
    bookies: MemoryBookies,
    refs: Vec<BookieRef>,
    store: Arc<MemoryStore>,
    keys: Arc<Keys>,
    tasks: TaskGroup,
}

fn entry(ledger: LedgerId, id: u64) -> Entry {
    let (messages, first_index) = (1, MessageIndex(id));
    let header = Header { kind: Kind::CursorLog, messages, first_index, timestamp_ms: 0, bytes_before: 0 };
    Entry::new(ledger, EntryId(id), header, Bytes::from(format!("{ledger} {id}")))
}

impl Scene {
    fn new(count: usize) -> Self {
        let bookies = MemoryBookies::new(count);
        let refs = bookies.refs();
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::default())));
        Self { bookies, refs, store, keys: Arc::new(Keys::new("test")), tasks: TaskGroup::new() }
    }

    fn give(&self, to: usize, ledger: u64, ids: impl Iterator<Item = u64>) {
        let ledger = LedgerId(ledger);
        let entries = ids.map(|id| entry(ledger, id)).collect();
        let add = Add { ledger, term: Term(1), lac: None, lafr: None, attributes: None, entries };
        let to = &self.refs[to];
        self.bookies.with_store(&to.id, |s| s.add(to, add)).unwrap().unwrap();
    }

    fn holds_all(&self, at: &BookieRef, ledger: u64) -> bool {
        let has = |id| {
            let found = self.bookies.with_store(&at.id, |s| s.entry(LedgerId(ledger), EntryId(id)).cloned());
            found.flatten() == Some(entry(LedgerId(ledger), id))
        };
        (0..=LAST).all(has)
    }

    fn record(&self, id: u64, members: Vec<Option<BookieRef>>, repair: Vec<RepairRange>) -> LedgerRecord {
        LedgerRecord {
            id: LedgerId(id),
            term: Term(1),
            state: LedgerState::Closed { last: Some(EntryId(LAST)), length: 9 },
            quorum: QuorumSpec::new(3, 3, 2).unwrap(),
            fragments: vec![Fragment { first: EntryId(0), ensemble: members }],
            repair,
            attributes: Arc::new(LedgerAttributes {
                kind: LedgerKind::CursorLog,
                owner: BUNDLE.into(),
                topic: TopicId(1),
                ordinal: 0,
                predecessor: None,
                owner_epoch: OwnerEpoch(1),
                first_index: MessageIndex(0),
            }),
            op_id: OpId(1),
        }
    }

    fn key(&self) -> String {
        self.keys.cursor_log(&Bundle::parse(BUNDLE).unwrap())
    }

    async fn put(&self, op: Op) {
        self.store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
    }

    async fn chain(&self, closed: &[&LedgerRecord], open: Option<u64>) -> Chain {
        let closed = closed.iter().map(|r| r.closed().unwrap()).collect();
        let chain =
            Chain { op_id: 77, log_id: TopicId(1), next_ordinal: 4, closed, open: open.map(LedgerId) };
        self.put(Op::put(self.key(), chain.encode())).await;
        chain
    }

    async fn stored_chain(&self) -> Chain {
        Chain::decode(&self.store.get(&self.key()).await.unwrap().unwrap().value).unwrap()
    }

    /// One round; `dead` are bookies without a lease. All closed ledgers are looked at.
    async fn round(&self, dead: &[usize]) -> (super::round::Found, Arc<Status>) {
        self.look(&Look { dead, all: true, ..Look::default() }).await
    }

    async fn look(&self, look: &Look<'_>) -> (super::round::Found, Arc<Status>) {
        let deps = self.deps(look).await;
        let now = deps.clock.mono();
        let (standings, _) = Absences::default().look(deps.means.registry.view(), now, deps.means.grace);
        let rng = Mutex::new(Rng::seeded(3));
        let found = Round::new(&deps, &rng, standings).run(look.all, &look.again).await.unwrap();
        (found, deps.status)
    }

    async fn deps(&self, look: &Look<'_>) -> Deps {
        let now = self.bookies.refs();
        let one = |(at, bookie): (usize, &BookieRef)| {
            let (incarnation, address) = (bookie.incarnation, "h:1".to_owned());
            let live = (!look.dead.contains(&at)).then(|| LiveRecord {
                incarnation,
                address: address.clone(),
                process: 1,
            });
            let lost = look.lost_data == Some(at);
            let state = if lost { NodeState::DataLoss } else { NodeState::ReadWrite };
            let labels = Labels::default();
            let damage = u64::from(look.damaged == Some(at));
            let record = BookieRecord {
                incarnation,
                boot: 1,
                address,
                labels,
                state,
                capacity_bytes: 0,
                damage,
                room: Default::default(),
            };
            (bookie.id.clone(), Known { record: Some(record), live })
        };
        let view = View { bookies: now.iter().enumerate().map(one).collect() };
        let registry = Registry::fixed(view);
        let clock = Arc::new(ManualClock::default());
        let settings = session::Settings { ttl: Duration::from_secs(3600), keys: Vec::new() };
        let session = Session::start(self.store.clone(), clock.clone(), settings, &self.tasks).await.unwrap();
        Deps {
            means: Means {
                rpc: Arc::new(self.bookies.clone()),
                placement: Arc::new(ZonePlacement::new(registry.clone(), None, 3, Rng::seeded(1))),
                registry: registry.clone(),
                grace: Duration::from_secs(600),
            },
            clock,
            metadata: self.store.clone(),
            keys: self.keys.clone(),
            session,
            member: "b".into(),
            process: 1,
            status: Arc::default(),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn range(first: u64, last: u64, slot: u32) -> RepairRange {
    RepairRange { first: EntryId(first), last: Some(EntryId(last)), slot }
}

#[tokio::test]
async fn a_ledger_with_repair_recorded_is_made_whole_and_its_record_goes() {
    let scene = Scene::new(3);
    scene.give(0, 5, 0..=LAST);
    scene.give(1, 5, 0..=LAST);
    scene.give(2, 5, 0..=9);
    let members = scene.refs.iter().cloned().map(Some).collect();
    let record = scene.record(5, members, vec![range(10, LAST, 2)]);
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), record.encode())).await;
    let before = scene.chain(&[&record], Some(9)).await;
    let (found, status) = scene.round(&[]).await;
    assert!(!found.stuck, "{:?}", status.figures());
    assert_eq!(status.figures().repaired, 1);
    assert_eq!(status.figures().entries, 20);
    assert!(scene.holds_all(&scene.refs[2], 5));
    assert_eq!(scene.store.get(&scene.keys.ledger(LedgerId(5))).await.unwrap(), None);
    // Nothing of the owner's record moved but the repair range; its op id neither.
    let mut expected = before;
    expected.closed[0].repair.clear();
    assert_eq!(scene.stored_chain().await, expected);
    // A second round finds nothing to do.
    let (_, status) = scene.round(&[]).await;
    assert_eq!((status.figures().repaired, status.figures().due, status.figures().looked_at), (0, 0, 1));
}

#[tokio::test]
async fn a_wiped_store_is_found_in_every_record_and_replaced_by_itself_when_there_is_no_other() {
    let scene = Scene::new(3);
    let records: Vec<LedgerRecord> = [5, 6]
        .map(|id| {
            (0..3).for_each(|at| scene.give(at, id, 0..=LAST));
            scene.record(id, scene.refs.iter().cloned().map(Some).collect(), vec![])
        })
        .into();
    scene.chain(&records.iter().collect::<Vec<_>>(), None).await;
    scene.bookies.wipe(&scene.refs[1].id, true);
    let (found, status) = scene.round(&[]).await;
    assert!(!found.stuck, "{:?}", status.figures());
    let new = scene.bookies.refs()[1].clone();
    for ledger in &scene.stored_chain().await.closed {
        assert_eq!(ledger.fragments[0].ensemble[1], Some(new.clone()));
        assert!(scene.holds_all(&new, ledger.id.0));
    }
}

#[tokio::test]
async fn what_a_store_lost_to_damage_is_copied_there_again() {
    let scene = Scene::new(3);
    scene.give(0, 5, 0..=LAST);
    scene.give(1, 5, 0..=LAST);
    scene.give(2, 5, (0..=9).chain(12..=LAST));
    let record = scene.record(5, scene.refs.iter().cloned().map(Some).collect(), vec![]);
    let before = scene.chain(&[&record], None).await;
    let (_, status) = scene.round(&[]).await;
    assert_eq!(status.figures().entries, 0, "nobody says that anything is lost");
    // Its source is away: the owner is looked at again, without a look at all.
    let sources = [0, 1].map(|at| scene.refs[at].id.clone());
    sources.iter().for_each(|id| scene.bookies.faults(id, |faults| faults.down = true));
    let (found, _) = scene.look(&Look { damaged: Some(2), all: true, ..Look::default() }).await;
    assert!(found.stuck && found.stuck_owners.contains(&scene.key()));
    sources.iter().for_each(|id| scene.bookies.faults(id, |faults| faults.down = false));
    let again = Look { damaged: Some(2), again: found.stuck_owners, ..Look::default() };
    let (found, status) = scene.look(&again).await;
    assert!(!found.stuck && found.stuck_owners.is_empty(), "{:?}", status.figures());
    assert_eq!((status.figures().repaired, status.figures().entries), (1, 2));
    assert!(scene.holds_all(&scene.refs[2], 5));
    assert_eq!(scene.stored_chain().await, before);
}

impl Scene {
    /// What the cluster says of a store.
    async fn state_of(&self, at: usize) -> NodeState {
        let stored = self.store.get(&self.keys.bookie(&self.refs[at].id)).await.unwrap().unwrap();
        BookieRecord::decode(&stored.value).unwrap().state
    }

    /// Registers a store as one that has lost data.
    async fn lost_data(&self, at: usize) {
        let record = BookieRecord {
            incarnation: self.refs[at].incarnation,
            boot: 1,
            address: "h:1".to_owned(),
            labels: Labels::default(),
            state: NodeState::DataLoss,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        };
        self.put(Op::put(self.keys.bookie(&self.refs[at].id), record.encode())).await;
    }
}

#[tokio::test]
async fn a_store_that_lost_data_is_let_go_of_when_nothing_counts_on_it() {
    let scene = Scene::new(3);
    scene.give(0, 5, 0..=LAST);
    // All the others have together, and neither has alone.
    scene.give(0, 6, 0..=19);
    scene.give(1, 6, 15..=LAST);
    scene.give(2, 6, 0..=LAST);
    let members: Vec<_> = scene.refs.iter().cloned().map(Some).collect();
    let (five, six) = (scene.record(5, members.clone(), vec![]), scene.record(6, members.clone(), vec![]));
    scene.chain(&[&five, &six], None).await;
    scene.lost_data(2).await;
    let look = Look { lost_data: Some(2), all: true, ..Look::default() };
    let (found, _) = scene.look(&look).await;
    assert!(found.stuck, "nobody else can take the copies");
    assert_eq!(scene.state_of(2).await, NodeState::Lost);

    // A part of a look proves nothing.
    scene.lost_data(2).await;
    let part = Look { lost_data: Some(2), again: BTreeSet::from([scene.key()]), ..Look::default() };
    scene.look(&part).await;
    assert_eq!(scene.state_of(2).await, NodeState::DataLoss);

    // An open ledger with a vacancy beside it: of some entry it may hold the only other copy that a recovery can ask for.
    let vacant = vec![Some(scene.refs[0].clone()), None, Some(scene.refs[2].clone())];
    let open = LedgerRecord { state: LedgerState::Open, ..scene.record(9, vacant, vec![]) };
    scene.put(Op::put(scene.keys.ledger(LedgerId(9)), open.encode())).await;
    let (found, _) = scene.look(&look).await;
    assert!(found.counted_on);
    assert_eq!(scene.state_of(2).await, NodeState::DataLoss);
    // In an earlier fragment it is not: what was acknowledged there is on all the others.
    let mut open = open;
    open.fragments.push(Fragment { first: EntryId(5), ensemble: members.clone() });
    scene.put(Op::put(scene.keys.ledger(LedgerId(9)), open.encode())).await;

    // One entry that only it has.
    scene.give(2, 7, 0..=LAST);
    scene.give(0, 7, 0..=28);
    let seven = scene.record(7, members, vec![]);
    scene.chain(&[&five, &six, &seven], None).await;
    let (found, _) = scene.look(&look).await;
    assert!(found.counted_on);
    assert_eq!(scene.state_of(2).await, NodeState::DataLoss);
    scene.give(1, 7, 29..=LAST);
    let (found, _) = scene.look(&look).await;
    assert!(!found.counted_on);
    assert_eq!(scene.state_of(2).await, NodeState::Lost);
}

#[tokio::test]
async fn who_is_away_is_waited_for_and_an_open_ledger_is_its_writers() {
    let scene = Scene::new(4);
    let members: Vec<_> = scene.refs[..3].iter().cloned().map(Some).collect();
    scene.give(0, 5, 0..=LAST);
    scene.give(1, 5, 0..=LAST);
    let record = scene.record(5, members.clone(), vec![range(0, LAST, 2)]);
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), record.encode())).await;
    let lost = BookieRef { incarnation: geminga_common::ids::Incarnation(99), ..scene.refs[3].clone() };
    let open = LedgerRecord {
        state: LedgerState::Open,
        ..scene.record(9, vec![Some(lost), members[0].clone(), members[1].clone()], vec![])
    };
    scene.put(Op::put(scene.keys.ledger(LedgerId(9)), open.encode())).await;
    let before = scene.chain(&[&record], Some(9)).await;
    let (found, status) = scene.round(&[2]).await;
    assert!(found.stuck);
    assert_eq!(found.open_on_lost.into_iter().collect::<Vec<_>>(), [LedgerId(9)]);
    assert!(status.figures().stuck[&LedgerId(5)].contains("away"), "{:?}", status.figures());
    assert_eq!(scene.stored_chain().await, before);
    let stored = scene.store.get(&scene.keys.ledger(LedgerId(9))).await.unwrap().unwrap();
    assert_eq!(stored.value, open.encode());
}

#[tokio::test]
async fn a_ledger_that_its_owner_changed_meanwhile_is_left_alone() {
    let scene = Scene::new(3);
    let members: Vec<_> = scene.refs.iter().cloned().map(Some).collect();
    let old = scene.record(5, members.clone(), vec![range(0, 3, 2)]);
    let whole = scene.record(5, members.clone(), vec![]);
    let other = scene.record(5, members, vec![range(0, 1, 2)]);
    let change = |from: &LedgerRecord| (from.closed().unwrap(), whole.closed().unwrap());
    let publish = async |(from, to): (ClosedLedger, ClosedLedger)| {
        holders::publish(&*scene.store, &scene.keys, &scene.key(), (&from, &to), OpId(8)).await.unwrap()
    };
    assert_eq!(publish(change(&old)).await, Published::Absent, "no owner's record");
    scene.chain(&[], Some(5)).await;
    assert_eq!(publish(change(&old)).await, Published::Absent, "not folded yet");
    scene.chain(&[&other], None).await;
    assert_eq!(publish(change(&old)).await, Published::Moved);
    scene.chain(&[&old], None).await;
    // Its own record says that it is being recovered: not ours.
    let recovering = LedgerRecord { state: LedgerState::Recovering, ..old.clone() };
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), recovering.encode())).await;
    assert_eq!(publish(change(&old)).await, Published::Moved);
    scene.put(Op::delete(scene.keys.ledger(LedgerId(5)))).await;
    assert_eq!(publish(change(&old)).await, Published::Done);
    assert_eq!(publish(change(&old)).await, Published::Done, "twice is once");
}

#[tokio::test]
async fn copies_of_a_ledger_that_was_deleted_meanwhile_go_too() {
    let scene = Scene::new(4);
    scene.give(0, 5, 0..=LAST);
    scene.give(1, 5, 0..=LAST);
    let members = vec![Some(scene.refs[0].clone()), Some(scene.refs[1].clone()), None];
    let record = scene.record(5, members, vec![range(0, LAST, 2)]);
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), record.encode())).await;
    // The owner dropped it, the deletion of its own record is still to come.
    scene.chain(&[], None).await;
    let (_, status) = scene.round(&[]).await;
    assert_eq!((status.figures().repaired, status.figures().entries), (0, LAST + 1));
    assert!(!scene.holds_all(&scene.refs[2], 5) && !scene.holds_all(&scene.refs[3], 5));
    assert!(scene.holds_all(&scene.refs[0], 5), "its deletion is the owner's");
    // One that its owner is about to fold keeps what was copied.
    scene.give(0, 6, 0..=LAST);
    scene.give(1, 6, 0..=LAST);
    let record =
        scene.record(6, scene.refs[..3].iter().cloned().map(Some).collect(), vec![range(0, LAST, 2)]);
    scene.put(Op::put(scene.keys.ledger(LedgerId(6)), record.encode())).await;
    scene.chain(&[], Some(6)).await;
    scene.round(&[]).await;
    assert!(scene.holds_all(&scene.refs[2], 6));
}

/// While something is stuck a look waits for some seconds after the last; what is folded meanwhile is nobody's news.
#[tokio::test]
async fn a_ledger_that_is_folded_while_nobody_watches_is_found_in_its_owners_record() {
    let scene = Scene::new(3);
    (0..2).for_each(|at| scene.give(at, 5, 0..=LAST));
    (0..2).for_each(|at| scene.give(at, 9, 0..=LAST));
    let members: Vec<_> = scene.refs.iter().cloned().map(Some).collect();
    // A store that is another one than the ledgers know, and away.
    let mut gone = members;
    gone[2].as_mut().unwrap().incarnation.0 += 1;
    let (five, nine) =
        (scene.record(5, gone.clone(), vec![range(0, LAST, 2)]), scene.record(9, gone, vec![]));
    // Of an owner of its own, which nobody has a reason to look at.
    let owner = "public/default/0x40000000_0x80000000";
    let attributes = Arc::new(LedgerAttributes { owner: owner.into(), ..(*nine.attributes).clone() });
    let open = LedgerRecord { state: LedgerState::Open, attributes, ..nine.clone() };
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), five.encode())).await;
    scene.put(Op::put(scene.keys.ledger(LedgerId(9)), open.encode())).await;
    let deps = scene.deps(&Look { dead: &[2], ..Look::default() }).await;
    let status = deps.status.clone();
    let stuck = |id| status.figures().stuck.contains_key(&LedgerId(id));
    Controller::start(deps, &scene.tasks);
    let until = async |id| {
        let there = async {
            while !stuck(id) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), there).await;
        waited.unwrap_or_else(|_| panic!("{id} is not seen: {:?}", status.figures()));
    };
    until(5).await;
    assert!(!stuck(9), "{:?}", status.figures());
    // News, and in the pause behind it the fold.
    tokio::time::sleep(Duration::from_millis(500)).await;
    scene.put(Op::put(scene.keys.ledger(LedgerId(5)), five.encode())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (log_id, closed) = (TopicId(2), vec![nine.closed().unwrap()]);
    let folded = Chain { op_id: 78, log_id, next_ordinal: 1, closed, open: None };
    let key = scene.keys.cursor_log(&Bundle::parse(owner).unwrap());
    scene.put(Op::put(key, folded.encode())).await;
    scene.put(Op::Delete { key: scene.keys.ledger(LedgerId(9)) }).await;
    until(9).await;
}
