//! Adds to one bookie: as many as it takes, or at a rate.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::rpc::{Add, BookieRef, BookieRpc as _};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, Term};
use geminga_common::tasks::TaskGroup;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Ledgers written to in turn.
pub(crate) const LEDGERS: u64 = 64;
/// Bytes that may wait for their acknowledgement.
const IN_FLIGHT: usize = 12 << 20;
/// And entries.
const IN_FLIGHT_ENTRIES: usize = 4096;

pub(crate) struct Load {
    rpc: Arc<GrpcBookies>,
    to: BookieRef,
    tasks: TaskGroup,
    payload: Bytes,
    ledger: u64,
    sent: u64,
}

/// What a run did.
pub(crate) struct Taken {
    pub(crate) entries: u64,
    pub(crate) took: Duration,
    pub(crate) latency_us: Histogram<u64>,
}

struct Seen {
    acked: AtomicU64,
    failed: Mutex<Option<String>>,
    latency_us: Mutex<Histogram<u64>>,
    room: Semaphore,
}

impl Load {
    /// Entries with this many bytes of payload, from ledger `first` on.
    pub(crate) fn new(address: String, to: BookieRef, size: usize, first: u64) -> Self {
        let tasks = TaskGroup::new();
        let config = grpc::Config::new(crate::node::CLUSTER, "ingest");
        let rpc = Arc::new(GrpcBookies::new(config, Arc::new(move |_| Some(address.clone())), tasks.clone()));
        // Not compressible, not that anything compresses.
        let payload = (0..size as u64)
            .map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8)
            .collect::<Vec<_>>();
        Self { rpc, to, tasks, payload: payload.into(), ledger: first, sent: 0 }
    }

    /// The way to the bookie.
    pub(crate) fn rpc(&self) -> Arc<GrpcBookies> {
        self.rpc.clone()
    }

    /// The bookie.
    pub(crate) fn to(&self) -> BookieRef {
        self.to.clone()
    }

    /// The lowest ledger written to.
    pub(crate) fn first_ledger(&self) -> u64 {
        self.ledger
    }

    fn entry(&mut self) -> (LedgerId, Entry) {
        let ledger = LedgerId(self.ledger + self.sent % LEDGERS);
        let id = self.sent / LEDGERS;
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(id),
            timestamp_ms: 1,
            bytes_before: id * self.payload.len() as u64,
        };
        self.sent += 1;
        (ledger, Entry::new(ledger, EntryId(id), header, self.payload.clone()))
    }

    /// Sends for so long; `rate` in entries a second, or as fast as the window lets it. Latency counts from when an entry was due.
    pub(crate) async fn run(&mut self, secs: u64, rate: Option<f64>) -> Result<Taken> {
        let window = (IN_FLIGHT / self.payload.len().max(1)).clamp(4, IN_FLIGHT_ENTRIES);
        let seen = Arc::new(Seen {
            acked: AtomicU64::new(0),
            failed: Mutex::new(None),
            latency_us: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
            room: Semaphore::new(window),
        });
        let begun = Instant::now();
        let mut count = 0_u64;
        while begun.elapsed() < Duration::from_secs(secs) && seen.failed.lock().is_none() {
            let due = match rate {
                Some(rate) => {
                    let due = begun + Duration::from_secs_f64(count as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                    due
                }
                None => Instant::now(),
            };
            seen.room.acquire().await?.forget();
            self.send(due, &seen);
            count += 1;
        }
        let drained = seen.room.acquire_many(window as u32);
        drop(
            tokio::time::timeout(Duration::from_secs(30), drained)
                .await
                .context("adds stay unanswered")??,
        );
        let took = begun.elapsed();
        let failed = seen.failed.lock().take();
        ensure!(failed.is_none(), "an add failed: {failed:?}");
        let latency_us = seen.latency_us.lock().clone();
        Ok(Taken { entries: seen.acked.load(Ordering::Relaxed), took, latency_us })
    }

    fn send(&mut self, due: Instant, seen: &Arc<Seen>) {
        let (ledger, entry) = self.entry();
        let seen = seen.clone();
        let add =
            Add { ledger, term: Term(1), lac: None, lafr: None, attributes: None, entries: vec![entry] };
        let done = move |result: Result<(), _>| {
            match result {
                Ok(()) => {
                    seen.acked.fetch_add(1, Ordering::Relaxed);
                    seen.latency_us.lock().saturating_record(due.elapsed().as_micros() as u64);
                }
                Err(error) => *seen.failed.lock() = Some(format!("{error:?}")),
            }
            seen.room.add_permits(1);
        };
        self.rpc.add(&self.to, add, Box::new(done));
    }

    pub(crate) async fn end(self) {
        self.tasks.stop();
        self.tasks.join(Duration::from_secs(10)).await;
    }
}
