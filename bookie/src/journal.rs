//! Journal files: made, recycled, replayed.
//!
//! Replay takes all sound batches of all files, voids those that an earlier replay left behind, and follows the sequence from the
//! manifest's mark on. Where it ends decides between a torn tail (never acknowledged: answers follow the contiguous prefix) and
//! damage: a later batch, or the manifest, that knew the missing one to be durable. There is no way to skip a bad batch.

use crate::Config;
use crate::format::journal::{self as format, Found, Record};
use crate::mutant::Mutant;
use crate::shard::JournalFile;
use bytes::Bytes;
use geminga_common::disk::{AlignedBuf, Disk, OpenMode};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

const PAGE: usize = 4096;
const PIECE: usize = 1 << 20;

/// Makes a file ready for batches of `generation`: zero-fills a new one, or takes a recycled one over by its header.
pub(crate) fn prepare(
    disk: &dyn Disk,
    dir: &Path,
    store: u64,
    generation: u64,
    recycled: Option<JournalFile>,
    size: u64,
) -> io::Result<JournalFile> {
    let mut file = match recycled {
        Some(file) => file,
        None => create(disk, dir, generation, size)?,
    };
    let mut page = AlignedBuf::zeroed(PAGE);
    page.as_mut_slice()[..36].copy_from_slice(&format::encode_header(store, generation));
    file.file.write_all_at(page.as_slice(), 0)?;
    file.generation = generation;
    Ok(file)
}

fn create(disk: &dyn Disk, dir: &Path, generation: u64, size: u64) -> io::Result<JournalFile> {
    let name = format!("{generation:016x}.jnl");
    let path = dir.join(&name);
    let fill = || -> io::Result<()> {
        let file = disk.open(&path, OpenMode::CreateNew)?;
        let zeros = vec![0; PIECE.min(size as usize)];
        let mut at = 0;
        while at < size {
            let len = zeros.len().min((size - at) as usize);
            file.write_all_at(&zeros[..len], at)?;
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
    Ok(JournalFile { generation, capacity: size, file })
}

/// What replay found.
pub(crate) struct Replay {
    /// Records in order, from the mark on.
    pub(crate) records: Vec<Record>,
    /// The first batch that is missing: writing goes on with its number.
    pub(crate) stopped: u64,
    /// Something acknowledged is missing.
    pub(crate) damaged: bool,
    /// Files and the highest batch in each.
    pub(crate) files: Vec<(JournalFile, u64)>,
    /// Where the last batch that counts ends, for the defect that goes on there.
    pub(crate) end: Option<(usize, u64)>,
}

struct Scanned {
    found: Found,
    file: usize,
    records: Bytes,
    end: u64,
}

/// Replays the journal in `dir`. Batches below `mark` are in segments; those up to `durable` were durable when the manifest was
/// written.
pub(crate) fn replay(
    disk: &dyn Disk,
    dir: &Path,
    store: u64,
    (mark, durable): (u64, u64),
    config: &Config,
) -> io::Result<Replay> {
    let (mut files, mut batches, mut headers_sound) = (Vec::new(), Vec::new(), true);
    for name in disk.list(dir)? {
        if name.ends_with(".jnl") {
            headers_sound &= scan(disk, dir, &name, store, &mut files, &mut batches)?;
        }
    }
    void_left_behind(&mut batches);
    let mut replay = Replay { records: Vec::new(), stopped: mark, damaged: false, files, end: None };
    let mut chain: BTreeMap<u64, Scanned> = BTreeMap::new();
    batches.sort_by_key(|b| b.found.head.generation);
    for batch in batches {
        let seq = batch.found.head.seq;
        replay.files[batch.file].1 = replay.files[batch.file].1.max(seq);
        chain.insert(seq, batch);
    }
    let known = chain.values().map(|b| b.found.head.durable).max().unwrap_or(0).max(durable);
    while let Some(batch) = chain.get(&replay.stopped) {
        replay.end = Some((batch.file, batch.end));
        replay.stopped += 1;
    }
    let stopped = replay.stopped;
    replay.damaged = known >= stopped || !headers_sound;
    let skip = config.has(Mutant::BadRecordSkipped);
    if skip || config.has(Mutant::ChecksumTruncates) {
        replay.damaged = false;
    }
    let beyond = replay.damaged || skip;
    for batch in chain.range(mark..).map(|(_, b)| b).filter(|b| b.found.head.seq < stopped || beyond) {
        match format::decode_records(&batch.records, batch.found.count) {
            Some(records) => replay.records.extend(records),
            None => replay.damaged = true,
        }
    }
    if skip && let Some(last) = chain.keys().last() {
        replay.stopped = stopped.max(last + 1);
    }
    Ok(replay)
}

/// Drops what a replay before this one stopped short of: batches of an older generation at or above its end.
fn void_left_behind(batches: &mut Vec<Scanned>) {
    let stops: Vec<(u64, u64)> = batches
        .iter()
        .filter(|b| b.records.first() == Some(&7))
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

fn scan(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    store: u64,
    files: &mut Vec<(JournalFile, u64)>,
    batches: &mut Vec<Scanned>,
) -> io::Result<bool> {
    let path = dir.join(name);
    let direct = disk.open(&path, OpenMode::ReadDirect)?;
    let len = direct.len()? as usize / PAGE * PAGE;
    let bytes = read_all(&*direct, len)?;
    let bytes = bytes.as_slice();
    let Some(generation) = bytes.get(..PAGE).and_then(|page| format::decode_header(page, store)) else {
        // Zeros: never used, its making was cut short. Anything else is damage: a header is written within one sector.
        let blank = bytes.iter().all(|b| *b == 0);
        if blank {
            disk.remove(&path)?;
        }
        return Ok(blank);
    };
    // A killed process leaves writes that the device may still hold in its cache: what is replayed must stay.
    disk.open(&path, OpenMode::ReadWrite)?.sync_data()?;
    let handle = disk.open(&path, OpenMode::JournalDirect)?;
    files.push((JournalFile { generation, capacity: len as u64, file: handle }, 0));
    let mut at = PAGE;
    while at < len {
        match format::decode_batch(&bytes[at..], store, generation) {
            Some(found) => {
                let start = at + format::BATCH_HEADER;
                at += format::batch_len(found.records_len);
                let records = Bytes::copy_from_slice(&bytes[start..start + found.records_len]);
                batches.push(Scanned { found, file: files.len() - 1, records, end: at as u64 });
            }
            None => at += PAGE,
        }
    }
    Ok(true)
}

fn read_all(file: &dyn geminga_common::disk::DiskFile, len: usize) -> io::Result<AlignedBuf> {
    let mut whole = AlignedBuf::zeroed(len);
    for (number, piece) in whole.as_mut_slice().chunks_mut(PIECE).enumerate() {
        file.read_exact_at(piece, (number * PIECE) as u64)?;
    }
    Ok(whole)
}

/// Where the files of a journal lie.
pub(crate) fn dir(config: &Config) -> Arc<Path> {
    config.data_dir.join("journal").into()
}
