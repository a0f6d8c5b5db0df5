//! Who is said to be slow, and writers that leave who is: what the client's health and the shell of its writer do, in simulated time.
//!
//! No latency is measured here: a fault passes the verdict, over a bookie whose disk becomes slow, or over one that answers as ever, which
//! is the harder case, since its answers cross the change that it leaves by. All clients find the same; each looks when it next has
//! something to do. Several verdicts may stand at a time, and new ledgers begin over slow bookies all the same, neither of which the product
//! does: so more of them have to be left.

use crate::damage::Planned;
use crate::ledger::{place, plan};
use crate::plan::{SECOND, Us};
use crate::world::World;
use crate::writer::Shell;
use geminga_bookie_client::rpc::BookieRef;
use geminga_bookie_client::writer::state::{ChangeOutcome, Effect, Status};
use geminga_common::ids::BookieId;
use std::collections::BTreeMap;

/// While a verdict stands, clients look anew this often.
const TOLD_EVERY: Us = 5 * SECOND;

/// The verdicts passed so far, and until when each bookie's last one stands.
#[derive(Default)]
pub(crate) struct Verdicts {
    passed: u64,
    until: BTreeMap<BookieId, Us>,
}

/// Moves when it is time to look who is slow.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told(u64, Us);

impl World {
    /// A verdict over a bookie: from the drawn one on the first that the open ledger is on.
    pub(crate) fn find_slow(&mut self, drawn: usize) {
        let open = self.check.topic.open.and_then(|id| self.check.ledgers.get(&id)?.record.as_ref());
        let on = |node: &usize| {
            let member = Some(&self.nodes[*node].me);
            open.is_some_and(|r| r.last_fragment().ensemble.iter().any(|slot| slot.as_ref() == member))
        };
        let all = self.nodes.len();
        let node = (0..all).map(|n| (drawn + n) % all).find(on).unwrap_or(drawn);
        self.inject("slow verdict");
        let stands = self.now + SECOND + self.rng.below(20 * SECOND);
        if self.rng.below(2) == 0 {
            self.nodes[node].slow_until = self.now + SECOND + self.rng.below(10 * SECOND);
        }
        self.slow.passed += 1;
        self.slow.until.insert(self.nodes[node].id.clone(), stands);
        self.trace.note(self.now, "slow", node as u64, 0, || format!("b{node} is found slow until {stands}"));
    }

    /// Whether a verdict stands over a bookie.
    pub(crate) fn is_slow(&self, bookie: &BookieRef) -> bool {
        self.slow.until.get(&bookie.id).is_some_and(|until| self.now < *until)
    }

    fn slow_told(&self) -> Told {
        let stands = self.slow.until.values().any(|until| self.now < *until);
        Told(self.slow.passed, if stands { self.now / TOLD_EVERY } else { 0 })
    }
}

impl Shell {
    /// Has another bookie take the place of a member that is slow, one at a time. Slow is better than missing.
    pub(crate) fn leave_slow(&mut self) {
        let told = self.cx.sim.w.borrow().slow_told();
        if told == self.slow_told || self.state.changing() || *self.state.status() != Status::Open {
            return;
        }
        self.slow_told = told;
        let slow = |bookie: &BookieRef| self.cx.sim.w.borrow().is_slow(bookie);
        let members: Vec<BookieRef> = self.state.members().cloned().collect();
        for slot in 0..self.state.record().quorum.ensemble() {
            if !self.state.slot(slot).bookie.as_ref().is_some_and(slow) {
                continue;
            }
            let slow_too = self.bookies.borrow().iter().filter(|by| slow(by)).cloned().collect::<Vec<_>>();
            let exclude: Vec<BookieRef> = members.iter().cloned().chain(slow_too).collect();
            let mut found = place(&self.cx, &self.bookies, [slot].into_iter().collect(), &exclude);
            let planned = plan(&self.cx, &found);
            let owed = self.state.record().repair.len();
            if let Some((_, by)) = found.pop()
                && self.state.on_slow(slot, by, &mut self.effects)
            {
                self.planned.replace(planned).into_iter().for_each(Planned::settled);
                self.leaving_slow = true;
                let owes = |e: &Effect| matches!(e, Effect::Commit(next) if next.repair.len() > owed);
                let owes = self.effects.iter().any(owes);
                return self.cx.check(|c| c.seen.slow_owed += u64::from(owes));
            }
            planned.settled();
            self.cx.check(|c| c.seen.slow_kept += 1);
        }
    }

    /// What became of a change of the ensemble, if a slow member was to leave by it.
    pub(crate) fn left_slow(&mut self, outcome: &ChangeOutcome) {
        if !std::mem::take(&mut self.leaving_slow) {
            return;
        }
        let in_flight = self.state.lac() < self.state.last_sent();
        if let ChangeOutcome::Committed(_) = outcome {
            self.cx.check(|c| {
                c.seen.slow_left += 1;
                c.seen.slow_left_in_flight += u64::from(in_flight);
            });
        }
    }
}
