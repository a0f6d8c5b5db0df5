//! A store that goes away under a running broker, with another, empty one answering in its place, and comes back: at every step.

use super::world::World;
use crate::blob::sim::SimBlobs;
use crate::blob::{Answer, Blobs, Listed, Part, UploadId};
use crate::identity::guard::{Guarded, Place};
use bytes::Bytes;
use geminga_common::clock::ManualClock;
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// The right store, and what answers in its place for some of the requests.
struct Doorway {
    right: SimBlobs,
    other: SimBlobs,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    requests: usize,
    away: Range<usize>,
}

impl Doorway {
    fn now(&self) -> &SimBlobs {
        let mut plan = self.plan.lock();
        plan.requests += 1;
        if plan.away.contains(&(plan.requests - 1)) { &self.other } else { &self.right }
    }

    /// From now on these requests find the other store; counted anew. Answers how many there were.
    fn away(&self, away: Range<usize>) -> usize {
        std::mem::replace(&mut *self.plan.lock(), Plan { requests: 0, away }).requests
    }
}

impl Blobs for Doorway {
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        self.now().create(key, bytes)
    }
    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        self.now().small(key)
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        self.now().put(key, bytes, until_ms)
    }
    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        self.now().begin(key, until_ms)
    }
    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        self.now().part(key, upload, number, bytes)
    }
    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        self.now().complete(key, upload, parts)
    }
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        self.now().size(key)
    }
    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.now().range(key, range)
    }
    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        self.now().uploads(prefix)
    }
    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        self.now().abort(key, upload)
    }
    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.now().remove(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        self.now().list(prefix, after, limit)
    }
}

/// A world behind a doorway, its store claimed.
async fn world(part_bytes: u64, ledgers: u64) -> (World, Arc<Doorway>) {
    let mut doorway = None;
    let world = World::over(part_bytes, ledgers, |right, meta| {
        let (other, plan) = (SimBlobs::default(), Mutex::default());
        let door = doorway.insert(Arc::new(Doorway { right, other, plan })).clone();
        let place = Place { cluster: "c".to_owned(), here: "file:///mnt/store".to_owned() };
        let clock = Arc::new(ManualClock::at_wall_ms(0));
        Arc::new(Guarded::new(door, meta, clock, Rng::seeded(9), place))
    });
    world.use_store().await.unwrap();
    let doorway = doorway.expect("made above");
    doorway.away(0..0);
    (world, doorway)
}

/// An offload and a release with the store away for each run of requests. Answers schedules, those that were released at once, and
/// what the first bad one lost.
async fn explore(part_bytes: u64, ledgers: u64) -> (usize, usize, Option<String>) {
    let (calm, doorway) = world(part_bytes, ledgers).await;
    calm.offload_and_release().await;
    assert!(!calm.state().on_bookies());
    let requests = doorway.away(0..0);
    let (mut schedules, mut at_once) = (0, 0);
    for from in 0..requests {
        for until in from + 1..=requests + 1 {
            let (world, doorway) = world(part_bytes, ledgers).await;
            // The last of them stays away as long as anything is asked.
            let until = if until > requests { usize::MAX } else { until };
            doorway.away(from..until);
            world.offload_and_release().await;
            schedules += 1;
            at_once += usize::from(!world.state().on_bookies());
            let when = format!("away for requests {from} to {until}");
            if let Some(lost) = world.lost(&when) {
                return (schedules, at_once, Some(lost));
            }
            doorway.away(0..0);
            world.offload_and_release().await;
            let goes_on = !world.state().on_bookies() || world.lacks_its_object();
            assert!(goes_on, "{when}: it does not go on once the store is back: {:?}", world.state());
            if let Some(lost) = world.lost(&when) {
                return (schedules, at_once, Some(lost));
            }
        }
    }
    (schedules, at_once, None)
}

#[tokio::test]
async fn nothing_is_lost_while_another_store_answers_and_all_goes_on_when_the_right_one_is_back() {
    for (part_bytes, ledgers) in [(1 << 20, 1), (700, 1), (1 << 20, 3)] {
        let (schedules, at_once, lost) = explore(part_bytes, ledgers).await;
        assert_eq!(lost, None);
        assert!(schedules > 50 && at_once < schedules, "{schedules} schedules, {at_once} released");
        println!(
            "{ledgers} ledgers, parts of {part_bytes}: {schedules} schedules, {at_once} of them released meanwhile"
        );
    }
}

#[cfg(feature = "museum")]
#[tokio::test]
async fn the_museum_of_stores_that_go_away_is_caught() {
    use crate::mutant::Mutant;
    use geminga_common::museum::bring_back;
    for mutant in [Mutant::TrustFirstLook, Mutant::ReleaseUnseen] {
        for part_bytes in [1 << 20, 700] {
            let back = bring_back(mutant);
            let (schedules, _, lost) = explore(part_bytes, 1).await;
            drop(back);
            println!("{mutant:?}: caught after {schedules}: {lost:?}");
            assert!(lost.is_some(), "{mutant:?} was not caught in {schedules} schedules");
        }
    }
}

#[tokio::test]
async fn copies_stay_when_the_object_has_gone_or_changed_since_it_was_verified() {
    for damage in [true, false] {
        let (world, doorway) = world(1 << 20, 1).await;
        let object = world.offload_once().await.unwrap()[0];
        let key = world.key_of(&object);
        if damage {
            doorway.right.tamper(&key, |bytes| {
                let at = bytes.len() - 60;
                bytes[at] ^= 1;
            });
        } else {
            doorway.right.observer().remove(&key).await.unwrap();
        }
        world.offload_and_release().await;
        assert!(world.state().on_bookies(), "damage: {damage}");
    }
}
