//! What must hold after a crash: acked ⊆ recovered ⊆ issued, byte for byte; fences, seals and deletions kept; absence claimed only
//! where it is true.

use crate::sites::on;
use crate::workload::{Asked, What, clock, entry};
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, Health, OpenError};
use geminga_bookie_client::rpc::{Add, AddError, ControlError, Read, ReadAnswer, ReadClass};
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What is expected of the store after a crash at one point.
#[derive(Clone, Default, Debug)]
pub(crate) struct Expected {
    /// Id → whether it was acknowledged.
    adds: BTreeMap<(u64, u64), bool>,
    fences: BTreeMap<u64, u64>,
    seals: BTreeMap<u64, (Option<u64>, bool)>,
    deletes: BTreeMap<u64, bool>,
    /// The highest watermark asked for, and the highest that was acknowledged.
    watermark: (u64, u64),
    /// A store that was promoted may have lost its manifest, and with it what was deleted: of such a ledger the footers still tell, and
    /// the blocks may be holes by now.
    promoted: bool,
}

impl Expected {
    /// Deletes ledgers of a store, whatever comes of it.
    pub(crate) fn delete_all_but(&mut self, steps: &mut Steps, spared: u64) {
        for ledger in (1..=4).filter(|ledger| *ledger != spared) {
            steps.delete(LedgerId(ledger), Box::new(drop));
            self.deletes.entry(ledger).or_default();
        }
    }

    pub(crate) fn at(story: &[Asked], position: usize) -> Self {
        let mut out = Self::default();
        for asked in story.iter().filter(|a| a.issued <= position) {
            let acked = asked.acked.is_some_and(|at| at <= position);
            match asked.what {
                What::Add(ledger, id) => *out.adds.entry((ledger, id)).or_default() |= acked,
                What::Fence(ledger, term) if acked => {
                    let known = out.fences.entry(ledger).or_default();
                    *known = term.max(*known);
                }
                What::Fence(..) => {}
                What::Seal(ledger, last) => match out.seals.get_mut(&ledger) {
                    Some(seal) if seal.0 == last => seal.1 |= acked,
                    // A seal at another end is refused, unless the first never arrived.
                    Some(_) => {}
                    None => drop(out.seals.insert(ledger, (last, acked))),
                },
                What::Watermark(to) => {
                    out.watermark.0 = out.watermark.0.max(to);
                    if acked {
                        out.watermark.1 = out.watermark.1.max(to);
                    }
                }
                What::Delete(ledger) => *out.deletes.entry(ledger).or_default() |= acked,
            }
        }
        out
    }

    /// Of a promoted store: nothing need be there, but what is there was asked for.
    pub(crate) fn issued(story: &[Asked]) -> Self {
        let unanswered: Vec<Asked> =
            story.iter().map(|asked| Asked { acked: None, ..asked.clone() }).collect();
        Self { promoted: true, ..Self::at(&unanswered, usize::MAX) }
    }

    /// Of each id that was asked for, whether it is there.
    pub(crate) fn found(&self, steps: &Steps) -> Vec<((u64, u64), bool)> {
        let found = |(ledger, id)| matches!(read(steps, ledger, id), ReadAnswer::Found(_));
        self.adds.keys().map(|id| (*id, found(*id))).collect()
    }

    /// What was acknowledged and is not there, and should be.
    pub(crate) fn lost(&self, steps: &Steps) -> Vec<(u64, u64)> {
        let acked = self.adds.iter().filter(|(_, acked)| **acked).map(|(id, _)| *id);
        let kept = acked.filter(|(ledger, id)| !self.may_be_gone(*ledger, *id));
        kept.filter(|(ledger, id)| !matches!(read(steps, *ledger, *id), ReadAnswer::Found(_))).collect()
    }

    /// Whether a ledger that was deleted may show again, with holes.
    fn may_have_holes(&self, ledger: u64) -> bool {
        self.promoted && self.deletes.contains_key(&ledger)
    }

    /// Whether an entry may be gone for a good reason.
    fn may_be_gone(&self, ledger: u64, id: u64) -> bool {
        let sealed = self.seals.get(&ledger).is_some_and(|(last, _)| last.is_none_or(|last| id > last));
        sealed || self.deletes.contains_key(&ledger)
    }
}

/// How much damage was done: a crash alone excuses nothing, bad bytes excuse `Unknown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Excuse {
    Crash,
    Damage,
}

pub(crate) fn open(disk: &SimDisk, config: &Config) -> Result<Steps, OpenError> {
    Steps::open(config.clone(), on(disk), clock())
}

fn read(steps: &Steps, ledger: u64, id: u64) -> ReadAnswer {
    let (first, bytes_max) = (EntryId(id), 1);
    steps.read(Read { ledger: LedgerId(ledger), first, last: first, bytes_max, class: ReadClass::Tail })
}

/// Whatever is found is what was once issued: all that a new incarnation has to keep.
pub(crate) fn contents(steps: &mut Steps, story: &[Asked]) -> Vec<String> {
    let mut bad = Vec::new();
    for asked in story {
        let What::Add(ledger, id) = asked.what else { continue };
        if let ReadAnswer::Found(found) = read(steps, ledger, id)
            && found[..] != [entry(ledger, id)]
        {
            bad.push(format!("entry {ledger}:{id} has other bytes"));
        }
    }
    bad
}

/// The violations of an opened store.
pub(crate) fn check(steps: &mut Steps, expected: &Expected, excuse: Excuse) -> Vec<String> {
    let mut bad = Vec::new();
    if steps.health() != Health::Serving && excuse == Excuse::Crash {
        bad.push(format!("a crash alone made it {:?}", steps.health()));
    }
    for ((ledger, id), acked) in &expected.adds {
        let answer = read(steps, *ledger, *id);
        let good = match &answer {
            ReadAnswer::Found(found) => found[..] == [entry(*ledger, *id)],
            ReadAnswer::NotFound(_) => !acked || expected.may_be_gone(*ledger, *id),
            ReadAnswer::Unknown(_) => excuse == Excuse::Damage || expected.may_have_holes(*ledger),
            // A store does not say so of itself: who counts on a former incarnation is told.
            ReadAnswer::Lost { .. } => false,
        };
        if !good {
            bad.push(format!("entry {ledger}:{id} acked={acked}: {answer:?}"));
        }
    }
    for ledger in 1..=6 {
        let next =
            expected.adds.keys().filter(|(l, _)| *l == ledger).map(|(_, id)| id + 1).max().unwrap_or(0);
        for id in next..next + 3 {
            if let ReadAnswer::Found(_) = read(steps, ledger, id) {
                bad.push(format!("entry {ledger}:{id} was never issued"));
            }
        }
    }
    present(steps, expected, excuse, &mut bad);
    states(steps, expected, excuse, &mut bad);
    bad
}

fn present(steps: &Steps, expected: &Expected, excuse: Excuse, bad: &mut Vec<String>) {
    for ledger in 1..=6 {
        let Ok(tail) = steps.tail(LedgerId(ledger), EntryId(0)) else { continue };
        let within = |runs: &[geminga_bookie_client::rpc::IdRange], id: u64| {
            runs.iter().any(|run| run.first.0 <= id && id <= run.last.0)
        };
        for ((_, id), acked) in expected.adds.iter().filter(|((l, _), _)| *l == ledger) {
            let held = within(&tail.present, *id) || within(&tail.doubtful, *id);
            if *acked && !held && !expected.may_be_gone(ledger, *id) {
                bad.push(format!("tail of ledger {ledger} lacks {id}"));
            }
        }
        for found in &tail.entries {
            if !expected.adds.contains_key(&(ledger, found.id.0)) || *found != entry(ledger, found.id.0) {
                bad.push(format!("tail of ledger {ledger} has a wrong {}", found.id));
            }
        }
        if !tail.doubtful.is_empty() && excuse == Excuse::Crash && !expected.may_have_holes(ledger) {
            bad.push(format!("a crash alone left doubt in ledger {ledger}: {:?}", tail.doubtful));
        }
    }
}

fn states(steps: &mut Steps, expected: &Expected, excuse: Excuse, bad: &mut Vec<String>) {
    let excused = excuse == Excuse::Damage && steps.health() != Health::Serving;
    for (ledger, term) in &expected.fences {
        let answer = stale_add(steps, *ledger, term - 1);
        let refused = match answer {
            Some(Err(AddError::StaleTerm(now))) => now.0 >= *term,
            Some(Err(AddError::Tombstoned)) => {
                expected.deletes.contains_key(ledger) || *ledger <= expected.watermark.0
            }
            Some(Err(AddError::Failed)) => excused,
            _ => false,
        };
        if !refused {
            bad.push(format!("ledger {ledger} was fenced at {term}: {answer:?}"));
        }
    }
    for (ledger, (last, acked)) in expected.seals.iter().filter(|(_, (_, acked))| *acked) {
        let stat = steps.stat(LedgerId(*ledger));
        let sealed = stat.as_ref().is_ok_and(|stat| stat.sealed == Some(last.map(EntryId)));
        let deleted = stat == Err(ControlError::Tombstoned) && expected.deletes.contains_key(ledger);
        // Of a ledger without entries below the watermark nothing need be known.
        let forgotten =
            *ledger <= expected.watermark.0 && stat.as_ref().is_ok_and(|stat| stat.present.is_empty());
        if *acked && !sealed && !deleted && !forgotten && !excused {
            bad.push(format!("ledger {ledger} was sealed at {last:?}: {stat:?}"));
        }
    }
    for (ledger, _) in expected.deletes.iter().filter(|(_, acked)| **acked) {
        let stat = steps.stat(LedgerId(*ledger));
        let forgotten =
            *ledger <= expected.watermark.0 && stat.as_ref().is_ok_and(|stat| stat.present.is_empty());
        if stat != Err(ControlError::Tombstoned) && !forgotten && !excused {
            bad.push(format!("ledger {ledger} was deleted: {stat:?}"));
        }
        dead(steps, *ledger, excused, bad);
    }
    for ledger in 1..=expected.watermark.1 {
        dead(steps, ledger, excused, bad);
    }
}

/// No add of any term brings it back.
fn dead(steps: &mut Steps, ledger: u64, excused: bool, bad: &mut Vec<String>) {
    let answer = stale_add(steps, ledger, 1 << 40);
    let refused = matches!(answer, Some(Err(AddError::Tombstoned)))
        || (excused && answer == Some(Err(AddError::Failed)));
    if !refused {
        bad.push(format!("ledger {ledger} is over: {answer:?}"));
    }
}

/// An add of nothing at a term below the fence.
fn stale_add(steps: &mut Steps, ledger: u64, term: u64) -> Option<Result<(), AddError>> {
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    let (term, entries) = (Term(term), Vec::new());
    let add = Add { ledger: LedgerId(ledger), term, lac: None, lafr: None, attributes: None, entries };
    steps.add(add, Box::new(move |result| *tell.lock().unwrap() = Some(result)));
    told.lock().unwrap().take()
}
