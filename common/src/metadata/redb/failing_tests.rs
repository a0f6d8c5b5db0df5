//! A disk that fails at each of its calls in turn: what the store answers then, holds afterwards, and tells its watches.
//!
//! The disk is the simulated one, on which a failed sync loses what it should have made durable while reads still show it; the test
//! ends with a loss of power, so that a store which went on over such pages is found out.

use super::tests::{DEADLINE, Running};
use super::*;
use crate::clock::ManualClock;
use crate::disk::sim::{Crash, SimDisk};
use crate::disk::{DiskFile, OpenMode, Space};
use crate::metadata::{Compare, Op, WatchEvent, list_all};
use crate::rng::Rng;
use bytes::Bytes;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

/// Which calls fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Read,
    Write,
    /// A write that runs out of room half-way.
    Full,
    Sync,
    SetLen,
    Open,
}

/// A plan of failures: the next `good` calls of a kind go well, then `bad` ones fail.
#[derive(Clone, Copy, Debug)]
struct Plan {
    call: Call,
    good: u64,
    bad: u64,
    begun: bool,
}

impl Plan {
    fn new(call: Call, good: u64, bad: u64) -> Self {
        Self { call, good, bad, begun: false }
    }
}

#[derive(Clone)]
struct Failing {
    sim: SimDisk,
    /// One after the other: the next begins when the one before it has run out.
    plans: Arc<Mutex<Vec<Plan>>>,
}

struct FailingFile(Failing, Arc<dyn DiskFile>);

impl Failing {
    fn new() -> Self {
        let sim = SimDisk::new();
        sim.create_dir_all(Path::new("/d")).unwrap();
        Self { sim, plans: Arc::default() }
    }

    fn strikes(&self, calls: &[Call]) -> Option<Call> {
        let mut plans = self.plans.lock();
        let plan = plans.first_mut().filter(|plan| calls.contains(&plan.call))?;
        if plan.good > 0 {
            plan.good -= 1;
            return None;
        }
        let call = plan.call;
        plan.bad -= 1;
        plan.begun = true;
        if plan.bad == 0 {
            plans.remove(0);
        }
        Some(call)
    }

    /// Ends all failures; whether all that were planned have begun.
    fn heal(&self) -> bool {
        let left = std::mem::take(&mut *self.plans.lock());
        left.iter().all(|plan| plan.begun)
    }
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Disk for Failing {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.sim.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        match self.strikes(&[Call::Open]) {
            Some(_) => Err(io_error()),
            None => Ok(Arc::new(FailingFile(self.clone(), self.sim.open(path, mode)?))),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.sim.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sim.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let full = self.plans.lock().first().is_some_and(|plan| plan.call == Call::Full && plan.begun);
        let space = self.sim.space(dir)?;
        Ok(Space { available: if full { 0 } else { space.available }, ..space })
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.sim.lock(path)
    }
}

impl DiskFile for FailingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.0.strikes(&[Call::Read]) {
            Some(_) => Err(io_error()),
            None => self.1.read_exact_at(buf, offset),
        }
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.0.strikes(&[Call::Write, Call::Full]) {
            Some(Call::Full) => {
                self.1.write_all_at(&buf[..buf.len() / 2], offset)?;
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(_) => Err(io_error()),
            None => self.1.write_all_at(buf, offset),
        }
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.0.strikes(&[Call::Sync]).is_some() {
            self.0.sim.fail_sync_in(0);
        }
        self.1.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.0.strikes(&[Call::SetLen]) {
            Some(_) => Err(io_error()),
            None => self.1.set_len(len),
        }
    }
}

type Content = BTreeMap<String, Bytes>;

/// What the store may hold: one content more for every transaction whose outcome is not known.
struct Model(BTreeSet<Content>);

impl Model {
    fn hold(content: &Content, txn: &Txn) -> bool {
        txn.compares.iter().all(|compare| match compare {
            Compare::Absent(key) => !content.contains_key(key),
            Compare::Exists(key) => content.contains_key(key),
            other => panic!("{other:?} is not in the script"),
        })
    }

    fn apply(mut content: Content, txn: &Txn) -> Content {
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => drop(content.insert(key.clone(), value.clone())),
                Op::Delete { key } => drop(content.remove(key)),
            }
        }
        content
    }

    fn answered(&mut self, txn: &Txn, answer: &Result<TxnOutcome, MetaError>) {
        let before = std::mem::take(&mut self.0);
        self.0 = match answer {
            Ok(TxnOutcome::Committed(_)) => {
                let held = before.into_iter().filter(|content| Self::hold(content, txn));
                held.map(|content| Self::apply(content, txn)).collect()
            }
            Ok(TxnOutcome::CompareFailed) => {
                before.into_iter().filter(|content| !Self::hold(content, txn)).collect()
            }
            Err(MetaError::Unknown(_)) => {
                let held = before.clone().into_iter().filter(|content| Self::hold(content, txn));
                held.map(|content| Self::apply(content, txn)).chain(before.clone()).collect()
            }
            Err(MetaError::Unavailable(why)) => {
                let named = why.contains("/d/meta.redb failed: ") && why.contains("; ");
                assert!(named && !why.contains("revious"), "{why}");
                before
            }
            Err(other) => panic!("{other:?}"),
        };
        assert!(!self.0.is_empty(), "{txn:?} cannot have been answered {answer:?}");
    }
}

/// How values of keys on the lease begin.
const LEASED: u8 = b'L';

/// A reader that knows the store from its watch alone, and lists only when it is told to.
struct Reader {
    events: WatchStream,
    known: Content,
}

impl Reader {
    async fn catch_up(&mut self, store: &RedbStore) -> bool {
        let mut resynced = false;
        while let Ok(event) = self.events.try_recv() {
            match event {
                WatchEvent::Put(record) => drop(self.known.insert(record.key, record.value)),
                WatchEvent::Deleted(key, _) => drop(self.known.remove(&key)),
                WatchEvent::Resync => {
                    self.known = content(store).await;
                    resynced = true;
                }
            }
        }
        resynced
    }
}

async fn content(store: &RedbStore) -> Content {
    let all = list_all(store, "").await.unwrap();
    all.into_iter().map(|record| (record.key, record.value)).collect()
}

struct World {
    disk: Failing,
    clock: Arc<ManualClock>,
    running: Running,
    model: Model,
    reader: Reader,
    lease: LeaseId,
    rng: Rng,
    counts: Counts,
}

/// What came of transactions while the disk failed.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    /// Answered `Unknown`.
    unknown: usize,
    /// Runs in which some of those had happened.
    happened: usize,
    /// Answered `Unavailable`.
    refused: usize,
    /// Places at which a call failed.
    places: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let (disk, clock) = (Failing::new(), Arc::new(ManualClock::default()));
        let running = start(&disk, &clock);
        let events = running.store.watch("").await.unwrap();
        let lease = running.store.lease_grant(Duration::from_secs(3600)).await.unwrap();
        let mut world = Self {
            disk,
            clock,
            running,
            model: Model(BTreeSet::from([Content::new()])),
            reader: Reader { events, known: Content::new() },
            lease,
            rng: Rng::seeded(seed),
            counts: Counts::default(),
        };
        let op = Op::Put { key: "leased".into(), value: Bytes::from_static(&[LEASED]), lease: Some(lease) };
        world.run(vec![Txn { compares: vec![], ops: vec![op] }]).await;
        world
    }

    /// A transaction on few keys, so that conditions fail and keys come and go; some values need pages of their own.
    fn txn(&mut self) -> Txn {
        let mut keys = vec![format!("k{}", self.rng.below(5)), format!("k{}", 5 + self.rng.below(5))];
        keys.truncate(1 + self.rng.below(2) as usize);
        let compares = match self.rng.below(4) {
            0 => vec![Compare::Absent(keys[0].clone())],
            1 => vec![Compare::Exists(keys[0].clone())],
            _ => vec![],
        };
        let mut op = |key| match self.rng.below(4) {
            0 => Op::delete(key),
            large => {
                let mut value = self.rng.next_u64().to_string().into_bytes();
                value.resize(if large == 1 { 30_000 } else { 50 }, b' ');
                let lease = (self.rng.below(3) == 0).then_some(self.lease);
                value[0] = if lease.is_some() { LEASED } else { b' ' };
                Op::Put { key, value: value.into(), lease }
            }
        };
        let ops = keys.into_iter().map(&mut op).collect();
        Txn { compares, ops }
    }

    /// Asks for all of them at once: they share a commit.
    async fn run(&mut self, txns: Vec<Txn>) {
        let answers = futures::future::join_all(txns.iter().cloned().map(|txn| self.running.store.txn(txn)));
        for (txn, answer) in txns.iter().zip(answers.await) {
            self.counts.unknown += usize::from(matches!(answer, Err(MetaError::Unknown(_))));
            self.counts.refused += usize::from(matches!(answer, Err(MetaError::Unavailable(_))));
            self.model.answered(txn, &answer);
        }
    }

    async fn script(&mut self, steps: u64) {
        for step in 0..steps {
            let txns = (0..1 + step % 3).map(|_| self.txn()).collect();
            self.run(txns).await;
            assert_eq!(self.running.store.lease_keep_alive(self.lease).await, Ok(()), "it needs no disk");
        }
    }

    /// After the disk is well: everything works without anybody doing anything, and is what it should be.
    async fn converges(mut self, what: &str) -> Counts {
        self.clock.advance(Duration::from_secs(5));
        self.running.store.watch("nothing").await.unwrap(); // wakes the thread, whose timer is a real one
        let held = content(&self.running.store).await;
        assert!(self.model.0.contains(&held), "{what}: {held:?} of {:?}", self.model.0);
        self.model.0 = BTreeSet::from([held.clone()]);
        self.counts.happened = usize::from(self.reader.catch_up(&self.running.store).await);
        assert_eq!(self.reader.known, held, "{what}: the watch");
        let before = self.counts.refused;
        self.script(6).await;
        assert_eq!(self.counts.refused, before, "{what}: in service again");
        let mut held = content(&self.running.store).await;
        assert!(self.model.0.contains(&held), "{what}: afterwards");
        self.reader.catch_up(&self.running.store).await;
        assert_eq!(self.reader.known, held, "{what}: the watch afterwards");
        self.running.store.lease_revoke(self.lease).await.unwrap();
        assert!(held.contains_key("leased"), "{what}: no reopening ends a lease");
        held.retain(|_, value| value[0] != LEASED);
        assert_eq!(
            content(&self.running.store).await,
            held,
            "{what}: all keys of the lease, and no others, end with it"
        );
        for crash in [Crash::Lost, Crash::Kept, Crash::Random(1), Crash::Random(2)] {
            let after = Failing { sim: self.disk.sim.crash(&crash), plans: Arc::default() };
            let after = start(&after, &self.clock);
            assert_eq!(content(&after.store).await, held, "{what}: after a loss of power ({crash:?})");
            after.close().await;
        }
        self.running.close().await;
        self.counts
    }
}

fn start(disk: &Failing, clock: &Arc<ManualClock>) -> Running {
    let tasks = TaskGroup::new();
    let path = Path::new("/d/meta.redb");
    let store = RedbStore::open(Arc::new(disk.clone()), path, clock.clone(), &tasks).unwrap();
    Running { store, tasks }
}

/// Fails `call` number 0, 1, 2… until the script has no more of them.
async fn fails_at_every(call: Call, bad: u64) -> Counts {
    let mut sum = Counts::default();
    for good in 0.. {
        let mut world = World::new(good).await;
        world.disk.plans.lock().push(Plan::new(call, good, bad));
        world.script(8).await;
        if !world.disk.heal() {
            break;
        }
        let what = format!("{call:?} number {good} and {bad} in all");
        let counts = world.converges(&what).await;
        assert!(counts.unknown + counts.refused > 0, "{what} failed unnoticed");
        sum.unknown += counts.unknown;
        sum.happened += counts.happened;
        sum.refused += counts.refused;
        sum.places += 1;
    }
    println!("{call:?} ×{bad}: {sum:?}");
    assert!(sum.places > 0, "the script makes such calls");
    sum
}

const ONCE: u64 = 1;
const LONG: u64 = u64::MAX;

#[tokio::test]
async fn a_write_that_fails_once_or_for_long() {
    for bad in [ONCE, LONG] {
        let counts = fails_at_every(Call::Write, bad).await;
        assert!(counts.unknown > 0, "{counts:?}");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_moment_or_for_long() {
    for bad in [ONCE, LONG] {
        let counts = fails_at_every(Call::Full, bad).await;
        assert!(counts.unknown > counts.happened, "{counts:?}");
    }
}

#[tokio::test]
async fn a_sync_that_fails_once_or_for_long() {
    for bad in [ONCE, LONG] {
        let counts = fails_at_every(Call::Sync, bad).await;
        assert!(counts.happened > 0, "what failed to sync is there to be read: {counts:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_grow() {
    for bad in [ONCE, LONG] {
        fails_at_every(Call::SetLen, bad).await;
    }
}

/// The way back is interrupted at each of its calls as well.
#[tokio::test]
async fn a_reopening_that_fails() {
    for again in [Call::Open, Call::Read, Call::Write, Call::Sync, Call::SetLen] {
        let mut places = 0;
        for first in 0..4 {
            for good in 0.. {
                let mut world = World::new(first).await;
                world.disk.plans.lock().extend([Plan::new(Call::Sync, first, 1), Plan::new(again, good, 1)]);
                world.script(2).await;
                world.clock.advance(Duration::from_secs(5));
                world.script(2).await;
                if !world.disk.heal() {
                    break;
                }
                places += 1;
                world.converges(&format!("sync {first}, then {again:?} number {good}")).await;
            }
        }
        println!("{again:?}: {places} places");
        assert!(places > 0 || again == Call::SetLen, "{again:?} is on the way back");
    }
}

#[tokio::test]
async fn a_full_disk_is_read_all_the_same_and_says_what_to_do() {
    let mut world = World::new(1).await;
    // What is written in place finds its room, as on a real disk.
    world.disk.sim.capacity(Some(world.disk.sim.used() + 50_000));
    while world.counts.refused == 0 {
        world.script(1).await;
    }
    assert!(world.running.store.get("leased").await.unwrap().is_some());
    assert!(matches!(world.running.store.lease_grant(DEADLINE).await, Err(MetaError::Unavailable(_))));
    // Nobody's write is the one that tries the disk, and while there is no room nothing does.
    let calls = world.disk.sim.calls();
    for _ in 0..100 {
        world.clock.advance(Duration::from_secs(1));
        let refused = world.running.put("refused", None).await;
        let Err(MetaError::Unavailable(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("no storage space") && why.contains("make room"), "{why}");
    }
    assert_eq!(world.disk.sim.calls(), calls);
    world.disk.sim.capacity(None);
    world.converges("full").await;
}

#[tokio::test]
async fn a_lease_that_runs_out_meanwhile_is_gone_before_anything_is_served() {
    let mut world = World::new(1).await;
    let store = &world.running.store;
    let short = store.lease_grant(Duration::from_secs(2)).await.unwrap();
    world.running.put("short", Some(short)).await.unwrap();
    world.disk.plans.lock().push(Plan::new(Call::Sync, 0, LONG));
    world.script(2).await;
    world.clock.advance(Duration::from_secs(3));
    assert!(world.disk.heal());
    world.clock.advance(Duration::from_secs(5));
    world.running.store.watch("nothing").await.unwrap();
    assert_eq!(world.running.store.get("short").await, Ok(None));
    assert_eq!(world.running.store.lease_keep_alive(short).await, Err(MetaError::LeaseGone(short)));
    assert_eq!(world.running.store.lease_keep_alive(world.lease).await, Ok(()));
}

/// Puts `bytes` in the place of the store's file, or nothing.
fn replace(world: &World, bytes: Option<&[u8]>) {
    let path = Path::new("/d/meta.redb");
    world.disk.sim.remove(path).unwrap();
    if let Some(bytes) = bytes {
        let file = world.disk.sim.open(path, OpenMode::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }
}

#[tokio::test]
async fn another_file_in_its_place_is_never_taken_for_it() {
    let path = Path::new("/d/meta.redb");
    for (what, names) in [("older", "another file"), ("gone", "not found"), ("cut", "damaged")] {
        let mut world = World::new(1).await;
        let older = world.disk.sim.bytes(path).unwrap();
        world.script(3).await;
        world.disk.plans.lock().push(Plan::new(Call::Write, 0, LONG));
        world.script(2).await;
        let whole = world.disk.sim.bytes(path).unwrap();
        replace(
            &world,
            match what {
                "older" => Some(&older),
                "gone" => None,
                _ => Some(&whole[..2000]),
            },
        );
        assert!(world.disk.heal());
        for _ in 0..3 {
            world.clock.advance(Duration::from_secs(5));
            let answer = world.running.store.get("leased").await;
            let Err(MetaError::Unavailable(why)) = answer else { panic!("{what}: {answer:?}") };
            assert!(why.contains(names), "{what}: {why}");
            assert_eq!(world.running.put("k", None).await, Err(MetaError::Unavailable(why)));
        }
        assert_eq!(world.disk.sim.bytes(path).is_err(), what == "gone", "{what}: none is made");
    }
}
