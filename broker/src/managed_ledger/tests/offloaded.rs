//! Stories of a topic whose closed ledgers go to the object store.

use super::*;
use futures::FutureExt as _;
use geminga_offload::blob::Blobs as _;
use geminga_offload::blob::sim::{Fault, Faults, SimBlobs};
use geminga_offload::offloader::{ChangeError as Doubt, OffloadError, TopicRecord};
use geminga_offload::state::{Change as OffloadChange, ObjectRef, Offload, Seen};
use tokio::sync::oneshot;

/// Nothing is offloaded by itself.
pub(super) const RULES: offload::Rules = offload::Rules {
    bytes_max: None,
    age_max_ms: None,
    lag_ms: 0,
    before: None,
    again: None,
    uploading: None,
    together: geminga_offload::config::Together { below: 0, size: 0, age_ms: 0 },
};

type Asked = (Vec<(LedgerId, OffloadChange)>, oneshot::Sender<Result<(), Doubt>>);

struct Record(mpsc::Sender<Asked>);

impl TopicRecord for Record {
    fn change(&self, changes: Vec<(LedgerId, OffloadChange)>) -> BoxFuture<'_, Result<(), Doubt>> {
        let (send, receive) = oneshot::channel();
        let asked = self.0.try_send((changes, send));
        assert!(asked.is_ok(), "the owner listens");
        receive.map(|answer| answer.unwrap_or(Err(Doubt::Unknown("gone".into())))).boxed()
    }
}

pub(super) struct Story {
    pub(super) rig: Rig,
    pub(super) blobs: SimBlobs,
    pub(super) faults: Faults,
}

impl Story {
    pub(super) fn new() -> Self {
        let faults = Faults::default();
        let blobs = SimBlobs::new(faults.clone());
        let mut story = Self { rig: Rig::new(small()), blobs, faults };
        story.forgets();
        story
    }

    /// A tier of its own, with nothing in memory, for handles that are opened from now on.
    pub(super) fn forgets(&mut self) {
        self.forgets_with(geminga_offload::Config::default());
    }

    /// The same, and its objects do not name their topic.
    pub(super) fn hides_names(&mut self) {
        self.forgets_with(geminga_offload::Config { hide_names: true, ..Default::default() });
    }

    fn forgets_with(&mut self, config: geminga_offload::Config) {
        let config = geminga_offload::Config {
            block_size: geminga_common::config::ByteSize(200),
            removal_grace_s: 0,
            ..config
        };
        let store = Arc::new(self.blobs.clone());
        let (clock, tasks) = (self.rig.clock.clone(), self.rig.deps.tasks.clone());
        self.rig.deps.tier = Some(Tier::over(store, config, "test", clock, Rng::seeded(3), &tasks));
    }

    fn tier(&self) -> &Tier {
        self.rig.deps.tier.as_ref().unwrap()
    }

    pub(super) async fn offload(
        &self,
        owner: &mut Owner,
        ledger: LedgerId,
    ) -> Result<ObjectRef, OffloadError> {
        self.offload_together(owner, &[ledger]).await.map(|objects| objects[0])
    }

    pub(super) async fn offload_together(
        &self,
        owner: &mut Owner,
        ledgers: &[LedgerId],
    ) -> Result<Vec<ObjectRef>, OffloadError> {
        let jobs = ledgers.iter().map(|ledger| owner.ml.offload_job(*ledger).unwrap()).collect();
        let (send, mut asked) = mpsc::channel(8);
        let record = Record(send);
        let run = self.tier().offloader.offload::<offload::LedgerReader>(jobs, &record);
        tokio::pin!(run);
        loop {
            tokio::select! {
                outcome = &mut run => return outcome,
                Some((changes, answer)) = asked.recv() => {
                    let token = owner.ml.change_offload(changes);
                    let result = owner.changed(token).await;
                    let result = result.map_err(|error| match error {
                        ChangeError::Offload(refused) => Doubt::Refused(refused),
                        other => Doubt::Unknown(other.to_string()),
                    });
                    drop(answer.send(result));
                }
            }
        }
    }

    pub(super) async fn release(&self, owner: &mut Owner, ledger: LedgerId) -> Result<(), ChangeError> {
        let seen = self.seen(owner, ledger).await;
        self.release_as(owner, ledger, seen).await
    }

    async fn seen(&self, owner: &Owner, ledger: LedgerId) -> Seen {
        let held = owner.ml.held(ledger).expect("it was offloaded");
        self.tier().look(&held).await.expect("its object is there")
    }

    async fn release_as(&self, owner: &mut Owner, ledger: LedgerId, seen: Seen) -> Result<(), ChangeError> {
        let change = OffloadChange::Release { seen, now_ms: self.rig.clock.wall_ms(), lag_ms: 0 };
        let token = owner.ml.change_offload(vec![(ledger, change)]);
        owner.changed(token).await
    }

    /// Entries 0 to 30 in three closed ledgers, an open one behind; the first `count` are in the store alone.
    pub(super) async fn released(&self, count: usize) -> (Owner, Vec<LedgerId>) {
        let mut owner = self.rig.open().await;
        owner.append(0..35).await;
        let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).collect();
        for ledger in &ledgers[..count] {
            self.offload(&mut owner, *ledger).await.unwrap();
            self.release(&mut owner, *ledger).await.unwrap();
        }
        self.buried().await;
        (owner, ledgers)
    }

    /// Waits until every tombstone has been seen to.
    pub(super) async fn buried(&self) {
        let prefix = self.rig.deps.keys.tombstones_prefix();
        for _ in 0..1000 {
            if self.rig.meta.inner.list(&prefix, None, 1).await.unwrap().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("tombstones stay");
    }

    pub(super) async fn sweep(&self) {
        self.rig.clock.advance(Duration::from_secs(10_000));
        self.tier().sweep(&self.rig.meta.inner, &self.rig.deps.keys).await.unwrap();
    }

    /// Another owner, with nothing in memory.
    pub(super) async fn reopened(&self, mut owner: Owner) -> Owner {
        let token = owner.ml.close();
        owner.changed(token).await.unwrap();
        self.rig.open().await
    }
}

#[tokio::test]
async fn offloaded_ledgers_read_back_when_bookies_have_none_of_them() {
    let story = Story::new();
    let (owner, ledgers) = story.released(3).await;
    assert_eq!(story.blobs.keys().len(), 3);
    let mut owner = story.reopened(owner).await;
    let all = owner.read_all(owner.ml.first_position()).await;
    assert_story(&all, 0, 35);
    // Point reads and searches find their entries too.
    let token = match owner.ml.read_at(&[all[3].position, all[4].position, all[25].position]) {
        ReadOutcome::Pending(token) => Some(token),
        ReadOutcome::Ready(found) => {
            assert_eq!(found.len(), 3);
            None
        }
        ReadOutcome::AtEnd => panic!("point reads have no end"),
    };
    if let Some(token) = token {
        let found = owner.result(token).await.unwrap();
        assert_eq!(found, [all[3].clone(), all[4].clone(), all[25].clone()]);
    }
    let index = all[17].entry.header.first_index.0;
    let token = owner.ml.find_by_index(index);
    assert_eq!(owner.found(token).await, Some(all[17].position));
    let stats = owner.ml.stats();
    assert!(stats.ledgers[..3].iter().all(|ledger| ledger.offloaded && ledgers.contains(&ledger.id)));
    assert!(!stats.ledgers[3].offloaded);
}

#[tokio::test]
async fn a_read_under_way_survives_the_release_of_its_ledger() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..15).await;
    let mut owner = story.reopened(owner).await;
    let ledger = owner.ml.stats().ledgers[0].id;
    let limit = ReadLimit { entries: 3, bytes: 1 << 20 };
    let ReadOutcome::Pending(token) =
        owner.ml.read(Position::new(ledger, EntryId(0)), limit, ReadClass::CatchUp)
    else {
        panic!("nothing is in memory")
    };
    // The bookies lose it before the read gets to them.
    story.offload_quietly(&mut owner, ledger).await;
    let read = owner.result(token).await.unwrap();
    assert_story(&read, 0, 3);
}

impl Story {
    /// Offloads and releases while outputs of other requests are kept.
    async fn offload_quietly(&self, owner: &mut Owner, ledger: LedgerId) {
        let mut kept = Vec::new();
        let jobs = vec![owner.ml.offload_job(ledger).unwrap()];
        let (send, mut asked) = mpsc::channel(8);
        let record = Record(send);
        let run = self.tier().offloader.offload(jobs, &record);
        tokio::pin!(run);
        let mut waiting: BTreeMap<Token, oneshot::Sender<Result<(), Doubt>>> = BTreeMap::new();
        let mut out = Vec::new();
        let object = loop {
            tokio::select! {
                outcome = &mut run => break outcome.unwrap(),
                Some((changes, answer)) = asked.recv() => {
                    waiting.insert(owner.ml.change_offload(changes), answer);
                }
                Some(event) = owner.mailbox.recv() => {
                    // What was fetched meanwhile is held back.
                    match event {
                        fetched @ Event(EventKind::Fetched(_)) => kept.push(fetched),
                        other => owner.ml.on_event(other, &mut out),
                    }
                }
            }
            for output in out.drain(..) {
                if let Output::RecordChanged { token, result } = output {
                    drop(
                        waiting
                            .remove(&token)
                            .unwrap()
                            .send(result.map_err(|e| Doubt::Unknown(e.to_string()))),
                    );
                }
            }
        };
        assert!(object[0].shape.size > 0);
        self.release(owner, ledger).await.unwrap();
        self.buried().await;
        assert_eq!(kept.len(), 1);
        let Event(EventKind::Fetched(fetched)) = kept.remove(0) else { panic!("only fetches are kept") };
        // As if the bookies had answered after the release: a quorum has nothing.
        let from = Position::new(ledger, EntryId(0));
        let missing = fetched.answering(Err(ReadError::Missing(from)));
        owner.ml.on_event(Event(EventKind::Fetched(missing)), &mut out);
        assert_eq!(out, [], "the read goes on in the store");
    }
}

#[tokio::test]
async fn bookies_that_do_not_answer_are_made_up_for_by_the_object() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..15).await;
    let ledger = owner.ml.stats().ledgers[0].id;
    story.offload(&mut owner, ledger).await.unwrap();
    let mut owner = story.reopened(owner).await;
    for bookie in story.rig.bookies.refs() {
        story.rig.bookies.faults(&bookie.id, |faults| faults.down = true);
    }
    let limit = ReadLimit { entries: 10, bytes: 1 << 20 };
    let ReadOutcome::Pending(token) =
        owner.ml.read(Position::new(ledger, EntryId(0)), limit, ReadClass::CatchUp)
    else {
        panic!("nothing is in memory")
    };
    assert_story(&owner.result(token).await.unwrap(), 0, 10);
}

#[tokio::test]
async fn trim_and_deletion_reach_the_bucket_and_nothing_else_does() {
    let story = Story::new();
    let (mut owner, ledgers) = story.released(2).await;
    story.sweep().await;
    assert_eq!(story.blobs.keys().len(), 2, "what the topic references stays");
    owner.ml.trim(Some(Position::new(ledgers[1], EntryId(0))), Retention::NONE);
    owner.until(|o| matches!(o, Output::Trimmed { ledgers: 1, .. }).then_some(())).await;
    assert_eq!(story.blobs.keys().len(), 2, "only the sweep removes");
    story.sweep().await;
    let left = story.blobs.keys();
    assert!(left.len() == 1 && left[0].contains(&format!("/{}-", ledgers[1])), "{left:?}");
    let token = owner.ml.delete();
    owner.changed(token).await.unwrap();
    story.sweep().await;
    assert_eq!(story.blobs.keys(), [""; 0]);
    let garbage = story.rig.deps.keys.object_garbage_prefix();
    assert_eq!(story.rig.meta.inner.list(&garbage, None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn an_attempt_of_a_dead_owner_is_given_up_by_the_next() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..15).await;
    let ledger = owner.ml.stats().ledgers[0].id;
    // It dies with the object uploaded and not verified.
    let dead = story.faults.plan(Some((1, Fault::CrashBefore)));
    tokio::select! {
        () = dead.cancelled() => {}
        outcome = story.offload(&mut owner, ledger) => panic!("it should die: {outcome:?}"),
    }
    story.faults.plan(None);
    assert_eq!(story.blobs.keys().len(), 1);
    let mut owner = story.reopened(owner).await;
    let due = owner.ml.offload_due(&RULES);
    let [changes] = &due.changes[..] else { panic!("{due:?}") };
    assert!(matches!(changes[..], [(l, OffloadChange::Abandon(_))] if l == ledger), "{due:?}");
    let token = owner.ml.change_offload(changes.clone());
    owner.changed(token).await.unwrap();
    story.offload(&mut owner, ledger).await.unwrap();
    assert_eq!(story.blobs.keys().len(), 2);
    story.sweep().await;
    assert_eq!(story.blobs.keys().len(), 1, "what the dead owner left is gone");
    assert!(story.release(&mut owner, ledger).await.is_ok());
    assert!(matches!(owner.ml.state.segment(ledger).unwrap().offload, Offload::Released(_)));
}

#[tokio::test]
async fn a_release_without_a_verified_object_is_refused() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..25).await;
    let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).collect();
    assert_eq!(owner.ml.held(ledgers[1]), None, "there is nothing to look at");
    // What was seen of one ledger says nothing of another.
    story.offload(&mut owner, ledgers[0]).await.unwrap();
    let seen = story.seen(&owner, ledgers[0]).await;
    let refused = story.release_as(&mut owner, ledgers[1], seen).await;
    assert!(matches!(refused, Err(ChangeError::Offload(_))), "{refused:?}");
    assert!(!owner.ml.is_dead());
}

#[tokio::test]
async fn a_ledger_whose_object_is_gone_is_read_from_bookies_and_goes_anew() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..25).await;
    let ledger = owner.ml.stats().ledgers[0].id;
    story.offload(&mut owner, ledger).await.unwrap();
    let key = story.blobs.keys().remove(0);
    story.blobs.observer().remove(&key).await.unwrap();
    let mut owner = story.reopened(owner).await;
    assert_story(&owner.read_all(owner.ml.first_position()).await, 0, 25);
    // Copies stay, and are the proof that nothing is given up with the object.
    let held = owner.ml.held(ledger).unwrap();
    assert!(story.tier().look(&held).await.is_err());
    let copies = owner.ml.bookie_reader(ledger).unwrap();
    copies.read_whole().await.unwrap();
    let of_all = |down| {
        story.rig.bookies.refs().iter().for_each(|b| story.rig.bookies.faults(&b.id, |f| f.down = down));
    };
    of_all(true);
    assert!(copies.read_whole().await.is_err(), "of bookies alone");
    of_all(false);
    let gone = story.tier().gone(&held).await.unwrap();
    let back = OffloadChange::Return { gone, now_ms: story.rig.clock.wall_ms(), grace_ms: 0 };
    let token = owner.ml.change_offload(vec![(ledger, back)]);
    owner.changed(token).await.unwrap();
    assert_eq!(owner.ml.offload_due(&RULES).upload, [], "no policy wants it");
    let again = offload::Rules { again: Some(ledger), ..RULES };
    assert_eq!(owner.ml.offload_due(&again).upload, [ledger]);
    story.offload(&mut owner, ledger).await.unwrap();
    story.release(&mut owner, ledger).await.unwrap();
    story.buried().await;
    story.sweep().await;
    let left = story.blobs.keys();
    assert!(left.len() == 1 && left[0] != key, "{left:?} after {key}");
    let mut owner = story.reopened(owner).await;
    assert_story(&owner.read_all(owner.ml.first_position()).await, 0, 25);
    assert!(owner.ml.bookie_reader(ledger).is_none(), "bookies have let go");
}

#[tokio::test]
async fn a_search_in_an_offloaded_ledger_reads_its_index_and_one_block() {
    let mut story = Story::new();
    let mut owner = story.rig.open().await;
    let mut taken = Vec::new();
    for n in 0..35 {
        story.rig.clock.advance(Duration::from_millis(10));
        let at = owner.append(n..n + 1).await[0];
        taken.push((story.rig.clock.wall_ms(), at));
    }
    let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).collect();
    for ledger in &ledgers[..3] {
        story.offload(&mut owner, *ledger).await.unwrap();
        story.release(&mut owner, *ledger).await.unwrap();
    }
    story.buried().await;
    let token = owner.ml.close();
    owner.changed(token).await.unwrap();
    for (n, (ms, at)) in taken.iter().enumerate().take(30) {
        for by_time in [true, false] {
            story.forgets();
            let mut owner = story.rig.open().await;
            drop(story.blobs.reads());
            // One, two, three messages an entry, and again; the last of them is asked for. A time between two entries is the later's.
            let index = n as u64 / 3 * 6 + [0, 2, 5][n % 3];
            let token = match by_time {
                true => owner.ml.find_by_time(ms - (n as u64 % 3)),
                false => owner.ml.find_by_index(index),
            };
            assert_eq!(owner.found(token).await, Some(*at), "entry {n}, by time: {by_time}");
            let reads = story.blobs.reads();
            // Of a ledger's first entry the ledger before says that it has none as late.
            let most = if n % 10 == 0 { 3 } else { 2 };
            assert!((1..=most).contains(&reads.len()), "entry {n}, by time: {by_time}: {reads:?}");
        }
    }
}
