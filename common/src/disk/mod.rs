//! The seam for files. Everything that Geminga stores goes through [`Disk`], so that the crash enumerator can hold every
//! write back, tear it, lose it or fail its sync, and so that Linux-only calls stay in one file.
//!
//! Rules every implementation keeps (the conformance suite checks them):
//! - `write_at` on a [`OpenMode::JournalDirect`] file is durable when it returns; on others only after `sync_data`.
//! - A created, renamed or removed name is durable only after `sync_dir` of its directory.
//! - A failed sync is final: the caller must not retry it and believe the second answer (pages may have been dropped). Who goes on
//!   all the same writes again first ([`RedbFile::reopen`]).

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;

mod append;
#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod real;
mod redb_backend;
#[cfg(any(test, feature = "test-util"))]
pub mod sim;

pub use append::DirectAppend;
pub use real::RealDisk;
pub use redb_backend::{Doubts, RedbFile};

/// Alignment of offsets, lengths and buffers on a [`OpenMode::JournalDirect`] file, in bytes.
pub const ALIGN: usize = 4096;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Existing file, reading only.
    Read,
    /// Existing file, reading and writing; durable after `sync_data`.
    ReadWrite,
    /// A new file, reading and writing; fails with `AlreadyExists` if the name is taken.
    CreateNew,
    /// A new file for aligned direct writes that by-pass the page cache, durable after `sync_data`: what is written once and read
    /// much later takes no memory, no second copy and no burst of write-back beside the journal.
    CreateDirect,
    /// Existing, fully written file: aligned direct writes that are durable when they return (`O_DIRECT | O_DSYNC`).
    JournalDirect,
    /// Existing file, aligned direct reads that by-pass the page cache: after a failed sync the cache shows pages that never
    /// reached the disk.
    ReadDirect,
}

/// Bytes on the file system that holds a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// What is used and what is available together: the size of the file system without what only an administrator may use.
    pub total: u64,
    /// What an unprivileged writer may still use.
    pub available: u64,
}

/// A file system. Calls block: they are made from disk threads only, never from an async worker.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents; existing ones are fine.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names created, renamed or removed in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Space on the file system of `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Takes the exclusive lock named by `path` for as long as the answer lives. `WouldBlock` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
}

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Fills `buf` from `offset`; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes written data, and the size needed to read it back, durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Sets the length; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file at least `len` bytes long with room on the disk behind every byte; new bytes read as zero. `Unsupported`
    /// where the file system cannot.
    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Gives the room of a range back to the disk: it reads as zero and the length stays. Needs no room itself. `Unsupported` where
    /// the file system cannot. Durable after `sync_data`.
    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A zeroed byte buffer whose start and length are multiples of [`ALIGN`], as direct I/O wants it.
#[derive(Debug)]
pub struct AlignedBuf {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes, rounded up to [`ALIGN`].
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let len = len.next_multiple_of(ALIGN);
        let raw = vec![0_u8; len + ALIGN];
        let start = raw.as_ptr().align_offset(ALIGN);
        assert!(start < ALIGN, "a byte pointer can always be aligned");
        Self { raw, start, len }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.len]
    }

    /// The bytes, writable.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }

    /// Length in bytes, a multiple of [`ALIGN`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
