//! The etcd store against real etcd: the common suite, and what only a server can do: restart, compact, be away, ask for a login.

use super::local::{LocalEtcd, find};
use super::*;
use crate::metadata::conformance::{self, Fixture};
use crate::metadata::{Compare, Op, WatchEvent, list_all};
use std::sync::Arc;

pub(super) async fn connect(etcd: &LocalEtcd, tasks: &TaskGroup) -> EtcdStore {
    EtcdStore::connect(Config::plain(vec![etcd.url()]), tasks).await.unwrap()
}

fn wait(by: Duration) -> BoxFuture<'static, ()> {
    tokio::time::sleep(by).boxed()
}

/// An empty store behind the same server: cases run one after the other.
fn emptied(etcd: &LocalEtcd, tasks: &TaskGroup) -> EtcdStore {
    let empty = async || {
        let store = connect(etcd, tasks).await;
        let all = etcd_client::DeleteOptions::new().with_from_key();
        store.client.kv_client().delete("\0", Some(all)).await.unwrap();
        store
    };
    // The suite makes its stores outside of async code.
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(empty())
        };
        scope.spawn(run).join().unwrap()
    })
}

async fn conformance_on(version: &str) {
    let Some(binary) = find("conformance of the etcd store", Some(version)) else { return };
    let (etcd, tasks) = (LocalEtcd::start(&binary), TaskGroup::new());
    let advance = || -> Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync> { Box::new(wait) };
    conformance::run(|| Fixture {
        store: Arc::new(emptied(&etcd, &tasks)),
        advance: advance(),
        second: Duration::from_millis(400),
        late: Duration::from_millis(2500),
    })
    .await;
    tasks.stop();
    assert_eq!(tasks.join(Duration::from_secs(10)).await, Vec::<String>::new());
}

#[tokio::test]
async fn keeps_the_rules_of_a_store_on_etcd_3_4() {
    conformance_on("3.4").await;
}

#[tokio::test]
async fn keeps_the_rules_of_a_store_on_etcd_3_6() {
    conformance_on("3.6").await;
}

struct World {
    etcd: LocalEtcd,
    tasks: TaskGroup,
    store: EtcdStore,
}

async fn world(what: &str) -> Option<World> {
    let etcd = LocalEtcd::start(&find(what, None)?);
    let tasks = TaskGroup::new();
    let store = connect(&etcd, &tasks).await;
    Some(World { etcd, tasks, store })
}

impl World {
    async fn put(&self, key: &str, value: impl Into<bytes::Bytes>) -> Result<TxnOutcome, MetaError> {
        self.store.txn(Txn { compares: vec![], ops: vec![Op::put(key, value)] }).await
    }
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(20), stream.recv()).await.expect("an event").expect("it goes on")
}

#[tokio::test]
async fn a_listing_larger_than_one_answer_comes_whole() {
    let Some(w) = world("a listing larger than one answer").await else { return };
    for i in 0..12 {
        w.put(&format!("big/{i:02}"), vec![b'x'; 1_000_000]).await.unwrap();
    }
    let all = list_all(&w.store, "big/").await.unwrap();
    assert_eq!(all.len(), 12);
    assert!(all.iter().all(|record| record.value.len() == 1_000_000));
    let some = w.store.list("big/", Some("big/03"), 7).await.unwrap();
    assert_eq!(some.iter().map(|r| r.key.as_str()).collect::<Vec<_>>()[..2], ["big/04", "big/05"]);
    assert_eq!(some.len(), 7, "a short page would be taken for the end");
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_and_says_when_history_is_gone() {
    let Some(mut w) = world("a watch over restart and compaction").await else { return };
    let mut watch = w.store.watch("w/").await.unwrap();
    w.put("w/1", "a").await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(r) if r.key == "w/1"));
    // While the watch is away the server changes, without and then with a loss of history.
    for (key, compact) in [("w/2", false), ("w/3", true)] {
        w.etcd.kill();
        w.etcd.resume();
        let other = connect(&w.etcd, &w.tasks).await;
        for i in 0..3 {
            let put = Op::put(key, format!("{i}"));
            other.txn(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
        }
        if compact {
            other.compact().await.unwrap();
        }
        let mut told = Vec::new();
        loop {
            let event = next(&mut watch).await;
            let end = matches!(&event, WatchEvent::Put(r) if r.value == "2") || event == WatchEvent::Resync;
            told.push(event);
            if end {
                break;
            }
        }
        let revisions: Vec<_> = told.iter().filter_map(WatchEvent::revision).collect();
        assert!(revisions.windows(2).all(|pair| pair[0] < pair[1]), "told twice or back in time: {told:?}");
        assert!(told.len() == 3 || told.contains(&WatchEvent::Resync), "left out without a word: {told:?}");
    }
    while watch.try_recv().is_ok() {}
    w.put("w/4", "live").await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(r) if r.key == "w/4"));
}

#[tokio::test]
async fn a_lost_watch_revision_is_a_resync() {
    let Some(w) = world("a watch at a compacted revision").await else { return };
    let TxnOutcome::Committed(old) = w.put("w/1", "a").await.unwrap() else { panic!() };
    for _ in 0..3 {
        w.put("w/1", "b").await.unwrap();
    }
    w.store.compact().await.unwrap();
    let (told, mut stream) = crate::metadata::watches::Watch::new("w/");
    let run = watch::run(w.store.client.clone(), w.store.calls, told, old, w.store.stop.clone());
    w.tasks.spawn("old watch", OnFailure::Log, run);
    assert_eq!(next(&mut stream).await, WatchEvent::Resync);
    w.put("w/2", "after").await.unwrap();
    assert!(matches!(next(&mut stream).await, WatchEvent::Put(r) if r.key == "w/2"));
}

#[tokio::test]
async fn while_etcd_is_away_reads_are_unavailable_and_writes_are_not_claimed() {
    let Some(mut w) = world("etcd that is away").await else { return };
    w.put("k", "1").await.unwrap();
    w.etcd.kill();
    let read = w.store.get("k").await;
    assert!(matches!(read, Err(MetaError::Unavailable(_))), "an error is no absence: {read:?}");
    let written = w.put("k", "2").await;
    assert!(matches!(written, Err(MetaError::Unavailable(_) | MetaError::Unknown(_))), "{written:?}");
    w.etcd.resume();
    let back = tokio::time::timeout(Duration::from_secs(20), async {
        while w.store.get("k").await.is_err() {}
        w.store.get("k").await.unwrap().unwrap()
    });
    let now = back.await.expect("it comes back");
    if let Err(MetaError::Unavailable(_)) = written {
        assert_eq!(now.value, "1", "unavailable means that nothing was written");
    }
}

#[tokio::test]
async fn a_stopped_server_makes_a_write_unknown() {
    let Some(w) = world("etcd that answers nothing").await else { return };
    w.put("k", "1").await.unwrap();
    w.etcd.signal("-STOP");
    let begun = tokio::time::Instant::now();
    let written = w.put("k", "2").await;
    assert!(matches!(written, Err(MetaError::Unknown(_))), "{written:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "a call takes less than a lease lives: {:?}",
        begun.elapsed()
    );
    w.etcd.signal("-CONT");
    let read = async {
        loop {
            if let Ok(record) = w.store.get("k").await {
                return record.unwrap();
            }
        }
    };
    let now = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
    assert!(now.value == "1" || now.value == "2");
}

#[tokio::test]
async fn a_bound_that_appears_and_vanishes_is_compared_right() {
    let Some(w) = world("ValueBelow").await else { return };
    let below = |bound: &'static str| Txn {
        compares: vec![Compare::ValueBelow("wm".into(), bound.into()), Compare::Exists("other".into())],
        ops: vec![Op::put("made", bound)],
    };
    let committed = async |bound| matches!(w.store.txn(below(bound)).await, Ok(TxnOutcome::Committed(_)));
    assert!(!committed("a").await, "the other condition counts while the bound is absent");
    w.put("other", "x").await.unwrap();
    assert!(committed("a").await);
    w.put("wm", "m").await.unwrap();
    assert!(!committed("a").await, "remembered as absent, but it is there now");
    assert!(committed("n").await);
    w.store.txn(Txn { compares: vec![], ops: vec![Op::delete("wm")] }).await.unwrap();
    assert!(committed("a").await, "remembered as there, but it is absent now");
}

#[tokio::test]
async fn a_login_is_needed_where_etcd_wants_one() {
    let Some(w) = world("login to etcd").await else { return };
    let mut auth = w.store.client.auth_client();
    auth.user_add("root", "secret", None).await.unwrap();
    auth.role_add("root").await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.auth_enable().await.unwrap();
    let refused = w.put("k", "1").await;
    assert!(matches!(refused, Err(MetaError::Unavailable(_))), "{refused:?}");
    let login = |password: &str| Config {
        user: Some(("root".into(), password.into())),
        start_timeout: Duration::from_secs(1),
        ..Config::plain(vec![w.etcd.url()])
    };
    let wrong = EtcdStore::connect(login("wrong"), &w.tasks).await.unwrap_err().to_string();
    assert!(!wrong.contains("wrong") && wrong.contains(&w.etcd.url()), "{wrong}");
    assert!(!format!("{:?}", login("secret")).contains("secret"));
    let store = EtcdStore::connect(login("secret"), &w.tasks).await.unwrap();
    store.txn(Txn { compares: vec![], ops: vec![Op::put("k", "1")] }).await.unwrap();
    let lease = store.lease_grant(Duration::from_secs(5)).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap().value, "1");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let config = Config {
        start_timeout: Duration::from_millis(300),
        ..Config::plain(vec!["http://127.0.0.1:1".to_owned()])
    };
    let error = EtcdStore::connect(config, &TaskGroup::new()).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let config = Config::plain(vec!["127.0.0.1:2379".to_owned()]);
    let error = EtcdStore::connect(config, &TaskGroup::new()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Config(_)), "{error}");
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_authority_vouches_for_and_nobody_else() {
    let Some(binary) = find("TLS to etcd", None) else { return };
    let Some(etcd) = LocalEtcd::start_with_tls(&binary) else { return };
    let Some(other) = LocalEtcd::start_with_tls(&binary) else { return };
    let tasks = TaskGroup::new();
    let config = |authority: &LocalEtcd, known: bool, seconds| Config {
        tls: Some(Tls {
            ca: authority.pem("ca"),
            identity: known.then(|| (etcd.pem("certificate"), etcd.pem("key"))),
        }),
        start_timeout: Duration::from_secs(seconds),
        ..Config::plain(vec![etcd.url()])
    };
    let store = EtcdStore::connect(config(&etcd, true, 30), &tasks).await.unwrap();
    store.txn(Txn { compares: vec![], ops: vec![Op::put("k", "over TLS")] }).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap().value, "over TLS");
    for (what, wrong) in [("authority", config(&other, true, 3)), ("stranger", config(&etcd, false, 3))] {
        let refused = EtcdStore::connect(wrong, &tasks).await;
        assert!(matches!(refused, Err(ConnectError::NoAnswer { .. })), "{what}: {refused:?}");
    }
    let without = EtcdStore::connect(Config::plain(vec![etcd.url()]), &tasks).await;
    assert!(matches!(without, Err(ConnectError::Config(_))), "{without:?}");
}
