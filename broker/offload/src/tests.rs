//! Stories over the simulated store.

mod away;
mod gone;
pub(crate) mod world;

use crate::blob::sim::{FAULTS, Fault};
use world::World;

/// Offloads under one fault after the other at every step there is, then under the same fault at every step of what follows, and
/// looks at the world after each. Answers how many schedules were run and what the first bad one broke.
async fn explore(part_bytes: u64, ledgers: u64) -> (usize, Option<String>) {
    let calm = World::new(part_bytes, ledgers);
    let steps = calm.owner(None).await;
    let after = calm.afterwards(None).await;
    let mut schedules = 0;
    for fault in FAULTS {
        for step in 0..steps {
            let world = World::new(part_bytes, ledgers);
            world.owner(Some((step, fault))).await;
            world.look("after the first owner");
            world.settle().await;
            world.look("after the second owner");
            world.afterwards(None).await;
            schedules += 1;
            if let Some(broken) = world.broken() {
                return (schedules, Some(format!("{fault:?} at step {step}: {broken}")));
            }
        }
        // The second owner, the release, the sweep and the removal of the topic meet faults as well.
        for step in 0..after + steps {
            let world = World::new(part_bytes, ledgers);
            world.owner(Some((steps - 2, Fault::CrashBefore))).await;
            world.afterwards(Some((step, fault))).await;
            world.look("after a fault on the way");
            world.afterwards(None).await;
            schedules += 1;
            if let Some(broken) = world.broken() {
                return (schedules, Some(format!("{fault:?} at later step {step}: {broken}")));
            }
        }
    }
    (schedules, None)
}

#[tokio::test]
async fn no_crash_or_doubt_at_any_step_leaks_or_loses_an_object() {
    // One ledger, and three that go as one object; in one part, and in many.
    for (part_bytes, ledgers) in [(1 << 20, 1), (700, 1), (1 << 20, 3), (3000, 3)] {
        let (schedules, broken) = explore(part_bytes, ledgers).await;
        assert_eq!(broken, None);
        assert!(schedules > 90, "{schedules} schedules");
        println!("{ledgers} ledgers, parts of {part_bytes}: {schedules} schedules");
    }
}

#[cfg(feature = "museum")]
#[tokio::test]
async fn every_bug_of_the_museum_is_caught() {
    use crate::mutant::Mutant;
    use geminga_common::museum::bring_back;
    // In one part, and in many.
    for (mutant, part_bytes, ledgers) in [
        (Mutant::RemoveNamed, 1 << 20, 3),
        (Mutant::RemoveAfterDoubt, 700, 1),
        (Mutant::CommitTwice, 700, 1),
        (Mutant::ReleaseUnverified, 700, 1),
        (Mutant::RemoveUnlisted, 700, 1),
        (Mutant::BeginUnnamed, 700, 1),
        (Mutant::WriteForever, 700, 1),
        (Mutant::WriteForever, 1 << 20, 1),
        (Mutant::SweepUnsettled, 700, 1),
        (Mutant::SweepUnsettled, 1 << 20, 1),
        (Mutant::ForgetUploads, 700, 1),
    ] {
        let back = bring_back(mutant);
        let (schedules, broken) = explore(part_bytes, ledgers).await;
        drop(back);
        println!("{mutant:?}: caught after {schedules}: {broken:?}");
        assert!(broken.is_some(), "{mutant:?} was not caught in {schedules} schedules");
    }
}

#[tokio::test]
async fn an_object_that_does_not_read_back_is_never_committed() {
    let world = World::new(1 << 20, 1);
    world.tamper_on_upload();
    let offloaded = world.offload_once().await;
    assert!(offloaded.is_err(), "{offloaded:?}");
    world.look("after a damaged upload");
    assert_eq!(world.broken(), None);
    assert!(world.state().object().is_none());
}
