//! Objects that are gone from the store although the record names them: what bookies still have is uploaded anew, and what they have let
//! go of stays named, in case somebody puts the object back.

use super::world::World;
use crate::blob::sim::{FAULTS, Fault};

async fn offloaded(part_bytes: u64, ledgers: u64, released: bool) -> World {
    let world = World::new(part_bytes, ledgers);
    if released {
        world.offload_and_release().await;
    } else {
        world.owner(None).await;
    }
    world.look("offloaded");
    world.lose_objects().await;
    world
}

/// Objects are lost, and the owner that mends it meets one fault after the other at every step; another one goes on behind it. Answers
/// how many schedules were run and what the first bad one broke.
async fn explore(part_bytes: u64, ledgers: u64) -> (usize, Option<String>) {
    let calm = offloaded(part_bytes, ledgers, false).await;
    let steps = calm.mend(None).await;
    let mut schedules = 0;
    for fault in FAULTS {
        for step in 0..steps {
            let world = offloaded(part_bytes, ledgers, false).await;
            world.mend(Some((step, fault))).await;
            world.mend(None).await;
            world.look("mended");
            world.afterwards(None).await;
            schedules += 1;
            if let Some(broken) = world.broken() {
                return (schedules, Some(format!("{fault:?} at step {step}: {broken}")));
            }
        }
    }
    (schedules, None)
}

#[tokio::test]
async fn what_bookies_still_have_is_uploaded_anew_whatever_fails_on_the_way() {
    for (part_bytes, ledgers) in [(1 << 20, 1), (700, 1), (1 << 20, 3)] {
        let (schedules, broken) = explore(part_bytes, ledgers).await;
        assert_eq!(broken, None);
        assert!(schedules > 50, "{schedules} schedules");
        println!("{ledgers} ledgers, parts of {part_bytes}: {schedules} schedules");
    }
}

/// What an object's absence breaks once bookies have let go.
async fn released() -> Option<String> {
    let world = offloaded(1 << 20, 1, true).await;
    let object = world.state().object().copied();
    world.mend(None).await;
    let kept = world.state().object().copied() == object && !world.state().on_bookies();
    (!kept).then(|| format!("an object that may be put back is named no more: {:?}", world.state()))
}

#[tokio::test]
async fn an_object_that_is_the_only_copy_stays_named() {
    assert_eq!(released().await, None);
}

#[tokio::test]
async fn an_object_that_is_there_is_not_given_up() {
    let world = World::new(1 << 20, 1);
    world.owner(None).await;
    let object = world.state().object().copied();
    world.mend(None).await;
    assert!(object.is_some() && world.state().object().copied() == object);
    world.mend(Some((0, Fault::FailAfter))).await;
    assert_eq!(world.state().object().copied(), object);
}

#[cfg(feature = "museum")]
#[tokio::test]
async fn the_museum_of_objects_that_are_gone_is_caught() {
    use crate::mutant::Mutant;
    let back = geminga_common::museum::bring_back(Mutant::ReturnReleased);
    let broken = released().await;
    drop(back);
    println!("{:?}: caught: {broken:?}", Mutant::ReturnReleased);
    assert!(broken.is_some());
}
