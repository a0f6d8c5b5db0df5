//! One seed from beginning to end: faults, healing, liveness, everything read back.

use crate::check::{Seen, message_of};
use crate::ledger::{Bookies, Recovered, get_patiently, read_run, recover};
use crate::meta::{TOPIC, Topic, keys};
use crate::plan::{MS, Plan, SECOND, Us};
use crate::world::{Cx, Sim};
use geminga_bookie_client::record::LedgerRecord;
use geminga_common::ids::EntryId;
use geminga_common::rng::Rng;
use std::collections::BTreeMap;
use std::rc::Rc;

/// How long after the healing appends must go on, and everything must be whole.
const BOUND: Us = 90 * SECOND;
/// Acknowledgements that show that appends go on.
const ACKS: usize = 6;

pub(crate) struct Report {
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) simulated: Us,
    pub(crate) injected: BTreeMap<&'static str, u64>,
    pub(crate) seen: Seen,
    pub(crate) broken: Option<String>,
    pub(crate) trace: String,
}

/// Runs a seed.
pub(crate) fn seed(seed: u64, verbose: bool) -> Report {
    let mut rng = Rng::seeded(seed);
    let plan = Plan::new(&mut rng);
    let heal = plan.heal;
    let (brokers, controller) = (plan.brokers, plan.brokers);
    let sim = Sim::new(seed, plan.clone(), verbose);
    if verbose {
        sim.w.borrow_mut().trace.text(0, &format!("seed {seed}: {plan:#?}"));
    }
    for broker in 0..brokers {
        sim.start(broker, crate::broker::run);
    }
    sim.start(controller, crate::controller::run);
    while sim.step(heal) {}
    if sim.w.borrow().check.broken.is_none() {
        after(&sim, heal, brokers);
    }
    report(&sim)
}

fn report(sim: &Rc<Sim>) -> Report {
    sim.clear();
    let w = sim.w.borrow();
    Report {
        hash: w.trace.hash(),
        events: w.trace.events,
        simulated: w.now,
        injected: w.injected.clone(),
        seen: w.check.seen,
        broken: w.check.broken.clone(),
        trace: w.trace.lines().to_owned(),
    }
}

/// Steps until `done`; false when the bound passes or something breaks.
fn until(sim: &Rc<Sim>, bound: Us, done: impl Fn(&Sim) -> bool) -> bool {
    while sim.w.borrow().now < bound {
        let next = (sim.w.borrow().now + 500 * MS).min(bound);
        while sim.step(next) {}
        if sim.w.borrow().check.broken.is_some() {
            return false;
        }
        if done(sim) {
            return true;
        }
    }
    false
}

fn after(sim: &Rc<Sim>, heal: Us, brokers: usize) {
    sim.w.borrow_mut().heal();
    let before = sim.w.borrow().check.acked.len();
    if !until(sim, heal + BOUND, |sim| sim.w.borrow().check.acked.len() >= before + ACKS) {
        return fail(sim, "I20: appends do not go on after everything came back");
    }
    sim.w.borrow_mut().quiet = true;
    let now = sim.w.borrow().now;
    if !until(sim, now + 2 * BOUND, whole) {
        let w = sim.w.borrow();
        let left = w.meta.peek_all(&keys().tombstones_prefix()).len();
        let text = format!(
            "I20: not whole after {} s: open {:?}, missing {:?}, tombstones {left}",
            2 * BOUND / SECOND,
            w.check.topic.open,
            w.check.missing(),
        );
        drop(w);
        return fail(sim, &text);
    }
    for broker in 0..=brokers {
        sim.w.borrow_mut().kill(broker);
    }
    let nodes = sim.w.borrow().nodes.len();
    for node in 0..nodes {
        let hung = sim.w.borrow().nodes[node].paused;
        if !hung {
            sim.w.borrow_mut().crash(node, true);
        }
    }
    sim.start(brokers + 1, read_everything);
    let now = sim.w.borrow().now;
    if !until(sim, now + BOUND, |sim| sim.w.borrow().finished) {
        fail(sim, "S1: what was acknowledged cannot be read back in time");
    }
}

fn fail(sim: &Rc<Sim>, what: &str) {
    sim.w.borrow_mut().check.broken(what);
}

/// Nothing is open, nothing waits to be deleted, every entry is on all of its write quorum.
fn whole(sim: &Sim) -> bool {
    let w = sim.w.borrow();
    let pending = w.check.hung.is_none() && !w.meta.peek_all(&keys().tombstones_prefix()).is_empty();
    w.check.topic.open.is_none() && !pending && w.check.fully_replicated()
}

/// The record without the bookie that hangs: a reader learns to ask it last.
fn asked_last(cx: &Cx, mut record: LedgerRecord) -> LedgerRecord {
    let hung = cx.check(|c| c.hung.clone());
    for member in
        record.fragments.iter_mut().flat_map(|f| &mut f.ensemble).filter(|m| m.is_some() && **m == hung)
    {
        *member = None;
    }
    record
}

/// A fresh reader: the topic's record, then every entry of the chain.
async fn read_everything(cx: Cx) {
    let Some(stored) = get_patiently(&cx, TOPIC).await else { return };
    let topic = Topic::decode(&stored.value);
    if let Some(open) = topic.open {
        let bookies = Bookies::default();
        while !matches!(recover(&cx, open, &bookies).await, Recovered::Closed(..)) {}
    }
    let mut read = Vec::new();
    for segment in &topic.segments {
        let record = crate::broker::view(segment);
        let record = asked_last(&cx, record);
        let Some(last) = segment.last else { continue };
        let mut id = EntryId(0);
        while id <= last {
            match read_run(&cx, &record, id, last).await {
                Ok(Some(run)) => {
                    for entry in run {
                        let (message, producer) = message_of(&entry.payload);
                        read.push((record.id, entry.id, message, producer));
                        id = entry.id.next();
                    }
                }
                Ok(None) => {
                    return cx.check(|c| {
                        c.broken(format!("S1: a quorum says that {}:{id} does not exist", record.id))
                    });
                }
                Err(()) => cx.sleep(500 * MS).await,
            }
        }
    }
    cx.check(|c| c.read_all(&read));
    cx.sim.w.borrow_mut().finished = true;
}
