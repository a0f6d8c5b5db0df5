//! The database's file: where it is, and how its database is opened the first time and again.
//!
//! Owner: the worker. The caller of the store holds the data directory's lock for as long as the store lives, shut or open: another
//! process is kept out meanwhile. A file that is gone, or is another than the one that was open, is never taken for it, and none is
//! made in its place.

use super::outage::{Cure, Reason};
use super::tables::{self, OpenFailure};
use super::{CACHE_BYTES, OpenError, refused};
use crate::disk::{Disk, Doubts, RedbFile};
use crate::metadata::Revision;
use redb::Database;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Room for the largest transaction, in bytes, before a full disk is tried again: redb keeps a value in pages of a power of two, and
/// the tables around it change as well.
const ROOM_BYTES: u64 = 4 << 20;

pub(super) struct File {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    doubts: Doubts,
}

impl File {
    /// Opens the database, making an empty one if there is none, and ends what leases of an earlier process left.
    pub(super) fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<(Self, Database, Revision), OpenError> {
        let backend = RedbFile::open(&*disk, path)?;
        let file = Self { disk, path: path.to_owned(), doubts: backend.doubts() };
        let database = open(backend)?;
        let revision = tables::prepare(&database).map_err(OpenFailure::into_open_error)?;
        Ok((file, database, revision))
    }

    /// Opens it again, if it is at one of the revisions at which it may be.
    pub(super) fn reopen(
        &self,
        expected: impl Iterator<Item = Revision>,
    ) -> Result<(Database, Revision), Reason> {
        let opened = RedbFile::reopen(&*self.disk, &self.path, &self.doubts)
            .map_err(OpenError::from)
            .and_then(open)
            .and_then(|database| {
                let revision = tables::revision(&database).map_err(OpenFailure::into_open_error)?;
                Ok((database, revision))
            });
        let (database, found) = opened.map_err(|error| self.not_opened(&error))?;
        let expected: Vec<Revision> = expected.collect();
        if expected.contains(&found) {
            return Ok((database, found));
        }
        let what = format!(
            "{} is another file than the one that was open: it is at revision {found}, not at {}",
            self.path.display(),
            expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
        );
        Err(Reason { what, cure: Cure::Person })
    }

    fn not_opened(&self, error: &OpenError) -> Reason {
        let (cure, error) = match error {
            OpenError::Disk(error) => (cure(error), error.to_string()),
            damaged => (Cure::Person, damaged.to_string()),
        };
        Reason { what: format!("opening {} failed: {error}", self.path.display()), cure }
    }

    /// Why the database failed while `doing` something.
    pub(super) fn reason(&self, doing: &str, error: redb::Error) -> Reason {
        // After the first failed call redb says no more than that there was one.
        let error = match (self.doubts.take_failure(), error) {
            (Some(first), _) | (None, redb::Error::Io(first)) => Ok(first),
            (None, other) => Err(other),
        };
        let (cure, error) = match &error {
            Ok(io) => (cure(io), io.to_string()),
            Err(other) => (Cure::Disk, other.to_string()),
        };
        Reason { what: format!("{doing} {} failed: {error}", self.path.display()), cure }
    }

    /// Whether it is worth trying to write after a failure for this reason.
    pub(super) fn has_room(&self, reason: Option<&Reason>) -> bool {
        let full = reason.is_some_and(|reason| reason.cure == Cure::Room);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        !full || self.disk.space(dir).is_ok_and(|space| space.available >= ROOM_BYTES)
    }
}

fn cure(error: &io::Error) -> Cure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cure::Room,
        _ => Cure::Disk,
    }
}

fn open(backend: RedbFile) -> Result<Database, OpenError> {
    // Reads it all once, against its checksums: without that redb panics on a page that is not what it seems, perhaps days later.
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(backend)
        .map_err(refused)
}
