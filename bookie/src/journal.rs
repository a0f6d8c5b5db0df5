//! Journal files: made, recycled, replayed.
//!
//! Replay takes all sound batches of all files, voids those that an earlier replay left behind, and follows the sequence from the
//! manifest's mark on. Where it ends decides between a torn tail (never acknowledged: answers follow the contiguous prefix) and
//! damage: a later batch, or the manifest, that knew the missing one to be durable. There is no way to skip a bad batch.

use crate::format::journal::{self as format, Owner, Record};
use crate::manifest::JournalRow;
use crate::mutant::{Mutant, active};
use crate::shard::JournalFile;
use crate::store::Place;
use geminga_common::disk::{AlignedBuf, Disk, OpenMode};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

mod scan;

pub(crate) use scan::{Scanned, Survey, Surveyed, Unsound, survey};

const PAGE: usize = 4096;
/// A new file is written in pieces of so many bytes, one at a time and past the page cache: whatever is handed to the device at once, a
/// batch of another file waits behind.
const PIECE: usize = 512 << 10;

/// Makes a file ready for batches of `generation`: zero-fills a new one, or takes a recycled one over by its header.
pub(crate) fn prepare(
    disk: &dyn Disk,
    place: &Place,
    store: u64,
    generation: u64,
    recycled: Option<JournalFile>,
    size: u64,
) -> io::Result<JournalFile> {
    let mut file = match recycled {
        Some(file) => file,
        None => create(disk, &place.journal_dir, generation, size)?,
    };
    let mut page = AlignedBuf::zeroed(PAGE);
    page.as_mut_slice()[..36].copy_from_slice(&format::encode_header(owner(place, store), generation));
    file.file.write_all_at(page.as_slice(), 0)?;
    file.generation = generation;
    Ok(file)
}

/// Whose journal it is.
pub(crate) fn owner(place: &Place, store: u64) -> Owner {
    Owner { store, shard: place.shard, shards: place.shards }
}

/// The file that was made with a generation.
pub(crate) fn path(dir: &Path, made: u64) -> PathBuf {
    dir.join(format!("{made:016x}.jnl"))
}

/// What the manifest is told of a file.
impl From<&JournalFile> for JournalRow {
    fn from(file: &JournalFile) -> Self {
        Self { generation: file.generation, made: file.made, len: file.capacity }
    }
}

fn create(disk: &dyn Disk, dir: &Path, generation: u64, size: u64) -> io::Result<JournalFile> {
    let path = path(dir, generation);
    let fill = || -> io::Result<()> {
        let file = disk.open(&path, OpenMode::CreateDirect)?;
        let zeros = AlignedBuf::zeroed(PIECE.min(size as usize));
        let mut at = 0;
        while at < size {
            let len = zeros.len().min((size - at) as usize);
            file.write_all_at(&zeros.as_slice()[..len], at)?;
            at += len as u64;
        }
        file.sync_data()?;
        disk.sync_dir(dir)
    };
    if let Err(error) = fill() {
        // The room it took is wanted; that the removal may fail as well changes nothing.
        let _best_effort = disk.remove(&path);
        return Err(error);
    }
    let file = disk.open(&path, OpenMode::JournalDirect)?;
    Ok(JournalFile { generation, made: generation, capacity: size, file })
}

/// What a journal holds, before anything of it is touched.
pub(crate) struct Looked {
    found: Vec<Surveyed>,
    chain: BTreeMap<u64, Scanned>,
    unsound: Vec<Unsound>,
    replay: Replay,
}

/// What replay found.
pub(crate) struct Replay {
    /// Records in order, from the mark on.
    pub(crate) records: Vec<Record>,
    /// The first batch that is missing: writing goes on with its number.
    pub(crate) stopped: u64,
    /// Above every batch there is, and a gap.
    pub(crate) resume_at: u64,
    /// Something acknowledged is missing.
    pub(crate) damaged: bool,
    /// Files and the highest batch in each.
    pub(crate) files: Vec<(JournalFile, u64)>,
    /// Where the last batch that counts ends, for the defect that goes on there.
    pub(crate) end: Option<(usize, u64)>,
}

/// Batches in sequence, and where the sequence that counts ends.
pub(crate) struct Chain {
    batches: BTreeMap<u64, Scanned>,
    /// The first that is missing.
    pub(crate) stopped: u64,
    /// Known to have been durable up to here: a chain that ends before has lost something.
    pub(crate) known: u64,
}

/// Follows the sequence from `mark` on.
pub(crate) fn follow(mut batches: Vec<Scanned>, mark: u64, durable: u64) -> Chain {
    void_left_behind(&mut batches);
    batches.sort_by_key(|b| b.found.head.generation);
    let batches: BTreeMap<u64, Scanned> = batches.into_iter().map(|b| (b.found.head.seq, b)).collect();
    let known = batches.values().map(|b| b.found.head.durable).max().unwrap_or(0).max(durable);
    let mut stopped = mark;
    while batches.contains_key(&stopped) {
        stopped += 1;
    }
    Chain { batches, stopped, known }
}

/// Reads the journal of a place and changes nothing. Batches below `mark` are in segments; those up to `durable` were durable when the
/// manifest was written.
pub(crate) fn look(
    disk: &dyn Disk,
    place: &Place,
    store: u64,
    (mark, durable): (u64, u64),
) -> io::Result<Looked> {
    let Survey { files: found, batches, mut unsound } = survey(disk, place, store, mark)?;
    let highest = batches.iter().map(|b| b.found.head.seq).max().unwrap_or(0).max(durable).max(mark);
    let Chain { batches: chain, stopped, known } = follow(batches, mark, durable);
    let headers_sound = found.iter().all(|file| file.generation.is_some() || file.blank);
    let damaged = known >= stopped || !headers_sound;
    let resume_at = highest + 2;
    let mut replay =
        Replay { records: Vec::new(), stopped, resume_at, damaged, files: Vec::new(), end: None };
    let skip = active(Mutant::BadRecordSkipped);
    if skip || active(Mutant::ChecksumTruncates) {
        replay.damaged = false;
    }
    let beyond = replay.damaged || skip;
    // Of a batch that was durable and does not check, what is intact of it takes its place.
    let lost = unsound.iter_mut().filter(|u| replay.damaged && u.seq >= mark && !chain.contains_key(&u.seq));
    let mut intact: BTreeMap<u64, Vec<Record>> = lost.map(|u| (u.seq, std::mem::take(&mut u.adds))).collect();
    for (seq, batch) in chain.range(mark..).filter(|(seq, _)| **seq < stopped || beyond) {
        while let Some(before) = intact.first_entry().filter(|first| first.key() < seq) {
            replay.records.extend(before.remove());
        }
        match format::decode_records(&batch.records, batch.found.count) {
            Some(records) => replay.records.extend(records),
            None => replay.damaged = true,
        }
    }
    replay.records.extend(intact.into_values().flatten());
    if skip && let Some(last) = chain.keys().last() {
        replay.stopped = stopped.max(last + 1);
    }
    Ok(Looked { found, chain, unsound, replay })
}

impl Looked {
    /// Whether a batch that was durable is missing, or a file's header does not check.
    pub(crate) fn damaged(&self) -> bool {
        self.replay.damaged
    }

    /// Says what is left out because it does not check, behind all that is known to have been durable.
    pub(crate) fn tell_dropped(&self, place: &Place) {
        for tail in self.unsound.iter().filter(|tail| tail.seq >= self.replay.stopped) {
            let file = self.found.get(tail.file).map(|file| place.journal_dir.join(&file.name));
            tracing::warn!(
                file = %file.unwrap_or_default().display(), offset = tail.at, bytes = tail.len, batch = tail.seq,
                "the journal ends with a batch that does not check and is left out: nothing of it was acknowledged if it was being \
                 written when the process or the machine stopped; if neither did, the disk has damaged it",
            );
        }
    }

    /// File, offset and number of the batch that was durable and is the first not to check; `None` when there is nothing in its place.
    pub(crate) fn damaged_batch(&self) -> Option<(&str, u64, u64)> {
        let first = self.unsound.iter().find(|batch| batch.seq == self.replay.stopped)?;
        Some((&self.found.get(first.file)?.name, first.at, first.seq))
    }

    /// Whether there is no file.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.iter().all(|file| file.generation.is_none())
    }

    /// The first batch that is missing.
    pub(crate) fn stopped(&self) -> u64 {
        self.replay.stopped
    }

    /// Whether a listed file is there, as long as it was.
    pub(crate) fn has(&self, row: &JournalRow) -> bool {
        self.found.iter().any(|file| file.generation == Some(row.generation) && file.len >= row.len)
    }

    /// The replay; the files become the store's own.
    pub(crate) fn replay(self, disk: &dyn Disk, place: &Place) -> io::Result<Replay> {
        let Self { found, chain, mut replay, .. } = self;
        // Numbers of files in the survey become those of the files that are taken over.
        let mut numbers = BTreeMap::new();
        for (number, file) in found.iter().enumerate() {
            if let Some(taken) = take_over(disk, &place.journal_dir.join(&file.name), file)? {
                numbers.insert(number, replay.files.len());
                let batches = chain.values().filter(|b| b.file == number);
                replay.files.push((taken, batches.map(|b| b.found.head.seq).max().unwrap_or(file.highest)));
            }
        }
        let last = replay.stopped.checked_sub(1).and_then(|seq| chain.get(&seq));
        replay.end = last.and_then(|b| Some((*numbers.get(&b.file)?, b.end)));
        Ok(replay)
    }
}

/// Makes a file that was read the store's own. A blank one is removed, one that does not check is left alone.
fn take_over(disk: &dyn Disk, path: &Path, found: &Surveyed) -> io::Result<Option<JournalFile>> {
    let Some(generation) = found.generation else {
        if found.blank {
            disk.remove(path)?;
        }
        return Ok(None);
    };
    // A killed process leaves writes that the device may still hold in its cache: what is replayed must stay.
    disk.open(path, OpenMode::ReadWrite)?.sync_data()?;
    let file = disk.open(path, OpenMode::JournalDirect)?;
    // A name is given at the making; one that tells nothing was given by somebody else.
    let made = found.name.strip_suffix(".jnl").and_then(|name| u64::from_str_radix(name, 16).ok());
    Ok(Some(JournalFile { generation, made: made.unwrap_or(generation), capacity: found.len, file }))
}

/// Drops what a replay before this one stopped short of: batches of an older generation at or above its end.
fn void_left_behind(batches: &mut Vec<Scanned>) {
    let stops: Vec<(u64, u64)> = batches
        .iter()
        .filter(|b| format::tells_of_replay(&b.records))
        .filter_map(|b| {
            let seq = b.records.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?;
            Some((b.found.head.generation, seq))
        })
        .collect();
    let void = |b: &Scanned| {
        let head = b.found.head;
        stops.iter().any(|(generation, seq)| head.generation < *generation && head.seq >= *seq)
    };
    batches.retain(|b| !void(b));
}
