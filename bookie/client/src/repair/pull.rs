//! The destination's side: a bookie fetches what it lacks from the other members of a fragment and stores it.
//!
//! Only entries whose checksum holds are stored. What is there already is not fetched. A call ends after [`Replicate::bytes_max`], so
//! that whoever drives a repair sees it go on and can take it elsewhere.

use crate::entry::Entry;
use crate::ledgers::LedgerView;
use crate::ledgers::hedge::Hedge;
use crate::ledgers::read;
use crate::record::Fragment;
use crate::rpc::{
    AddError, BookieRef, BookieRpc, ControlError, IdRange, Presence, ReadClass, Replicate, ReplicateError,
    Replicated,
};
use futures::future::BoxFuture;
use geminga_common::ids::{EntryId, LedgerId};

/// Bytes fetched at a time: what a repair holds in memory.
const READ_BYTES: usize = 1 << 20;

/// The store that gets the copies.
pub trait Sink: Send + Sync {
    /// Name and incarnation.
    fn me(&self) -> BookieRef;
    /// What is durably there.
    fn presence(&self, ledger: LedgerId, ids: IdRange) -> BoxFuture<'_, Result<Presence, ControlError>>;
    /// Stores copies, whatever the ledger's term; answered when they are durable.
    fn store(&self, ledger: LedgerId, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), AddError>>;
}

/// Ids of the slot from `from` on that `present` lacks: the first such run, cut at what the write sets do not want here.
fn next_gap(request: &Replicate, present: &[IdRange], from: EntryId) -> Option<IdRange> {
    let wanted = |id: EntryId| request.quorum.write_set(id).contains(request.slot);
    let mut first = from;
    loop {
        if first > request.ids.last {
            return None;
        }
        if let Some(run) = present.iter().find(|run| run.first <= first && first <= run.last) {
            first = run.last.next();
        } else if wanted(first) {
            break;
        } else {
            first = first.next();
        }
    }
    let until = present.iter().map(|run| run.first).find(|at| *at > first);
    let end = until.and_then(EntryId::previous).map_or(request.ids.last, |end| end.min(request.ids.last));
    let mut last = first;
    while last < end && wanted(last.next()) {
        last = last.next();
    }
    Some(IdRange { first, last })
}

/// Does one call's worth of copying.
///
/// # Errors
/// An entry that no source can give now, a store that does not take it, or one that is another than the caller means.
pub async fn pull(
    rpc: &dyn BookieRpc,
    sink: &dyn Sink,
    request: &Replicate,
) -> Result<Replicated, ReplicateError> {
    let me = sink.me();
    let mut ensemble = request.ensemble.clone();
    for member in ensemble.iter_mut().filter(|member| member.as_ref() == Some(&me)) {
        *member = None;
    }
    let fragments = vec![Fragment { first: EntryId(0), ensemble }];
    let view = LedgerView { id: request.ledger, quorum: request.quorum, fragments };
    let presence = sink.presence(request.ledger, request.ids).await?;
    let hedge = Hedge::default();
    let mut done = Replicated { next: None, entries: 0, bytes: 0 };
    let mut at = request.ids.first;
    while let Some(gap) = next_gap(request, &presence.present, at) {
        if done.bytes >= request.bytes_max {
            done.next = Some(gap.first);
            return Ok(done);
        }
        let unreadable = ReplicateError::Unreadable(gap.first);
        let plan = read::plan(&view, gap.first, gap.last, READ_BYTES, ReadClass::Repair)
            .ok_or(unreadable.clone())?;
        let entries = read::run(rpc, &hedge, plan).await.map_err(|_| unreadable)?;
        at = entries.last().map_or(gap.last, |entry| entry.id).next();
        done.entries += entries.len() as u64;
        done.bytes += entries.iter().map(|entry| entry.size() as u64).sum::<u64>();
        sink.store(request.ledger, entries).await.map_err(ReplicateError::Store)?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quorum::QuorumSpec;

    #[test]
    fn gaps_are_what_the_slot_wants_and_lacks() {
        let ids = |first, last| IdRange { first: EntryId(first), last: EntryId(last) };
        let request = |quorum: QuorumSpec, slot| Replicate {
            ledger: LedgerId(1),
            quorum,
            slot,
            ensemble: Vec::new(),
            ids: ids(0, 9),
            bytes_max: 1,
        };
        let all = request(QuorumSpec::new(3, 3, 2).unwrap(), 0);
        assert_eq!(next_gap(&all, &[], EntryId(0)), Some(ids(0, 9)));
        assert_eq!(next_gap(&all, &[ids(0, 3), ids(6, 7)], EntryId(0)), Some(ids(4, 5)));
        assert_eq!(next_gap(&all, &[ids(0, 3), ids(6, 7)], EntryId(6)), Some(ids(8, 9)));
        assert_eq!(next_gap(&all, &[ids(0, 20)], EntryId(0)), None);
        let striped = request(QuorumSpec::new(4, 2, 2).unwrap(), 1);
        let wanted: Vec<u64> =
            (0..10).filter(|id| striped.quorum.write_set(EntryId(*id)).contains(1)).collect();
        let mut seen = Vec::new();
        let mut at = EntryId(0);
        while let Some(gap) = next_gap(&striped, &[], at) {
            seen.extend(gap.first.0..=gap.last.0);
            at = gap.last.next();
        }
        assert_eq!(seen, wanted);
    }
}
