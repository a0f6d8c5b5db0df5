//! The manifest, read from a copy in memory: redb may want to mend a database that was not closed, and the file must stay as it is.

use super::{Part, Report};
use crate::manifest::{Content, Manifest};
use crate::segments::rebuild;
use crate::store::Place;
use geminga_common::disk::OpenMode;
use parking_lot::Mutex;
use redb::StorageBackend;
use std::io;

#[derive(Debug)]
struct Copied(Mutex<Vec<u8>>);

impl Copied {
    fn range(offset: u64, len: usize, have: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        match start.checked_add(len) {
            Some(end) if end <= have => Ok(start..end),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl StorageBackend for Copied {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock();
        out.copy_from_slice(&bytes[Self::range(offset, out.len(), bytes.len())?]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let range = Self::range(offset, data.len(), bytes.len())?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }
}

impl Report<'_> {
    /// What the manifest says; what segments say of themselves when it cannot be read.
    pub(super) fn manifest(&mut self, place: &Place) -> io::Result<Content> {
        let path = place.data_dir.join("manifest.redb");
        let read = || -> io::Result<Vec<u8>> {
            let file = self.disk.open(&path, OpenMode::Read)?;
            let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let content = match read() {
            Err(error) => {
                self.findings.push(format!("{}: {error}", path.display()));
                None
            }
            Ok(bytes) => match Manifest::over(Copied(Mutex::new(bytes))) {
                Ok((_, content)) => Some(content),
                Err(_) => {
                    self.findings.push(format!("{} does not check", path.display()));
                    None
                }
            },
        };
        let Some(content) = content else {
            writeln!(self.out, "  manifest: lost; segments speak for themselves")?;
            return rebuild(self.disk, &place.data_dir.join("segments")).or_else(|error| {
                self.findings.push(format!("{}: {error}", place.data_dir.join("segments").display()));
                Ok(Content { mark: 1, ..Content::default() })
            });
        };
        let Content { mark, durable, next_segment, boot, dead_below, .. } = &content;
        let dead = dead_below.map_or_else(|| "none".to_owned(), |to| to.to_string());
        writeln!(
            self.out,
            "  manifest: replay from batch {mark}, durable to {durable}, next segment {next_segment:x}, start {boot}, dead ledgers to \
             {dead}, {} segments, {} ledgers, {} bad blocks",
            content.segments.len(),
            content.ledgers.len(),
            content.bad.len()
        )?;
        let part = self.part;
        for (id, row) in content.ledgers.iter().filter(|(id, _)| part.shows(*id, Part::Manifest)) {
            writeln!(self.out, "    ledger {id}: {row:?}")?;
        }
        if self.part == Part::Manifest {
            for row in &content.segments {
                writeln!(self.out, "    segment {:016x}: {row:?}", row.id)?;
            }
            for block in &content.bad {
                writeln!(self.out, "    bad block {block:?}")?;
            }
            for block in &content.let_go {
                writeln!(self.out, "    block whose loss was accepted {block:?}")?;
            }
        }
        for block in &content.bad {
            self.findings.push(format!("segment {:016x}: bad block at {}", block.segment, block.offset));
        }
        Ok(content)
    }
}
