//! Nodes: registration, liveness, identity, and who is not let in.

use crate::support::{CLUSTER, entry, id, send};
use geminga_bookie::node::{Config, Node, NodeError, Parts};
use geminga_bookie::{Bookie, InProcess, Room};
use geminga_bookie_client::registry::record::{BookieRecord, NodeState};
use geminga_bookie_client::registry::{Registry, View};
use geminga_bookie_client::rpc::{Doubt, Read, ReadAnswer, ReadClass};
use geminga_common::clock::SystemClock;
use geminga_common::disk::sim::SimDisk;
use geminga_common::disk::{Disk as _, RealDisk};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{EntryId, Incarnation, LedgerId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore, Op, Txn};
use geminga_common::tasks::TaskGroup;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(crate) fn metadata() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(SystemClock::shared()))
}

pub(crate) fn parts(metadata: &Arc<MemoryStore>) -> Parts {
    Parts { metadata: metadata.clone(), disk: RealDisk::shared(), clock: SystemClock::shared() }
}

pub(crate) fn config(name: &str, dir: &Path) -> Config {
    let mut store = geminga_bookie::Config::new(id(name), dir.join(name), CLUSTER);
    store.write_cache = 8 << 20;
    let mut config = Config::new(store);
    config.labels.zone = format!("zone-{name}");
    config.lease_ttl = Duration::from_millis(300);
    config
}

async fn record(metadata: &MemoryStore, name: &str) -> BookieRecord {
    let stored = metadata.get(&Keys::new(CLUSTER).bookie(&id(name))).await.unwrap().unwrap();
    BookieRecord::decode(&stored.value).unwrap()
}

async fn change(metadata: &MemoryStore, name: &str, change: impl FnOnce(&mut BookieRecord)) {
    let mut record = record(metadata, name).await;
    change(&mut record);
    let op = Op::put(Keys::new(CLUSTER).bookie(&id(name)), record.encode());
    metadata.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_lives_and_leaves() {
    let (dir, metadata, tasks) = (tempfile::tempdir().unwrap(), metadata(), TaskGroup::new());
    let registry = Registry::start(metadata.clone(), Keys::new(CLUSTER), &tasks).await.unwrap();
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    let address = node.address().to_string();
    let view = registry.until(|v| v.bookies.get(&id("b1")).is_some_and(|b| b.live.is_some())).await.unwrap();
    assert_eq!(view.address(&id("b1")), Some(address));
    let first = record(&metadata, "b1").await;
    assert_eq!((first.boot, first.state), (1, NodeState::ReadWrite));
    assert_eq!(first.incarnation, node.bookie().incarnation());
    assert_eq!(first.labels.zone, "zone-b1");
    // Far longer than its lease.
    tokio::time::sleep(Duration::from_millis(900)).await;
    metadata.tick();
    assert!(registry.view().bookies[&id("b1")].live.is_some(), "it is renewed");
    node.stop().await;
    registry.until(|view| view.bookies[&id("b1")].live.is_none()).await.unwrap();
    change(&metadata, "b1", |record| record.state = NodeState::Draining).await;
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    let again = record(&metadata, "b1").await;
    assert_eq!((again.boot, again.state), (2, NodeState::Draining), "a drain outlives a restart");
    assert_eq!(again.incarnation, first.incarnation);
    node.stop().await;
    tasks.stop();
}

/// Placement reads it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_full_the_disk_is_stands_in_the_record() {
    let (metadata, tasks) = (metadata(), TaskGroup::new());
    let registry = Registry::start(metadata.clone(), Keys::new(CLUSTER), &tasks).await.unwrap();
    let disk = SimDisk::new();
    let parts = Parts { disk: Arc::new(disk.clone()), ..parts(&metadata) };
    let node = Node::start(config("b1", Path::new("/sim")), parts).await.unwrap();
    let told = async |wanted: &dyn Fn(Room) -> bool| {
        let there = |view: &View| {
            let record = view.bookies.get(&id("b1")).and_then(|known| known.record.as_ref());
            record.is_some_and(|record| wanted(record.room))
        };
        tokio::time::timeout(Duration::from_secs(20), registry.until(there)).await.unwrap().unwrap();
    };
    told(&|room| room == Room::Open).await;
    disk.capacity(Some(1 << 20));
    let rpc = InProcess::new([node.bookie().clone()]);
    let _full = send(&rpc, &rpc.refs()[0], 1, vec![entry(1, 0, 1000)]).await;
    node.bookie().flush_soon();
    told(&|room| room > Room::NoNewLedgers).await;
    disk.capacity(None);
    told(&|room| room == Room::Open).await;
    assert_eq!(
        record(&metadata, "b1").await.state,
        NodeState::ReadWrite,
        "the operator's word is not touched"
    );
    node.stop().await;
    tasks.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_went_back_in_time_proves_no_absence() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap().stop().await;
    change(&metadata, "b1", |record| record.boot = 9).await;
    let (ledger, first) = (LedgerId(1), EntryId(0));
    let read = Read { ledger, first, last: first, bytes_max: 1, class: ReadClass::Tail };
    for boot in [9, 9] {
        let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
        assert_eq!(node.state(), NodeState::DataLoss);
        assert_eq!(node.bookie().read(read).await, ReadAnswer::Unknown(Doubt::DataLoss));
        assert_eq!(record(&metadata, "b1").await.state, NodeState::DataLoss);
        assert_eq!(record(&metadata, "b1").await.boot, boot);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_lives_and_a_store_given_up_are_refused() {
    let (dir, other, metadata) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), metadata());
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    let taken = Node::start(config("b1", other.path()), parts(&metadata)).await.err().unwrap();
    assert_eq!(taken.code(), Code::BOOKIE_NAME_TAKEN, "{taken}");
    drop(node);
    // The dead one's lease runs out; then the name is free for another store.
    let node = Node::start(config("b1", other.path()), parts(&metadata)).await.unwrap();
    assert_eq!(record(&metadata, "b1").await.incarnation, node.bookie().incarnation());
    node.stop().await;
    change(&metadata, "b1", |record| record.state = NodeState::Lost).await;
    let retired = Node::start(config("b1", other.path()), parts(&metadata)).await.err().unwrap();
    assert!(matches!(retired, NodeError::Retired(_)), "{retired}");
}

/// What a served node looks like: its incarnation, its state, its store.
type Served = (Incarnation, NodeState, Bookie);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_something_starts_again_as_another_once_it_is_let_go_of() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    let kept = entry(7, 0, 100);
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    let old = node.bookie().incarnation();
    node.bookie().store_copies(LedgerId(7), vec![kept.clone()]).await.unwrap();
    let bookie = node.bookie().clone();
    bookie.flush_soon();
    while bookie.figures().segments == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(bookie);
    node.stop().await;
    RealDisk.remove(&dir.path().join("b1/manifest.redb")).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::channel::<Served>(4);
    let shutdown = CancellationToken::new();
    let (config, parts, stop) = (config("b1", dir.path()), parts(&metadata), shutdown.clone());
    let ready = |node: &Node| {
        let served = (node.bookie().incarnation(), node.state(), node.bookie().clone());
        tell.try_send(served).unwrap();
    };
    let story = async {
        let (incarnation, state, bookie) = told.recv().await.unwrap();
        assert_eq!((incarnation, state), (old, NodeState::DataLoss));
        let more = vec![entry(7, 1, 100)];
        assert!(bookie.store_copies(LedgerId(7), more.clone()).await.is_err(), "it takes nothing");
        drop(bookie);
        change(&metadata, "b1", |record| record.state = NodeState::Lost).await;
        let again = tokio::time::timeout(Duration::from_secs(30), told.recv()).await.unwrap();
        let (incarnation, state, bookie) = again.unwrap();
        assert!(incarnation != old && state == NodeState::ReadWrite);
        let (ledger, first) = (LedgerId(7), EntryId(0));
        let read = Read { ledger, first, last: first, bytes_max: 1, class: ReadClass::Tail };
        assert_eq!(
            bookie.read(read).await,
            ReadAnswer::Found(vec![kept]),
            "what could be read is still there"
        );
        bookie.store_copies(LedgerId(7), more).await.unwrap();
        drop(bookie);
        shutdown.cancel();
    };
    let running = geminga_bookie::node::run(config, parts, ready, stop);
    let (ended, ()) = tokio::join!(running, story);
    ended.unwrap();
}

/// Stores an entry of a ledger and waits until it lies in a segment.
async fn flushed(node: &Node, ledger: u64) {
    let bookie = node.bookie().clone();
    let before = bookie.figures().segments;
    bookie.store_copies(LedgerId(ledger), vec![entry(ledger, 0, 100)]).await.unwrap();
    bookie.flush_soon();
    while bookie.figures().segments == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_is_damage_from_the_start_on_and_comes_back_with_its_file() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    flushed(&node, 7).await;
    node.stop().await;
    let segments = dir.path().join("b1/segments");
    let name = RealDisk.list(&segments).unwrap().remove(0);
    let aside = dir.path().join("aside");
    RealDisk.rename(&segments.join(&name), &aside).unwrap();
    let (ledger, first) = (LedgerId(7), EntryId(0));
    let read = Read { ledger, first, last: first, bytes_max: 1, class: ReadClass::Tail };
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    assert_eq!(node.state(), NodeState::ReadWrite, "the others of its ledgers are sound");
    assert_eq!(record(&metadata, "b1").await.damage, 1, "repair is told before anybody reads");
    assert_eq!(node.bookie().read(read).await, ReadAnswer::Unknown(Doubt::Damaged));
    // What repair does.
    node.bookie().store_copies(ledger, vec![entry(7, 0, 100)]).await.unwrap();
    assert_eq!(node.bookie().read(read).await, ReadAnswer::Found(vec![entry(7, 0, 100)]));
    node.stop().await;
    RealDisk.rename(&aside, &segments.join(&name)).unwrap();
    let node = Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap();
    assert_eq!(record(&metadata, "b1").await.damage, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_directories_are_refused_and_nothing_is_registered() {
    let (dir, metadata) = (tempfile::tempdir().unwrap(), metadata());
    let swap = || {
        let at = |name: &str| dir.path().join(name);
        for (from, to) in [("b1", "aside"), ("b2", "b1"), ("aside", "b2")] {
            RealDisk.rename(&at(from), &at(to)).unwrap();
        }
    };
    for name in ["b1", "b2"] {
        Node::start(config(name, dir.path()), parts(&metadata)).await.unwrap().stop().await;
    }
    let before = [record(&metadata, "b1").await, record(&metadata, "b2").await];
    swap();
    for (name, other) in [("b1", "b2"), ("b2", "b1")] {
        let refused = Node::start(config(name, dir.path()), parts(&metadata)).await.err().unwrap();
        assert_eq!(refused.code(), Code::DATA_DIRECTORY_FOREIGN, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(&format!("store of bookie {other}, not of {name}")), "{text}");
    }
    assert_eq!([record(&metadata, "b1").await, record(&metadata, "b2").await], before);
    swap();
    for name in ["b1", "b2"] {
        let node = Node::start(config(name, dir.path()), parts(&metadata)).await.unwrap();
        assert_eq!(node.state(), NodeState::ReadWrite);
        node.stop().await;
    }
    // One that was given up under its name may serve under another.
    swap();
    change(&metadata, "b2", |record| record.state = NodeState::Lost).await;
    Node::start(config("b1", dir.path()), parts(&metadata)).await.unwrap().stop().await;
}
