//! A bare writer: the ledger client over gRPC against three bookie processes and etcd, no broker anywhere. Bookies are killed and
//! paused while it writes; ledgers roll meanwhile. What was acknowledged is read back byte for byte, once and in order, by a client
//! that knows nothing but the ledgers' metadata. `GEMINGA_BARE_ROUNDS=n` for more rounds of faults.

use super::{Cluster, payload};
use anyhow::{Context as _, Result, bail, ensure};
use geminga_bookie_client::entry::{Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::ledgers::{LedgerClient, Ledgers as _, NewEntry, Parts, Writer, WriterEvent};
use geminga_bookie_client::placement::zones::ZonePlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{ClosedLedger, LedgerAttributes, LedgerKind};
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, TopicId};
use geminga_common::metadata::etcd::{Config, EtcdStore};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetadataStore as _, Op, Revision, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Journal files, flushes and leases so small that a short run crosses them many times.
const SETTINGS: [(&str, &str); 6] = [
    ("GEMINGA_BOOKIE_LEASE_MS", "2000"),
    ("GEMINGA_BOOKIE_MAX_MESSAGE_SIZE", "192 KiB"),
    ("GEMINGA_BOOKIE_STORE_JOURNAL_FILE_SIZE", "1 MiB"),
    ("GEMINGA_BOOKIE_STORE_WRITE_CACHE", "1 MiB"),
    ("GEMINGA_BOOKIE_STORE_FLUSH_MS", "300"),
    ("GEMINGA_BOOKIE_STORE_DISK_RESERVE", "4 MiB"),
];
/// Entries of one ledger.
const ROLL: u64 = 700;
/// Entries that may wait for their acknowledgement.
const IN_FLIGHT: u64 = 64;
/// Longest time without an acknowledgement that is not taken for a hang: an add times out, another bookie is looked for.
const STALL_MAX: Duration = Duration::from_secs(60);

/// The client, as a broker wires it.
struct Bare {
    client: LedgerClient,
    meta: Arc<EtcdStore>,
    tasks: TaskGroup,
}

/// A closed ledger and the number in its first entry.
struct Part {
    ledger: ClosedLedger,
    first: u64,
}

/// What the faults' side may see of the writing.
#[derive(Default)]
struct Seen {
    acked: AtomicU64,
    stop: AtomicBool,
}

impl Bare {
    async fn new(etcd: String) -> Result<Self> {
        let (tasks, keys) = (TaskGroup::new(), Keys::new("local"));
        let meta = Arc::new(EtcdStore::connect(Config::plain(vec![etcd]), &tasks).await?);
        let registry = Registry::start(meta.clone(), keys.clone(), &tasks).await?;
        let rpc = GrpcBookies::new(grpc::Config::new("local", "bare"), registry.resolve(), tasks.clone());
        let quorum = QuorumSpec::new(3, 3, 2)?;
        let health = Some(rpc.health().clone());
        let client = LedgerClient::new(Parts {
            placement: Arc::new(ZonePlacement::new(registry, health, quorum.write(), Rng::from_system())),
            rpc: Arc::new(rpc),
            meta: meta.clone(),
            keys,
            quorum,
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::from_system(),
            tasks: tasks.clone(),
        });
        Ok(Self { client, meta, tasks })
    }

    /// Commits; `None` when a compare was lost.
    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Option<Revision>> {
        match self.meta.txn(Txn { compares, ops }).await? {
            TxnOutcome::Committed(revision) => Ok(Some(revision)),
            TxnOutcome::CompareFailed => Ok(None),
        }
    }

    async fn open(&self, above: Option<LedgerId>) -> Result<(Box<dyn Writer>, mpsc::Receiver<WriterEvent>)> {
        let id = self.client.allocate_id(above).await?;
        let attributes = LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: "persistent://bare/bare/bare".to_owned(),
            topic: TopicId(1),
            ordinal: 0,
            predecessor: above,
            owner_epoch: OwnerEpoch(1),
            first_index: MessageIndex(0),
        };
        let plan = self.client.plan_create(id, attributes)?;
        let revision = self.commit(plan.compares.clone(), plan.ops.clone()).await?;
        let revision = revision.context("a fresh ledger's record is there already")?;
        let (tell, told) = mpsc::channel(1 << 16);
        let tell = Arc::new(move |event: WriterEvent| drop(tell.try_send(event)));
        Ok((self.client.writer(plan, revision, tell), told))
    }

    /// One ledger from its creation to its close, whatever happens to its bookies.
    async fn write_ledger(&self, above: Option<LedgerId>, first: u64, seen: &Seen) -> Result<ClosedLedger> {
        let (mut writer, mut events) = self.open(above).await?;
        let id = writer.ledger();
        let mut next = first;
        let mut last_ack = Instant::now();
        let mut acked = first;
        loop {
            let full = next - first >= ROLL || seen.stop.load(Ordering::Relaxed);
            while !full && next - acked < IN_FLIGHT {
                if writer.append(vec![entry(next)]).is_err() {
                    break;
                }
                next += 1;
            }
            let progress = writer.progress();
            if progress.failed.is_some() {
                break;
            }
            let settled = progress.lafr == progress.lac || last_ack.elapsed() > Duration::from_secs(1);
            if full && progress.drained() && settled {
                let plan = writer.plan_close()?;
                if self.commit(plan.compares, plan.ops).await?.is_some() {
                    return Ok(plan.closed);
                }
                break;
            }
            let event = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
            if let Ok(Some(event)) = event {
                let lac = writer.on_event(event).lac;
                let now = first + lac.map_or(0, |lac| lac.0 + 1);
                if now > acked {
                    (acked, last_ack) = (now, Instant::now());
                    seen.acked.store(now, Ordering::Relaxed);
                }
            }
            ensure!(last_ack.elapsed() < STALL_MAX, "ledger {id}: nothing acknowledged for {STALL_MAX:?}");
        }
        let closed = self.recover(id).await?;
        let end = first + closed.last.map_or(0, |last| last.0 + 1);
        ensure!(
            end >= acked,
            "ledger {id} was closed at {:?}, {} were acknowledged",
            closed.last,
            acked - first
        );
        Ok(closed)
    }

    async fn recover(&self, id: LedgerId) -> Result<ClosedLedger> {
        let until = Instant::now() + STALL_MAX;
        loop {
            match self.client.recover(id).await {
                Ok(recovered) => return Ok(recovered.closed),
                Err(error) if Instant::now() > until => bail!("ledger {id}: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Ledger after ledger until told to stop. Numbers run on where the ledger before ended.
    async fn write(&self, seen: &Seen) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let (mut above, mut next) = (None, 0);
        while !seen.stop.load(Ordering::Relaxed) {
            let ledger = match self.write_ledger(above, next, seen).await {
                Ok(ledger) => ledger,
                Err(error) => return Err(error.context(format!("after {} ledgers", parts.len()))),
            };
            above = Some(ledger.id);
            let first = next;
            next += ledger.last.map_or(0, |last| last.0 + 1);
            parts.push(Part { ledger, first });
        }
        Ok(parts)
    }

    /// Reads every ledger and compares.
    async fn check(&self, parts: &[Part], acked: u64) -> Result<u64> {
        let mut next = 0;
        for part in parts {
            ensure!(part.first == next, "ledger {} begins with {}, not {next}", part.ledger.id, part.first);
            let (view, last) = (part.ledger.view(), part.ledger.last);
            let mut id = EntryId(0);
            while last.is_some_and(|last| id <= last) {
                let last = last.unwrap_or(id);
                let entries = self.client.read(&view, id, last, 1 << 20, ReadClass::CatchUp).await;
                let entries = entries.with_context(|| format!("ledger {}", view.id))?;
                for found in entries {
                    ensure!(found.id == id && found.verify(view.id), "entry {id} of ledger {}", view.id);
                    ensure!(**found.payload == payload("bare", next), "number {next} has other bytes");
                    (id, next) = (id.next(), next + 1);
                }
            }
        }
        ensure!(next >= acked, "{acked} were acknowledged, {next} are there");
        Ok(next)
    }
}

fn entry(n: u64) -> NewEntry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(n),
        timestamp_ms: 1,
        bytes_before: 0,
    };
    NewEntry { header, payload: payload("bare", n).into() }
}

/// Waits until so many more are acknowledged.
fn await_acked(seen: &Seen, more: u64) -> Result<Duration> {
    let (begun, from) = (Instant::now(), seen.acked.load(Ordering::Relaxed));
    while seen.acked.load(Ordering::Relaxed) < from + more {
        ensure!(
            begun.elapsed() < STALL_MAX,
            "only {} acknowledged",
            seen.acked.load(Ordering::Relaxed) - from
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(begun.elapsed())
}

/// One bookie after the other: killed and started again, then paused past its lease and let go on.
fn faults(cluster: &Cluster, seen: &Seen, rounds: u64) -> Result<()> {
    for round in 0..rounds {
        let name = format!("bookie-{}", round % 3);
        await_acked(seen, 300)?;
        cluster.signal(&name, "-KILL")?;
        let stall = await_acked(seen, 1000)?;
        println!("{name} killed: 1000 acknowledged without it in {} ms", stall.as_millis());
        cluster.start_only(&[&name])?;
        await_acked(seen, 300)?;
        let name = format!("bookie-{}", (round + 1) % 3);
        cluster.signal(&name, "-STOP")?;
        let stall = await_acked(seen, 1000)?;
        std::thread::sleep(Duration::from_millis(2500));
        println!("{name} paused: 1000 acknowledged without it in {} ms", stall.as_millis());
        cluster.signal(&name, "-CONT")?;
    }
    await_acked(seen, 1000).map(drop)
}

#[test]
fn a_bare_writer_loses_nothing_to_bookies_that_die_and_sleep() -> Result<()> {
    let started = ["etcd", "bookie-0", "bookie-1", "bookie-2"];
    let Some(cluster) = Cluster::up_only("a bare writer", &SETTINGS, &started)? else { return Ok(()) };
    let rounds = std::env::var("GEMINGA_BARE_ROUNDS").map_or(Ok(2), |rounds| rounds.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (etcd, seen) = (cluster.address("etcd")?, Arc::new(Seen::default()));
    let writer = runtime.block_on(Bare::new(etcd.clone()))?;
    let written = runtime.spawn({
        let seen = seen.clone();
        async move {
            let written = writer.write(&seen).await;
            writer.tasks.stop();
            written
        }
    });
    let suffered = faults(&cluster, &seen, rounds);
    seen.stop.store(true, Ordering::Relaxed);
    let parts = runtime.block_on(written)?;
    suffered
        .and(parts.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}")))
        .with_context(|| cluster.logs())?;
    let (parts, acked) = (parts?, seen.acked.load(Ordering::Relaxed));
    ensure!(parts.len() > 5, "only {} ledgers: no roll met a fault", parts.len());
    let reader = runtime.block_on(Bare::new(etcd))?;
    let there = runtime.block_on(reader.check(&parts, acked)).with_context(|| cluster.logs())?;
    println!("{acked} acknowledged, {there} read back in order from {} ledgers", parts.len());
    Ok(())
}
