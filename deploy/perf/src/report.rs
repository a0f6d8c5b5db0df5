//! What a run measured: histograms, the progress line of each second, and the table or JSON at its end.
//!
//! One lock guards one histogram; a run's hot side takes it once per entry, the progress line once per second.

use crate::args::CommonArgs;
use crate::stamp::WallClock;
use anyhow::{Result, bail};
use geminga_common::clock::Mono;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::future::Future;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Longest latency told apart, in microseconds; anything beyond counts as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Shared counters of a run.
#[derive(Debug)]
pub(crate) struct Recorder {
    state: Mutex<State>,
    /// Told when `wanted` messages have been counted.
    reached: Notify,
}

#[derive(Debug)]
struct State {
    interval: Histogram<u64>,
    whole: Histogram<u64>,
    messages: u64,
    bytes: u64,
    failed: u64,
    interval_messages: u64,
    interval_bytes: u64,
    first_failure: Option<String>,
    restarted_at: Mono,
    first_at: Option<Mono>,
    last_at: Mono,
    wanted: u64,
}

/// One second's figures.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Messages of the interval.
    pub(crate) messages: u64,
    bytes: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// The figures of a whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// `produce` or `consume`.
    pub(crate) mode: &'static str,
    url: String,
    /// Measured time in seconds, warm-up excluded.
    seconds: f64,
    /// Messages acknowledged or received.
    pub(crate) messages: u64,
    /// Messages refused.
    pub(crate) failed: u64,
    bytes: u64,
    messages_per_second: f64,
    megabytes_per_second: f64,
    /// From the intended send time; produce: to the receipt, consume: to arrival.
    latency_ms: Latency,
    /// The first refusal, word for word.
    pub(crate) first_failure: Option<String>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p75: f64,
    p95: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    #[serde(rename = "p99.99")]
    p9999: f64,
    max: f64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
        .expect("the bounds are constants that the histogram accepts")
}

fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                interval: histogram(),
                whole: histogram(),
                messages: 0,
                bytes: 0,
                failed: 0,
                interval_messages: 0,
                interval_bytes: 0,
                first_failure: None,
                restarted_at: Mono::ZERO,
                first_at: None,
                last_at: Mono::ZERO,
                wanted: u64::MAX,
            }),
            reached: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Counts one entry: its messages' latencies in microseconds, their payload bytes, and when it was settled.
    pub(crate) fn entry(&self, latencies_us: impl Iterator<Item = u64>, bytes: u64, at: Mono) {
        let mut state = self.lock();
        state.first_at.get_or_insert(at);
        state.last_at = at;
        let mut messages = 0;
        for latency in latencies_us {
            state.interval.saturating_record(latency.max(1));
            messages += 1;
        }
        state.interval_messages += messages;
        state.interval_bytes += bytes;
        if state.messages + state.interval_messages >= state.wanted {
            self.reached.notify_one();
        }
    }

    /// Waits until `messages` have been counted since the last restart.
    pub(crate) async fn reached(&self, messages: u64) {
        self.lock().wanted = messages;
        while self.messages() < messages {
            self.reached.notified().await;
        }
    }

    /// Time from the first entry to the last one.
    pub(crate) fn span(&self) -> Duration {
        let state = self.lock();
        state.first_at.map_or(Duration::ZERO, |first| state.last_at.saturating_sub(first))
    }

    /// Time from the last restart to the last entry.
    fn since_restart(&self) -> Duration {
        let state = self.lock();
        state.last_at.saturating_sub(state.restarted_at)
    }

    /// Counts refused messages.
    pub(crate) fn failed(&self, messages: u64, why: &str) {
        let mut state = self.lock();
        state.failed += messages;
        state.first_failure.get_or_insert_with(|| why.to_owned());
    }

    /// Measuring starts now, without a warm-up: what was counted already stays.
    pub(crate) fn begin(&self, now: Mono) {
        let mut state = self.lock();
        state.restarted_at = if state.last_at.is_zero() { now } else { now.min(state.last_at) };
    }

    /// Forgets everything but failures: the warm-up is over.
    pub(crate) fn restart(&self, now: Mono) {
        let mut state = self.lock();
        state.restarted_at = now;
        state.first_at = None;
        state.interval.reset();
        state.whole.reset();
        (state.messages, state.bytes, state.interval_messages, state.interval_bytes) = (0, 0, 0, 0);
    }

    /// Messages counted since the last restart.
    pub(crate) fn messages(&self) -> u64 {
        let state = self.lock();
        state.messages + state.interval_messages
    }

    /// Ends an interval and answers its figures.
    pub(crate) fn interval(&self) -> Progress {
        let state = &mut *self.lock();
        let progress = Progress {
            messages: state.interval_messages,
            bytes: state.interval_bytes,
            p50_ms: quantile_ms(&state.interval, 0.5),
            p99_ms: quantile_ms(&state.interval, 0.99),
            max_ms: state.interval.max() as f64 / 1000.0,
        };
        state.whole.add(&state.interval).expect("both histograms have the same bounds");
        state.messages += state.interval_messages;
        state.bytes += state.interval_bytes;
        (state.interval_messages, state.interval_bytes) = (0, 0);
        state.interval.reset();
        progress
    }

    /// The whole run's figures, over `measured` time.
    pub(crate) fn report(&self, mode: &'static str, url: &str, measured: Duration) -> Report {
        self.interval();
        let state = self.lock();
        let seconds = measured.as_secs_f64().max(1e-9);
        let whole = &state.whole;
        Report {
            mode,
            url: url.to_owned(),
            seconds: measured.as_secs_f64(),
            messages: state.messages,
            failed: state.failed,
            bytes: state.bytes,
            messages_per_second: state.messages as f64 / seconds,
            megabytes_per_second: state.bytes as f64 / seconds / 1e6,
            latency_ms: Latency {
                mean: whole.mean() / 1000.0,
                p50: quantile_ms(whole, 0.5),
                p75: quantile_ms(whole, 0.75),
                p95: quantile_ms(whole, 0.95),
                p99: quantile_ms(whole, 0.99),
                p999: quantile_ms(whole, 0.999),
                p9999: quantile_ms(whole, 0.9999),
                max: whole.max() as f64 / 1000.0,
            },
            first_failure: state.first_failure.clone(),
        }
    }
}

impl Progress {
    /// Prints the interval on standard error.
    pub(crate) fn print(&self, seconds: f64, note: &str) -> Result<()> {
        let per_second = self.messages as f64 / seconds;
        let megabytes = self.bytes as f64 / seconds / 1e6;
        writeln!(
            std::io::stderr(),
            "{per_second:>10.0} msg/s {megabytes:>8.2} MB/s  p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms{note}",
            self.p50_ms,
            self.p99_ms,
            self.max_ms
        )?;
        Ok(())
    }
}

impl Report {
    /// Prints the report on standard output.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        let latency = &self.latency_ms;
        writeln!(out, "{:<12}{} at {}", "run", self.mode, self.url)?;
        writeln!(
            out,
            "{:<12}{} in {:.2} s, {} failed",
            "messages", self.messages, self.seconds, self.failed
        )?;
        writeln!(
            out,
            "{:<12}{:.0} msg/s, {:.2} MB/s",
            "rate", self.messages_per_second, self.megabytes_per_second
        )?;
        writeln!(
            out,
            "{:<12}mean {:.2}  p50 {:.2}  p75 {:.2}  p95 {:.2}  p99 {:.2}  p99.9 {:.2}  p99.99 {:.2}  max {:.2}",
            "latency ms",
            latency.mean,
            latency.p50,
            latency.p75,
            latency.p95,
            latency.p99,
            latency.p999,
            latency.p9999,
            latency.max
        )?;
        if let Some(why) = &self.first_failure {
            writeln!(out, "{:<12}{why}", "failure")?;
        }
        Ok(())
    }
}

/// Watches over a run: warm-up, progress lines, its end.
pub(crate) struct Watch<'a> {
    /// Options of the run.
    pub(crate) common: &'a CommonArgs,
    /// Its counters.
    pub(crate) recorder: &'a Recorder,
    /// Its clock.
    pub(crate) clock: &'a WallClock,
}

impl Watch<'_> {
    /// Returns when `enough` does, when the asked time is over, or when the user interrupts; `begin_measuring` is called
    /// when the warm-up is over.
    pub(crate) async fn run(
        &self,
        failures: &mut mpsc::Receiver<String>,
        begin_measuring: impl FnOnce(),
        enough: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut enough = std::pin::pin!(enough);
        let mut begin_measuring = Some(begin_measuring);
        let warmup_over = tokio::time::sleep(self.common.warmup());
        let mut warmup_over = std::pin::pin!(warmup_over);
        let whole = self.common.duration().map(|duration| self.common.warmup() + duration);
        let time_over = async {
            match whole {
                Some(whole) => tokio::time::sleep(whole).await,
                None => std::future::pending().await,
            }
        };
        let mut time_over = std::pin::pin!(time_over);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        if self.common.warmup().is_zero() {
            begin_measuring = None;
            // Whoever was quick has received already: that counts.
            self.recorder.begin(self.clock.mono());
        }
        loop {
            tokio::select! {
                biased;
                Some(why) = failures.recv() => bail!(why),
                () = &mut warmup_over, if begin_measuring.is_some() => {
                    self.recorder.restart(self.clock.mono());
                    if let Some(begin) = begin_measuring.take() {
                        begin();
                    }
                }
                () = &mut enough, if begin_measuring.is_none() => return Ok(()),
                () = &mut time_over => return Ok(()),
                _ = &mut interrupt => return Ok(()),
                _ = second.tick() => {
                    let note = if begin_measuring.is_some() { "  (warm-up)" } else { "" };
                    self.recorder.interval().print(1.0, note)?;
                }
            }
        }
    }

    /// Time from the end of the warm-up to the last entry.
    pub(crate) fn measured(&self) -> Duration {
        self.recorder.since_restart()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_holds_all_intervals_and_no_warm_up() {
        let recorder = Recorder::new();
        recorder.entry([9_000_000].into_iter(), 1, Mono::ZERO);
        recorder.restart(Duration::from_secs(2));
        recorder.entry([1000, 3000].into_iter(), 20, Mono::ZERO);
        assert_eq!(recorder.interval().messages, 2);
        recorder.entry([2000].into_iter(), 10, Duration::from_secs(5));
        assert_eq!(recorder.messages(), 3);
        assert_eq!(recorder.since_restart(), Duration::from_secs(3));
        let report = recorder.report("produce", "pulsar://x", recorder.since_restart());
        assert_eq!((report.messages, report.bytes, report.failed), (3, 30, 0));
        assert!((report.latency_ms.max - 3.0).abs() < 0.01, "{:?}", report.latency_ms);
        assert!((report.latency_ms.p50 - 2.0).abs() < 0.01, "{:?}", report.latency_ms);
        assert!((report.messages_per_second - 1.0).abs() < 1e-9);
    }

    #[test]
    fn failures_are_counted_and_the_first_is_kept() {
        let recorder = Recorder::new();
        recorder.failed(2, "first");
        recorder.failed(1, "second");
        let report = recorder.report("produce", "pulsar://x", Duration::from_secs(1));
        assert_eq!((report.failed, report.first_failure.as_deref()), (3, Some("first")));
    }
}
