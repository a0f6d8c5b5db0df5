//! Files of segments that are out of use, on their way out.
//!
//! A file system gives back the room of a gigabyte that is removed at once in one go, and a device that is told what became free
//! (`discard`) works on it for a tenth of a second or two, while the journal waits behind it. So a file gets another name, after which
//! nobody takes it for a segment, and becomes shorter piece by piece until the last one goes with the file. Whoever still reads it
//! holds it back. Where room is short, files go at once.

#[cfg(test)]
mod tests;

use super::Store;
use crate::Room;
use crate::segments::{self, Segment};
use crate::shard::Status;
use geminga_common::disk::OpenMode;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A file that has its other name already.
pub(super) struct Leaving {
    path: PathBuf,
    /// Bytes left of it; unknown before it was looked at.
    len: Option<u64>,
    /// Shared by those who still read it.
    read: Option<Arc<Segment>>,
}

impl Leaving {
    fn is_read(&self) -> bool {
        self.read.as_ref().is_some_and(|segment| Arc::strong_count(segment) > 1)
    }
}

impl Store {
    /// A file that was leaving when the store stopped.
    pub(super) fn goes_on_leaving(&self, name: &str) {
        let path = self.segment_dir.join(name);
        self.leaving.lock().push_back(Leaving { path, len: None, read: None });
    }

    /// Takes the names from files that the manifest calls forgotten; `segments` are those among them that may be being read. Where room
    /// is short they go at once.
    pub(super) fn leave(&self, ids: &[u64], segments: &[Arc<Segment>]) -> io::Result<()> {
        let short = self.is_short();
        for id in ids {
            let (path, gone) = (self.segment_path(*id), segments::gone(&self.segment_dir, *id));
            if short {
                self.drop_file(&path)?;
                continue;
            }
            match self.disk.rename(&path, &gone) {
                Ok(()) => {
                    let read = segments.iter().find(|segment| segment.row.id == *id).cloned();
                    self.leaving.lock().push_back(Leaving { path: gone, len: None, read });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Not even a name finds room.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => self.drop_file(&path)?,
                Err(error) => return Err(error),
            }
        }
        if !ids.is_empty() {
            self.disk.sync_dir(&self.segment_dir)?;
            self.unlinked.lock().extend(ids);
        }
        Ok(())
    }

    /// Gives up to so many pieces back; whether more are due.
    pub(crate) fn shrink_some(&self, most: u32) -> io::Result<bool> {
        let short = self.is_short();
        let mut files = std::mem::take(&mut *self.leaving.lock());
        let result = self.shrink_each(&mut files, most, short);
        // Those that are left stay, whatever came of it.
        let mut leaving = self.leaving.lock();
        leaving.extend(files);
        result.map(|()| !leaving.is_empty())
    }

    fn shrink_each(&self, files: &mut VecDeque<Leaving>, most: u32, short: bool) -> io::Result<()> {
        let (mut left, mut at) = (most, 0);
        while let Some(file) = files.get_mut(at) {
            if !short && (left == 0 || file.is_read()) {
                at += 1;
                continue;
            }
            left = left.saturating_sub(1);
            if self.shrink(file, short)? {
                files.remove(at);
            }
        }
        Ok(())
    }

    /// Whether the room of files on their way out is wanted now.
    fn is_short(&self) -> bool {
        let shard = self.shard.lock();
        shard.room > Room::Open || shard.status == Status::DiskFull
    }

    /// Makes a file shorter; whether it is gone.
    fn shrink(&self, file: &mut Leaving, at_once: bool) -> io::Result<bool> {
        let step = self.config.shrink_bytes;
        if !at_once && let Some(len) = self.shorter(file, step) {
            file.len = Some(len);
            return Ok(false);
        }
        self.drop_file(&file.path)?;
        Ok(true)
    }

    /// Cuts off one piece; what is left. `None`: the rest is no more than that, or it cannot be cut.
    fn shorter(&self, file: &Leaving, step: u64) -> Option<u64> {
        let open = self.disk.open(&file.path, OpenMode::ReadWrite).ok()?;
        let len = file.len.map_or_else(|| open.len(), Ok).ok()?;
        let rest = len.checked_sub(step).filter(|rest| *rest > 0)?;
        open.set_len(rest).ok().map(|()| rest)
    }

    /// Removes a file, if it is there.
    pub(super) fn drop_file(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
            Ok(()) => drop(self.counts.removed_segments.fetch_add(1, Ordering::Relaxed)),
        }
        Ok(())
    }
}
