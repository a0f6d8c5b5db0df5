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
    /// Journal writes in flight, 1 to 8.
    pub journal_in_flight: usize,
    /// Size of a journal file, in bytes.
    pub journal_file_size: u64,
    /// Size of the first journal file of a fresh store, in bytes: start-up waits while it is zeroed.
    pub journal_file_size_first: u64,
    /// A journal batch is closed at this many bytes.
    pub batch_bytes: usize,
    /// A waiting add is sent beside a write in flight after this long.
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
    /// Threads that read segments.
    pub readers: usize,
    /// Seed of the identity of a fresh store; `None` takes the system's randomness.
    pub seed: Option<u64>,
    /// A known defect to re-introduce, for tests that must catch it.
    #[cfg(feature = "museum")]
    pub mutant: Option<crate::mutant::Mutant>,
}

/// A setting out of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(&'static str);

impl Config {
    /// Defaults for a store in `data_dir`.
    #[must_use]
    pub fn new(id: geminga_common::ids::BookieId, data_dir: PathBuf, cluster: &str) -> Self {
        Self {
            id,
            data_dir,
            cluster: cluster.to_owned(),
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
            readers: 2,
            seed: None,
            #[cfg(feature = "museum")]
            mutant: None,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let file_min = self.entry_bytes_max as u64 + self.control_reserve + 5 * 4096;
        let rules = [
            ((1..=8).contains(&self.journal_in_flight), "journal_in_flight must be 1 to 8"),
            (self.journal_file_size >= file_min, "journal_file_size does not hold the largest entry"),
            (
                self.journal_file_size_first >= file_min,
                "journal_file_size_first does not hold the largest entry",
            ),
            (
                self.journal_file_size.is_multiple_of(4096)
                    && self.journal_file_size_first.is_multiple_of(4096),
                "journal file sizes must be multiples of 4096",
            ),
            (self.cluster.len() <= 255, "cluster id is longer than 255 bytes"),
            (self.entry_bytes_max <= 1 << 30, "entry_bytes_max must be at most 1 GiB"),
            (self.readers >= 1, "readers must be at least 1"),
            (self.write_cache >= 4096, "write_cache must be at least 4096"),
        ];
        match rules.iter().find(|(good, _)| !good) {
            Some((_, text)) => Err(ConfigError(text)),
            None => Ok(()),
        }
    }
}
