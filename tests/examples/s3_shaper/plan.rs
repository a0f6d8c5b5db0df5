//! What happens to requests, and what has happened.

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;
use tokio::time::Instant;

/// Limits and faults; the default is none.
#[derive(Clone, Default, Debug)]
pub(crate) struct Steering {
    first_byte_ms: u64,
    mb_s: f64,
    share_503: f64,
    /// Seconds that a 503 asks to wait; 0 says nothing.
    pub(crate) retry_after: u64,
    share_slow: f64,
    slow_mb_s: f64,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Pass,
    SlowDown,
    Slow,
}

#[derive(Default, Debug)]
struct Counts {
    gets: u64,
    puts: u64,
    others: u64,
    get_bytes: u64,
    refused: u64,
    slowed: u64,
    busy: u64,
    busy_max: u64,
    busy_seconds: f64,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Limits and counts of all connections.
pub(crate) struct Shared(Mutex<(Steering, Counts, SmallRng)>);

/// A GET under way.
pub(crate) struct Busy<'a>(&'a Shared, Option<Instant>);

impl Default for Shared {
    fn default() -> Self {
        // The same faults in each run.
        Self(Mutex::new((Steering::default(), Counts::default(), SmallRng::seed_from_u64(1))))
    }
}

impl Steering {
    pub(crate) fn parse(query: &str) -> Result<Self> {
        let mut said = Self { slow_mb_s: 4.0, ..Self::default() };
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let number: f64 = value.parse().context("a number")?;
            match name {
                "first_byte_ms" => said.first_byte_ms = number as u64,
                "mb_s" => said.mb_s = number,
                "share_503" => said.share_503 = number,
                "retry_after" => said.retry_after = number as u64,
                "share_slow" => said.share_slow = number,
                "slow_mb_s" => said.slow_mb_s = number,
                _ => bail!("nothing is called {name}"),
            }
        }
        Ok(said)
    }

    pub(crate) fn first_byte(&self) -> Duration {
        Duration::from_millis(self.first_byte_ms)
    }

    /// Bytes a second; 0 is no limit.
    pub(crate) fn rate(&self, fate: Fate) -> u64 {
        (if fate == Fate::Slow { self.slow_mb_s } else { self.mb_s } * 1e6) as u64
    }
}

impl Shared {
    pub(crate) fn steering(&self) -> Steering {
        self.0.lock().0.clone()
    }

    pub(crate) fn set(&self, steering: Steering) {
        let mut all = self.0.lock();
        let busy = all.1.busy;
        *all = (steering, Counts { busy, ..Counts::default() }, SmallRng::seed_from_u64(1));
    }

    /// A request has come.
    pub(crate) fn begin(&self, method: &str) -> (Fate, Busy<'_>) {
        let mut all = self.0.lock();
        let (steering, counts, dice) = &mut *all;
        match method {
            "GET" => counts.gets += 1,
            "PUT" => counts.puts += 1,
            _ => counts.others += 1,
        }
        let at: f64 = dice.random();
        let fate = if at < steering.share_503 {
            counts.refused += 1;
            Fate::SlowDown
        } else if at < steering.share_503 + steering.share_slow {
            counts.slowed += 1;
            Fate::Slow
        } else {
            Fate::Pass
        };
        if method != "GET" {
            return (fate, Busy(self, None));
        }
        counts.busy += 1;
        counts.busy_max = counts.busy_max.max(counts.busy);
        let now = Instant::now();
        counts.first.get_or_insert(now);
        (fate, Busy(self, Some(now)))
    }

    pub(crate) fn passed(&self, method: &str, bytes: u64) {
        let counts = &mut self.0.lock().1;
        if method == "GET" {
            counts.get_bytes += bytes;
        }
    }

    /// Requests by kind, bytes of answers to GET, requests refused and slowed, GETs under way at most and in the mean.
    pub(crate) fn counts(&self) -> String {
        let counts = &self.0.lock().1;
        let span = counts.first.zip(counts.last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let mean = if span > 0.0 { counts.busy_seconds / span } else { 0.0 };
        serde_json::json!({
            "gets": counts.gets, "puts": counts.puts, "others": counts.others, "get_bytes": counts.get_bytes,
            "busy": counts.busy, "refused": counts.refused, "slowed": counts.slowed, "busy_max": counts.busy_max, "busy_mean": mean, "span_s": span,
        })
        .to_string()
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let Some(begun) = self.1 else { return };
        let (now, counts) = (Instant::now(), &mut self.0.0.lock().1);
        counts.busy = counts.busy.saturating_sub(1);
        counts.busy_seconds += (now - begun).as_secs_f64();
        counts.last = Some(now);
    }
}
