//! Reading entries back: one slot of the write set after another until one has them intact.
//!
//! A positive answer of any slot suffices, a checksum that fails is no answer, and absence is believed only from a negative
//! quorum: damage on one bookie never looks like the end of a ledger.

use super::{LedgerView, ReadError};
use crate::entry::Entry;
use crate::rpc::{BookieRef, BookieRpc, Doubt, Read, ReadAnswer, ReadClass};
use geminga_common::ids::{EntryId, LedgerId};
use std::time::Duration;

/// A slot that has not answered by then is passed over while others are left.
const SLOT_PATIENCE: Duration = Duration::from_secs(3);

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

/// Asks until one slot answers.
pub(crate) async fn run(rpc: &dyn BookieRpc, plan: Plan) -> Result<Vec<Entry>, ReadError> {
    let Plan { request, bookies, negative } = plan;
    let mut absent = 0;
    for (i, bookie) in bookies.iter().enumerate() {
        let reading = rpc.read(bookie, request);
        // The last one is waited for: the rpc has deadlines of its own.
        let answer = if i + 1 == bookies.len() {
            reading.await
        } else {
            tokio::time::timeout(SLOT_PATIENCE, reading)
                .await
                .unwrap_or(ReadAnswer::Unknown(Doubt::Unreachable))
        };
        match answer {
            ReadAnswer::Found(entries) => {
                let entries = intact(request.ledger, request.first, request.last, entries);
                if !entries.is_empty() {
                    return Ok(entries);
                }
                tracing::warn!(ledger = %request.ledger, entry = %request.first, %bookie, "damaged entry read");
            }
            ReadAnswer::NotFound(_) => absent += 1,
            ReadAnswer::Unknown(doubt) => {
                tracing::debug!(ledger = %request.ledger, entry = %request.first, %bookie, ?doubt, "read undecided");
            }
        }
    }
    if absent >= negative {
        Err(ReadError::NoSuchEntry(request.first))
    } else {
        Err(ReadError::Unavailable(request.first))
    }
}

/// The run of entries from `first` on whose ids and checksums hold.
pub(crate) fn intact(ledger: LedgerId, first: EntryId, last: EntryId, mut entries: Vec<Entry>) -> Vec<Entry> {
    let good = |(entry, id): &(&Entry, u64)| entry.id.0 == *id && *id <= last.0 && entry.verify(ledger);
    let run = entries.iter().zip(first.0..).take_while(good).count();
    entries.truncate(run);
    entries
}
