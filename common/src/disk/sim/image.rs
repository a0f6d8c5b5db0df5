//! The pictures of a simulated disk: file contents in shared pages, names, and the changes between what runs and what is durable.

use super::SECTOR;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE: usize = 4096;

pub(super) type Inode = u64;

#[derive(Clone, Default, Debug)]
pub(super) struct Content {
    pub(super) len: u64,
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
    /// Pages given back to the disk.
    holes: BTreeSet<usize>,
}

impl Content {
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if !self.holes.is_empty() {
            let last = (offset as usize + bytes.len()).div_ceil(PAGE);
            self.holes.retain(|page| !(offset as usize / PAGE..last).contains(page));
        }
        let end = offset + bytes.len() as u64;
        self.len = self.len.max(end);
        self.pages.resize(self.pages.len().max((end as usize).div_ceil(PAGE)), None);
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let within = at % PAGE;
            let (head, tail) = rest.split_at(rest.len().min(PAGE - within));
            let slot = &mut self.pages[at / PAGE];
            if slot.is_some() || head.iter().any(|b| *b != 0) {
                let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new([0; PAGE])));
                page[within..within + head.len()].copy_from_slice(head);
            }
            (at, rest) = (at + head.len(), tail);
        }
    }

    pub(super) fn read(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + out.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut done) = (offset as usize, 0);
        while done < out.len() {
            let within = at % PAGE;
            let part = (out.len() - done).min(PAGE - within);
            match self.pages.get(at / PAGE).and_then(Option::as_ref) {
                Some(page) => out[done..done + part].copy_from_slice(&page[within..within + part]),
                None => out[done..done + part].fill(0),
            }
            (at, done) = (at + part, done + part);
        }
        Ok(())
    }

    /// Whole pages within the range read as zero and take no room any more; of the others the part within is zeroed.
    fn punch(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len);
        let (first, last) = ((offset as usize).div_ceil(PAGE), end as usize / PAGE);
        self.write(&vec![0; end.saturating_sub(offset) as usize], offset);
        for page in first..last {
            self.pages[page] = None;
            self.holes.insert(page);
        }
    }

    /// Bytes it takes on the disk.
    pub(super) fn allocated(&self) -> u64 {
        (self.len.next_multiple_of(PAGE as u64)).saturating_sub((self.holes.len() * PAGE) as u64)
    }

    fn set_len(&mut self, len: u64) {
        self.holes.retain(|page| *page < len as usize / PAGE);
        if len < self.len {
            self.pages.truncate((len as usize).div_ceil(PAGE));
            let within = len as usize % PAGE;
            if within > 0
                && let Some(Some(page)) = self.pages.get_mut(len as usize / PAGE)
            {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
        self.pages.resize((len as usize).div_ceil(PAGE), None);
    }
}

/// One picture of the disk.
#[derive(Clone, Default, Debug)]
pub(super) struct Image {
    pub(super) files: BTreeMap<Inode, Arc<Content>>,
    pub(super) names: BTreeMap<PathBuf, Inode>,
    pub(super) dirs: BTreeSet<PathBuf>,
}

/// A change of the disk, in the order of calls.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write {
        file: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        file: Inode,
        len: u64,
    },
    Punch {
        file: Inode,
        offset: u64,
        len: u64,
    },
    Create {
        path: PathBuf,
        file: Inode,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    Sync {
        file: Inode,
    },
    SyncDir {
        dir: PathBuf,
    },
    /// Written and durable in one call.
    DirectWrite {
        file: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    MakeDir {
        path: PathBuf,
    },
    /// A sync that failed: what it should have made durable never will be.
    Dropped {
        file: Option<Inode>,
        dir: Option<PathBuf>,
    },
}

impl Change {
    fn file(&self) -> Option<Inode> {
        match self {
            Change::Write { file, .. }
            | Change::SetLen { file, .. }
            | Change::Punch { file, .. }
            | Change::DirectWrite { file, .. } => Some(*file),
            _ => None,
        }
    }

    fn in_dir(&self, dir: &Path) -> bool {
        match self {
            Change::Create { path, .. } | Change::Remove { path } => path.parent() == Some(dir),
            Change::Rename { from, to } => from.parent() == Some(dir) || to.parent() == Some(dir),
            _ => false,
        }
    }

    pub(super) fn sectors(&self) -> usize {
        match self {
            Change::Write { bytes, .. } | Change::DirectWrite { bytes, .. } => bytes.len().div_ceil(SECTOR),
            _ => 1,
        }
    }
}

impl Image {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { file, offset, bytes } | Change::DirectWrite { file, offset, bytes } => {
                Arc::make_mut(self.files.entry(*file).or_default()).write(bytes, *offset);
            }
            Change::SetLen { file, len } => {
                Arc::make_mut(self.files.entry(*file).or_default()).set_len(*len);
            }
            Change::Punch { file, offset, len } => {
                Arc::make_mut(self.files.entry(*file).or_default()).punch(*offset, *len);
            }
            Change::Create { path, file } => {
                self.names.insert(path.clone(), *file);
                self.files.entry(*file).or_default();
            }
            Change::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Change::Remove { path } => {
                self.names.remove(path);
            }
            Change::MakeDir { path } => {
                self.dirs.extend(path.ancestors().map(Path::to_owned));
            }
            Change::Sync { .. } | Change::SyncDir { .. } | Change::Dropped { .. } => {}
        }
    }

    /// Applies the chosen sectors of a write.
    fn apply_sectors(&mut self, change: &Change, mut keep: impl FnMut(usize) -> bool) {
        let (Change::Write { file, offset, bytes } | Change::DirectWrite { file, offset, bytes }) = change
        else {
            if keep(0) {
                self.apply(change);
            }
            return;
        };
        let content = Arc::make_mut(self.files.entry(*file).or_default());
        let mut at = 0;
        let mut number = 0;
        while at < bytes.len() {
            // Sectors are those of the device: the first piece ends where one does.
            let place = (*offset as usize + at) % SECTOR;
            let end = (at + SECTOR - place).min(bytes.len());
            if keep(number) {
                content.write(&bytes[at..end], offset + at as u64);
            }
            (at, number) = (end, number + 1);
        }
    }
}

/// The durable picture and what is on its way there.
#[derive(Clone, Default, Debug)]
pub(super) struct Medium {
    pub(super) durable: Image,
    pub(super) pending: Vec<Change>,
}

impl Medium {
    pub(super) fn step(&mut self, change: &Change) {
        match change {
            Change::Sync { file } => self.settle(|c| c.file() == Some(*file)),
            Change::SyncDir { dir } => self.settle(|c| c.in_dir(dir)),
            Change::DirectWrite { file, .. } => {
                // The write by-passes the cache, and what it makes durable includes the earlier writes below it.
                self.pending.push(change.clone());
                self.settle(|c| c.file() == Some(*file));
            }
            Change::MakeDir { .. } => self.durable.apply(change),
            Change::Dropped { file, dir } => self.pending.retain(|c| {
                let file = file.is_some() && c.file() == *file;
                !(file || dir.as_ref().is_some_and(|dir| c.in_dir(dir)))
            }),
            other => self.pending.push(other.clone()),
        }
    }

    fn settle(&mut self, which: impl Fn(&Change) -> bool) {
        let pending = std::mem::take(&mut self.pending);
        let (now, later): (Vec<_>, Vec<_>) = pending.into_iter().partition(which);
        now.iter().for_each(|change| self.durable.apply(change));
        self.pending = later;
    }

    pub(super) fn image(&self, mut part: impl FnMut(usize, &Change) -> Part) -> Image {
        let mut image = self.durable.clone();
        for (number, change) in self.pending.iter().enumerate() {
            match part(number, change) {
                Part::None => {}
                Part::All => image.apply(change),
                Part::Sectors(keep) => image.apply_sectors(change, |n| keep.get(n).copied().unwrap_or(false)),
            }
        }
        image
    }
}

pub(super) enum Part {
    None,
    All,
    Sectors(Vec<bool>),
}
