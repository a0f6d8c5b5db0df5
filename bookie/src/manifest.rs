//! The manifest: which segments exist, what is known of each ledger, and from which journal batch on replay must start. One redb
//! database; every change is one transaction.
//!
//! Tables: `store` (text → u64: `mark`, `durable`, `segment` = next segment id, `boot`), `segments` (segment id → file length u64,
//! footer length u64, lowest ledger u64, highest ledger u64), `ledgers` (ledger id → state row).

use crate::format::Fields;
use crate::format::row::LedgerRow;
use crate::mutant::Mutant;
use crate::segments::SegmentRow;
use crate::shard::FlushPlan;
use geminga_common::disk::{Disk, RedbFile};
use geminga_common::ids::LedgerId;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::io;
use std::path::Path;

const STORE: TableDefinition<'_, &str, u64> = TableDefinition::new("store");
const SEGMENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("segments");
const LEDGERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledgers");

/// Counters never come near this: one that does is damage, and what is added to it must not overflow.
const WORD_LIMIT: u64 = 1 << 62;

pub(crate) struct Manifest(Database);

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) mark: u64,
    pub(crate) durable: u64,
    pub(crate) next_segment: u64,
    pub(crate) boot: u64,
    pub(crate) segments: Vec<SegmentRow>,
    pub(crate) ledgers: Vec<(LedgerId, LedgerRow)>,
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
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => ManifestError::Io(error),
        _ => ManifestError::Damaged,
    }
}

impl Manifest {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<(Self, Content), ManifestError> {
        let file = RedbFile::open(disk, path).map_err(ManifestError::Io)?;
        // Without the check redb believes every page of a file that was closed in order, and panics on one that is not what it
        // seems. Reading them all once, against their checksums, turns bit rot into damage that is named.
        let database = Database::builder()
            .set_cache_size(4 << 20)
            .set_check_integrity_on_open(true)
            .create_with_backend(file)
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
            ..Content::default()
        };
        if [content.mark, content.durable, content.next_segment].iter().any(|word| *word >= WORD_LIMIT) {
            return Ok(None);
        }
        for item in txn.open_table(SEGMENTS)?.iter()? {
            let (id, row) = item?;
            let mut f = Fields(row.value());
            let Some([len, footer, low, high]) = (|| Some([f.u64()?, f.u64()?, f.u64()?, f.u64()?]))() else {
                return Ok(None);
            };
            let ledgers = LedgerId(low)..=LedgerId(high);
            content.segments.push(SegmentRow { id: id.value(), len, footer, ledgers });
        }
        for item in txn.open_table(LEDGERS)?.iter()? {
            let (id, row) = item?;
            let Some(row) = LedgerRow::decode(row.value()) else { return Ok(None) };
            content.ledgers.push((LedgerId(id.value()), row));
        }
        Ok(Some(content))
    }

    /// Commits a flush: its segment (if it holds entries), states and mark.
    pub(crate) fn commit(
        &self,
        plan: &FlushPlan,
        segment: Option<&SegmentRow>,
        next_segment: u64,
        boot: u64,
        config: &crate::Config,
    ) -> io::Result<()> {
        let body = || -> Result<(), redb::Error> {
            let txn = self.0.begin_write()?;
            {
                let mut store = txn.open_table(STORE)?;
                store.insert("mark", plan.mark)?;
                store.insert("durable", plan.durable)?;
                store.insert("segment", next_segment)?;
                store.insert("boot", boot)?;
                let mut segments = txn.open_table(SEGMENTS)?;
                if let Some(s) = segment {
                    let words = [s.len, s.footer, s.ledgers.start().0, s.ledgers.end().0];
                    let row: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                    segments.insert(s.id, row.as_slice())?;
                }
                let mut ledgers = txn.open_table(LEDGERS)?;
                for (id, row, _) in &plan.ledgers {
                    let mut row = row.clone();
                    if config.has(Mutant::FenceLost) {
                        row.term = geminga_common::ids::Term(0);
                    }
                    ledgers.insert(id.0, row.encode().as_slice())?;
                }
            }
            txn.commit()?;
            Ok(())
        };
        body().map_err(io_error)
    }

    /// Takes segments out, before their files are removed.
    pub(crate) fn forget(&self, dead: &[u64]) -> io::Result<()> {
        let body = || -> Result<(), redb::Error> {
            let txn = self.0.begin_write()?;
            {
                let mut segments = txn.open_table(SEGMENTS)?;
                for id in dead {
                    segments.remove(id)?;
                }
            }
            txn.commit()?;
            Ok(())
        };
        body().map_err(io_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::disk::OpenMode;
    use geminga_common::disk::sim::SimDisk;
    use geminga_common::ids::{BookieId, Term};
    use std::path::PathBuf;

    /// Of a manifest that was closed in order, every written sector in turn becomes something else: opening says so, or gives what
    /// was stored, and does not panic.
    #[test]
    fn a_damaged_sector_is_named_and_ends_nothing() {
        let path = Path::new("/manifest.redb");
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/")).unwrap();
        let config = crate::Config::new(BookieId::new("b").unwrap(), PathBuf::from("/"), "test");
        let ledgers: Vec<_> = (0..200)
            .map(|n| (LedgerId(n), LedgerRow { term: Term(n), ..LedgerRow::default() }, None))
            .collect();
        let rows: Vec<_> = ledgers.iter().map(|(id, row, _)| (*id, row.clone())).collect();
        let (manifest, _) = Manifest::open(&disk, path).unwrap();
        manifest.commit(&FlushPlan { mark: 5, durable: 4, ledgers }, None, 1, 1, &config).unwrap();
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
                    Err(ManifestError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
                }
            }
        }
        assert!(refused > 20, "only {refused} were noticed");
    }
}
