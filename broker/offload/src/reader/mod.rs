//! Reads entries back from offloaded ledgers: ranged requests of whole blocks, one for a run of blocks however many readers wait
//! for them, a cache of blocks under one budget, and read-ahead that grows while a reader reads on.
//!
//! A reader that begins anywhere gets its block by one small request, so the first entry is there after one round trip: an index
//! that is not in memory comes together with the object's first bytes, and costs a second one elsewhere only. One that reads on
//! has up to [`WINDOW_MAX`] under way before it, also into the ledger behind (`ahead.rs`). All readers together have no more under
//! way than a bound (`in_flight.rs`). Whatever goes wrong is an error of this read: nothing here says that an entry does not exist.
//!
//! What was fetched is also kept on disk, where that is configured (`kept.rs`): a block that is there costs no request.
//!
//! Everything but the waiting runs in a [`Lane`]: fetching, checking and copying of what readers of the past want, and all locks
//! of this room, are never on a thread that serves publishers.

mod ahead;
mod cache;
#[cfg(test)]
mod disk_tests;
mod in_flight;
mod kept;
#[cfg(test)]
mod tests;

use crate::blob::Blobs;
use crate::disk_cache::{self, DiskCache};
use crate::format::HEADER_LEN;
use crate::format::block::{self, Entry};
use crate::format::footer::{Footer, Row};
use crate::meters::Meters;
use crate::state::{ObjectRef, PartId};
use crate::verify::{self, ObjectError};
pub use ahead::WINDOW_MAX;
use ahead::{Ahead, FIRST_MAX, Window};
use bytes::Bytes;
use cache::{Block, Cache, Flight, Found, Run};
use futures::FutureExt as _;
use geminga_common::ids::{EntryId, LedgerId, TopicId};
use geminga_common::lane::Lane;
use geminga_common::tasks::{OnFailure, TaskGroup};
use in_flight::{InFlight, Turn};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Share of the cache that may be on its way for readers who have not asked yet.
const AHEAD_SHARE: usize = 2;
/// Share of the cache that indexes may take.
const FOOTER_SHARE: usize = 8;

/// An offloaded ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its topic.
    pub topic: TopicId,
    /// The ledger.
    pub ledger: LedgerId,
    /// Its object, and where in that it lies.
    pub object: ObjectRef,
}

/// What reading back has cost so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Requests to the store.
    pub requests: u64,
    /// Bytes they brought.
    pub bytes: u64,
    /// Requests that failed, retries included in one.
    pub failed: u64,
    /// Blocks that were in memory when they were asked for.
    pub hits: u64,
    /// Bytes of blocks in memory.
    pub cached_bytes: u64,
    /// Bytes that were asked for and are not there yet.
    pub in_flight_bytes: u64,
    /// Requests that wait because too much is under way.
    pub waiting: u64,
    /// Requests that ever did.
    pub waited: u64,
    /// The disk cache, if there is one.
    pub disk: Option<disk_cache::Figures>,
}

/// Memory that reading back may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes of blocks that are kept.
    pub cache_bytes: usize,
    /// Bytes that all readers together may have asked for.
    pub in_flight_bytes: u64,
}

#[derive(Default)]
struct Indexes {
    known: HashMap<PartId, (Flight<Arc<Footer>>, usize)>,
    order: VecDeque<PartId>,
    bytes: usize,
}

struct Shared {
    blobs: Arc<dyn Blobs>,
    cluster: String,
    tasks: TaskGroup,
    lane: Lane,
    meters: Meters,
    disk: Option<DiskCache>,
    in_flight: InFlight,
    indexes_limit: usize,
    indexes: Mutex<Indexes>,
    cache: Mutex<Cache>,
    /// Held while it is decided what is fetched and that is entered, so that nobody else fetches it too.
    deciding: Mutex<()>,
    /// Where readers are expected next, and how much lies before them.
    ahead: Mutex<Ahead>,
    requests: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    hits: AtomicU64,
}

/// The reader of all offloaded ledgers of a process. Cloning shares it.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

impl Reader {
    /// A reader whose requests run in `tasks`, and all of it in `lane`; what it fetches is also kept on `disk`.
    #[must_use]
    pub fn new(
        blobs: Arc<dyn Blobs>,
        cluster: &str,
        room: Room,
        tasks: TaskGroup,
        lane: Lane,
        meters: Meters,
        disk: Option<DiskCache>,
    ) -> Self {
        let cache_bytes = room.cache_bytes;
        let shared = Shared {
            blobs,
            cluster: cluster.to_owned(),
            tasks,
            lane,
            meters,
            disk,
            in_flight: InFlight::new(room.in_flight_bytes),
            indexes_limit: cache_bytes / FOOTER_SHARE,
            indexes: Mutex::default(),
            cache: Mutex::new(Cache::new(cache_bytes)),
            deciding: Mutex::default(),
            ahead: Mutex::new(Ahead::new((cache_bytes / AHEAD_SHARE) as u64)),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        };
        Self(Arc::new(shared))
    }

    /// What it has cost so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (waiting, waited) = self.0.in_flight.waiting();
        Figures {
            requests: get(&self.0.requests),
            bytes: get(&self.0.bytes),
            failed: get(&self.0.failed),
            hits: get(&self.0.hits),
            cached_bytes: self.0.cache.lock().bytes().0 as u64,
            in_flight_bytes: self.0.in_flight.bytes(),
            waiting,
            waited,
            disk: self.0.disk.as_ref().map(DiskCache::figures),
        }
    }

    /// Bytes that all readers together may have asked for, where a reader of this topic waits for its turn.
    #[must_use]
    pub fn waits_for(&self, topic: TopicId) -> Option<u64> {
        self.0.in_flight.waits(topic).then(|| self.0.in_flight.limit())
    }

    /// Reads on from the first of `ids` up to the last: at least one entry, and no more than about `bytes_max` beyond it. Entries
    /// that need a further request are left for the next read. A reader that goes on has `next`, where its topic goes on, fetched
    /// as well. `open` makes of the entries what is wanted, in the lane as well.
    ///
    /// # Errors
    /// The store does not answer, the object is damaged, or the process stops.
    pub async fn read<T: Send + 'static>(
        &self,
        target: Target,
        ids: RangeInclusive<EntryId>,
        bytes_max: usize,
        next: Option<Target>,
        open: impl FnOnce(Vec<Entry>) -> T + Send + 'static,
    ) -> Result<T, ObjectError> {
        let reader = self.clone();
        let read = async move {
            let (first, last) = ids.into_inner();
            reader.read_here(&target, first, last, bytes_max, next.as_ref()).await.map(open)
        };
        self.0.lane.run(read).await?
    }

    async fn read_here(
        &self,
        target: &Target,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
        next: Option<&Target>,
    ) -> Result<Vec<Entry>, ObjectError> {
        let footer = self.index(target, first == EntryId(0)).await?;
        let gone = || ObjectError::Other { key: self.key(target), what: "its entries" };
        let from = footer.block_of(first).ok_or_else(gone)?;
        let last = last.min(EntryId(footer.entries - 1));
        let to = footer.block_of(last).ok_or_else(gone)? + 1;
        let wanted = self.prepare(target, &footer, (from..to, bytes_max as u64), next);
        let entries = self.entries(target, &footer, (first, last), (wanted.clone(), bytes_max)).await?;
        let next = entries.last().ok_or_else(gone)?.id.next();
        // It goes on where it ended, which may be before what was wanted: what is on its way is left for the next read.
        if let Some(ended) = footer.block_of(next).filter(|_| next.0 < footer.entries) {
            let object = target.object.id();
            self.0.ahead.lock().moved((object, wanted.end), (object, ended));
        }
        Ok(entries)
    }

    /// Entries of blocks that are there; only the first is waited for.
    async fn entries(
        &self,
        target: &Target,
        footer: &Arc<Footer>,
        (first, last): (EntryId, EntryId),
        (wanted, bytes_max): (Range<usize>, usize),
    ) -> Result<Vec<Entry>, ObjectError> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for nth in wanted {
            let found = self.0.cache.lock().get((target.object.id(), nth));
            let block = match found {
                Some(Found::Here(block)) => block,
                Some(Found::Coming(flight)) if entries.is_empty() => of_run(&flight.await?, nth)?,
                // Evicted between two looks; nothing else can lack the first block.
                None if entries.is_empty() => {
                    of_run(&self.fetch(target, footer, nth..nth + 1, None).await?, nth)?
                }
                _ => break,
            };
            for entry in block.iter().filter(|entry| (first..=last).contains(&entry.id)) {
                bytes += entry.size();
                if !entries.is_empty() && bytes > bytes_max {
                    return Ok(entries);
                }
                entries.push(entry.clone());
            }
        }
        Ok(entries)
    }

    /// The index of an object: by itself enough for a search by time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn footer(&self, target: Target) -> Result<Arc<Footer>, ObjectError> {
        let reader = self.clone();
        self.0.lane.run(async move { reader.index(&target, false).await }).await?
    }

    /// The index; with the object's first blocks, if it has to be fetched.
    async fn index(&self, target: &Target, with_head: bool) -> Result<Arc<Footer>, ObjectError> {
        let id = target.object.id();
        let flight = {
            let mut indexes = self.0.indexes.lock();
            match indexes.known.get(&id) {
                Some((flight, _)) => flight.clone(),
                None => {
                    let (shared, target) = (self.0.clone(), *target);
                    let load = async move {
                        let footer = match shared.index_on_disk(&target).await {
                            Some(footer) => Ok(footer),
                            None if with_head => shared.load_with_head(target).await,
                            None => shared.load_footer(target).await,
                        };
                        footer.map(Arc::new)
                    };
                    let flight: Flight<Arc<Footer>> = load.boxed().shared();
                    let bytes = (target.object.shape.size - target.object.shape.footer_offset) as usize;
                    indexes.insert(id, flight.clone(), bytes, self.0.indexes_limit);
                    flight
                }
            }
        };
        let loaded = flight.await;
        if loaded.is_err() {
            self.0.indexes.lock().remove(id);
        }
        loaded
    }

    fn key(&self, target: &Target) -> String {
        target.object.key(&self.0.cluster, target.topic, target.ledger)
    }

    /// Sends requests for what is wanted and not there, and for what will be wanted soon; answers what is wanted.
    fn prepare(
        &self,
        target: &Target,
        footer: &Arc<Footer>,
        (asked, bytes_max): (Range<usize>, u64),
        next: Option<&Target>,
    ) -> Range<usize> {
        let (object, rows, now) = (target.object.id(), &footer.rows, self.0.meters.now());
        let _deciding = self.0.deciding.lock();
        let window = self.0.ahead.lock().take((object, asked.start), bytes_max, now);
        let bytes = if window.bytes == 0 { bytes_max.min(FIRST_MAX) } else { bytes_max };
        let wanted = asked.start..within(rows, asked, bytes);
        self.0.ahead.lock().expect((object, wanted.end), window.bytes, now);
        let missing = self.missing(object, wanted.clone());
        self.0.hits.fetch_add((wanted.len() - missing.len()) as u64, Ordering::Relaxed);
        for run in grouped(rows, &missing, window.run) {
            let _under_way = self.fetch(target, footer, run, None);
        }
        self.fetch_ahead(target, footer, wanted.end, window);
        let left = rows.get(wanted.end).map_or(0, |row| target.object.shape.footer_offset - row.offset);
        if let Some(next) = next.filter(|_| window.bytes > left) {
            self.go_on(*next, Window { bytes: window.bytes - left, ..window }, window.bytes);
        }
        wanted
    }

    fn missing(&self, object: PartId, blocks: Range<usize>) -> Vec<usize> {
        let cache = self.0.cache.lock();
        blocks.filter(|nth| !cache.knows((object, *nth))).collect()
    }

    /// Sends requests for what is not there of a window that begins with a block.
    fn fetch_ahead(&self, target: &Target, footer: &Arc<Footer>, from: usize, window: Window) {
        let rows = &footer.rows;
        let soon = from..within(rows, from..rows.len(), window.bytes);
        for run in grouped(rows, &self.missing(target.object.id(), soon), window.run) {
            let span = verify::span(&rows[run.clone()]);
            // Small requests ahead cost as much as large ones: they wait until there is a whole one, or the ledger ends. Blocks
            // do not fit a request exactly.
            let whole = span.end - span.start >= window.run * 3 / 4 || run.end == rows.len();
            let bytes = span.end - span.start;
            if whole && self.0.cache.lock().room_ahead(bytes as usize) {
                let Some(turn) = self.0.in_flight.try_turn(bytes) else { return };
                let _under_way = self.fetch(target, footer, run, Some(turn));
            }
        }
    }

    /// A reader will go on in this ledger: its index and its first blocks are fetched, and it is expected there.
    fn go_on(&self, next: Target, window: Window, whole: u64) {
        let id = next.object.id();
        if self.0.ahead.lock().expects((id, 0)) {
            let ready = self.0.indexes.lock().known.get(&id).and_then(|(flight, _)| flight.peek().cloned());
            if let Some(Ok(footer)) = ready {
                self.fetch_ahead(&next, &footer, 0, window);
            }
            return;
        }
        self.0.ahead.lock().expect((id, 0), whole, self.0.meters.now());
        let reader = self.clone();
        self.0.tasks.spawn("offloaded read", OnFailure::Log, async move {
            // What fails here is asked for again, and told, by the reader itself.
            if let Ok(footer) = reader.index(&next, true).await {
                let _deciding = reader.0.deciding.lock();
                reader.fetch_ahead(&next, &footer, 0, window);
            }
        });
    }

    /// One request for a run of blocks, which waits for its turn unless it has it; it goes on when nobody waits for it any more.
    fn fetch(
        &self,
        target: &Target,
        footer: &Arc<Footer>,
        blocks: Range<usize>,
        turn: Option<Turn>,
    ) -> Flight<Run> {
        let (shared, target) = (self.0.clone(), *target);
        let (first, rows) = (blocks.start, footer.rows[blocks.clone()].to_vec());
        let span = verify::span(&rows);
        let bytes = (span.end - span.start) as usize;
        let load = async move {
            // Kept until its blocks were copied out: so long the answer lies in memory.
            let _turn = match turn {
                Some(turn) => turn,
                None => shared.in_flight.turn(target.topic, span.end - span.start).await,
            };
            let blocks = shared.load(&target, first, &rows).await?;
            Ok(Arc::new((first, blocks)))
        };
        let flight: Flight<Run> = load.boxed().shared();
        let object = target.object.id();
        let id = self.0.cache.lock().coming(object, blocks.clone(), bytes, &flight);
        let (shared, landing) = (self.0.clone(), flight.clone());
        self.0.tasks.spawn("offloaded read", OnFailure::Log, async move {
            let run = landing.await;
            shared.cache.lock().landed(object, blocks, bytes, id, run.ok());
        });
        flight
    }
}

impl Shared {
    async fn load_footer(&self, target: Target) -> Result<Footer, ObjectError> {
        let key = target.object.key(&self.cluster, target.topic, target.ledger);
        let shape = target.object.shape;
        let (bytes, base) = (shape.size - shape.footer_offset, target.object.base());
        let _turn = self.in_flight.turn(target.topic, bytes).await;
        let begun = self.meters.now();
        let tail = self.blobs.range(&key, base + shape.footer_offset..base + shape.size).await;
        let read = tail.map_err(ObjectError::from).and_then(|tail| {
            verify::footer_of(&key, target.ledger, &shape, &tail).map(|footer| (footer, tail))
        });
        self.count(bytes as usize, read.is_ok());
        self.meters.read_back(target.topic, begun, true, read.is_ok().then_some(bytes));
        let (footer, tail) = read?;
        self.keep_on_disk(target.object.id(), Some(tail), 0, &Bytes::new(), &[]);
        Ok(footer)
    }

    /// The index and, by a request beside it, as many of the first blocks as fit [`FIRST_MAX`]: nobody knows where blocks end before
    /// the index is there. A first request that fails is left to those who need its blocks.
    async fn load_with_head(&self, target: Target) -> Result<Footer, ObjectError> {
        let key = target.object.key(&self.cluster, target.topic, target.ledger);
        if target.object.shape.size <= FIRST_MAX {
            return self.load_small(target, &key).await;
        }
        let begin = HEADER_LEN as u64;
        let end = target.object.shape.footer_offset.min(begin + FIRST_MAX);
        let head = async {
            let turn = self.in_flight.turn(target.topic, end - begin).await;
            let base = target.object.base();
            self.bytes(target.topic, &key, base + begin..base + end).await.map(|head| (head, turn))
        };
        let (footer, head) = tokio::join!(biased; self.load_footer(target), head);
        let footer = footer?;
        let rows = footer.rows.iter().take_while(|row| row.range().end <= end).count();
        if let (Ok((head, _turn)), Some(first)) = (head, footer.rows.first()) {
            let blocks = if first.offset == begin { &footer.rows[..rows] } else { &[] };
            self.keep(target, &key, &head, blocks, None).await;
        }
        Ok(footer)
    }

    /// All of a ledger that is no larger than what a reader's first request brings: index and blocks by one.
    async fn load_small(&self, target: Target, key: &str) -> Result<Footer, ObjectError> {
        let (shape, base) = (target.object.shape, target.object.base());
        let _turn = self.in_flight.turn(target.topic, shape.size).await;
        let begun = self.meters.now();
        let read = self.blobs.range(key, base..base + shape.size).await;
        let footer = read.map_err(ObjectError::from).and_then(|bytes| {
            let tail = &bytes[shape.footer_offset as usize..];
            verify::footer_of(key, target.ledger, &shape, tail).map(|footer| (footer, bytes))
        });
        self.count(shape.size as usize, footer.is_ok());
        self.meters.read_back(target.topic, begun, true, footer.is_ok().then_some(shape.size));
        let (footer, bytes) = footer?;
        let tail = bytes.slice(shape.footer_offset as usize..);
        self.keep(target, key, &bytes.slice(HEADER_LEN..), &footer.rows, Some(tail)).await;
        Ok(footer)
    }

    /// Keeps a ledger's first blocks, which came with its index. Damage in them is no damage of the index: who needs them meets it,
    /// and tells it.
    async fn keep(&self, target: Target, key: &str, bytes: &Bytes, rows: &[Row], index: Option<Bytes>) {
        let Ok(blocks) = opened(key, bytes, rows).await else { return };
        self.keep_on_disk(target.object.id(), index, 0, bytes, rows);
        for (nth, block) in blocks.into_iter().enumerate() {
            self.cache.lock().add((target.object.id(), nth), block);
        }
    }

    /// Blocks that follow each other, from the first on: by one request at most, for what is not on disk and all in between.
    async fn load(&self, target: &Target, first: usize, rows: &[Row]) -> Result<Vec<Block>, ObjectError> {
        let key = target.object.key(&self.cluster, target.topic, target.ledger);
        let mut blocks = self.blocks_on_disk(target.object.id(), first, rows).await;
        let lacking = kept::lacking(&blocks);
        if !lacking.is_empty() {
            let rows = &rows[lacking.clone()];
            let (span, base) = (verify::span(rows), target.object.base());
            let bytes = self.bytes(target.topic, &key, base + span.start..base + span.end).await?;
            let fetched = opened(&key, &bytes, rows).await?;
            self.keep_on_disk(target.object.id(), None, first + lacking.start, &bytes, rows);
            for (block, fetched) in blocks[lacking].iter_mut().zip(fetched) {
                *block = Some(fetched);
            }
        }
        Ok(blocks.into_iter().flatten().collect())
    }

    async fn bytes(&self, topic: TopicId, key: &str, span: Range<u64>) -> Result<Bytes, ObjectError> {
        let begun = self.meters.now();
        let read = self.blobs.range(key, span).await;
        self.count(read.as_ref().map_or(0, Bytes::len), read.is_ok());
        let bytes = read.as_ref().ok().map(|bytes| bytes.len() as u64);
        self.meters.read_back(topic, begun, false, bytes);
        Ok(read?)
    }

    fn count(&self, bytes: usize, good: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(!good), Ordering::Relaxed);
    }
}

impl Indexes {
    fn insert(&mut self, id: PartId, flight: Flight<Arc<Footer>>, bytes: usize, limit: usize) {
        self.known.insert(id, (flight, bytes));
        self.order.push_back(id);
        self.bytes += bytes;
        while self.bytes > limit && self.order.len() > 1 {
            if let Some(oldest) = self.order.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, id: PartId) {
        if let Some((_, bytes)) = self.known.remove(&id) {
            self.bytes -= bytes;
        }
    }

    fn remove(&mut self, id: PartId) {
        self.forget(id);
        self.order.retain(|other| *other != id);
    }
}

/// Blocks of an answer that begins with the first of them.
async fn opened(key: &str, bytes: &Bytes, rows: &[Row]) -> Result<Vec<Block>, ObjectError> {
    let mut blocks = Vec::with_capacity(rows.len());
    for row in rows {
        let at = (row.offset - rows[0].offset) as usize;
        // A block of its own: an entry that is kept somewhere must not keep the whole answer in memory.
        let block = Bytes::copy_from_slice(&bytes[at..at + row.length as usize]);
        let entries = block::open_at(block, row);
        let entries = entries.map_err(|error| ObjectError::Format { key: key.to_owned(), error })?;
        blocks.push(Arc::new(entries));
        // Megabytes of copying and checking at a stretch would keep other readers, and their connections, from this thread.
        tokio::task::yield_now().await;
    }
    Ok(blocks)
}

/// Where a reader of so many bytes ends that begins with the first of these blocks: at least one.
fn within(rows: &[Row], blocks: Range<usize>, bytes: u64) -> usize {
    let Some(first) = rows.get(blocks.start).filter(|_| bytes > 0) else { return blocks.start };
    let inside = |row: &Row| row.offset < first.offset.saturating_add(bytes);
    blocks.start + rows[blocks].iter().take_while(|row| inside(row)).count().max(1)
}

/// Blocks that follow each other in one request, unless it grows too large.
fn grouped(rows: &[Row], blocks: &[usize], run_bytes: u64) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for stretch in blocks.chunk_by(|a, b| a + 1 == *b) {
        let first = stretch[0];
        let runs = verify::runs(&rows[first..first + stretch.len()], run_bytes);
        found.extend(runs.into_iter().map(|run| first + run.start..first + run.end));
    }
    found
}

fn of_run(run: &Run, nth: usize) -> Result<Block, ObjectError> {
    let block = nth.checked_sub(run.0).and_then(|at| run.1.get(at)).cloned();
    block.ok_or_else(|| ObjectError::Other { key: String::new(), what: "its blocks" })
}
