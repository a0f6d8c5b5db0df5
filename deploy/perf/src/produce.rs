//! The publishing run: opens the producers, drives them by the schedule from one thread, reports.
//!
//! The pacing thread parks to the microsecond between two send times, which a timer wheel of milliseconds cannot; it only
//! fills output buffers, so it never waits for the network.

use crate::args::ProduceArgs;
use crate::client::{Pool, Producer, ProducerOptions, Waker, expand_partitions};
use crate::report::{Recorder, Watch};
use crate::schedule::{Agenda, Pace};
use crate::stamp::{Payloads, WallClock};
use anyhow::{Context as _, Result, bail};
use geminga_common::clock::{Mono, SystemClock};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Messages taken from one producer before others get their turn.
const TURN: usize = 256;
/// Longest nap of the pacing thread, so that it notices the end.
const NAP: Duration = Duration::from_millis(20);
/// Longest wait for the last receipts.
const DRAIN: Duration = Duration::from_secs(30);

/// What the run and its pacing thread share.
struct Control {
    stop: AtomicBool,
    sent: AtomicU64,
    /// Messages after which the thread ends.
    limit: AtomicU64,
    waker: Arc<Waker>,
}

struct Pacer {
    producers: Vec<Producer>,
    payloads: Payloads,
    clock: WallClock,
    control: Arc<Control>,
    agenda: Agenda,
    turn: usize,
}

/// Runs `perf produce`.
pub(crate) async fn run(args: ProduceArgs) -> Result<()> {
    args.validate()?;
    let clock = WallClock::calibrate(SystemClock::shared());
    let tasks = TaskGroup::new();
    let recorder = Arc::new(Recorder::new());
    let (failure, mut failures) = mpsc::channel(1);
    let mut pool = Pool::new(&args.common.url, args.common.connections, tasks.clone(), failure)?;
    let waker = Arc::new(Waker::default());
    let producers = open_producers(&args, &mut pool, &recorder, &waker, &clock).await?;
    let limit = match args.common.messages() {
        Some(n) if args.common.warmup == 0.0 => n,
        _ => u64::MAX,
    };
    let control = Arc::new(Control {
        stop: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        limit: AtomicU64::new(limit),
        waker,
    });
    let mut done = start_pacer(&args, producers, &clock, &control, &tasks);
    let begin_measuring = || {
        if let Some(n) = args.common.messages() {
            let until = control.sent.load(Ordering::Acquire).saturating_add(n);
            control.limit.store(until, Ordering::Release);
        }
    };
    let watch = Watch { common: &args.common, recorder: &recorder, clock: &clock };
    let mut returned = None;
    let outcome = watch
        .run(&mut failures, begin_measuring, async {
            returned = (&mut done).await.ok();
        })
        .await;
    control.stop.store(true, Ordering::Release);
    control.waker.wake();
    let producers = match returned {
        Some(producers) => producers,
        None => done.await.context("the pacing thread ended early")?,
    };
    let mut outcome = outcome.and(producers);
    if let Ok(producers) = &outcome
        && let Err(why) = drain(producers, &mut failures).await
    {
        outcome = Err(why);
    }
    let report = recorder.report("produce", &args.common.url, watch.measured());
    report.print(args.common.json)?;
    let producers = outcome?;
    for producer in &producers {
        producer.close().await?;
    }
    if report.failed > 0 {
        bail!("{} messages failed: {}", report.failed, report.first_failure.unwrap_or_default());
    }
    Ok(())
}

async fn open_producers(
    args: &ProduceArgs,
    pool: &mut Pool,
    recorder: &Arc<Recorder>,
    waker: &Arc<Waker>,
    clock: &WallClock,
) -> Result<Vec<Producer>> {
    let options = ProducerOptions {
        batching: !args.no_batch,
        batch_messages: args.batch_messages,
        batch_bytes: args.batch_bytes,
        batch_delay: Duration::from_secs_f64(args.batch_delay_ms / 1000.0),
        max_pending: args.max_pending,
        size: args.size,
    };
    let mut producers = Vec::new();
    for topic in args.common.topic_names() {
        for partition in expand_partitions(pool, &topic).await? {
            for _ in 0..args.producers {
                let index = producers.len();
                let (recorder, waker) = (recorder.clone(), waker.clone());
                let producer =
                    Producer::open(pool, &partition, index, options, recorder, waker, clock.clone());
                producers.push(producer.await?);
            }
        }
    }
    Ok(producers)
}

/// Starts the pacing thread; it hands the producers back when it ends.
fn start_pacer(
    args: &ProduceArgs,
    mut producers: Vec<Producer>,
    clock: &WallClock,
    control: &Arc<Control>,
    tasks: &TaskGroup,
) -> oneshot::Receiver<Result<Vec<Producer>>> {
    let start = clock.mono();
    let mut agenda = Agenda::default();
    let n = producers.len();
    for (index, producer) in producers.iter_mut().enumerate() {
        producer.start(Pace::new(start, args.rate, index, n));
        agenda.add(producer.due(start), index);
    }
    // A turn never overruns the window by more than the window itself.
    let turn = TURN.min(args.max_pending);
    let payloads = Payloads::new(args.size, &mut Rng::seeded(1));
    let pacer = Pacer { producers, payloads, clock: clock.clone(), control: control.clone(), agenda, turn };
    let (done, wait) = oneshot::channel();
    tasks.thread("perf-pacer", OnFailure::StopProcess, move || {
        // The run may have ended with an error and no longer care.
        let _ = done.send(pacer.run());
    });
    wait
}

impl Pacer {
    fn run(mut self) -> Result<Vec<Producer>> {
        self.control.waker.attach();
        let mut due = Vec::with_capacity(self.producers.len());
        while !self.control.stop.load(Ordering::Acquire) && !self.limit_reached() {
            let now = self.clock.mono();
            for index in self.control.waker.take() {
                self.agenda.add(now, index);
            }
            // Taken first, stepped then: a producer that is due again at once must not keep the others or the end waiting.
            due.extend(std::iter::from_fn(|| self.agenda.pop_due(now)));
            for index in due.drain(..) {
                if let Some(next) = self.step(index, now)? {
                    self.agenda.add(next, index);
                }
            }
            let now = self.clock.mono();
            let nap = self.agenda.next_at().map_or(NAP, |at| at.saturating_sub(now).min(NAP));
            if !nap.is_zero() {
                std::thread::park_timeout(nap);
            }
        }
        let publish_ms = self.publish_time_ms(self.clock.mono());
        for producer in &mut self.producers {
            producer.send_batch(publish_ms)?;
            producer.flush();
        }
        Ok(self.producers)
    }

    fn limit_reached(&self) -> bool {
        self.control.sent.load(Ordering::Relaxed) >= self.control.limit.load(Ordering::Acquire)
    }

    fn publish_time_ms(&self, at: Mono) -> u64 {
        self.clock.wall_us(at) / 1000
    }

    /// Gives one producer its turn; answers when it wants the next, or none when its window is full.
    fn step(&mut self, index: usize, now: Mono) -> Result<Option<Mono>> {
        let publish_ms = self.publish_time_ms(now);
        let mut next = Some(now);
        for _ in 0..self.turn {
            let producer = &mut self.producers[index];
            let due = producer.due(now);
            if due > now {
                next = Some(due);
                break;
            }
            if !producer.has_room() {
                next = None;
                break;
            }
            if self.limit_reached() {
                break;
            }
            let payload = self.payloads.next(self.clock.wall_us(due));
            self.producers[index].push(payload, now, publish_ms)?;
            self.control.sent.fetch_add(1, Ordering::Release);
        }
        let producer = &mut self.producers[index];
        match producer.batch_deadline() {
            // A full window opens only by receipts, so what waits in the batch must leave.
            Some(at) if at <= now || next.is_none() => producer.send_batch(publish_ms)?,
            Some(at) => next = next.map(|next| next.min(at)),
            None => {}
        }
        producer.flush();
        Ok(next)
    }
}

/// Waits for the receipts of what was sent.
async fn drain(producers: &[Producer], failures: &mut mpsc::Receiver<String>) -> Result<()> {
    let all = async {
        let mut look = tokio::time::interval(Duration::from_millis(2));
        while producers.iter().any(|producer| producer.outstanding() > 0) {
            look.tick().await;
        }
    };
    tokio::select! {
        waited = tokio::time::timeout(DRAIN, all) => {
            let sent: u64 = producers.iter().map(Producer::next).sum();
            let missing: usize = producers.iter().map(Producer::outstanding).sum();
            waited.with_context(|| format!("{missing} of {sent} messages had no receipt 30 s after the end"))
        }
        Some(why) = failures.recv() => bail!(why),
    }
}
