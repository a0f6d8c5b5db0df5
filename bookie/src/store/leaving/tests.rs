//! A segment that is out of use, on a simulated disk.

use crate::samples;
use crate::steps::Steps;
use geminga_bookie_client::rpc::{Read, ReadAnswer, ReadClass};
use geminga_common::clock::ManualClock;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::ids::{BookieId, EntryId, LedgerId};
use std::sync::Arc;

const PIECE: u64 = 4096;
/// Bytes in each of the two ledgers.
const HELD: u64 = 10 * 3000;

fn open(disk: &SimDisk) -> Steps {
    let mut config = crate::Config::new(BookieId::new("b").unwrap(), "/d".into(), "c");
    config.ballast = 0;
    config.shrink_bytes = PIECE;
    config.small_run = 0;
    Steps::open(config, Arc::new(disk.clone()), Arc::new(ManualClock::at_wall_ms(0))).unwrap()
}

/// Ledgers 4 and 5, each in a segment of its own.
fn filled(disk: &SimDisk) -> Steps {
    let mut steps = open(disk);
    for ledger in [4, 5] {
        let of = |id| samples::entry(ledger, id, vec![ledger as u8; 3000]);
        samples::add(&mut steps, ledger, (0..10).map(of).collect());
        assert!(steps.flush());
    }
    steps
}

fn delete(steps: &mut Steps) {
    steps.delete(LedgerId(4), Box::new(|done| done.unwrap()));
    steps.write_all();
    assert!(steps.flush_one(0));
}

fn with(disk: &SimDisk, extension: &str) -> Vec<u64> {
    let files = disk.files().into_iter();
    files.filter(|(path, _)| path.extension().is_some_and(|e| e == extension)).map(|(_, len)| len).collect()
}

fn reads(steps: &Steps, ledger: u64) -> bool {
    let (ledger, first, last) = (LedgerId(ledger), EntryId(0), EntryId(9));
    let read = Read { ledger, first, last, bytes_max: 1 << 20, class: ReadClass::Tail };
    matches!(steps.read(read), ReadAnswer::Found(entries) if entries.len() == 10)
}

#[test]
fn a_segment_leaves_piece_by_piece() {
    let disk = SimDisk::new();
    let mut steps = filled(&disk);
    delete(&mut steps);
    let mut lengths = Vec::new();
    while with(&disk, "seg").len() == 2 || !with(&disk, "gone").is_empty() {
        assert!(steps.collect_slowly(1) && reads(&steps, 5));
        assert_eq!(with(&disk, "seg").len(), 1, "nobody takes it for a segment any more");
        lengths.extend(with(&disk, "gone"));
    }
    assert!(lengths.len() as u64 >= HELD / PIECE - 1, "{lengths:?}");
    assert!(lengths.windows(2).all(|pair| pair[0] == pair[1] + PIECE), "{lengths:?}");
    assert_eq!(steps.figures().removed_segments, 1);
}

#[test]
fn what_was_leaving_when_the_store_stopped_goes_on_leaving() {
    for crash in [Crash::Kept, Crash::Lost] {
        let disk = SimDisk::new();
        let mut steps = filled(&disk);
        delete(&mut steps);
        assert!(steps.collect_slowly(2));
        assert_eq!(with(&disk, "gone").len(), 1);
        drop(steps);
        let disk = disk.crash(&crash);
        let mut steps = open(&disk);
        assert!(reads(&steps, 5));
        assert!(steps.collect());
        assert_eq!((with(&disk, "seg").len(), with(&disk, "gone").len()), (1, 0), "{crash:?}");
        assert!(reads(&steps, 5) && !reads(&steps, 4));
    }
}

#[test]
fn whoever_reads_a_segment_holds_it_back() {
    let disk = SimDisk::new();
    let mut steps = filled(&disk);
    let reading = steps.first().shard.lock().segments.clone();
    delete(&mut steps);
    let before: Vec<u64> = with(&disk, "seg");
    assert!(steps.collect() && steps.collect());
    assert_eq!(with(&disk, "gone"), before[..1], "not a byte is missing");
    drop(reading);
    assert!(steps.collect());
    assert!(with(&disk, "gone").is_empty());
}

#[test]
fn where_room_is_short_a_segment_goes_at_once() {
    let disk = SimDisk::new();
    let mut steps = filled(&disk);
    let reading = steps.first().shard.lock().segments.clone();
    delete(&mut steps);
    assert!(steps.collect_slowly(0));
    assert_eq!(with(&disk, "gone").len(), 1);
    disk.capacity(Some(disk.used() + 1));
    steps.first().look();
    assert!(steps.collect_slowly(0));
    assert!(with(&disk, "gone").is_empty(), "nobody holds it back either");
    assert_eq!(steps.figures().removed_segments, 1);
    drop(reading);
}

#[test]
fn where_room_is_short_already_a_segment_never_takes_another_name() {
    let disk = SimDisk::new();
    let mut steps = filled(&disk);
    disk.capacity(Some(disk.used() + (1 << 20)));
    steps.first().look();
    assert!(steps.first().shard.lock().room > crate::Room::Open);
    delete(&mut steps);
    assert!(steps.collect_slowly(0));
    assert_eq!((with(&disk, "seg").len(), with(&disk, "gone").len()), (1, 0));
    assert!(reads(&steps, 5));
}

#[test]
fn what_cannot_be_removed_now_is_removed_later() {
    let disk = SimDisk::new();
    let mut steps = filled(&disk);
    delete(&mut steps);
    assert!(steps.collect_slowly(1));
    disk.read_only(true);
    assert!(steps.first().shrink_some(u32::MAX).is_err());
    disk.read_only(false);
    assert_eq!(with(&disk, "gone").len(), 1);
    assert!(steps.collect());
    assert!(with(&disk, "gone").is_empty());
}
