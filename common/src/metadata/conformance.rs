//! What every [`MetadataStore`] must do, tried from outside: one suite for all implementations.
//!
//! Every case starts on a fresh, empty store. Time passes only through [`Fixture::advance`], so that a manual clock and a
//! real server can both be behind it; a real server's seconds may be short, and its leases may end a little late.

use super::{Compare, LeaseId, MetaError, MetadataStore, Op, Record, Revision, TXN_OPS_MAX, Txn, TxnOutcome};
use super::{WatchEvent, WatchStream, list_all};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// A store to try, and a way to let its time pass.
pub struct Fixture {
    /// An empty store.
    pub store: Arc<dyn MetadataStore>,
    /// Lets the store's clock go on.
    pub advance: Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>,
    /// How long one second of the suite's leases is. One second unless time is real.
    pub second: Duration,
    /// How late a lease may end.
    pub late: Duration,
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fixture").finish_non_exhaustive()
    }
}

impl Fixture {
    /// A store whose time is a manual clock.
    pub fn manual(
        store: Arc<dyn MetadataStore>,
        advance: impl Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { store, advance: Box::new(advance), second: Duration::from_secs(1), late: Duration::ZERO }
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Revision {
        match self.store.txn(Txn { compares, ops }).await {
            Ok(TxnOutcome::Committed(revision)) => revision,
            other => panic!("must commit: {other:?}"),
        }
    }

    async fn put(&self, key: &str, value: &'static str) -> Revision {
        self.commit(vec![], vec![Op::put(key, value)]).await
    }

    async fn get(&self, key: &str) -> Option<Record> {
        self.store.get(key).await.expect("get")
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let records = list_all(&*self.store, prefix).await.expect("list");
        records.into_iter().map(|r| r.key).collect()
    }

    async fn put_leased(&self, key: &'static str, lease: LeaseId) -> Result<TxnOutcome, MetaError> {
        let op = Op::Put { key: key.into(), value: "v".into(), lease: Some(lease) };
        self.store.txn(Txn { compares: vec![], ops: vec![op] }).await
    }

    async fn grant(&self, seconds: u32) -> LeaseId {
        self.store.lease_grant(self.second * seconds).await.expect("grant")
    }

    async fn pass(&self, seconds: u32) {
        (self.advance)(self.second * seconds).await;
    }
}

/// Runs every case, each on a store of its own.
///
/// # Panics
/// When a rule is broken.
pub async fn run(make: impl Fn() -> Fixture) {
    reads_and_writes(make()).await;
    compares(make()).await;
    compares_see_earlier_transactions_only(make()).await;
    all_or_nothing(make()).await;
    malformed_is_refused(make()).await;
    revisions_rise(make()).await;
    listing_pages(make()).await;
    concurrent_counters(make()).await;
    watches_tell_in_order(make()).await;
    slow_watchers_resync(make()).await;
    leases_expire(make()).await;
    leases_kept_alive(make()).await;
    leases_revoked(make()).await;
    a_put_moves_a_key_between_leases(make()).await;
}

async fn reads_and_writes(f: Fixture) {
    assert_eq!(f.get("a").await, None);
    let first = f.put("a", "1").await;
    assert_eq!(f.get("a").await, Some(Record { key: "a".into(), value: "1".into(), mod_revision: first }));
    let second = f.put("a", "2").await;
    assert_eq!(f.get("a").await, Some(Record { key: "a".into(), value: "2".into(), mod_revision: second }));
    f.put("empty", "").await;
    assert_eq!(f.get("empty").await.expect("an empty value is a value").value, "");
    f.commit(vec![], vec![Op::delete("a")]).await;
    assert_eq!(f.get("a").await, None);
    let before = f.put("b", "1").await;
    let nothing = f.commit(vec![], vec![Op::delete("never there")]).await;
    assert_eq!(nothing, before, "what changes nothing takes no revision");
}

async fn compares(f: Fixture) {
    let revision = f.put("k", "m").await;
    let key = || "k".to_owned();
    let none = || "none".to_owned();
    let cases = [
        (Compare::Absent(none()), true),
        (Compare::Absent(key()), false),
        (Compare::Exists(key()), true),
        (Compare::Exists(none()), false),
        (Compare::ModRevision(key(), revision), true),
        (Compare::ModRevision(key(), Revision(revision.0 + 1)), false),
        (Compare::ModRevision(none(), Revision(0)), false),
        (Compare::ValueIs(key(), "m".into()), true),
        (Compare::ValueIs(key(), "mm".into()), false),
        (Compare::ValueIs(key(), "".into()), false),
        (Compare::ValueIs(none(), "".into()), false),
        (Compare::ValueBelow(key(), "n".into()), true),
        (Compare::ValueBelow(key(), "ma".into()), true),
        (Compare::ValueBelow(key(), "m".into()), false),
        (Compare::ValueBelow(key(), "l".into()), false),
        (Compare::ValueBelow(none(), "".into()), true),
    ];
    for (compare, holds) in cases {
        let txn = Txn { compares: vec![compare.clone()], ops: vec![] };
        let outcome = f.store.txn(txn).await.expect("txn");
        let expected = if holds { TxnOutcome::Committed(revision) } else { TxnOutcome::CompareFailed };
        assert_eq!(outcome, expected, "{compare:?}");
    }
}

async fn compares_see_earlier_transactions_only(f: Fixture) {
    // A transaction's own writes do not count for its conditions.
    f.commit(vec![Compare::Absent("k".into())], vec![Op::put("k", "1")]).await;
    let again = Txn { compares: vec![Compare::Absent("k".into())], ops: vec![Op::put("k", "2")] };
    assert_eq!(f.store.txn(again).await, Ok(TxnOutcome::CompareFailed));
    assert_eq!(f.get("k").await.expect("k").value, "1");
}

async fn all_or_nothing(f: Fixture) {
    let revision = f.put("a", "old").await;
    let compares = vec![Compare::Exists("a".into()), Compare::Exists("b".into())];
    let ops = vec![Op::put("a", "new"), Op::put("c", "new"), Op::delete("a2")];
    let outcome = f.store.txn(Txn { compares, ops: ops.clone() }).await;
    assert_eq!(outcome, Ok(TxnOutcome::CompareFailed));
    assert_eq!(f.get("a").await.expect("a").mod_revision, revision);
    assert_eq!(f.keys("").await, ["a"]);
    let together = f.commit(vec![Compare::Exists("a".into())], ops).await;
    let (a, c) = (f.get("a").await.expect("a"), f.get("c").await.expect("c"));
    assert_eq!((a.mod_revision, c.mod_revision), (together, together), "one transaction, one revision");
}

async fn malformed_is_refused(f: Fixture) {
    let twice = vec![Op::put("a", "1"), Op::delete("a")];
    let many: Vec<_> = (0..=TXN_OPS_MAX).map(|i| Op::put(format!("m{i}"), "x")).collect();
    let big = vec![Op::put("big", vec![0; super::TXN_BYTES_MAX + 1])];
    let outcome = f.store.txn(Txn { compares: vec![], ops: big }).await;
    assert_eq!(outcome, Err(MetaError::TooLarge(super::TXN_BYTES_MAX + 4)));
    for ops in [twice, many.clone(), vec![Op::put("", "1")], vec![Op::delete("")]] {
        let outcome = f.store.txn(Txn { compares: vec![], ops }).await;
        assert!(matches!(outcome, Err(MetaError::Invalid(_))), "{outcome:?}");
    }
    let empty = Txn { compares: vec![Compare::Exists(String::new())], ops: vec![] };
    assert!(matches!(f.store.txn(empty).await, Err(MetaError::Invalid(_))));
    assert!(f.keys("").await.is_empty());
    f.commit(vec![], many[..TXN_OPS_MAX].to_vec()).await;
    assert_eq!(f.keys("m").await.len(), TXN_OPS_MAX, "the bound itself is allowed");
}

async fn revisions_rise(f: Fixture) {
    let mut last = Revision(0);
    for i in 0..10 {
        let now = f.put(if i % 2 == 0 { "a" } else { "b" }, "x").await;
        assert!(now > last, "{now} after {last}");
        last = now;
    }
}

async fn listing_pages(f: Fixture) {
    for key in ["p/c", "p/a", "q", "p/b/1", "p", "p0", "p/é", "o"] {
        f.put(key, "x").await;
    }
    assert_eq!(f.keys("p/").await, ["p/a", "p/b/1", "p/c", "p/é"]);
    assert_eq!(f.keys("p").await, ["p", "p/a", "p/b/1", "p/c", "p/é", "p0"]);
    assert_eq!(f.keys("").await.len(), 8);
    let page = async |after: Option<&str>, limit| {
        let records = f.store.list("p/", after, limit).await.expect("list");
        records.into_iter().map(|r| r.key).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2).await, ["p/a", "p/b/1"]);
    assert_eq!(page(Some("p/b/1"), 2).await, ["p/c", "p/é"]);
    assert_eq!(page(Some("p/b"), 1).await, ["p/b/1"], "a key that is not there is a place too");
    assert!(page(Some("p/é"), 2).await.is_empty());
    assert!(page(Some("z"), 2).await.is_empty());
    assert_eq!(page(Some("a"), 1).await, ["p/a"], "a place before the prefix is its start");
    assert!(page(None, 0).await.is_empty());
}

async fn concurrent_counters(f: Fixture) {
    const WRITERS: usize = 16;
    f.put("n", "").await;
    let add = async || {
        loop {
            let now = f.get("n").await.expect("n");
            let longer = [&now.value[..], b"x"].concat();
            let compares = vec![Compare::ModRevision("n".into(), now.mod_revision)];
            let txn = Txn { compares, ops: vec![Op::put("n", longer)] };
            if let TxnOutcome::Committed(revision) = f.store.txn(txn).await.expect("txn") {
                return revision;
            }
        }
    };
    let mut revisions = futures::future::join_all((0..WRITERS).map(|_| add())).await;
    assert_eq!(f.get("n").await.expect("n").value.len(), WRITERS, "no update is lost");
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), WRITERS, "each has a revision of its own");
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    stream.recv().await.expect("the watch goes on")
}

async fn watches_tell_in_order(f: Fixture) {
    f.put("w/before", "x").await;
    let mut watch = f.store.watch("w/").await.expect("watch");
    let first = f.commit(vec![], vec![Op::put("w/a", "1"), Op::put("other", "1")]).await;
    let second = f.commit(vec![], vec![Op::delete("w/a"), Op::delete("w/none")]).await;
    let third = f.put("w/b", "2").await;
    let put = |key: &str, value: &'static str, mod_revision| {
        WatchEvent::Put(Record { key: key.into(), value: value.into(), mod_revision })
    };
    assert_eq!(next(&mut watch).await, put("w/a", "1", first));
    assert_eq!(next(&mut watch).await, WatchEvent::Deleted("w/a".into(), second));
    assert_eq!(next(&mut watch).await, put("w/b", "2", third));
    assert!(watch.try_recv().is_err(), "nothing else happened below the prefix");
    drop(watch);
    f.put("w/c", "a watcher that left is no trouble").await;
}

async fn slow_watchers_resync(f: Fixture) {
    let mut slow = f.store.watch("s/").await.expect("watch");
    let mut commits = 0;
    let mut keys = 0;
    while commits < 100 {
        let ops = (0..TXN_OPS_MAX).map(|i| Op::put(format!("s/{i}"), "x")).collect();
        f.commit(vec![], ops).await;
        commits += 1;
    }
    loop {
        match next(&mut slow).await {
            WatchEvent::Put(_) => keys += 1,
            WatchEvent::Resync => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(keys < 100 * TXN_OPS_MAX, "a queue without bound");
    let last = f.put("s/after", "x").await;
    loop {
        match next(&mut slow).await {
            WatchEvent::Put(record) if record.key == "s/after" => {
                assert_eq!(record.mod_revision, last);
                break;
            }
            WatchEvent::Put(_) | WatchEvent::Resync => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn leases_expire(f: Fixture) {
    let mut watch = f.store.watch("l/").await.expect("watch");
    let lease = f.grant(10).await;
    f.put_leased("l/a", lease).await.expect("put");
    f.put("l/b", "not leased").await;
    f.pass(8).await;
    assert!(f.get("l/a").await.is_some());
    f.pass(3).await;
    (f.advance)(f.late).await;
    assert_eq!(f.keys("l/").await, ["l/b"]);
    let (_, _) = (next(&mut watch).await, next(&mut watch).await);
    let gone = next(&mut watch).await;
    assert!(matches!(&gone, WatchEvent::Deleted(key, _) if key == "l/a"), "{gone:?}");
    assert_eq!(f.put_leased("l/c", lease).await, Err(MetaError::LeaseGone(lease)));
    let op = Op::Put { key: "l/c".into(), value: "v".into(), lease: Some(lease) };
    let lost = Txn { compares: vec![Compare::Exists("l/none".into())], ops: vec![op] };
    assert_eq!(f.store.txn(lost).await, Ok(TxnOutcome::CompareFailed), "what is not written needs no lease");
    assert_eq!(f.store.lease_keep_alive(lease).await, Err(MetaError::LeaseGone(lease)));
    assert_eq!(f.store.lease_revoke(lease).await, Err(MetaError::LeaseGone(lease)));
    assert_eq!(f.keys("l/").await, ["l/b"]);
}

async fn leases_kept_alive(f: Fixture) {
    let (kept, left) = (f.grant(10).await, f.grant(10).await);
    assert_ne!(kept, left);
    f.put_leased("kept", kept).await.expect("put");
    f.put_leased("left", left).await.expect("put");
    for _ in 0..5 {
        f.pass(6).await;
        f.store.lease_keep_alive(kept).await.expect("alive");
    }
    assert_eq!(f.keys("").await, ["kept"]);
}

async fn leases_revoked(f: Fixture) {
    let lease = f.grant(10).await;
    f.put_leased("a", lease).await.expect("put");
    f.put_leased("b", lease).await.expect("put");
    let before = f.put("c", "x").await;
    f.store.lease_revoke(lease).await.expect("revoke");
    assert_eq!(f.keys("").await, ["c"]);
    assert!(f.put("d", "x").await.0 > before.0 + 1, "removing keys takes a revision");
    let failing = Txn { compares: vec![Compare::Absent("c".into())], ops: vec![] };
    assert_eq!(f.store.txn(failing).await, Ok(TxnOutcome::CompareFailed));
}

async fn a_put_moves_a_key_between_leases(f: Fixture) {
    let (old, new) = (f.grant(10).await, f.grant(1000).await);
    for key in ["to none", "to new", "deleted"] {
        f.put_leased(key, old).await.expect("put");
    }
    f.put("to none", "x").await;
    f.put_leased("to new", new).await.expect("put");
    f.commit(vec![], vec![Op::delete("deleted")]).await;
    f.put("deleted", "made again without lease").await;
    f.store.lease_revoke(old).await.expect("revoke");
    assert_eq!(f.keys("").await, ["deleted", "to new", "to none"]);
    f.store.lease_revoke(new).await.expect("revoke");
    assert_eq!(f.keys("").await, ["deleted", "to none"]);
}
