//! redb over our [`Disk`], so that its files are under the crash enumerator too.
//!
//! Owner: the redb database it is given to. Invariant: a file under its final name is a complete redb database. redb refuses a
//! file whose first bytes were never written, so a crash in the middle of the first opening must not leave one: a new database
//! is made under another name, closed, and renamed.

use super::{Disk, DiskFile, OpenMode};
use redb::StorageBackend;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A redb storage backend over a file of a [`Disk`].
pub struct RedbFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
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
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(error) => Err(error),
        }
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
        let backend = Self { path: unfinished.clone(), file: file.clone() };
        let empty = redb::Builder::new().set_cache_size(1 << 20).create_with_backend(backend);
        drop(empty.map_err(|error| match redb::Error::from(error) {
            redb::Error::Io(error) => error,
            other => io::Error::other(other),
        })?);
        // Closing writes once more and tells nobody whether that went well.
        file.sync_data()?;
        disk.rename(&unfinished, path)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl StorageBackend for RedbFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}
