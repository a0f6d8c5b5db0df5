//! A repairer moves members in the log's record, under its owner's feet; bookies go while the log is idle.

use super::*;
use geminga_bookie_client::record::LedgerRecord;
use geminga_bookie_client::registry::absence::Suspect;
use geminga_bookie_client::rpc::{Add, BookieRef};
use geminga_common::ids::Incarnation;

/// What a repairer may do to the record: change closed ledgers, by compare, and leave all else as it is.
pub(super) async fn rewrite(store: &MemoryStore, mut change: impl FnMut(&mut ClosedLedger)) {
    let key = Keys::new("test").cursor_log(&bundle());
    let stored = store.get(&key).await.unwrap().unwrap();
    let mut chain = Chain::decode(&stored.value).unwrap();
    chain.closed.iter_mut().for_each(&mut change);
    let compares = vec![Compare::ModRevision(key.clone(), stored.mod_revision)];
    let done = store.txn(Txn { compares, ops: vec![Op::put(key, chain.encode())] }).await.unwrap();
    assert!(matches!(done, TxnOutcome::Committed(_)));
}

impl World {
    fn spare(&self) -> BookieRef {
        self.bookies.refs()[3].clone()
    }

    /// Slot 0 of every closed ledger goes to the spare bookie, with what it holds.
    async fn move_to_spare(&self) {
        let (spare, bookies) = (self.spare(), &self.bookies);
        rewrite(&self.store.inner, |ledger| {
            let old = ledger.fragments[0].ensemble[0].replace(spare.clone()).unwrap();
            let (id, last) = (ledger.id, ledger.last.unwrap().0);
            let entries = bookies.with_store(&old.id, |s| {
                (0..=last).filter_map(|e| s.entry(id, EntryId(e)).cloned()).collect::<Vec<_>>()
            });
            let (entries, term) = (entries.unwrap(), ledger.term);
            let add = Add { ledger: id, term, lac: None, lafr: None, attributes: None, entries };
            bookies.with_store(&spare.id, |s| s.add(&spare, add)).unwrap().unwrap();
        })
        .await;
    }

    /// A log with a cursor whose owner crashed.
    async fn crashed(&self) {
        let (log, tasks) = self.open().await;
        log.create(TopicId(1), name("a"), image()).await.unwrap();
        tasks.stop();
    }

    async fn open_record(&self) -> Option<LedgerRecord> {
        let id = self.chain().await?.open?;
        let stored = self.store.inner.get(&Keys::new("test").ledger(id)).await.unwrap()?;
        Some(LedgerRecord::decode(&stored.value).unwrap())
    }
}

#[tokio::test]
async fn what_a_repairer_moved_is_rolled_over_and_deleted_where_it_is() {
    let world = World::over(4, 1 << 20);
    world.crashed().await;
    let (log, _) = world.open().await;
    let old = world.chain().await.unwrap().closed[0].id;
    world.move_to_spare().await;
    bookies_down(&world.bookies, false);
    world.bookies.faults(&world.spare().id, |f| f.down = true);
    // The first write opens a ledger, drops the old one, and both meet a record that has moved.
    log.create(TopicId(1), name("b"), image()).await.unwrap();
    let tombstone = Keys::new("test").tombstone(old);
    let gone = world.store.inner.get(&tombstone).await.unwrap().expect("its new holder has not answered");
    let gone = ClosedLedger::decode(&gone.value).unwrap();
    assert_eq!(gone.fragments[0].ensemble[0], Some(world.spare()));
    let (log, _) = world.open().await;
    assert_eq!(only(&log, 1).await.len(), 2);
}

#[tokio::test]
async fn an_answer_lost_before_a_repair_leaves_record_and_ledger_in_step() {
    let world = World::over(4, 1 << 20);
    world.crashed().await;
    let (log, _) = world.open().await;
    *world.store.plan.lock() = Plan { unknown_once: Some(true), then_repaired: true, ..Plan::default() };
    log.create(TopicId(1), name("b"), image()).await.unwrap();
    // The ledger's writer knows the revision of its own record: it can close it.
    log.close().await.unwrap();
    assert_eq!(world.chain().await.unwrap().open, None);
}

#[tokio::test]
async fn another_owners_write_is_never_taken_for_a_repair() {
    let world = World::over(4, 1 << 20);
    world.crashed().await;
    let (log, _) = world.open().await;
    rewrite(&world.store.inner, |ledger| ledger.length += 1).await;
    assert_eq!(log.create(TopicId(1), name("b"), image()).await, Err(Failed::Lost.into()));
    let (old, _) = world.open().await;
    let (new, _) = world.open().await;
    new.create(TopicId(1), name("c"), image()).await.unwrap();
    assert_eq!(old.create(TopicId(1), name("d"), image()).await, Err(Failed::Lost.into()));
}

#[tokio::test]
async fn a_ledger_that_moves_while_the_log_is_opened_is_found() {
    let world = World::over(4, 1 << 20);
    world.crashed().await;
    // Closed by an opening of which nothing else remains.
    world.open().await.1.stop();
    let old: Vec<_> = world.bookies.refs()[..3].to_vec();
    let (tasks, deps) = (TaskGroup::new(), world.deps());
    let bundle = bundle();
    let opening = CursorLog::open(Deps { tasks: tasks.clone(), ..deps }, &bundle);
    old.iter().for_each(|b| world.bookies.faults(&b.id, |f| f.down = true));
    let moving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.move_to_spare().await;
    };
    let (log, ()) = tokio::join!(opening, moving);
    assert_eq!(only(&log.unwrap(), 1).await.len(), 1);
}

#[tokio::test]
async fn an_idle_log_replaces_a_wiped_member_and_gives_up_the_ledger_that_lacks_copies() {
    let world = World::over(4, 1 << 20);
    let (log, _) = world.open().await;
    log.create(TopicId(1), name("a"), image()).await.unwrap();
    let first = world.open_record().await.unwrap();
    let wiped = world.bookies.refs()[1].clone();
    world.bookies.wipe(&wiped.id, true);
    let suspect = Suspect { id: wiped.id.clone(), standing: Some(Incarnation(2)) };
    let clock = SystemClock::shared();
    let told = clock.mono();
    log.probe(Arc::new(vec![suspect]));
    let mut replaced = false;
    while world.chain().await.unwrap().open == Some(first.id) {
        assert!(clock.mono() - told < Duration::from_secs(20), "it never rolled");
        if let Some(record) = world.open_record().await.filter(|record| record.id == first.id) {
            replaced |= record.last_fragment().ensemble[1] == Some(world.spare());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(replaced, "nothing was written meanwhile");
    assert!(clock.mono() - told >= Duration::from_secs(3), "not at once: the bookie may flap");
    let second = world.open_record().await.unwrap();
    assert!(second.repair.is_empty());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let keys = Keys::new("test");
    for key in [keys.ledger(first.id), keys.tombstone(first.id)] {
        assert_eq!(world.store.inner.get(&key).await.unwrap(), None, "{key} stays behind");
    }
    let (log, _) = world.open().await;
    assert_eq!(only(&log, 1).await.len(), 1);
}
