//! A disk in memory that can lose power. It keeps two pictures, what is durable and what running programs see, and the changes
//! between them; a crash image is the durable picture plus any part of those changes, torn at sectors.
//!
//! Owner: the test. Content lies in shared pages, so that a crash image costs a few pointers. Dropped handles and locks of a
//! "crashed" program do not matter: an image is a disk of its own.
//!
//! What is modelled: unsynced writes lost, kept or torn at 512-byte sectors, in any subset; names durable only after a directory
//! sync; a failed sync that leaves pages looking clean but lost; a lying sync; a full disk; flipped bits. Not modelled: a length
//! change separate from its data, misdirected writes, stalls.

mod image;
#[cfg(test)]
mod tests;

use super::{ALIGN, Disk, DiskFile, OpenMode, Space};
use crate::rng::Rng;
use image::{Change, Image, Inode, Medium, Part};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Unit of tearing, in bytes.
pub const SECTOR: usize = 512;

/// What survives a crash of what was not yet durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Crash {
    /// Nothing.
    Lost,
    /// Everything.
    Kept,
    /// All but one change, by number.
    AllBut(usize),
    /// One change alone, by number.
    Only(usize),
    /// Everything, the last change torn before this sector.
    TornAfter(usize),
    /// Everything, the last change torn: only from this sector on.
    TornBefore(usize),
    /// Any subset of sectors of any subset of changes.
    Random(u64),
}

#[derive(Debug, Default)]
struct Faults {
    /// This many syncs (or direct writes) from now on one fails.
    sync_error_in: Option<u64>,
    /// Only syncs of files with this extension count for that.
    sync_error_of: Option<&'static str>,
    lying_sync: bool,
    bytes_left: Option<u64>,
    /// Size of the disk: files give room back when they shrink, are punched or removed.
    capacity: Option<u64>,
    read_only: bool,
}

#[derive(Debug)]
struct State {
    live: Image,
    medium: Medium,
    log: Option<Vec<Change>>,
    calls: u64,
    next_inode: Inode,
    faults: Faults,
    locks: BTreeSet<PathBuf>,
}

/// A simulated disk. Cloning shares it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// A blank disk.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Image::default())
    }

    fn of(image: Image) -> Self {
        let next_inode = image.files.keys().last().map_or(1, |last| last + 1);
        let medium = Medium { durable: image.clone(), pending: Vec::new() };
        let state = State {
            live: image,
            medium,
            log: None,
            calls: 0,
            next_inode,
            faults: Faults::default(),
            locks: BTreeSet::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Records changes from now on, for [`SimDisk::history`].
    pub fn record(&self) {
        let mut state = self.state.lock();
        state.log = Some(Vec::new());
    }

    /// Changes recorded so far: where an event stands among them.
    #[must_use]
    pub fn position(&self) -> usize {
        self.state.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// What was recorded, as points at which power may fail. `start` is the disk as it was when recording began.
    #[must_use]
    pub fn history(&self, start: &SimDisk) -> History {
        let medium = start.state.lock().medium.clone();
        let changes = self.state.lock().log.clone().unwrap_or_default();
        History { medium, changes, at: 0 }
    }

    /// A disk with the same content, apart from this one.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state.lock();
        let forked = Self::of(state.live.clone());
        forked.state.lock().medium = state.medium.clone();
        forked.state.lock().next_inode = state.next_inode;
        forked
    }

    /// The disk after a crash now.
    #[must_use]
    pub fn crash(&self, crash: &Crash) -> Self {
        Self::of(crash_image(&self.state.lock().medium, crash))
    }

    /// The n-th sync or direct write from now on (0: the next) fails; what it should have made durable is lost, though later reads
    /// still show it.
    pub fn fail_sync_in(&self, n: u64) {
        let mut state = self.state.lock();
        (state.faults.sync_error_in, state.faults.sync_error_of) = (Some(n), None);
    }

    /// The same for the n-th sync of a file with this extension.
    pub fn fail_sync_of(&self, extension: &'static str, n: u64) {
        let mut state = self.state.lock();
        (state.faults.sync_error_in, state.faults.sync_error_of) = (Some(n), Some(extension));
    }

    /// Takes a failure back that [`SimDisk::fail_sync_in`] announced and that has not struck yet.
    pub fn disarm(&self) {
        self.state.lock().faults.sync_error_in = None;
    }

    /// Syncs and direct writes say they are done and do nothing.
    pub fn lie(&self, lying: bool) {
        self.state.lock().faults.lying_sync = lying;
    }

    /// Only this many more bytes fit; `None` lifts the limit.
    pub fn limit(&self, bytes: Option<u64>) {
        self.state.lock().faults.bytes_left = bytes;
    }

    /// The disk has this size from now on, and what is removed, cut or punched makes room again; `None`: as large as can be.
    pub fn capacity(&self, bytes: Option<u64>) {
        self.state.lock().faults.capacity = bytes;
    }

    /// Bytes that named files take.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Nothing can be changed from now on, as on a file system mounted read-only.
    pub fn read_only(&self, on: bool) {
        self.state.lock().faults.read_only = on;
    }

    /// The files there are, with their lengths.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        let len = |file: &Inode| state.live.files.get(file).map_or(0, |f| f.len);
        state.live.names.iter().map(|(path, file)| (path.clone(), len(file))).collect()
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn bytes(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let file = state.live.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let content = state.live.files.get(file).cloned().unwrap_or_default();
        let mut out = vec![0; content.len as usize];
        content.read(&mut out, 0)?;
        Ok(out)
    }

    /// Flips one bit of a file, on the medium and in every picture.
    pub fn flip(&self, path: &Path, byte: u64, bit: u8) {
        let mut state = self.state.lock();
        let Some(file) = state.live.names.get(path).copied() else { return };
        let state = &mut *state;
        for image in [&mut state.live, &mut state.medium.durable] {
            let Some(content) = image.files.get_mut(&file).filter(|c| byte < c.len) else { continue };
            let content = Arc::make_mut(content);
            let mut one = [0];
            if content.read(&mut one, byte).is_ok() {
                content.write(&[one[0] ^ (1 << (bit % 8))], byte);
            }
        }
    }

    /// Calls that changed or synced something, so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }
}

fn crash_image(medium: &Medium, crash: &Crash) -> Image {
    let last = medium.pending.len().saturating_sub(1);
    match crash {
        Crash::Lost => medium.durable.clone(),
        Crash::Kept => medium.image(|_, _| Part::All),
        Crash::AllBut(n) => medium.image(|at, _| if at == *n { Part::None } else { Part::All }),
        Crash::Only(n) => medium.image(|at, _| if at == *n { Part::All } else { Part::None }),
        Crash::TornAfter(n) | Crash::TornBefore(n) => medium.image(|at, change| {
            if at != last {
                return Part::All;
            }
            let kept = |sector| (sector < *n) == matches!(crash, Crash::TornAfter(_));
            Part::Sectors((0..change.sectors()).map(kept).collect())
        }),
        Crash::Random(seed) => {
            let mut rng = Rng::seeded(*seed);
            medium.image(|_, change| match rng.below(3) {
                0 => Part::None,
                1 => Part::All,
                _ => Part::Sectors((0..=change.sectors()).map(|_| rng.below(2) == 0).collect()),
            })
        }
    }
}

/// A recorded run, walked one change at a time.
#[derive(Clone, Debug)]
pub struct History {
    medium: Medium,
    changes: Vec<Change>,
    at: usize,
}

impl History {
    /// How many changes are done at the present point.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Goes on by one change; false at the end.
    pub fn step(&mut self) -> bool {
        let Some(change) = self.changes.get(self.at) else { return false };
        self.medium.step(change);
        self.at += 1;
        true
    }

    /// The crashes worth trying here, with `random` random ones. A direct write that is just being made counts as pending.
    #[must_use]
    pub fn crashes(&self, random: u64, seed: u64) -> Vec<Crash> {
        let medium = self.with_next();
        let n = medium.pending.len();
        let mut out = vec![Crash::Lost];
        if n == 0 {
            return out;
        }
        out.push(Crash::Kept);
        if n > 1 {
            out.extend((0..n).flat_map(|at| [Crash::AllBut(at), Crash::Only(at)]));
        }
        let sectors = medium.pending[n - 1].sectors();
        let every = sectors.div_ceil(16).max(1);
        out.extend((1..sectors).step_by(every).flat_map(|at| [Crash::TornAfter(at), Crash::TornBefore(at)]));
        let mix = |k: u64| (seed ^ self.at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(k);
        out.extend((0..random).map(|k| Crash::Random(mix(k))));
        out
    }

    /// The disk after a crash at this point.
    #[must_use]
    pub fn disk(&self, crash: &Crash) -> SimDisk {
        SimDisk::of(crash_image(&self.with_next(), crash))
    }

    fn with_next(&self) -> Medium {
        let mut medium = self.medium.clone();
        if let Some(next @ Change::DirectWrite { .. }) = self.changes.get(self.at) {
            medium.pending.push(next.clone());
        }
        medium
    }
}

impl State {
    fn change(&mut self, change: Change) {
        self.calls += 1;
        self.live.apply(&change);
        self.medium.step(&change);
        if let Some(log) = &mut self.log {
            log.push(change);
        }
    }

    fn used(&self) -> u64 {
        let mut seen = HashSet::new();
        let named = self.live.names.values().filter(|file| seen.insert(**file));
        named.filter_map(|file| self.live.files.get(file)).map(|content| content.allocated()).sum()
    }

    fn writable(&self) -> io::Result<()> {
        if self.faults.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    fn room(&mut self, bytes: u64) -> io::Result<()> {
        self.writable()?;
        if bytes > 0 && self.faults.capacity.is_some_and(|size| self.used() + bytes > size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(left) = &mut self.faults.bytes_left {
            *left = left.checked_sub(bytes).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    /// Whether a sync of this file counts for a failure that was announced.
    fn meant(&self, file: Option<Inode>) -> bool {
        let Some(extension) = self.faults.sync_error_of else { return true };
        let named = |(path, inode): (&PathBuf, &Inode)| {
            Some(*inode) == file && path.extension().is_some_and(|e| e == extension)
        };
        self.live.names.iter().any(named)
    }

    /// Whether this sync takes effect, or its failure.
    fn sync(&mut self, file: Option<Inode>, dir: Option<&Path>) -> io::Result<bool> {
        match self.faults.sync_error_in.filter(|_| self.meant(file)) {
            Some(0) => {
                self.faults.sync_error_in = None;
                // The pages look clean from now on: no later sync writes them.
                self.change(Change::Dropped { file, dir: dir.map(Path::to_owned) });
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(n) => self.faults.sync_error_in = Some(n - 1),
            None => {}
        }
        Ok(!self.faults.lying_sync)
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    file: Inode,
    mode: OpenMode,
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.state.lock().locks.remove(&self.path);
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.live.dirs.contains(path) {
            state.writable()?;
            state.change(Change::MakeDir { path: path.to_owned() });
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.live.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let paths = state.live.names.keys().chain(&state.live.dirs);
        let within = paths.filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> =
            within.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let file = match (mode, state.live.names.get(path).copied()) {
            (OpenMode::CreateNew | OpenMode::CreateDirect, Some(_)) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (OpenMode::CreateNew | OpenMode::CreateDirect, None) => {
                state.writable()?;
                let file = state.next_inode;
                state.next_inode += 1;
                state.change(Change::Create { path: path.to_owned(), file });
                file
            }
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
            (_, Some(file)) => file,
        };
        Ok(Arc::new(SimFile { state: self.state.clone(), file, mode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.writable()?;
        if !state.live.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.writable()?;
        if !state.live.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Remove { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.sync(None, Some(dir))? {
            state.change(Change::SyncDir { dir: dir.to_owned() });
        }
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        if let Some(total) = state.faults.capacity {
            return Ok(Space { total, available: total.saturating_sub(state.used()) });
        }
        let total = 1 << 40;
        Ok(Space { total, available: state.faults.bytes_left.unwrap_or(total) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        if !self.state.lock().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { state: self.state.clone(), path: path.to_owned() }))
    }
}

impl SimFile {
    fn check(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let direct =
            matches!(self.mode, OpenMode::CreateDirect | OpenMode::JournalDirect | OpenMode::ReadDirect);
        let good = offset.is_multiple_of(ALIGN as u64)
            && buf.len().is_multiple_of(ALIGN)
            && buf.as_ptr().addr().is_multiple_of(ALIGN);
        if direct && !good { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        let state = self.state.lock();
        match state.live.files.get(&self.file) {
            Some(content) => content.read(buf, offset),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        if matches!(self.mode, OpenMode::Read | OpenMode::ReadDirect) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut state = self.state.lock();
        let len = state.live.files.get(&self.file).map_or(0, |f| f.len);
        state.room((offset + buf.len() as u64).saturating_sub(len))?;
        let (file, bytes) = (self.file, Arc::from(buf));
        if self.mode != OpenMode::JournalDirect {
            state.change(Change::Write { file, offset, bytes });
            return Ok(());
        }
        if state.sync(None, None)? {
            state.change(Change::DirectWrite { file, offset, bytes });
        } else {
            state.live.apply(&Change::Write { file, offset, bytes });
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let file = self.file;
        if state.sync(Some(file), None)? {
            state.change(Change::Sync { file });
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().live.files.get(&self.file).map_or(0, |f| f.len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let before = state.live.files.get(&self.file).map_or(0, |f| f.len);
        state.room(len.saturating_sub(before))?;
        state.change(Change::SetLen { file: self.file, len });
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let before = self.len()?;
        if len > before { self.set_len(len) } else { Ok(()) }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if matches!(self.mode, OpenMode::Read | OpenMode::ReadDirect) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut state = self.state.lock();
        state.writable()?;
        state.change(Change::Punch { file: self.file, offset, len });
        Ok(())
    }
}
