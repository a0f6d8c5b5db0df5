//! Stories of whole logs over bookies and metadata in memory, with crashes at every metadata step.

#[path = "log_repair_tests.rs"]
mod repair;

use super::*;
use crate::cursor::chain::Chain;
use crate::cursor::{AckState, DurableFloor, Log, Span};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::recovery::Timing;
use geminga_bookie_client::writer::state::Limits;
use geminga_common::clock::SystemClock;
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{
    LeaseId, MetaError, MetadataStore, Record as Stored, Txn, TxnOutcome, WatchStream, list_all,
};
use std::time::Duration;

/// What happens at a transaction of the cursor log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Crash {
    /// It is not carried out, nor is anything later.
    Before,
    /// It is carried out; nobody learns it, and nothing later is carried out.
    After,
    /// It is carried out and answered, and all bookies are gone.
    ThenNoBookies,
}

#[derive(Default)]
struct Plan {
    crash_at: Option<(usize, Crash)>,
    seen: usize,
    down: bool,
    unknown_once: Option<bool>,
    /// A repairer writes right after the transaction of which nobody learns.
    then_repaired: bool,
}

/// Metadata that fails as planned.
struct Faulty {
    inner: MemoryStore,
    plan: Mutex<Plan>,
    crashed: Notify,
    bookies: MemoryBookies,
}

impl Faulty {
    fn check(&self) -> Result<(), MetaError> {
        if self.plan.lock().down { Err(MetaError::Unavailable("down".into())) } else { Ok(()) }
    }

    async fn run(&self, txn: Txn) -> Result<TxnOutcome, MetaError> {
        self.check()?;
        let ours = txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.contains("/cl/")));
        if !ours {
            return self.inner.txn(txn).await;
        }
        let (crash, unknown) = {
            let mut plan = self.plan.lock();
            plan.seen += 1;
            let crash = plan.crash_at.filter(|(at, _)| *at == plan.seen).map(|(_, crash)| crash);
            plan.down = crash.is_some_and(|crash| crash != Crash::ThenNoBookies);
            (crash, plan.unknown_once.take())
        };
        if let Some(carried_out) = unknown {
            if carried_out {
                self.inner.txn(txn).await?;
            }
            if std::mem::take(&mut self.plan.lock().then_repaired) {
                repair::rewrite(&self.inner, |_| {}).await;
            }
            return Err(MetaError::Unknown("lost".into()));
        }
        let outcome = match crash {
            Some(Crash::Before) => Err(MetaError::Unavailable("crash".into())),
            Some(Crash::After) => self.inner.txn(txn).await.and(Err(MetaError::Unknown("crash".into()))),
            _ => self.inner.txn(txn).await,
        };
        if crash == Some(Crash::ThenNoBookies) {
            bookies_down(&self.bookies, true);
        }
        if crash.is_some() {
            self.crashed.notify_one();
        }
        outcome
    }
}

use geminga_common::metadata::Op;

impl MetadataStore for Faulty {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Stored>, MetaError>> {
        async move {
            self.check()?;
            self.inner.get(key).await
        }
        .boxed()
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Stored>, MetaError>> {
        self.inner.list(prefix, after, limit)
    }
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        self.run(txn).boxed()
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

fn bookies_down(bookies: &MemoryBookies, down: bool) {
    bookies.refs().iter().for_each(|bookie| bookies.faults(&bookie.id, |faults| faults.down = down));
}

struct World {
    bookies: MemoryBookies,
    store: Arc<Faulty>,
    config: Config,
    runs: std::cell::Cell<u64>,
}

impl World {
    fn new(ledger_bytes_max: u64) -> Self {
        Self::over(3, ledger_bytes_max)
    }

    fn over(bookies: usize, ledger_bytes_max: u64) -> Self {
        let bookies = MemoryBookies::new(bookies);
        let (inner, plan) = (MemoryStore::new(SystemClock::shared()), Mutex::default());
        let store = Arc::new(Faulty { inner, plan, crashed: Notify::new(), bookies: bookies.clone() });
        let config = Config { ledger_bytes_max, ..Config::default() };
        Self { bookies, store, config, runs: std::cell::Cell::new(0) }
    }

    /// A process: its own ledger client and tasks.
    fn deps(&self) -> Deps {
        self.runs.set(self.runs.get() + 1);
        let (keys, tasks) = (Keys::new("test"), TaskGroup::new());
        let ledgers = LedgerClient::new(Parts {
            rpc: Arc::new(self.bookies.clone()),
            meta: self.store.clone(),
            keys: keys.clone(),
            placement: Arc::new(StaticPlacement::new(self.bookies.refs())),
            quorum: QuorumSpec::new(3, 3, 2).unwrap(),
            limits: Limits::default(),
            recovery: Timing { patience: Duration::from_millis(20), deadline: Duration::from_millis(500) },
            rng: Rng::seeded(self.runs.get()),
            tasks: tasks.clone(),
        });
        Deps {
            ledgers: Arc::new(ledgers),
            metadata: self.store.clone(),
            keys,
            clock: SystemClock::shared(),
            tasks,
            rng: Arc::new(Mutex::new(Rng::seeded(100 + self.runs.get()))),
            guard: Vec::new(),
            owner_epoch: OwnerEpoch(self.runs.get()),
            tombstones_left: Arc::default(),
            tombstone: |ledger, _, _| ledger.encode(),
            config: self.config.clone(),
        }
    }

    async fn open(&self) -> (CursorLog, TaskGroup) {
        let deps = self.deps();
        let tasks = deps.tasks.clone();
        (CursorLog::open(deps, &bundle()).await.expect("the log opens"), tasks)
    }

    async fn chain(&self) -> Option<Chain> {
        let stored = self.store.inner.get(&Keys::new("test").cursor_log(&bundle())).await.unwrap();
        stored.map(|stored| Chain::decode(&stored.value).unwrap())
    }

    fn heal(&self) {
        *self.store.plan.lock() = Plan::default();
        bookies_down(&self.bookies, false);
    }
}

fn bundle() -> Bundle {
    Bundle::parse("public/default/0x00000000_0x40000000").unwrap()
}

fn name(text: &str) -> SubscriptionName {
    SubscriptionName::parse(text).unwrap()
}

fn at(ledger: u64, entry: u64) -> Position {
    Position::new(LedgerId(ledger), EntryId(entry))
}

fn image() -> CursorImage {
    CursorImage {
        acked: Acked::below(at(1, 0)),
        ack_properties: Vec::new(),
        properties: Properties::new(),
        created_ms: 5,
        replicated: false,
    }
}

/// One ledger, 1, of so many entries.
struct One(u64);

impl Log for One {
    fn span_from(&self, from: LedgerId) -> Option<Span> {
        (from <= LedgerId(1)).then_some(Span { ledger: LedgerId(1), entries: self.0 })
    }
    fn end(&self) -> Position {
        at(1, self.0)
    }
}

async fn persist(log: &CursorLog, cursor: CursorId, delta: Delta) -> Result<(), WriteError> {
    let (done, answer) = oneshot::channel();
    log.persist(cursor, delta, Box::new(move |result| drop(done.send(result)))).expect("there is room");
    answer.await.expect("a callback is always called")
}

async fn only(log: &CursorLog, topic: u64) -> Vec<(String, CursorImage)> {
    let found = log.subscriptions(TopicId(topic)).await.unwrap();
    found.into_iter().map(|(name, _, image)| (name.as_str().to_owned(), image)).collect()
}

#[tokio::test]
async fn a_log_without_cursors_writes_nothing() {
    let world = World::new(1 << 20);
    let (log, _) = world.open().await;
    assert!(only(&log, 1).await.is_empty());
    log.delete_topic(TopicId(1)).await.unwrap();
    assert_eq!(log.delete(CursorId(3)).await, Err(WriteError::NoSuchCursor(CursorId(3))));
    log.close().await.unwrap();
    assert!(world.chain().await.is_none());
    assert_eq!(world.bookies.adds(), 0);
}

#[tokio::test]
async fn everything_survives_a_crash() {
    let world = World::new(1 << 20);
    let (log, tasks) = world.open().await;
    let a = log.create(TopicId(1), name("a"), image()).await.unwrap();
    let b = log.create(TopicId(1), name("b"), image()).await.unwrap();
    let c = log.create(TopicId(2), name("a"), image()).await.unwrap();
    let d = log.create(TopicId(3), name("d"), image()).await.unwrap();
    assert_eq!(log.create(TopicId(1), name("a"), image()).await, Err(WriteError::AlreadyExists));
    let mut state = AckState::new(image().acked);
    let entries = One(200_001);
    for e in (1..200_000).step_by(2) {
        state.ack(at(1, e), &entries);
    }
    state.ack_batch(at(1, 0), &[0b10], 2, &entries);
    state.set_ack_properties(vec![("p".into(), 3)]);
    persist(&log, a, state.take_delta().unwrap()).await.unwrap();
    let mut sought = AckState::new(image().acked);
    sought.ack_cumulative(at(1, 100), None, &entries);
    persist(&log, b, sought.take_delta().unwrap()).await.unwrap();
    sought.reset(at(1, 7), Some((&[1], 2)), &entries);
    log.reset(b, sought.acked().clone()).await.unwrap();
    let properties: Properties = [("x".to_owned(), "y".to_owned())].into();
    log.update_properties(b, properties.clone()).await.unwrap();
    log.delete(c).await.unwrap();
    log.delete_topic(TopicId(3)).await.unwrap();
    assert_eq!(persist(&log, d, sought_delta()).await, Err(WriteError::NoSuchCursor(d)));
    let huge: Properties = [("x".to_owned(), "y".repeat(PROPERTIES_MAX))].into();
    assert!(matches!(log.update_properties(b, huge).await, Err(WriteError::TooLarge { .. })));
    tasks.stop();
    for _ in 0..2 {
        let (log, tasks) = world.open().await;
        let found = only(&log, 1).await;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].1.acked, *state.acked(), "a hundred thousand holes and half a batch");
        assert_eq!(found[0].1.acked.holes.len(), 100_000);
        assert_eq!(found[0].1.ack_properties, [("p".to_owned(), 3)]);
        assert_eq!((&found[1].1.acked, &found[1].1.properties), (sought.acked(), &properties));
        assert!(only(&log, 2).await.is_empty() && only(&log, 3).await.is_empty());
        tasks.stop();
    }
}

fn sought_delta() -> Delta {
    Delta { floor: at(1, 1), holes: Default::default(), batches: Vec::new(), ack_properties: None }
}

#[tokio::test]
async fn a_closed_log_needs_no_recovery_and_its_handle_is_dead() {
    let world = World::new(1 << 20);
    let (log, _) = world.open().await;
    let id = log.create(TopicId(1), name("a"), image()).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(log.delete(id).await, Err(Failed::Closed.into()));
    assert_eq!(persist(&log, id, sought_delta()).await, Err(Failed::Closed.into()));
    assert_eq!(world.chain().await.unwrap().open, None);
    assert_eq!(only(&world.open().await.0, 1).await.len(), 1);
}

#[tokio::test]
async fn rolls_keep_everything_and_delete_what_is_superfluous() {
    let world = World::new(2_000);
    let (log, tasks) = world.open().await;
    let entries = One(10_000);
    let mut states = Vec::new();
    for n in 0..60_u64 {
        let id = log.create(TopicId(n % 7), name(&format!("s{n}")), image()).await.unwrap();
        states.push((n, id, AckState::new(image().acked)));
    }
    for round in 0..30 {
        for (n, id, state) in &mut states {
            state.ack(at(1, (round * 7 + *n) % 200), &entries);
            if let Some(delta) = state.take_delta() {
                persist(&log, *id, delta).await.unwrap();
            }
        }
    }
    let chain = world.chain().await.unwrap();
    assert!(chain.next_ordinal > 3, "it rolled: {}", chain.next_ordinal);
    assert!(chain.closed.len() <= 1, "what is superfluous goes");
    tasks.stop();
    let (log, _) = world.open().await;
    for (n, _, state) in &states {
        let found = only(&log, n % 7).await;
        let (_, image) = found.iter().find(|(found, _)| *found == format!("s{n}")).expect("it is there");
        assert_eq!(image.acked, *state.acked());
    }
    log.create(TopicId(1), name("last"), image()).await.unwrap();
    while !list_all(&*world.store, &Keys::new("test").tombstones_prefix()).await.unwrap().is_empty() {
        tokio::task::yield_now().await; // the deleter is at work
    }
    let open = list_all(&*world.store, &Keys::new("test").ledgers_prefix()).await.unwrap();
    assert_eq!(open.len(), 1, "one ledger is left");
}

#[tokio::test]
async fn group_commit_packs_what_waits() {
    let world = World::new(1 << 20);
    let (log, _) = world.open().await;
    let id = log.create(TopicId(1), name("a"), image()).await.unwrap();
    let before = world.bookies.adds();
    let (count, all) = (Arc::new(Mutex::new(0)), Arc::new(Notify::new()));
    for e in 0..1000 {
        let (count, all) = (count.clone(), all.clone());
        let done = move |result: Result<(), WriteError>| {
            result.unwrap();
            *count.lock() += 1;
            if *count.lock() == 1000 {
                all.notify_one();
            }
        };
        let delta = Delta { floor: at(1, e), ..sought_delta() };
        log.persist(id, delta, Box::new(done)).unwrap();
    }
    all.notified().await;
    assert!(world.bookies.adds() - before < 30, "1000 deltas took {} adds", world.bookies.adds() - before);
}

#[tokio::test]
async fn a_full_queue_hands_the_delta_back() {
    let mut world = World::new(1 << 20);
    world.config.queue_bytes_max = 1000;
    let (log, tasks) = world.open().await;
    let id = log.create(TopicId(1), name("a"), image()).await.unwrap();
    world.bookies.refs().iter().for_each(|b| world.bookies.faults(&b.id, |f| f.hold_answers = true));
    let mut queued = 0;
    let refused = loop {
        match log.persist(id, sought_delta(), Box::new(drop)) {
            Ok(()) => queued += 1,
            Err(refused) => break refused,
        }
        assert!(queued < 1000, "the queue is bounded");
    };
    assert_eq!(refused.delta, sought_delta());
    assert_eq!(log.delete(id).await, Err(WriteError::Busy));
    tasks.stop();
}

#[tokio::test]
async fn a_new_owner_poisons_the_old_one() {
    let world = World::new(1 << 20);
    let (old, _) = world.open().await;
    let id = old.create(TopicId(1), name("a"), image()).await.unwrap();
    let (new, _) = world.open().await;
    assert_eq!(only(&new, 1).await.len(), 1);
    assert!(matches!(persist(&old, id, sought_delta()).await, Err(WriteError::Failed(_))));
    assert!(matches!(old.delete(id).await, Err(WriteError::Failed(_))));
    assert!(matches!(old.subscriptions(TopicId(1)).await, Err(WriteError::Failed(_))));
    persist(&new, id, Delta { floor: at(1, 9), ..sought_delta() }).await.unwrap();
    assert_eq!(only(&new, 1).await[0].1.acked.floor, at(1, 9));
}

#[tokio::test]
async fn a_lost_ownership_stops_the_first_write() {
    let world = World::new(1 << 20);
    let mut deps = world.deps();
    deps.guard = vec![Compare::Exists("owner".into())];
    let log = CursorLog::open(deps, &bundle()).await.unwrap();
    let created = log.create(TopicId(1), name("a"), image()).await;
    assert_eq!(created, Err(Failed::Lost.into()));
    assert!(world.chain().await.is_none());
}

#[tokio::test]
async fn an_unknown_outcome_is_read_back() {
    for carried_out in [true, false] {
        let world = World::new(1 << 20);
        let (log, _) = world.open().await;
        world.store.plan.lock().unknown_once = Some(carried_out);
        log.create(TopicId(1), name("a"), image()).await.unwrap();
        assert_eq!(world.chain().await.unwrap().next_ordinal, 1);
    }
}

/// Acks and rolls until the crash; answers what was told to be durable, and all that was asked for.
async fn work_until_crash(world: &World, log: &CursorLog) -> Vec<(String, Acked, Acked)> {
    let entries = One(100_000);
    let mut told: Vec<(String, Acked, Acked)> = Vec::new();
    let mut states = Vec::new();
    let crashed = world.store.crashed.notified();
    tokio::pin!(crashed);
    macro_rules! until_crash {
        ($work:expr) => {
            tokio::select! {
                biased;
                done = $work => match done { Ok(done) => done, Err(_) => return told },
                () = &mut crashed => return told,
            }
        };
    }
    for n in 0..3 {
        let id = until_crash!(log.create(TopicId(1), name(&format!("s{n}")), image()));
        told.push((format!("s{n}"), image().acked, image().acked));
        states.push((id, AckState::new(image().acked)));
    }
    for round in 0..400_u64 {
        for (n, (id, state)) in states.iter_mut().enumerate() {
            state.ack(at(1, round * 5 % 397), &entries);
            let Some(delta) = state.take_delta() else { continue };
            told[n].2 = state.acked().clone();
            until_crash!(persist(log, *id, delta));
            told[n].1 = state.acked().clone();
        }
    }
    told
}

#[tokio::test]
async fn a_crash_at_any_step_keeps_what_was_told_durable() {
    for crash in [Crash::Before, Crash::After, Crash::ThenNoBookies] {
        for step in 1..=7 {
            let world = World::new(1_500);
            world.store.plan.lock().crash_at = Some((step, crash));
            let (log, tasks) = world.open().await;
            let told = work_until_crash(&world, &log).await;
            assert!(world.store.plan.lock().seen >= step, "step {step} was reached");
            tasks.stop();
            world.heal();
            for reopening in 0..2 {
                let (log, tasks) = world.open().await;
                let found = only(&log, 1).await;
                for (name, durable, asked) in &told {
                    let context = format!("{crash:?} at {step}, reopening {reopening}, {name}");
                    let (_, image) = found.iter().find(|(found, _)| found == name).expect(&context);
                    for e in 0..400 {
                        let acked = |acked: &Acked| at(1, e) < acked.floor || acked.holes.contains(at(1, e));
                        assert!(!acked(durable) || acked(&image.acked), "{context}: lost the ack of {e}");
                        assert!(!acked(&image.acked) || acked(asked), "{context}: {e} was never acked");
                    }
                }
                log.create(TopicId(9), name(&format!("n{reopening}")), image()).await.expect("it goes on");
                tasks.stop();
            }
        }
    }
}

/// Mutant 21: a crash between the cursor's move in memory and its persistence. What the stored cursor points at must still be
/// there.
async fn trimmed_below_the_stored_cursor() -> bool {
    let world = World::new(1 << 20);
    let (log, tasks) = world.open().await;
    let id = log.create(TopicId(1), name("a"), image()).await.unwrap();
    let (mut state, mut floors, entries) = (AckState::new(image().acked), DurableFloor::default(), One(100));
    floors.add(id, state.floor());
    state.ack_cumulative(at(1, 9), None, &entries);
    floors.moved(id, state.floor());
    persist(&log, id, state.take_delta().unwrap()).await.unwrap();
    floors.persisted(id, state.floor());
    assert_eq!(floors.minimum(), Some(at(1, 10)));
    state.ack_cumulative(at(1, 49), None, &entries);
    floors.moved(id, state.floor());
    let trimmed_below = floors.minimum().unwrap();
    tasks.stop(); // before the delta is queued
    let (log, _) = world.open().await;
    only(&log, 1).await[0].1.acked.floor < trimmed_below
}

#[tokio::test]
async fn nothing_is_trimmed_that_the_stored_cursor_needs() {
    assert!(!trimmed_below_the_stored_cursor().await);
}

#[cfg(feature = "museum")]
#[tokio::test]
async fn the_museums_mutant_21_is_caught() {
    use crate::cursor::durable_floor::Mutant;
    let _back = geminga_common::museum::bring_back(Mutant::TrimByMemory);
    assert!(trimmed_below_the_stored_cursor().await, "trimming by memory must show");
}

#[test]
fn a_reset_holds_both_places_until_it_is_durable() {
    let mut floors = DurableFloor::default();
    assert_eq!(floors.minimum(), None);
    floors.add(CursorId(1), at(1, 5));
    floors.add(CursorId(2), at(1, 90));
    floors.resetting(CursorId(1), at(1, 2));
    floors.persisted(CursorId(1), at(1, 50));
    assert_eq!(floors.minimum(), Some(at(1, 2)), "a late confirmation of an ack does not undo it");
    floors.reset(CursorId(1), at(1, 2));
    assert_eq!(floors.minimum(), Some(at(1, 2)));
    floors.persisted(CursorId(1), at(1, 60));
    assert_eq!(floors.minimum(), Some(at(1, 60)));
    floors.remove(CursorId(1));
    assert_eq!(floors.minimum(), Some(at(1, 90)));
}
