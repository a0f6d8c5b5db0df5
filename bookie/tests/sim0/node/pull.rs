//! A bookie as the destination of a repair: the client's own `pull`, in a process of the bookie's.

use crate::calls::Outcome;
use crate::rpc::{Calls, Own};
use crate::world::{Cx, World};
use geminga_bookie_client::repair::pull;
use geminga_bookie_client::rpc::Replicate;

/// A replication that a bookie was asked for.
pub(crate) struct Pull {
    pub(crate) node: usize,
    pub(crate) call: u64,
    pub(crate) caller: usize,
    pub(crate) request: Replicate,
}

impl World {
    /// The process in which a bookie calls others.
    pub(crate) fn store_proc(&self, node: usize) -> usize {
        self.plan.brokers + 2 + node
    }
}

/// Fetches, stores, answers.
pub(crate) async fn run(cx: Cx, pull: Pull) {
    let Pull { node, call, caller, request } = pull;
    let me = cx.sim.w.borrow().nodes[node].me.clone();
    let calls = Calls::default();
    let own = Own { me: me.clone(), calls: calls.clone() };
    let answer = calls.carry(&cx, pull::pull(&calls, &own, &request)).await;
    cx.note("pull", request.ledger.0, node as u64, || {
        format!("{me} fetches {:?} of {}: {answer:?}", request.ids, request.ledger)
    });
    if let Ok(done) = &answer {
        cx.check(|c| c.seen.fetched += done.entries);
    }
    cx.sim.w.borrow_mut().reply(node, caller, call, Outcome::Replicated(answer));
}
