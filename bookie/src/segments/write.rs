//! A segment file as it is written: entries in (ledger, id) order, block by block, then the footer.

use super::{SegmentRow, path};
use crate::Config;
use crate::format::segment::{Block, Footer, OpenBlock, Run};
use crate::mutant::{Mutant, active};
use crate::shard::{FlushPlan, cost};
use geminga_bookie_client::entry::Entry;
use geminga_common::disk::{DirectAppend, Disk};
use geminga_common::ids::{EntryId, LedgerId};
use std::io;
use std::path::Path;

/// Bytes gathered for one write to a file. With 1 MiB, a bookie that takes in large entries spends 6 % more CPU: each write costs
/// the file system a change of the file's length and its list of places. More than this gains nothing.
const PIECE: usize = 2 << 20;

/// Writes one file. Nothing is made before the first entry.
pub(crate) struct Writer<'a> {
    config: &'a Config,
    id: u64,
    small: bool,
    file: DirectAppend<'a>,
    block: Option<OpenBlock>,
    footer: Footer,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, dir: &Path, config: &'a Config, id: u64, small: bool) -> Self {
        let file = DirectAppend::new(disk, path(dir, id), 2 * PIECE);
        Self { config, id, small, file, block: None, footer: Footer::default() }
    }

    /// Adds entries of a ledger, ids rising, the ledger above those before.
    pub(crate) fn push(&mut self, ledger: LedgerId, entries: &[Entry]) -> io::Result<()> {
        for chunk in entries.chunk_by(|a, b| a.id.0 + 1 == b.id.0) {
            self.footer.runs.push(Run { ledger, first: chunk[0].id.0, count: chunk.len() as u64 });
        }
        for entry in entries {
            let mut block = match self.block.take() {
                Some(block) => block,
                None => self.begin(ledger, entry.id),
            };
            block.push(self.file.buf(), ledger, entry);
            if block.len(self.file.buf()) >= self.config.block_bytes {
                self.end_block(block);
                if self.file.pending() >= PIECE {
                    self.file.write()?;
                }
            } else {
                self.block = Some(block);
            }
        }
        Ok(())
    }

    fn begin(&mut self, ledger: LedgerId, first: EntryId) -> OpenBlock {
        let start = self.file.buf().len();
        let offset = self.file.offset(start);
        self.footer.blocks.push(Block { offset, len: 0, ledger, first: first.0 });
        OpenBlock::begin(self.file.buf())
    }

    fn end_block(&mut self, open: OpenBlock) {
        if let Some(block) = self.footer.blocks.last_mut() {
            block.len = open.len(self.file.buf()) as u64;
            open.finish(self.file.buf(), self.id, block.offset);
        }
    }

    /// Completes the file; durable when it returns, except for its name. `None` when there was no entry.
    pub(crate) fn finish(mut self) -> io::Result<Option<SegmentRow>> {
        if let Some(block) = self.block.take() {
            self.end_block(block);
        }
        let (Some(low), Some(high)) = (self.footer.runs.first(), self.footer.runs.last()) else {
            return Ok(None);
        };
        let ledgers = low.ledger..=high.ledger;
        let footer = self.footer.encode(self.id);
        let live = self.file.len();
        self.file.buf().extend_from_slice(&footer);
        let len = self.file.len();
        let file = self.file.finish()?;
        if let Err(error) = file.sync_data() {
            // A failed sync is final; only the defect of that name asks again.
            if !active(Mutant::SyncRetried) || file.sync_data().is_err() {
                return Err(error);
            }
        }
        let (footer, small) = (footer.len() as u64, self.small);
        Ok(Some(SegmentRow { id: self.id, len, footer, ledgers, live, punch_due: false, small }))
    }
}

/// Writes the entries of a flush, short runs apart from long ones; durable when it returns, but not yet in the manifest. Takes
/// the ids `id` and `id + 1`.
pub(crate) fn flush(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    plan: &FlushPlan,
    config: &Config,
) -> io::Result<Vec<SegmentRow>> {
    let mut long = Writer::new(disk, dir, config, id, false);
    let mut short = Writer::new(disk, dir, config, id + 1, true);
    for (ledger, _, entries) in &plan.ledgers {
        let Some(entries) = entries else { continue };
        let bytes: usize = entries.iter().map(cost).sum();
        let out = if bytes < config.small_run { &mut short } else { &mut long };
        out.push(*ledger, entries)?;
    }
    finish(disk, dir, [long, short])
}

/// Completes files and makes their names durable.
pub(crate) fn finish(disk: &dyn Disk, dir: &Path, writers: [Writer<'_>; 2]) -> io::Result<Vec<SegmentRow>> {
    let mut rows = Vec::new();
    for writer in writers {
        rows.extend(writer.finish()?);
    }
    if !rows.is_empty() {
        disk.sync_dir(dir)?;
    }
    Ok(rows)
}
