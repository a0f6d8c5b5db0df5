//! Randomized exploration: the real writer, recovery and store machines over a network that delays, reorders and loses, driven by a
//! seed. An omniscient observer checks I1–I6 after every step; a failing seed is printed and replays identically.
//!
//! Adds of one sender to one bookie stay in order (the seam promises it); everything else may overtake.

mod exhaustive;
mod world;

use crate::quorum::QuorumSpec;
use geminga_common::ids::EntryId;
use geminga_common::rng::Rng;
use world::World;

/// (E, Qw, Qa) explored, by turns.
const QUORUMS: [(u32, u32, u32); 7] =
    [(1, 1, 1), (2, 2, 1), (2, 2, 2), (3, 3, 2), (3, 2, 2), (4, 3, 2), (5, 3, 2)];

/// One schedule; the error names the broken invariant.
fn schedule(seed: u64) -> Result<World, String> {
    let mut rng = Rng::seeded(seed);
    let (e, w, a) = QUORUMS[(seed % QUORUMS.len() as u64) as usize];
    let spec = QuorumSpec::new(e, w, a).map_err(|e| e.to_string())?;
    let spares = rng.below(3) as usize;
    let mut world = World::new(spec, e as usize + spares);
    let steps = 20 + rng.below(120);
    for _ in 0..steps {
        step(&mut world, &mut rng)?;
    }
    world.settle(&mut rng)?;
    Ok(world)
}

fn step(world: &mut World, rng: &mut Rng) -> Result<(), String> {
    match rng.below(100) {
        0..14 => world.append(1 + rng.below(3)),
        14..17 => world.start_recovery(),
        17 => world.crash_recovery(rng),
        18..20 => world.patience_over(rng),
        20 => world.deadline(rng),
        21 => world.wipe(rng),
        22 => world.close(),
        23 => world.readmit(),
        24..26 => world.probe(rng),
        26..30 => world.lose(rng),
        _ => world.deliver(rng),
    }
    world.check()
}

fn first_failure(seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| schedule(seed).err().map(|error| (seed, error)))
}

/// `GEMINGA_SEEDS=first..end` explores further.
#[test]
fn twenty_thousand_schedules_keep_every_invariant() {
    let asked = std::env::var("GEMINGA_SEEDS").ok();
    let seeds = asked.as_deref().and_then(|text| text.split_once("..")).map_or(0..20_000, |(first, end)| {
        first.parse().expect("a number before ..")..end.parse().expect("a number after ..")
    });
    if let Some((seed, error)) = first_failure(seeds) {
        panic!("seed {seed}: {error}");
    }
}

/// "0 violations" proves something only if the schedules reach the interesting places.
#[test]
fn the_schedules_reach_the_rare_paths() {
    let mut seen = world::Seen::default();
    for seed in 0..3_000 {
        seen.add(&schedule(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}")).seen);
    }
    assert!(seen.acked > 1000, "{seen:?}");
    assert!(seen.fenced_writers > 100, "{seen:?}");
    assert!(seen.changes > 100 && seen.probed_out > 20, "{seen:?}");
    assert!(seen.closed_by_recovery > 100 && seen.closed_by_writer > 100, "{seen:?}");
    assert!(seen.written_back > 100 && seen.superseded > 20 && seen.undecided > 20, "{seen:?}");
}

#[test]
fn a_seed_replays_identically() {
    for seed in [3, 17, 1234] {
        let (a, b) = (schedule(seed).unwrap(), schedule(seed).unwrap());
        assert_eq!(a.digest(), b.digest());
    }
}

/// T1 (BookKeeper #2614), as a story: an entry on Qa−1 bookies, recovery that never heard of it, the old writer going on.
#[test]
fn t1_an_entry_below_its_ack_quorum_never_completes_after_the_close() {
    let mut w = World::new(QuorumSpec::new(3, 3, 2).unwrap(), 3);
    w.append(1);
    w.deliver_adds_to(0);
    w.start_recovery();
    // The fence reaches only the two that lack the entry.
    w.deliver_fences_to(1);
    w.deliver_fences_to(2);
    w.patience_over_all();
    w.deliver_from_recoverers();
    assert_eq!(w.closed_at(), Some(None), "two provable absences close the ledger empty");
    w.deliver_adds_to(1);
    w.deliver_adds_to(2);
    w.deliver_answers();
    assert_eq!(w.acked(), None, "both refuse the old writer");
    w.check().unwrap();
}

/// T2 (BookKeeper #2615): a fresh fragment whose bookies know no LAC; recovery must not reach into the fragment before.
#[test]
fn t2_recovery_of_a_fresh_fragment_leaves_the_one_before_alone() {
    let mut w = World::new(QuorumSpec::new(3, 3, 2).unwrap(), 6);
    w.append(3);
    w.deliver_everything();
    for bookie in 0..2 {
        w.wipe_bookie(bookie);
    }
    w.append(1);
    w.deliver_everything();
    let before = w.fragments();
    assert!(before.len() > 1, "{before:?}");
    w.start_recovery();
    w.deliver_everything();
    assert_eq!(w.closed_at(), Some(Some(EntryId(3))));
    assert_eq!(w.fragments()[0], before[0]);
    assert!(w.fragments().is_sorted_by(|a, b| a.first < b.first));
}

/// T5 (BookKeeper #4701): an add admitted before the fence is in the tail, one after it is refused, whatever the interleaving.
#[test]
fn t5_an_add_is_either_in_the_tail_or_refused() {
    for add_first in [true, false] {
        let mut w = World::new(QuorumSpec::SINGLE, 1);
        w.append(1);
        w.start_recovery();
        if add_first {
            w.deliver_adds_to(0);
            w.deliver_fences_to(0);
        } else {
            w.deliver_fences_to(0);
            w.deliver_adds_to(0);
        }
        w.patience_over_all();
        w.deliver_everything();
        assert_eq!(w.closed_at(), Some(add_first.then_some(EntryId(0))));
        w.check().unwrap();
    }
}

/// T6 (BookKeeper #4812): the ensemble is replaced by empty bookies at the same addresses after the close; the old writer must not
/// gather acks there.
#[test]
fn t6_empty_bookies_at_the_same_addresses_take_nothing_from_the_old_writer() {
    let mut w = World::new(QuorumSpec::new(3, 3, 2).unwrap(), 3);
    w.append(1);
    w.deliver_everything();
    w.start_recovery();
    w.deliver_everything();
    assert_eq!(w.closed_at(), Some(Some(EntryId(0))));
    (0..3).for_each(|bookie| w.wipe_bookie(bookie));
    w.append(1);
    w.deliver_everything();
    assert_eq!(w.acked(), Some(EntryId(0)), "entry 1 never completes");
}

/// The rule of R5: a write-back tells the base, never its own progress.
#[test]
fn a_crash_amid_write_backs_leaves_no_entry_below_its_quorum() {
    let mut w = World::new(QuorumSpec::new(3, 3, 2).unwrap(), 3);
    w.append(2);
    w.deliver_adds_to(0);
    w.start_recovery();
    w.deliver_fences_to(0);
    w.deliver_fences_to(1);
    w.patience_over_all();
    w.deliver_adds_to(1);
    w.crash_all_recoveries();
    w.start_recovery();
    w.deliver_everything();
    assert_eq!(w.closed_at(), Some(Some(EntryId(1))));
    w.check().unwrap();
}

#[cfg(feature = "museum")]
mod museum {
    use super::*;
    use crate::mutant::Mutant;
    use geminga_common::museum::bring_back;

    /// Every bug of the museum turns the exploration red within this many seeds.
    #[test]
    fn every_mutant_is_caught() {
        for mutant in [Mutant::FenceWithoutTerm, Mutant::TrustAmnesiac, Mutant::ProgressAsLac] {
            let back = bring_back(mutant);
            let caught = first_failure(0..20_000);
            drop(back);
            let (seed, error) = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
            // A liveness failure alone would be no proof that acknowledged data is at stake.
            assert!(
                error.starts_with("I1") || error.starts_with("I2:"),
                "{mutant:?} at seed {seed}: {error}"
            );
            println!("{mutant:?}: caught at seed {seed}: {error}");
        }
    }
}
