//! The controller: deletes what is tombstoned, raises the dead-id watermark, and now and then recovers a ledger that is not its own. It
//! knows nothing but metadata and what bookies answer. Repair is in `repair`.

use crate::broker::watch_bookies;
use crate::calls::{Outcome, Req};
use crate::ledger::{Bookies, bookies_of, get, no_bookies, recover};
use crate::meta::{MetaOp, MetaReply, TOPIC, Topic, keys, watermark_of};
use crate::plan::{MS, SECOND};
use crate::repair::look;
use crate::world::Cx;
use bytes::Bytes;
use geminga_bookie_client::mutant::{Mutant, active};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::repair::standing::Absences;
use geminga_bookie_client::rpc::ControlError;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::{Compare, Op, Txn, TxnOutcome};

pub(crate) async fn run(cx: Cx) {
    let bookies = no_bookies(&cx);
    cx.spawn(watch_bookies(cx.clone(), bookies.clone()));
    let within = cx.clone();
    cx.spawn(async move {
        loop {
            delete_tombstoned(&within).await;
            within.nap(SECOND + within.below(2 * SECOND)).await;
        }
    });
    let within = cx.clone();
    cx.spawn(async move {
        loop {
            within.nap(SECOND + within.below(4 * SECOND)).await;
            let _tried_again_later = raise_watermark(&within).await;
        }
    });
    let (within, known) = (cx.clone(), bookies.clone());
    cx.spawn(async move { strays(&within, &known).await });
    let mut absences = Absences::default();
    loop {
        cx.nap(500 * MS + cx.below(2 * SECOND)).await;
        if active(Mutant::GcByListing) {
            delete_unlisted(&cx, &bookies).await;
        }
        look(&cx, &bookies, &mut absences).await;
    }
}

/// Somebody recovers ledgers without owning them.
async fn strays(cx: &Cx, bookies: &Bookies) {
    loop {
        cx.sleep(100 * MS).await;
        let wanted = cx.check(|c| std::mem::take(&mut c.stray_wanted) > 0);
        if wanted
            && let Ok(Some(stored)) = get(cx, TOPIC).await
            && let Some(open) = Topic::decode(&stored.value).open
        {
            let (within, bookies) = (cx.clone(), bookies.clone());
            cx.spawn(async move { drop(recover(&within, open, &bookies).await) });
        }
    }
}

async fn delete_tombstoned(cx: &Cx) {
    let keys = keys();
    let Ok(MetaReply::List(tombstones)) = cx.meta(MetaOp::List(keys.tombstones_prefix())).await else {
        return;
    };
    for stored in tombstones {
        let Ok(ledger) = ClosedLedger::decode(&stored.value) else { continue };
        let mut all = true;
        for bookie in bookies_of(&ledger.fragments) {
            let answer = cx.ask(&bookie, Req::Delete { ledger: ledger.id }).await;
            // Another incarnation at that name means that the store which held the entries is gone.
            all &= matches!(answer, Outcome::Control(Ok(()) | Err(ControlError::WrongIncarnation)));
        }
        if all {
            cx.check(|c| c.seen.deleted += 1);
            let unchanged = Compare::ModRevision(stored.key.clone(), stored.mod_revision);
            let txn = Txn { compares: vec![unchanged], ops: vec![Op::delete(stored.key)] };
            let _tried_again_later = cx.meta(MetaOp::Txn(txn)).await;
        }
    }
}

/// Raises the dead-id watermarks: creators first, and bookies once a look begun after that shows nothing alive below (storage.md 1.4).
async fn raise_watermark(cx: &Cx) -> Option<()> {
    let keys = keys();
    let alive = async || {
        // Not a listing, which may have holes: the one ledger that can be open is named by the topic.
        Topic::decode(&get(cx, TOPIC).await.ok()??.value).open.map_or(Some(u64::MAX), |open| Some(open.0))
    };
    let raise = async |key: String, to: u64| {
        let compare = Compare::ValueBelow(key.clone(), Bytes::copy_from_slice(&to.to_be_bytes()));
        let ops = vec![Op::put(key, Bytes::copy_from_slice(&to.to_be_bytes()))];
        matches!(
            cx.meta(MetaOp::Txn(Txn { compares: vec![compare], ops })).await,
            Ok(MetaReply::Txn(TxnOutcome::Committed(_)))
        )
    };
    let lowest = alive().await?;
    let ids = get(cx, &keys.ids()).await.ok()??;
    let to = (watermark_of(&ids) - 1).min(lowest - 1);
    if active(Mutant::OneWatermark) {
        raise(keys.wm_create(), to).await;
        return raise(keys.wm(), to).await.then_some(());
    }
    raise(keys.wm_create(), to).await;
    let to = watermark_of(&get(cx, &keys.wm_create()).await.ok()??).min(alive().await? - 1);
    raise(keys.wm(), to).await.then_some(())
}

/// What a listing lacks is gone, says the defect: whatever bookies hold of it is deleted.
async fn delete_unlisted(cx: &Cx, bookies: &Bookies) {
    let (Ok(MetaReply::List(records)), Ok(MetaReply::List(topics))) =
        (cx.meta(MetaOp::List(keys().ledgers_prefix())).await, cx.meta(MetaOp::List(TOPIC.into())).await)
    else {
        return;
    };
    let topic = topics.first().map(|t| Topic::decode(&t.value)).unwrap_or_default();
    let listed: Vec<LedgerId> = records
        .iter()
        .filter_map(|r| keys().ledger_of_key(&r.key))
        .chain(topic.segments.iter().map(|s| s.id).chain(topic.open))
        .collect();
    let highest = cx.check(|c| c.topic.highest()).map_or(0, |id| id.0);
    for id in (1..=highest).map(LedgerId).filter(|id| !listed.contains(id)) {
        let all = bookies.borrow().clone();
        for bookie in all {
            let Outcome::Stat(Ok(stat)) = cx.ask(&bookie, Req::Stat { ledger: id }).await else { continue };
            if !stat.present.is_empty() {
                let _told_later = cx.ask(&bookie, Req::Delete { ledger: id }).await;
            }
        }
    }
}
