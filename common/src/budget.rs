//! A budget of bytes: who wants memory takes a permit first, and the bytes come back when the permit is dropped.
//!
//! Owner: whoever made the budget; permits own their share of it (`'static`), so they travel with the bytes they stand for.
//! Invariants: what is out never exceeds the limit, but for one request larger than the limit, which is granted when nothing
//! else is out (else it could never be served). Waiters are served in order: a small request does not overtake a large one.
//!
//! Taking and giving back without waiters are a few atomic steps; the lock is met only when somebody waits. tokio's semaphore
//! is not used because it counts 32-bit permits per call and never grants more than there are.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::oneshot;

#[cfg(test)]
mod tests;

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    grant: oneshot::Sender<Permit>,
}

#[derive(Debug)]
struct Inner {
    limit: u64,
    used: AtomicU64,
    /// Length of `queue`, readable without its lock. A waiter raises it before it looks at `used` a last time, a release
    /// lowers `used` before it looks here (both sequentially consistent), so one of the two sees the other.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Waiter>>,
}

/// A budget. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

/// Bytes taken from a budget; dropping gives them back.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Inner>,
    bytes: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let (used, waiting) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self(Arc::new(Inner { limit, used, waiting, queue: Mutex::default() }))
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes that are out now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Requests that wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Takes bytes if they are there and nobody waits for some.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> Option<Permit> {
        let free = self.0.waiting.load(Ordering::SeqCst) == 0 && self.0.acquire(bytes);
        free.then(|| Permit { budget: self.0.clone(), bytes })
    }

    /// Takes bytes, waiting for its turn. Giving up (dropping the future) is fine.
    pub async fn take(&self, bytes: u64) -> Permit {
        if let Some(permit) = self.try_take(bytes) {
            return permit;
        }
        let (grant, granted) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            queue.push_back(Waiter { bytes, grant });
            self.0.waiting.store(queue.len(), Ordering::SeqCst);
            self.0.serve(&mut queue);
        }
        let mut place = Place { budget: &self.0, granted: Some(granted) };
        let granted = place.granted.as_mut().expect("taken only below");
        let permit = granted.await.expect("a waiter leaves the queue only when granted or given up");
        place.granted = None;
        permit
    }
}

/// A place in the queue. Leaving it early lets those behind move up.
struct Place<'b> {
    budget: &'b Arc<Inner>,
    granted: Option<oneshot::Receiver<Permit>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // The receiver goes first: a permit that is in it already goes back, and its waiter counts as gone.
        if self.granted.take().is_some() {
            let mut queue = self.budget.queue.lock();
            queue.retain(|waiter| !waiter.grant.is_closed());
            self.budget.waiting.store(queue.len(), Ordering::SeqCst);
            self.budget.serve(&mut queue);
        }
    }
}

impl Inner {
    fn acquire(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit || used == 0);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Grants from the front for as long as the front fits.
    fn serve(self: &Arc<Self>, queue: &mut VecDeque<Waiter>) {
        while let Some(front) = queue.front() {
            let gave_up = front.grant.is_closed();
            if !gave_up && !self.acquire(front.bytes) {
                break;
            }
            let Waiter { bytes, grant } = queue.pop_front().expect("it has a front");
            self.waiting.store(queue.len(), Ordering::SeqCst);
            if gave_up {
                continue; // nothing was acquired for it
            }
            if let Err(mut refused) = grant.send(Permit { budget: self.clone(), bytes }) {
                // Gave up meanwhile. A plain drop would come back for the lock that is held here.
                self.used.fetch_sub(std::mem::take(&mut refused.bytes), Ordering::SeqCst);
            }
        }
    }

    fn release(self: &Arc<Self>, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "more given back than was out");
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.serve(&mut self.queue.lock());
        }
    }
}

impl Permit {
    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` of it into a permit of their own; `None` when it holds fewer.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Option<Permit> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Permit { budget: self.budget.clone(), bytes })
    }

    /// Takes another permit's bytes in.
    ///
    /// # Panics
    /// When the other is of another budget: its bytes would go back to the wrong one.
    pub fn merge(&mut self, mut other: Permit) {
        assert!(Arc::ptr_eq(&self.budget, &other.budget), "permits of one budget merge");
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.release(self.bytes);
        }
    }
}
