//! Very many open ledgers in one store.

use crate::node::Node;
use crate::{Args, say};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_bookie_client::rpc::{Add, BookieRpc as _};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::tasks::TaskGroup;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const WINDOW: usize = 4096;

fn add(ledger: u64) -> Add {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(0),
        timestamp_ms: 1,
        bytes_before: 0,
    };
    let attributes = LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: format!("persistent://public/default/topic-{ledger}"),
        topic: TopicId(ledger),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    let entry = Entry::new(LedgerId(ledger), EntryId(0), header, Bytes::from_static(&[7; 100]));
    Add {
        ledger: LedgerId(ledger),
        term: Term(1),
        lac: None,
        lafr: None,
        attributes: Some(Arc::new(attributes)),
        entries: vec![entry],
    }
}

/// One entry of 100 bytes to each.
async fn open_all(node: &Node, count: u64) -> Result<Duration> {
    let (tasks, address) = (TaskGroup::new(), node.address.clone());
    let config = grpc::Config::new(crate::node::CLUSTER, "ingest");
    let rpc = GrpcBookies::new(config, Arc::new(move |_| Some(address.clone())), tasks.clone());
    let (room, failed) = (Arc::new(Semaphore::new(WINDOW)), Arc::new(Mutex::new(None)));
    let begun = Instant::now();
    for ledger in 1..=count {
        room.acquire().await?.forget();
        let (room, failed) = (room.clone(), failed.clone());
        let done = move |result: Result<(), _>| {
            if let Err(error) = result {
                *failed.lock() = Some(format!("{error:?}"));
            }
            room.add_permits(1);
        };
        rpc.add(&node.store, add(ledger), Box::new(done));
    }
    drop(room.acquire_many(WINDOW as u32).await?);
    let took = begun.elapsed();
    let failed = failed.lock().take();
    ensure!(failed.is_none(), "an add failed: {failed:?}");
    tasks.stop();
    tasks.join(Duration::from_secs(10)).await;
    Ok(took)
}

/// Until nothing is in the write cache any more.
async fn flush(node: &mut Node) -> Result<Duration> {
    let begun = Instant::now();
    node.ask("flush")?;
    while node.ask("figures")?.cached > 0.0 {
        ensure!(begun.elapsed() < Duration::from_secs(120), "the flush does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(begun.elapsed())
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let dir = args.dir.join("many");
    std::fs::create_dir_all(&dir)?;
    let mut node = Node::start(&dir, args.shards).context("an empty store")?;
    let empty = node.memory()?.0;
    let opened = open_all(&node, args.count).await?;
    let full = node.memory()?.0;
    node.kill()?;
    node = Node::start(&dir, args.shards).context("before a flush")?;
    let replayed = node.ready;
    let flushed = flush(&mut node).await?;
    let (now, peak) = node.memory()?;
    node.kill()?;
    node = Node::start(&dir, args.shards).context("after the flush")?;
    say(&format!(
        "{} open ledgers of one entry: opened in {:.1} s; RSS {empty:.0} MB before, {full:.0} MB with them; ready {} ms after a \
         SIGKILL before the flush; flushed in {} ms (RSS {now:.0} MB, highest {peak:.0}); ready {} ms after a SIGKILL after it, RSS {:.0} MB",
        args.count,
        opened.as_secs_f64(),
        replayed.as_millis(),
        flushed.as_millis(),
        node.ready.as_millis(),
        node.memory()?.0,
    ))?;
    node.kill()?;
    std::fs::remove_dir_all(&dir).map_err(Into::into)
}
