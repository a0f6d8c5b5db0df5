//! Owners that are no longer: the guard of every transaction, and changes that are held back while a lease is in doubt.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

async fn put_owner(rig: &Rig, value: &'static str) {
    let put = Op::put("owner", value);
    rig.meta.inner.txn(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
}

impl Rig {
    fn owned_by(&self, value: &'static str, epoch: u64) -> Rig {
        let guard = vec![Compare::ValueIs("owner".into(), value.into())];
        let deps = Deps { guard, owner_epoch: OwnerEpoch(epoch), ..self.deps.clone() };
        Rig { deps, meta: self.meta.clone(), clock: self.clock.clone(), bookies: self.bookies.clone() }
    }
}

/// What an owner was told of its appends until it died.
async fn told_until_dead(owner: &mut Owner) -> (usize, PoisonReason) {
    let mut acked = 0;
    let reason = owner
        .until(|output| match output {
            Output::Appended { count, .. } => {
                acked += count as usize;
                None
            }
            Output::Poisoned(reason) => Some(reason),
            _ => None,
        })
        .await;
    (acked, reason)
}

#[tokio::test]
async fn who_no_longer_owns_the_bundle_cannot_roll() {
    let rig = Rig::new(small());
    put_owner(&rig, "A").await;
    let mut a = rig.owned_by("A", 1).open().await;
    a.append(0..5).await;
    put_owner(&rig, "B").await;
    // Nobody has fenced A: what its ledger still takes is good, and its next ledger must not come to be.
    a.send(5..30);
    let (acked, reason) = told_until_dead(&mut a).await;
    assert_eq!(reason, PoisonReason::RecordLost);
    assert_eq!(acked, 5, "one ledger of 10 entries takes 5 more and no other follows");
    let mut b = rig.owned_by("B", 2).open().await;
    let first = b.ml.first_position();
    assert_story(&b.read_all(first).await, 0, 10);
}

#[tokio::test]
async fn of_two_believers_only_the_one_that_fenced_is_acknowledged() {
    let rig = Rig::new(Config { roll_entries: 1000, ..small() });
    put_owner(&rig, "A").await;
    let mut a = rig.owned_by("A", 1).open().await;
    a.append(0..5).await;
    // A is paused; its lease lapses; B takes the bundle and the topic.
    put_owner(&rig, "B").await;
    let mut b = rig.owned_by("B", 2).open().await;
    let between = b.append(5..8).await;
    // A wakes and still believes.
    a.send(100..110);
    let (acked, reason) = told_until_dead(&mut a).await;
    assert_eq!((acked, reason), (0, PoisonReason::Writer(AppendError::Fenced)));
    b.append(8..12).await;
    let first = b.ml.first_position();
    let all = b.read_all(first).await;
    assert_story(&all, 0, 12);
    assert_eq!(all[5].position, between[0]);
    // Whoever comes with A's epoch is told that it owns nothing.
    let (tx, _mailbox) = mpsc::channel(10);
    let events: Events = Arc::new(move |event| drop(tx.try_send(event)));
    let stale = rig.owned_by("A", 1).deps;
    let again = ManagedLedger::open(stale, a.ml.topic().clone(), CreateMode::MustExist, events).await;
    assert_eq!(again.err(), Some(OpenError::NotOwner));
}

#[tokio::test]
async fn while_changes_are_held_back_a_ledger_grows_instead_of_rolling() {
    let mut rig = Rig::new(small());
    let allowed = Arc::new(AtomicBool::new(true));
    let asked = allowed.clone();
    rig.deps.may_change = Arc::new(move || asked.load(Ordering::Relaxed));
    let mut owner = rig.open().await;
    owner.append(0..3).await;
    allowed.store(false, Ordering::Relaxed);
    let grown = owner.append(3..40).await;
    assert!(grown.windows(2).all(|pair| pair[0].ledger == pair[1].ledger), "it rolled");
    let token = owner.ml.roll_now();
    assert_eq!(owner.changed(token).await, Err(ChangeError::MetadataUnavailable));
    assert!(!owner.ml.is_dead(), "what was refused has harmed nothing");
    allowed.store(true, Ordering::Relaxed);
    let after = owner.append(40..45).await;
    assert_ne!(after[4].ledger, grown[0].ledger, "it rolls once it may");
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 45);
}
