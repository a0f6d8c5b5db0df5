//! The edge of a bookie against callers that break its rules.

use crate::support::{CLUSTER, Server, client, entry, send};
use futures::StreamExt;
use geminga_bookie_client::grpc::table::pack_adds;
use geminga_bookie_client::rpc::Add;
use geminga_common::ids::{LedgerId, Term};
use geminga_common::tasks::TaskGroup;
use geminga_proto::bookie::bookie_client::BookieClient;
use geminga_proto::bookie::{AddAnswers, AddRequest, Hello, StatRequest, Target, add_request::Kind};
use geminga_proto::packed::Packed;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

async fn raw(server: &Server) -> BookieClient<Channel> {
    BookieClient::connect(format!("http://{}", server.address)).await.unwrap()
}

fn hello() -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        cluster: CLUSTER.into(),
        bookie: "b1".into(),
        ..Hello::default()
    }
}

fn first(hello: Hello) -> AddRequest {
    AddRequest { kind: Some(Kind::Hello(hello)) }
}

async fn open(server: &Server, messages: Vec<AddRequest>) -> Result<Streaming<AddAnswers>, Status> {
    // Stays open: the end is the bookie's to make.
    let messages = futures::stream::iter(messages).chain(futures::stream::pending());
    Ok(raw(server).await.add_stream(messages).await?.into_inner())
}

/// What the stream ends with, whenever it does.
async fn end(server: &Server, messages: Vec<AddRequest>) -> Status {
    let run = async {
        let mut answers = match open(server, messages).await {
            Ok(answers) => answers,
            Err(status) => return status,
        };
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if all were well"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), run).await.expect("the bookie ends it")
}

fn add(entries: u64) -> Add {
    Add {
        ledger: LedgerId(1),
        term: Term(1),
        lac: None,
        lafr: None,
        attributes: None,
        entries: (0..entries).map(|id| entry(1, id, 1000)).collect(),
    }
}

fn batch(packed: Packed) -> AddRequest {
    AddRequest { kind: Some(Kind::Batch(packed)) }
}

#[tokio::test]
async fn strangers_are_refused_by_code() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let refused = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        let messages = vec![first(hello)];
        let server = &server;
        async move { end(server, messages).await }
    };
    let status = refused(|hello| hello.cluster = "other".into()).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("GM-5021"), "{status:?}");
    let status = refused(|hello| hello.bookie = "b2".into()).await;
    assert!(status.message().starts_with("GM-5022"), "{status:?}");
    let status = refused(|hello| (hello.protocol_min, hello.protocol_max) = (2, 3)).await;
    assert!(status.message().starts_with("GM-5023"), "{status:?}");
    let target =
        Target { protocol: 1, cluster: "other".into(), bookie: "b1".into(), incarnation: 0, ledger: 1 };
    let status = raw(&server).await.stat(StatRequest { target: Some(target) }).await.unwrap_err();
    assert!(status.message().starts_with("GM-5021"), "{status:?}");
    let status = raw(&server).await.stat(StatRequest { target: None }).await.unwrap_err();
    assert!(status.message().starts_with("GM-1003"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn who_breaks_the_rules_loses_his_stream_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |c| c.add_stream_bytes = 4000).await;
    let tasks = TaskGroup::new();
    let rpc = client(server.address, &tasks);
    send(&rpc, &server.to(), 9, vec![entry(9, 0, 10)]).await.unwrap().unwrap();
    let incarnation = server.to().incarnation;
    let garbage = Packed { table: vec![7; 500].into(), data: vec![vec![1; 100].into()] };
    let cases = vec![
        vec![batch(pack_adds(incarnation, &[add(1)]))],
        vec![first(hello()), first(hello())],
        vec![first(hello()), AddRequest { kind: None }],
        vec![first(hello()), batch(garbage)],
        // Two adds, beyond the credit together.
        vec![first(hello()), batch(pack_adds(incarnation, &[add(2), add(3)]))],
    ];
    for messages in cases {
        let status = end(&server, messages).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with("GM-1003"), "{status:?}");
        send(&rpc, &server.to(), 9, vec![entry(9, 0, 10)]).await.unwrap().unwrap();
    }
    let huge = Packed { table: vec![0; 7 << 20].into(), data: vec![] };
    let status = end(&server, vec![first(hello()), batch(huge)]).await;
    assert_eq!(status.code(), Code::OutOfRange, "above the largest message: {status:?}");
    tasks.stop();
    server.stop().await;
}

#[tokio::test]
async fn credits_run_out_over_all_streams_together() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |c| {
        (c.add_bytes, c.add_stream_bytes) = (40 << 20, 16 << 20);
    })
    .await;
    let (mut open_ones, mut endings, mut credits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let (ending, ended) = tokio::sync::oneshot::channel::<()>();
        let messages =
            futures::stream::iter([first(hello())]).chain(futures::stream::pending()).take_until(ended);
        let mut answers = raw(&server).await.add_stream(messages).await.unwrap().into_inner();
        credits.push(answers.message().await.unwrap().unwrap().welcome.unwrap().credit_bytes >> 20);
        open_ones.push(answers);
        endings.push(ending);
    }
    assert_eq!(credits, [16, 16, 8], "what is left is shared out");
    let status = end(&server, vec![first(hello())]).await;
    assert!(status.message().starts_with("GM-3009"), "{status:?}");
    // As a caller does that goes away: its half ends, and it reads no more.
    drop((endings.pop(), open_ones.pop()));
    let again = async {
        while open(&server, vec![first(hello())]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("a stream that ended gives its share back");
    drop(open_ones);
    server.stop().await;
}

#[tokio::test]
async fn streams_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |c| c.streams = 1).await;
    let first_one = open(&server, vec![first(hello())]).await.unwrap();
    let status = end(&server, vec![first(hello())]).await;
    assert!(status.message().starts_with("GM-3001"), "{status:?}");
    drop(first_one);
    server.stop().await;
}
