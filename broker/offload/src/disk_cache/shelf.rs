//! What lies where in the disk cache, and which file goes when there is no room. Pure but for the handles it keeps; nothing is read
//! or written under its lock.
//!
//! Files go whole, the oldest first, but for those of which something was read since they were written or had their last turn:
//! what one reader reads once goes through without driving out what is read again and again.

use super::format::Extent;
use crate::state::PartId;
use geminga_common::disk::DiskFile;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A block of a ledger in an object, or its index.
pub(super) type Key = (PartId, u32);

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Number of the file.
    pub(super) file: u64,
    /// Where in it.
    pub(super) at: u64,
    /// Its bytes.
    pub(super) length: u32,
}

struct File {
    handle: Arc<dyn DiskFile>,
    bytes: u64,
    keys: Vec<Key>,
    /// Something of it was read again.
    again: bool,
    /// Damage in it was told.
    told: bool,
}

/// The files, and where each block is.
#[derive(Default)]
pub(super) struct Shelf {
    files: BTreeMap<u64, File>,
    /// Files in the order of their turns.
    order: Vec<u64>,
    places: HashMap<Key, Place>,
    bytes: u64,
}

impl Shelf {
    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a block lies, and the file, which stays readable as long as the answer is kept.
    pub(super) fn find(&mut self, key: Key) -> Option<(Place, Arc<dyn DiskFile>)> {
        let place = *self.places.get(&key)?;
        let file = self.files.get_mut(&place.file)?;
        file.again = true;
        Some((place, file.handle.clone()))
    }

    /// Whether a block lies somewhere.
    pub(super) fn knows(&self, key: Key) -> bool {
        self.places.contains_key(&key)
    }

    /// A file of so many bytes, of which nothing is known yet.
    pub(super) fn add(&mut self, number: u64, handle: Arc<dyn DiskFile>, bytes: u64) {
        self.bytes += bytes;
        self.files.insert(number, File { handle, bytes, keys: Vec::new(), again: false, told: false });
        self.order.push(number);
    }

    /// A file and its bytes.
    pub(super) fn file(&self, number: u64) -> Option<(Arc<dyn DiskFile>, u64)> {
        self.files.get(&number).map(|file| (file.handle.clone(), file.bytes))
    }

    /// A file has grown to so many bytes.
    pub(super) fn grown(&mut self, number: u64, bytes: u64) {
        if let Some(file) = self.files.get_mut(&number) {
            self.bytes = self.bytes - file.bytes + bytes;
            file.bytes = bytes;
        }
    }

    /// An extent lies at this place of a file. What is known already stays where it is.
    pub(super) fn holds(&mut self, number: u64, at: u64, extent: &Extent) {
        let Some(file) = self.files.get_mut(&number) else { return };
        for (nth, begin, length) in &extent.blocks {
            let key = (extent.part, *nth);
            let place = Place { file: number, at: at + u64::from(*begin), length: *length };
            if let std::collections::hash_map::Entry::Vacant(free) = self.places.entry(key) {
                free.insert(place);
                file.keys.push(key);
            }
        }
    }

    /// A block is not at this place; whether its file has not been told of yet.
    pub(super) fn forget(&mut self, key: Key, place: Place) -> bool {
        if self.places.get(&key) == Some(&place) {
            self.places.remove(&key);
        }
        self.files.get_mut(&place.file).is_some_and(|file| !std::mem::replace(&mut file.told, true))
    }

    /// Takes the file whose turn it is to go, and all it holds.
    pub(super) fn evict(&mut self) -> Option<u64> {
        // Each gets one more turn at most before the first of them goes.
        for _ in 0..self.order.len() {
            let file = self.files.get_mut(self.order.first()?)?;
            if !std::mem::take(&mut file.again) {
                break;
            }
            self.order.rotate_left(1);
        }
        let number = *self.order.first()?;
        self.remove(number);
        Some(number)
    }

    /// Takes a file and all it holds.
    pub(super) fn remove(&mut self, number: u64) {
        self.order.retain(|other| *other != number);
        let Some(file) = self.files.remove(&number) else { return };
        self.bytes -= file.bytes;
        for key in file.keys {
            if self.places.get(&key).is_some_and(|place| place.file == number) {
                self.places.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::AttemptId;
    use geminga_common::disk::sim::SimDisk;
    use geminga_common::disk::{Disk as _, OpenMode};
    use std::path::Path;

    fn part(attempt: u64) -> PartId {
        PartId(AttemptId(attempt), 0)
    }

    /// Files of one block each, which is numbered as they are.
    fn shelf(files: u64) -> Shelf {
        let (mut shelf, disk) = (Shelf::default(), SimDisk::new());
        for number in 0..files {
            let path = format!("/{number}");
            shelf.add(number, disk.open(Path::new(&path), OpenMode::CreateNew).unwrap(), 8192);
            shelf.holds(number, 4096, &extent(number));
        }
        shelf
    }

    fn extent(nth: u64) -> Extent {
        Extent { part: part(1), blocks: vec![(nth as u32, 40, 5)], bytes: 4096 }
    }

    #[test]
    fn the_oldest_file_goes_that_nobody_read_again_and_each_gets_one_more_turn() {
        let mut shelf = shelf(4);
        for read in [0, 2, 0] {
            assert!(shelf.find((part(1), read)).is_some());
        }
        assert_eq!(shelf.evict(), Some(1));
        assert!(!shelf.knows((part(1), 1)) && shelf.bytes() == 3 * 8192);
        assert_eq!(
            [shelf.evict(), shelf.evict(), shelf.evict(), shelf.evict()],
            [Some(3), Some(0), Some(2), None]
        );
        assert_eq!((shelf.bytes(), shelf.places.len()), (0, 0));
        let mut all = self::shelf(3);
        (0..3).for_each(|read| drop(all.find((part(1), read))));
        assert_eq!(all.evict(), Some(0), "where all were read again the oldest goes");
    }

    #[test]
    fn what_lies_twice_is_found_once_and_goes_with_its_own_file() {
        let mut shelf = shelf(2);
        shelf.holds(1, 8192, &extent(0));
        let (place, _) = shelf.find((part(1), 0)).unwrap();
        assert_eq!(place, Place { file: 0, at: 4136, length: 5 });
        shelf.remove(1);
        assert!(shelf.knows((part(1), 0)));
        assert!(shelf.find((part(2), 0)).is_none(), "of another attempt nothing is known");
        assert!(shelf.forget((part(1), 0), place), "its file is told of");
        assert!(!shelf.forget((part(1), 0), place) && !shelf.knows((part(1), 0)), "once");
    }
}
