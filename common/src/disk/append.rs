//! A new file written from front to back by direct writes, whatever the lengths: whole pages by-pass the page cache, the rest of the
//! last one goes through it.
//!
//! Owner: whoever writes the file. The bytes lie in one buffer that the caller appends to and may patch until they are written.
//! Invariants: what is handed to the disk starts at a multiple of [`ALIGN`], in the file and in memory; an index into the buffer
//! stays good until the next write.

use super::{ALIGN, Disk, DiskFile, OpenMode};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The file being written. Nothing is there before the first write, and nothing is durable before the caller syncs.
pub struct DirectAppend<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
    /// `lead` bytes of nothing, then what is not written yet.
    buf: Vec<u8>,
    lead: usize,
    written: u64,
}

impl std::fmt::Debug for DirectAppend<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectAppend")
            .field("path", &self.path)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn lead(buf: &[u8]) -> usize {
    let lead = buf.as_ptr().align_offset(ALIGN);
    assert!(lead < ALIGN, "a byte pointer can always be aligned");
    lead
}

impl<'a> DirectAppend<'a> {
    /// A file at `path`, which must be free; about `room` bytes are gathered between writes.
    #[must_use]
    pub fn new(disk: &'a dyn Disk, path: PathBuf, room: usize) -> Self {
        let mut buf = Vec::with_capacity(room + 2 * ALIGN);
        let lead = lead(&buf);
        buf.resize(lead, 0);
        Self { disk, path, file: None, buf, lead, written: 0 }
    }

    /// The buffer, to be appended to. What stood in it may be patched, its length only grows.
    pub fn buf(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// Where in the file the byte at this index of the buffer lies.
    #[must_use]
    pub fn offset(&self, index: usize) -> u64 {
        self.written + (index - self.lead) as u64
    }

    /// Length of the file so far, written or not.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.offset(self.buf.len())
    }

    /// Whether nothing was appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buf.len() - self.lead
    }

    /// Writes all whole pages.
    ///
    /// # Errors
    /// Those of the disk; the file is then to be given up.
    pub fn write(&mut self) -> io::Result<()> {
        let whole = self.pending() / ALIGN * ALIGN;
        if whole == 0 {
            return Ok(());
        }
        self.align();
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.disk.open(&self.path, OpenMode::CreateDirect)?,
        };
        file.write_all_at(&self.buf[self.lead..self.lead + whole], self.written)?;
        self.file = Some(file);
        self.written += whole as u64;
        self.buf.copy_within(self.lead + whole.., self.lead);
        self.buf.truncate(self.buf.len() - whole);
        Ok(())
    }

    /// Writes the rest; the answer is to be synced, which makes the whole file durable, but for its name.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn finish(mut self) -> io::Result<Arc<dyn DiskFile>> {
        self.write()?;
        let mode = if self.file.take().is_some() { OpenMode::ReadWrite } else { OpenMode::CreateNew };
        let tail = self.disk.open(&self.path, mode)?;
        if self.pending() > 0 {
            tail.write_all_at(&self.buf[self.lead..], self.written)?;
        }
        Ok(tail)
    }

    /// Moves the bytes to an aligned address, if the buffer has grown and moved.
    fn align(&mut self) {
        if lead(&self.buf) == self.lead % ALIGN {
            return;
        }
        self.buf.reserve(ALIGN);
        let (old, new) = (self.lead, lead(&self.buf));
        let end = self.buf.len();
        if new > old {
            self.buf.resize(end + new - old, 0);
        }
        self.buf.copy_within(old..end, new);
        self.buf.truncate(new + end - old);
        self.lead = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, sim::SimDisk};
    use std::path::Path;

    /// Appends `count` pieces of `size` bytes, writing now and then; the file must hold them all.
    fn writes(disk: &dyn Disk, path: &Path, size: usize, count: usize, every: usize) {
        let mut file = DirectAppend::new(disk, path.to_path_buf(), 16 << 10);
        let mut expected = Vec::new();
        for n in 0..count {
            let piece: Vec<u8> = (0..size).map(|i| (n * 7 + i) as u8).collect();
            let at = file.buf().len();
            file.buf().extend_from_slice(&piece);
            assert_eq!(file.offset(at), expected.len() as u64);
            expected.extend_from_slice(&piece);
            if n % every == 0 {
                file.write().unwrap();
            }
        }
        assert_eq!(file.len(), expected.len() as u64);
        file.finish().unwrap().sync_data().unwrap();
        let stored = disk.open(path, OpenMode::Read).unwrap();
        assert_eq!(stored.len().unwrap(), expected.len() as u64);
        let mut bytes = vec![0; expected.len()];
        stored.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "other bytes came back");
    }

    #[test]
    fn any_lengths_make_the_file_they_say() {
        let (sim, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
        sim.create_dir_all(Path::new("/d")).unwrap();
        for (n, (size, count, every)) in
            [(1, 1, 1), (100, 500, 7), (4096, 40, 3), (5000, 33, 1), (70_000, 9, 4), (4095, 100, 100)]
                .into_iter()
                .enumerate()
        {
            writes(&sim, &Path::new("/d").join(n.to_string()), size, count, every);
            writes(&RealDisk, &dir.path().join(n.to_string()), size, count, every);
        }
    }
}
