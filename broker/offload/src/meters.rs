//! What offloading has done for each topic, as `/metrics` tells it. Counted where it happens, shown when asked; nothing
//! runs for it. A topic's numbers live as long as somebody holds its [`Meter`]: its owner does while the topic is loaded.

use crate::cost::{Account, Accounts, Bill};
use geminga_common::clock::{Clock, Mono};
use geminga_common::ids::TopicId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Rates are means over so many slots of so many seconds.
const SLOTS: usize = 6;
const SLOT_S: u64 = 10;
/// Topics that nobody holds any more are forgotten when there are this many, then at twice as many as were left.
const TOPICS_MIN: usize = 64;

/// How often something was done and how long it took in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Latency {
    /// Times.
    pub count: u64,
    /// Microseconds.
    pub micros: u64,
}

/// The numbers of one topic.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Objects written.
    pub objects: u64,
    /// Ledgers in them.
    pub ledgers: u64,
    /// Ledgers that were to be offloaded and were not.
    pub offload_errors: u64,
    /// Those of them that failed by the object store.
    pub write_errors: u64,
    /// Requests for offloaded entries that failed.
    pub read_errors: u64,
    /// Bytes a second that went into the store.
    pub offload_rate: f64,
    /// Bytes a second that came back.
    pub read_rate: f64,
    /// Reading an index from the store.
    pub index: Latency,
    /// Reading blocks from the store.
    pub data: Latency,
    /// Reading a ledger for its upload.
    pub ledger: Latency,
    /// Objects removed.
    pub removed: u64,
    /// Removals that failed; they are tried again.
    pub removals_failed: u64,
}

#[derive(Debug, Default)]
struct Timed {
    count: AtomicU64,
    micros: AtomicU64,
}

/// Bytes of the last minute.
#[derive(Debug, Default)]
struct Window {
    newest: u64,
    slots: [u64; SLOTS],
}

/// Counts for one topic.
#[derive(Debug, Default)]
pub struct Meter {
    objects: AtomicU64,
    ledgers: AtomicU64,
    offload_errors: AtomicU64,
    write_errors: AtomicU64,
    read_errors: AtomicU64,
    offloaded: Mutex<Window>,
    read: Mutex<Window>,
    index: Timed,
    data: Timed,
    ledger: Timed,
    removed: AtomicU64,
    removals_failed: AtomicU64,
    /// Its tenant's.
    account: Arc<Account>,
}

/// The meters of a process. Cloning shares them.
#[derive(Clone)]
pub struct Meters(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    topics: Mutex<Known>,
    unknown: Arc<Meter>,
    accounts: Accounts,
}

struct Known {
    meters: HashMap<TopicId, Weak<Meter>>,
    clean_at: usize,
}

impl Timed {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn figures(&self) -> Latency {
        Latency { count: self.count.load(Ordering::Relaxed), micros: self.micros.load(Ordering::Relaxed) }
    }
}

impl Window {
    /// Drops what is older than the window.
    fn advance(&mut self, slot: u64) {
        let passed = slot.saturating_sub(self.newest);
        for nth in 0..passed.min(SLOTS as u64) {
            self.slots[((slot - nth) % SLOTS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(slot);
    }

    fn add(&mut self, slot: u64, bytes: u64) {
        self.advance(slot);
        self.slots[(self.newest % SLOTS as u64) as usize] += bytes;
    }

    fn rate(&mut self, slot: u64) -> f64 {
        self.advance(slot);
        self.slots.iter().sum::<u64>() as f64 / (SLOTS as u64 * SLOT_S) as f64
    }
}

impl Meters {
    /// Meters of nothing yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let topics = Mutex::new(Known { meters: HashMap::new(), clean_at: TOPICS_MIN });
        let accounts = Accounts::default();
        let unknown = Arc::new(Meter { account: accounts.unknown.clone(), ..Meter::default() });
        Self(Arc::new(Shared { clock, topics, unknown, accounts }))
    }

    /// The meter of a topic of this tenant; a new one if nobody holds it.
    #[must_use]
    pub fn of(&self, topic: TopicId, tenant: &str) -> Arc<Meter> {
        let mut topics = self.0.topics.lock();
        if let Some(meter) = topics.meters.get(&topic).and_then(Weak::upgrade) {
            return meter;
        }
        let meter = Arc::new(Meter { account: self.0.accounts.of(tenant), ..Meter::default() });
        topics.meters.insert(topic, Arc::downgrade(&meter));
        if topics.meters.len() >= topics.clean_at {
            topics.meters.retain(|_, meter| meter.strong_count() > 0);
            topics.clean_at = (topics.meters.len() * 2).max(TOPICS_MIN);
        }
        meter
    }

    /// The meter of a topic that somebody holds, else that of topics which are not loaded here.
    fn held(&self, topic: TopicId) -> Arc<Meter> {
        let held = self.0.topics.lock().meters.get(&topic).and_then(Weak::upgrade);
        held.unwrap_or_else(|| self.0.unknown.clone())
    }

    /// What a meter has counted.
    #[must_use]
    pub fn figures(&self, meter: &Meter) -> Figures {
        let (get, slot) = (|counter: &AtomicU64| counter.load(Ordering::Relaxed), self.slot());
        Figures {
            objects: get(&meter.objects),
            ledgers: get(&meter.ledgers),
            offload_errors: get(&meter.offload_errors),
            write_errors: get(&meter.write_errors),
            read_errors: get(&meter.read_errors),
            offload_rate: meter.offloaded.lock().rate(slot),
            read_rate: meter.read.lock().rate(slot),
            index: meter.index.figures(),
            data: meter.data.figures(),
            ledger: meter.ledger.figures(),
            removed: get(&meter.removed),
            removals_failed: get(&meter.removals_failed),
        }
    }

    /// What was counted for topics that are not loaded here: objects of topics that were deleted.
    #[must_use]
    pub fn of_others(&self) -> Figures {
        self.figures(&self.0.unknown)
    }

    /// What the store was asked for on behalf of each tenant, by name, since the process began; tenants for whom it was not asked
    /// are left out.
    #[must_use]
    pub fn bills(&self) -> Vec<(String, Bill)> {
        self.0.accounts.bills()
    }

    /// Whom a request about a topic, or about none, is charged to.
    pub(crate) fn account(&self, topic: Option<TopicId>) -> Arc<Account> {
        topic.map_or_else(|| self.0.unknown.account.clone(), |topic| self.held(topic).account.clone())
    }

    pub(crate) fn now(&self) -> Mono {
        self.0.clock.mono()
    }

    fn since(&self, begun: Mono) -> Duration {
        self.now().saturating_sub(begun)
    }

    fn slot(&self) -> u64 {
        self.0.clock.wall_ms() / (SLOT_S * 1000)
    }

    /// An object of so many bytes, of so many ledgers, was written.
    pub(crate) fn uploaded(&self, topic: TopicId, bytes: u64, ledgers: u64) {
        let meter = self.held(topic);
        meter.offloaded.lock().add(self.slot(), bytes);
        meter.objects.fetch_add(1, Ordering::Relaxed);
        meter.ledgers.fetch_add(ledgers, Ordering::Relaxed);
    }

    /// So many ledgers were not offloaded; `by_store` where the store is why.
    pub(crate) fn not_offloaded(&self, topic: TopicId, by_store: bool, ledgers: u64) {
        let meter = self.held(topic);
        meter.offload_errors.fetch_add(ledgers, Ordering::Relaxed);
        meter.write_errors.fetch_add(if by_store { ledgers } else { 0 }, Ordering::Relaxed);
    }

    pub(crate) fn ledger_read(&self, topic: TopicId, begun: Mono) {
        self.held(topic).ledger.add(self.since(begun));
    }

    /// A request for an index, or for blocks, was answered or failed.
    pub(crate) fn read_back(&self, topic: TopicId, begun: Mono, index: bool, bytes: Option<u64>) {
        let meter = self.held(topic);
        match bytes {
            Some(bytes) => {
                meter.read.lock().add(self.slot(), bytes);
                if index { &meter.index } else { &meter.data }.add(self.since(begun));
            }
            None => {
                meter.read_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn removal(&self, topic: TopicId, done: bool) {
        let meter = self.held(topic);
        if done { &meter.removed } else { &meter.removals_failed }.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{Kind, UNKNOWN};
    use geminga_common::clock::ManualClock;

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let clock = Arc::new(ManualClock::at_wall_ms(1_000_000));
        let meters = Meters::new(clock.clone());
        let meter = meters.of(TopicId(1), "t");
        let rate = || meters.figures(&meter).offload_rate;
        meters.uploaded(TopicId(1), 600, 1);
        assert_eq!(rate(), 10.0);
        clock.advance(Duration::from_secs(30));
        meters.uploaded(TopicId(1), 1_200, 1);
        assert_eq!(rate(), 30.0);
        clock.advance(Duration::from_secs(30));
        assert_eq!(rate(), 20.0, "the first is a minute old");
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(rate(), 0.0);
        meters.uploaded(TopicId(1), 60, 1);
        assert_eq!(rate(), 1.0);
    }

    #[test]
    fn a_tenants_account_outlives_its_topics() {
        let meters = Meters::new(Arc::new(ManualClock::at_wall_ms(0)));
        let (one, two) = (meters.of(TopicId(1), "a"), meters.of(TopicId(2), "a"));
        meters.account(Some(TopicId(1))).request(Kind::Put, 10);
        meters.account(Some(TopicId(2))).request(Kind::Get, 0);
        drop((one, two));
        meters.account(Some(TopicId(1))).request(Kind::Delete, 0);
        meters.account(None).request(Kind::Get, 0);
        let _again = meters.of(TopicId(1), "a");
        meters.account(Some(TopicId(1))).received(5);
        let of_a = Bill { requests: [1, 1, 0, 0, 0, 0], sent: 10, received: 5 };
        let of_nobody = Bill { requests: [0, 1, 0, 0, 1, 0], ..Bill::default() };
        assert_eq!(meters.bills(), [("a".to_owned(), of_a), (UNKNOWN.to_owned(), of_nobody)]);
    }

    #[test]
    fn numbers_go_with_their_topic_and_others_are_counted_together() {
        let meters = Meters::new(Arc::new(ManualClock::at_wall_ms(0)));
        let held = meters.of(TopicId(1), "t");
        meters.removal(TopicId(1), true);
        meters.removal(TopicId(2), false);
        assert_eq!((meters.figures(&held).removed, meters.of_others().removals_failed), (1, 1));
        drop(held);
        assert_eq!(
            meters.figures(&meters.of(TopicId(1), "t")),
            Figures::default(),
            "a topic that is loaded anew starts anew"
        );
        let kept: Vec<_> = (0..1000).map(|n| meters.of(TopicId(n), "t")).collect();
        drop(kept);
        let _one = meters.of(TopicId(5_000), "t");
        for n in 0..10_000 {
            let _gone = meters.of(TopicId(10_000 + n), "t");
        }
        assert!(meters.0.topics.lock().meters.len() <= 2_048, "topics that are gone are forgotten");
    }
}
