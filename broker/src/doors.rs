//! How many clients may be connected at once. Every connection is an open file, and a store that can open no file has failed: what
//! would eat into the files that are kept for it is closed as soon as it was accepted, told in the log and counted.
//!
//! Each port has places of its own, so that health and metrics answer while the Pulsar port is full, and the other way round.

use crate::seldom::Seldom;
use geminga_common::clock::{Clock, Mono};
use geminga_common::error::Code;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Files kept for the store and for connections that the process itself makes, where the limit allows that many.
const RESERVE_MIN: usize = 128;
/// Places that a port has, however low the limit.
const PLACES_MIN: usize = 4;
/// More than REST and scraping need.
const HTTP_MAX: usize = 256;
/// Pause after a connection that could not be accepted: what was in the way is seldom gone sooner.
const PAUSE: Duration = Duration::from_millis(50);

/// How many clients may be connected at once, by port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// To the Pulsar port.
    pub pulsar: usize,
    /// To the HTTP port.
    pub http: usize,
}

impl Bounds {
    /// No bound: for servers that live in a test's process.
    pub const NONE: Self = Self { pulsar: usize::MAX, http: usize::MAX };

    /// What a limit on open files leaves: a quarter of it, at least 128 and at most half, is kept for the store. Of the rest the
    /// HTTP port gets an eighth, at most 256; the Pulsar port the others. No port has fewer than four.
    #[must_use]
    pub fn of_open_files(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let reserve = (limit / 4).max(RESERVE_MIN).min(limit / 2);
        let clients = limit - reserve;
        let http = (clients / 8).clamp(PLACES_MIN, HTTP_MAX);
        Self { pulsar: clients.saturating_sub(http).max(PLACES_MIN), http }
    }
}

/// One port's places.
#[derive(Debug)]
pub(crate) struct Door {
    port: &'static str,
    max: usize,
    taken: AtomicUsize,
    refused: AtomicU64,
    full: Seldom,
    failed: Seldom,
}

/// A connection's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place(Arc<Door>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    fn new(port: &'static str, max: usize) -> Arc<Self> {
        let (taken, refused) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { port, max, taken, refused, full: Seldom::default(), failed: Seldom::default() })
    }

    /// The next client that has a place. Others are closed; what cannot be accepted is waited out.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        clock: &dyn Clock,
    ) -> (TcpStream, SocketAddr, Place) {
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    if let Some(place) = self.enter(address, clock.mono()) {
                        return (socket, address, place);
                    }
                }
                Err(error) => {
                    // Out of file descriptors or a peer that vanished: neither ends the listener.
                    if let Some(untold) = self.failed.again(clock.mono()) {
                        tracing::warn!(port = self.port, %error, untold, "a connection could not be accepted");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn enter(self: &Arc<Self>, address: SocketAddr, now: Mono) -> Option<Place> {
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.max {
            return Some(Place(self.clone()));
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(untold) = self.full.again(now) {
            tracing::warn!(
                port = self.port,
                max = self.max,
                %address,
                untold,
                "{}: a connection was closed: as many clients are connected as this port has places, which follow from the limit on open \
                 files (`ulimit -n`; the HTTP port never has more than {HTTP_MAX}); find who holds so many connections, or raise \
                 the limit and start again",
                Code::TOO_MANY_CONNECTIONS
            );
        }
        None
    }

    /// The port, clients connected, clients that may be, and clients closed for want of a place.
    pub(crate) fn figures(&self) -> (&'static str, usize, usize, u64) {
        let (taken, refused) = (self.taken.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        (self.port, taken.min(self.max), self.max, refused)
    }
}

/// Both ports' places.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    pub(crate) pulsar: Arc<Door>,
    pub(crate) http: Arc<Door>,
}

impl Doors {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { pulsar: Door::new("pulsar", bounds.pulsar), http: Door::new("http", bounds.http) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_leaves_files_to_the_store_and_places_to_clients() {
        assert_eq!(Bounds::of_open_files(1024), Bounds { pulsar: 672, http: 96 });
        assert_eq!(Bounds::of_open_files(160), Bounds { pulsar: 70, http: 10 });
        assert_eq!(Bounds::of_open_files(100), Bounds { pulsar: 44, http: 6 });
        assert_eq!(Bounds::of_open_files(0), Bounds { pulsar: 4, http: 4 });
        for limit in 32..4096 {
            let bounds = Bounds::of_open_files(limit);
            assert!((bounds.pulsar + bounds.http) as u64 <= limit - limit / 4, "{limit}: {bounds:?}");
        }
        let boundless = Bounds::of_open_files(u64::MAX);
        assert!(boundless.pulsar > 1 << 40 && boundless.http == 256, "{boundless:?}");
    }

    #[test]
    fn a_place_is_free_again_when_it_is_left() {
        let (door, address) = (Door::new("pulsar", 2), SocketAddr::from(([127, 0, 0, 1], 1)));
        let enter = || door.enter(address, Mono::ZERO);
        let (first, second) = (enter(), enter());
        assert!(first.is_some() && second.is_some() && enter().is_none() && enter().is_none());
        assert_eq!(door.figures(), ("pulsar", 2, 2, 2));
        drop(first);
        assert!(enter().is_some());
    }
}
