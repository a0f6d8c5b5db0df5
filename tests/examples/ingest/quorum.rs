//! The ledger client with 3/3/2 over three stores: in this process, and behind gRPC in processes of their own. Metadata is in memory.

use crate::node::{self, CLUSTER, Node, cpu_seconds};
use crate::{Args, median, say};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use geminga_bookie::{Bookie, InProcess};
use geminga_bookie_client::entry::{Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::ledgers::{LedgerClient, Ledgers as _, NewEntry, Parts, WriterEvent};
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_bookie_client::rpc::{BookieRef, BookieRpc};
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::ids::{MessageIndex, OwnerEpoch, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore as _, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Ledgers written side by side, and entries of each that may wait.
const WRITERS: usize = 16;
const WINDOW: u64 = 256;

/// Three stores and the client in front of them.
struct Cluster {
    client: Arc<LedgerClient>,
    meta: Arc<MemoryStore>,
    tasks: TaskGroup,
    storage: TaskGroup,
    nodes: Vec<Node>,
}

impl Cluster {
    fn over(rpc: Arc<dyn BookieRpc>, refs: Vec<BookieRef>, tasks: TaskGroup) -> Result<Self> {
        let meta = Arc::new(MemoryStore::new(SystemClock::shared()));
        let client = LedgerClient::new(Parts {
            rpc,
            meta: meta.clone(),
            keys: Keys::new(CLUSTER),
            placement: Arc::new(StaticPlacement::new(refs)),
            quorum: QuorumSpec::new(3, 3, 2)?,
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::from_system(),
            tasks: tasks.clone(),
        });
        Ok(Self { client: Arc::new(client), meta, tasks, storage: TaskGroup::new(), nodes: Vec::new() })
    }

    fn in_process(dir: &Path, shards: u16) -> Result<Self> {
        let storage = TaskGroup::new();
        let open = |n: usize| {
            let name = format!("b{n}");
            let config = node::config(&name, &dir.join(&name), shards)?;
            Ok(Bookie::open(config, RealDisk::shared(), SystemClock::shared(), &storage)?)
        };
        let bookies = (0..3).map(open).collect::<Result<Vec<_>>>()?;
        let rpc = InProcess::new(bookies);
        let refs = rpc.refs();
        Ok(Self { storage, ..Self::over(Arc::new(rpc), refs, TaskGroup::new())? })
    }

    fn over_grpc(dir: &Path, shards: u16) -> Result<Self> {
        let nodes = (0..3)
            .map(|n| {
                let dir = dir.join(format!("b{n}"));
                std::fs::create_dir_all(&dir)?;
                Node::start(&dir, shards)
            })
            .collect::<Result<Vec<_>>>()?;
        let places: HashMap<_, _> = nodes.iter().map(|n| (n.store.id.clone(), n.address.clone())).collect();
        let tasks = TaskGroup::new();
        let config = grpc::Config::new(CLUSTER, "ingest");
        let rpc = GrpcBookies::new(config, Arc::new(move |id| places.get(id).cloned()), tasks.clone());
        let refs = nodes.iter().map(|n| n.store.clone()).collect();
        Ok(Self { nodes, ..Self::over(Arc::new(rpc), refs, tasks)? })
    }

    /// CPU seconds of everything: this process and the bookies'.
    fn cpu(&mut self) -> Result<f64> {
        let bookies = self.nodes.iter_mut().map(|node| Ok(node.ask("figures")?.cpu)).sum::<Result<f64>>()?;
        Ok(bookies + cpu_seconds(std::process::id())?)
    }

    async fn end(self) -> Result<()> {
        self.tasks.stop();
        self.tasks.join(Duration::from_secs(10)).await;
        self.storage.stop();
        self.storage.join(Duration::from_secs(30)).await;
        self.nodes.into_iter().try_for_each(Node::kill)
    }

    /// Messages a second, and CPU microseconds of each.
    async fn measure(&mut self, secs: u64, size: usize) -> Result<(f64, f64)> {
        let before = self.cpu()?;
        let begun = Instant::now();
        let until = begun + Duration::from_secs(secs);
        let payload = Bytes::from(vec![7; size]);
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| tokio::spawn(write(self.client.clone(), self.meta.clone(), payload.clone(), until)))
            .collect();
        let mut acked = 0;
        for writer in writers {
            acked += writer.await??;
        }
        let took = begun.elapsed().as_secs_f64();
        Ok((acked as f64 / took, (self.cpu()? - before) * 1e6 / acked as f64))
    }
}

/// One ledger; how much of it was acknowledged.
async fn write(
    client: Arc<LedgerClient>,
    meta: Arc<MemoryStore>,
    payload: Bytes,
    until: Instant,
) -> Result<u64> {
    let id = client.allocate_id(None).await?;
    let attributes = LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "persistent://bench/bench/bench".to_owned(),
        topic: TopicId(1),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    let plan = client.plan_create(id, attributes)?;
    let txn = Txn { compares: plan.compares.clone(), ops: plan.ops.clone() };
    let TxnOutcome::Committed(revision) = meta.txn(txn).await? else {
        anyhow::bail!("ledger {id} is there already")
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut writer =
        client.writer(plan, revision, Arc::new(move |event: WriterEvent| drop(tell.send(event))));
    let (mut sent, mut acked) = (0, 0);
    while Instant::now() < until {
        while sent - acked < WINDOW {
            let header = Header {
                kind: Kind::Messages,
                messages: 1,
                first_index: MessageIndex(sent),
                timestamp_ms: 1,
                bytes_before: sent * payload.len() as u64,
            };
            writer.append(vec![NewEntry { header, payload: payload.clone().into() }])?;
            sent += 1;
        }
        let mut progress = writer.on_event(told.recv().await.context("a writer without events")?);
        while let Ok(event) = told.try_recv() {
            progress = writer.on_event(event);
        }
        ensure!(progress.failed.is_none(), "ledger {id}: {:?}", progress.failed);
        acked = progress.lac.map_or(0, |lac| lac.0 + 1);
    }
    Ok(acked)
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let sizes = if args.sizes.is_empty() { vec![1 << 10, 16 << 10] } else { args.sizes.clone() };
    say(
        "| entry | in process msg/s | CPU µs | gRPC msg/s | CPU µs | msg/s gRPC : in process | CPU gRPC : in process |",
    )?;
    say("|---|---|---|---|---|---|---|")?;
    for size in sizes {
        let dir = args.dir.join(format!("quorum{size}"));
        let mut inside = Cluster::in_process(&dir.join("in"), args.shards)?;
        let mut outside = Cluster::over_grpc(&dir.join("out"), args.shards)?;
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            let first = inside.measure(args.secs, size).await?;
            rounds.push((first, outside.measure(args.secs, size).await?));
        }
        inside.end().await?;
        outside.end().await?;
        std::fs::remove_dir_all(&dir)?;
        let of = |of: fn(&((f64, f64), (f64, f64))) -> f64| median(rounds.iter().map(of).collect());
        say(&format!(
            "| {size} | {:.0} | {:.1} | {:.0} | {:.1} | {:.2} | {:.2} |",
            of(|r| r.0.0),
            of(|r| r.0.1),
            of(|r| r.1.0),
            of(|r| r.1.1),
            of(|r| r.1.0 / r.0.0),
            of(|r| r.1.1 / r.0.1),
        ))?;
    }
    Ok(())
}
