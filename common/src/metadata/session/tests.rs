//! A session over the store in memory: kept, lost, begun again.

use super::*;
use crate::clock::{ManualClock, SystemClock};
use crate::metadata::memory::MemoryStore;

const SECOND: Duration = Duration::from_secs(1);

fn settings(ttl: Duration) -> Settings {
    Settings { ttl, keys: vec![("live/r/me".into(), "here".into())] }
}

#[tokio::test]
async fn a_lease_outlives_its_time_while_it_is_kept() {
    let clock = SystemClock::shared();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let tasks = TaskGroup::new();
    let ttl = Duration::from_millis(200);
    let session = Session::start(store.clone(), clock, settings(ttl), &tasks).await.unwrap();
    tokio::time::sleep(ttl * 5).await;
    assert_eq!(session.standing(), Standing::Held);
    assert!(store.get("live/r/me").await.unwrap().is_some());
    session.end().await;
    assert_eq!(store.get("live/r/me").await.unwrap(), None, "an ended session leaves nothing to run out");
    assert_eq!((session.standing(), session.held()), (Standing::Lost, None));
    tasks.stop();
}

#[tokio::test]
async fn a_lost_lease_is_told_and_a_new_generation_begins() {
    // The keeper's timers are real, the lease's clock is not: it cannot be renewed in time.
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let tasks = TaskGroup::new();
    let session = Session::start(store.clone(), clock.clone(), settings(SECOND), &tasks).await.unwrap();
    let (_, first) = session.held().unwrap();
    let mut generations = session.generations();
    generations.mark_unchanged();
    clock.advance(SECOND * 2);
    generations.wait_for(|generation| *generation == 0).await.unwrap();
    generations.wait_for(|generation| *generation > first).await.unwrap();
    assert!(session.held().is_some_and(|(_, generation)| generation > first));
    assert!(store.get("live/r/me").await.unwrap().is_some(), "the keys come back with it");
    tasks.stop();
}
