//! A store in memory, looked into: whole, damaged, and left as it was.

use super::*;
use crate::samples;
use crate::steps::Steps;
use geminga_common::clock::ManualClock;
use geminga_common::disk::sim::{Crash, SimDisk};
use std::sync::Arc;

fn store(shards: u16) -> SimDisk {
    let disk = SimDisk::new();
    let mut config = crate::Config::new(BookieId::new("b").unwrap(), "/d".into(), "c");
    config.shards = shards;
    config.ballast = 0;
    let clock = Arc::new(ManualClock::at_wall_ms(0));
    let mut steps = Steps::open(config, Arc::new(disk.clone()), clock).unwrap();
    for id in 0..10 {
        for ledger in [4, 5] {
            samples::add(&mut steps, ledger, vec![samples::entry(ledger, id, "payload")]);
        }
        if id == 6 {
            assert!(steps.flush());
        }
    }
    steps.idle();
    drop(steps);
    disk.crash(&Crash::Kept)
}

fn look(disk: &SimDisk, part: Part) -> (String, Findings) {
    let before = disk.calls();
    let dirs = Dirs { data: "/d".into(), more_data: Vec::new(), journals: Vec::new() };
    let mut out = Vec::new();
    let findings = inspect(disk, &dirs, part, &mut out).unwrap();
    assert_eq!(disk.calls(), before, "nothing is written");
    (String::from_utf8(out).unwrap(), findings)
}

#[test]
fn a_whole_store_shows_its_files_and_no_findings() {
    for shards in [1, 2] {
        let disk = store(shards);
        for part in [Part::Summary, Part::Journal, Part::Segments, Part::Manifest] {
            let (text, findings) = look(&disk, part);
            assert_eq!(findings, Findings::new(), "{text}");
            assert!(text.contains("of cluster c") && text.contains("segments/"), "{text}");
        }
        let (text, _) = look(&disk, Part::Ledger(LedgerId(4)));
        assert!(text.contains("ledger 4: entries 0 to 6"), "{text}");
        assert!(text.contains("add 4:9, 7 B") && !text.contains("add 5:9"), "{text}");
        assert!(text.contains("ledger 4: LedgerRow"), "{text}");
    }
}

#[test]
fn every_flipped_bit_that_counts_is_found() {
    let disk = store(1);
    let files = disk.files();
    let of = |ext: &str| files.iter().find(|(path, _)| path.extension().is_some_and(|e| e == ext)).unwrap();
    let (segment, len) = of("seg");
    for byte in [20, len / 3, len - 40, len - 3] {
        let bad = disk.fork();
        bad.flip(segment, byte, 5);
        assert_eq!(look(&bad, Part::Summary).1.len(), 1, "byte {byte}");
    }
    let (journal, _) = of("jnl");
    for byte in [5, 4096 + 60] {
        let bad = disk.fork();
        bad.flip(journal, byte, 5);
        // The first batch is below the mark: nothing is lost with it.
        let lost = look(&bad, Part::Journal).1.len();
        assert_eq!(lost > 0, byte == 5, "byte {byte}");
    }
    let bad = disk.fork();
    let text = bad.bytes(journal).unwrap();
    let last_add = text.windows(7).rposition(|w| w == b"payload").unwrap() as u64;
    bad.flip(journal, last_add, 1);
    assert!(look(&bad, Part::Summary).1[0].contains("data is lost"));
}

#[test]
fn a_lost_manifest_is_made_up_for_by_the_segments() {
    let disk = store(1);
    geminga_common::disk::Disk::remove(&disk, Path::new("/d/manifest.redb")).unwrap();
    let (text, findings) = look(&disk, Part::Ledger(LedgerId(5)));
    assert!(text.contains("ledger 5: entries 0 to 6"), "{text}");
    assert!(findings.iter().any(|finding| finding.contains("manifest.redb")), "{findings:?}");
    let nothing = SimDisk::new();
    let dirs = Dirs { data: "/x".into(), more_data: Vec::new(), journals: Vec::new() };
    let missing = inspect(&nothing, &dirs, Part::Summary, &mut Vec::new()).unwrap_err();
    assert!(matches!(missing, InspectError::Io(error) if error.kind() == io::ErrorKind::NotFound));
}
