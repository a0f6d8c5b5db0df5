//! Which lines of the store change the disk, and which of them the enumerator has seen at work.
//!
//! The list is made from the source, so that a new call cannot be forgotten; what was seen is made from the stack of each call. While
//! a thread looks on, its stores run over a disk that notes who called.

use geminga_common::disk::sim::SimDisk;
use geminga_common::disk::{Disk, DiskFile, OpenMode, Space};
use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file below `bookie/src`, and a line of it.
pub(crate) type Site = (String, u32);

/// What a line says that changes the disk; a transaction of the manifest and the writer of segments write below others.
const CALLS: [&str; 14] = [
    "disk.remove(",
    "disk.rename(",
    "disk.sync_dir(",
    "disk.create_dir_all(",
    ".write_all_at(",
    ".sync_data()",
    ".set_len(",
    ".allocate(",
    "file.punch(",
    "OpenMode::Create",
    "self.file.write()",
    "self.file.finish()",
    ".commit()",
    ".create_with_backend(",
];
/// Lines that only a defect of the museum reaches.
const DEFECT: &str = "Mutant::SyncRetried";
/// A line no scenario reaches: room that was there a moment ago is taken by somebody else before the ballast has it.
const RACE: (&str, &str) = ("store/room.rs", "file.set_len(0)?;");
/// A call seen this often in one scenario, at this kind of file, is not looked at again.
const LOOKS: u32 = 400;

#[derive(Default)]
struct Seen {
    sites: BTreeSet<Site>,
    looks: BTreeMap<String, u32>,
}

thread_local! {
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// The disk as stores are given it.
pub(crate) fn on(disk: &SimDisk) -> Arc<dyn Disk> {
    match SEEN.with_borrow(Option::is_some) {
        true => Arc::new(Traced(disk.clone())),
        false => Arc::new(disk.clone()),
    }
}

/// The lines that changed the disk while `body` ran.
pub(crate) fn seen(body: impl FnOnce()) -> BTreeSet<Site> {
    SEEN.set(Some(Seen::default()));
    body();
    SEEN.take().expect("nobody else took it").sites
}

/// A scenario begins.
pub(crate) fn look_anew() {
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            seen.looks.clear();
        }
    });
}

/// Notes who changes the disk.
fn note(what: &str, path: &str) {
    SEEN.with_borrow_mut(|seen| {
        let Some(seen) = seen else { return };
        let kind = path.rsplit(['.', '/']).next().unwrap_or(path);
        let looks = seen.looks.entry(format!("{what} {kind}")).or_default();
        *looks += 1;
        if *looks <= LOOKS {
            seen.sites.extend(callers(&Backtrace::force_capture().to_string()));
        }
    });
}

/// The frames of a stack that stand in this package's sources.
fn callers(stack: &str) -> impl Iterator<Item = Site> {
    let site = |line: &str| {
        let place = line.trim().strip_prefix("at ")?;
        let (_, rest) = place.split_once("bookie/src/").or_else(|| place.split_once("./src/"))?;
        let (file, rest) = rest.split_once(".rs:")?;
        Some((format!("{file}.rs"), rest.split(':').next()?.parse().ok()?))
    };
    stack.lines().filter_map(site)
}

/// All lines that change the disk, but for tests and what only they use.
#[allow(clippy::disallowed_methods)] // sources are no part of what is simulated
pub(crate) fn all() -> BTreeMap<Site, String> {
    fn walk(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
        for item in std::fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            match path.is_dir() {
                true => walk(&path, out),
                false => out.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut sites) = (Vec::new(), BTreeMap::new());
    walk(&root, &mut files);
    for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            if CALLS.iter().any(|call| line.contains(call)) && !line.contains(DEFECT) {
                let file = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                sites.insert((file, number as u32 + 1), line.trim().to_owned());
            }
        }
    }
    sites
}

/// Those of `all` that are not among `seen`. A chain of calls over several lines counts by any of them.
pub(crate) fn missed(all: &BTreeMap<Site, String>, seen: &BTreeSet<Site>) -> Vec<String> {
    let back = |text: &str| if text.starts_with('.') { 6 } else { 0 };
    let unseen = all.iter().filter(|((file, line), text)| {
        (file.as_str(), text.as_str()) != RACE
            && !(line - back(text)..=*line).any(|line| seen.contains(&(file.clone(), line)))
    });
    unseen.map(|((file, line), text)| format!("{file}:{line}: {text}")).collect()
}

struct Traced(SimDisk);

impl Disk for Traced {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        note("create_dir_all", "");
        self.0.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let name = path.to_string_lossy().into_owned();
        if matches!(mode, OpenMode::CreateNew | OpenMode::CreateDirect) {
            note("create", &name);
        }
        Ok(Arc::new(TracedFile { file: self.0.open(path, mode)?, name }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        note("rename", &to.to_string_lossy());
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        note("remove", &path.to_string_lossy());
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        note("sync_dir", &dir.to_string_lossy());
        self.0.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.0.space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.0.lock(path)
    }
}

struct TracedFile {
    file: Arc<dyn DiskFile>,
    name: String,
}

impl DiskFile for TracedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        note("write", &self.name);
        self.file.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        note("sync", &self.name);
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        note("set_len", &self.name);
        self.file.set_len(len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        note("allocate", &self.name);
        self.file.allocate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        note("punch", &self.name);
        self.file.punch(offset, len)
    }
}
