//! A data directory of a server that was killed, to lose parts of.

use super::copy;
use anyhow::{Context as _, Result};
use std::path::PathBuf;

/// Everything is flushed to segments soon.
pub(crate) const FLUSHED: &str = "write_cache = '1 MiB'\nflush_ms = 100\n";
/// Nothing is: all of it lies in journal files.
pub(crate) const UNFLUSHED: &str = "write_cache = '64 MiB'\nflush_ms = 600000\n";

/// A data directory, a copy of it, and the settings its server ran with.
pub(crate) struct Killed {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: String,
}

impl Killed {
    /// Small files, with these settings of the store and of the broker besides.
    pub(crate) fn with(store: &str, broker: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("small.toml");
        std::fs::write(
            &file,
            format!(
                "[standalone.bookie]\njournal_file_size = '1 MiB'\ndisk_reserve = '1 MiB'\n{store}\
                 [standalone.broker]\nmax_message_size = '64 KiB'\n{broker}"
            ),
        )?;
        let config = file.to_str().context("a path of text")?.to_owned();
        Ok(Self { dir, config })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn kept(&self) -> PathBuf {
        self.dir.path().join("kept")
    }

    pub(crate) fn args(&self) -> [&str; 2] {
        ["--config", &self.config]
    }

    /// Keeps a copy of the data directory as it is.
    pub(crate) fn keep(&self) -> Result<()> {
        copy(&self.data(), &self.kept())
    }

    /// The data directory as it was kept.
    pub(crate) fn reset(&self) -> Result<()> {
        std::fs::remove_dir_all(self.data())?;
        copy(&self.kept(), &self.data())
    }

    /// Paths of files in a directory of the store, below the data directory; by name.
    pub(crate) fn files(&self, dir: &str, extension: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for file in std::fs::read_dir(self.kept().join(dir))? {
            let path = file?.path();
            if path.extension().is_some_and(|is| is == extension) {
                found.push(path.strip_prefix(self.kept())?.to_owned());
            }
        }
        found.sort();
        Ok(found)
    }
}
