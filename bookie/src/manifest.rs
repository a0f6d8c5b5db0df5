//! The manifest: which segments exist, what is known of each ledger, and from which journal batch on replay must start. One redb
//! database; every change is one transaction.
//!
//! Tables: `store` (text → u64: `mark`, `durable`, `segment` = next segment id, `boot`, `wm` = dead-id watermark + 1, `scrub` = the
//! segment that checking goes on with), `segments` (segment id → file length, footer length, lowest ledger, highest ledger, live bytes,
//! flags: 1 holes are to be punched, 2 small runs; u64 each. The first format has the first four words only), `forgotten` (segment
//! id → nothing: out of use, its file may be there still), `bad` ((segment id, offset) → length of a block that did not check),
//! `let_go` (the same of a block whose loss was accepted for good: what it held is not in the segment any more), `ledgers` (ledger id → state row), `journal` (generation of a journal file that may be needed → the generation in its name, its
//! length). `store` also holds `files`: the start that `journal` speaks of; of any other start it says nothing; and `losses`: how many
//! acceptances `LOSSES` tells.

use crate::format::Fields;
use crate::format::row::LedgerRow;
use crate::mutant::{Mutant, active};
use crate::segments::SegmentRow;
use crate::shard::FlushPlan;
use geminga_common::disk::{Disk, RedbFile};
use geminga_common::ids::{LedgerId, Term};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageBackend, TableDefinition, WriteTransaction,
};
use std::io;
use std::path::Path;

const STORE: TableDefinition<'_, &str, u64> = TableDefinition::new("store");
const SEGMENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("segments");
const FORGOTTEN: TableDefinition<'_, u64, ()> = TableDefinition::new("forgotten");
const BAD: TableDefinition<'_, (u64, u64), u64> = TableDefinition::new("bad");
const LET_GO: TableDefinition<'_, (u64, u64), u64> = TableDefinition::new("let_go");
const LEDGERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledgers");
const JOURNAL: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("journal");

/// Counters never come near this: one that does is damage, and what is added to it must not overflow.
const WORD_LIMIT: u64 = 1 << 62;

pub(crate) struct Manifest(Database);

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) mark: u64,
    pub(crate) durable: u64,
    pub(crate) next_segment: u64,
    pub(crate) boot: u64,
    pub(crate) dead_below: Option<LedgerId>,
    pub(crate) scrub: u64,
    pub(crate) segments: Vec<SegmentRow>,
    pub(crate) forgotten: Vec<u64>,
    pub(crate) bad: Vec<BadBlock>,
    /// Blocks whose loss was accepted.
    pub(crate) let_go: Vec<BadBlock>,
    pub(crate) ledgers: Vec<(LedgerId, LedgerRow)>,
    /// The start whose journal files `journal` lists.
    pub(crate) files_of: u64,
    pub(crate) journal: Vec<JournalRow>,
    /// Losses that were accepted; `LOSSES` tells as many.
    pub(crate) losses: u64,
}

/// A journal file that must be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalRow {
    pub(crate) generation: u64,
    /// Generation at its making, which its name tells.
    pub(crate) made: u64,
    pub(crate) len: u64,
}

/// A block that was read and did not check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct BadBlock {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A change besides a flush.
#[derive(Default)]
pub(crate) struct Change {
    /// Rows that are new or have changed.
    pub(crate) put: Vec<SegmentRow>,
    /// Segments that are out of use from now on; their files may be removed.
    pub(crate) forget: Vec<u64>,
    /// Segments of which nothing is left on the disk.
    pub(crate) removed: Vec<u64>,
    /// Ledgers of which nothing need be known any more.
    pub(crate) ledgers: Vec<LedgerId>,
    pub(crate) bad: Vec<BadBlock>,
    /// Blocks that do not check, whose loss is accepted: they are bad no longer.
    pub(crate) let_go: Vec<BadBlock>,
    pub(crate) next_segment: u64,
    pub(crate) scrub: Option<u64>,
    /// Journal files that are ready to be written.
    pub(crate) journal: Vec<JournalRow>,
    /// A start: those are all there are.
    pub(crate) files_of: Option<u64>,
    /// Segments that were lost: their rows go, and what there is of their files stays.
    pub(crate) lost: Vec<u64>,
    /// How many losses have been accepted.
    pub(crate) losses: Option<u64>,
}

/// Why the manifest did not open.
#[derive(Debug)]
pub(crate) enum ManifestError {
    Io(io::Error),
    Damaged,
}

pub(crate) fn io_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn open_error(error: impl Into<redb::Error>) -> ManifestError {
    match error.into() {
        // A file that is cut short is damage as well.
        redb::Error::Io(error)
            if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            ManifestError::Io(error)
        }
        _ => ManifestError::Damaged,
    }
}

impl Manifest {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<(Self, Content), ManifestError> {
        Self::over(RedbFile::open(disk, path).map_err(ManifestError::Io)?)
    }

    /// Over any backend: a file, or a copy of one in memory.
    pub(crate) fn over(backend: impl StorageBackend) -> Result<(Self, Content), ManifestError> {
        // Without the check redb believes every page of a file that was closed in order, and panics on one that is not what it
        // seems. Reading them all once, against their checksums, turns bit rot into damage that is named.
        let database = Database::builder()
            .set_cache_size(4 << 20)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(open_error)?;
        let content = Self::read(&database).map_err(open_error)?.ok_or(ManifestError::Damaged)?;
        Ok((Self(database), content))
    }

    fn read(database: &Database) -> Result<Option<Content>, redb::Error> {
        let txn = database.begin_read()?;
        let store = match txn.open_table(STORE) {
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Ok(Some(Content { mark: 1, next_segment: 1, ..Content::default() }));
            }
            other => other?,
        };
        let word = |key| store.get(key).map(|v| v.map_or(0, |v| v.value()));
        let mut content = Content {
            mark: word("mark")?.max(1),
            durable: word("durable")?,
            next_segment: word("segment")?.max(1),
            boot: word("boot")?,
            dead_below: word("wm")?.checked_sub(1).map(LedgerId),
            scrub: word("scrub")?,
            files_of: word("files")?,
            losses: word("losses")?,
            ..Content::default()
        };
        if [content.mark, content.durable, content.next_segment].iter().any(|word| *word >= WORD_LIMIT) {
            return Ok(None);
        }
        for item in txn.open_table(SEGMENTS)?.iter()? {
            let (id, row) = item?;
            let Some(row) = decode_segment(id.value(), row.value()) else { return Ok(None) };
            content.segments.push(row);
        }
        for item in txn.open_table(LEDGERS)?.iter()? {
            let (id, row) = item?;
            let Some(row) = LedgerRow::decode(row.value()) else { return Ok(None) };
            content.ledgers.push((LedgerId(id.value()), row));
        }
        match txn.open_table(JOURNAL) {
            // Earlier versions have none.
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            table => {
                for item in table?.iter()? {
                    let (generation, file) = item?;
                    let (made, len) = file.value();
                    content.journal.push(JournalRow { generation: generation.value(), made, len });
                }
            }
        }
        match txn.open_table(FORGOTTEN) {
            // The first format has neither.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Some(content)),
            table => {
                for item in table?.iter()? {
                    content.forgotten.push(item?.0.value());
                }
            }
        }
        let blocks = |table: redb::ReadOnlyTable<(u64, u64), u64>| -> Result<Vec<BadBlock>, redb::Error> {
            let block = |item: Result<_, redb::StorageError>| {
                let (key, len): (redb::AccessGuard<'_, (u64, u64)>, redb::AccessGuard<'_, u64>) = item?;
                let (segment, offset) = key.value();
                Ok(BadBlock { segment, offset, len: len.value() })
            };
            table.iter()?.map(block).collect()
        };
        content.bad = blocks(txn.open_table(BAD)?)?;
        content.let_go = match txn.open_table(LET_GO) {
            // Earlier versions have none.
            Err(redb::TableError::TableDoesNotExist(_)) => Vec::new(),
            table => blocks(table?)?,
        };
        Ok(Some(content))
    }

    /// Commits a flush: its segments, states and mark. Doing it twice changes nothing.
    pub(crate) fn commit(
        &self,
        plan: &FlushPlan,
        rows: &[SegmentRow],
        next_segment: u64,
        (boot, scrub): (u64, u64),
    ) -> io::Result<()> {
        self.write(|txn| {
            let mut store = txn.open_table(STORE)?;
            store.insert("mark", plan.mark)?;
            store.insert("durable", plan.durable)?;
            store.insert("boot", boot)?;
            store.insert("wm", plan.dead_below.map_or(0, |to| to.0 + 1))?;
            drop(store);
            let mut ledgers = txn.open_table(LEDGERS)?;
            for (id, row, _) in &plan.ledgers {
                let mut row = row.clone();
                if active(Mutant::FenceLost) {
                    row.term = Term(0);
                }
                ledgers.insert(id.0, row.encode().as_slice())?;
            }
            drop(ledgers);
            let mut journal = txn.open_table(JOURNAL)?;
            for generation in &plan.spent {
                journal.remove(generation)?;
            }
            drop(journal);
            apply(txn, &Change { put: rows.to_vec(), next_segment, scrub: Some(scrub), ..Change::default() })
        })
    }

    /// Commits any other change. Doing it twice changes nothing.
    pub(crate) fn change(&self, change: &Change) -> io::Result<()> {
        self.write(|txn| apply(txn, change))
    }

    fn write(&self, body: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> io::Result<()> {
        let run = || -> Result<(), redb::Error> {
            let txn = self.0.begin_write()?;
            body(&txn)?;
            txn.commit()?;
            Ok(())
        };
        run().map_err(io_error)
    }
}

fn apply(txn: &WriteTransaction, change: &Change) -> Result<(), redb::Error> {
    let mut store = txn.open_table(STORE)?;
    // Flush and merge take ids side by side and may commit in the other order.
    let next = store.get("segment")?.map_or(0, |word| word.value()).max(change.next_segment);
    store.insert("segment", next)?;
    if let Some(scrub) = change.scrub {
        store.insert("scrub", scrub)?;
    }
    if let Some(losses) = change.losses {
        store.insert("losses", losses)?;
    }
    if let Some(start) = change.files_of {
        store.insert("files", start)?;
        txn.delete_table(JOURNAL)?;
    }
    let mut journal = txn.open_table(JOURNAL)?;
    for file in &change.journal {
        journal.insert(file.generation, (file.made, file.len))?;
    }
    let mut segments = txn.open_table(SEGMENTS)?;
    let mut forgotten = txn.open_table(FORGOTTEN)?;
    let (mut bad, mut let_go) = (txn.open_table(BAD)?, txn.open_table(LET_GO)?);
    for row in &change.put {
        segments.insert(row.id, encode_segment(row).as_slice())?;
    }
    for block in &change.bad {
        bad.insert((block.segment, block.offset), block.len)?;
    }
    for block in &change.let_go {
        bad.remove((block.segment, block.offset))?;
        let_go.insert((block.segment, block.offset), block.len)?;
    }
    for id in &change.forget {
        segments.remove(id)?;
        forgotten.insert(id, ())?;
    }
    for id in &change.lost {
        segments.remove(id)?;
    }
    for id in change.forget.iter().chain(&change.lost) {
        bad.retain_in((*id, 0)..(*id + 1, 0), |_, _| false)?;
        let_go.retain_in((*id, 0)..(*id + 1, 0), |_, _| false)?;
    }
    for id in &change.removed {
        forgotten.remove(id)?;
    }
    let mut ledgers = txn.open_table(LEDGERS)?;
    for id in &change.ledgers {
        ledgers.remove(id.0)?;
    }
    Ok(())
}

pub(crate) fn encode_segment(row: &SegmentRow) -> Vec<u8> {
    let flags = u64::from(row.punch_due) | u64::from(row.small) << 1;
    let (low, high) = (row.ledgers.start().0, row.ledgers.end().0);
    [row.len, row.footer, low, high, row.live, flags].iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub(crate) fn decode_segment(id: u64, bytes: &[u8]) -> Option<SegmentRow> {
    let mut f = Fields(bytes);
    let (len, footer, low, high) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
    let (live, flags) = if f.0.is_empty() { (len.checked_sub(footer)?, 0) } else { (f.u64()?, f.u64()?) };
    f.end()?;
    let ledgers = LedgerId(low)..=LedgerId(high);
    let row = SegmentRow { id, len, footer, ledgers, live, punch_due: flags & 1 != 0, small: flags & 2 != 0 };
    (flags <= 3).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::disk::OpenMode;
    use geminga_common::disk::sim::SimDisk;
    use geminga_common::ids::Term;

    /// Of a manifest that was closed in order, every written sector in turn becomes something else: opening says so, or gives what
    /// was stored, and does not panic.
    #[test]
    fn a_damaged_sector_is_named_and_ends_nothing() {
        let path = Path::new("/manifest.redb");
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/")).unwrap();
        let ledgers: Vec<_> = (0..200)
            .map(|n| (LedgerId(n), LedgerRow { term: Term(n), ..LedgerRow::default() }, None))
            .collect();
        let rows: Vec<_> = ledgers.iter().map(|(id, row, _)| (*id, row.clone())).collect();
        let (manifest, _) = Manifest::open(&disk, path).unwrap();
        manifest
            .commit(
                &FlushPlan { mark: 5, durable: 4, dead_below: None, ledgers, spent: Vec::new() },
                &[],
                1,
                (1, 0),
            )
            .unwrap();
        drop(manifest);
        let bytes = disk.bytes(path).unwrap();
        let mut refused = 0;
        for (number, sector) in bytes.chunks(512).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0)) {
            for pattern in [vec![0xA5; sector.len()], vec![0; sector.len()], vec![0xFF; 16]] {
                let damaged = disk.fork();
                let file = damaged.open(path, OpenMode::ReadWrite).unwrap();
                file.write_all_at(&pattern, (number * 512) as u64).unwrap();
                match Manifest::open(&damaged, path) {
                    Ok((_, content)) => assert_eq!((content.mark, content.ledgers), (5, rows.clone())),
                    Err(ManifestError::Damaged) => refused += 1,
                    Err(ManifestError::Io(error)) => panic!("the disk is sound: {error}"),
                }
            }
        }
        assert!(refused > 20, "only {refused} were noticed");
    }
}
