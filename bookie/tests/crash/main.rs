//! The crash enumerator: small workloads, and after each change of the disk every crash worth trying.
//!
//! `GEMINGA_CRASH_STATES=n` asks for n states instead of the default; `GEMINGA_CRASH_CHECKPOINT=file` keeps the next seed there, so
//! that a long run goes on where it was stopped.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

mod check;
mod workload;

use check::{Excuse, Expected, check, open};
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, Figures, Health, promote};
use geminga_common::disk::Disk;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use workload::{Asked, Run, What, clock, config, sharded};

const STEPS: u64 = 45;
/// Bytes at the end of a segment that are surely its footer: the trailer, one run, one block.
const FOOTER: u64 = 88;
/// Crashes tried at one point, at most.
const PER_POINT: usize = 10;

/// What an enumeration found.
#[derive(Default, Debug)]
struct Report {
    states: u64,
    /// The first violations, with where they were.
    violations: Vec<String>,
    kinds: BTreeMap<&'static str, u64>,
}

impl Report {
    fn add(&mut self, place: &str, found: Vec<String>) {
        self.states += 1;
        let room = 5_usize.saturating_sub(self.violations.len());
        self.violations.extend(found.into_iter().map(|text| format!("{place}: {text}")).take(room));
    }

    fn done(&self, target: u64) -> bool {
        self.states >= target || !self.violations.is_empty()
    }
}

/// A fault of the run itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    SyncFails(u64),
    /// This many pages are free at the start.
    Full(u64),
    Lies,
}

struct Recorded {
    start: SimDisk,
    end: SimDisk,
    story: Vec<Asked>,
    config: Config,
    /// What was done in the run.
    done: Figures,
}

/// The same, mutants and all, in two shards.
fn sharded_like(one: &Config) -> Config {
    #[allow(unused_mut)] // only mutants differ
    let mut config = sharded();
    #[cfg(feature = "museum")]
    {
        config.mutant = one.mutant;
    }
    #[cfg(not(feature = "museum"))]
    let _same = one;
    config
}

fn record(config: &Config, seed: u64, fault: Fault) -> Recorded {
    let disk = SimDisk::new();
    drop(open(&disk, config).expect("formats"));
    let start = disk.fork();
    let disk = start.fork();
    disk.record();
    let mut run = Run::new(disk.clone(), config.clone(), seed);
    match fault {
        Fault::None => {}
        Fault::SyncFails(n) => disk.fail_sync_in(n),
        Fault::Full(pages) => disk.capacity(Some(disk.used() + pages * 4096)),
        Fault::Lies => disk.lie(true),
    }
    for _ in 0..STEPS {
        run.step(fault == Fault::None);
    }
    run.settle();
    let story = run.story.lock().unwrap().clone();
    Recorded { start, end: disk, story, config: config.clone(), done: run.done() }
}

/// Tries crashes at every point of a recorded run.
fn crashes(run: &Recorded, seed: u64, target: u64, report: &mut Report) {
    let mut history = run.end.history(&run.start);
    let mut rng = Rng::seeded(seed);
    loop {
        let expected = Expected::at(&run.story, history.position());
        let mut all = history.crashes(4, seed);
        while all.len() > PER_POINT {
            // The plain ones stay, of the rest a sample.
            all.swap_remove(2 + rng.below(all.len() as u64 - 2) as usize);
        }
        for crash in all {
            let place = format!("seed {seed} change {} {crash:?}", history.position());
            let disk = history.disk(&crash);
            *report.kinds.entry(kind(&crash)).or_default() += 1;
            let found = recover(&disk, run, &expected, rng.next_u64());
            report.add(&place, found);
            if report.done(target) {
                return;
            }
        }
        if !history.step() {
            return;
        }
    }
}

fn kind(crash: &Crash) -> &'static str {
    match crash {
        Crash::Lost => "lost",
        Crash::Kept => "kept",
        Crash::AllBut(_) => "all but one",
        Crash::Only(_) => "only one",
        Crash::TornAfter(_) | Crash::TornBefore(_) => "torn",
        Crash::Random(_) => "random",
    }
}

/// Opens after a crash and checks; now and then crashes again during the recovery, and goes on working after it.
fn recover(disk: &SimDisk, run: &Recorded, expected: &Expected, dice: u64) -> Vec<String> {
    let before = disk.fork();
    let again = dice.is_multiple_of(4);
    if again {
        disk.record();
    }
    let mut steps = match open(disk, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open: {error}")],
    };
    let mut found = check(&mut steps, expected, Excuse::Crash);
    if found.is_empty() && dice.is_multiple_of(3) {
        // Keeping house changes nothing of what is answered.
        let good = steps.flush() && steps.merge() && steps.scrub(u64::MAX) && steps.collect();
        found = check(&mut steps, expected, Excuse::Crash);
        let bad = steps.figures().bad_blocks + steps.figures().bad_footers;
        if !good || bad > 0 {
            found.push(format!("keeping house after a crash: good {good}, bad blocks and footers {bad}"));
        }
        found.iter_mut().for_each(|text| text.insert_str(0, "after keeping house: "));
    }
    drop(steps);
    if !found.is_empty() {
        return found;
    }
    if again {
        let mut history = disk.history(&before);
        let mut rng = Rng::seeded(dice);
        let stop = rng.below(disk.position() as u64 + 1) as usize;
        while history.position() < stop && history.step() {}
        let all = history.crashes(3, dice);
        let second = history.disk(&all[rng.below(all.len() as u64) as usize]);
        let mut steps = match open(&second, &run.config) {
            Ok(steps) => steps,
            Err(error) => return vec![format!("does not open after a second crash: {error}")],
        };
        let found = check(&mut steps, expected, Excuse::Crash);
        if !found.is_empty() {
            return found.into_iter().map(|text| format!("after a second crash: {text}")).collect();
        }
    }
    if dice.is_multiple_of(8) { go_on(disk, run, expected, dice) } else { Vec::new() }
}

/// A hundred more adds, a flush or two, a power cut; nothing old or new may be gone.
fn go_on(disk: &SimDisk, run: &Recorded, expected: &Expected, seed: u64) -> Vec<String> {
    let mut more = Run::new(disk.clone(), run.config.clone(), seed);
    for id in 0..100 {
        more.add(100, &[id]);
        if id % 3 == 0 {
            more.steps.write_all();
        }
        if id % 40 == 39 {
            more.steps.prepare();
            more.steps.flush();
        }
    }
    more.settle();
    let acked = more.story.lock().unwrap().iter().filter(|a| a.acked.is_some()).count();
    drop(more.steps);
    let survivor = disk.crash(&Crash::Lost);
    let mut steps = match open(&survivor, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open after going on: {error}")],
    };
    let mut found = check(&mut steps, expected, Excuse::Crash);
    let stat = steps.stat(geminga_common::ids::LedgerId(100)).expect("a ledger that was added to");
    let held: u64 = stat.present.iter().map(|run| run.last.0 - run.first.0 + 1).sum();
    if acked < 60 || held < acked as u64 {
        found.push(format!("of {acked} more acknowledged entries {held} are there"));
    }
    found
}

/// Damage to bytes that were durable, after the run has come to rest.
fn damage(run: &Recorded, seed: u64, count: u64, report: &mut Report) {
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
fn lose(disk: &SimDisk, what: u64) -> &'static str {
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
        _ => "the whole journal directory",
    };
    for path in all.iter().filter(|path| shard(path)) {
        let identity = named(path, "IDENTITY");
        let take = match what {
            0 => identity && !with_journal(path),
            1 => identity && with_journal(path),
            2 => named(path, "manifest.redb"),
            3 => journal(path),
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
fn promoted(disk: &SimDisk, run: &Recorded, before: Incarnation) -> Vec<String> {
    let after = match promote(run.config.clone(), Arc::new(disk.clone()), clock()) {
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
    found.extend(check::contents(&mut steps, &run.story));
    drop(steps);
    if found.is_empty() { go_on(disk, run, &Expected::issued(&run.story), 1) } else { found }
}

fn enumerate(config: &Config, target: u64, mut seed: u64, fault: Option<Fault>) -> (Report, u64) {
    let mut report = Report::default();
    while !report.done(target) {
        let fault = fault.unwrap_or(match seed % 5 {
            4 => Fault::SyncFails(seed / 5 * 7 % 37),
            3 => Fault::Full(seed / 5 * 7 % 80),
            _ => Fault::None,
        });
        let config = if seed % 3 == 2 { sharded_like(config) } else { config.clone() };
        let run = record(&config, seed, fault);
        crashes(&run, seed, target, &mut report);
        if fault == Fault::None && report.violations.is_empty() {
            damage(&run, seed, 48, &mut report);
        }
        seed += 1;
    }
    (report, seed)
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    let target = std::env::var("GEMINGA_CRASH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let checkpoint = std::env::var("GEMINGA_CRASH_CHECKPOINT").ok();
    let seed = checkpoint.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    let (mut states, mut seed) = (0, seed.unwrap_or(1));
    let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
    while states < target {
        let (report, next) = enumerate(&config(), (target - states).min(20_000), seed, None);
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
        (states, seed) = (states + report.states, next);
        report.kinds.iter().for_each(|(kind, n)| *kinds.entry(kind).or_default() += n);
        if let Some(file) = &checkpoint {
            let disk = geminga_common::disk::RealDisk;
            write_checkpoint(&disk, std::path::Path::new(file), seed);
        }
    }
    println!("crash states {states}, violations 0, next seed {seed}, kinds {kinds:?}");
}

fn write_checkpoint(disk: &dyn Disk, path: &std::path::Path, seed: u64) {
    let new = path.with_extension("new");
    let _absent = disk.remove(&new);
    let file = disk.open(&new, geminga_common::disk::OpenMode::CreateNew).unwrap();
    file.write_all_at(seed.to_string().as_bytes(), 0).unwrap();
    file.sync_data().unwrap();
    disk.rename(&new, path).unwrap();
}

/// With the manifest lost and a footer that does not check, a promotion rebuilds what it can, and what it cannot tell stays on the disk:
/// that nothing lists a file is no reason to remove it.
fn unlisted_files_stay(config: &Config) -> Vec<String> {
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
fn unparsed_segments_stay(config: &Config) -> Vec<String> {
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

#[test]
fn segments_that_do_not_parse_stay() {
    assert_eq!(unparsed_segments_stay(&config()), Vec::<String>::new());
}

#[test]
fn files_that_nothing_lists_stay() {
    assert_eq!(unlisted_files_stay(&config()), Vec::<String>::new());
}

/// A suite that never reaches the rare paths proves nothing about them.
#[test]
fn workloads_reach_every_path() {
    let (mut rolled, mut recycled, mut flushed, mut deleted) = (0, 0, 0, 0);
    let (mut done, mut full) = (Figures::default(), 0);
    for seed in 1..=40 {
        let run = record(&config(), seed, Fault::None);
        let files = run.end.files();
        let of = |ext: &str| files.iter().filter(|(p, _)| p.extension().is_some_and(|e| e == ext)).count();
        let number = |path: &std::path::Path| {
            path.file_stem().and_then(|s| u64::from_str_radix(s.to_str()?, 16).ok()).unwrap_or(0)
        };
        rolled += usize::from(of("jnl") > 1);
        flushed += usize::from(of("seg") > 0);
        done = [done, run.done].into_iter().sum();
        let crowded = record(&config(), seed, Fault::Full(seed * 2));
        let unanswered = |run: &Recorded| run.story.iter().filter(|a| a.acked.is_none()).count();
        full += usize::from(unanswered(&crowded) > unanswered(&run));
        deleted += usize::from(run.story.iter().any(|a| matches!(a.what, What::Delete(_))));
        recycled += usize::from(files.iter().any(|(path, _)| {
            let header = || run.end.bytes(path).ok()?.get(24..32)?.try_into().ok().map(u64::from_le_bytes);
            path.extension().is_some_and(|e| e == "jnl") && header() != Some(number(path))
        }));
    }
    println!(
        "of 40 runs: {rolled} rolled, {recycled} recycled, {flushed} flushed, {deleted} deleted, {full} met a full disk; in all {done:?}"
    );
    let kept = [done.removed_segments, done.merged_segments, done.punched_bytes, done.scrubbed_bytes];
    for count in [rolled, recycled, flushed, deleted, full].into_iter().chain(kept.map(|n| n as usize)) {
        assert!(count > 0, "a path was never taken");
    }
}

#[test]
fn a_lying_sync_is_caught() {
    let (report, _) = enumerate(&config(), 20_000, 1, Some(Fault::Lies));
    assert!(!report.violations.is_empty(), "a disk that lies must show");
    println!("lying sync caught after {} states: {}", report.states, report.violations[0]);
}

#[cfg(feature = "museum")]
mod museum {
    use super::*;
    use geminga_bookie::mutant::Mutant;

    fn caught(mutant: Mutant) {
        let mut config = config();
        config.mutant = Some(mutant);
        let (report, seed) = enumerate(&config, 100_000, 1, None);
        assert!(!report.violations.is_empty(), "{mutant:?} was not caught in {} states", report.states);
        println!("{mutant:?} caught after {} states, seed {seed}: {}", report.states, report.violations[0]);
    }

    #[test]
    fn unparsed_segment_collected() {
        let mut config = config();
        config.mutant = Some(Mutant::UnparsedCollected);
        assert!(!unparsed_segments_stay(&config).is_empty());
    }

    #[test]
    fn unlisted_segments_removed() {
        let mut config = config();
        config.mutant = Some(Mutant::UnlistedRemoved);
        assert!(!unlisted_files_stay(&config).is_empty());
    }

    macro_rules! caught {
        ($($test:ident: $mutant:ident)*) => {
            $(#[test]
            fn $test() {
                caught(Mutant::$mutant);
            })*
        };
    }

    caught! {
        amnesiac_answers_not_found: AmnesiacNotFound
        unreadable_segment_is_not_found: UnreadableNotFound
        fence_lost_on_restart: FenceLost
        bad_record_skipped: BadRecordSkipped
        failed_sync_retried: SyncRetried
        checksum_failure_truncates: ChecksumTruncates
        duplicate_acked_early: DuplicateAckedEarly
        replayed_file_appended: ReplayedFileAppended
        merge_skips_what_it_cannot_read: MergeSkipsBad
        tombstone_forgotten_early: TombstoneForgotten
        mark_shared_between_shards: MarkShared
        missing_identity_taken_back: IdentityMissingOk
        lost_journal_unnoticed: JournalLossUnnoticed
        incarnation_kept_after_loss: IncarnationKept
    }
}
