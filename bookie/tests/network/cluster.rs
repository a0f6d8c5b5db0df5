//! Three nodes, a metadata store and a ledger client: what a writer was told is durable is read back byte for byte, whichever
//! node dies meanwhile.

use crate::log::{Log, number};
use crate::nodes::{config, metadata, parts};
use crate::support::{CLUSTER, Mode, Proxy, id};
use bytes::Bytes;
use geminga_bookie::node::Node;
use geminga_bookie_client::entry::{Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::ledgers::{
    LedgerClient, LedgerView, Ledgers, NewEntry, Parts, Progress, RecoverError, Writer, WriterEvent,
};
use geminga_bookie_client::placement::Placement as _;
use geminga_bookie_client::placement::zones::ZonePlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::{EntryId, MessageIndex, OwnerEpoch, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

struct Client {
    ledgers: LedgerClient,
    placement: Arc<ZonePlacement>,
    registry: Registry,
    tasks: TaskGroup,
}

async fn client(metadata: &Arc<MemoryStore>) -> Client {
    client_over(metadata, |resolve| resolve).await
}

/// A client that reaches bookies where `way` says.
async fn client_over(
    metadata: &Arc<MemoryStore>,
    way: impl FnOnce(grpc::Resolve) -> grpc::Resolve,
) -> Client {
    let tasks = TaskGroup::new();
    let keys = Keys::new(CLUSTER);
    let registry = Registry::start(metadata.clone(), keys.clone(), &tasks).await.unwrap();
    let rpc = GrpcBookies::new(grpc::Config::new(CLUSTER, "tests"), way(registry.resolve()), tasks.clone());
    let (health, rng) = (rpc.health().clone(), Rng::seeded(1));
    let placement = Arc::new(ZonePlacement::new(registry.clone(), Some(health), 3, rng));
    let ledgers = LedgerClient::new(Parts {
        rpc: Arc::new(rpc),
        meta: metadata.clone(),
        keys,
        placement: placement.clone(),
        quorum: QuorumSpec::new(3, 3, 2).unwrap(),
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::seeded(7),
        tasks: tasks.clone(),
    });
    Client { ledgers, placement, registry, tasks }
}

fn entry(n: u64) -> NewEntry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(n),
        timestamp_ms: n,
        bytes_before: 0,
    };
    NewEntry { header, payload: payload(n).into() }
}

fn payload(n: u64) -> Bytes {
    (0..n as usize * 37 % 5000).map(|at| (at as u64 + n) as u8).collect::<Vec<u8>>().into()
}

struct Open {
    writer: Box<dyn Writer>,
    events: mpsc::Receiver<WriterEvent>,
    sent: u64,
}

impl Open {
    async fn create(client: &Client, metadata: &MemoryStore) -> Self {
        let ledger = client.ledgers.allocate_id(None).await.unwrap();
        let attributes = LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: "persistent://t/n/orders".into(),
            topic: TopicId(9),
            ordinal: 0,
            predecessor: None,
            owner_epoch: OwnerEpoch(1),
            first_index: MessageIndex(0),
        };
        let plan = client.ledgers.plan_create(ledger, attributes).unwrap();
        let txn = Txn { compares: plan.compares.clone(), ops: plan.ops.clone() };
        let TxnOutcome::Committed(revision) = metadata.txn(txn).await.unwrap() else { panic!("lost") };
        let (tell, events) = mpsc::channel(100_000);
        let writer = client.ledgers.writer(plan, revision, Arc::new(move |e| tell.try_send(e).unwrap()));
        Self { writer, events, sent: 0 }
    }

    fn append(&mut self, count: u64) {
        for n in self.sent..self.sent + count {
            assert_eq!(self.writer.append(vec![entry(n)]), Ok(EntryId(n)));
        }
        self.sent += count;
    }

    async fn until(&mut self, met: impl Fn(&Progress, &LedgerView) -> bool) -> Progress {
        loop {
            let (progress, view) = (self.writer.progress(), self.writer.view());
            assert_eq!(progress.failed, None);
            if met(&progress, &view) {
                return progress;
            }
            let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("nothing more happens at {progress:?} {view:?}"));
            self.writer.on_event(event.unwrap());
        }
    }
}

async fn read_all(client: &Client, view: &LedgerView, count: u64) {
    let mut next = 0;
    while next < count {
        let (first, last) = (EntryId(next), EntryId(count - 1));
        let run = client.ledgers.read(view, first, last, 1 << 20, ReadClass::CatchUp).await.unwrap();
        for found in run {
            assert!(found.id == EntryId(next) && *found.payload == payload(next), "entry {next}");
            assert_eq!(found.header.first_index, MessageIndex(next));
            next += 1;
        }
    }
}

fn holders(view: &LedgerView) -> Vec<&str> {
    let last = view.fragments.last().unwrap();
    last.ensemble.iter().flatten().map(|bookie| bookie.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_dies_another_takes_its_place_and_recovery_reads_everything_back() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    let start = |name: &'static str| Node::start(config(name, dir.path()), parts(&metadata));
    let b1 = start("b1").await.unwrap();
    let b2 = start("b2").await.unwrap();
    let b3 = start("b3").await.unwrap();
    let writing = client(&metadata).await;
    let alive = |view: &geminga_bookie_client::registry::View| {
        view.bookies.values().filter(|b| b.live.is_some()).count()
    };
    writing.registry.until(|view| alive(view) == 3).await.unwrap();
    let mut open = Open::create(&writing, &metadata).await;
    assert_eq!(holders(&open.writer.view()).len(), 3);
    assert_eq!(writing.placement.degraded(), None);
    open.append(500);
    open.until(|p, _| p.drained() && p.lafr == p.lac).await;

    // One of exactly three dies in mid-stream: publishing goes on, with the slot recorded as vacant.
    open.append(250);
    drop(b3);
    open.append(250);
    open.until(|p, view| p.drained() && holders(view).len() == 2).await;
    assert!(writing.placement.degraded().is_some(), "and it is flagged");

    // Another node comes: it is taken in, and entries have three copies again.
    let b4 = start("b4").await.unwrap();
    open.append(100);
    open.until(|_, view| holders(view).contains(&"b4")).await;
    open.append(100);
    open.until(|p, _| p.drained() && p.lafr == p.lac).await;
    open.append(50);
    open.until(|p, _| p.drained()).await;

    // The writer is gone without a close. A fresh client fences, recovers, closes and reads.
    let (ledger, sent) = (open.writer.ledger(), open.sent);
    writing.tasks.stop();
    let fresh = client(&metadata).await;
    let recovered = recover(&fresh, ledger).await;
    assert_eq!(recovered.closed.last, Some(EntryId(sent - 1)));
    let view = recovered.closed.view();
    read_all(&fresh, &view, sent).await;
    open.append(1);
    let fenced = tokio::time::timeout(Duration::from_secs(20), open.events.recv()).await;
    assert!(fenced.is_ok(), "the old writer learns that it is over");

    // And with any one of the rest away, everything is still there.
    b1.stop().await;
    read_all(&fresh, &view, sent).await;
    fresh.tasks.stop();
    b2.stop().await;
    b4.stop().await;
}

/// Publishes until `met`.
async fn publish_until(open: &mut Open, met: impl Fn(&LedgerView) -> bool) {
    let begun = tokio::time::Instant::now();
    while !met(&open.writer.view()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {:?}", open.writer.view());
        open.append(3);
        open.until(|p, _| p.drained()).await;
        assert_eq!(holders(&open.writer.view()).len(), 3, "slow is better than missing");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// The line of the verdict: which bookie, how slow against what, for how long it is avoided, and what to do.
fn told_who_is_slow(log: &Log) {
    let lines = log.lines(&["GM-3020"]);
    let [line] = &lines[..] else { panic!("one verdict, one line: {lines:?}") };
    assert!(line.contains("WARN") && line.contains("bookie=b1"), "{line}");
    let of = |field| number(line, field).unwrap_or_else(|| panic!("no {field}: {line}"));
    let (latency, limit) = (of("latency_us"), of("limit_us"));
    assert!((50_000..3_000_000).contains(&latency) && (5000..latency).contains(&limit), "{line}");
    assert_eq!(of("avoided_s"), 60, "{line}");
    assert!(line.contains("look at its disk, load and network"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_ledger_leaves_a_slow_bookie_once_there_is_another_and_for_good() {
    let (log, dir, metadata) = (Log::kept(), tempfile::tempdir().unwrap(), metadata());
    let start = |name: &'static str| Node::start(config(name, dir.path()), parts(&metadata));
    let nodes = [start("b1").await.unwrap(), start("b2").await.unwrap(), start("b3").await.unwrap()];
    let direct = client(&metadata).await;
    let alive = |view: &geminga_bookie_client::registry::View| {
        view.bookies.values().filter(|b| b.live.is_some()).count()
    };
    direct.registry.until(|view| alive(view) == 3).await.unwrap();
    let proxy = Proxy::start(direct.registry.resolve()(&id("b1")).unwrap().parse().unwrap()).await;
    let by = proxy.address.to_string();
    let writing = client_over(&metadata, move |resolve| {
        Arc::new(move |bookie| if *bookie == id("b1") { Some(by.clone()) } else { resolve(bookie) })
    })
    .await;
    let mut open = Open::create(&writing, &metadata).await;
    open.append(20);
    open.until(|p, _| p.drained() && p.lafr == p.lac).await;

    // One of exactly three is slow: it gets its verdict, and stays.
    proxy.set(Mode::Slow(Duration::from_millis(300)));
    publish_until(&mut open, |_| writing.placement.slow_verdicts() == 1).await;
    told_who_is_slow(log);
    let since = tokio::time::Instant::now();
    publish_until(&mut open, |_| since.elapsed() > Duration::from_secs(6)).await;
    assert!(holders(&open.writer.view()).contains(&"b1"));
    assert_eq!(open.writer.view().fragments.len(), 1);

    // Another comes and takes its place, for good.
    let b4 = start("b4").await.unwrap();
    publish_until(&mut open, |view| holders(view).contains(&"b4")).await;
    let since = tokio::time::Instant::now();
    publish_until(&mut open, |_| since.elapsed() > Duration::from_secs(6)).await;
    let view = open.writer.view();
    assert!(!holders(&view).contains(&"b1"));
    let left = log.lines(&["open ledger leaves a slow bookie", "slow=b1", "by=b4"]);
    assert_eq!(left.len(), 1, "who left for whom: {left:?}");
    assert_eq!(log.lines(&["GM-3020"]).len(), 1, "one line for one verdict, however long it stands");
    assert_eq!((view.fragments.len(), writing.placement.slow_verdicts()), (2, 1), "no flapping");
    read_all(&direct, &view, open.sent).await;

    writing.tasks.stop();
    direct.tasks.stop();
    proxy.tasks.stop();
    for node in nodes.into_iter().chain([b4]) {
        node.stop().await;
    }
}

async fn recover(
    client: &Client,
    ledger: geminga_common::ids::LedgerId,
) -> geminga_bookie_client::ledgers::Recovered {
    let run = async {
        loop {
            match client.ledgers.recover(ledger).await {
                Ok(recovered) => return recovered,
                Err(RecoverError::Undecided(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), run).await.expect("it is decided")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_is_taken_back_at_its_new_address() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    let start = |name: &'static str| Node::start(config(name, dir.path()), parts(&metadata));
    let (b1, b2, b3) = (start("b1").await.unwrap(), start("b2").await.unwrap(), start("b3").await.unwrap());
    let client = client(&metadata).await;
    let mut open = Open::create(&client, &metadata).await;
    open.append(100);
    open.until(|p, _| p.drained() && p.lafr == p.lac).await;
    let before = b2.address();
    b2.stop().await;
    open.append(100);
    open.until(|p, view| p.drained() && holders(view).len() == 2).await;
    let b2 = start("b2").await.unwrap();
    assert_ne!(b2.address(), before, "a free port each time");
    client
        .registry
        .until(|v| v.bookies[&id("b2")].live.as_ref().is_some_and(|l| l.address == b2.address().to_string()))
        .await
        .unwrap();
    open.append(100);
    open.until(|_, view| holders(view).len() == 3).await;
    open.append(100);
    open.until(|p, _| p.drained() && p.lafr == p.lac).await;
    read_all(&client, &open.writer.view(), open.sent).await;
    client.tasks.stop();
    for node in [b1, b2, b3] {
        node.stop().await;
    }
}
