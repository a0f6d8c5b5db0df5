//! The seam for time. Machines take time as an argument; shells take a [`Clock`]. Only this file reads the system's clocks.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock: time since the clock was made.
pub type Mono = Duration;

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time since this clock was made. Never goes back.
    fn mono(&self) -> Mono;
    /// Wall-clock time in milliseconds since 1970. May jump; used for time stamps only, never for safety.
    fn wall_ms(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The same, shared.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods)] // this is the seam
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// A clock that moves only when told, for tests and simulation.
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug, Default)]
pub struct ManualClock {
    now: std::sync::Mutex<Duration>,
    wall_start_ms: u64,
}

#[cfg(any(test, feature = "test-util"))]
impl ManualClock {
    /// A clock at monotonic zero and the given wall time.
    #[must_use]
    pub fn at_wall_ms(wall_start_ms: u64) -> Self {
        Self { now: std::sync::Mutex::default(), wall_start_ms }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        *self.now.lock().expect("no holder of this lock panics") += by;
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for ManualClock {
    fn mono(&self) -> Mono {
        *self.now.lock().expect("no holder of this lock panics")
    }

    fn wall_ms(&self) -> u64 {
        self.wall_start_ms + self.mono().as_millis() as u64
    }
}
