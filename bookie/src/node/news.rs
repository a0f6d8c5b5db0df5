//! What changes while a node runs, told in its record `b/{id}`: damage it has found, so that what was lost is copied here again; and how
//! full its disk is, so that ledgers go elsewhere.

use super::NodeError;
use super::registration::BACKOFF;
use crate::{Bookie, Room};
use geminga_bookie_client::registry::record::BookieRecord;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetadataStore, Op, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct News {
    damage: u64,
    room: Room,
}

/// Keeps the record up to date until the group stops.
pub(super) fn keep_told(meta: Arc<dyn MetadataStore>, keys: Keys, bookie: &Bookie, tasks: &TaskGroup) {
    let (mut damage, mut room) = (bookie.damage(), bookie.room());
    let (bookie, stop) = (bookie.clone(), tasks.token());
    tasks.spawn("bookie-news", OnFailure::Log, async move {
        let telling = async {
            // Not `changed` first: something may have happened between the registration and here.
            loop {
                let news = News { damage: *damage.borrow_and_update(), room: *room.borrow_and_update() };
                patiently(&*meta, &keys, &bookie, news).await;
                let over = tokio::select! {
                    changed = damage.changed() => changed.is_err(),
                    changed = room.changed() => changed.is_err(),
                };
                if over {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = telling => {}
        }
    });
}

async fn patiently(meta: &dyn MetadataStore, keys: &Keys, bookie: &Bookie, news: News) {
    let (mut rng, mut failures) = (Rng::from_system(), 0);
    loop {
        match tell(meta, keys, bookie, news).await {
            Ok(Some(())) => return,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, ?news, "the cluster cannot be told of this yet");
                failures += 1;
            }
        }
        tokio::time::sleep(BACKOFF.delay(failures, &mut rng)).await;
    }
}

/// `None`: somebody changed the record meanwhile.
async fn tell(
    meta: &dyn MetadataStore,
    keys: &Keys,
    bookie: &Bookie,
    news: News,
) -> Result<Option<()>, NodeError> {
    let key = keys.bookie(bookie.id());
    let Some(stored) = meta.get(&key).await? else { return Ok(Some(())) };
    let record = BookieRecord::decode(&stored.value);
    let record = record.map_err(|_| NodeError::Record(bookie.id().to_string()))?;
    let known = News { damage: record.damage, room: record.room };
    if record.incarnation != bookie.incarnation() || known == news {
        return Ok(Some(()));
    }
    let compare = Compare::ModRevision(key.clone(), stored.mod_revision);
    let put = Op::put(key, BookieRecord { damage: news.damage, room: news.room, ..record }.encode());
    match meta.txn(Txn { compares: vec![compare], ops: vec![put] }).await? {
        TxnOutcome::Committed(_) => Ok(Some(())),
        TxnOutcome::CompareFailed => Ok(None),
    }
}
