//! Pipelined adds against a store in a real directory: entries/s, MB/s, CPU per entry, latency.
//!
//! `cargo run --release -p geminga-bookie --example ingest -- DIR [ENTRY_BYTES] [IN_FLIGHT] [SECONDS] [LEDGERS] [RATE/s]`; with
//! a rate, adds are paced instead of pipelined.

use bytes::Bytes;
use geminga_bookie::{Bookie, Config};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::rpc::Add;
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, Term};
use geminga_common::tasks::TaskGroup;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Window {
    waiting: Mutex<(u64, Vec<Duration>)>,
    free: Condvar,
}

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

#[allow(clippy::print_stdout)] // a bench talks
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let dir = PathBuf::from(args.first().expect("a directory is named"));
    let (size, in_flight, seconds, ledgers) = (number(1, 1024), number(2, 1024), number(3, 5), number(4, 4));
    let rate = number(5, 0);
    let (tasks, clock) = (TaskGroup::new(), SystemClock::shared());
    let config = Config::new(BookieId::new("bench").expect("a name"), dir, "bench");
    let before = clock.mono();
    let bookie = Bookie::open(config, RealDisk::shared(), clock.clone(), &tasks).expect("opens");
    println!("open {:?}", clock.mono() - before);
    let window = Arc::new(Window::default());
    let payload = Bytes::from(vec![7; size as usize]);
    let base = clock.wall_ms() << 20;
    let (start, cpu_start) = (clock.mono(), cpu());
    let end = start + Duration::from_secs(seconds);
    let mut sent = 0;
    while clock.mono() < end {
        if let Some(gap) = 1_000_000_000_u64.checked_div(rate) {
            let due = start + Duration::from_nanos(gap * sent);
            let wait = due.saturating_sub(clock.mono());
            if !wait.is_zero() {
                std::thread::park_timeout(wait);
                continue;
            }
        }
        let mut waiting = window.waiting.lock().expect("lock");
        while waiting.0 >= in_flight {
            waiting = window.free.wait(waiting).expect("lock");
        }
        waiting.0 += 1;
        drop(waiting);
        let (ledger, id) = (LedgerId(base + sent % ledgers), EntryId(sent / ledgers));
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(id.0),
            timestamp_ms: 0,
            bytes_before: 0,
        };
        let entries = vec![Entry::new(ledger, id, header, payload.clone())];
        let add = Add { ledger, term: Term(1), lac: id.previous(), lafr: None, attributes: None, entries };
        let (told, clock, asked) = (window.clone(), clock.clone(), clock.mono());
        bookie.add(
            add,
            Box::new(move |result| {
                result.expect("added");
                let mut waiting = told.waiting.lock().expect("lock");
                waiting.0 -= 1;
                waiting.1.push(clock.mono() - asked);
                drop(waiting);
                told.free.notify_one();
            }),
        );
        sent += 1;
    }
    let mut waiting = window.waiting.lock().expect("lock");
    while waiting.0 > 0 {
        waiting = window.free.wait(waiting).expect("lock");
    }
    let took = clock.mono() - start;
    let used = cpu() - cpu_start;
    let latencies = &mut waiting.1;
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let per = sent as f64 / took.as_secs_f64();
    println!(
        "{sent} entries of {size} B: {per:.0}/s, {:.1} MB/s, {:.2} us CPU each, p50 {:?} p99 {:?} p99.9 {:?}",
        per * size as f64 / 1e6,
        used.as_secs_f64() * 1e6 / sent as f64,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    tasks.stop();
}
