//! The entries a broker keeps in memory: each topic's tail, and blocks that catch-up reads brought. All topics share one
//! [`CacheBudget`]; above it the oldest insertions go first, whichever topic they belong to.
//!
//! Payloads are shared with the append, never copied. A small slice can keep a whole socket buffer alive, which `Bytes` does
//! not tell: a slice that does not lie right behind its predecessor in memory is charged a whole buffer. That charges too
//! much rather than too little, and the budget stays an upper bound of what is pinned.
//!
//! Locks: the budget's queue, then one topic's content, both short; never the other way round.

use super::{Entry, ReadEntry, ReadLimit};
use geminga_common::ids::Position;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Bytes charged for what surrounds a payload.
const ENTRY_OVERHEAD: usize = 128;
/// Most blocks a topic keeps: they are searched one by one.
const BLOCKS_MAX: usize = 32;

/// The memory that cached entries of all topics share.
#[derive(Debug)]
pub struct CacheBudget {
    bytes_max: usize,
    used: AtomicUsize,
    insertions: Mutex<Insertions>,
}

#[derive(Debug)]
struct Insertions {
    queue: VecDeque<Insertion>,
    purge_at: usize,
}

#[derive(Debug)]
struct Insertion {
    topic: Weak<Shared>,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Tail entries up to this count since the cache was made.
    Tail(u64),
    Block(u64),
}

impl CacheBudget {
    /// A budget of this many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let insertions = Mutex::new(Insertions { queue: VecDeque::new(), purge_at: 1024 });
        Arc::new(Self { bytes_max, used: AtomicUsize::new(0), insertions })
    }

    /// Bytes charged now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self, topic: &Arc<Shared>, bytes: usize, what: What) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let mut insertions = self.insertions.lock();
        match (insertions.queue.back_mut(), what) {
            (Some(Insertion { topic: last, what: What::Tail(upto) }), What::Tail(to))
                if std::ptr::eq(last.as_ptr(), Arc::as_ptr(topic)) =>
            {
                *upto = to;
            }
            _ => insertions.queue.push_back(Insertion { topic: Arc::downgrade(topic), what }),
        }
        while self.used() > self.bytes_max {
            let Some(oldest) = insertions.queue.pop_front() else { break };
            if let Some(topic) = oldest.topic.upgrade() {
                let freed = topic.content.lock().evict(oldest.what);
                self.release(freed);
            }
        }
        if insertions.queue.len() >= insertions.purge_at {
            insertions.queue.retain(|i| i.topic.strong_count() > 0);
            insertions.purge_at = (2 * insertions.queue.len()).max(1024);
        }
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared {
    budget: Arc<CacheBudget>,
    content: Mutex<Content>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.budget.release(self.content.get_mut().bytes);
    }
}

#[derive(Debug, Default)]
struct Content {
    /// Contiguous along the topic, up to the last confirmed entry; with what each is charged.
    tail: VecDeque<(ReadEntry, usize)>,
    popped: u64,
    /// Where the last payload put in ended in memory.
    end_in_memory: usize,
    blocks: VecDeque<Block>,
    next_block: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Block {
    id: u64,
    entries: Vec<ReadEntry>,
    charge: usize,
}

impl Content {
    fn evict(&mut self, what: What) -> usize {
        let before = self.bytes;
        match what {
            What::Tail(upto) => while self.popped < upto && self.pop_tail() {},
            What::Block(id) => self.keep_blocks(|b| b.id != id),
        }
        before - self.bytes
    }

    fn pop_tail(&mut self) -> bool {
        let Some((_, charge)) = self.tail.pop_front() else { return false };
        self.popped += 1;
        self.bytes -= charge;
        true
    }

    fn keep_blocks(&mut self, keep: impl Fn(&Block) -> bool) {
        let mut freed = 0;
        self.blocks.retain(|b| {
            let stays = keep(b);
            freed += if stays { 0 } else { b.charge };
            stays
        });
        self.bytes -= freed;
    }

    fn charge(&mut self, entry: &Entry, chunk_bytes: usize) -> usize {
        let start = entry.payload.as_ptr() as usize;
        let follows = start >= self.end_in_memory && start - self.end_in_memory < chunk_bytes;
        self.end_in_memory = start + entry.payload.len();
        let pinned = if follows { entry.payload.len() } else { entry.payload.len().max(chunk_bytes) };
        pinned + ENTRY_OVERHEAD
    }
}

/// One topic's share of the cache.
#[derive(Debug)]
pub(super) struct TopicCache {
    shared: Arc<Shared>,
    chunk_bytes: usize,
}

impl TopicCache {
    pub(super) fn new(budget: &Arc<CacheBudget>, chunk_bytes: usize) -> Self {
        let shared = Shared { budget: budget.clone(), content: Mutex::default() };
        Self { shared: Arc::new(shared), chunk_bytes }
    }

    /// Newly confirmed entries, following those before.
    pub(super) fn push_tail(&self, entries: impl Iterator<Item = ReadEntry>) {
        let mut content = self.shared.content.lock();
        let before = content.bytes;
        for entry in entries {
            let charge = content.charge(&entry.entry, self.chunk_bytes);
            content.bytes += charge;
            content.tail.push_back((entry, charge));
        }
        let (added, upto) = (content.bytes - before, content.popped + content.tail.len() as u64);
        drop(content);
        if added > 0 {
            self.shared.budget.charge(&self.shared, added, What::Tail(upto));
        }
    }

    /// A run of entries that a read brought.
    pub(super) fn push_block(&self, entries: Vec<ReadEntry>) {
        let mut content = self.shared.content.lock();
        let before = content.bytes;
        if content.blocks.len() >= BLOCKS_MAX {
            let oldest = content.blocks.front().map(|b| b.id);
            content.keep_blocks(|b| Some(b.id) != oldest);
        }
        let freed = before - content.bytes;
        content.end_in_memory = 0;
        let charge = entries.iter().map(|e| content.charge(&e.entry, self.chunk_bytes)).sum();
        content.end_in_memory = 0;
        let id = content.next_block;
        content.next_block += 1;
        content.bytes += charge;
        content.blocks.push_back(Block { id, entries, charge });
        drop(content);
        self.shared.budget.release(freed);
        self.shared.budget.charge(&self.shared, charge, What::Block(id));
    }

    /// The run that starts exactly at `from`, up to the limit; with the number of entries of its block that lie behind it
    /// (`None` when it came from the tail, or reached into it).
    pub(super) fn get(&self, from: Position, limit: ReadLimit) -> Option<(Vec<ReadEntry>, Option<usize>)> {
        let content = self.shared.content.lock();
        let at = content.tail.partition_point(|(e, _)| e.position < from);
        if content.tail.get(at).is_some_and(|(e, _)| e.position == from) {
            return Some((limit.take(content.tail.range(at..).map(|(e, _)| e)), None));
        }
        content.blocks.iter().find_map(|block| {
            let at = block.entries.binary_search_by_key(&from, |e| e.position).ok()?;
            let run = limit.take(block.entries[at..].iter());
            let behind = block.entries.len() - at - run.len();
            Some((run, Some(behind)))
        })
    }

    /// Entries below `first` are gone.
    pub(super) fn trim(&self, first: Position) {
        let mut content = self.shared.content.lock();
        let before = content.bytes;
        while content.tail.front().is_some_and(|(e, _)| e.position < first) && content.pop_tail() {}
        content.keep_blocks(|b| b.entries.first().is_some_and(|e| e.position >= first));
        let freed = before - content.bytes;
        drop(content);
        self.shared.budget.release(freed);
    }
}
