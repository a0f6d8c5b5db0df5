//! Reading entries back: the slots of the write set, until one has them intact.
//!
//! A positive answer of any slot suffices, a checksum that fails is no answer, and absence is believed only from a negative
//! quorum: damage on one bookie never looks like the end of a ledger. The next slot is asked when one says no, and beside one
//! that takes longer than nearly all reads do; the first good answer ends the read, and the other is taken back.

use super::hedge::{Hedge, PATIENCE};
use super::{LedgerView, ReadError};
use crate::entry::Entry;
use crate::mutant::{Mutant, active};
use crate::rpc::{BookieRef, BookieRpc, IdRange, Read, ReadAnswer, ReadClass};
use futures::stream::{FuturesUnordered, StreamExt};
use geminga_common::ids::{EntryId, LedgerId};
use std::collections::VecDeque;
use tokio::time::Instant;

/// A read as a pure machine: whom to ask next, and what the answers amount to.
#[derive(Clone, Debug)]
pub struct Plan {
    request: Read,
    untried: VecDeque<BookieRef>,
    negative: u32,
    absent: u32,
    /// How far from the first id on the only copy has lost what was there.
    lost: Option<EntryId>,
}

/// `None` when the ids lie in no fragment.
#[must_use]
pub fn plan(
    view: &LedgerView,
    first: EntryId,
    last: EntryId,
    bytes_max: usize,
    class: ReadClass,
) -> Option<Plan> {
    let at = view.fragments.iter().rposition(|fragment| fragment.first <= first)?;
    let fragment = &view.fragments[at];
    let end = view.fragments.get(at + 1).and_then(|next| next.first.previous());
    let last = end.map_or(last, |end| last.min(end)).max(first);
    let slots = view.quorum.write_order(first);
    Some(Plan {
        request: Read { ledger: view.id, first, last, bytes_max, class },
        untried: slots.filter_map(|slot| fragment.ensemble.get(slot as usize)?.clone()).collect(),
        negative: view.quorum.negative(),
        absent: 0,
        lost: None,
    })
}

impl Plan {
    /// Who holds it, if that is one alone.
    pub(crate) fn only_holder(&self) -> Option<&BookieRef> {
        self.untried.front().filter(|_| self.untried.len() == 1)
    }

    /// What to ask for.
    #[must_use]
    pub fn request(&self) -> Read {
        self.request
    }

    /// The next holder to ask; `None` when all have been.
    pub fn ask(&mut self) -> Option<BookieRef> {
        self.untried.pop_front()
    }

    /// Whether a holder is left to ask.
    #[must_use]
    pub fn is_left(&self) -> bool {
        !self.untried.is_empty()
    }

    /// The entries of an answer, if it has them intact; otherwise the next holder is to be asked.
    pub fn on_answer(&mut self, bookie: &BookieRef, answer: ReadAnswer) -> Option<Vec<Entry>> {
        let Read { ledger, first, last, .. } = self.request;
        match answer {
            ReadAnswer::Found(entries) => {
                let entries = intact(ledger, first, last, entries);
                if !entries.is_empty() {
                    return Some(entries);
                }
                if active(Mutant::DamageEndsRead) {
                    self.untried.clear();
                }
                tracing::warn!(%ledger, entry = %first, %bookie, "damaged entry read");
            }
            ReadAnswer::NotFound(_) => self.absent += 1,
            ReadAnswer::Lost { last: lost } => {
                let lost = lost.clamp(first, last);
                self.lost = Some(self.lost.map_or(lost, |before| before.min(lost)));
            }
            ReadAnswer::Unknown(doubt) => {
                tracing::debug!(%ledger, entry = %first, %bookie, ?doubt, "read undecided");
            }
        }
        None
    }

    /// What it means that nobody had the entries: absence is believed only from a negative quorum.
    #[must_use]
    pub fn verdict(&self) -> ReadError {
        let first = self.request.first;
        if let Some(last) = self.lost {
            ReadError::Lost(IdRange { first, last })
        } else if self.absent >= self.negative {
            ReadError::NoSuchEntry(self.request.first)
        } else {
            ReadError::Unavailable(self.request.first)
        }
    }
}

/// Asks until one slot has the entries, or all have been asked.
pub(crate) async fn run(rpc: &dyn BookieRpc, hedge: &Hedge, mut plan: Plan) -> Result<Vec<Entry>, ReadError> {
    let request = plan.request();
    let (start, class) = (Instant::now(), request.class);
    let after = hedge.begin(class);
    let mut asked = FuturesUnordered::new();
    let ask = |bookie: BookieRef| {
        let reading = rpc.read(&bookie, request);
        async move { (bookie, reading.await) }
    };
    asked.extend(plan.ask().map(ask));
    let mut patience = start + after;
    while !asked.is_empty() {
        tokio::select! {
            biased;
            Some((bookie, answer)) = asked.next() => {
                if let Some(entries) = plan.on_answer(&bookie, answer) {
                    hedge.found(class, start.elapsed());
                    return Ok(entries);
                }
                asked.extend(plan.ask().map(ask));
                patience = Instant::now() + after;
            }
            // The last one is waited for: the rpc has deadlines of its own.
            () = tokio::time::sleep_until(patience), if plan.is_left() => {
                let now = Instant::now();
                if now >= start + PATIENCE || hedge.spend(class) {
                    asked.extend(plan.ask().map(ask));
                    patience = now + after;
                } else {
                    patience = start + PATIENCE;
                }
            }
        }
    }
    Err(plan.verdict())
}

/// The run of entries from `first` on whose ids and checksums hold.
pub(crate) fn intact(ledger: LedgerId, first: EntryId, last: EntryId, mut entries: Vec<Entry>) -> Vec<Entry> {
    let good = |(entry, id): &(&Entry, u64)| entry.id.0 == *id && *id <= last.0 && entry.verify(ledger);
    let run = entries.iter().zip(first.0..).take_while(good).count();
    entries.truncate(run);
    entries
}

#[cfg(test)]
mod tests;
