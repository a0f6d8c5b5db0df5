//! Pipelined adds against a store in a real directory, over gRPC on the loopback or within the process: entries/s, MB/s, CPU per
//! entry (of both ends together), latency.
//!
//! `cargo run --release -p geminga-bookie --example wire -- DIR grpc|process [ENTRY_BYTES] [IN_FLIGHT] [SECONDS] [LEDGERS]`

use bytes::Bytes;
use geminga_bookie::service::{self, Service};
use geminga_bookie::{Bookie, Config, InProcess};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::rpc::{Add, BookieRef, BookieRpc};
use geminga_common::clock::{Clock, SystemClock};
use geminga_common::disk::RealDisk;
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, Term};
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

// As in the binary: a batch is one large allocation at each end.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

struct Load {
    size: usize,
    in_flight: usize,
    seconds: u64,
    ledgers: u64,
}

async fn open(over: &str, bookie: Bookie, tasks: &TaskGroup) -> Arc<dyn BookieRpc> {
    if over == "process" {
        return Arc::new(InProcess::new([bookie]));
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let config = Config::new(bookie.id().clone(), PathBuf::new(), "bench");
    let service = Service::new(
        bookie,
        "bench",
        service::Config::new(&config),
        Arc::new(InProcess::default()),
        tasks.clone(),
    );
    tasks.spawn(
        "service",
        OnFailure::StopProcess,
        async move { service.serve(listener).await.expect("serves") },
    );
    let config = grpc::Config::new("bench", "bench");
    Arc::new(GrpcBookies::new(config, Arc::new(move |_| Some(address.clone())), tasks.clone()))
}

/// Adds until the time is over; answers how many there were, and their latencies.
async fn run(
    load: &Load,
    rpc: &dyn BookieRpc,
    to: &BookieRef,
    clock: &Arc<dyn Clock>,
) -> (u64, Vec<Duration>) {
    let window = Arc::new(Semaphore::new(load.in_flight));
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let payload = Bytes::from(vec![7; load.size]);
    let base = clock.wall_ms() << 20;
    let end = clock.mono() + Duration::from_secs(load.seconds);
    let mut sent = 0;
    while clock.mono() < end {
        let place = window.clone().acquire_owned().await.expect("open");
        let (ledger, id) = (LedgerId(base + sent % load.ledgers), EntryId(sent / load.ledgers));
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(id.0),
            timestamp_ms: 0,
            bytes_before: 0,
        };
        let entries = vec![Entry::new(ledger, id, header, payload.clone())];
        let add = Add { ledger, term: Term(1), lac: id.previous(), lafr: None, attributes: None, entries };
        let (told, clock, asked) = (latencies.clone(), clock.clone(), clock.mono());
        rpc.add(
            to,
            add,
            Box::new(move |result| {
                result.expect("added");
                told.lock().expect("lock").push(clock.mono() - asked);
                drop(place);
            }),
        );
        sent += 1;
    }
    let _all = window.acquire_many(load.in_flight as u32).await.expect("open");
    let latencies = std::mem::take(&mut *latencies.lock().expect("lock"));
    (sent, latencies)
}

#[allow(clippy::print_stdout)] // a bench talks
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let dir = PathBuf::from(args.first().expect("a directory is named"));
    let over = args.get(1).map_or("grpc", String::as_str);
    let load = Load {
        size: number(2, 1024) as usize,
        in_flight: number(3, 1024) as usize,
        seconds: number(4, 5),
        ledgers: number(5, 4),
    };
    let (tasks, clock) = (TaskGroup::new(), SystemClock::shared());
    let config = Config::new(BookieId::new("bench").expect("a name"), dir, "bench");
    let bookie = Bookie::open(config, RealDisk::shared(), clock.clone(), &tasks).expect("opens");
    let to = BookieRef { id: bookie.id().clone(), incarnation: bookie.incarnation() };
    let rpc = open(over, bookie, &tasks).await;
    let (start, cpu_start) = (clock.mono(), cpu());
    let (sent, mut latencies) = run(&load, &*rpc, &to, &clock).await;
    let (took, used) = (clock.mono() - start, cpu() - cpu_start);
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let per = sent as f64 / took.as_secs_f64();
    println!(
        "{over}: {sent} entries of {} B: {per:.0}/s, {:.1} MB/s, {:.2} us CPU each, p50 {:?} p99 {:?} p99.9 {:?}",
        load.size,
        per * load.size as f64 / 1e6,
        used.as_secs_f64() * 1e6 / sent as f64,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    tasks.stop();
}
