//! The redb store: the common suite, what survives a restart, and what a failing disk does to it.

use super::tables::{FORMAT, STORE};
use super::*;
use crate::clock::{ManualClock, SystemClock};
use crate::disk::{DiskFile, OpenMode, RealDisk, RedbFile, Space};
use crate::metadata::conformance::{self, Fixture};
use crate::metadata::{Compare, Op, Revision, WatchEvent, list_all};
use bytes::Bytes;
use redb::Database;
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Running {
    pub(super) store: RedbStore,
    pub(super) tasks: TaskGroup,
}

pub(super) fn open(disk: impl Disk, path: &Path) -> Running {
    let tasks = TaskGroup::new();
    let store = RedbStore::open(Arc::new(disk), path, SystemClock::shared(), &tasks).unwrap();
    Running { store, tasks }
}

impl Running {
    pub(super) async fn close(self) {
        self.tasks.stop();
        assert_eq!(self.tasks.join(DEADLINE).await, Vec::<String>::new());
    }

    pub(super) async fn put(&self, key: &str, lease: Option<LeaseId>) -> Result<TxnOutcome, MetaError> {
        let put = Op::Put { key: key.into(), value: Bytes::from(format!("value of {key}")), lease };
        self.store.txn(Txn { compares: vec![], ops: vec![put] }).await
    }
}

#[tokio::test]
async fn keeps_the_rules_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicU64::new(0);
    let tasks = TaskGroup::new();
    conformance::run(|| {
        let clock = Arc::new(ManualClock::default());
        let path = dir.path().join(format!("{}.redb", next.fetch_add(1, Ordering::Relaxed)));
        let store = Arc::new(RedbStore::open(RealDisk::shared(), &path, clock.clone(), &tasks).unwrap());
        let advance = move |by| {
            clock.advance(by);
            std::future::ready(()).boxed()
        };
        Fixture::manual(store, advance)
    })
    .await;
    assert_eq!(tasks.join(DEADLINE).await, Vec::<String>::new(), "threads end with their last handle");
}

#[tokio::test]
async fn a_restart_keeps_all_but_leased_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let first = open(RealDisk, &path);
    let lease = first.store.lease_grant(Duration::from_secs(1000)).await.unwrap();
    for key in ["a", "b", "once leased"] {
        first.put(key, (key == "once leased").then_some(lease)).await.unwrap();
    }
    first.put("leased", Some(lease)).await.unwrap();
    let TxnOutcome::Committed(last) = first.put("once leased", None).await.unwrap() else { panic!() };
    let before = list_all(&first.store, "").await.unwrap();
    first.close().await;

    let second = open(RealDisk, &path);
    let after = list_all(&second.store, "").await.unwrap();
    let kept: Vec<_> = before.into_iter().filter(|r| r.key != "leased").collect();
    assert_eq!(after, kept, "keys, values and revisions");
    let TxnOutcome::Committed(next) = second.put("c", None).await.unwrap() else { panic!() };
    assert!(next.0 > last.0 + 1, "purging took a revision");
    assert_eq!(second.put("d", Some(lease)).await, Err(MetaError::LeaseGone(lease)));
    second.close().await;

    let third = open(RealDisk, &path);
    assert_eq!(
        third.put("e", None).await,
        Ok(TxnOutcome::Committed(Revision(next.0 + 1))),
        "nothing to purge"
    );
    third.close().await;
}

#[tokio::test]
async fn a_stopped_store_answers() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(RealDisk, &dir.path().join("meta.redb"));
    running.tasks.stop();
    assert!(running.tasks.join(DEADLINE).await.is_empty());
    assert!(matches!(running.put("a", None).await, Err(MetaError::Unavailable(_))));
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    open(RealDisk, &path).close().await;
    let database =
        Database::builder().create_with_backend(RedbFile::open(&RealDisk, &path).unwrap()).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(STORE).unwrap().insert(FORMAT, 2).unwrap();
    txn.commit().unwrap();
    drop(database);
    let opened = RedbStore::open(RealDisk::shared(), &path, SystemClock::shared(), &TaskGroup::new());
    assert!(matches!(opened, Err(OpenError::FormatTooNew(2))), "{opened:?}");
}

#[tokio::test]
async fn an_unfinished_creation_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let unfinished = RealDisk.open(&dir.path().join("meta.redb.new"), OpenMode::CreateNew).unwrap();
    unfinished.write_all_at(&[0; 5000], 0).unwrap();
    let running = open(RealDisk, &path);
    running.put("a", None).await.unwrap();
    running.close().await;
    assert_eq!(RealDisk.list(dir.path()).unwrap(), ["meta.redb"]);
}

/// Counts syncs and writes of the real disk.
#[derive(Clone, Default)]
struct Watched {
    syncs: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
}

struct WatchedFile(Watched, Arc<dyn DiskFile>);

impl Disk for Watched {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WatchedFile(self.clone(), RealDisk.open(path, mode)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        RealDisk.space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for WatchedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        self.1.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        self.1.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.set_len(len)
    }
}

#[tokio::test]
async fn queued_transactions_share_a_commit_and_see_each_other() {
    const WRITERS: u64 = 64;
    let dir = tempfile::tempdir().unwrap();
    let disk = Watched::default();
    let running = open(disk.clone(), &dir.path().join("meta.redb"));
    let before = disk.syncs.load(Ordering::Relaxed);
    let take = |i: u64| {
        let compares = vec![Compare::Absent("taken".into())];
        running.store.txn(Txn { compares, ops: vec![Op::put("taken", i.to_string())] })
    };
    let outcomes = futures::future::join_all((0..WRITERS).map(take)).await;
    let winners = outcomes.iter().filter(|o| matches!(o, Ok(TxnOutcome::Committed(_)))).count();
    assert_eq!(winners, 1, "each is evaluated on top of those before it");
    let puts = futures::future::join_all(
        (0..WRITERS)
            .map(|i| running.store.txn(Txn { compares: vec![], ops: vec![Op::put(format!("p{i}"), "x")] })),
    );
    let mut revisions: Vec<_> = puts.await.into_iter().map(|o| format!("{:?}", o.unwrap())).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len() as u64, WRITERS, "one commit, yet a revision each");
    let syncs = disk.syncs.load(Ordering::Relaxed) - before;
    assert!(syncs < WRITERS / 2, "{syncs} syncs for {} transactions", 2 * WRITERS);
    running.close().await;
}

#[tokio::test]
async fn what_changes_nothing_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Watched::default();
    let running = open(disk.clone(), &dir.path().join("meta.redb"));
    running.put("a", None).await.unwrap();
    let count = || (disk.syncs.load(Ordering::Relaxed), disk.writes.load(Ordering::Relaxed));
    let before = count();
    let lease = running.store.lease_grant(Duration::from_secs(60)).await.unwrap();
    running.store.lease_keep_alive(lease).await.unwrap();
    running.store.get("a").await.unwrap();
    list_all(&running.store, "").await.unwrap();
    let failing = Txn { compares: vec![Compare::Absent("a".into())], ops: vec![Op::delete("a")] };
    assert_eq!(running.store.txn(failing).await, Ok(TxnOutcome::CompareFailed));
    running.store.txn(Txn { compares: vec![], ops: vec![Op::delete("none")] }).await.unwrap();
    running.store.lease_revoke(lease).await.unwrap();
    assert_eq!(count(), before);
    running.close().await;
}

#[tokio::test]
async fn leases_run_out_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(RealDisk, &dir.path().join("meta.redb"));
    let mut watch = running.store.watch("").await.unwrap();
    let lease = running.store.lease_grant(Duration::from_millis(30)).await.unwrap();
    running.put("a", Some(lease)).await.unwrap();
    assert!(matches!(watch.recv().await, Some(WatchEvent::Put(_))));
    let gone = tokio::time::timeout(DEADLINE, watch.recv()).await.expect("a timer of its own");
    assert!(matches!(gone, Some(WatchEvent::Deleted(key, _)) if key == "a"));
    running.close().await;
}

#[tokio::test]
async fn opening_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let clock = SystemClock::new();
    let running = open(RealDisk, &path);
    let empty = clock.mono();
    running.put("a", None).await.unwrap();
    running.close().await;
    let start = clock.mono();
    let running = open(RealDisk, &path);
    let existing = clock.mono() - start;
    println!("opening: {empty:?} an empty store, {existing:?} an existing one");
    running.close().await;
    assert!(empty < Duration::from_secs(2) && existing < Duration::from_secs(2));
}
