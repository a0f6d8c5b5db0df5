//! Settings of the store in a configuration file, table `[standalone.bookie]` or `[bookie.store]`.

use crate::failure;
use anyhow::Context as _;
use geminga_common::config::ByteSize;
use geminga_common::error::Code;
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
    /// Size of a journal file. Default 32 MiB, the largest entry and 84 KiB more to 64 GiB. A start after a crash reads these files.
    journal_file_size: ByteSize,
    /// Bytes of entries in memory. Default 64 MiB, 4 KiB to 1 TiB. At half of it they are sorted to disk; when it is full, adds wait.
    write_cache: ByteSize,
    /// Longest an entry stays unsorted, in milliseconds. Default 60 000, 10 to 3 600 000.
    flush_ms: u64,
    /// Bytes of the cache of blocks read from disk. Default 8 MiB, at most 1 TiB.
    block_cache: ByteSize,
    /// Shards, each with a journal and threads of its own. Default 1, 1 to 64. Fixed when the store is made.
    shards: u16,
    /// Further data directories, on volumes of their own: shards are dealt out over `data_dir` and these. Default none; fewer than there
    /// are shards. Fixed when the store is made: another number of them is refused.
    more_data_dirs: Vec<PathBuf>,
    /// Directories for journals, on volumes of their own. Default none: each journal lies beside its data. At most one per shard; fixed
    /// when the store is made.
    journal_dirs: Vec<PathBuf>,
    /// Bytes held in reserve for the day the disk is full, so that deleting still works then. Default 64 MiB, at most 1 TiB; 0 holds none, and a full
    /// disk may keep deletions waiting. One journal file's size per shard is held beside it.
    disk_reserve: ByteSize,
    /// With so many free bytes nothing is refused, however full the disk is in percent. Default 0, percents alone decide; of a standalone
    /// 8 GiB, because the disk of a developer's machine is often nearly full of other things.
    disk_enough: ByteSize,
    /// From this share of the disk on the store is no place for new ledgers, in percent. Default 85.
    disk_warn_percent: u8,
    /// From this share on publishing is refused, in percent. Default 92; it is taken up again 2 below.
    disk_refuse_percent: u8,
    /// From this share on not even recovery may write, in percent. Default 97.
    disk_stop_percent: u8,
    /// Days in which every stored byte is read and checked once. Default 14, 1 to 365.
    scrub_days: u64,
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
            shards: 1,
            more_data_dirs: Vec::new(),
            journal_dirs: Vec::new(),
            disk_reserve: ByteSize(64 << 20),
            disk_enough: ByteSize(0),
            disk_warn_percent: 85,
            disk_refuse_percent: 92,
            disk_stop_percent: 97,
            scrub_days: 14,
        }
    }
}

impl Settings {
    /// Defaults of the bookie in a standalone.
    pub(crate) fn standalone() -> Self {
        Self { disk_enough: ByteSize(8 << 30), ..Self::default() }
    }

    /// The store's configuration.
    pub(crate) fn config(
        &self,
        dir: PathBuf,
        cluster: &str,
        message_max: usize,
    ) -> anyhow::Result<geminga_bookie::Config> {
        self.check(dir, cluster, message_max).map_err(|error| {
            failure::coded(Code::CONFIG_INVALID, format_args!("settings of the store: {error:#}"))
        })
    }

    fn check(
        &self,
        dir: PathBuf,
        cluster: &str,
        message_max: usize,
    ) -> anyhow::Result<geminga_bookie::Config> {
        let id =
            BookieId::new(&self.id).context("id is not a name: 1 to 255 bytes, no white space, no `/`")?;
        anyhow::ensure!((10..=3_600_000).contains(&self.flush_ms), "flush_ms must be 10 to 3600000");
        let sizes = [
            ("journal_file_size", self.journal_file_size, 64 << 30, "64GiB"),
            ("write_cache", self.write_cache, 1 << 40, "1TiB"),
            ("block_cache", self.block_cache, 1 << 40, "1TiB"),
            ("disk_reserve", self.disk_reserve, 1 << 40, "1TiB"),
        ];
        for (key, size, most, text) in sizes {
            anyhow::ensure!(size.0 <= most, "{key} is {size}, it must be at most {text}");
        }
        let mut config = geminga_bookie::Config::new(id, dir, cluster);
        config.journal_in_flight = self.journal_in_flight;
        config.journal_file_size = self.journal_file_size.0;
        config.write_cache = usize::try_from(self.write_cache.0).context("write_cache is too large")?;
        config.flush_interval = Duration::from_millis(self.flush_ms);
        config.block_cache = usize::try_from(self.block_cache.0).context("block_cache is too large")?;
        config.shards = self.shards;
        let absolute = |dirs: &[PathBuf]| dirs.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>();
        config.more_data_dirs = absolute(&self.more_data_dirs)?;
        config.journal_dirs = absolute(&self.journal_dirs)?;
        config.ballast = self.disk_reserve.0;
        config.watermarks = geminga_bookie::Watermarks {
            no_new_ledgers: self.disk_warn_percent,
            recovery_only: self.disk_refuse_percent,
            nothing: self.disk_stop_percent,
            reopen_new_ledgers: self.disk_warn_percent.saturating_sub(5),
            reopen_adds: self.disk_refuse_percent.saturating_sub(2),
            reopen_recovery: self.disk_stop_percent.saturating_sub(2),
            enough_free: self.disk_enough.0,
        };
        anyhow::ensure!((1..=365).contains(&self.scrub_days), "scrub_days must be 1 to 365");
        config.scrub_period = Duration::from_secs(self.scrub_days * 24 * 3600);
        // Whatever a producer may send must fit, with the metadata around it.
        config.entry_bytes_max = message_max + (64 << 10);
        // Small, because a first start waits for it; but large messages make it larger.
        let first = config.journal_file_size_first.max(config.journal_file_min());
        config.journal_file_size_first = first.min(config.journal_file_size);
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_journal_file_holds_whatever_the_others_hold() {
        let mut settings = Settings { journal_file_size: ByteSize(128 << 20), ..Settings::default() };
        let config = settings.config("/d".into(), "c", 64 << 20).unwrap();
        assert_eq!(config.journal_file_size_first, config.journal_file_min());
        settings.journal_file_size = ByteSize(32 << 20);
        assert_eq!(settings.config("/d".into(), "c", 5 << 20).unwrap().journal_file_size_first, 8 << 20);
        settings.write_cache = ByteSize(2 << 40);
        let refused = settings.config("/d".into(), "c", 5 << 20).unwrap_err().to_string();
        assert!(refused.contains("write_cache is 2TiB, it must be at most 1TiB"), "{refused}");
        settings.write_cache = ByteSize(64 << 20);
        let refused = settings.config("/d".into(), "c", 64 << 20).unwrap_err().to_string();
        for word in ["GM-6004", "journal_file_size is 33554432 bytes", "are needed", "max_message_size"] {
            assert!(refused.contains(word), "`{word}` is missing in {refused}");
        }
    }
}
