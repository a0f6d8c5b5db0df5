//! Where closed ledgers are written down, and the one change a repair makes there. Pure but for [`publish`].
//!
//! A closed ledger stands in its owner's record (topic or cursor log), and in `l/{id}` besides while repair is recorded. A repair
//! changes members of fragments and repair ranges, in both, by one transaction over the revisions it read; the op id and all else stay,
//! so that an owner who finds its record moved can tell a repair from another owner.

use crate::cursor::chain::Chain;
use crate::managed_ledger::record as topic_record;
use bytes::Bytes;
use geminga_bookie_client::record::{ClosedLedger, LedgerKind, LedgerRecord, LedgerState, OpId};
use geminga_common::ids::LedgerId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Record, Txn, TxnOutcome};
use geminga_common::names::{Bundle, TopicName};

/// Races with owners that are lost before a ledger is left for the next round.
const ATTEMPTS: u32 = 5;

/// The key of the record that holds a ledger, from the ledger's own attributes.
pub(super) fn key_of(keys: &Keys, record: &LedgerRecord) -> Option<String> {
    let owner = &record.attributes.owner;
    match record.attributes.kind {
        LedgerKind::TopicData => TopicName::parse(owner).ok().map(|topic| keys.topic(&topic)),
        LedgerKind::CursorLog => Bundle::parse(owner).ok().map(|bundle| keys.cursor_log(&bundle)),
    }
}

/// The closed ledgers of an owner's record; `None` when it cannot be read.
pub(super) fn closed_ledgers(keys: &Keys, record: &Record) -> Option<Vec<ClosedLedger>> {
    if keys.bundle_of_cursor_log_key(&record.key).is_some() {
        return Chain::decode(&record.value).ok().map(|chain| chain.closed);
    }
    topic_record::closed_ledgers(&record.value).ok()
}

/// The record's value with `ledger` in the place of the one of that id.
fn with_ledger(keys: &Keys, record: &Record, ledger: &ClosedLedger) -> Option<Bytes> {
    if keys.bundle_of_cursor_log_key(&record.key).is_some() {
        let mut chain = Chain::decode(&record.value).ok()?;
        *chain.closed.iter_mut().find(|closed| closed.id == ledger.id)? = ledger.clone();
        return Some(chain.encode());
    }
    topic_record::with_ledger(&record.value, ledger).ok().flatten()
}

/// How a publication ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Published {
    /// The records say so.
    Done,
    /// The ledger has left its owner's record, or is not in it yet.
    Absent,
    /// Somebody else changed the ledger meanwhile.
    Moved,
}

/// Puts `new` in the place of `old`, in the owner's record and in the ledger's own.
pub(super) async fn publish(
    store: &dyn MetadataStore,
    keys: &Keys,
    key: &str,
    (old, new): (&ClosedLedger, &ClosedLedger),
    op_id: OpId,
) -> Result<Published, MetaError> {
    let mut doubt = None;
    for _ in 0..ATTEMPTS {
        let Some(owner) = store.get(key).await? else { return Ok(Published::Absent) };
        let Some(now) = find(keys, &owner, old.id) else { return Ok(Published::Absent) };
        if now == *new {
            return Ok(Published::Done);
        }
        if now != *old {
            return Ok(Published::Moved);
        }
        let own = store.get(&keys.ledger(old.id)).await?;
        let Some(txn) = transaction(keys, &owner, own.as_ref(), new, op_id) else {
            return Ok(Published::Moved);
        };
        match store.txn(txn).await {
            Ok(TxnOutcome::Committed(_)) => return Ok(Published::Done),
            Ok(TxnOutcome::CompareFailed) => {}
            // Read back: the next turn finds `new` there, or the revision moved.
            Err(error @ MetaError::Unknown(_)) => doubt = Some(error),
            Err(error) => return Err(error),
        }
    }
    doubt.map_or(Ok(Published::Moved), Err)
}

/// Whether the owner's record may yet take the ledger in: it is open there.
pub(super) fn may_take(keys: &Keys, owner: &Record, id: LedgerId) -> bool {
    if keys.bundle_of_cursor_log_key(&owner.key).is_some() {
        return Chain::decode(&owner.value).map_or(true, |chain| chain.open == Some(id));
    }
    topic_record::decode(&owner.value)
        .map_or(true, |(state, _)| state.open().is_some_and(|open| open.id == id))
}

fn find(keys: &Keys, owner: &Record, id: LedgerId) -> Option<ClosedLedger> {
    closed_ledgers(keys, owner)?.into_iter().find(|ledger| ledger.id == id)
}

/// `None` when the ledger's own record says that it is not closed: then it is its recoverer's.
fn transaction(
    keys: &Keys,
    owner: &Record,
    own: Option<&Record>,
    new: &ClosedLedger,
    op_id: OpId,
) -> Option<Txn> {
    let value = with_ledger(keys, owner, new)?;
    let mut compares = vec![Compare::ModRevision(owner.key.clone(), owner.mod_revision)];
    let mut ops = vec![Op::put(owner.key.clone(), value)];
    let key = keys.ledger(new.id);
    match own {
        None => compares.push(Compare::Absent(key)),
        Some(stored) => {
            let record = LedgerRecord::decode(&stored.value).ok()?;
            let LedgerState::Closed { .. } = record.state else { return None };
            compares.push(Compare::ModRevision(key.clone(), stored.mod_revision));
            let next = LedgerRecord {
                fragments: new.fragments.clone(),
                repair: new.repair.clone(),
                op_id,
                ..record
            };
            let whole = next.repair.is_empty();
            ops.push(if whole { Op::delete(key) } else { Op::put(key, next.encode()) });
        }
    }
    Some(Txn { compares, ops })
}
