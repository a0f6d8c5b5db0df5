//! One topic with one closed ledger, or several that go as one object, its record, its store, its bookies: small enough to be looked at after every step.

use crate::blob::sim::{Fault, Faults, SimBlobs};
use crate::blob::{Answer, BlobError, Blobs, Listed, Part, UploadId};
use crate::config::Config;
use crate::format::attributes::Attributes;
use crate::format::block::Entry;
use crate::key::{self, AttemptId};
use crate::meters::Meters;
use crate::offloader::{ChangeError, Job, OffloadError, Offloader, Source, TopicRecord};
use crate::release::{self, Held};
use crate::state::chain::{Thrown, plan, unnamed};
use crate::state::{Change, ObjectRef, Offload, Part as OfObject, Seen};
use crate::verify;
use crate::writer::{Closed, Shape, Sourced};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::clock::{Clock as _, ManualClock};
use geminga_common::config::ByteSize;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{
    Compare, LeaseId, MetaError, MetadataStore, Op, Record, Revision, Txn, TxnOutcome, WatchStream,
};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const LEDGER: LedgerId = LedgerId(7);
/// Entries of a ledger.
const ENTRIES: u64 = 20;
const TOPIC: TopicId = TopicId(3);
const RECORD: &str = "/geminga/c/v1/t/topic";
/// How far the store's clock is behind ours: as far as a store may be that takes our requests at all.
const BEHIND_MS: u64 = 900_000;
/// Time passes in such steps, with a sweep after each, and in so many of them every attempt, grace and lag here has passed.
const STEPS: (Duration, usize) = (Duration::from_secs(300), 30);

/// Metadata whose transactions fail like the store's requests do, and whose listings are those of an old revision.
pub(crate) struct DoubtfulMeta {
    inner: Arc<MemoryStore>,
    faults: Faults,
    late: Mutex<Vec<Txn>>,
    asleep: Mutex<Vec<Txn>>,
}

impl DoubtfulMeta {
    pub(crate) fn new(inner: Arc<MemoryStore>, faults: Faults) -> Self {
        Self { inner, faults, late: Mutex::default(), asleep: Mutex::default() }
    }

    pub(crate) async fn wake(&self) {
        let asleep = std::mem::take(&mut *self.asleep.lock());
        for txn in asleep {
            let _either_way = self.inner.txn(txn).await;
        }
    }

    pub(crate) async fn land(&self) {
        let late = std::mem::take(&mut *self.late.lock());
        for txn in late {
            let _either_way = self.inner.txn(txn).await;
        }
    }
}

impl MetadataStore for DoubtfulMeta {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.inner.get(key)
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        async move {
            let mut found = self.inner.list(prefix, after, limit).await?;
            // A listing that lags: the topic's record is not in it yet.
            found.retain(|record| record.key != RECORD);
            Ok(found)
        }
        .boxed()
    }
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        async move {
            tokio::task::yield_now().await;
            match self.faults.next() {
                None => self.inner.txn(txn).await,
                Some(Fault::FailBefore) => Err(MetaError::Unavailable("simulated".into())),
                Some(Fault::FailAfter) => {
                    self.inner.txn(txn).await?;
                    Err(MetaError::Unknown("simulated".into()))
                }
                Some(Fault::Late) => {
                    self.late.lock().push(txn);
                    Err(MetaError::Unknown("simulated".into()))
                }
                Some(Fault::CrashBefore) => self.faults.die().await,
                Some(Fault::CrashAfter) => {
                    self.inner.txn(txn).await?;
                    self.faults.die().await
                }
                Some(Fault::Asleep) => {
                    self.asleep.lock().push(txn);
                    self.faults.die().await
                }
            }
        }
        .boxed()
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

/// A store whose every object is damaged on its way in, once switched on.
struct Tampering {
    inner: SimBlobs,
    on: Arc<AtomicBool>,
}

impl Blobs for Tampering {
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        self.inner.create(key, bytes)
    }
    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        self.inner.small(key)
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        async move {
            self.inner.put(key, bytes, until_ms).await?;
            if self.on.load(Ordering::Relaxed) {
                self.inner.tamper(key, |bytes| bytes[60] ^= 1);
            }
            Ok(())
        }
        .boxed()
    }
    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        self.inner.begin(key, until_ms)
    }
    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        self.inner.part(key, upload, number, bytes)
    }
    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        self.inner.complete(key, upload, parts)
    }
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        self.inner.size(key)
    }
    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.inner.range(key, range)
    }
    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        self.inner.uploads(prefix)
    }
    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        self.inner.abort(key, upload)
    }
    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.inner.remove(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        self.inner.list(prefix, after, limit)
    }
}

/// What an owner knows of the record; dies with the first outcome it does not know.
struct Handle {
    meta: Arc<DoubtfulMeta>,
    keys: Keys,
    known: Mutex<Option<(Ledgers, Revision)>>,
}

impl Handle {
    /// The record as a new owner reads it.
    async fn open(meta: &Arc<DoubtfulMeta>, keys: &Keys) -> Self {
        let record = meta.inner.get(RECORD).await.unwrap().expect("the topic is there");
        let known = Mutex::new(Some((decoded(&record), record.mod_revision)));
        Self { meta: meta.clone(), keys: keys.clone(), known }
    }

    async fn change_one(&self, ledger: LedgerId, change: Change) -> Result<(), ChangeError> {
        self.change(vec![(ledger, change)]).await
    }
}

/// The closed ledgers of the topic, and where each is.
type Ledgers = BTreeMap<LedgerId, Offload>;

fn decoded(record: &Record) -> Ledgers {
    let (mut rest, mut ledgers) = (&record.value[..], Ledgers::new());
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let ledger = LedgerId(u64::from_be_bytes(head[..8].try_into().unwrap()));
        let (state, after) = after.split_at(usize::from(head[8]));
        let state = if state.is_empty() { Offload::Bookies } else { Offload::decode(state).unwrap() };
        ledgers.insert(ledger, state);
        rest = after;
    }
    ledgers
}

fn encoded(ledgers: &Ledgers) -> Bytes {
    let mut out = Vec::new();
    for (ledger, state) in ledgers {
        let state = state.encode().unwrap_or_default();
        out.extend_from_slice(&ledger.0.to_be_bytes());
        out.push(u8::try_from(state.len()).unwrap());
        out.extend_from_slice(&state);
    }
    out.into()
}

fn garbage_ops<'a>(keys: &'a Keys, thrown: Vec<Thrown>) -> impl Iterator<Item = Op> + 'a {
    let op = |(ledger, garbage): Thrown| {
        Op::put(keys.object_garbage(garbage.attempt.0), garbage.encode(TOPIC, ledger))
    };
    thrown.into_iter().map(op)
}

impl TopicRecord for Handle {
    fn change(&self, changes: Vec<(LedgerId, Change)>) -> BoxFuture<'_, Result<(), ChangeError>> {
        async move {
            let known = self.known.lock().clone();
            let Some((mut ledgers, revision)) = known else {
                return Err(ChangeError::Unknown("dead".into()));
            };
            let planned = plan(ledgers.iter().map(|(ledger, state)| (*ledger, state)), &changes);
            let planned = planned.map_err(ChangeError::Refused)?;
            ledgers.extend(planned.next);
            let mut ops = vec![Op::put(RECORD, encoded(&ledgers))];
            ops.extend(garbage_ops(&self.keys, unnamed(planned.garbage, ledgers.values())));
            ops.extend(planned.bury.iter().map(|ledger| Op::put(self.keys.tombstone(*ledger), "tombstone")));
            let compares = vec![Compare::ModRevision(RECORD.to_owned(), revision)];
            match self.meta.txn(Txn { compares, ops }).await {
                Ok(TxnOutcome::Committed(revision)) => {
                    *self.known.lock() = Some((ledgers, revision));
                    Ok(())
                }
                Err(MetaError::Unavailable(why)) => Err(ChangeError::NotWritten(why)),
                other => {
                    *self.known.lock() = None;
                    Err(ChangeError::Unknown(format!("{other:?}")))
                }
            }
        }
        .boxed()
    }
}

struct Entries(Vec<Sourced>);

impl Source for Entries {
    fn read(&self, first: EntryId, _: usize) -> BoxFuture<'_, Result<Vec<Sourced>, String>> {
        // A few at a time, as a bookie answers.
        let run = self.0.iter().skip(first.0 as usize).take(3).cloned().collect();
        std::future::ready(Ok(run)).boxed()
    }
}

pub(super) struct World {
    faults: Faults,
    blobs: SimBlobs,
    tamper: Arc<AtomicBool>,
    meta: Arc<DoubtfulMeta>,
    keys: Keys,
    clock: Arc<ManualClock>,
    store: Arc<dyn Blobs>,
    offloader: Offloader,
    source: Entries,
    closed: Closed,
    ledgers: u64,
    epoch: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl World {
    /// So many ledgers, which go as one object, over uploads in parts of so many bytes.
    pub(super) fn new(part_bytes: u64, ledgers: u64) -> Self {
        let tamper = Arc::new(AtomicBool::new(false));
        let on = tamper.clone();
        Self { tamper, ..Self::over(part_bytes, ledgers, |inner, _| Arc::new(Tampering { inner, on })) }
    }

    /// A world whose store is reached in a way of its own.
    pub(super) fn over(
        part_bytes: u64,
        ledgers: u64,
        way: impl FnOnce(SimBlobs, Arc<DoubtfulMeta>) -> Arc<dyn Blobs>,
    ) -> Self {
        let faults = Faults::default();
        let clock = Arc::new(ManualClock::at_wall_ms(1_700_000_000_000));
        let blobs = SimBlobs::new(faults.clone());
        let inner = Arc::new(MemoryStore::new(clock.clone()));
        let meta = Arc::new(DoubtfulMeta::new(inner.clone(), faults.clone()));
        let fresh = (0..ledgers).map(|nth| (LedgerId(LEDGER.0 + nth), Offload::Bookies)).collect();
        let made = inner.txn(Txn { compares: Vec::new(), ops: vec![Op::put(RECORD, encoded(&fresh))] });
        made.now_or_never().expect("memory answers at once").unwrap();
        let config =
            Config { part_size: ByteSize(part_bytes), block_size: ByteSize(300), ..Config::default() };
        let store = way(blobs.clone(), meta.clone());
        let meters = Meters::new(clock.clone());
        let offloader = Offloader::new(store.clone(), clock.clone(), Rng::seeded(5), config, meters);
        let source = Entries((0..ENTRIES).map(sourced).collect());
        let length = source.0.iter().map(|s| s.entry.size() as u64).sum();
        Self {
            faults,
            blobs,
            tamper: Arc::default(),
            meta,
            keys: Keys::new("c"),
            clock,
            store,
            offloader,
            closed: Closed { entries: ENTRIES, length },
            ledgers,
            source,
            epoch: AtomicU64::new(1),
            broken: Mutex::default(),
        }
    }

    pub(super) fn tamper_on_upload(&self) {
        self.tamper.store(true, Ordering::Relaxed);
    }

    fn job(&self, ledger: LedgerId) -> Job {
        let attributes = Attributes {
            cluster: "c".to_owned(),
            topic: None,
            topic_id: TOPIC,
            ledger,
            first_index: MessageIndex((ledger.0 - LEDGER.0) * ENTRIES),
            closed_ms: 0,
            owner_epoch: OwnerEpoch(self.epoch.load(Ordering::Relaxed)),
            attempt: 0,
            record: Bytes::new(),
        };
        Job { attributes, closed: self.closed }
    }

    /// An owner opens the topic and offloads what ledgers there are, as one object.
    pub(super) async fn offload_once(&self) -> Result<Vec<ObjectRef>, OffloadError> {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let handle = Handle::open(&self.meta, &self.keys).await;
        let ledgers = self.states().into_keys().map(|ledger| (self.job(ledger), &self.source)).collect();
        self.offloader.offload(ledgers, &handle).await
    }

    /// Runs something until it ends or the fault kills it; answers the steps it took. What was late happens then.
    async fn under(&self, fault: Option<(usize, Fault)>, deed: impl Future<Output = ()>) -> usize {
        let dead = self.faults.plan(fault);
        tokio::select! {
            biased;
            () = dead.cancelled() => {}
            () = deed => {}
        }
        let steps = self.faults.steps();
        self.faults.plan(None);
        self.blobs.land();
        self.meta.land().await;
        steps
    }

    /// One owner's whole offload under a fault.
    pub(super) async fn owner(&self, fault: Option<(usize, Fault)>) -> usize {
        self.under(fault, async { drop(self.offload_once().await) }).await
    }

    /// A new owner: gives up what it finds under way, and offloads what is not. It also asks for what must be refused: a commit
    /// told again, another offload of an offloaded ledger, a release that is not due.
    pub(super) async fn settle(&self) {
        let handle = Handle::open(&self.meta, &self.keys).await;
        for (ledger, state) in self.states() {
            self.ask_what_is_refused(&handle, ledger, &state).await;
        }
        self.give_up(&handle).await;
        drop(self.offload_once().await);
    }

    async fn ask_what_is_refused(&self, handle: &Handle, ledger: LedgerId, state: &Offload) {
        let nothing = Shape { size: 0, footer_offset: 0, footer_crc: 0 };
        let attempt = state.attempt().unwrap_or(AttemptId(0));
        let object = state.object().copied();
        let object = object.unwrap_or(ObjectRef { attempt, begun_ms: 0, shape: nothing, part: None });
        let early =
            Change::Release { seen: Seen::of(&object), now_ms: self.clock.wall_ms(), lag_ms: 600_000 };
        let _refused = handle.change_one(ledger, early).await;
        if let Some(object) = state.object() {
            let again = Change::Commit(object.attempt, object.shape, object.part, self.clock.wall_ms());
            let _refused = handle.change_one(ledger, again).await;
        }
        // What several share is not given up, or committed, for one of them.
        if let Offload::Prepared(attempt) = state
            && let Some(first) = attempt.together
        {
            let part = Some(OfObject { first, offset: 0, whole: 0 });
            for change in [Change::Abandon(attempt.id), Change::Commit(attempt.id, nothing, part, 0)] {
                let done = handle.change_one(ledger, change).await;
                if self.ledgers > 1 && self.states().len() > 1 && done.is_ok() {
                    self.breaks(format!("ledger {ledger} alone left what others share: {attempt:?}"));
                }
            }
        }
    }

    /// Gives up what is under way, as a new owner does.
    async fn give_up(&self, handle: &Handle) {
        let under_way = |(ledger, state): (LedgerId, Offload)| match state {
            Offload::Prepared(attempt) => Some((ledger, Change::Abandon(attempt.id))),
            _ => None,
        };
        let changes: Vec<_> = self.states().into_iter().filter_map(under_way).collect();
        if !changes.is_empty() {
            let _doubt = handle.change(changes).await;
        }
    }

    /// What a topic sees later: an offload that works, the release of bookie copies, sweeps, the removal of the topic, sweeps.
    pub(super) async fn afterwards(&self, fault: Option<(usize, Fault)>) -> usize {
        self.under(fault, async {
            if self.there().await {
                self.settle().await;
                self.look("settled");
                self.pass_time().await;
            }
            // A removal that slept may have arrived meanwhile.
            if self.there().await {
                self.release().await;
                self.look("released");
                self.sweep().await;
                self.look("swept");
                if fault.is_none() {
                    self.nothing_but_the_referenced();
                }
                // One after the other leaves the topic; the object goes with the last.
                for _ in 1..self.ledgers {
                    self.trim().await;
                    self.look("trimmed");
                    self.pass_time().await;
                    self.look("trimmed and swept");
                }
                self.remove_topic().await;
            }
            self.pass_time().await;
            self.sweep().await;
        })
        .await
    }

    /// Lets the bookie copies go of each ledger whose object is as it should be.
    pub(super) async fn release(&self) {
        let handle = Handle::open(&self.meta, &self.keys).await;
        for (ledger, state) in self.states() {
            let Some(object) = state.object().copied() else { continue };
            let held = Held { topic: TOPIC, ledger, closed: self.closed, object };
            let Ok(seen) = release::look(&*self.store, "c", &held).await else { continue };
            let release = Change::Release { seen, now_ms: self.clock.wall_ms(), lag_ms: 600_000 };
            let _doubt = handle.change_one(ledger, release).await;
        }
    }

    /// Somebody removes all objects from the store.
    pub(super) async fn lose_objects(&self) {
        for key in self.blobs.keys() {
            self.blobs.observer().remove(&key).await.unwrap();
        }
    }

    /// An owner that finds objects gone: ledgers that bookies have go back to them, and are uploaded anew.
    pub(super) async fn mend(&self, fault: Option<(usize, Fault)>) -> usize {
        self.under(fault, async {
            let handle = Handle::open(&self.meta, &self.keys).await;
            self.give_up(&handle).await;
            for (ledger, state) in self.states() {
                let Some(object) = state.object().copied() else { continue };
                let held = Held { topic: TOPIC, ledger, closed: self.closed, object };
                let Ok(gone) = release::gone(&*self.store, "c", &held).await else { continue };
                let back = Change::Return { gone, now_ms: self.clock.wall_ms(), grace_ms: 600_000 };
                let _doubt = handle.change_one(ledger, back).await;
            }
            if self.states().values().all(|state| state.object().is_none()) {
                drop(self.offload_once().await);
            }
        })
        .await
    }

    /// Makes sure that the store may be used.
    pub(super) async fn use_store(&self) -> Result<(), BlobError> {
        self.store.ready().await
    }

    /// An owner that gives up what it finds under way, offloads the ledger if it is not, waits for the lag, and lets copies go.
    pub(super) async fn offload_and_release(&self) {
        let handle = Handle::open(&self.meta, &self.keys).await;
        self.give_up(&handle).await;
        drop(self.offload_once().await);
        self.clock.advance(STEPS.0 * STEPS.1 as u32);
        self.release().await;
    }

    pub(super) fn key_of(&self, object: &ObjectRef) -> String {
        object.key("c", TOPIC, LEDGER)
    }

    /// Whether the object that the record names is not in the store.
    pub(super) fn lacks_its_object(&self) -> bool {
        self.state().object().is_some_and(|object| !self.blobs.keys().contains(&self.key_of(object)))
    }

    /// What is lost, if bookies have no copy and the store has none.
    pub(super) fn lost(&self, when: &str) -> Option<String> {
        let gone = !self.state().on_bookies() && self.lacks_its_object();
        gone.then(|| format!("{when}: neither bookies nor the store have the ledger"))
    }

    /// A request takes effect within the time it may be on its way, or never. Once nothing waits to be swept, what slept arrives:
    /// the worst moment there is.
    async fn pass_time(&self) {
        self.blobs.land();
        self.meta.land().await;
        for _ in 0..STEPS.1 {
            self.clock.advance(STEPS.0);
            if self.sweep().await == Some(0) {
                self.blobs.wake(self.clock.wall_ms() - BEHIND_MS);
                self.meta.wake().await;
            }
        }
    }

    async fn there(&self) -> bool {
        self.meta.inner.get(RECORD).await.unwrap().is_some()
    }

    /// What still waits after a sweep; `None` where it was not done.
    fn meters(&self) -> Meters {
        Meters::new(self.clock.clone())
    }

    async fn sweep(&self) -> Option<usize> {
        let now = self.clock.wall_ms();
        let swept =
            crate::sweep::sweep(&*self.meta, &self.keys, &self.blobs, "c", &self.meters(), now).await.ok()?;
        (swept.failed == 0).then_some(swept.waiting)
    }

    /// The first ledger leaves the topic.
    async fn trim(&self) {
        self.leave(1).await;
    }

    async fn remove_topic(&self) {
        self.leave(usize::MAX).await;
    }

    /// The first ledgers leave the topic; with the last of them it goes itself.
    async fn leave(&self, count: usize) {
        let Some(record) = self.meta.inner.get(RECORD).await.unwrap() else { return };
        let mut ledgers = decoded(&record);
        let (mut thrown, mut ops) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let Some((ledger, state)) = ledgers.pop_first() else { break };
            let (garbage, bury) = state.remove(self.clock.wall_ms(), 600_000);
            thrown.extend(garbage.map(|garbage| (state.named_by(ledger), garbage)));
            ops.extend(bury.then(|| Op::put(self.keys.tombstone(ledger), "tombstone")));
        }
        let gone = ledgers.is_empty();
        ops.push(if gone { Op::delete(RECORD) } else { Op::put(RECORD, encoded(&ledgers)) });
        ops.extend(garbage_ops(&self.keys, unnamed(thrown, ledgers.values())));
        let compares = vec![Compare::ModRevision(RECORD.to_owned(), record.mod_revision)];
        let _doubt = self.meta.txn(Txn { compares, ops }).await;
    }

    fn stored(&self, key: &str) -> Option<Record> {
        self.meta.inner.get(key).now_or_never().expect("memory answers at once").unwrap()
    }

    fn states(&self) -> Ledgers {
        self.stored(RECORD).map_or_else(Ledgers::new, |record| decoded(&record))
    }

    /// The state of the first ledger.
    pub(super) fn state(&self) -> Offload {
        self.states().into_values().next().unwrap_or_default()
    }

    fn breaks(&self, what: String) {
        self.broken.lock().get_or_insert(what);
    }

    /// Looks at everything at once: the ledger can be read from somewhere, and what is referenced is there, whole.
    pub(super) fn look(&self, when: &str) {
        if self.stored(RECORD).is_none() {
            return;
        }
        for (ledger, state) in self.states() {
            self.look_at(when, ledger, &state);
        }
        // Ledgers that share an attempt have got equally far.
        let mut stages: BTreeMap<AttemptId, bool> = BTreeMap::new();
        for state in self.states().values() {
            let Some(attempt) = state.attempt() else { continue };
            let is_prepared = matches!(state, Offload::Prepared(_));
            if *stages.entry(attempt).or_insert(is_prepared) != is_prepared {
                self.breaks(format!("{when}: one ledger of {attempt:?} is committed, another is not"));
            }
        }
    }

    fn look_at(&self, when: &str, ledger: LedgerId, state: &Offload) {
        let buried = self.stored(&self.keys.tombstone(ledger)).is_some();
        if state.on_bookies() == buried {
            self.breaks(format!("{when}: {state:?}, but ledger {ledger} is tombstoned: {buried}"));
        }
        if let Some(attempt) = state.attempt()
            && self.stored(&self.keys.object_garbage(attempt.0)).is_some()
        {
            self.breaks(format!("{when}: what ledger {ledger} references counts as garbage"));
        }
        if let Some(object) = state.object() {
            let key = object.key("c", TOPIC, ledger);
            // The observer's reads are no steps of the protocol.
            let observer = self.blobs.observer();
            let whole = verify::whole(&observer, &key, ledger, self.closed, object);
            let mut whole = Box::pin(whole);
            let read = loop {
                if let Some(read) = whole.as_mut().now_or_never() {
                    break read;
                }
            };
            if let Err(error) = read {
                self.breaks(format!("{when}: what ledger {ledger} references cannot be read: {error}"));
            }
        }
    }

    /// Past every deadline and a sweep: no object and no upload beyond what the record references.
    fn nothing_but_the_referenced(&self) {
        let key = |(ledger, state): (LedgerId, Offload)| Some(state.object()?.key("c", TOPIC, ledger));
        let referenced: Vec<_> = self.states().into_iter().filter_map(key).collect();
        let there = self.blobs.keys();
        if there.iter().any(|key| !referenced.contains(key)) || self.blobs.uploads_open() > 0 {
            let uploads = self.blobs.uploads_open();
            self.breaks(format!("leaked: {there:?} and {uploads} uploads, referenced: {referenced:?}"));
        }
    }

    /// What was broken on the way, or is left in the end: nothing of the topic is in the store then.
    pub(super) fn broken(&self) -> Option<String> {
        if self.stored(RECORD).is_none() {
            self.nothing_but_the_referenced();
            if self.blobs.keys().iter().any(|key| key.starts_with(&key::below("c"))) {
                self.breaks("objects of a removed topic are left".to_owned());
            }
        }
        self.broken.lock().clone()
    }
}

fn sourced(id: u64) -> Sourced {
    let payload = Bytes::from(vec![id as u8; 90]);
    let entry = Entry { id: EntryId(id), crc: id as u32, header: [id as u8; 32], payload };
    Sourced { entry, publish_ms: 1000 + id, first_index: MessageIndex(id) }
}
