//! Settings of one store. Pure data: clock, disk and randomness are passed beside it.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a bookie's store.
#[derive(Clone, Debug)]
pub struct Config {
    /// Stable name of this bookie.
    pub id: geminga_common::ids::BookieId,
    /// Directory of identity, manifest and segments; the journal lies in `journal` below it.
    pub data_dir: PathBuf,
    /// Cluster the store belongs to; a store of another cluster is refused. At most 255 bytes.
    pub cluster: String,
    /// Shards: each owns the ledgers whose id modulo their number is its own, with a journal, cache and segments of its own. 1 to
    /// 64; fixed when the store is made. Memory settings are for all of them together.
    pub shards: u16,
    /// Further data directories, for shards beyond the first. Fixed when the store is made.
    pub more_data_dirs: Vec<PathBuf>,
    /// Directories for journals, on devices of their own; none: below the data. Fixed when the store is made.
    pub journal_dirs: Vec<PathBuf>,
    /// Journal writes in flight per shard, 1 to 8.
    pub journal_in_flight: usize,
    /// Size of a journal file, in bytes.
    pub journal_file_size: u64,
    /// Size of the first journal file of a fresh store, in bytes: start-up waits while it is zeroed.
    pub journal_file_size_first: u64,
    /// Adds of so many bytes times the writes in flight are sent beside those; a batch never exceeds what all writes together wait for.
    pub batch_bytes: usize,
    /// A waiting add is sent beside writes in flight after this long for each of them.
    pub batch_age: Duration,
    /// Bytes of the write cache; a flush starts at half of it, adds wait when all of it is taken.
    pub write_cache: usize,
    /// A flush starts this long after the first unflushed record at the latest.
    pub flush_interval: Duration,
    /// Bytes of payload of a segment block, before it is closed.
    pub block_bytes: usize,
    /// Bytes of the block cache.
    pub block_cache: usize,
    /// Largest entry (header and payload), in bytes.
    pub entry_bytes_max: usize,
    /// Requests waiting for admission, in bytes; above it adds are answered `Unknown`.
    pub inbox_bytes: usize,
    /// Journal bytes kept for fences, seals and deletes when no further file can be had.
    pub control_reserve: u64,
    /// At which shares of the disk less and less is taken.
    pub watermarks: crate::Watermarks,
    /// Bytes that recoveries may write while the disk is too full for other adds.
    pub recovery_reserve: u64,
    /// Bytes that cursor logs may write while the disk is too full for messages: what consumers have acknowledged is what lets
    /// messages be deleted.
    pub cursor_reserve: u64,
    /// Bytes held in a file that is given up when the disk is full, so that a flush, a journal file and the manifest always find
    /// room. One journal file's size per shard is held beside it. 0: none is held, and a full disk may keep deletions waiting. Should
    /// be at least `write_cache`.
    pub ballast: u64,
    /// Dead bytes in a row from which on they are given back to the disk, at least 4096.
    pub punch_bytes: u64,
    /// Holes punched a second, at most: each costs the disk some milliseconds.
    pub punch_rate: u32,
    /// A segment that is out of use becomes shorter by so many bytes a hundred times a second, at least 4096: a file system that gives
    /// back a gigabyte in one go keeps the journal waiting meanwhile.
    pub shrink_bytes: u64,
    /// A ledger's run below this many bytes goes to a segment of small runs, which is merged with others later.
    pub small_run: usize,
    /// Segments of small runs of about the same size that are merged into one, at least 2.
    pub merge_count: usize,
    /// Bytes of segments that one merge may read.
    pub merge_bytes: u64,
    /// Every byte in segments is read and checked once in this time.
    pub scrub_period: Duration,
    /// Bytes a second that checking may read, whatever the period says.
    pub scrub_rate: u64,
    /// Threads that read segments.
    pub readers: usize,
    /// A store that lacks something it had is refused before anything of it is changed, instead of opened with what is left of it for
    /// a repair from other copies. For a store that has the only copy.
    pub refuse_losses: bool,
    /// Nobody else has copies of what is stored: losses are told as what they are, and no repair is promised.
    pub only_copy: bool,
    /// The incarnation that others count on. A store that lost every copy of its identity keeps it, as one that lost data, instead of
    /// taking one by which nobody would know it again. `None`: nobody counts on one, or whoever does copes with another.
    pub known: Option<geminga_common::ids::Incarnation>,
    /// Starts that others know of: a store that lost every copy of its identity counts on from there, so that it is not taken for an older
    /// copy of itself. Default 0.
    pub known_boot: u64,
    /// Seed of the identity of a fresh store; `None` takes the system's randomness.
    pub seed: Option<u64>,
}

/// A setting out of its range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Defaults for a store in `data_dir`.
    #[must_use]
    pub fn new(id: geminga_common::ids::BookieId, data_dir: PathBuf, cluster: &str) -> Self {
        Self {
            id,
            data_dir,
            cluster: cluster.to_owned(),
            shards: 1,
            more_data_dirs: Vec::new(),
            journal_dirs: Vec::new(),
            journal_in_flight: 4,
            journal_file_size: 128 << 20,
            journal_file_size_first: 8 << 20,
            batch_bytes: 512 << 10,
            batch_age: Duration::from_millis(1),
            write_cache: 64 << 20,
            flush_interval: Duration::from_secs(60),
            block_bytes: 128 << 10,
            block_cache: 8 << 20,
            entry_bytes_max: (5 << 20) + (64 << 10),
            inbox_bytes: 256 << 20,
            control_reserve: 64 << 10,
            watermarks: crate::Watermarks::default(),
            recovery_reserve: 256 << 20,
            cursor_reserve: 64 << 20,
            ballast: 64 << 20,
            punch_bytes: 1 << 20,
            punch_rate: 100,
            shrink_bytes: 8 << 20,
            small_run: 64 << 10,
            merge_count: 8,
            merge_bytes: 256 << 20,
            scrub_period: Duration::from_secs(14 * 24 * 3600),
            scrub_rate: 16 << 20,
            readers: 2,
            refuse_losses: false,
            only_copy: false,
            known: None,
            known_boot: 0,
            seed: None,
        }
    }

    /// Bytes that a batch has at most, unless one record has more: what the writes in flight wait for together.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        self.batch_bytes * self.journal_in_flight
    }

    /// Bytes that a journal file must have at least: the largest entry with what goes around it, in whole pages.
    #[must_use]
    pub fn journal_file_min(&self) -> u64 {
        (self.entry_bytes_max as u64 + self.control_reserve + 5 * 4096).next_multiple_of(4096)
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.holds_largest("journal_file_size", self.journal_file_size)?;
        self.holds_largest("journal_file_size_first", self.journal_file_size_first)?;
        let rules = [
            ((1..=8).contains(&self.journal_in_flight), "journal_in_flight must be 1 to 8"),
            (
                self.journal_file_size.is_multiple_of(4096)
                    && self.journal_file_size_first.is_multiple_of(4096),
                "journal file sizes must be multiples of 4096",
            ),
            (self.cluster.len() <= 255, "cluster id is longer than 255 bytes"),
            (self.entry_bytes_max <= 1 << 30, "entry_bytes_max must be at most 1 GiB"),
            (self.readers >= 1, "readers must be at least 1"),
            (self.write_cache >= 4096, "write_cache must be at least 4096"),
            (
                self.watermarks.sound(),
                "disk watermarks must rise, and each must be left below where it is entered",
            ),
            (
                self.punch_bytes >= 4096 && self.punch_rate >= 1,
                "punch_bytes must be at least 4096, punch_rate 1",
            ),
            (self.shrink_bytes >= 4096, "shrink_bytes must be at least 4096"),
            (self.merge_count >= 2, "merge_count must be at least 2"),
            ((1..=64).contains(&self.shards), "shards must be 1 to 64"),
            (
                self.more_data_dirs.len() < usize::from(self.shards)
                    && self.journal_dirs.len() <= usize::from(self.shards),
                "there must not be more directories than shards",
            ),
            (self.scrub_rate >= 4096, "scrub_rate must be at least 4096"),
            (self.scrub_period >= Duration::from_secs(1), "scrub_period must be at least a second"),
        ];
        match rules.iter().find(|(good, _)| !good) {
            Some((_, text)) => Err(ConfigError((*text).to_owned())),
            None => Ok(()),
        }
    }

    fn holds_largest(&self, key: &str, bytes: u64) -> Result<(), ConfigError> {
        let (min, entry) = (self.journal_file_min(), self.entry_bytes_max);
        if bytes >= min {
            return Ok(());
        }
        Err(ConfigError(format!(
            "{key} is {bytes} bytes and does not hold the largest entry: {min} are needed for one of {entry}. Raise {key}, or \
             lower max_message_size"
        )))
    }

    /// What one shard may take.
    pub(crate) fn share(&self) -> std::sync::Arc<Self> {
        let n = usize::from(self.shards);
        std::sync::Arc::new(Self {
            write_cache: (self.write_cache / n).max(4096),
            block_cache: self.block_cache / n,
            inbox_bytes: self.inbox_bytes / n,
            recovery_reserve: self.recovery_reserve / n as u64,
            cursor_reserve: self.cursor_reserve / n as u64,
            ballast: if self.ballast == 0 { 0 } else { self.ballast / n as u64 + self.journal_file_size },
            scrub_rate: (self.scrub_rate / n as u64).max(4096),
            ..self.clone()
        })
    }
}
