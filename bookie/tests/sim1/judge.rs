//! The end of a seed: the open ledger is recovered, everything is made whole, and everything is read back.

use crate::client::Client;
use crate::sim::Sim;
use crate::topic::{KEY, Topic};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::ledgers::{LedgerView, Ledgers, ReadError};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::repair::plan::needs;
use geminga_bookie_client::repair::standing::Absences;
use geminga_bookie_client::rpc::{BookieRpc, IdRange, ReadClass};
use geminga_common::clock::Clock;
use geminga_common::ids::EntryId;
use geminga_common::metadata::{Compare, Op, Txn, TxnOutcome};
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Everything is over by then, on a healthy network.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn judge(sim: Arc<Sim>) -> turmoil::Result {
    let tasks = TaskGroup::new();
    let client = Client::new(&sim, "judge", &tasks).await;
    if let Err(why) = verdict(&sim, &client).await {
        sim.check.lock().broken(why);
    }
    tasks.stop();
    Ok(())
}

async fn verdict(sim: &Sim, client: &Client) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !close(sim, client).await {
        if Instant::now() > until {
            return Err("liveness: the open ledger cannot be recovered".into());
        }
        sleep(Duration::from_millis(500)).await;
    }
    let closed = whole(sim, client, until).await?;
    let ends: Vec<_> = closed.iter().map(|ledger| (ledger.id, ledger.last)).collect();
    sim.check.lock().listed(&ends);
    for ledger in &closed {
        let Some(last) = ledger.last else { continue };
        let entries = read_back(client, &ledger.view(), last).await?;
        sim.check.lock().read(ledger.id, EntryId(0), &entries);
        copies(client, ledger, last).await?;
    }
    sim.note(|| format!("{} ledgers are whole and read back", closed.len()));
    Ok(())
}

/// Recovers what is open, and leaves the topic without an open ledger.
async fn close(sim: &Sim, client: &Client) -> bool {
    let (mut topic, over) = client.topic().await;
    let (Some(current), Some(over)) = (topic.current(), over) else { return topic.current().is_none() };
    let recovered = match client.ledgers.recover(current).await {
        Ok(recovered) => recovered,
        Err(error) => {
            sim.note(|| format!("the judge does not recover {current}: {error}"));
            return false;
        }
    };
    sim.check.lock().closed(current, recovered.closed.last);
    (topic.epoch, topic.current) = (topic.epoch + 1, 0);
    topic.closed.push(recovered.closed);
    let mut txn = Txn { compares: recovered.compares, ops: recovered.ops };
    txn.compares.push(Compare::ModRevision(KEY.into(), over));
    txn.ops.push(Op::put(KEY, topic.encode()));
    matches!(client.meta.txn(txn).await, Ok(TxnOutcome::Committed(_)))
}

/// Waits until repair has nothing left to do.
async fn whole(sim: &Sim, client: &Client, until: Instant) -> Result<Vec<ClosedLedger>, String> {
    let mut absences = Absences::default();
    loop {
        let (Topic { closed, .. }, _) = client.topic().await;
        let (standings, _) = absences.look(client.registry.view(), sim.clock.mono(), PATIENCE * 2);
        let lacking = closed.iter().find(|ledger| !needs(ledger, |member| standings.of(member)).none());
        let Some(lacking) = lacking else { return Ok(closed) };
        if Instant::now() > until {
            return Err(format!("liveness: {lacking:?} is not made whole"));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Whether every member has what is its own. One whose disk a bit flipped on may be in doubt of an id.
async fn copies(client: &Client, ledger: &ClosedLedger, last: EntryId) -> Result<(), String> {
    for (at, fragment) in ledger.fragments.iter().enumerate() {
        let end =
            ledger.fragments.get(at + 1).and_then(|next| next.first.previous()).unwrap_or(last).min(last);
        // Begun just before the end came, and never written to.
        if fragment.first > end {
            continue;
        }
        for (slot, member) in (0..).zip(&fragment.ensemble) {
            let Some(member) = member else { return Err(format!("{ledger:?} has a vacant slot")) };
            let ids = IdRange { first: fragment.first, last: end };
            let presence =
                client.rpc.presence(member, ledger.id, ids).await.map_err(|error| {
                    format!("liveness: {member} does not answer for {}: {error}", ledger.id)
                })?;
            let there = |id: EntryId| {
                presence.present.iter().chain(&presence.doubtful).any(|run| run.first <= id && id <= run.last)
            };
            let mut own = (fragment.first.0..=end.0).map(EntryId);
            let own = own.find(|id| ledger.quorum.write_set(*id).contains(slot) && !there(*id));
            if let Some(lacking) = own {
                return Err(format!("I10: {member} lacks {lacking} of {ledger:?}, which says to be whole"));
            }
        }
    }
    Ok(())
}

/// Reads a whole ledger back, for as long as that takes; entries in order.
async fn read_back(client: &Client, view: &LedgerView, last: EntryId) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let (mut next, until) = (EntryId(0), Instant::now() + PATIENCE);
    while next <= last {
        match client.ledgers.read(view, next, last, 8 << 10, ReadClass::CatchUp).await {
            Ok(found) => {
                next = found.last().map_or(next, |entry| entry.id.next());
                entries.extend(found);
            }
            Err(ReadError::NoSuchEntry(id)) => {
                return Err(format!("{id} of {} is said not to exist", view.id));
            }
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(500)).await,
            Err(error) => return Err(format!("{next} of {} cannot be read: {error}", view.id)),
        }
    }
    Ok(entries)
}
