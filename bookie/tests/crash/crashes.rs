//! Every crash worth trying at every point of a recorded run, and life after it.

use crate::check::{Excuse, Expected, check, open};
use crate::workload::Run;
use crate::{PER_POINT, Recorded, Report};
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::rng::Rng;

/// Tries crashes at every point of a recorded run.
pub(crate) fn crashes(run: &Recorded, seed: u64, target: u64, report: &mut Report) {
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
    match dice % 8 {
        0 => go_on(disk, run, expected, dice),
        1..=3 => go_on_briefly(disk, run, expected),
        _ => Vec::new(),
    }
}

/// One more add and a power cut: what recovery has answered of each id, that it is there or that it is not, stands. Batches that a
/// recovery has given up would come back here, behind the one that took their place.
fn go_on_briefly(disk: &SimDisk, run: &Recorded, expected: &Expected) -> Vec<String> {
    let mut more = Run::new(disk.clone(), run.config.clone(), 0);
    let before = expected.found(&more.steps);
    more.add(100, &[0]);
    more.steps.write_all();
    drop(more.steps);
    let survivor = disk.crash(&Crash::Lost);
    let steps = match open(&survivor, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open after going on: {error}")],
    };
    let after = expected.found(&steps);
    let changed = before.iter().zip(after).filter(|((_, was), (_, is))| was != is);
    changed.map(|((id, was), _)| format!("entry {id:?}: present {was} after a crash, later not so")).collect()
}

/// A hundred more adds, a flush or two, a power cut; nothing old or new may be gone.
pub(crate) fn go_on(disk: &SimDisk, run: &Recorded, expected: &Expected, seed: u64) -> Vec<String> {
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
