//! Repair: closed ledgers whose members lack entries or are gone, back to their write quorum.

use crate::client::Client;
use crate::sim::Sim;
use crate::topic::{KEY, Topic};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::repair::drive::{Means, repair};
use geminga_bookie_client::repair::plan::needs;
use geminga_bookie_client::repair::standing::{Absences, Standings};
use geminga_common::clock::Clock;
use geminga_common::metadata::{Compare, Op, Txn};
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// A bookie is back before then.
const GRACE: Duration = Duration::from_secs(600);

pub(crate) async fn repairer(sim: Arc<Sim>) -> turmoil::Result {
    let tasks = TaskGroup::new();
    let client = Client::new(&sim, "repair", &tasks).await;
    let (mut rng, mut absences) = (sim.rng(), Absences::default());
    loop {
        sleep(Duration::from_millis(300 + rng.below(1500))).await;
        let (topic, _) = client.topic().await;
        let (standings, _) = absences.look(client.registry.view(), sim.clock.mono(), GRACE);
        for ledger in topic.closed {
            if needs(&ledger, |member| standings.of(member)).none() {
                continue;
            }
            one(&sim, &client, &standings, ledger).await;
        }
    }
}

async fn one(sim: &Sim, client: &Client, standings: &Standings, ledger: ClosedLedger) {
    let copied = |entries, _| sim.check.lock().seen.copied += entries;
    let means = Means {
        rpc: &client.rpc,
        placement: &*client.placement,
        standing: &|member| standings.of(member),
        copied: &copied,
    };
    let done = repair(&means, ledger.clone()).await;
    sim.note(|| format!("repair of {}: {:?}", ledger.id, done.stuck));
    if done.ledger == ledger {
        return;
    }
    if !ledger.is_repaired(&done.ledger) {
        sim.check.lock().broken(format!("I10: repair made {ledger:?} {:?}", done.ledger));
    }
    let (topic, Some(revision)) = client.topic().await else { return };
    let Some(at) = topic.closed.iter().position(|closed| *closed == ledger) else { return };
    let mut closed = topic.closed;
    closed[at] = done.ledger;
    let compares = vec![Compare::ModRevision(KEY.into(), revision)];
    let topic = Topic { closed, ..topic };
    // An outcome that is not known is looked at in the next round.
    if client.meta.txn(Txn { compares, ops: vec![Op::put(KEY, topic.encode())] }).await.is_ok() {
        sim.check.lock().seen.repaired += 1;
    }
}
