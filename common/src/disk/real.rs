//! Files on the machine's own file systems. The only file with Linux-only calls.
//!
//! Owner: whoever opened it; everything is stateless but the open files. Direct writes use `O_DIRECT | O_DSYNC`; a file system
//! without direct I/O (tmpfs) gets `O_DSYNC` alone, which promises the same and only costs the page cache. Alignment is checked
//! either way, so that code tried on tmpfs does not first fail on a real disk.

use super::{ALIGN, Disk, DiskFile, OpenMode, Space};
#[cfg(target_os = "linux")]
use rustix::fs::{FallocateFlags, fallocate};
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;
use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// `O_DSYNC`, spelled here because rustix's constant of that name is `O_SYNC` on Linux, which also makes every write wait for
/// the file's time stamps.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
const DSYNC: u32 = 0o10000;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
const DSYNC: u32 = rustix::fs::OFlags::DSYNC.bits() as u32;

#[cfg(target_os = "linux")]
const DIRECT: u32 = rustix::fs::OFlags::DIRECT.bits();
#[cfg(not(target_os = "linux"))]
const DIRECT: u32 = 0;

/// The machine's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl RealDisk {
    /// The same, shared.
    #[must_use]
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

/// The system's errors do not say which file they are about; people have to know.
fn named<T>(path: &Path, outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

struct RealFile {
    file: File,
    path: Box<Path>,
    aligned: bool,
}

fn open_flagged(path: &Path, write: bool, flags: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(flags.cast_signed()).open(path)
}

/// What is there, if anything is, has to be a file. The system opens a directory for reading like one, and what it says of the first
/// read depends on the file system; opening a pipe waits for whoever writes to it.
fn is_file(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")),
        Ok(there) if !there.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a device, a pipe or a socket, and no file",
        )),
        // Opening it says what is wrong.
        _ => Ok(()),
    }
}

/// Opens with `DIRECT`, or without where the file system has none.
fn open_direct(path: &Path, write: bool, flags: u32) -> io::Result<File> {
    match open_flagged(path, write, flags | DIRECT) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            open_flagged(path, write, flags)
        }
        other => other,
    }
}

impl Disk for RealDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        named(path, std::fs::create_dir_all(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in named(dir, std::fs::read_dir(dir))? {
            let name = named(dir, entry)?.file_name().into_string();
            let foreign =
                |name| io::Error::new(io::ErrorKind::InvalidData, format!("foreign file name {name:?}"));
            names.push(name.map_err(foreign)?);
        }
        names.sort_unstable();
        Ok(names)
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        named(path, is_file(path))?;
        let file = match mode {
            OpenMode::Read => open_flagged(path, false, 0),
            OpenMode::ReadWrite => open_flagged(path, true, 0),
            OpenMode::CreateNew => OpenOptions::new().read(true).write(true).create_new(true).open(path),
            OpenMode::CreateDirect => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .and_then(|_| open_direct(path, true, 0)),
            OpenMode::JournalDirect => open_direct(path, true, DSYNC),
            OpenMode::ReadDirect => open_direct(path, false, 0),
        };
        let file = named(path, file)?;
        let aligned = matches!(mode, OpenMode::CreateDirect | OpenMode::JournalDirect | OpenMode::ReadDirect);
        Ok(Arc::new(RealFile { file, path: path.into(), aligned }))
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        named(to, std::fs::rename(from, to))
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn remove(&self, path: &Path) -> io::Result<()> {
        named(path, std::fs::remove_file(path))
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        named(dir, File::open(dir).and_then(|file| file.sync_all()))
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        // As `df` counts: what is kept for the administrator is neither used nor of any use here.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        let available = found.f_bavail.min(found.f_bfree);
        Ok(Space { total: bytes(used.saturating_add(available)), available: bytes(available) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = named(path, file)?;
        named(path, flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from))?;
        Ok(Box::new(file))
    }
}

impl RealFile {
    fn check(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let good = offset.is_multiple_of(ALIGN as u64)
            && buf.len().is_multiple_of(ALIGN)
            && buf.as_ptr().addr().is_multiple_of(ALIGN);
        if self.aligned && !good {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "direct access that is not aligned"));
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        named(&self.path, self.file.read_exact_at(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        named(&self.path, self.file.write_all_at(buf, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        named(&self.path, self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(named(&self.path, self.file.metadata())?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        named(&self.path, self.file.set_len(len))
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, len: u64) -> io::Result<()> {
        // The room must be there: unlike the C library, nothing here falls back to writing zeros.
        named(&self.path, fallocate(&self.file, FallocateFlags::empty(), 0, len).map_err(io::Error::from))
    }

    #[cfg(target_os = "linux")]
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        named(&self.path, fallocate(&self.file, hole, offset, len).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_rules_of_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        super::super::conformance::run(&RealDisk, dir.path());
    }

    #[test]
    fn an_error_names_its_file_and_keeps_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone");
        let error = RealDisk.open(&path, OpenMode::Read).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        let error = RealDisk.create_dir_all(Path::new("/proc/geminga")).unwrap_err();
        assert!(error.to_string().contains("/proc/geminga"), "{error}");
        for mode in [OpenMode::Read, OpenMode::ReadDirect, OpenMode::JournalDirect] {
            let error = RealDisk.open(dir.path(), mode).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
            assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = RealDisk.open(&pipe, OpenMode::Read).err().unwrap();
        assert!(error.to_string().contains("no file"), "{error}");
        let opened = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        let error = opened.read_exact_at(&mut [0; 8], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn keeps_them_without_direct_io() {
        let shm = Path::new("/dev/shm");
        if !shm.is_dir() {
            return; // no tmpfs here
        }
        let dir = tempfile::tempdir_in(shm).unwrap();
        super::super::conformance::run(&RealDisk, dir.path());
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn journal_files_are_dsync_and_not_sync() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        let file = open_direct(&path, true, DSYNC).unwrap();
        let flags = rustix::fs::fcntl_getfl(&file).unwrap().bits();
        assert_eq!(flags & 0o4_010_000, 0o10000, "{flags:o}");
    }
}
