//! Which bookies are slow: a moving mean of each one's add latency against the median of all.
//!
//! Slow is a bookie whose mean has been above four times the median, and above 5 ms, for 5 s; it is no more when its mean has come
//! back to twice the median. At most a tenth of the bookies (but one at least) are slow at a time, the slowest first: when
//! everybody is slow, nobody is. A bookie that was not written to for a minute has no verdict, so one that placement avoids gets
//! its chance again. No answer counts as an answer after the deadline.
//!
//! Owner: the transport; placement asks, and writers' owners may.

use geminga_common::ids::BookieId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const FACTOR: u32 = 4;
const FACTOR_BACK: u32 = 2;
const FLOOR: Duration = Duration::from_millis(5);
const SUSTAINED: Duration = Duration::from_secs(5);
const FORGOTTEN: Duration = Duration::from_secs(60);
/// A new sample weighs one part in this many.
const WEIGHT: u32 = 16;

#[derive(Debug)]
struct Track {
    mean: Duration,
    last: Instant,
    above_since: Option<Instant>,
}

/// Latencies of the bookies of one client. Shared.
#[derive(Debug, Default)]
pub struct Health {
    tracks: Mutex<BTreeMap<BookieId, Track>>,
}

impl Health {
    /// A bookie answered an add after this long.
    pub fn answered(&self, bookie: &BookieId, took: Duration, now: Instant) {
        let mut tracks = self.tracks.lock();
        match tracks.get_mut(bookie) {
            Some(track) if now.saturating_duration_since(track.last) < FORGOTTEN => {
                track.mean = (track.mean * (WEIGHT - 1) + took) / WEIGHT;
                track.last = now;
            }
            _ => {
                tracks.insert(bookie.clone(), Track { mean: took, last: now, above_since: None });
            }
        }
        let Some(median) = median(&tracks, now) else { return };
        let Some(track) = tracks.get_mut(bookie) else { return };
        if track.mean > (median * FACTOR).max(FLOOR) {
            track.above_since.get_or_insert(now);
        } else if track.mean <= (median * FACTOR_BACK).max(FLOOR) {
            track.above_since = None;
        }
    }

    /// The bookies that are slow now.
    #[must_use]
    pub fn slow(&self, now: Instant) -> Vec<BookieId> {
        let tracks = self.tracks.lock();
        let most = (tracks.len() / 10).max(1);
        let judged = |track: &Track| {
            let sustained =
                track.above_since.is_some_and(|since| now.saturating_duration_since(since) >= SUSTAINED);
            sustained && now.saturating_duration_since(track.last) < FORGOTTEN
        };
        let mut slow: Vec<_> = tracks.iter().filter(|(_, track)| judged(track)).collect();
        slow.sort_by_key(|(_, track)| std::cmp::Reverse(track.mean));
        slow.into_iter().take(most).map(|(id, _)| id.clone()).collect()
    }

    /// Moving mean of a bookie's add latency; `None` when it was not written to lately.
    #[must_use]
    pub fn latency(&self, bookie: &BookieId, now: Instant) -> Option<Duration> {
        let tracks = self.tracks.lock();
        let track = tracks.get(bookie)?;
        (now.saturating_duration_since(track.last) < FORGOTTEN).then_some(track.mean)
    }
}

/// The lower median of the bookies written to lately; of fewer than two there is nothing to compare.
fn median(tracks: &BTreeMap<BookieId, Track>, now: Instant) -> Option<Duration> {
    let recent = tracks.values().filter(|track| now.saturating_duration_since(track.last) < FORGOTTEN);
    let mut means: Vec<Duration> = recent.map(|track| track.mean).collect();
    if means.len() < 2 {
        return None;
    }
    means.sort_unstable();
    Some(means[(means.len() - 1) / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> BookieId {
        BookieId::new(&format!("b{n}")).unwrap()
    }

    fn run(health: &Health, from: Instant, seconds: u64, millis: &[u64]) -> Instant {
        for tenth in 0..seconds * 10 {
            for (n, took) in (0..).zip(millis) {
                let now = from + Duration::from_millis(tenth * 100);
                health.answered(&id(n), Duration::from_millis(*took), now);
            }
        }
        from + Duration::from_secs(seconds)
    }

    #[test]
    fn slow_is_four_times_the_median_for_five_seconds() {
        let (health, start) = (Health::default(), Instant::now());
        let now = run(&health, start, 4, &[2, 2, 40]);
        assert_eq!(health.slow(now), [], "not yet");
        let now = run(&health, now, 3, &[2, 2, 40]);
        assert_eq!(health.slow(now), [id(2)]);
        let now = run(&health, now, 10, &[2, 2, 3]);
        assert_eq!(health.slow(now), [], "it has come back");
    }

    #[test]
    fn a_short_pause_is_not_slow_and_neither_is_fast_against_faster() {
        let (health, start) = (Health::default(), Instant::now());
        let now = run(&health, start, 2, &[1, 1, 900]);
        let now = run(&health, now, 20, &[1, 1, 4]);
        assert_eq!(health.slow(now), [], "4 ms is below the floor");
    }

    #[test]
    fn only_the_slowest_is_slow_and_silence_is_forgotten() {
        let (health, start) = (Health::default(), Instant::now());
        let now = run(&health, start, 20, &[1, 1, 1, 50, 60]);
        assert_eq!(health.slow(now), [id(4)]);
        assert_eq!(health.slow(now + FORGOTTEN), []);
        assert_eq!(health.latency(&id(4), now + FORGOTTEN), None);
    }
}
