//! A reader: closed ledgers from anywhere, and what is acknowledged of the open one.

use crate::client::Client;
use crate::sim::Sim;
use geminga_bookie_client::ledgers::{LedgerView, Ledgers, ReadError};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::EntryId;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

pub(crate) async fn reader(sim: Arc<Sim>) -> turmoil::Result {
    let tasks = TaskGroup::new();
    let client = Client::new(&sim, "reader", &tasks).await;
    let mut rng = sim.rng();
    loop {
        sleep(Duration::from_millis(20 + rng.below(150))).await;
        let open = sim.open.lock().clone();
        let tail = open.and_then(|view| Some((sim.check.lock().lac(view.id)?, view)));
        match tail {
            Some((lac, view)) if rng.below(2) == 0 => read(&sim, &client, &mut rng, &view, lac, true).await,
            _ => {
                let closed = client.topic().await.0.closed;
                let Some(ledger) = closed.get(rng.below(closed.len().max(1) as u64) as usize) else {
                    continue;
                };
                let Some(last) = ledger.last else { continue };
                read(&sim, &client, &mut rng, &ledger.view(), last, false).await;
            }
        }
    }
}

async fn read(sim: &Sim, client: &Client, rng: &mut Rng, view: &LedgerView, last: EntryId, tail: bool) {
    let from = if tail { last.0.saturating_sub(rng.below(8)) } else { rng.below(last.0 + 1) };
    let class = if tail { ReadClass::Tail } else { ReadClass::CatchUp };
    let read = client.ledgers.read(view, EntryId(from), last, 1 + rng.below(16 << 10) as usize, class).await;
    let mut check = sim.check.lock();
    match read {
        Ok(entries) => {
            check.seen.reads += 1;
            check.read(view.id, EntryId(from), &entries);
        }
        // A view of the open ledger may be older than the ledger is by now; what is acknowledged is there nevertheless.
        Err(ReadError::NoSuchEntry(id)) => check.broken(format!("{id} of {} is said not to exist", view.id)),
        Err(ReadError::Lost(ids)) => check.broken(format!("{ids:?} of {} is said to be lost", view.id)),
        // The second is said only of an only copy in this process.
        Err(ReadError::Unavailable(_) | ReadError::Damaged(..)) => check.seen.unavailable += 1,
    }
}
