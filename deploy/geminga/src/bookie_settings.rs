//! Settings of the bookie in a configuration file, table `[standalone.bookie]`.

use anyhow::Context as _;
use geminga_common::config::ByteSize;
use geminga_common::ids::BookieId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What the bookie can be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Name of the bookie. Default `bookie-0`. Ledgers name it: it must not change later.
    id: String,
    /// Journal writes under way at once. Default 4, 1 to 8. More helps disks with a long sync.
    journal_in_flight: usize,
    /// Size of a journal file. Default 32 MiB, at least the largest entry and 84 KiB more. A start after a crash reads these files.
    journal_file_size: ByteSize,
    /// Bytes of entries in memory. Default 64 MiB, at least 4 KiB. At half of it they are sorted to disk; when it is full, adds wait.
    write_cache: ByteSize,
    /// Longest an entry stays unsorted, in milliseconds. Default 60 000, 10 to 3 600 000.
    flush_ms: u64,
    /// Bytes of the cache of blocks read from disk. Default 8 MiB.
    block_cache: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: "bookie-0".to_owned(),
            journal_in_flight: 4,
            journal_file_size: ByteSize(32 << 20),
            write_cache: ByteSize(64 << 20),
            flush_ms: 60_000,
            block_cache: ByteSize(8 << 20),
        }
    }
}

impl Settings {
    /// The store's configuration.
    pub(crate) fn config(
        &self,
        dir: PathBuf,
        cluster: &str,
        message_max: usize,
    ) -> anyhow::Result<geminga_bookie::Config> {
        let id = BookieId::new(&self.id).context("bookie.id is not a name: no white space, no `/`")?;
        anyhow::ensure!((10..=3_600_000).contains(&self.flush_ms), "bookie.flush_ms must be 10 to 3600000");
        let mut config = geminga_bookie::Config::new(id, dir, cluster);
        config.journal_in_flight = self.journal_in_flight;
        config.journal_file_size = self.journal_file_size.0;
        config.journal_file_size_first = config.journal_file_size_first.min(self.journal_file_size.0);
        config.write_cache =
            usize::try_from(self.write_cache.0).context("bookie.write_cache is too large")?;
        config.flush_interval = Duration::from_millis(self.flush_ms);
        config.block_cache =
            usize::try_from(self.block_cache.0).context("bookie.block_cache is too large")?;
        // Whatever a producer may send must fit, with the metadata around it.
        config.entry_bytes_max = message_max + (64 << 10);
        config.validate().context("configuration of the bookie")?;
        Ok(config)
    }
}
