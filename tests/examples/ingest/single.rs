//! One bookie beside the plain loop.

use crate::load::Load;
use crate::node::{Done, Node};
use crate::{Args, median, probe, say};
use anyhow::Result;

/// One round's figures.
struct Round {
    /// Entries a second.
    rate: f64,
    /// Bytes a second into the journal, and into segments.
    journal: f64,
    segments: f64,
    /// Bytes of a journal write.
    batch: f64,
    /// CPU seconds of the bookie for a GB of payload.
    cpu_per_gb: f64,
    /// Bytes a second of the plain loop, with one write at a time and with four.
    disk: [f64; 2],
    /// Microseconds at half the rate.
    half: [u64; 3],
}

async fn round(args: &Args, node: &mut Node, size: usize, first: u64) -> Result<Round> {
    let mut load = Load::new(node.address.clone(), node.store.clone(), size, first);
    load.run(1, None).await?; // warm
    let before = node.ask("figures")?;
    let taken = load.run(args.secs, None).await?;
    let after = node.ask("figures")?;
    let secs = taken.took.as_secs_f64();
    let rate = taken.entries as f64 / secs;
    let per_second = |of: fn(&Done) -> f64| (of(&after) - of(&before)) / secs;
    let batch = (after.journal - before.journal) / (after.writes - before.writes).max(1.0);
    let half = load.run(args.secs, Some(rate / 2.0)).await?.latency_us;
    load.end().await;
    let mut disk = [0.0; 2];
    for (in_flight, disk) in [1, 4].into_iter().zip(&mut disk) {
        let (dir, secs) = (args.dir.clone(), args.secs.div_ceil(2));
        let found =
            tokio::task::spawn_blocking(move || probe::synced_writes(&dir, batch as usize, in_flight, secs));
        *disk = found.await??;
    }
    Ok(Round {
        rate,
        journal: per_second(|d| d.journal),
        segments: per_second(|d| d.segments),
        batch,
        cpu_per_gb: (after.cpu - before.cpu) / (taken.entries as f64 * size as f64 / 1e9),
        disk,
        half: [0.5, 0.99, 0.999].map(|q| half.value_at_quantile(q)),
    })
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let sizes = if args.sizes.is_empty() { vec![4 << 10, 64 << 10, 1 << 20] } else { args.sizes.clone() };
    say(
        "| entry | adds/s | MB/s | batch KiB | journal MB/s | segment MB/s | loop MB/s, 1 at a time | 4 | journal : loop 1 | : loop 4 | both : loop 4 | CPU-s per GB | p50 ms | p99 ms | p99.9 ms |",
    )?;
    say("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for size in sizes {
        let dir = args.dir.join(format!("b{size}"));
        std::fs::create_dir_all(&dir)?;
        let mut node = Node::start(&dir, args.shards)?;
        let mut rounds = Vec::new();
        for n in 0..args.rounds {
            rounds.push(round(&args, &mut node, size, 1000 * (n + 1)).await?);
        }
        node.kill()?;
        std::fs::remove_dir_all(&dir)?;
        let of = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of).collect());
        let half = [0, 1, 2].map(|n| of(&|r| r.half[n] as f64 / 1000.0));
        say(&format!(
            "| {size} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            of(&|r| r.rate),
            of(&|r| r.rate * size as f64 / 1e6),
            of(&|r| r.batch / 1024.0),
            of(&|r| r.journal / 1e6),
            of(&|r| r.segments / 1e6),
            of(&|r| r.disk[0] / 1e6),
            of(&|r| r.disk[1] / 1e6),
            of(&|r| r.journal / r.disk[0]),
            of(&|r| r.journal / r.disk[1]),
            of(&|r| (r.journal + r.segments) / r.disk[1]),
            of(&|r| r.cpu_per_gb),
            half[0],
            half[1],
            half[2],
        ))?;
    }
    Ok(())
}
