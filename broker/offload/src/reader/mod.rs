//! Reads entries back from offloaded ledgers: ranged requests of whole blocks, one for a run of blocks however many readers wait
//! for them, a cache of blocks under one budget, and read-ahead that grows while a reader reads on.
//!
//! A reader that begins anywhere gets its block by one request of about what it asked for, so the first entry is there after one
//! round trip (two with an index that is not in memory). One that reads on has up to [`AHEAD_MAX`] under way before it, in
//! requests of [`RUN_BYTES`], which is what a store's connections are fast with. Whatever goes wrong is an error of this read:
//! nothing here says that an entry does not exist.

mod cache;
#[cfg(test)]
mod tests;

use crate::blob::Blobs;
use crate::format::block::{self, Entry};
use crate::format::footer::{Footer, Row};
use crate::key::AttemptId;
use crate::meters::Meters;
use crate::state::ObjectRef;
use crate::verify::{self, ObjectError, RUN_BYTES};
use bytes::Bytes;
use cache::{Block, BlockKey, Cache, Flight, Found, Run};
use futures::FutureExt as _;
use geminga_common::ids::{EntryId, LedgerId, TopicId};
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes that are fetched before a reader asks for them.
pub const AHEAD_MAX: u64 = 32 << 20;
/// Readers whose place is remembered; above it the oldest start small again.
const READERS_MAX: usize = 1024;
/// Share of the cache that indexes may take.
const FOOTER_SHARE: usize = 8;

/// An offloaded ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its topic.
    pub topic: TopicId,
    /// The ledger.
    pub ledger: LedgerId,
    /// Its object.
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
}

#[derive(Default)]
struct Indexes {
    known: HashMap<AttemptId, (Flight<Arc<Footer>>, usize)>,
    order: VecDeque<AttemptId>,
    bytes: usize,
}

/// A reader is known by the block it is expected at.
#[derive(Default)]
struct Ahead {
    windows: HashMap<BlockKey, u64>,
    order: VecDeque<BlockKey>,
}

struct Shared {
    blobs: Arc<dyn Blobs>,
    cluster: String,
    tasks: TaskGroup,
    meters: Meters,
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
    /// A reader with a cache of so many bytes, whose requests run in `tasks`.
    #[must_use]
    pub fn new(
        blobs: Arc<dyn Blobs>,
        cluster: &str,
        cache_bytes: usize,
        tasks: TaskGroup,
        meters: Meters,
    ) -> Self {
        let shared = Shared {
            blobs,
            cluster: cluster.to_owned(),
            tasks,
            meters,
            indexes_limit: cache_bytes / FOOTER_SHARE,
            indexes: Mutex::default(),
            cache: Mutex::new(Cache::new(cache_bytes)),
            deciding: Mutex::default(),
            ahead: Mutex::default(),
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
        Figures {
            requests: get(&self.0.requests),
            bytes: get(&self.0.bytes),
            failed: get(&self.0.failed),
            hits: get(&self.0.hits),
            cached_bytes: self.0.cache.lock().bytes().0 as u64,
        }
    }

    /// Reads on from `first` up to `last`: at least one entry, and no more than about `bytes_max` beyond it. Entries that need
    /// a further request are left for the next read.
    ///
    /// # Errors
    /// The store does not answer, or the object is damaged.
    pub async fn read(
        &self,
        target: &Target,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ObjectError> {
        let footer = self.footer(target).await?;
        let gone = || ObjectError::Other { key: self.key(target), what: "its entries" };
        let from = footer.block_of(first).ok_or_else(gone)?;
        let last = last.min(EntryId(footer.entries - 1));
        let to = footer.block_of(last).ok_or_else(gone)? + 1;
        let wanted = from..within(&footer.rows, from..to, bytes_max as u64);
        self.prepare(target, &footer, wanted.clone());
        let mut entries = Vec::new();
        let mut bytes = 0;
        for nth in wanted {
            let found = self.0.cache.lock().get((target.object.attempt, nth));
            let block = match found {
                Some(Found::Here(block)) => block,
                Some(Found::Coming(flight)) if entries.is_empty() => of_run(&flight.await?, nth)?,
                // Evicted between two looks; nothing else can lack the first block.
                None if entries.is_empty() => of_run(&self.fetch(target, &footer, nth..nth + 1).await?, nth)?,
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
        if entries.is_empty() { Err(gone()) } else { Ok(entries) }
    }

    /// The index of an object: by itself enough for a search by time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn footer(&self, target: &Target) -> Result<Arc<Footer>, ObjectError> {
        let id = target.object.attempt;
        let flight = {
            let mut indexes = self.0.indexes.lock();
            match indexes.known.get(&id) {
                Some((flight, _)) => flight.clone(),
                None => {
                    let (shared, target) = (self.0.clone(), *target);
                    let load = async move { shared.load_footer(target).await.map(Arc::new) };
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

    /// Sends requests for what is wanted and not there, and for what will be wanted soon.
    fn prepare(&self, target: &Target, footer: &Arc<Footer>, wanted: Range<usize>) {
        let object = target.object.attempt;
        let _deciding = self.0.deciding.lock();
        let window = self.window(object, &wanted, &footer.rows);
        let soon = wanted.end..within(&footer.rows, wanted.end..footer.rows.len(), window);
        let (now, later): (Vec<Range<usize>>, Vec<Range<usize>>) = {
            let cache = self.0.cache.lock();
            let missing = |blocks: Range<usize>| {
                let known = |nth: &usize| !cache.knows((object, *nth));
                blocks.filter(known).collect::<Vec<_>>()
            };
            let (now, mut later) = (missing(wanted.clone()), missing(soon));
            // Small requests ahead cost as much as large ones: they wait until there is a whole one, or the ledger ends.
            let whole = later.last().is_none_or(|last| {
                let bytes = footer.rows[*last].range().end - footer.rows[later[0]].offset;
                *last + 1 == footer.rows.len() || bytes >= RUN_BYTES / 2
            });
            if !whole {
                later.clear();
            }
            (grouped(&footer.rows, &now), grouped(&footer.rows, &later))
        };
        let hits = wanted.len() - now.iter().map(ExactSizeIterator::len).sum::<usize>();
        self.0.hits.fetch_add(hits as u64, Ordering::Relaxed);
        for run in now {
            let _under_way = self.fetch(target, footer, run);
        }
        for run in later {
            let bytes = verify::span(&footer.rows[run.clone()]);
            if self.0.cache.lock().room_ahead((bytes.end - bytes.start) as usize) {
                let _under_way = self.fetch(target, footer, run);
            }
        }
    }

    /// How much is to lie before a reader that asks for these blocks: nothing when it is new here, twice as much as before when
    /// it reads on.
    fn window(&self, object: AttemptId, wanted: &Range<usize>, rows: &[Row]) -> u64 {
        let mut ahead = self.0.ahead.lock();
        // It goes on in the block it ended in, or in the next.
        let known =
            [wanted.start, wanted.start + 1].into_iter().find_map(|nth| ahead.windows.remove(&(object, nth)));
        let asked = verify::span(&rows[wanted.clone()]);
        let window = known.map_or(0, |before| (before.max(asked.end - asked.start) * 2).min(AHEAD_MAX));
        let next = (object, wanted.end);
        if ahead.windows.insert(next, window).is_none() {
            ahead.order.push_back(next);
        }
        while ahead.order.len() > READERS_MAX {
            if let Some(oldest) = ahead.order.pop_front() {
                ahead.windows.remove(&oldest);
            }
        }
        window
    }

    /// One request for a run of blocks; it goes on when nobody waits for it any more.
    fn fetch(&self, target: &Target, footer: &Arc<Footer>, blocks: Range<usize>) -> Flight<Run> {
        let (shared, key, topic) = (self.0.clone(), self.key(target), target.topic);
        let (first, rows) = (blocks.start, footer.rows[blocks.clone()].to_vec());
        let span = verify::span(&rows);
        let bytes = (span.end - span.start) as usize;
        let load = async move {
            let blocks = shared.load(topic, &key, span, &rows).await?;
            Ok(Arc::new((first, blocks)))
        };
        let flight: Flight<Run> = load.boxed().shared();
        let object = target.object.attempt;
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
        let begun = self.meters.now();
        let read = verify::footer(&*self.blobs, &key, target.ledger, &shape).await;
        let bytes = shape.size - shape.footer_offset;
        self.count(bytes as usize, read.is_ok());
        self.meters.read_back(target.topic, begun, true, read.is_ok().then_some(bytes));
        read
    }

    async fn load(
        &self,
        topic: TopicId,
        key: &str,
        span: Range<u64>,
        rows: &[Row],
    ) -> Result<Vec<Block>, ObjectError> {
        let start = span.start;
        let begun = self.meters.now();
        let read = self.blobs.range(key, span).await;
        self.count(read.as_ref().map_or(0, Bytes::len), read.is_ok());
        let bytes = read.as_ref().ok().map(|bytes| bytes.len() as u64);
        self.meters.read_back(topic, begun, false, bytes);
        let bytes = read?;
        let mut blocks = Vec::with_capacity(rows.len());
        for row in rows {
            let at = (row.offset - start) as usize;
            // A block of its own: an entry that is kept somewhere must not keep the whole answer in memory.
            let block = Bytes::copy_from_slice(&bytes[at..at + row.length as usize]);
            let entries = block::open_at(block, row);
            let entries = entries.map_err(|error| ObjectError::Format { key: key.to_owned(), error })?;
            blocks.push(Arc::new(entries));
        }
        Ok(blocks)
    }

    fn count(&self, bytes: usize, good: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(!good), Ordering::Relaxed);
    }
}

impl Indexes {
    fn insert(&mut self, id: AttemptId, flight: Flight<Arc<Footer>>, bytes: usize, limit: usize) {
        self.known.insert(id, (flight, bytes));
        self.order.push_back(id);
        self.bytes += bytes;
        while self.bytes > limit && self.order.len() > 1 {
            if let Some(oldest) = self.order.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, id: AttemptId) {
        if let Some((_, bytes)) = self.known.remove(&id) {
            self.bytes -= bytes;
        }
    }

    fn remove(&mut self, id: AttemptId) {
        self.forget(id);
        self.order.retain(|other| *other != id);
    }
}

/// Where a reader of so many bytes ends that begins with the first of these blocks: at least one.
fn within(rows: &[Row], blocks: Range<usize>, bytes: u64) -> usize {
    let Some(first) = rows.get(blocks.start).filter(|_| bytes > 0) else { return blocks.start };
    let inside = |row: &Row| row.offset < first.offset + bytes;
    blocks.start + rows[blocks].iter().take_while(|row| inside(row)).count().max(1)
}

/// Blocks that follow each other in one request, unless it grows too large.
fn grouped(rows: &[Row], blocks: &[usize]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for stretch in blocks.chunk_by(|a, b| a + 1 == *b) {
        let first = stretch[0];
        let runs = verify::runs(&rows[first..first + stretch.len()], RUN_BYTES);
        found.extend(runs.into_iter().map(|run| first + run.start..first + run.end));
    }
    found
}

fn of_run(run: &Run, nth: usize) -> Result<Block, ObjectError> {
    let block = nth.checked_sub(run.0).and_then(|at| run.1.get(at)).cloned();
    block.ok_or_else(|| ObjectError::Other { key: String::new(), what: "its blocks" })
}
