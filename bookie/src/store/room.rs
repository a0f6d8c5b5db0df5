//! Room on the disk: the ballast, and looking how full the disk is.
//!
//! `BALLAST` is a file of zeros that nobody reads. It is cut to nothing when a flush, a journal file or a transaction finds no room, so
//! that deletions can always be made durable and acted upon; it is filled again once the disk has room for it twice.

use super::{Place, Store};
use crate::space::Room;
use geminga_common::disk::{Disk, DiskFile, OpenMode};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives up what closed stores hold; whether there was anything.
pub(super) fn cut_ballast(disk: &dyn Disk, places: &[Place]) -> bool {
    let cut = |place: &Place| -> io::Result<u64> {
        let file = disk.open(&place.data_dir.join("BALLAST"), OpenMode::ReadWrite)?;
        let len = file.len()?;
        file.set_len(0)?;
        file.sync_data()?;
        Ok(len)
    };
    places.iter().filter(|place| cut(place).is_ok_and(|len| len > 0)).count() > 0
}

#[derive(Default)]
pub(crate) struct Ballast {
    file: Option<Arc<dyn DiskFile>>,
    held: bool,
    /// The file system cannot hold room for a file.
    unsupported: bool,
}

impl Store {
    /// Holds the ballast if it can be had. Nothing hangs on its durability: it is made again at each start.
    pub(super) fn hold_ballast(&self) -> io::Result<()> {
        let mut ballast = self.ballast.lock();
        if self.config.ballast == 0 || ballast.held || ballast.unsupported {
            return Ok(());
        }
        let file = match &ballast.file {
            Some(file) => file.clone(),
            None => self.open_ballast()?,
        };
        match file.allocate(self.config.ballast) {
            Ok(()) => ballast.held = true,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "the file system holds no room in advance: a full disk may keep deletions waiting"
                );
                ballast.unsupported = true;
            }
            Err(error) if super::is_full(&error) => {
                // What was taken of it is wanted elsewhere.
                file.set_len(0)?;
            }
            Err(error) => return Err(error),
        }
        ballast.file = Some(file);
        Ok(())
    }

    fn open_ballast(&self) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.place.data_dir.join("BALLAST");
        match self.disk.open(&path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.open(&path, OpenMode::CreateNew)
            }
            other => other,
        }
    }

    /// Takes over what the last start held.
    pub(super) fn adopt_ballast(&self) {
        let mut ballast = self.ballast.lock();
        if let Ok(file) = self.disk.open(&self.place.data_dir.join("BALLAST"), OpenMode::ReadWrite) {
            ballast.held = file.len().is_ok_and(|len| len > 0);
            ballast.file = Some(file);
        }
    }

    /// Gives the ballast up. False when there was none to give.
    pub(super) fn release_ballast(&self) -> bool {
        let mut ballast = self.ballast.lock();
        let held = std::mem::take(&mut ballast.held);
        let cut = |file: &Arc<dyn DiskFile>| file.set_len(0).and_then(|()| file.sync_data()).is_ok();
        let freed = held && ballast.file.as_ref().is_some_and(cut);
        if freed {
            tracing::warn!(dir = %self.place.data_dir.display(), "the disk is full: the room held in reserve is given up");
        }
        freed
    }

    /// Tells by rising that room was given back.
    pub(crate) fn freed(&self) -> u64 {
        let count = |word: &AtomicU64| word.load(Ordering::Relaxed);
        count(&self.counts.punched_bytes) + count(&self.counts.removed_segments)
    }

    /// Looks how full the disk is; whether what may be taken has changed.
    pub(crate) fn look(&self) -> bool {
        let Ok(space) = self.disk.space(&self.place.data_dir) else { return false };
        if space.available >= self.config.ballast.saturating_mul(2)
            && let Err(error) = self.hold_ballast()
        {
            tracing::warn!(%error, "room in reserve cannot be held");
        }
        let mut shard = self.shard.lock();
        let room = self.config.watermarks.next(shard.room, space);
        let changed = shard.set_room(room);
        drop(shard);
        if changed && room > Room::Open {
            tracing::warn!(?room, free = space.available, total = space.total, "the disk fills up");
        } else if changed {
            tracing::info!(free = space.available, "the disk has room again");
        }
        changed
    }
}
