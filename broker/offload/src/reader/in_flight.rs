//! How much all readers of a broker together have asked the store for and not yet got. Each may ask for as much as its window
//! allows; without a bound for all of them their number would decide how much memory and how many connections the broker needs.
//!
//! What a reader asks for now waits for its turn, in the order of asking, and its topic says so. What would only be fetched ahead
//! is not fetched while there is no room: it is asked for again by the reader's next read.

use geminga_common::ids::TopicId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: a permit for so many bytes.
const UNIT: u64 = 1 << 10;

/// Bytes under way, and who waits.
pub(super) struct InFlight {
    free: Arc<Semaphore>,
    units: u32,
    waiting: Mutex<HashMap<TopicId, u64>>,
    waited: AtomicU64,
}

/// Bytes that may be asked for as long as this is kept.
#[derive(Debug)]
pub(super) struct Turn {
    _units: Option<OwnedSemaphorePermit>,
}

/// A reader that waits.
struct Waiting<'a>(&'a InFlight, TopicId);

impl<'a> Waiting<'a> {
    fn begin(of: &'a InFlight, topic: TopicId) -> Self {
        *of.waiting.lock().entry(topic).or_default() += 1;
        of.waited.fetch_add(1, Ordering::Relaxed);
        Self(of, topic)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.1);
            }
        }
    }
}

impl InFlight {
    pub(super) fn new(bytes_max: u64) -> Self {
        let units = u32::try_from(bytes_max / UNIT).unwrap_or(u32::MAX).max(1);
        let free = Arc::new(Semaphore::new(units as usize));
        Self { free, units, waiting: Mutex::default(), waited: AtomicU64::new(0) }
    }

    /// A request larger than all that may be under way goes alone.
    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }

    /// Waits until so many bytes may be asked for.
    pub(super) async fn turn(&self, topic: TopicId, bytes: u64) -> Turn {
        if let Some(turn) = self.try_turn(bytes) {
            return turn;
        }
        let _waiting = Waiting::begin(self, topic);
        // It is never closed; if it were, nothing would have to wait.
        Turn { _units: self.free.clone().acquire_many_owned(self.units(bytes)).await.ok() }
    }

    /// The same without waiting, for what nobody needs yet. Those who wait come first.
    pub(super) fn try_turn(&self, bytes: u64) -> Option<Turn> {
        let units = self.free.clone().try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Turn { _units: Some(units) })
    }

    /// Bytes under way.
    pub(super) fn bytes(&self) -> u64 {
        (u64::from(self.units) - self.free.available_permits() as u64) * UNIT
    }

    /// Bytes that may be.
    pub(super) fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT
    }

    /// Whether a reader of this topic waits for its turn.
    pub(super) fn waits(&self, topic: TopicId) -> bool {
        self.waiting.lock().contains_key(&topic)
    }

    /// Requests that wait, and those that ever did.
    pub(super) fn waiting(&self) -> (u64, u64) {
        (self.waiting.lock().values().sum(), self.waited.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_waits_is_named_and_comes_before_what_would_be_fetched_ahead() {
        let all = InFlight::new(16 * MIB);
        let first = all.turn(TopicId(1), 10 * MIB).now_or_never().unwrap();
        assert_eq!((all.bytes(), all.waiting()), (10 * MIB, (0, 0)));
        let mut second = std::pin::pin!(all.turn(TopicId(2), 8 * MIB));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!((all.waits(TopicId(2)), all.waits(TopicId(1)), all.waiting()), (true, false, (1, 1)));
        assert!(all.try_turn(MIB).is_none(), "there is room, and somebody waits for it");
        drop(first);
        let second = second.as_mut().now_or_never().unwrap();
        assert_eq!((all.waits(TopicId(2)), all.waiting()), (false, (0, 1)));
        assert!(all.try_turn(8 * MIB).is_some());
        drop(second);
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn what_is_larger_than_everything_goes_alone() {
        let all = InFlight::new(16 * MIB);
        let huge = all.turn(TopicId(1), 100 * MIB).now_or_never().unwrap();
        assert!(all.turn(TopicId(1), 1).now_or_never().is_none());
        drop(huge);
        assert_eq!((all.bytes(), all.waiting()), (0, (0, 1)), "one that no longer waits is not counted");
    }
}
