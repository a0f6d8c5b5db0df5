//! Reading entries back: the slots of the write set, until one has them intact.
//!
//! A positive answer of any slot suffices, a checksum that fails is no answer, and absence is believed only from a negative
//! quorum: damage on one bookie never looks like the end of a ledger. The next slot is asked when one says no, and beside one
//! that takes longer than nearly all reads do; the first good answer ends the read, and the other is taken back.

use super::hedge::{Hedge, PATIENCE};
use super::{LedgerView, ReadError};
use crate::entry::Entry;
use crate::rpc::{BookieRef, BookieRpc, Read, ReadAnswer, ReadClass};
use futures::stream::{FuturesUnordered, StreamExt};
use geminga_common::ids::{EntryId, LedgerId};
use tokio::time::Instant;

/// Whom to ask for what.
pub(crate) struct Plan {
    request: Read,
    bookies: Vec<BookieRef>,
    negative: u32,
}

/// `None` when the ids lie in no fragment.
pub(crate) fn plan(
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
        bookies: slots.filter_map(|slot| fragment.ensemble.get(slot as usize)?.clone()).collect(),
        negative: view.quorum.negative(),
    })
}

/// Asks until one slot has the entries, or all have been asked.
pub(crate) async fn run(rpc: &dyn BookieRpc, hedge: &Hedge, plan: Plan) -> Result<Vec<Entry>, ReadError> {
    let Plan { request, bookies, negative } = plan;
    let (start, class) = (Instant::now(), request.class);
    let after = hedge.begin(class);
    let mut untried = bookies.iter();
    let mut asked = FuturesUnordered::new();
    let ask = |bookie: &BookieRef| {
        let (bookie, reading) = (bookie.clone(), rpc.read(bookie, request));
        async move { (bookie, reading.await) }
    };
    asked.extend(untried.next().map(ask));
    let mut absent = 0;
    let mut patience = start + after;
    while !asked.is_empty() {
        tokio::select! {
            biased;
            Some((bookie, answer)) = asked.next() => {
                if let Some(entries) = judge(&request, &bookie, answer, &mut absent) {
                    hedge.found(class, start.elapsed());
                    return Ok(entries);
                }
                asked.extend(untried.next().map(ask));
                patience = Instant::now() + after;
            }
            // The last one is waited for: the rpc has deadlines of its own.
            () = tokio::time::sleep_until(patience), if untried.len() > 0 => {
                let now = Instant::now();
                if now >= start + PATIENCE || hedge.spend(class) {
                    asked.extend(untried.next().map(ask));
                    patience = now + after;
                } else {
                    patience = start + PATIENCE;
                }
            }
        }
    }
    if absent >= negative {
        Err(ReadError::NoSuchEntry(request.first))
    } else {
        Err(ReadError::Unavailable(request.first))
    }
}

/// The entries of an answer, if it has them intact; counts provable absence.
fn judge(request: &Read, bookie: &BookieRef, answer: ReadAnswer, absent: &mut u32) -> Option<Vec<Entry>> {
    match answer {
        ReadAnswer::Found(entries) => {
            let entries = intact(request.ledger, request.first, request.last, entries);
            if !entries.is_empty() {
                return Some(entries);
            }
            tracing::warn!(ledger = %request.ledger, entry = %request.first, %bookie, "damaged entry read");
        }
        ReadAnswer::NotFound(_) => *absent += 1,
        ReadAnswer::Unknown(doubt) => {
            tracing::debug!(ledger = %request.ledger, entry = %request.first, %bookie, ?doubt, "read undecided");
        }
    }
    None
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
