//! A bookie behind gRPC on the loopback, and a proxy in front of it that can cut or hold its connections.

use bytes::Bytes;
use geminga_bookie::service::{self, Service};
use geminga_bookie::{Bookie, Config, InProcess};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::rpc::{Add, AddError, BookieRef, BookieRpc};
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, Term};
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

pub(crate) const CLUSTER: &str = "test";

pub(crate) fn id(name: &str) -> BookieId {
    BookieId::new(name).unwrap()
}

pub(crate) struct Server {
    pub(crate) bookie: Bookie,
    pub(crate) address: SocketAddr,
    pub(crate) service: TaskGroup,
    pub(crate) storage: TaskGroup,
}

impl Server {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub(crate) async fn start_with(dir: &Path, change: impl FnOnce(&mut service::Config)) -> Self {
        let config = Config::new(id("b1"), dir.join("bookie"), CLUSTER);
        let mut settings = service::Config::new(&config);
        change(&mut settings);
        let (service, storage) = (TaskGroup::new(), TaskGroup::new());
        let bookie = Bookie::open(config, RealDisk::shared(), SystemClock::shared(), &storage).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let edge =
            Service::new(bookie.clone(), CLUSTER, settings, Arc::new(InProcess::default()), service.clone());
        service.spawn("service", OnFailure::Log, async move { edge.serve(listener).await.unwrap() });
        Self { bookie, address, service, storage }
    }

    pub(crate) fn to(&self) -> BookieRef {
        BookieRef { id: self.bookie.id().clone(), incarnation: self.bookie.incarnation() }
    }

    pub(crate) async fn stop(self) {
        self.service.stop();
        assert_eq!(self.service.join(Duration::from_secs(10)).await, Vec::<String>::new());
        self.storage.stop();
        assert_eq!(self.storage.join(Duration::from_secs(10)).await, Vec::<String>::new());
    }
}

pub(crate) fn client(address: SocketAddr, tasks: &TaskGroup) -> GrpcBookies {
    client_with(address, tasks, |_| {})
}

pub(crate) fn client_with(
    address: SocketAddr,
    tasks: &TaskGroup,
    change: impl FnOnce(&mut grpc::Config),
) -> GrpcBookies {
    let mut config = grpc::Config::new(CLUSTER, "tests");
    change(&mut config);
    let address = address.to_string();
    GrpcBookies::new(config, Arc::new(move |_| Some(address.clone())), tasks.clone())
}

pub(crate) fn entry(ledger: u64, id: u64, size: usize) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: 7,
        bytes_before: 0,
    };
    let payload: Vec<u8> = (0..size).map(|at| (at as u64 * 31 + id * 7 + ledger) as u8).collect();
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

pub(crate) fn send(
    rpc: &dyn BookieRpc,
    to: &BookieRef,
    ledger: u64,
    entries: Vec<Entry>,
) -> oneshot::Receiver<Result<(), AddError>> {
    let (tell, told) = oneshot::channel();
    let (ledger, term) = (LedgerId(ledger), Term(1));
    let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries };
    // The sender panics when an add is told twice: a `FnOnce` cannot be.
    rpc.add(to, add, Box::new(move |result| drop(tell.send(result))));
    told
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Pass,
    /// Connections stay open and nothing moves: a stopped process, or half of a network.
    Hold,
    /// What comes stays this long: a slow disk, or a long way.
    Slow(Duration),
}

/// Forwards connections to one address.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    cuts: watch::Sender<u64>,
    pub(crate) tasks: TaskGroup,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (cuts, cut) = watch::channel(0);
        let tasks = TaskGroup::new();
        let group = tasks.clone();
        tasks.spawn("proxy", OnFailure::Log, async move {
            let stop = group.token();
            loop {
                let (near, _) = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let (up, down) =
                    (copy(near_read, far_write, modes.clone()), copy(far_read, near_write, modes.clone()));
                let (stop, mut cut) = (group.token(), cut.clone());
                cut.mark_unchanged();
                group.spawn("proxied", OnFailure::Log, async move {
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = cut.changed() => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
        Self { address, mode, cuts, tasks }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends every connection there is.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buf).await {
        let Ok(now) = mode.wait_for(|mode| *mode != Mode::Hold).await.map(|mode| *mode) else { return };
        if let Mode::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&buf[..read]).await.is_err() {
            return;
        }
    }
}
