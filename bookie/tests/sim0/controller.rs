//! The controller: deletes what is tombstoned, brings entries back to their write quorum, and now and then recovers a ledger that
//! is not its own. It knows nothing but metadata and what bookies answer. Its copies go as adds at the ledger's own term: the
//! store's `Replicate` takes their place once it is there.

use crate::broker::{record_of, view, watch_bookies};
use crate::ledger::{Bookies, bookies_of, get, no_bookies, place, read_one, recover, replace};
use crate::meta::{MetaOp, MetaReply, TOPIC, Topic, keys, registration, watermark_of};
use crate::node::Req;
use crate::plan::{MS, SECOND};
use crate::world::{Cx, Outcome};
use bytes::Bytes;
use geminga_bookie_client::mutant::{Mutant, active};
use geminga_bookie_client::record::{ClosedLedger, Fragment, LedgerRecord, LedgerState, OpId, RepairRange};
use geminga_bookie_client::rpc::{Add, BookieRef, ControlError};
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::{Compare, Op, Txn, TxnOutcome};
use std::collections::BTreeSet;

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
    loop {
        cx.nap(500 * MS + cx.below(2 * SECOND)).await;
        if active(Mutant::GcByListing) {
            delete_unlisted(&cx, &bookies).await;
        }
        repair_all(&cx, &bookies).await;
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

/// Stores that metadata knows to be in place; a member that is none of them, under a known name, is gone.
async fn registered(cx: &Cx) -> Option<Vec<BookieRef>> {
    let keys = keys();
    match cx.meta(MetaOp::List(keys.bookies_prefix())).await {
        Ok(MetaReply::List(all)) => Some(all.iter().filter_map(|r| registration(r, &keys)).collect()),
        _ => None,
    }
}

fn gone(member: &BookieRef, registered: &[BookieRef]) -> bool {
    registered.iter().any(|r| r.id == member.id && r.incarnation != member.incarnation)
}

async fn repair_all(cx: &Cx, bookies: &Bookies) {
    let Some(registered) = registered(cx).await else { return };
    let Ok(Some(stored)) = get(cx, TOPIC).await else { return };
    let topic = Topic::decode(&stored.value);
    if let Some(open) = topic.open {
        repair_open(cx, open, bookies, &registered).await;
    }
    for segment in &topic.segments {
        let record = view(segment);
        let Some((fragments, repair)) = repair(cx, &record, segment.last, bookies, &registered).await else {
            continue;
        };
        let done = ClosedLedger { fragments, repair, ..segment.clone() };
        // One at a time: the next look begins at the record as it is then.
        return publish(cx, segment, done).await;
    }
}

/// Members of earlier fragments of an open ledger; its last fragment is its writer's affair.
async fn repair_open(cx: &Cx, id: LedgerId, bookies: &Bookies, registered: &[BookieRef]) {
    let Some((record, revision)) = record_of(cx, id).await else { return };
    if record.state != LedgerState::Open || record.fragments.len() < 2 {
        return;
    }
    let last = record.last_fragment().clone();
    let earlier = LedgerRecord {
        fragments: record.fragments[..record.fragments.len() - 1].to_vec(),
        repair: record.repair.iter().filter(|r| r.last.is_some_and(|l| l < last.first)).copied().collect(),
        ..record.clone()
    };
    let later: Vec<RepairRange> =
        record.repair.iter().filter(|r| !earlier.repair.contains(r)).copied().collect();
    let Some((mut fragments, mut left)) =
        repair(cx, &earlier, last.first.previous(), bookies, registered).await
    else {
        return;
    };
    fragments.push(last);
    left.extend(later);
    let next = LedgerRecord { fragments, repair: left, op_id: OpId(cx.random()), ..record };
    let _lost_to_the_writer = replace(cx, &next, revision).await;
}

async fn publish(cx: &Cx, before: &ClosedLedger, done: ClosedLedger) {
    let Ok(Some(stored)) = get(cx, TOPIC).await else { return };
    let mut topic = Topic::decode(&stored.value);
    let Some(segment) = topic.segments.iter_mut().find(|s| *s == before) else { return };
    *segment = done.clone();
    topic.op_id = cx.random();
    let mut compares = vec![Compare::ModRevision(TOPIC.into(), stored.mod_revision)];
    let mut ops = vec![Op::put(TOPIC, topic.encode())];
    let key = keys().ledger(done.id);
    if let Some((record, revision)) = record_of(cx, done.id).await {
        compares.push(Compare::ModRevision(key.clone(), revision));
        ops.push(if done.repair.is_empty() {
            Op::delete(key)
        } else {
            let (fragments, repair) = (done.fragments.clone(), done.repair.clone());
            Op::put(key, LedgerRecord { fragments, repair, op_id: OpId(cx.random()), ..record }.encode())
        });
    } else {
        compares.push(Compare::Absent(key.clone()));
        if !done.repair.is_empty() {
            ops.push(Op::put(key, view(&done).encode()));
        }
    }
    if cx.meta(MetaOp::Txn(Txn { compares, ops })).await.is_ok() {
        cx.check(|c| c.seen.repaired += 1);
        cx.note("repaired", done.id.0, 0, || format!("the controller repaired {}: {done:?}", done.id));
    }
}

/// Copies what is missing. The answer is the fragments and what is still due, if anything changed.
async fn repair(
    cx: &Cx,
    record: &LedgerRecord,
    last: Option<EntryId>,
    bookies: &Bookies,
    registered: &[BookieRef],
) -> Option<(Vec<Fragment>, Vec<RepairRange>)> {
    let end = last?.next();
    let (mut fragments, mut repair) = (record.fragments.clone(), record.repair.clone());
    for at in 0..fragments.len() {
        let until = fragments.get(at + 1).map_or(end, |next| next.first.min(end));
        let ids = fragments[at].first.0..until.0;
        for slot in record.quorum.all().iter() {
            let member = fragments[at].ensemble[slot as usize].clone();
            let due = |id: &EntryId| {
                repair
                    .iter()
                    .any(|r| r.slot == slot && r.first <= *id && r.last.is_some_and(|last| *id <= last))
            };
            let all = ids.clone().map(EntryId).filter(|id| record.quorum.write_set(*id).contains(slot));
            let (to, wanted): (BookieRef, Vec<EntryId>) = match member {
                // One that is not alive may come back: nothing is copied to it, and nothing away from it.
                Some(member) if !gone(&member, registered) && !bookies.borrow().contains(&member) => continue,
                Some(member) if !gone(&member, registered) => (member, all.filter(due).collect()),
                _ => {
                    let members: Vec<BookieRef> = fragments[at].ensemble.iter().flatten().cloned().collect();
                    let Some((_, new)) = place(cx, bookies, [slot].into_iter().collect(), &members).pop()
                    else {
                        continue;
                    };
                    (new, all.collect())
                }
            };
            let moves = fragments[at].ensemble[slot as usize].as_ref() != Some(&to);
            if wanted.is_empty() && !moves {
                continue;
            }
            if !copy(cx, record, &to, &wanted).await {
                cx.note("copy", record.id.0, slot.into(), || {
                    format!("no copy of {} {wanted:?} to {to}", record.id)
                });
                continue;
            }
            fragments[at].ensemble[slot as usize] = Some(to);
            repair = without(&repair, slot, &wanted);
        }
    }
    // Ranges outside of what exists say nothing.
    (fragments != record.fragments || repair != record.repair).then_some((fragments, repair))
}

/// Takes ids of a slot out of repair ranges.
fn without(repair: &[RepairRange], slot: u32, done: &[EntryId]) -> Vec<RepairRange> {
    let mut out = Vec::new();
    for range in repair {
        let Some(last) = range.last.filter(|_| range.slot == slot) else {
            out.push(*range);
            continue;
        };
        let mut open: Option<EntryId> = None;
        for id in (range.first.0..=last.0).map(EntryId) {
            match (done.contains(&id), open) {
                (false, None) => open = Some(id),
                (true, Some(first)) => {
                    out.push(RepairRange { first, last: id.previous(), slot });
                    open = None;
                }
                _ => {}
            }
        }
        out.extend(open.map(|first| RepairRange { first, last: Some(last), slot }));
    }
    // With striping a range may name ids that the slot never had to hold.
    out
}

/// Copies these ids to a bookie, and believes it only when the bookie lists them all.
async fn copy(cx: &Cx, record: &LedgerRecord, to: &BookieRef, wanted: &[EntryId]) -> bool {
    let Some(present) = present(cx, record, to).await else { return false };
    for id in wanted.iter().filter(|id| !present.contains(id)) {
        let Ok(Some(entry)) = read_one(cx, record, *id).await else { return false };
        let (ledger, term) = (record.id, record.term);
        let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries: vec![entry] };
        if !matches!(cx.ask(to, Req::Add(add)).await, Outcome::Add(Ok(()))) {
            return false;
        }
    }
    let Some(now) = self::present(cx, record, to).await else { return false };
    wanted.iter().all(|id| now.contains(id))
}

/// The ids that a bookie holds durably.
async fn present(cx: &Cx, record: &LedgerRecord, on: &BookieRef) -> Option<BTreeSet<EntryId>> {
    let Outcome::Stat(Ok(stat)) = cx.ask(on, Req::Stat { ledger: record.id }).await else { return None };
    Some(stat.present.iter().flat_map(|run| (run.first.0..=run.last.0).map(EntryId)).collect())
}
