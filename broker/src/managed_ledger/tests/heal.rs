//! Open ledgers of topics to which nobody publishes, and deletions, when bookies go and come back.

use super::*;
use geminga_bookie_client::record::LedgerRecord;
use geminga_bookie_client::registry::absence::Suspect;
use geminga_common::ids::Incarnation;

impl Owner {
    /// Handles events and ticks for so long, or until no ledger is open.
    async fn quiet(&mut self, time: Duration) -> Vec<Output> {
        let (until, mut out) = (self.clock.mono() + time, Vec::new());
        while self.clock.mono() < until && self.ml.has_open_ledger() {
            match tokio::time::timeout(Duration::from_millis(2), self.mailbox.recv()).await {
                Ok(event) => self.ml.on_event(event.unwrap(), &mut out),
                Err(_) => {
                    self.clock.advance(Duration::from_millis(100));
                    self.ml.on_tick(&mut out);
                }
            }
        }
        out
    }
}

async fn ledger_record(rig: &Rig, id: LedgerId) -> Option<LedgerRecord> {
    let stored = rig.meta.inner.get(&rig.deps.keys.ledger(id)).await.unwrap()?;
    Some(LedgerRecord::decode(&stored.value).unwrap())
}

#[tokio::test]
async fn an_idle_topic_replaces_a_wiped_member_and_closes_the_ledger_for_repair() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    let p = owner.append(0..4).await;
    owner.quiet(Duration::from_secs(60)).await;
    assert!(owner.ml.has_open_ledger(), "a healthy ledger is left alone");
    assert!(!owner.ml.stats().ledgers[0].under_replicated);
    let wiped = rig.bookies.refs()[1].clone();
    rig.bookies.wipe(&wiped.id, true);
    let suspect = |incarnation| Suspect { id: wiped.id.clone(), standing: Some(Incarnation(incarnation)) };
    owner.ml.probe(&[suspect(1)]);
    owner.quiet(Duration::from_secs(1)).await;
    assert_eq!(
        ledger_record(&rig, p[0].ledger).await.unwrap().fragments.len(),
        1,
        "nobody it has is suspect"
    );
    owner.ml.probe(&[suspect(2)]);
    let since = rig.clock.mono();
    owner.quiet(Duration::from_secs(2)).await;
    assert!(owner.ml.has_open_ledger(), "not at once: the bookie may flap");
    assert!(owner.ml.stats().ledgers[0].under_replicated);
    let outputs = owner.quiet(Duration::from_secs(30)).await;
    assert!(!owner.ml.has_open_ledger() && rig.clock.mono() - since < Duration::from_secs(15));
    assert!(outputs.iter().all(|o| !matches!(o, Output::Poisoned(_))), "{outputs:?}");
    assert_eq!(owner.ml.stats().rolls_for_repair, 1);
    let closed = ledger_record(&rig, p[0].ledger).await.expect("kept for the repairer").closed().unwrap();
    assert_eq!((closed.repair.len(), closed.repair[0].slot, closed.repair[0].last), (1, 1, Some(EntryId(3))));
    assert_eq!(rig.stored_segments().await, [closed], "the topic record says the same");
    owner.append(4..8).await;
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 8);
}

impl Rig {
    async fn stored_segments(&self) -> Vec<ClosedLedger> {
        let topic = TopicName::parse("persistent://public/default/story").unwrap();
        let stored = self.meta.inner.get(&self.deps.keys.topic(&topic)).await.unwrap().unwrap();
        let (state, _) = record::decode(&stored.value).unwrap();
        state.segments().iter().map(|s| s.ledger().clone()).collect()
    }
}

#[tokio::test]
async fn a_ledger_degraded_while_a_bookie_was_away_closes_once_it_is_back_and_not_before() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    let away = rig.bookies.refs()[2].id.clone();
    owner.append(0..2).await;
    rig.bookies.faults(&away, |f| f.down = true);
    owner.append(2..5).await;
    owner.quiet(Duration::from_secs(30)).await;
    assert!(owner.ml.has_open_ledger(), "the next one would lack the same bookie");
    rig.bookies.faults(&away, |f| f.down = false);
    // Readmission waits a second or two of real time, more where the machine is busy.
    for _ in 0..3000 {
        owner.quiet(Duration::from_millis(500)).await;
        if !owner.ml.has_open_ledger() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!owner.ml.has_open_ledger());
    assert_eq!(owner.ml.stats().rolls_for_repair, 1);
    let [closed] = &rig.stored_segments().await[..] else { panic!() };
    assert!(closed.fragments.last().unwrap().vacant().is_empty());
    assert_eq!((closed.repair[0].first, closed.repair[0].slot), (EntryId(2), 2));
}

#[tokio::test]
async fn a_bookie_out_of_reach_gets_its_deletions_when_it_is_back() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    let p = owner.append(0..15).await;
    let away = rig.bookies.refs()[1].id.clone();
    rig.bookies.faults(&away, |f| f.down = true);
    owner.ml.trim(None, Retention::NONE);
    owner.until(|o| matches!(o, Output::Trimmed { .. }).then_some(())).await;
    let told = rig.deps.tombstones_left.notified();
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("what is left is told");
    let sweep = async || sweep_tombstones(&rig.deps, Duration::ZERO).await.unwrap();
    assert_eq!(sweep().await, 1, "nobody forgets what it still holds");
    let held = |ledger| rig.bookies.with_store(&away, |s| s.entry(ledger, EntryId(0)).is_some()).unwrap();
    assert!(held(p[0].ledger));
    rig.bookies.faults(&away, |f| f.down = false);
    assert_eq!(sweep().await, 0);
    assert!(!held(p[0].ledger));
    assert_eq!(rig.meta.inner.get(&rig.deps.keys.tombstone(p[0].ledger)).await.unwrap(), None);
}

#[tokio::test]
async fn a_bookie_that_was_wiped_needs_to_delete_nothing() {
    let rig = Rig::new(small());
    let mut owner = rig.open().await;
    let p = owner.append(0..15).await;
    rig.bookies.wipe(&rig.bookies.refs()[1].id, true);
    owner.ml.trim(None, Retention::NONE);
    owner.until(|o| matches!(o, Output::Trimmed { .. }).then_some(())).await;
    for _ in 0..200 {
        if rig.meta.inner.get(&rig.deps.keys.tombstone(p[0].ledger)).await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the tombstone stays for a store that is gone");
}
