//! Reads journal files, a window at a time, and changes nothing.
//!
//! Numbers of batches rise along a file and from each file to the next (a replay goes on above all that it saw), so a file with a
//! successor whose first batch is at or below the mark holds only what is in segments: it is not read. Of what is read, records below
//! the mark are not kept. Start-up takes time and memory for what it has to replay, not for the size of the journal.

use super::{PAGE, PIECE, owner};
use crate::format::journal::{self as format, Found, Record};
use crate::store::Place;
use bytes::Bytes;
use geminga_common::disk::{AlignedBuf, Disk, DiskFile, OpenMode};
use std::io;
use std::sync::Arc;

/// A batch that does not check and says it is longer is not looked into: its length is what is wrong.
const SALVAGED_MAX: usize = 256 << 20;

/// A sound batch of a file.
pub(crate) struct Scanned {
    pub(crate) found: Found,
    /// Number of its file in the survey.
    pub(crate) file: usize,
    /// Its records; empty for a batch below the mark.
    pub(crate) records: Bytes,
    pub(super) end: u64,
}

/// A journal file as it is found.
pub(crate) struct Surveyed {
    pub(crate) name: String,
    pub(crate) len: u64,
    /// `None`: the header is none of this journal.
    pub(crate) generation: Option<u64>,
    /// All zeros: never used, its making was cut short.
    pub(crate) blank: bool,
    /// Of a file that was not read: no batch in it has a higher number. Else 0.
    pub(super) highest: u64,
}

/// What begins like a batch of its file and does not check: one that was being written when the machine or the process stopped, or a
/// damaged one.
pub(crate) struct Unsound {
    /// The number it says it has.
    pub(crate) seq: u64,
    /// Number of its file in the survey.
    pub(crate) file: usize,
    /// Where it begins.
    pub(crate) at: u64,
    /// Bytes it says it has.
    pub(crate) len: u64,
    /// Entries in it that are intact; none for a batch below the mark.
    pub(super) adds: Vec<Record>,
}

/// All that lies in a journal directory.
#[derive(Default)]
pub(crate) struct Survey {
    pub(crate) files: Vec<Surveyed>,
    pub(crate) batches: Vec<Scanned>,
    pub(crate) unsound: Vec<Unsound>,
}

/// Reads what a journal holds from batch `mark` on.
pub(crate) fn survey(disk: &dyn Disk, place: &Place, store: u64, mark: u64) -> io::Result<Survey> {
    let mut survey = Survey::default();
    let mut opened = Vec::new();
    for name in disk.list(&place.journal_dir)? {
        if name.ends_with(".jnl") {
            let mut file = Window::open(disk, &place.journal_dir.join(&name))?;
            let generation = format::decode_header(file.at(0, PAGE)?, owner(place, store));
            let blank = generation.is_none() && file.blank()?;
            survey.files.push(Surveyed { name, len: file.len as u64, generation, blank, highest: 0 });
            let first = match generation {
                Some(generation) => {
                    batch(&mut file, PAGE, store, generation)?.ok().map(|found| found.head.seq)
                }
                None => None,
            };
            opened.push((file, generation, first));
        }
    }
    let firsts: Vec<(u64, u64)> =
        opened.iter().filter_map(|(_, generation, first)| generation.zip(*first)).collect();
    for (number, (file, generation, _)) in opened.iter_mut().enumerate() {
        let Some(generation) = *generation else { continue };
        let next = firsts.iter().filter(|(later, first)| *later > generation && *first <= mark).min();
        match next {
            Some((_, first)) => survey.files[number].highest = first.saturating_sub(1),
            None => scan(file, (number, generation), store, mark, &mut survey)?,
        }
    }
    Ok(survey)
}

fn scan(
    file: &mut Window,
    (number, generation): (usize, u64),
    store: u64,
    mark: u64,
    out: &mut Survey,
) -> io::Result<()> {
    let mut at = PAGE;
    while at < file.len {
        let found = match batch(file, at, store, generation)? {
            Ok(found) => found,
            Err(claimed) => {
                if let Some((seq, len)) = claimed {
                    let known = seq >= mark && len <= SALVAGED_MAX;
                    let bytes = if known { Bytes::copy_from_slice(file.at(at, len)?) } else { Bytes::new() };
                    let adds = format::intact_adds(&bytes);
                    out.unsound.push(Unsound { seq, file: number, at: at as u64, len: len as u64, adds });
                }
                at += PAGE;
                continue;
            }
        };
        let total = format::batch_len(found.records_len);
        let records = &file.at(at, total)?[format::BATCH_HEADER..][..found.records_len];
        let kept = found.head.seq >= mark || format::tells_of_replay(records);
        let records = if kept { Bytes::copy_from_slice(records) } else { Bytes::new() };
        at += total;
        out.batches.push(Scanned { found, file: number, records, end: at as u64 });
    }
    Ok(())
}

/// The sound batch that begins at `at`; else number and bytes that one claims to have, if one begins there.
fn batch(
    file: &mut Window,
    at: usize,
    store: u64,
    generation: u64,
) -> io::Result<Result<Found, Option<(u64, usize)>>> {
    let claimed = format::claimed(file.at(at, PAGE)?, generation);
    let Some((_, total)) = claimed else { return Ok(Err(None)) };
    Ok(format::decode_batch(file.at(at, total)?, store, generation).ok_or(claimed))
}

/// The part of a file that is in memory: as large as the batch it was asked for, and [`PIECE`] at least.
struct Window {
    file: Arc<dyn DiskFile>,
    /// Whole pages of the file, in bytes.
    len: usize,
    buf: AlignedBuf,
    start: usize,
    filled: usize,
}

impl Window {
    fn open(disk: &dyn Disk, path: &std::path::Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::ReadDirect)?;
        let len = file.len()? as usize / PAGE * PAGE;
        Ok(Self { file, len, buf: AlignedBuf::zeroed(0), start: 0, filled: 0 })
    }

    /// `wanted` bytes from the page at `at` on, fewer where the file ends.
    fn at(&mut self, at: usize, wanted: usize) -> io::Result<&[u8]> {
        let wanted = wanted.min(self.len.saturating_sub(at));
        if at < self.start || at + wanted > self.start + self.filled {
            let filled = wanted.max(PIECE).min(self.len.saturating_sub(at));
            if self.buf.len() < filled {
                self.buf = AlignedBuf::zeroed(filled);
            }
            for (number, piece) in self.buf.as_mut_slice()[..filled].chunks_mut(PIECE).enumerate() {
                self.file.read_exact_at(piece, (at + number * PIECE) as u64)?;
            }
            (self.start, self.filled) = (at, filled);
        }
        Ok(&self.buf.as_slice()[at - self.start..][..wanted])
    }

    fn blank(&mut self) -> io::Result<bool> {
        for at in (0..self.len).step_by(PIECE) {
            if self.at(at, PIECE)?.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::journal::{BatchHead, Record};
    use geminga_common::disk::sim::SimDisk;
    use geminga_common::ids::LedgerId;

    const STORE: u64 = 0x5107;

    fn place() -> Place {
        Place { data_dir: "/d".into(), journal_dir: "/d/journal".into(), shard: 0, shards: 1 }
    }

    /// A journal of files of these batches, a deletion in each but where a replay stopped below `seq`.
    fn journal(files: &[&[(u64, Option<u64>)]]) -> SimDisk {
        let disk = SimDisk::new();
        disk.create_dir_all(&place().journal_dir).expect("directory");
        for (number, batches) in files.iter().enumerate() {
            let generation = number as u64 + 1;
            let mut bytes = AlignedBuf::zeroed(PAGE * 64);
            bytes.as_mut_slice()[..36]
                .copy_from_slice(&format::encode_header(owner(&place(), STORE), generation));
            let mut at = PAGE;
            for (seq, stopped) in *batches {
                let record = match stopped {
                    Some(seq) => Record::ReplayStopped { seq: *seq },
                    None => Record::Delete { ledger: LedgerId(*seq) },
                };
                let head = BatchHead { generation, seq: *seq, durable: 0 };
                let out = &mut bytes.as_mut_slice()[at..];
                at += format::encode_batch(out, STORE, head, std::slice::from_ref(&record), record.len());
            }
            let path = place().journal_dir.join(format!("{generation:016x}.jnl"));
            let file = disk.open(&path, OpenMode::CreateNew).expect("file");
            file.write_all_at(bytes.as_slice(), 0).expect("write");
        }
        disk
    }

    /// The batches found from `mark` on, and whether their records were kept; then the bound of each file.
    fn found(disk: &SimDisk, mark: u64) -> (Vec<(u64, bool)>, Vec<u64>) {
        let survey = survey(disk, &place(), STORE, mark).expect("survey");
        let batches = survey.batches.iter().map(|b| (b.found.head.seq, !b.records.is_empty())).collect();
        (batches, survey.files.iter().map(|file| file.highest).collect())
    }

    #[test]
    fn a_file_whose_successor_begins_at_or_below_the_mark_is_not_read() {
        let disk = journal(&[&[(1, None), (2, None)], &[(3, None), (4, None)], &[(5, None)]]);
        assert_eq!(found(&disk, 0).0, [(1, true), (2, true), (3, true), (4, true), (5, true)]);
        assert_eq!(
            found(&disk, 2).0,
            [(1, false), (2, true), (3, true), (4, true), (5, true)],
            "2 is wanted"
        );
        assert_eq!(found(&disk, 3), (vec![(3, true), (4, true), (5, true)], vec![2, 0, 0]));
        assert_eq!(found(&disk, 9), (vec![(5, false)], vec![2, 4, 0]), "the last is read whatever the mark");
    }

    #[test]
    fn a_successor_without_a_sound_batch_proves_nothing() {
        let disk = journal(&[&[(1, None), (2, None)], &[(3, None)], &[]]);
        assert_eq!(found(&disk, 9), (vec![(3, false)], vec![2, 0, 0]));
        disk.flip(&place().journal_dir.join("0000000000000002.jnl"), PAGE as u64 + 30, 1);
        assert_eq!(found(&disk, 9), (vec![(1, false), (2, false)], vec![0, 0, 0]));
    }

    #[test]
    fn a_batch_that_does_not_check_is_told() {
        let disk = journal(&[&[(1, None), (2, None)]]);
        let told = || {
            let survey = survey(&disk, &place(), STORE, 0).expect("survey");
            survey.unsound.iter().map(|u| (u.seq, u.file, u.at, u.len)).collect::<Vec<_>>()
        };
        assert_eq!(told(), []);
        disk.flip(&place().journal_dir.join("0000000000000001.jnl"), 2 * PAGE as u64 + 44, 1);
        assert_eq!(told(), [(2, 0, 2 * PAGE as u64, PAGE as u64)]);
    }

    #[test]
    fn where_a_replay_stopped_is_kept_below_the_mark() {
        let disk = journal(&[&[(1, None), (2, Some(1)), (3, None)]]);
        assert_eq!(found(&disk, 3).0, [(1, false), (2, true), (3, true)]);
    }
}
