//! The transport: the suite that holds for every transport, and connections that break, hang, or lead to the wrong place.

use crate::support::{Mode, Proxy, Server, client, client_with, entry, send};
use geminga_bookie_client::conformance;
use geminga_bookie_client::rpc::{AddError, BookieRpc, ControlError, Doubt, Read, ReadAnswer, ReadClass};
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;

fn read_of(ledger: u64, first: u64, last: u64) -> Read {
    let (ledger, first, last) = (LedgerId(ledger), EntryId(first), EntryId(last));
    Read { ledger, first, last, bytes_max: 1 << 20, class: ReadClass::CatchUp }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_of_every_transport_holds() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let tasks = TaskGroup::new();
    let rpc = client(server.address, &tasks);
    conformance::bookie_rpc(Arc::new(rpc), server.to()).await;
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_adds_of_all_sizes_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    // Little credit, so that streams stop for it over and over, and entries above all of it go alone.
    let server = Server::start_with(dir.path(), |c| c.add_stream_bytes = 20_000).await;
    let tasks = TaskGroup::new();
    let rpc = client(server.address, &tasks);
    let size = |id: u64| [0, 1, 100, 1024, 9000, 300_000][id as usize % 6] + id as usize % 7;
    let mut told = Vec::new();
    for id in 0..300 {
        for ledger in 1..=3 {
            told.push(send(&rpc, &server.to(), ledger, vec![entry(ledger, id, size(id))]));
        }
    }
    for answer in told {
        answer.await.unwrap().unwrap();
    }
    for ledger in 1..=3 {
        let mut next = 0;
        while next < 300 {
            match rpc.read(&server.to(), read_of(ledger, next, 299)).await {
                ReadAnswer::Found(entries) => {
                    for found in entries {
                        assert!(found == entry(ledger, next, size(next)), "entry {next} of ledger {ledger}");
                        next += 1;
                    }
                }
                other => panic!("entry {next} of ledger {ledger}: {other:?}"),
            }
        }
    }
    tasks.stop();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_in_mid_stream_answers_everything_once_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let proxy = Proxy::start(server.address).await;
    let tasks = TaskGroup::new();
    let rpc = client(proxy.address, &tasks);
    let (mut durable, mut unknown) = (Vec::new(), 0);
    for round in 0..20_u64 {
        let ids = round * 200..(round + 1) * 200;
        let told: Vec<_> =
            ids.map(|id| (id, send(&rpc, &server.to(), 1, vec![entry(1, id, 2000)]))).collect();
        // Some are stored, some are on their way, some have not left.
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_micros(300 * round)).await;
            proxy.cut();
        }
        for (id, answer) in told {
            match answer.await.expect("every add is told") {
                Ok(()) => durable.push(id),
                Err(AddError::Unknown(_)) => unknown += 1,
                Err(other) => panic!("entry {id}: {other:?}"),
            }
        }
        // Back within the backoff: an add is taken again.
        let again = async {
            while send(&rpc, &server.to(), 2, vec![entry(2, round, 10)]).await.unwrap().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("the connection comes back");
    }
    assert!(unknown > 0, "no add was lost on the way: the test cut nothing");
    assert!(!durable.is_empty());
    for id in durable {
        let answer = rpc.read(&server.to(), read_of(1, id, id)).await;
        assert_eq!(answer, ReadAnswer::Found(vec![entry(1, id, 2000)]), "acknowledged, so it is there");
    }
    tasks.stop();
    proxy.tasks.stop();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_that_hangs_is_unknown_by_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let proxy = Proxy::start(server.address).await;
    let tasks = TaskGroup::new();
    let short = Duration::from_millis(200);
    let rpc = client_with(proxy.address, &tasks, |config| {
        (config.add_deadline, config.read_deadline, config.control_deadline) = (short, short, short);
    });
    let to = server.to();
    send(&rpc, &to, 1, vec![entry(1, 0, 10)]).await.unwrap().unwrap();
    proxy.set(Mode::Hold);
    let before = tokio::time::Instant::now();
    let told: Vec<_> = (1..100).map(|id| send(&rpc, &to, 1, vec![entry(1, id, 10)])).collect();
    for answer in told {
        assert!(matches!(answer.await.unwrap(), Err(AddError::Unknown(_))));
    }
    let unreachable = ReadAnswer::Unknown(Doubt::Unreachable);
    assert_eq!(rpc.read(&to, read_of(1, 0, 0)).await, unreachable, "never `NotFound`");
    let fenced = rpc.fence_tail(&to, LedgerId(1), Term(2), EntryId(0)).await;
    assert!(matches!(fenced, Err(ControlError::Unknown(_))));
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    proxy.set(Mode::Pass);
    // What was late arrived all the same, and the fence with it; the lanes go on.
    let found = async {
        while rpc.read(&to, read_of(1, 0, 0)).await != ReadAnswer::Found(vec![entry(1, 0, 10)]) {}
        while send(&rpc, &to, 2, vec![entry(2, 0, 10)]).await.unwrap().is_err() {}
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the lanes go on");
    tasks.stop();
    proxy.tasks.stop();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_unknown_at_once_and_nothing_waits_beyond_the_window() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let tasks = TaskGroup::new();
    let rpc = client(address, &tasks);
    let to = geminga_bookie_client::rpc::BookieRef {
        id: crate::support::id("b1"),
        incarnation: geminga_common::ids::Incarnation(1),
    };
    let before = tokio::time::Instant::now();
    let told: Vec<_> = (0..100).map(|id| send(&rpc, &to, 1, vec![entry(1, id, 10)])).collect();
    for answer in told {
        assert!(matches!(answer.await.unwrap(), Err(AddError::Unknown(_))));
    }
    assert!(before.elapsed() < Duration::from_secs(2), "no deadline was waited for");
    assert_eq!(rpc.read(&to, read_of(1, 0, 0)).await, ReadAnswer::Unknown(Doubt::Unreachable));
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
    let late = send(&rpc, &to, 1, vec![entry(1, 0, 10)]).await.unwrap();
    assert!(matches!(late, Err(AddError::Unknown(_))), "after the end too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_and_another_bookie_prove_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let tasks = TaskGroup::new();
    let elsewhere = client_with(server.address, &tasks, |config| config.cluster = "other".to_owned());
    let add = send(&elsewhere, &server.to(), 1, vec![entry(1, 0, 10)]).await.unwrap();
    assert!(matches!(add, Err(AddError::Unknown(_))), "{add:?}");
    assert_eq!(elsewhere.read(&server.to(), read_of(1, 0, 0)).await, ReadAnswer::Unknown(Doubt::Unreachable));
    let mut other = server.to();
    other.id = crate::support::id("b2");
    let rpc = client(server.address, &tasks);
    let stat = rpc.stat(&other, LedgerId(1)).await;
    assert!(matches!(stat, Err(ControlError::Unknown(_))), "{stat:?}");
    assert!(send(&rpc, &other, 1, vec![entry(1, 0, 10)]).await.unwrap().is_err());
    assert!(matches!(rpc.read(&server.to(), read_of(1, 0, 0)).await, ReadAnswer::NotFound(_)));
    tasks.stop();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_answers_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let tasks = TaskGroup::new();
    let rpc = client(server.address, &tasks);
    let to = server.to();
    send(&rpc, &to, 1, vec![entry(1, 0, 10)]).await.unwrap().unwrap();
    let told: Vec<_> = (1..2000).map(|id| send(&rpc, &to, 1, vec![entry(1, id, 500)])).collect();
    server.stop().await;
    for answer in told {
        let answer = answer.await.unwrap();
        assert!(matches!(answer, Ok(()) | Err(AddError::Unknown(_))), "{answer:?}");
    }
    tasks.stop();
}
