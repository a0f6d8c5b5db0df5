//! The client at the other end of a connection, as topics see it: an outbox, what it announced, and which of its producers and
//! consumers live where.
//!
//! The slots are shared by the connection's reader (which routes SEND, ACK and FLOW by them) and by topics (which drop a
//! slot when they close a producer or consumer). The lock is short and never held across an await; the reader takes it once per
//! burst of frames.

use super::outbox::Outbox;
use super::{ConsumerRef, ProducerRef};
use geminga_common::clock::Mono;
use geminga_common::ids::{ConsumerId, ProducerId, RequestId};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Where a producer of this connection stands.
pub(crate) enum ProducerSlot {
    /// Being created for this request.
    Pending(RequestId),
    /// In the queue for an exclusive term; it may not send yet.
    Waiting(ProducerRef),
    /// Publishing.
    Ready(ProducerRef),
    /// Closed by the broker at this time: sends still on their way are dropped for a while.
    ClosedByBroker(Mono),
}

/// Where a consumer of this connection stands.
pub(crate) enum ConsumerSlot {
    /// Being created for this request.
    Pending(RequestId),
    /// Consuming.
    Ready(ConsumerRef),
}

/// Producers and consumers of one connection, by the ids the client chose.
#[derive(Default)]
pub(crate) struct Slots {
    /// Set when the connection has ended: nothing may be added any more.
    pub(crate) ended: bool,
    /// Producers.
    pub(crate) producers: HashMap<ProducerId, ProducerSlot>,
    /// Consumers.
    pub(crate) consumers: HashMap<ConsumerId, ConsumerSlot>,
    /// Consumers that the broker closed and whose clients are about to subscribe again.
    pub(crate) sent_away: HashSet<ConsumerId>,
}

impl Slots {
    /// Whether a consumer that is not ready will be soon: it is being created, or its client was sent away and comes back.
    pub(crate) fn awaits(&self, id: ConsumerId) -> bool {
        !self.ended
            && (self.sent_away.contains(&id)
                || matches!(self.consumers.get(&id), Some(ConsumerSlot::Pending(_))))
    }
}

/// What the client said in CONNECT.
#[derive(Clone, Debug, Default)]
pub(crate) struct Announced {
    /// Library and version, for stats.
    pub(crate) client_version: String,
    /// Protocol version, at most ours.
    pub(crate) protocol_version: i32,
}

/// A connected client.
pub(crate) struct Peer {
    /// Unique in this broker process.
    pub(crate) id: u64,
    /// Remote address, for stats: `/127.0.0.1:1234`.
    pub(crate) address: String,
    /// What waits to be written.
    pub(crate) outbox: Outbox,
    announced: OnceLock<Announced>,
    slots: Mutex<Slots>,
    closer: CancellationToken,
    left: CancellationToken,
    /// Nanoseconds on the monotonic clock until which the connection is not read; 0 for never.
    paused_until: AtomicU64,
    heard: AtomicBool,
    heard_something: Notify,
    /// Told when a consumer's creation has ended, either way.
    pub(crate) settled: Notify,
    /// Requests under way, and what is told when half of those that may be are answered.
    asking: AtomicUsize,
    answered: Notify,
}

/// Requests of one connection that may be under way at once. A client that sends more is not read until half of them are answered:
/// each costs memory, some kilobytes, and turns that others wait for.
pub(crate) const REQUESTS_MAX: usize = 2048;

/// The peer as a request knows it that is not answered yet: it is answered, one way or another, when this is dropped.
pub(crate) struct Asking(Arc<Peer>);

impl Deref for Asking {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.0
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.0.asking.fetch_sub(1, Ordering::AcqRel) == REQUESTS_MAX / 2 {
            self.0.answered.notify_one();
        }
    }
}

impl Peer {
    /// A peer that has not announced itself yet.
    pub(crate) fn new(id: u64, address: String) -> Arc<Self> {
        Arc::new(Self {
            id,
            address,
            outbox: Outbox::default(),
            announced: OnceLock::new(),
            slots: Mutex::default(),
            closer: CancellationToken::new(),
            left: CancellationToken::new(),
            paused_until: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            heard_something: Notify::new(),
            settled: Notify::new(),
            asking: AtomicUsize::new(0),
            answered: Notify::new(),
        })
    }

    /// Takes on a request.
    pub(crate) fn asks(self: &Arc<Self>) -> Asking {
        self.asking.fetch_add(1, Ordering::AcqRel);
        Asking(self.clone())
    }

    /// Whether [`REQUESTS_MAX`] requests are under way.
    pub(crate) fn asks_too_much(&self) -> bool {
        self.asking.load(Ordering::Acquire) >= REQUESTS_MAX
    }

    /// Waits until fewer than half as many requests are under way as may be.
    pub(crate) async fn room_to_ask(&self) {
        while self.asking.load(Ordering::Acquire) >= REQUESTS_MAX / 2 {
            self.answered.notified().await;
        }
    }

    /// Keeps what CONNECT said; only the first time counts.
    pub(crate) fn announce(&self, announced: Announced) -> bool {
        self.announced.set(announced).is_ok()
    }

    /// What CONNECT said, once it did.
    pub(crate) fn announced(&self) -> Option<&Announced> {
        self.announced.get()
    }

    /// The slots, locked.
    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock()
    }

    /// Asks the connection to end.
    pub(crate) fn close(&self) {
        self.closer.cancel();
    }

    /// Cancelled when the connection is to end.
    pub(crate) fn closer(&self) -> &CancellationToken {
        &self.closer
    }

    /// Notes that its producers and consumers have been taken off their topics.
    pub(crate) fn note_left(&self) {
        self.left.cancel();
    }

    /// Nothing more is read from the connection before this time: a topic's publish rate is used up.
    pub(crate) fn pause_reading(&self, until: Mono) {
        let nanos = u64::try_from(until.saturating_sub(Mono::ZERO).as_nanos()).unwrap_or(u64::MAX);
        self.paused_until.fetch_max(nanos, Ordering::Relaxed);
    }

    /// How long the connection is not to be read yet, and whether it was ever paused.
    pub(crate) fn pause_left(&self, now: Mono) -> (Option<Duration>, bool) {
        let nanos = self.paused_until.load(Ordering::Relaxed);
        let until = Mono::ZERO + Duration::from_nanos(nanos);
        ((now < until).then(|| until.saturating_sub(now)), nanos > 0)
    }

    /// Notes that a frame came in.
    pub(crate) fn note_heard(&self) {
        if !self.heard.swap(true, Ordering::Relaxed) {
            self.heard_something.notify_waiters();
        }
    }

    /// Whether a frame came in since the last call.
    pub(crate) fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Pings and waits for any sign of life. A silent peer is closed.
    pub(crate) async fn probe(&self, patience: Duration) -> bool {
        let heard = self.heard_something.notified();
        tokio::pin!(heard);
        heard.as_mut().enable();
        self.heard.store(false, Ordering::Relaxed);
        self.outbox.frame(geminga_proto::encode::ping);
        let alive = tokio::select! {
            () = &mut heard => true,
            () = self.closer.cancelled() => false,
            () = tokio::time::sleep(patience) => false,
        };
        if !alive {
            self.close();
            // Its producers and consumers are off their topics before anybody takes their place.
            self.left.cancelled().await;
        }
        alive
    }
}
