//! Every file of a store in memory, lost or cut short: refused before anything is changed where that is asked for, and never an absence.

use super::Losses;
use crate::format::identity::Format;
use crate::format::journal::{Owner, decode_header};
use crate::samples;
use crate::steps::Steps;
use crate::{Config, Health, OpenError};
use geminga_bookie_client::rpc::{Read, ReadAnswer, ReadClass};
use geminga_common::clock::ManualClock;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::disk::{Disk as _, OpenMode};
use geminga_common::ids::{BookieId, EntryId, LedgerId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LEDGERS: [u64; 3] = [4, 5, 6];
const ENTRIES: u64 = 40;

fn config(refuse_losses: bool) -> Config {
    let mut config = Config::new(BookieId::new("b").unwrap(), "/d".into(), "c");
    config.ballast = 0;
    config.entry_bytes_max = 8 << 10;
    config.control_reserve = 4096;
    config.journal_file_size = 64 << 10;
    config.journal_file_size_first = 64 << 10;
    config.refuse_losses = refuse_losses;
    config
}

fn open(disk: &SimDisk, refuse: bool) -> Result<Steps, OpenError> {
    Steps::open(config(refuse), Arc::new(disk.clone()), Arc::new(ManualClock::at_wall_ms(0)))
}

/// A store that was flushed now and then and killed: segments, spent journal files, and some with the newest entries.
fn killed() -> SimDisk {
    let disk = SimDisk::new();
    let mut steps = open(&disk, true).unwrap();
    for id in 0..ENTRIES {
        for ledger in LEDGERS {
            samples::add(&mut steps, ledger, vec![samples::entry(ledger, id, vec![id as u8; 4000])]);
            steps.prepare();
        }
        if id == ENTRIES / 4 || id == ENTRIES / 2 {
            assert!(steps.flush());
        }
    }
    steps.idle();
    drop(steps);
    disk.crash(&Crash::Kept)
}

fn names(disk: &SimDisk, extension: &str) -> Vec<PathBuf> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.extension().is_some_and(|is| is == extension)).collect()
}

fn remove(disk: &SimDisk, path: &Path) {
    disk.remove(path).unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

fn cut(disk: &SimDisk, path: &Path, len: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.set_len(len).unwrap();
    file.sync_data().unwrap();
}

/// A recycled file keeps its name: its header tells its age.
fn generation(disk: &SimDisk, path: &Path) -> u64 {
    let format = Format::decode(&disk.bytes(Path::new("/d/FORMAT")).unwrap()).ok().unwrap();
    let owner = Owner { store: format.store, shard: 0, shards: 1 };
    decode_header(&disk.bytes(path).unwrap(), owner).unwrap()
}

/// Of all that was acknowledged, how much is read; none of it may be called absent.
fn readable(steps: &Steps) -> u64 {
    let mut found = 0;
    for (ledger, id) in LEDGERS.into_iter().flat_map(|ledger| (0..ENTRIES).map(move |id| (ledger, id))) {
        let (ledger, first) = (LedgerId(ledger), EntryId(id));
        match steps.read(Read { ledger, first, last: first, bytes_max: 1, class: ReadClass::Tail }) {
            ReadAnswer::Found(_) => found += 1,
            ReadAnswer::Unknown(_) => {}
            ReadAnswer::NotFound(_) | ReadAnswer::Lost { .. } => {
                panic!("entry {id} of ledger {ledger} was acknowledged")
            }
        }
    }
    found
}

#[test]
fn every_file_that_is_lost_or_cut_short_is_named_and_nothing_is_changed() {
    let sound = killed();
    let all = LEDGERS.len() as u64 * ENTRIES;
    assert_eq!(readable(&open(&sound.fork(), true).unwrap()), all);
    let (segments, journals) = (names(&sound, "seg"), names(&sound, "jnl"));
    assert!(segments.len() >= 2 && journals.len() >= 3, "{segments:?} {journals:?}");
    let manifest = PathBuf::from("/d/manifest.redb");
    let (mut refused, mut spared) = (0, Vec::new());
    for path in segments.iter().chain(&journals).chain([&manifest]) {
        let len = sound.files().into_iter().find(|(file, _)| file == path).unwrap().1;
        for left in [None, Some(0), Some(len / 2)] {
            let disk = sound.fork();
            left.map_or_else(|| remove(&disk, path), |left| cut(&disk, path, left));
            let before = disk.files();
            match open(&disk, true) {
                Err(OpenError::Lost(Losses(lost))) => {
                    assert!(lost.iter().any(|lost| lost.path == *path), "{path:?} {left:?}: {lost:?}");
                    assert_eq!(disk.files(), before, "{path:?} {left:?}: something was changed");
                    refused += 1;
                }
                // A spent journal file: all that was in it is in segments.
                Ok(steps) => {
                    assert_eq!(readable(&steps), all, "{path:?} {left:?}");
                    assert!(journals.contains(path), "{path:?} {left:?}");
                    spared.push(path.clone());
                }
                Err(other) => panic!("{path:?} {left:?}: {other}"),
            }
            // Without being asked to refuse it serves what is left, and claims no absence.
            let steps = open(&disk, false).unwrap();
            readable(&steps);
            if segments.contains(path) {
                assert_eq!(steps.health(), Health::Serving, "repair heals it in place");
            }
        }
    }
    spared.dedup();
    assert!(spared.len() < journals.len(), "no journal file was missed");
    let mut by_age = journals.clone();
    by_age.sort_by_key(|path| generation(&sound, path));
    // One that is ready and not begun, and before it the one that was written last.
    assert!(by_age.iter().rev().take(2).all(|path| !spared.contains(path)), "{spared:?}");
    assert!(refused >= 3 * (segments.len() + 3), "{refused}");
}

#[test]
fn data_without_a_format_file_is_never_formatted_over() {
    let disk = killed();
    for path in ["/d/FORMAT", "/d/manifest.redb"] {
        remove(&disk, Path::new(path));
        for refuse in [true, false] {
            assert!(matches!(open(&disk, refuse), Err(OpenError::Format)), "without {path}");
        }
    }
    assert!(!names(&disk, "seg").is_empty(), "segments were removed");
}
