//! A reader far behind beside writes: what it does to their latency, and how fast it goes.

use crate::load::{LEDGERS, Load};
use crate::node::Node;
use crate::{Args, median, say};
use anyhow::{Result, bail};
use geminga_bookie_client::rpc::{BookieRef, BookieRpc, Read, ReadAnswer, ReadClass};
use geminga_common::ids::{EntryId, LedgerId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Ledgers read side by side.
const READERS: u64 = 4;
/// Entries of these bytes.
const SIZE: usize = 4 << 10;

/// Goes through what was written, again and again, until told to stop.
struct Readers {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
    begun: Instant,
}

impl Readers {
    fn start(load: &Load, entries: u64) -> Self {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..READERS)
            .map(|n| {
                let (rpc, to, first) = (load.rpc(), load.to(), load.first_ledger());
                let (stop, bytes) = (stop.clone(), bytes.clone());
                tokio::spawn(async move {
                    for ledger in (0..LEDGERS).filter(|ledger| ledger % READERS == n).cycle() {
                        let ledger = LedgerId(first + ledger);
                        read_ledger(&*rpc, &to, ledger, entries / LEDGERS, &stop, &bytes).await?;
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        Self { stop, bytes, tasks, begun: Instant::now() }
    }

    /// Bytes a second.
    async fn end(self) -> Result<f64> {
        let rate = self.bytes.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(rate)
    }
}

async fn read_ledger(
    rpc: &dyn BookieRpc,
    to: &BookieRef,
    ledger: LedgerId,
    entries: u64,
    stop: &AtomicBool,
    bytes: &AtomicU64,
) -> Result<()> {
    let mut next = 0;
    while next < entries && !stop.load(Ordering::Relaxed) {
        let last = EntryId(entries - 1);
        let read = Read { ledger, first: EntryId(next), last, bytes_max: 1 << 20, class: ReadClass::CatchUp };
        match rpc.read(to, read).await {
            ReadAnswer::Found(found) => {
                next += found.len() as u64;
                bytes.fetch_add(found.iter().map(|e| e.payload.len() as u64).sum(), Ordering::Relaxed);
            }
            other => bail!("entry {next} of ledger {ledger}: {other:?}"),
        }
    }
    Ok(())
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let dir = args.dir.join("beside");
    std::fs::create_dir_all(&dir)?;
    let node = Node::start(&dir, args.shards)?;
    let mut load = Load::new(node.address.clone(), node.store.clone(), SIZE, 1);
    let wanted = (args.gb * 1e9) as u64 / SIZE as u64;
    let (mut there, mut capacity) = (0, 0.0_f64);
    while there < wanted {
        let taken = load.run(2, None).await?;
        there += taken.entries;
        capacity = capacity.max(taken.entries as f64 / taken.took.as_secs_f64());
    }
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let alone = load.run(args.secs, Some(capacity / 4.0)).await?.latency_us;
        let readers = Readers::start(&load, there);
        let beside = load.run(args.secs, Some(capacity / 4.0)).await?.latency_us;
        let drained = readers.end().await?;
        let both = [0.5, 0.99, 0.999].map(|q| [alone.value_at_quantile(q), beside.value_at_quantile(q)]);
        rounds.push((both, drained));
    }
    let of = |of: &dyn Fn(&([[u64; 2]; 3], f64)) -> f64| median(rounds.iter().map(of).collect());
    say(&format!(
        "catch-up of {:.1} GB beside adds of {SIZE} bytes at {:.0} a second, a quarter of what it takes: drained at {:.0} MB/s",
        there as f64 * SIZE as f64 / 1e9,
        capacity / 4.0,
        of(&|r| r.1 / 1e6),
    ))?;
    for (at, name) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
        say(&format!(
            "{name} of an add: {:.2} ms alone, {:.2} ms beside it, {:.2}x",
            of(&|r| r.0[at][0] as f64 / 1000.0),
            of(&|r| r.0[at][1] as f64 / 1000.0),
            of(&|r| r.0[at][1] as f64 / r.0[at][0].max(1) as f64),
        ))?;
    }
    load.end().await;
    node.kill()?;
    std::fs::remove_dir_all(&dir).map_err(Into::into)
}
