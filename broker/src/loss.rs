//! What a lost part of the only store means: every ledger that metadata name, held against what is left. Reads metadata and asks `left`,
//! changes nothing.

use crate::cursor::chain::{Chain, ChainError};
use crate::managed_ledger::record::{self, RecordError};
use geminga_bookie_client::record::{ClosedLedger, DecodeError, Fragment, LedgerRecord};
use geminga_bookie_client::rpc::{BookieRef, IdRange};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, list_all};
use std::fmt;

/// What is left of ledgers.
pub trait Left {
    /// Which of these entries are there, or may be; rising.
    fn left(&self, ledger: LedgerId, ids: IdRange) -> Vec<IdRange>;
    /// The last entry that is there of an open ledger, and how far it is known to have gone: what was acknowledged, or lay in what is damaged.
    fn tail(&self, ledger: LedgerId) -> (Option<EntryId>, Option<EntryId>);
    /// Whether something of a ledger may be among what was lost.
    fn may_lack(&self, ledger: LedgerId) -> bool;
}

/// One ledger that lost something, or may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerLoss {
    /// The ledger.
    pub ledger: LedgerId,
    /// Entries that were there and are not, rising.
    pub lost: Vec<IdRange>,
    /// It was open: what followed the last entry that is left (`None`: the ledger is empty) may be lost besides.
    pub open_behind: Option<Option<EntryId>>,
}

/// What an owner of ledgers lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnerLoss {
    /// A topic, or a cursor log by its key.
    pub owner: String,
    /// Whether it is a cursor log: what is lost then are positions of subscriptions.
    pub cursors: bool,
    /// Its ledgers that lost something or were open.
    pub ledgers: Vec<LedgerLoss>,
}

impl OwnerLoss {
    /// Entries that are known to be lost.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.ledgers.iter().flat_map(|ledger| &ledger.lost).map(|run| run.last.0 - run.first.0 + 1).sum()
    }
}

impl fmt::Display for OwnerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.cursors { "cursor log" } else { "topic" };
        write!(f, "{what} {}: {} entries are known to be lost", self.owner, self.entries())?;
        for LedgerLoss { ledger, lost, open_behind } in &self.ledgers {
            for run in lost {
                write!(f, "\n    {ledger}:{} to {ledger}:{}", run.first, run.last)?;
            }
            match open_behind {
                Some(Some(last)) => write!(
                    f,
                    "\n    ledger {ledger} was open: it ends at entry {last}, what may have followed is lost"
                )?,
                Some(None) => write!(f, "\n    ledger {ledger} was open: nothing of it is left")?,
                None => {}
            }
        }
        Ok(())
    }
}

/// Why the loss cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetaError),
    /// A record cannot be read.
    #[error("the record {0} cannot be read: {1}")]
    Record(String, String),
    /// A ledger has other copies: they heal the store, and nothing is to be given up.
    #[error(
        "ledger {0} has copies on other bookies; start this store as a bookie of its cluster, and repair copies back what it lacks"
    )]
    OtherCopies(LedgerId),
}

impl Coded for SurveyError {
    fn code(&self) -> Code {
        match self {
            Self::Metadata(error) => error.code(),
            Self::Record(..) => Code::RECORD_UNREADABLE,
            Self::OtherCopies(_) => Code::LOSS_NOT_ACCEPTED,
        }
    }
}

/// Holds every ledger that metadata name against what is left. `me`: whether a member of an ensemble is the store in question.
///
/// # Errors
/// See [`SurveyError`].
pub async fn survey(
    store: &dyn MetadataStore,
    keys: &Keys,
    me: &(dyn Fn(&BookieRef) -> bool + Sync),
    left: &(dyn Left + Sync),
) -> Result<Vec<OwnerLoss>, SurveyError> {
    let mut all = Vec::new();
    for stored in list_all(store, &keys.all_topics_prefix()).await? {
        let failed = |error: RecordError| SurveyError::Record(stored.key.clone(), error.to_string());
        let (state, _) = record::decode(&stored.value).map_err(failed)?;
        let owner = keys.topic_of_key(&stored.key).map_or(stored.key.clone(), |name| name.to_string());
        let on_bookies = state.segments().iter().filter(|segment| segment.offload.on_bookies());
        // What the object store has as well is read from there.
        let closed: Vec<Held<'_>> =
            on_bookies.map(|segment| (segment.ledger(), segment.offload.object().is_some())).collect();
        let open = state.open().map(|open| open.id);
        all.extend(look(store, keys, (owner, false), (&closed, open), me, left).await?);
    }
    for stored in list_all(store, &keys.all_cursor_logs_prefix()).await? {
        let failed = |error: ChainError| SurveyError::Record(stored.key.clone(), error.to_string());
        let chain = Chain::decode(&stored.value).map_err(failed)?;
        let closed: Vec<Held<'_>> = chain.closed.iter().map(|ledger| (ledger, false)).collect();
        all.extend(look(store, keys, (stored.key.clone(), true), (&closed, chain.open), me, left).await?);
    }
    Ok(all)
}

/// A closed ledger that bookies hold, and whether the object store does as well.
type Held<'l> = (&'l ClosedLedger, bool);

async fn look(
    store: &dyn MetadataStore,
    keys: &Keys,
    (owner, cursors): (String, bool),
    (closed, open): (&[Held<'_>], Option<LedgerId>),
    me: &(dyn Fn(&BookieRef) -> bool + Sync),
    left: &(dyn Left + Sync),
) -> Result<Option<OwnerLoss>, SurveyError> {
    let mut ledgers = Vec::new();
    for (ledger, elsewhere) in closed {
        alone(ledger.id, &ledger.fragments, me)?;
        let Some(last) = ledger.last.filter(|_| !elsewhere) else { continue };
        let ids = IdRange { first: EntryId(0), last };
        let lost = gaps(ids, &left.left(ledger.id, ids));
        if !lost.is_empty() {
            ledgers.push(LedgerLoss { ledger: ledger.id, lost, open_behind: None });
        }
    }
    if let Some(ledger) = open {
        let key = keys.ledger(ledger);
        if let Some(stored) = store.get(&key).await? {
            let failed = |error: DecodeError| SurveyError::Record(key.clone(), error.to_string());
            alone(ledger, &LedgerRecord::decode(&stored.value).map_err(failed)?.fragments, me)?;
        }
    }
    if let Some(ledger) = open.filter(|ledger| left.may_lack(*ledger)) {
        let (last, acknowledged) = left.tail(ledger);
        let told = last.max(acknowledged);
        let lost = told.map_or_else(Vec::new, |last| {
            let ids = IdRange { first: EntryId(0), last };
            gaps(ids, &left.left(ledger, ids))
        });
        ledgers.push(LedgerLoss { ledger, lost, open_behind: Some(last) });
    }
    Ok((!ledgers.is_empty()).then_some(OwnerLoss { owner, cursors, ledgers }))
}

fn alone(
    ledger: LedgerId,
    fragments: &[Fragment],
    me: &(dyn Fn(&BookieRef) -> bool + Sync),
) -> Result<(), SurveyError> {
    let others = fragments.iter().flat_map(|fragment| fragment.ensemble.iter().flatten()).any(|m| !me(m));
    if others { Err(SurveyError::OtherCopies(ledger)) } else { Ok(()) }
}

/// What of `ids` is in none of the runs, which rise.
fn gaps(ids: IdRange, runs: &[IdRange]) -> Vec<IdRange> {
    let (mut out, mut next) = (Vec::new(), ids.first);
    for run in runs {
        if let Some(last) = run.first.previous().filter(|last| next <= *last) {
            out.push(IdRange { first: next, last });
        }
        next = next.max(run.last.next());
    }
    if next <= ids.last {
        out.push(IdRange { first: next, last: ids.last });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_run_holds_is_lost() {
        let ids = |first, last| IdRange { first: EntryId(first), last: EntryId(last) };
        assert_eq!(gaps(ids(0, 9), &[]), [ids(0, 9)]);
        assert_eq!(gaps(ids(0, 9), &[ids(0, 3), ids(6, 7)]), [ids(4, 5), ids(8, 9)]);
        assert_eq!(gaps(ids(0, 9), &[ids(0, 3), ids(4, 9)]), []);
    }
}
