//! The controller's repair: what the broker's rounds do, over the client's own plan, driver, standings and releases.
//!
//! A look is complete or lets go of nothing. Members of earlier fragments of an open ledger are repaired as well, which the product leaves
//! to the time after its close: a writer must bear that somebody changes its record.

use crate::broker::{record_of, view as view_of};
use crate::calls::{Outcome, Req};
use crate::ledger::{Bookies, get, replace};
use crate::meta::{MetaOp, MetaReply, TOPIC, Topic, keys};
use crate::plan::SECOND;
use crate::rpc::Calls;
use crate::world::Cx;
use geminga_bookie_client::placement::{Placement, StaticPlacement};
use geminga_bookie_client::record::{ClosedLedger, LedgerRecord, LedgerState, OpId, RepairRange};
use geminga_bookie_client::registry::record::{BookieRecord, LiveRecord};
use geminga_bookie_client::registry::{Known, View};
use geminga_bookie_client::repair::drive::{self, Means};
use geminga_bookie_client::repair::plan::{self, Job};
use geminga_bookie_client::repair::release::{Releases, letting_go};
use geminga_bookie_client::repair::standing::{Absences, Standings};
use geminga_bookie_client::rpc::{BookieRef, Replicate};
use geminga_common::clock::Clock as _;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::{Compare, Op, Revision, Txn, TxnOutcome};
use std::sync::Arc;
use std::time::Duration;

/// Nobody is given up within a run: a bookie that is away comes back, or hangs for good.
const GRACE: Duration = Duration::from_secs(3600);
/// How long a transaction of which nothing was heard may still be on its way.
const LINGERS: u64 = 10 * SECOND;

/// What a look has to work with.
struct Look<'l> {
    cx: &'l Cx,
    standings: Standings,
    placement: StaticPlacement,
    releases: Releases,
    /// Every outcome is known.
    settled: bool,
}

/// One look at every ledger: what lacks copies gets them, and stores on which nothing counts any more are let go of.
pub(crate) async fn look(cx: &Cx, bookies: &Bookies, absences: &mut Absences) {
    let Some(view) = view(cx).await else { return };
    let now = cx.sim.w.borrow().clock.mono();
    let (standings, _) = absences.look(Arc::new(view), now, GRACE);
    let Ok(Some(stored)) = get(cx, TOPIC).await else { return };
    let topic = Topic::decode(&stored.value);
    let mut free = bookies.borrow().clone();
    for at in (1..free.len()).rev() {
        free.swap(at, cx.below(at as u64 + 1) as usize);
    }
    cx.sim.w.borrow_mut().looking = u64::MAX;
    let releases = Releases::of(&standings);
    let placement = StaticPlacement::new(free);
    let mut look = Look { cx, standings, placement, releases, settled: true };
    if let Some(open) = topic.open {
        look.open(open).await;
    }
    for segment in &topic.segments {
        look.closed(segment, true).await;
    }
    look.let_go().await;
    let mut w = cx.sim.w.borrow_mut();
    w.looking = if look.settled { w.now } else { w.now + LINGERS };
}

async fn view(cx: &Cx) -> Option<View> {
    let keys = keys();
    let all = cx.meta(MetaOp::List(keys.bookies_prefix())).await;
    let live = cx.meta(MetaOp::List(keys.live_bookies_prefix())).await;
    let (Ok(MetaReply::List(all)), Ok(MetaReply::List(live))) = (all, live) else { return None };
    let mut view = View::default();
    for stored in all {
        let id = keys.bookie_of_key(&stored.key)?;
        view.bookies.entry(id).or_default().record = Some(BookieRecord::decode(&stored.value).ok()?);
    }
    for stored in live {
        let id = keys.live_bookie_of_key(&stored.key)?;
        view.bookies.entry(id).or_insert_with(Known::default).live =
            Some(LiveRecord::decode(&stored.value).ok()?);
    }
    Some(view)
}

impl Look<'_> {
    /// The ledger that the topic's record names as open.
    async fn open(&mut self, id: LedgerId) {
        let Some((record, revision)) = record_of(self.cx, id).await else {
            // It has been closed since the topic's record was read, and nobody has looked at it.
            return self.releases.clear();
        };
        if let Some(closed) = record.closed() {
            // Its owner has not taken it in yet.
            return self.closed(&closed, false).await;
        }
        self.releases.look_at_open(&record, |member| self.standings.of(member));
        if record.state == LedgerState::Open && record.fragments.len() > 1 {
            self.repair_open(record, revision).await;
        }
    }

    /// A closed ledger; in the chain, what was repaired of it can be published.
    async fn closed(&mut self, ledger: &ClosedLedger, in_chain: bool) {
        let calls = Calls::default();
        let standing = |member: &BookieRef| self.standings.of(member);
        let means =
            Means { rpc: &calls, placement: &self.placement, standing: &standing, copied: &|_, _| () };
        let mut next = ledger.clone();
        if in_chain && !plan::needs(ledger, standing).none() {
            let outcome = calls.carry(self.cx, drive::repair(&means, next)).await;
            if let Some(stuck) = outcome.stuck {
                self.cx.note("stuck", ledger.id.0, 0, || format!("{}: {stuck}", ledger.id));
            }
            next = outcome.ledger;
        }
        // The old one as well: it is the one that stands if the new one cannot be published.
        let mut counted = Vec::new();
        for store in self.releases.open() {
            let on = |l: &ClosedLedger| members(l).any(|member| *member == store);
            if (on(&next) || on(ledger))
                && !calls.carry(self.cx, drive::held_elsewhere(&means, ledger, &store)).await
            {
                counted.push(store);
            }
        }
        counted.iter().for_each(|store| self.releases.counted_on(store, ledger.id));
        if next != *ledger {
            self.settled &= publish(self.cx, ledger, next).await;
        }
    }

    async fn let_go(&mut self) {
        for store in self.releases.open() {
            let Ok(Some(stored)) = get(self.cx, &keys().bookie(&store.id)).await else { continue };
            let Some(txn) = letting_go(&store, &stored) else { continue };
            let answer = self.cx.meta(MetaOp::Txn(txn)).await;
            self.settled &= answer.is_ok();
            self.cx.note("let go", store.incarnation.0, 0, || format!("{store} is let go of: {answer:?}"));
        }
    }

    /// Members of earlier fragments of an open ledger; its last fragment is its writer's affair.
    async fn repair_open(&mut self, record: LedgerRecord, revision: Revision) {
        let last = record.last_fragment().clone();
        let is_earlier = |r: &RepairRange| r.last.is_some_and(|l| l < last.first);
        let (repair, mut left): (Vec<RepairRange>, Vec<RepairRange>) =
            record.repair.iter().copied().partition(is_earlier);
        let fragments = record.fragments[..record.fragments.len() - 1].to_vec();
        let earlier = ClosedLedger {
            id: record.id,
            last: last.first.previous(),
            length: 0,
            term: record.term,
            quorum: record.quorum,
            fragments,
            repair,
        };
        let mut now = earlier.clone();
        for job in plan::needs(&earlier, |member| self.standings.of(member)).jobs {
            let members: Vec<BookieRef> = members(&now).cloned().collect();
            let to = job.keep.clone().or_else(|| self.placement.choose(1, &members).pop());
            let Some(to) = to else { continue };
            if self.copy(&now, &job, &to).await {
                now = plan::apply(&now, &job, &to);
            }
        }
        if now == earlier {
            return;
        }
        let mut fragments = now.fragments;
        fragments.push(last);
        left.extend(now.repair);
        let next = LedgerRecord { fragments, repair: left, op_id: OpId(self.cx.random()), ..record };
        let _lost_to_the_writer = replace(self.cx, &next, revision).await;
    }

    /// Has a bookie fetch what a slot is to hold, and believes it only when it lists all of it.
    async fn copy(&self, ledger: &ClosedLedger, job: &Job, to: &BookieRef) -> bool {
        let request = Replicate {
            ledger: ledger.id,
            quorum: ledger.quorum,
            slot: job.slot,
            ensemble: ledger.fragments[job.fragment].ensemble.clone(),
            ids: job.ids,
            bytes_max: u64::MAX,
        };
        let Outcome::Replicated(Ok(_)) = self.cx.ask(to, Req::Replicate(request)).await else { return false };
        let asked = self.cx.ask(to, Req::Presence { ledger: ledger.id, ids: job.ids }).await;
        let Outcome::Presence(Ok(there)) = asked else { return false };
        plan::first_missing(ledger.quorum, job, &there.present).is_none()
    }
}

fn members(ledger: &ClosedLedger) -> impl Iterator<Item = &BookieRef> {
    ledger.fragments.iter().flat_map(|fragment| fragment.ensemble.iter().flatten())
}

/// Whether the outcome is known.
async fn publish(cx: &Cx, before: &ClosedLedger, done: ClosedLedger) -> bool {
    let Ok(Some(stored)) = get(cx, TOPIC).await else { return true };
    let mut topic = Topic::decode(&stored.value);
    let Some(segment) = topic.segments.iter_mut().find(|s| *s == before) else { return true };
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
            ops.push(Op::put(key, view_of(&done).encode()));
        }
    }
    let answer = cx.meta(MetaOp::Txn(Txn { compares, ops })).await;
    if matches!(answer, Ok(MetaReply::Txn(TxnOutcome::Committed(_)))) {
        cx.check(|c| c.seen.repaired += 1);
        cx.note("repaired", done.id.0, 0, || format!("the controller repaired {}: {done:?}", done.id));
    }
    answer.is_ok()
}
