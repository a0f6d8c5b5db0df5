//! The record `b/{id}`: a store's start against what the cluster knows of it.
//!
//! | the record says | the store says | what follows |
//! |---|---|---|
//! | nothing | sound | a fresh record, read-write |
//! | same incarnation, fewer or as many starts | sound | starts, address and labels are updated; the state stays: a drain outlives a restart |
//! | same incarnation, more starts | | the volume went back in time: DataLoss, whatever the disk says |
//! | same incarnation, DataLoss | | DataLoss stays: only a controller's proof lifts it, with a new incarnation |
//! | same incarnation, Lost | damaged | nothing counts on it any more: it gets a new incarnation and starts again with what it has |
//! | same incarnation, Gone or Lost | | the start is refused: ledgers no longer count on this store |
//! | another incarnation | sound | another store under the same name: ledgers that count on the old one know that by its incarnation. Told |
//! | another name's incarnation | | the start is refused: the directory is another bookie's, or the name was changed |
//! | | damaged | DataLoss |
//!
//! [`decide`] is pure; the shell writes over the revision it read. A store's starts are counted on its disk before it gets here, so
//! equal counts are the same start, asked twice because an answer was lost.

use super::NodeError;
use geminga_bookie_client::registry::record::{BookieRecord, LiveRecord, NodeState};
use geminga_common::error::Code;
use geminga_common::ids::BookieId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Txn, TxnOutcome, list_all};
use geminga_common::retry::Backoff;
use geminga_common::rng::Rng;
use std::time::Duration;

pub(super) const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5), attempts_max: None };

/// What a store says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mine {
    /// Its record as it would write it.
    pub record: BookieRecord,
    /// It lost something.
    pub data_loss: bool,
}

/// What follows from a start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// This record is to be written.
    Write(BookieRecord),
    /// The cluster has given this store up.
    Refused,
    /// The cluster has let go of what this damaged store was: it may become another.
    Released,
}

/// What a start comes to, from the record `known` in metadata: see the table.
#[must_use]
pub fn decide(known: Option<&BookieRecord>, mine: &Mine) -> Start {
    let same = known.filter(|known| known.incarnation == mine.record.incarnation);
    let state = match same {
        Some(known) if known.state == NodeState::Lost && mine.data_loss => return Start::Released,
        Some(known) if matches!(known.state, NodeState::Gone | NodeState::Lost) => return Start::Refused,
        Some(known) if known.boot > mine.record.boot => NodeState::DataLoss,
        Some(known) if known.state == NodeState::Provisioning => NodeState::ReadWrite,
        Some(known) => known.state,
        None => NodeState::ReadWrite,
    };
    let state = if mine.data_loss { NodeState::DataLoss } else { state };
    let boot = same.map_or(0, |known| known.boot).max(mine.record.boot);
    Start::Write(BookieRecord { state, boot, ..mine.record.clone() })
}

/// Writes the record, for as long as it takes; answers the state.
pub(super) async fn register(
    meta: &dyn MetadataStore,
    keys: &Keys,
    id: &BookieId,
    mine: &Mine,
) -> Result<NodeState, NodeError> {
    patiently(async || attempt(meta, keys, id, mine).await).await
}

async fn attempt(
    meta: &dyn MetadataStore,
    keys: &Keys,
    id: &BookieId,
    mine: &Mine,
) -> Result<Option<NodeState>, NodeError> {
    let key = keys.bookie(id);
    let stored = meta.get(&key).await?;
    let known = stored.as_ref().map(|stored| BookieRecord::decode(&stored.value)).transpose();
    let known = known.map_err(|error| {
        tracing::error!(code = %Code::RECORD_UNREADABLE, bookie = %id, %error, "bookie record cannot be read");
        NodeError::Record(id.to_string())
    })?;
    let news = known.as_ref().is_none_or(|known| known.incarnation != mine.record.incarnation);
    if news && let Some(other) = namesake(meta, keys, id, mine).await? {
        return Err(NodeError::OtherBookie { id: id.to_string(), other: other.to_string() });
    }
    let record = match decide(known.as_ref(), mine) {
        Start::Write(record) => record,
        Start::Refused => return Err(NodeError::Retired(id.to_string())),
        Start::Released => return Err(NodeError::Released),
    };
    if record.state == NodeState::DataLoss {
        tracing::error!(
            code = %Code::DATA_LOSS,
            bookie = %id,
            starts = mine.record.boot,
            starts_known = known.as_ref().map(|known| known.boot),
            "the store has lost data: it serves what it has, proves no absence and takes nothing"
        );
    }
    let compare = match &stored {
        Some(stored) => Compare::ModRevision(key.clone(), stored.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    let txn = Txn { compares: vec![compare], ops: vec![Op::put(key, record.encode())] };
    match meta.txn(txn).await? {
        TxnOutcome::Committed(_) => {
            if let Some(known) = known {
                tell_replaced(id, &known, mine);
            }
            Ok(Some(record.state))
        }
        // Somebody changed it meanwhile: look again.
        TxnOutcome::CompareFailed => Ok(None),
    }
}

/// The bookie of another name that the cluster knows this very store by. One that it has given up is none.
async fn namesake(
    meta: &dyn MetadataStore,
    keys: &Keys,
    id: &BookieId,
    mine: &Mine,
) -> Result<Option<BookieId>, NodeError> {
    let own = keys.bookie(id);
    let all = list_all(meta, &keys.bookies_prefix()).await?;
    let other = all.iter().filter(|stored| stored.key != own).find(|stored| {
        // What cannot be read says nothing of this store.
        BookieRecord::decode(&stored.value).is_ok_and(|other| {
            let given_up = matches!(other.state, NodeState::Gone | NodeState::Lost);
            other.incarnation == mine.record.incarnation && !given_up
        })
    });
    Ok(other.and_then(|stored| keys.bookie_of_key(&stored.key)))
}

/// Another store serves under a name: that is meant when it is a new one for what was lost, and else somebody should know.
fn tell_replaced(id: &BookieId, known: &BookieRecord, mine: &Mine) {
    let given_up = matches!(known.state, NodeState::Gone | NodeState::Lost);
    if known.incarnation != mine.record.incarnation && !given_up {
        tracing::warn!(
            code = %Code::DATA_DIRECTORY_FOREIGN, bookie = %id,
            known = %known.incarnation, found = %mine.record.incarnation,
            "another store serves under this bookie's name from now on: what the cluster counted on in the one before is copied from \
             other bookies. If the data directory was emptied or mistaken, stop this bookie and put the former one back"
        );
    }
}

/// Waits until no other store lives under this name. A predecessor with the same store is no other: the store's lock says that it is
/// dead.
pub(super) async fn wait_for_name(
    meta: &dyn MetadataStore,
    keys: &Keys,
    id: &BookieId,
    mine: &LiveRecord,
    ttl: Duration,
) -> Result<(), NodeError> {
    let until = tokio::time::Instant::now() + ttl * 2;
    patiently(async || {
        let stored = meta.get(&keys.live_bookie(id)).await?;
        let other = stored.and_then(|stored| LiveRecord::decode(&stored.value).ok());
        match other.filter(|other| other.incarnation != mine.incarnation) {
            None => Ok(Some(())),
            Some(_) if tokio::time::Instant::now() >= until => Err(NodeError::NameTaken(id.to_string())),
            Some(_) => Ok(None),
        }
    })
    .await
}

/// Asks again while metadata is away, or there is no answer yet.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<Option<T>, NodeError>) -> Result<T, NodeError> {
    let (mut rng, mut failures) = (Rng::from_system(), 0);
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(NodeError::Metadata(error @ (MetaError::Unavailable(_) | MetaError::Unknown(_)))) => {
                tracing::warn!(%error, "cannot register yet, trying again");
                failures += 1;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(BACKOFF.delay(failures, &mut rng)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_bookie_client::registry::record::Labels;
    use geminga_common::ids::Incarnation;

    fn record(incarnation: u64, boot: u64, state: NodeState) -> BookieRecord {
        BookieRecord {
            incarnation: Incarnation(incarnation),
            boot,
            address: "h:1".into(),
            labels: Labels::default(),
            state,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        }
    }

    fn mine(incarnation: u64, boot: u64) -> Mine {
        Mine { record: record(incarnation, boot, NodeState::ReadWrite), data_loss: false }
    }

    fn after(known: Option<(u64, u64, NodeState)>, mine: &Mine) -> Option<(u64, u64, NodeState)> {
        let known = known.map(|(incarnation, boot, state)| record(incarnation, boot, state));
        match decide(known.as_ref(), mine) {
            Start::Write(r) => Some((r.incarnation.0, r.boot, r.state)),
            Start::Refused => None,
            Start::Released => panic!("released"),
        }
    }

    #[test]
    fn a_start_is_compared_with_what_the_cluster_knows() {
        use NodeState::*;
        assert_eq!(after(None, &mine(1, 1)), Some((1, 1, ReadWrite)));
        assert_eq!(after(Some((1, 1, ReadWrite)), &mine(1, 2)), Some((1, 2, ReadWrite)));
        assert_eq!(after(Some((1, 2, ReadWrite)), &mine(1, 2)), Some((1, 2, ReadWrite)), "asked twice");
        for state in [ReadOnly, Draining] {
            assert_eq!(after(Some((1, 1, state)), &mine(1, 2)), Some((1, 2, state)), "outlives a restart");
        }
    }

    #[test]
    fn a_volume_that_went_back_in_time_is_data_loss_and_stays_it() {
        use NodeState::*;
        assert_eq!(after(Some((1, 9, ReadWrite)), &mine(1, 7)), Some((1, 9, DataLoss)));
        assert_eq!(
            after(Some((1, 9, DataLoss)), &mine(1, 10)),
            Some((1, 10, DataLoss)),
            "counting up is no proof"
        );
        let damaged = Mine { data_loss: true, ..mine(1, 8) };
        assert_eq!(after(Some((1, 7, Draining)), &damaged), Some((1, 8, DataLoss)));
    }

    #[test]
    fn another_store_starts_afresh_and_one_given_up_does_not_come_back() {
        use NodeState::*;
        for state in [ReadWrite, DataLoss, Gone, Lost] {
            assert_eq!(after(Some((1, 9, state)), &mine(2, 1)), Some((2, 1, ReadWrite)));
        }
        let damaged = Mine { data_loss: true, ..mine(1, 10) };
        assert_eq!(decide(Some(&record(1, 9, Lost)), &damaged), Start::Released, "what it was is let go of");
        assert_eq!(decide(Some(&record(1, 9, Gone)), &damaged), Start::Refused);
        for state in [Gone, Lost] {
            assert_eq!(after(Some((1, 9, state)), &mine(1, 10)), None);
        }
    }
}
