//! Letting bookie copies of offloaded ledgers go: once the lag has passed each object is looked at in the cluster's own store, beside the
//! owner, and what was seen goes into the change of the record. Whatever is not as it should be is a reason to wait, which stats, metrics
//! and the log name; the copies stay and the look is repeated at growing pauses. One run of looks per topic at a time.
//!
//! An object that look after look finds missing is given up, once bookies have shown that they have all of its ledger and the store was
//! asked once more: the ledger is theirs alone again, and goes anew as another attempt.

use super::messages::Message;
use super::worker::Worker;
use crate::managed_ledger::offload::LedgerReader;
use geminga_common::error::Coded as _;
use geminga_common::ids::LedgerId;
use geminga_common::tasks::OnFailure;
use geminga_offload::release::{Held, by_store, is_absent, reason};
use geminga_offload::state::{Change, Gone, Seen};
use geminga_offload::tier::Tier;
use geminga_offload::verify::ObjectError;
use std::collections::BTreeMap;
use tokio_util::sync::DropGuard;

/// First and longest pause after a look that was no reason to let go, ms; doubled from one to the next.
const PAUSE_MS: (u64, u64) = (5_000, 60_000);

/// So many looks in a row find an object missing before it is given up: 35 s and more lie between the first and the last of them.
const ABSENCES: u32 = 4;

/// What the owner remembers.
#[derive(Default)]
pub(super) struct Releasing {
    looking: Option<DropGuard>,
    failures: u32,
    not_before_ms: u64,
    /// Ledgers whose copies were to go, and why they stay.
    waiting: BTreeMap<LedgerId, String>,
    /// How many looks in a row found no object.
    absent: BTreeMap<LedgerId, u32>,
    /// What the log was told last.
    told: Option<String>,
}

impl Releasing {
    /// How many ledgers wait, and for what the first of them does.
    pub(super) fn waits(&self) -> (u64, Option<&String>) {
        (self.waiting.len() as u64, self.waiting.values().next())
    }

    /// Ledgers whose copies are to go: whether to look now. Of others nothing is known any more.
    fn starts(&mut self, due: &[LedgerId], now_ms: u64) -> bool {
        self.waiting.retain(|ledger, _| due.contains(ledger));
        self.absent.retain(|ledger, _| due.contains(ledger));
        !due.is_empty() && self.looking.is_none() && now_ms >= self.not_before_ms
    }

    /// One look's outcome.
    fn looked(&mut self, ledger: LedgerId, outcome: &Result<Seen, ObjectError>) {
        match outcome {
            Err(error) if is_absent(error) => *self.absent.entry(ledger).or_default() += 1,
            _ => drop(self.absent.remove(&ledger)),
        }
        match outcome {
            Ok(_) => drop(self.waiting.remove(&ledger)),
            Err(error) => drop(self.waiting.insert(ledger, reason(error))),
        }
    }

    /// Whether a ledger's object is given up if the next look does not find it either.
    fn is_missed(&self, ledger: LedgerId) -> bool {
        self.absent.get(&ledger).is_some_and(|looks| looks + 1 >= ABSENCES)
    }

    /// The run has ended. What is news for the log: a reason, or that there is none any more.
    fn ended(&mut self, now_ms: u64) -> Option<Option<String>> {
        self.looking = None;
        if self.waiting.is_empty() {
            (self.failures, self.not_before_ms) = (0, 0);
        } else {
            let pause = PAUSE_MS.0.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MS.1);
            self.failures += 1;
            self.not_before_ms = now_ms + pause;
        }
        let now = self.waiting.values().next().cloned();
        (now != self.told).then(|| {
            self.told.clone_from(&now);
            now
        })
    }
}

impl Worker {
    /// Looks at the objects of ledgers whose copies are to go, unless that is under way or has just failed.
    pub(super) fn release(&mut self, due: Vec<LedgerId>, lag_ms: u64, now_ms: u64) {
        let state = &mut self.offloading.releasing;
        if !state.starts(&due, now_ms) {
            if !due.is_empty() && state.looking.is_none() {
                let at_ms = state.not_before_ms;
                self.offloading.wake_at(at_ms);
            }
            return;
        }
        let Some(tier) = self.broker.tier.clone() else { return };
        let missed = |ledger| self.offloading.releasing.is_missed(ledger);
        let copies = |ledger| missed(ledger).then(|| self.ledger.bookie_reader(ledger)).flatten();
        let held = due.into_iter().filter_map(|ledger| Some((self.ledger.held(ledger)?, copies(ledger))));
        let held: Vec<_> = held.collect();
        let stop = self.broker.tasks.token().child_token();
        self.offloading.releasing.looking = Some(stop.clone().drop_guard());
        let handle = self.handle.clone();
        let looks = async move {
            let mut held = held.into_iter();
            while let Some((next, copies)) = held.next() {
                let outcome = tier.look(&next).await;
                if let (Err(error), Some(copies)) = (&outcome, copies)
                    && is_absent(error)
                    && let Some(gone) = given_up(&tier, &next, &copies).await
                {
                    handle.put(Message::Done(Box::new(move |w| w.gone(next.ledger, gone))));
                }
                // The others would be asked for in vain.
                let rest = match &outcome {
                    Err(error) if by_store(error) => held.by_ref().map(|(held, _)| held.ledger).collect(),
                    _ => Vec::new(),
                };
                for ledger in rest {
                    let outcome = outcome.clone();
                    handle.put(Message::Done(Box::new(move |w| w.looked(ledger, outcome, lag_ms))));
                }
                handle.put(Message::Done(Box::new(move |w| w.looked(next.ledger, outcome, lag_ms))));
            }
            handle.put(Message::Done(Box::new(Worker::looks_ended)));
        };
        self.broker.tasks.spawn("looks at offloaded ledgers", OnFailure::Log, async move {
            tokio::select! {
                biased;
                () = looks => {}
                () = stop.cancelled() => {}
            }
        });
    }

    fn looked(&mut self, ledger: LedgerId, outcome: Result<Seen, ObjectError>, lag_ms: u64) {
        self.offloading.releasing.looked(ledger, &outcome);
        match outcome {
            Ok(seen) => {
                let now_ms = self.broker.clock.wall_ms();
                self.change_unasked(vec![(ledger, Change::Release { seen, now_ms, lag_ms })]);
            }
            Err(error) => {
                tracing::debug!(topic = %self.name, %ledger, code = %error.code(), %error, "bookie copies stay");
            }
        }
    }

    /// Bookies have it, the store has not.
    fn gone(&mut self, ledger: LedgerId, gone: Gone) {
        tracing::warn!(topic = %self.name, %ledger, "the object is gone from the store; bookies have the ledger, it is uploaded again");
        let (now_ms, grace_ms) = (self.broker.clock.wall_ms(), self.ledger.removal_grace_ms());
        self.offloading.again = self.offloading.again.max(Some(ledger));
        self.change_unasked(vec![(ledger, Change::Return { gone, now_ms, grace_ms })]);
    }

    fn looks_ended(&mut self) {
        let now_ms = self.broker.clock.wall_ms();
        let news = self.offloading.releasing.ended(now_ms);
        let ledgers = self.offloading.releasing.waiting.len();
        match news {
            Some(Some(reason)) => tracing::warn!(
                topic = %self.name,
                ledgers,
                reason,
                "bookie copies of offloaded ledgers were to go and stay until their objects are seen in the store"
            ),
            Some(None) => tracing::info!(topic = %self.name, "bookie copies of offloaded ledgers go again"),
            None => {}
        }
        self.offloading.rules_changed();
    }
}

/// Whether an object that was not found can be given up: bookies show all of its ledger, and it is still not there behind that.
async fn given_up(tier: &Tier, held: &Held, copies: &LedgerReader) -> Option<Gone> {
    if let Err(error) = copies.read_whole().await {
        tracing::warn!(ledger = %held.ledger, %error, "the object is gone from the store, and bookies do not have all of the ledger: put the object back");
        return None;
    }
    tier.gone(held).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_offload::blob::BlobError;

    fn absent() -> Result<Seen, ObjectError> {
        Err(ObjectError::Blob(BlobError::Absent("k".into())))
    }

    #[test]
    fn an_object_is_missed_when_look_after_look_does_not_find_it() {
        let mut state = Releasing::default();
        let ledger = LedgerId(1);
        let away = || Err(ObjectError::Blob(BlobError::Failed { key: "k".into(), reason: "away".into() }));
        for _ in 0..2 {
            // A store that does not answer says nothing of the object.
            for _ in 0..ABSENCES - 1 {
                assert!(!state.is_missed(ledger));
                state.looked(ledger, &absent());
            }
            assert!(state.is_missed(ledger) && !state.is_missed(LedgerId(2)));
            state.looked(ledger, &away());
        }
        assert!(!state.is_missed(ledger));
    }

    #[test]
    fn a_wait_is_named_told_once_and_tried_again_at_growing_pauses() {
        let mut state = Releasing::default();
        let due = [LedgerId(1), LedgerId(2)];
        assert!(state.starts(&due, 0) && !state.starts(&[], 0));
        state.looked(LedgerId(1), &absent());
        let told = state.ended(1_000).flatten().unwrap();
        assert_eq!(told, "GM-4011: no object k in the store");
        assert_eq!(state.waits(), (1, Some(&told)));
        assert!(!state.starts(&due, 5_999) && state.starts(&due, 6_000));
        state.looked(LedgerId(1), &absent());
        assert_eq!(state.ended(6_000), None, "it is no news");
        assert!(!state.starts(&due, 15_999) && state.starts(&due, 16_000));
        // It was trimmed: nothing waits any more.
        assert!(state.starts(&[LedgerId(2)], 16_000));
        assert_eq!(state.waits(), (0, None));
        assert_eq!((state.ended(16_000), state.not_before_ms), (Some(None), 0));
    }
}
