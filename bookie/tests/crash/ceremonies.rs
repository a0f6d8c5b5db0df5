//! What happens to a store once: formatting, the step from the first format, a start on a full disk, promotion. Power may fail in
//! the middle of each of them too.

use crate::check::{Excuse, Expected, check, contents, open};
use crate::crashes::go_on;
use crate::damage::lose;
use crate::sites::{look_anew, on};
use crate::workload::{Run, clock};
use crate::{Fault, Recorded, Report, record};
use geminga_bookie::{Accepted, Health, OpenError, Whose, accept_loss, promote, whose};
use geminga_bookie_client::rpc::{Read, ReadAnswer, ReadClass};
use geminga_common::checksum::crc32c;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::disk::{Disk as _, OpenMode};
use geminga_common::ids::{EntryId, Incarnation, LedgerId};
use geminga_common::rng::Rng;
use std::path::Path;

/// Crashes tried at one point, at most.
const PER_POINT: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ceremony {
    Format,
    FromFirstFormat,
    StartOnFullDisk,
    /// A flush that writes its segment in several pieces.
    LargeFlush,
    /// Without this part; see [`lose`].
    Promotion(u64),
    /// Without this part, of which there is no other copy.
    Acceptance(u64),
    /// With a flipped bit in a segment, of which there is no other copy.
    AcceptanceOfDamage(u64),
}

/// Tries all ceremonies on the stores that a seed makes.
pub(crate) fn ceremonies(config: &geminga_bookie::Config, seed: u64, report: &mut Report) {
    let run = record(config, seed, Fault::None);
    let first = (config.shards == 1).then_some(Ceremony::FromFirstFormat);
    let all = [Ceremony::Format, Ceremony::StartOnFullDisk].into_iter().chain(first);
    let promotions = (0..5).map(Ceremony::Promotion);
    let acceptances = (0..6).map(Ceremony::Acceptance).chain((0..4).map(Ceremony::AcceptanceOfDamage));
    for ceremony in all.chain(promotions).chain(acceptances) {
        enumerate(ceremony, &run, seed, report);
        if !report.violations.is_empty() {
            return;
        }
    }
}

/// A flush of more than is written at once.
pub(crate) fn large_flush(report: &mut Report) {
    let mut config = crate::config();
    config.write_cache = 16 << 20;
    config.journal_file_size_first = 4 << 20;
    let start = SimDisk::new();
    let mut run = Run::new(start.fork(), config.clone(), 1);
    for ids in (0..5600).collect::<Vec<u64>>().chunks(100) {
        run.add(1, ids);
        run.steps.write_all();
    }
    run.settle();
    let story = run.story.lock().unwrap().clone();
    assert!(story.iter().all(|asked| asked.acked.is_some()), "all of it fits");
    let (end, done) = (run.disk.clone(), run.done());
    drop(run);
    enumerate(Ceremony::LargeFlush, &Recorded { start, end, story, config, done }, 1, report);
}

fn enumerate(ceremony: Ceremony, run: &Recorded, seed: u64, report: &mut Report) {
    let start = before(ceremony, run);
    let disk = start.fork();
    if ceremony == Ceremony::StartOnFullDisk {
        disk.capacity(Some(disk.used()));
    }
    disk.record();
    look_anew();
    let good = match ceremony {
        Ceremony::Promotion(_) => promote(run.config.clone(), on(&disk), clock()).map(drop),
        Ceremony::Acceptance(_) => accept(&disk, run).map(drop),
        Ceremony::AcceptanceOfDamage(_) => match accept(&disk, run) {
            // Only deleted ledgers lay there.
            Err(OpenError::NotLost) => return,
            other => other.map(drop),
        },
        Ceremony::LargeFlush => open(&disk, &run.config).map(|mut steps| assert!(steps.flush())),
        _ => open(&disk, &run.config).map(drop),
    };
    if let Err(error) = good {
        return report.add(&format!("seed {seed} {ceremony:?}"), vec![format!("does not work: {error}")]);
    }
    let mut history = disk.history(&start);
    let mut rng = Rng::seeded(seed);
    loop {
        let mut all = history.crashes(2, seed);
        while all.len() > PER_POINT {
            all.swap_remove(2 + rng.below(all.len() as u64 - 2) as usize);
        }
        for crash in all {
            let place = format!("seed {seed} {ceremony:?} change {} {crash:?}", history.position());
            let found = after(ceremony, &history.disk(&crash), run, rng.next_u64());
            *report.kinds.entry("ceremony").or_default() += 1;
            report.add(&place, found);
            if !report.violations.is_empty() {
                return;
            }
        }
        if !history.step() {
            return;
        }
    }
}

/// The disk that a ceremony begins on.
fn before(ceremony: Ceremony, run: &Recorded) -> SimDisk {
    let calm = run.end.crash(&Crash::Kept);
    match ceremony {
        Ceremony::Format => SimDisk::new(),
        Ceremony::StartOnFullDisk | Ceremony::LargeFlush => calm,
        Ceremony::FromFirstFormat => first_format(&calm),
        Ceremony::Promotion(what) | Ceremony::Acceptance(what) => {
            lose(&calm, what);
            calm
        }
        Ceremony::AcceptanceOfDamage(what) => {
            let segments =
                calm.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg"));
            // A block at the beginning, one in the middle, and the footer.
            if let Some((path, len)) = segments.max_by_key(|(_, len)| *len) {
                calm.flip(&path, [70, len / 3, len / 2, len - 30][what as usize % 4], 3);
            }
            calm
        }
    }
}

/// Opens after a crash in a ceremony: it is as if it had not begun, or had ended, or it is gone through again.
fn after(ceremony: Ceremony, disk: &SimDisk, run: &Recorded, dice: u64) -> Vec<String> {
    if let Ceremony::Acceptance(_) | Ceremony::AcceptanceOfDamage(_) = ceremony {
        return after_acceptance(ceremony, disk, run, dice);
    }
    let expected = match ceremony {
        Ceremony::Format => Expected::default(),
        Ceremony::Promotion(_) => Expected::issued(&run.story),
        _ => Expected::at(&run.story, usize::MAX),
    };
    let mut steps = match open(disk, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open: {error}")],
    };
    let mut found = match ceremony {
        Ceremony::Promotion(_) => contents(&mut steps, &run.story),
        _ => check(&mut steps, &expected, Excuse::Crash),
    };
    let lost = steps.health() == Health::DataLoss;
    drop(steps);
    if lost && let Err(error) = promote(run.config.clone(), on(disk), clock()) {
        found.push(format!("is not promoted: {error}"));
    }
    if let Ceremony::Promotion(_) = ceremony {
        found.extend(denied(disk, run));
    }
    if found.is_empty() && dice.is_multiple_of(4) { go_on(disk, run, &expected, dice) } else { found }
}

fn incarnation(disk: &SimDisk, run: &Recorded) -> Option<Incarnation> {
    match whose(&run.config, disk) {
        Ok(Whose::Store { incarnation, .. }) => Some(incarnation),
        _ => None,
    }
}

fn accept(disk: &SimDisk, run: &Recorded) -> Result<Accepted, OpenError> {
    // As a standalone, whose metadata know which store it was.
    let known = incarnation(&run.end.crash(&Crash::Kept), run);
    accept_loss(run.config.clone(), on(disk), clock(), known.as_slice(), None)
}

/// A store with the only copy is lost or accepted, nothing between: it is refused until the acceptance has ended, and then serves as one
/// that it never was, and knows of everything that is not there that it may have been. One that is damaged serves before as well.
fn after_acceptance(ceremony: Ceremony, disk: &SimDisk, run: &Recorded, dice: u64) -> Vec<String> {
    let mut alone = run.config.clone();
    alone.refuse_losses = true;
    let damaged = matches!(ceremony, Ceremony::AcceptanceOfDamage(_));
    let was = incarnation(&run.end.crash(&Crash::Kept), run);
    let opened = match open(disk, &alone) {
        Ok(steps) if damaged && Some(steps.incarnation()) == was => {
            drop(steps);
            match accept(disk, run) {
                Ok(_) => open(disk, &alone),
                Err(error) => return vec![format!("its damage cannot be accepted: {error}")],
            }
        }
        Err(OpenError::Lost(_)) => match accept(disk, run) {
            Ok(_) => open(disk, &alone),
            Err(error) => return vec![format!("its loss cannot be accepted: {error}")],
        },
        other => other,
    };
    let mut steps = match opened {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open: {error}")],
    };
    let mut found = contents(&mut steps, &run.story);
    if steps.health() != Health::Serving {
        found.push(format!("it is {:?}", steps.health()));
    }
    let Some(was) = was else { return vec!["no identity".into()] };
    if steps.incarnation() == was {
        found.push("it answers under the incarnation that lost something".to_owned());
    }
    for (ledger, id) in Expected::at(&run.story, usize::MAX).lost(&steps) {
        if steps.may_lack(was, LedgerId(ledger)) != Some(true) {
            found.push(format!("{ledger}:{id} was acknowledged, is gone, and is not known to be lost"));
        }
    }
    drop(steps);
    found.extend(denied(disk, run));
    let expected = Expected::issued(&run.story);
    if found.is_empty() && dice.is_multiple_of(4) { go_on(disk, run, &expected, dice) } else { found }
}

/// What a promoted store lists and yet denies to readers: repair counts it as a holder of what it lists.
fn denied(disk: &SimDisk, run: &Recorded) -> Vec<String> {
    let steps = match open(disk, &run.config) {
        Ok(steps) => steps,
        Err(error) => return vec![format!("does not open once it is promoted: {error}")],
    };
    let mut found = Vec::new();
    for ledger in (0..40).map(LedgerId) {
        let listed = steps.stat(ledger).map(|stat| stat.present).unwrap_or_default();
        for id in listed.iter().flat_map(|run| (run.first.0..=run.last.0).map(EntryId)) {
            let read = Read { ledger, first: id, last: id, bytes_max: 1 << 20, class: ReadClass::Tail };
            if let ReadAnswer::NotFound(_) = steps.read(read) {
                found.push(format!("lists {ledger}:{id} and says that it does not exist"));
            }
        }
    }
    found
}

/// The same store as the first format has it: `FORMAT` without directories, `IDENTITY` without a shard.
fn first_format(disk: &SimDisk) -> SimDisk {
    let sealed = |mut bytes: Vec<u8>| {
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    };
    let replace = |path: &Path, bytes: &[u8]| {
        disk.remove(path).unwrap();
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(path.parent().unwrap()).unwrap();
    };
    for (path, _) in disk.files() {
        let bytes = disk.bytes(&path).unwrap();
        if path.ends_with("FORMAT") {
            let mut old = bytes[..bytes.len() - 10].to_vec();
            old[8..12].copy_from_slice(&1_u32.to_le_bytes());
            replace(&path, &sealed(old));
        } else if path.ends_with("IDENTITY") {
            let mut old = bytes[..33].to_vec();
            old[7] = b'1';
            old[32] &= 1;
            replace(&path, &sealed(old));
        }
    }
    disk.crash(&Crash::Kept)
}
