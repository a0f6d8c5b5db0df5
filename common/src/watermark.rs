//! Progress that only moves forward: watched instead of polled.

use tokio::sync::watch;

/// The moving end of a watermark. Owned by whoever makes the progress.
#[derive(Debug)]
pub struct Watermark<T>(watch::Sender<T>);

/// The watching end.
pub type Watcher<T> = watch::Receiver<T>;

impl<T: Ord + Copy + std::fmt::Debug> Watermark<T> {
    /// A watermark at its start.
    pub fn new(start: T) -> Self {
        Self(watch::Sender::new(start))
    }

    /// Moves forward; staying is fine.
    ///
    /// # Panics
    /// When told to go back: progress that goes back is a defect that must not be hidden.
    pub fn advance(&self, to: T) {
        self.0.send_if_modified(|now| {
            assert!(to >= *now, "a watermark never goes back: {to:?} after {now:?}");
            let moved = to > *now;
            *now = to;
            moved
        });
    }

    /// Where it stands.
    pub fn get(&self) -> T {
        *self.0.borrow()
    }

    /// A watcher.
    pub fn watch(&self) -> Watcher<T> {
        self.0.subscribe()
    }
}
