//! Which bookies are slow: a moving mean of each one's add latency against the median of all.
//!
//! A bookie whose mean has been above four times the median, and above 5 ms, for 5 s gets a *verdict*. At most a tenth of the bookies
//! (but one at least) are under one at a time, the slowest first: when everybody is slow, nobody is. No answer counts as an answer after
//! the deadline. A mean to which nothing was added for a minute is forgotten.
//!
//! Placement avoids who is under a verdict, and writers of open ledgers put another bookie in its place; so nothing more is measured,
//! and silence proves nothing. A verdict therefore stands for a time: 1 min, and twice as long each time in a row, up to 1 h. Then the
//! bookie may be taken again, and has to show that it is fast: the row ends once it has answered fast for as long as it was away. Who is
//! still written to under a verdict, because there was nobody to take its place, is cleared once its mean has come back to twice the
//! median and has not been above the limit for 5 s. That is also what counts as fast.
//!
//! Owner: the transport; placement and writers ask.

use geminga_common::error::Code;
use geminga_common::ids::BookieId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const FACTOR: u32 = 4;
const FACTOR_BACK: u32 = 2;
const FLOOR: Duration = Duration::from_millis(5);
const SUSTAINED: Duration = Duration::from_secs(5);
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How long a first verdict stands, and the longest that one does.
const HOLD_FIRST: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// How old the median may be that answers are held against.
const TICK: Duration = Duration::from_millis(100);
/// A new sample weighs one part in this many.
const WEIGHT: u32 = 16;

#[derive(Debug)]
struct Track {
    mean: Duration,
    last: Instant,
    above_since: Option<Instant>,
    /// Came back to twice the median then, and has not been above the limit since.
    fast_since: Option<Instant>,
    /// Under a verdict until then.
    until: Option<Instant>,
    /// Verdicts in a row.
    row: u32,
}

impl Track {
    fn new(took: Duration, now: Instant) -> Self {
        Self { mean: took, last: now, above_since: None, fast_since: None, until: None, row: 0 }
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < FORGOTTEN
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Slow by what is measured, whatever the verdict.
    fn is_above(&self, now: Instant) -> bool {
        lasts(self.above_since, SUSTAINED, now) && self.is_fresh(now)
    }

    /// How long the last verdict of the row stood.
    fn hold(&self) -> Duration {
        (HOLD_FIRST * 2_u32.pow(self.row.saturating_sub(1).min(16))).min(HOLD_MAX)
    }

    fn sample(&mut self, took: Duration, now: Instant) {
        if self.is_fresh(now) {
            self.mean = (self.mean * (WEIGHT - 1) + took) / WEIGHT;
            self.last = now;
        } else {
            *self = Self { until: self.until, row: self.row, ..Self::new(took, now) };
        }
    }

    fn compare(&mut self, median: Duration, now: Instant) {
        if self.mean > (median * FACTOR).max(FLOOR) {
            self.above_since.get_or_insert(now);
            self.fast_since = None;
        } else if self.mean <= (median * FACTOR_BACK).max(FLOOR) {
            self.above_since = None;
            self.fast_since.get_or_insert(now);
        }
        if self.is_slow(now) {
            if lasts(self.fast_since, SUSTAINED, now) {
                self.until = None;
            }
        } else if lasts(self.fast_since, self.hold(), now) {
            self.row = 0;
        }
    }
}

fn lasts(since: Option<Instant>, at_least: Duration, now: Instant) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= at_least)
}

/// What a verdict was found on.
struct Verdict {
    mean: Duration,
    limit: Duration,
    hold: Duration,
}

#[derive(Debug, Default)]
struct Tracks {
    all: BTreeMap<BookieId, Track>,
    /// The median of all when it was last reckoned, and when that was.
    median: Option<(Instant, Option<Duration>)>,
    /// When somebody was last told that verdicts stand.
    told: Option<Instant>,
}

/// Latencies of the bookies of one client, and who is under a verdict. Shared.
#[derive(Debug, Default)]
pub struct Health {
    tracks: Mutex<Tracks>,
    told: AtomicU64,
    verdicts: AtomicU64,
}

impl Health {
    /// A bookie answered an add after this long.
    pub fn answered(&self, bookie: &BookieId, took: Duration, now: Instant) {
        let mut tracks = self.tracks.lock();
        match tracks.all.get_mut(bookie) {
            Some(track) => track.sample(took, now),
            None => drop(tracks.all.insert(bookie.clone(), Track::new(took, now))),
        }
        let verdict = tracks.judge(bookie, now);
        let again = lasts(tracks.told, SUSTAINED, now) && tracks.all.values().any(|track| track.is_slow(now));
        if verdict.is_some() || again {
            tracks.told = Some(now);
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        drop(tracks);
        if let Some(Verdict { mean, limit, hold }) = verdict {
            self.verdicts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                code = %Code::BOOKIE_SLOW, %bookie, latency_us = mean.as_micros(), limit_us = limit.as_micros(),
                avoided_s = hold.as_secs(),
                "bookie answers adds too slowly: open ledgers leave it where another can take its place; look at its disk, load and network"
            );
        }
    }

    /// The bookies that are under a verdict now.
    #[must_use]
    pub fn slow(&self, now: Instant) -> Vec<BookieId> {
        let tracks = self.tracks.lock();
        tracks.all.iter().filter(|(_, track)| track.is_slow(now)).map(|(id, _)| id.clone()).collect()
    }

    /// A number that moves when a verdict is passed, and every 5 s while one stands: time to look who is slow.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Verdicts passed since the start.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.verdicts.load(Ordering::Relaxed)
    }

    /// Moving mean of a bookie's add latency; `None` when it was not written to lately.
    #[must_use]
    pub fn latency(&self, bookie: &BookieId, now: Instant) -> Option<Duration> {
        let tracks = self.tracks.lock();
        let track = tracks.all.get(bookie)?;
        track.is_fresh(now).then_some(track.mean)
    }
}

impl Tracks {
    /// Compares a bookie that has just answered, and passes a verdict if it is due.
    fn judge(&mut self, bookie: &BookieId, now: Instant) -> Option<Verdict> {
        let median = self.median(now)?;
        let track = self.all.get_mut(bookie)?;
        track.compare(median, now);
        if track.is_slow(now) || !track.is_above(now) {
            return None;
        }
        let mean = track.mean;
        let most = (self.all.len() / 10).max(1);
        let room = self.all.values().filter(|track| track.is_slow(now)).count() < most;
        let waits = |track: &Track| track.is_above(now) && !track.is_slow(now) && track.mean > mean;
        if !room || self.all.values().any(waits) {
            return None;
        }
        let track = self.all.get_mut(bookie)?;
        track.row = track.row.saturating_add(1);
        let hold = track.hold();
        track.until = Some(now + hold);
        Some(Verdict { mean, limit: (median * FACTOR).max(FLOOR), hold })
    }

    /// The median of all, not older than a tick: what every answer is held against need not be reckoned for every answer.
    fn median(&mut self, now: Instant) -> Option<Duration> {
        if let Some((reckoned, median)) = self.median
            && now.saturating_duration_since(reckoned) < TICK
        {
            return median;
        }
        let median = median(&self.all, now);
        self.median = Some((now, median));
        median
    }
}

/// The lower median of the bookies written to lately; of fewer than two there is nothing to compare.
fn median(tracks: &BTreeMap<BookieId, Track>, now: Instant) -> Option<Duration> {
    let mut means: Vec<Duration> =
        tracks.values().filter(|track| track.is_fresh(now)).map(|track| track.mean).collect();
    if means.len() < 2 {
        return None;
    }
    means.sort_unstable();
    Some(means[(means.len() - 1) / 2])
}

#[cfg(test)]
mod tests;
