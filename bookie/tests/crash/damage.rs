//! Damage to what was durable: flipped bits and lost files. It may cost answers, never right ones.

use crate::check::{Excuse, Expected, check, contents, open};
use crate::crashes::go_on;
use crate::sites::on;
use crate::workload::clock;
use crate::{Fault, Recorded, Report, record};
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, Health, promote};
use geminga_common::disk::Disk as _;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use std::path::PathBuf;

/// Bytes at the end of a segment that are surely its footer: the trailer, one run, one block.
const FOOTER: u64 = 88;

/// Damage to bytes that were durable, after the run has come to rest.
pub(crate) fn damage(run: &Recorded, seed: u64, count: u64, report: &mut Report) {
    let expected = Expected::at(&run.story, usize::MAX);
    let calm = run.end.crash(&Crash::Kept);
    let mut rng = Rng::seeded(seed);
    let files: Vec<_> = calm
        .files()
        .into_iter()
        .filter(|(path, len)| *len > 0 && path.extension().is_some_and(|e| e == "jnl" || e == "seg"))
        .collect();
    for n in 0..count {
        let disk = calm.fork();
        let place = if n % 8 == 7 {
            let what = lose(&disk, rng.below(5));
            format!("seed {seed} without {what}")
        } else {
            let (path, len) = &files[rng.below(files.len() as u64) as usize];
            // A footer is small, and what is concluded from one that does not check is worth a look: half of the flips in segments.
            let back = if path.extension().is_some_and(|e| e == "seg") && n % 2 == 1 { FOOTER } else { *len };
            let (byte, bit) = (len - 1 - rng.below(back.min(*len)), rng.below(8) as u8);
            disk.flip(path, byte, bit);
            format!("seed {seed} flip {}:{byte}.{bit}", path.display())
        };
        *report.kinds.entry("damage").or_default() += 1;
        let found = match open(&disk, &run.config) {
            Ok(mut steps) => {
                let mut found = check(&mut steps, &expected, Excuse::Damage);
                if found.is_empty() {
                    found = keep_house(steps, &disk, run, &expected, n);
                }
                found
            }
            Err(error) => vec![format!("does not open: {error}")],
        };
        report.add(&place, found);
        if !report.violations.is_empty() {
            return;
        }
    }
}

/// Loses a file, or a whole journal, of the first shard.
pub(crate) fn lose(disk: &SimDisk, what: u64) -> &'static str {
    let journal = |path: &std::path::Path| path.extension().is_some_and(|e| e == "jnl");
    let named = |path: &std::path::Path, name: &str| path.file_name().is_some_and(|file| file == name);
    let all: Vec<_> = disk.files().into_iter().map(|(path, _)| path).collect();
    let with_journal =
        |path: &std::path::Path| all.iter().any(|other| other.parent() == path.parent() && journal(other));
    let shard = |path: &std::path::Path| {
        !path.ends_with("shard-1/journal") && !path.to_string_lossy().contains("shard-1")
    };
    let mut gone = Vec::new();
    let name = match what {
        0 => "the identity beside the data",
        1 => "the identity beside the journal",
        2 => "the manifest",
        3 => "all journal files",
        5 => "a segment",
        _ => "the whole journal directory",
    };
    for path in all.iter().filter(|path| shard(path)) {
        let identity = named(path, "IDENTITY");
        let take = match what {
            0 => identity && !with_journal(path),
            1 => identity && with_journal(path),
            2 => named(path, "manifest.redb"),
            3 => journal(path),
            5 => path.extension().is_some_and(|e| e == "seg") && gone.is_empty(),
            _ => journal(path) || (identity && with_journal(path)),
        };
        if take {
            gone.push(path.clone());
        }
    }
    assert!(!gone.is_empty(), "there is {name}");
    for path in gone {
        disk.remove(&path).expect("it is there");
        disk.sync_dir(path.parent().expect("it has one")).expect("sync");
    }
    name
}

/// On a damaged store: scrub, deletion, collection and merges must not make it worse, and a promotion must make it serve again.
fn keep_house(mut steps: Steps, disk: &SimDisk, run: &Recorded, expected: &Expected, n: u64) -> Vec<String> {
    let (health, incarnation) = (steps.health(), steps.incarnation());
    let mut expected = expected.clone();
    if n.is_multiple_of(2) {
        steps.scrub(u64::MAX);
    } else {
        expected.delete_all_but(&mut steps, 2);
        steps.write_all();
    }
    for _ in 0..3 {
        steps.prepare();
        steps.flush();
        steps.merge();
    }
    let mut found = check(&mut steps, &expected, Excuse::Damage);
    drop(steps);
    if found.is_empty() && health == Health::DataLoss {
        found = promoted(disk, run, incarnation);
    }
    found.into_iter().map(|text| format!("after keeping house: {text}")).collect()
}

/// A new incarnation serves, and what is read of it is right.
pub(crate) fn promoted(disk: &SimDisk, run: &Recorded, before: Incarnation) -> Vec<String> {
    let after = match promote(run.config.clone(), on(disk), clock()) {
        Ok(after) => after,
        Err(error) => return vec![format!("is not promoted: {error}")],
    };
    let mut steps = match open(disk, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open after a promotion: {error}")],
    };
    let mut found = Vec::new();
    if (steps.incarnation(), steps.health()) != (after, Health::Serving) || after == before {
        found.push(format!(
            "promoted from {before} to {after}: {:?} as {}",
            steps.health(),
            steps.incarnation()
        ));
    }
    found.extend(contents(&mut steps, &run.story));
    drop(steps);
    if found.is_empty() { go_on(disk, run, &Expected::issued(&run.story), 1) } else { found }
}

/// With the manifest lost and a footer that does not check, a promotion rebuilds what it can, and what it cannot tell stays on the disk:
/// that nothing lists a file is no reason to remove it.
pub(crate) fn unlisted_files_stay(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for seed in 1..=10 {
        let run = record(config, seed, Fault::None);
        let disk = run.end.crash(&Crash::Kept);
        let segments = |disk: &SimDisk| -> Vec<_> {
            disk.files()
                .into_iter()
                .filter(|(path, _)| path.extension().is_some_and(|e| e == "seg"))
                .collect()
        };
        let before = segments(&disk);
        let Some((path, len)) = before.first() else { continue };
        disk.flip(path, len - 10, 3);
        lose(&disk, 2);
        found.extend(promoted(&disk, &run, Incarnation(0)));
        if !segments(&disk).contains(&(path.clone(), *len)) {
            found.push(format!("seed {seed}: {} is gone", path.display()));
        }
    }
    found
}

/// A segment whose footer does not check stays, whatever is deleted around it: nobody can say what else it holds.
pub(crate) fn unparsed_segments_stay(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for seed in 1..=10 {
        let run = record(config, seed, Fault::None);
        let calm = run.end.crash(&Crash::Kept);
        let segment = |(path, _): &(PathBuf, u64)| path.extension().is_some_and(|e| e == "seg");
        for (path, len) in calm.files().into_iter().filter(segment) {
            let disk = calm.fork();
            disk.flip(&path, len - 10, 3);
            let mut steps = open(&disk, &run.config).expect("opens");
            let mut expected = Expected::at(&run.story, usize::MAX);
            expected.delete_all_but(&mut steps, 2);
            steps.write_all();
            steps.flush();
            steps.merge();
            let all = check(&mut steps, &expected, Excuse::Damage);
            found.extend(all.into_iter().map(|text| format!("seed {seed}: {text}")));
            if !disk.files().contains(&(path.clone(), len)) {
                found.push(format!("seed {seed}: {} is gone", path.display()));
            }
        }
    }
    found
}
