//! Stories over real ledgers on bookies in memory, and scripts over the pure state.

mod adopt;
mod fsck;
mod guard;
mod heal;
mod offloaded;
mod rebuild;
mod together;

use super::*;
use futures::future::BoxFuture;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{ClosedLedger, Fragment};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::clock::ManualClock;
use geminga_common::ids::{EntryId, MessageIndex, Term};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{LeaseId, MetaError, Op, Record, Txn, TxnOutcome, WatchStream};
use parking_lot::Mutex;
use state::{Change, OpenTail, Segment};
use std::time::Duration;
use tokio::sync::mpsc;

/// A store whose transactions can lose their answers.
struct Doubtful {
    inner: MemoryStore,
    /// Next transactions: carried out or not, the answer is lost.
    lose: Mutex<Vec<bool>>,
    /// Somebody else's transaction, which comes right before the next on a topic.
    crosses: Mutex<Option<Txn>>,
    gets: std::sync::atomic::AtomicUsize,
}

impl MetadataStore for Doubtful {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.gets.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.inner.get(key)
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
        let topic = txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.contains("/t/")));
        let lost = if topic { self.lose.lock().pop() } else { None };
        let crosses = if topic { self.crosses.lock().take() } else { None };
        Box::pin(async move {
            if let Some(crosses) = crosses {
                assert!(matches!(self.inner.txn(crosses).await?, TxnOutcome::Committed(_)));
            }
            match lost {
                None => self.inner.txn(txn).await,
                Some(done) => {
                    if done {
                        self.inner.txn(txn).await?;
                    }
                    Err(MetaError::Unknown("lost".into()))
                }
            }
        })
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

struct Rig {
    deps: Deps,
    meta: Arc<Doubtful>,
    clock: Arc<ManualClock>,
    bookies: MemoryBookies,
}

impl Rig {
    fn new(config: Config) -> Self {
        Self::over(3, config)
    }

    fn over(bookies: usize, config: Config) -> Self {
        let clock = Arc::new(ManualClock::at_wall_ms(1_000_000));
        let meta = Arc::new(Doubtful {
            inner: MemoryStore::new(clock.clone()),
            lose: Mutex::default(),
            crosses: Mutex::default(),
            gets: Default::default(),
        });
        let bookies = MemoryBookies::new(bookies);
        let tasks = TaskGroup::new();
        let keys = Keys::new("test");
        let ledgers = LedgerClient::new(Parts {
            rpc: Arc::new(bookies.clone()),
            meta: meta.clone(),
            keys: keys.clone(),
            placement: Arc::new(StaticPlacement::new(bookies.refs())),
            quorum: QuorumSpec::new(3, 3, 2).unwrap(),
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::seeded(7),
            tasks: tasks.clone(),
        });
        let deps = Deps {
            ledgers: Arc::new(ledgers),
            meta: meta.clone(),
            keys: Arc::new(keys),
            clock: clock.clone(),
            tasks,
            cache: CacheBudget::new(1 << 20),
            topic_ids: Arc::default(),
            config: Arc::new(config),
            tier: None,
            owner_epoch: OwnerEpoch(1),
            guard: Vec::new(),
            tombstones_left: Arc::default(),
            may_change: Arc::new(|| true),
        };
        Self { deps, meta, clock, bookies }
    }

    async fn open(&self) -> Owner {
        let (tx, mailbox) = mpsc::channel(10_000);
        let events: Events = Arc::new(move |event| {
            let _gone = tx.try_send(event);
        });
        let topic = TopicName::parse("persistent://public/default/story").unwrap();
        let create = CreateMode::CreateIfMissing(BTreeMap::new(), Vec::new());
        let ml = ManagedLedger::open(self.deps.clone(), topic, create, events).await.unwrap();
        Owner { ml, mailbox, clock: self.clock.clone() }
    }
}

struct Owner {
    ml: ManagedLedger,
    mailbox: mpsc::Receiver<Event>,
    clock: Arc<ManualClock>,
}

impl Owner {
    /// Handles events until an output answers `pick`. Time moves with every pause, so that waits by the clock end.
    async fn until<T>(&mut self, mut pick: impl FnMut(Output) -> Option<T>) -> T {
        let mut out = Vec::new();
        for _ in 0..20_000 {
            match tokio::time::timeout(Duration::from_millis(5), self.mailbox.recv()).await {
                Ok(event) => self.ml.on_event(event.unwrap(), &mut out),
                Err(_) => {
                    self.clock.advance(Duration::from_millis(100));
                    self.ml.on_tick(&mut out);
                }
            }
            for output in out.drain(..) {
                if let Some(found) = pick(output) {
                    return found;
                }
            }
        }
        panic!("the awaited output never came; {:?}", self.ml.stats());
    }

    fn send(&mut self, range: std::ops::Range<u32>) {
        for n in range {
            self.ml.append(vec![append(n)]).unwrap();
        }
    }

    /// Appends and waits for all; answers positions.
    async fn append(&mut self, range: std::ops::Range<u32>) -> Vec<Position> {
        let count = range.len();
        self.send(range);
        self.acked(count).await
    }

    async fn acked(&mut self, count: usize) -> Vec<Position> {
        let mut all = Vec::new();
        while all.len() < count {
            let (first, n) = self
                .until(|o| match o {
                    Output::Appended { first, count } => Some((first, count)),
                    Output::AppendFailed { error, .. } => panic!("append failed: {error}"),
                    Output::Poisoned(reason) => panic!("poisoned: {reason}"),
                    _ => None,
                })
                .await;
            all.extend((0..u64::from(n)).map(|i| Position::new(first.ledger, EntryId(first.entry.0 + i))));
        }
        all
    }

    async fn changed(&mut self, token: Token) -> Result<(), ChangeError> {
        self.until(|o| match o {
            Output::RecordChanged { token: t, result } if t == token => Some(result),
            _ => None,
        })
        .await
    }

    async fn poisoned(&mut self) -> (u32, PoisonReason) {
        let mut failed = 0;
        self.until(|o| match o {
            Output::AppendFailed { count, .. } => {
                failed += count;
                None
            }
            Output::Poisoned(reason) => Some((failed, reason)),
            _ => None,
        })
        .await
    }

    /// Reads from a position to the end, in small steps.
    async fn read_all(&mut self, from: Position) -> Vec<ReadEntry> {
        let (mut all, mut from): (Vec<ReadEntry>, _) = (Vec::new(), from);
        loop {
            let limit = ReadLimit { entries: 3, bytes: 1 << 20 };
            let run = match self.ml.read(from, limit, ReadClass::CatchUp) {
                ReadOutcome::AtEnd => return all,
                ReadOutcome::Ready(run) => run,
                ReadOutcome::Pending(token) => self.result(token).await.unwrap(),
            };
            assert!(!run.is_empty() && run.len() <= 3);
            from = self.ml.next_position(run.last().unwrap().position);
            all.extend(run);
        }
    }

    async fn result(&mut self, token: Token) -> Result<Vec<ReadEntry>, ReadError> {
        self.until(|o| match o {
            Output::Read { token: t, result } if t == token => Some(result),
            _ => None,
        })
        .await
    }

    async fn found(&mut self, token: Token) -> Option<Position> {
        self.until(|o| match o {
            Output::Found { token: t, result } if t == token => Some(result.unwrap()),
            _ => None,
        })
        .await
    }
}

fn append(n: u32) -> Append {
    Append { payload: payload(n).into(), messages: n % 3 + 1 }
}

fn payload(n: u32) -> Bytes {
    Bytes::from(format!("message {n} {}", "x".repeat(n as usize % 50)))
}

/// Entries 0, 1, 2, … with contiguous indexes, from the `first`th on.
fn assert_story(entries: &[ReadEntry], first: u32, count: u32) {
    assert_eq!(entries.len(), count as usize);
    let mut index: u64 = (0..first).map(|n| u64::from(n % 3 + 1)).sum();
    for (n, e) in (first..).zip(entries) {
        assert_eq!(e.entry.payload, payload(n));
        assert_eq!(e.entry.header.first_index, MessageIndex(index), "index of entry {n}");
        index += u64::from(e.entry.header.messages);
    }
    assert!(entries.windows(2).all(|w| w[0].position < w[1].position));
}

fn small() -> Config {
    Config { roll_entries: 10, metadata_deadline: Duration::from_secs(5), ..Config::default() }
}

#[tokio::test]
async fn what_is_appended_is_read_back_across_rolls_from_cache_and_from_bookies() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    assert_eq!(owner.ml.stats().state, "NoLedger", "no ledger before the first append");
    let positions = owner.append(0..45).await;
    let ledgers: std::collections::BTreeSet<_> = positions.iter().map(|p| p.ledger).collect();
    assert_eq!(ledgers.len(), 5);
    assert_eq!(owner.ml.next_index(), 90);
    let first = owner.ml.first_position();
    let from_cache = owner.read_all(first).await;
    assert_story(&from_cache, 0, 45);
    assert_eq!(from_cache.iter().map(|e| e.position).collect::<Vec<_>>(), positions);
    owner.ml.cache.trim(owner.ml.end_position());
    let from_bookies = owner.read_all(first).await;
    assert_eq!(from_bookies, from_cache_without_bytes(&from_cache, &from_bookies));
    assert_eq!(owner.ml.entries_between(first, owner.ml.end_position()), 45);
    assert_eq!(owner.ml.messages_between(first, owner.ml.end_position()), 90);
}

/// `bytes_before` is the ledger writer's business: cached entries do not carry it.
fn from_cache_without_bytes(cached: &[ReadEntry], stored: &[ReadEntry]) -> Vec<ReadEntry> {
    let mut cached = cached.to_vec();
    for (c, s) in cached.iter_mut().zip(stored) {
        c.entry.header.bytes_before = s.entry.header.bytes_before;
    }
    cached
}

#[tokio::test]
async fn a_crash_keeps_what_was_acknowledged_and_the_index_runs_on() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    owner.append(0..14).await;
    drop(owner);
    let mut owner = rig.open().await;
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 14);
    owner.append(14..30).await;
    let closed = owner.ml.close();
    owner.changed(closed).await.unwrap();
    assert_eq!(owner.ml.append(vec![append(0)]), Err(AppendRefused::Dead));
    let mut owner = rig.open().await;
    assert_eq!(owner.ml.next_index(), 60);
    assert_story(&owner.read_all(first).await, 0, 30);
    let middle = owner.ml.find_by_index(14);
    let found = owner.found(middle).await.unwrap();
    assert_eq!(owner.ml.entries_between(first, found), 7, "indexes 14 is in entry 7");
}

#[tokio::test]
async fn appends_in_flight_at_a_take_over_fail_in_order_and_the_old_handle_is_dead() {
    let rig = Rig::new(small());
    let mut old = rig.open().await;
    old.append(0..5).await;
    let mut new = rig.open().await;
    let first = new.ml.first_position();
    new.append(5..8).await;
    old.send(100..103);
    let (failed, reason) = old.poisoned().await;
    assert_eq!(failed, 3);
    assert!(matches!(reason, PoisonReason::Writer(AppendError::Fenced)), "{reason:?}");
    assert_eq!(old.ml.append(vec![append(0)]), Err(AppendRefused::Dead));
    assert_story(&new.read_all(first).await, 0, 8);
}

#[tokio::test]
async fn a_stolen_record_poisons_before_anything_is_sent() {
    let rig = Rig::new(small());
    let (mut old, mut new) = (rig.open().await, rig.open().await);
    new.append(0..2).await;
    old.send(100..102);
    assert_eq!(old.poisoned().await, (2, PoisonReason::RecordLost));
    let first = new.ml.first_position();
    assert_story(&new.read_all(first).await, 0, 2);
}

#[tokio::test]
async fn a_lost_answer_is_read_back_and_never_guessed() {
    for carried_out in [true, false] {
        let rig = Rig::new(small());
        let mut owner = rig.open().await;
        rig.meta.lose.lock().extend([carried_out, carried_out]);
        owner.append(0..4).await;
        rig.meta.lose.lock().clear();
        rig.meta.lose.lock().push(carried_out);
        owner.append(4..25).await;
        let first = owner.ml.first_position();
        assert_story(&owner.read_all(first).await, 0, 25);
        assert_eq!(owner.ml.stats().ledgers.len(), 3, "no ledger was made twice");
    }
}

#[tokio::test]
async fn trimming_takes_whole_closed_ledgers_below_the_floor_and_their_bytes() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    let p = owner.append(0..35).await;
    owner.ml.trim(Some(p[9]), Retention::NONE);
    owner.ml.trim(Some(p[25]), Retention::FOREVER);
    assert_eq!(owner.ml.first_position(), p[0], "the floor is the last entry of the first ledger");
    // A request that found nothing leaves no trace; the next one is taken.
    owner.ml.trim(Some(p[25]), Retention::NONE);
    let first = owner
        .until(|o| match o {
            Output::Trimmed { first, ledgers } => Some((first, ledgers)),
            _ => None,
        })
        .await;
    assert_eq!(first, (p[20], 2));
    assert_eq!(owner.ml.clamp(p[3]), p[20]);
    assert_story(&owner.read_all(p[0]).await, 20, 15);
    let tombstones = rig.deps.keys.tombstones_prefix();
    for _ in 0..1000 {
        if rig.meta.list(&tombstones, None, 10).await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        sweep_tombstones(&rig.deps, Duration::ZERO).await.unwrap();
    }
    assert!(rig.meta.list(&tombstones, None, 10).await.unwrap().is_empty());
    let held = |l: LedgerId| {
        rig.bookies
            .refs()
            .iter()
            .filter(|b| {
                rig.bookies.with_store(&b.id, |s| s.entry(l, EntryId(0)).is_some()).unwrap_or_default()
            })
            .count()
    };
    assert_eq!(held(p[0].ledger), 0);
    assert!(held(p[20].ledger) >= 2);
}

#[tokio::test]
async fn a_terminated_topic_takes_what_came_before_and_nothing_after() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    owner.send(0..13);
    let token = owner.ml.terminate();
    assert!(owner.ml.append(vec![append(99)]).is_err());
    assert_eq!(owner.acked(13).await.len(), 13);
    owner.changed(token).await.unwrap();
    let mut owner = rig.open().await;
    assert!(owner.ml.is_terminated());
    assert_eq!(owner.ml.append(vec![append(99)]), Err(AppendRefused::Terminated));
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 13);
    assert_eq!(owner.ml.last_confirmed().map(|p| p.entry), Some(EntryId(2)));
}

#[tokio::test]
async fn a_deleted_topic_leaves_nothing_and_its_successor_inherits_nothing() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    owner.append(0..13).await;
    let id = owner.ml.topic_id();
    let token = owner.ml.delete();
    owner.changed(token).await.unwrap();
    let owner = rig.open().await;
    assert_ne!(owner.ml.topic_id(), id);
    assert_eq!(owner.ml.last_confirmed(), None);
}

#[tokio::test]
async fn too_large_is_refused_alone_and_too_much_is_busy() {
    let config = Config { entry_bytes_max: 100, pending_bytes_max: 300, ..small() };
    let rig = Rig::new(config);
    let mut owner = rig.open().await;
    owner.send(0..2);
    let large = Append { payload: vec![0; 101].into(), messages: 1 };
    let refused = owner.ml.append(vec![append(2), large]);
    assert_eq!(refused, Err(AppendRefused::TooLarge { nth: 1, size: 101, limit: 100 }));
    let full = Append { payload: vec![0; 100].into(), messages: 1 };
    assert_eq!(owner.ml.append(vec![full.clone(), full]), Err(AppendRefused::Busy));
    assert_eq!(owner.acked(2).await.len(), 2);
    owner.append(2..5).await;
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 5);
}

#[tokio::test]
async fn an_idle_ledger_is_closed_and_points_and_times_are_found() {
    let rig = Rig::new(Config { idle_close: Duration::from_secs(3600), ..small() });
    let mut owner = rig.open().await;
    let early = owner.append(0..6).await;
    rig.clock.advance(Duration::from_secs(100));
    let later_ms = geminga_common::clock::Clock::wall_ms(&*rig.clock);
    let late = owner.append(6..12).await;
    rig.clock.advance(Duration::from_secs(3600));
    let mut out = Vec::new();
    owner.ml.on_tick(&mut out);
    let token = owner.ml.set_properties(BTreeMap::from([("a".into(), "b".into())]));
    owner.changed(token).await.unwrap();
    assert_eq!(owner.ml.stats().state, "NoLedger");
    let token = owner.ml.find_by_time(later_ms);
    assert_eq!(owner.found(token).await, Some(late[0]));
    let token = owner.ml.find_by_time(u64::MAX);
    assert_eq!(owner.found(token).await, None);
    let mut owner = rig.open().await;
    assert_eq!(owner.ml.properties().get("a").map(String::as_str), Some("b"));
    let ReadOutcome::Pending(token) = owner.ml.read_at(&[early[4], early[1], early[2], late[5]]) else {
        panic!("nothing is cached after opening")
    };
    let points = owner.result(token).await.unwrap();
    let payloads: Vec<_> = points.into_iter().map(|e| e.entry.payload).collect();
    assert_eq!(payloads, [payload(4), payload(1), payload(2), payload(11)]);
}

#[tokio::test]
async fn the_cache_of_all_topics_stays_within_its_budget_oldest_first() {
    let budget = CacheBudget::new(10_000);
    let (a, b) = (cache::TopicCache::new(&budget, 0), cache::TopicCache::new(&budget, 0));
    let entry = |ledger: u64, id: u64| ReadEntry {
        position: Position::new(LedgerId(ledger), EntryId(id)),
        entry: Entry {
            header: Header {
                kind: geminga_bookie_client::entry::Kind::Messages,
                messages: 1,
                first_index: MessageIndex(id),
                timestamp_ms: 0,
                bytes_before: 0,
            },
            payload: Bytes::from(vec![1; 872]),
        },
    };
    let one = ReadLimit { entries: 1, bytes: 0 };
    a.push_tail((0..4).map(|id| entry(1, id)));
    for id in 0..8 {
        b.push_tail(std::iter::once(entry(2, id)));
    }
    assert!(budget.used() <= 10_000, "{}", budget.used());
    assert!(a.get(entry(1, 0).position, one).is_none(), "the oldest insertion went");
    assert!(b.get(entry(2, 7).position, one).is_some());
    drop(b);
    drop(a);
    assert_eq!(budget.used(), 0);
}

// ---- scripts over the pure state -------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_topic_is_created_only_while_its_conditions_hold() {
    let rig = Rig::new(Config::default());
    let topic = TopicName::parse("persistent://public/default/guarded").unwrap();
    let put = |value: &'static [u8]| Txn { compares: Vec::new(), ops: vec![Op::put("ns", value)] };
    let write = async |value| match rig.meta.txn(put(value)).await.unwrap() {
        TxnOutcome::Committed(revision) => Compare::ModRevision("ns".into(), revision),
        other => panic!("{other:?}"),
    };
    let open = async |guard: &Compare| {
        let mode = CreateMode::CreateIfMissing(BTreeMap::new(), vec![guard.clone()]);
        ManagedLedger::open(rig.deps.clone(), topic.clone(), mode, Arc::new(|_| {})).await
    };
    let before = write(b"alive").await;
    let after = write(b"going").await;
    assert_eq!(open(&before).await.err(), Some(OpenError::CreationLost));
    assert_eq!(rig.meta.get(&rig.deps.keys.topic(&topic)).await.unwrap(), None, "nothing was created");
    assert!(open(&after).await.is_ok());
    assert!(open(&before).await.is_ok(), "what is there is opened whatever the conditions of its creation");
}

#[test]
fn retention_names_its_time_and_eviction_its_place() {
    let mut state = State::new(TopicId(1), BTreeMap::new(), 0);
    let segment =
        |id: u64, closed_ms| Segment::new(closed(id, 10), MessageIndex(id * 10), 0, closed_ms).unwrap();
    assert!(state.set_chain(vec![segment(1, 1000), segment(2, 5000)], None));
    state.last = Some(at(2, 9));
    let minute = Retention { time_ms: Some(60_000), size_bytes: None };
    let due = |floor: Option<Position>, now| state.next_trim_ms(floor, minute, now);
    assert_eq!(due(None, 0), Some(61_000));
    assert_eq!(due(None, 61_000), Some(61_000));
    assert_eq!(due(Some(at(1, 9)), 99_000), None, "still needed: time alone changes nothing");
    assert_eq!(due(Some(at(2, 0)), 99_000), Some(99_000));
    assert_eq!(state.next_trim_ms(None, Retention::FOREVER, 99_000), None);
    // Two ledgers of ten entries of 100 bytes.
    let leaving = |bytes| state.position_leaving(bytes);
    assert_eq!((leaving(5000), leaving(2000), leaving(1999)), (at(1, 0), at(1, 0), at(1, 1)));
    assert_eq!((leaving(1000), leaving(900), leaving(1)), (at(2, 0), at(2, 1), state.end()));
    for bytes in 0..2500 {
        let left = 2000 - state.rank(leaving(bytes)).1;
        assert!(left <= bytes, "{left} bytes are left of {bytes}");
    }
}

fn closed(id: u64, entries: u64) -> ClosedLedger {
    ClosedLedger {
        id: LedgerId(id),
        last: entries.checked_sub(1).map(EntryId),
        length: entries * 100,
        term: Term(1),
        quorum: QuorumSpec::SINGLE,
        fragments: vec![Fragment {
            first: EntryId(0),
            ensemble: MemoryBookies::new(1).refs().into_iter().map(Some).collect(),
        }],
        repair: Vec::new(),
    }
}

fn at(ledger: u64, entry: u64) -> Position {
    Position::new(LedgerId(ledger), EntryId(entry))
}

/// Ledgers 3 (4 entries), 5 (empty), 7 (2 entries), then 9 open with 3 confirmed.
fn chain() -> State {
    let mut state = State::new(TopicId(1), BTreeMap::new(), 5);
    for (id, entries) in [(3, 4), (5, 0), (7, 2), (9, 3)] {
        let open = OpenTail::new(LedgerId(id), state.next_index, id * 1000, Duration::ZERO);
        state.apply(&Change { open: Some(open), ..Change::default() });
        for _ in 0..entries {
            state.sent(2, 100, id * 1000, Duration::ZERO);
            state.confirmed(100);
        }
        if id < 9 {
            let close = Some((closed(id, entries), id * 1000 + 500));
            state.apply(&Change { close, ..Change::default() });
        }
    }
    state
}

#[test]
fn positions_lead_over_closed_ends_empty_and_unknown_ledgers() {
    let s = chain();
    assert_eq!((s.first(), s.end(), s.last), (at(3, 0), at(9, 3), Some(at(9, 2))));
    assert_eq!(s.next(at(3, 3)), at(7, 0));
    assert_eq!(s.next(at(7, 1)), at(9, 0));
    assert_eq!(s.next(at(9, 2)), at(9, 3));
    assert_eq!(s.clamp(at(0, 5)), at(3, 0));
    assert_eq!(s.clamp(at(5, 0)), at(7, 0));
    assert_eq!(s.clamp(at(8, 9)), at(9, 0));
    assert_eq!(s.clamp(at(12, 0)), at(9, 3));
    assert_eq!(s.previous(at(7, 0)), Some(at(3, 3)));
    assert_eq!(s.previous(at(9, 0)), Some(at(7, 1)));
    assert_eq!(s.previous(at(9, 3)), Some(at(9, 2)));
    assert_eq!(s.previous(at(20, 3)), Some(at(9, 2)));
    assert_eq!(s.previous(at(3, 0)), None);
    assert_eq!((s.rank(s.first()), s.rank(at(7, 1)), s.rank(s.end())), ((0, 0), (5, 500), (9, 900)));
    assert_eq!((s.index_rank(at(7, 1)), s.index_rank(s.end())), (10, 18));
    // Walking visits every entry once.
    let mut walked = 0;
    let mut p = s.first();
    while p < s.end() {
        p = s.next(p);
        walked += 1;
    }
    assert_eq!(walked, 9);
}

#[test]
fn only_what_durable_cursors_have_left_is_trimmed() {
    let s = chain();
    let trim = |floor, retention| s.trim_choice(floor, retention, 100_000, 10);
    assert_eq!(trim(None, Retention::NONE), 2, "the open ledger stays");
    assert_eq!(trim(Some(at(3, 3)), Retention::NONE), 0, "an entry is still needed");
    assert_eq!(trim(Some(at(3, 4)), Retention::NONE), 1);
    assert_eq!(trim(Some(at(7, 0)), Retention::NONE), 1);
    assert_eq!(trim(Some(at(9, 0)), Retention::FOREVER), 0);
    let retention = Retention { time_ms: None, size_bytes: Some(500) };
    assert_eq!(trim(None, retention), 1, "500 bytes stay");
    let retention = Retention { time_ms: Some(95_000), size_bytes: None };
    assert_eq!(trim(None, retention), 1, "only the first has been closed for long enough");
}

#[test]
fn the_stored_form_comes_back_and_strangers_are_refused() {
    let mut s = chain();
    s.properties.insert("k".into(), "v".into());
    s.topic_epoch = Some(0);
    let stored = record::encode(&s, 77);
    let (back, op_id) = record::decode(&stored).unwrap();
    assert_eq!(op_id, 77);
    assert_eq!(back.segments(), s.segments());
    assert_eq!(back.open().map(|o| (o.id, o.first_index)), Some((LedgerId(9), MessageIndex(12))));
    assert_eq!(back.next_index, MessageIndex(12), "what the open ledger holds is told by its recovery");
    assert_eq!(back.last, Some(at(7, 1)));
    assert_eq!((back.properties, back.topic_epoch, back.next_ordinal), (s.properties, Some(0), 4));
    assert!(matches!(record::decode(&[8, 3]), Err(record::RecordError::Version(3))));
    assert!(record::decode(b"\xff\xff").is_err());
    let tombstone = record::encode_tombstone(&closed(3, 4), TopicId(1), 9);
    assert_eq!(record::decode_tombstone(&tombstone), Ok((closed(3, 4), TopicId(1))));
}

#[test]
fn where_a_ledger_is_comes_back_in_a_record_that_older_builds_refuse() {
    use geminga_offload::key::AttemptId;
    use geminga_offload::state::{ObjectRef, Offload};
    let mut s = chain();
    assert_eq!(record::encode(&s, 1)[..2], [8, 1], "a topic without offloaded ledgers is written as ever");
    let shape = geminga_offload::writer::Shape { size: 900, footer_offset: 800, footer_crc: 7 };
    let object = ObjectRef { attempt: AttemptId(u64::MAX), begun_ms: 5, shape, part: None };
    let offload = vec![(LedgerId(7), Offload::Committed(object, 6))];
    s.apply(&Change { offload: offload.clone(), ..Change::default() });
    let stored = record::encode(&s, 1);
    assert_eq!(stored[..2], [8, 2]);
    let (back, _) = record::decode(&stored).unwrap();
    assert_eq!(back.segments(), s.segments());
    assert_eq!(back.segment(LedgerId(7)).map(|s| s.offload.clone()), Some(offload[0].1.clone()));
    assert_eq!(back.segment(LedgerId(3)).map(|s| s.offload.clone()), Some(Offload::Bookies));
}

#[test]
fn ledger_ids_that_do_not_rise_are_never_taken() {
    let mut s = chain();
    s.apply(&Change { close: Some((closed(9, 3), 0)), ..Change::default() });
    let low = OpenTail::new(LedgerId(9), s.next_index, 0, Duration::ZERO);
    let refused = std::panic::catch_unwind(move || s.apply(&Change { open: Some(low), ..Change::default() }));
    assert!(refused.is_err());
}
