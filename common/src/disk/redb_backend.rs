//! redb over our [`Disk`], so that its files are under the crash enumerator too.
//!
//! Owner: the redb database it is given to. Invariant: a file under its final name is a complete redb database. redb refuses a
//! file whose first bytes were never written, so a crash in the middle of the first opening must not leave one: a new database
//! is made under another name, closed, and renamed.
//!
//! After a failed call redb gives its database up; [`RedbFile::reopen`] makes the file fit to be opened again. What was written
//! since the last good sync is in doubt then: a failed sync leaves pages that read as written and never reach the disk, and no later
//! sync writes them. A database that took them for durable would build on sand. So the file remembers where it has written
//! ([`Doubts`]), and reopening writes there what it reads there, and syncs: what redb then finds is what the disk holds. To redb that
//! is a crash in the middle of a commit, which it is made for: until it has synced, it overwrites nothing that the commit before needs.
//! A write that failed is not in doubt itself: redb writes the header that would make its page count only after all pages.

use super::{Disk, DiskFile, OpenMode};
use parking_lot::Mutex;
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the header is, which is written in place.
const HEADER_BYTES: u64 = 4096;
/// Most bytes written again at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// A redb storage backend over a file of a [`Disk`].
pub struct RedbFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    doubts: Doubts,
}

/// What became of a database file's calls to the disk. Cheap to clone; outlives the database.
#[derive(Clone, Debug, Default)]
pub struct Doubts {
    shared: Arc<Mutex<Doubt>>,
}

#[derive(Debug, Default)]
struct Doubt {
    /// Ranges written since the last good sync, start to end; none touches another.
    written: BTreeMap<u64, u64>,
    /// The length was set since then.
    resized: bool,
    /// The first failure since it was last asked for.
    failure: Option<io::Error>,
}

impl Doubt {
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&from, &to)) = self.written.range(..=end).next_back().filter(|(_, to)| **to >= start)
        {
            self.written.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.written.insert(start, end);
    }

    fn add_all(&mut self, written: BTreeMap<u64, u64>, resized: bool) {
        for (start, end) in written {
            self.add(start, end);
        }
        self.resized |= resized;
    }
}

impl Doubts {
    /// The first failed call since this was last asked, which redb's own error may not name.
    #[must_use]
    pub fn take_failure(&self) -> Option<io::Error> {
        self.shared.lock().failure.take()
    }

    /// Notes a failure.
    fn of<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|error| {
            let again = io::Error::new(error.kind(), error.to_string());
            self.shared.lock().failure.get_or_insert(again);
        })
    }

    /// Writes what is in doubt once more and syncs. On a failure all of it stays in doubt.
    fn settle(&self, file: &dyn DiskFile) -> io::Result<()> {
        let mut doubt = self.shared.lock();
        let len = file.len()?;
        if doubt.resized {
            file.set_len(len)?;
        }
        for (&start, &end) in &doubt.written {
            let mut at = start;
            while at < end.min(len) {
                let mut bytes = vec![0; (end.min(len) - at).min(CHUNK_BYTES) as usize];
                file.read_exact_at(&mut bytes, at)?;
                file.write_all_at(&bytes, at)?;
                at += bytes.len() as u64;
            }
        }
        file.sync_data()?;
        *doubt = Doubt::default();
        Ok(())
    }
}

impl fmt::Debug for RedbFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedbFile {
    /// Opens a database file, making an empty database if there is none. The directory exists, and the caller holds the data
    /// directory's lock: this file is not locked. Blocks on the disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        match disk.open(path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(disk, path),
            Ok(file) => Ok(Self { path: path.to_owned(), file, doubts: Doubts::default() }),
            Err(error) => Err(error),
        }
    }

    /// What becomes of this file's calls from now on.
    #[must_use]
    pub fn doubts(&self) -> Doubts {
        self.doubts.clone()
    }

    /// Opens a database file again, after a database over it has failed and is closed, and makes durable what it shows; `doubts` are
    /// the failed one's. Never makes a file. Blocks on the disk.
    ///
    /// # Errors
    /// Those of the disk, `NotFound` among them; `doubts` stay what they were.
    pub fn reopen(disk: &dyn Disk, path: &Path, doubts: &Doubts) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::ReadWrite)?;
        doubts.settle(&*file)?;
        Ok(Self { path: path.to_owned(), file, doubts: doubts.clone() })
    }

    fn create(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let mut unfinished = OsString::from(path);
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        match disk.remove(&unfinished) {
            // Gone for good before its name serves again: else a crash may rename what was left behind instead of what is written now.
            Ok(()) => disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = disk.open(&unfinished, OpenMode::CreateNew)?;
        let doubts = Doubts::default();
        let backend = Self { path: unfinished.clone(), file: file.clone(), doubts };
        let empty = redb::Builder::new().set_cache_size(1 << 20).create_with_backend(backend);
        drop(empty.map_err(|error| match redb::Error::from(error) {
            redb::Error::Io(error) => error,
            other => io::Error::other(other),
        })?);
        // Closing writes once more and tells nobody whether that went well.
        file.sync_data()?;
        disk.rename(&unfinished, path)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { path: path.to_owned(), file, doubts: Doubts::default() })
    }
}

impl StorageBackend for RedbFile {
    fn len(&self) -> io::Result<u64> {
        self.doubts.of(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.doubts.of(self.file.read_exact_at(out, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.doubts.shared.lock().resized = true;
        self.doubts.of(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        // What is written while this runs is not covered by it.
        let covered = std::mem::take(&mut *self.doubts.shared.lock());
        let synced = self.file.sync_data();
        let mut doubt = self.doubts.shared.lock();
        if synced.is_err() {
            doubt.add_all(covered.written, covered.resized);
        }
        doubt.failure = covered.failure.or(doubt.failure.take());
        drop(doubt);
        self.doubts.of(synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = self.file.write_all_at(data, offset);
        if written.is_ok() || offset < HEADER_BYTES {
            self.doubts.shared.lock().add(offset, offset + data.len() as u64);
        }
        self.doubts.of(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_remembered_byte_for_byte(writes in prop::collection::vec((0_u64..200, 1_u64..40), 0..30)) {
            let mut doubt = Doubt::default();
            let mut bytes = std::collections::BTreeSet::new();
            for (start, len) in writes {
                doubt.add(start, start + len);
                bytes.extend(start..start + len);
            }
            let covered: Vec<u64> = doubt.written.iter().flat_map(|(&start, &end)| start..end).collect();
            prop_assert_eq!(covered, bytes.into_iter().collect::<Vec<_>>());
            let ends: Vec<u64> = doubt.written.values().copied().collect();
            prop_assert!(doubt.written.keys().skip(1).zip(ends).all(|(next, end)| *next > end), "merged");
        }
    }
}
