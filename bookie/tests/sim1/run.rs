//! One seed: load and faults, healing, load again, everything read back.

use crate::check::Seen;
use crate::faults::Faults;
use crate::plan::Plan;
use crate::sim::Sim;
use crate::{judge, node, owner, reader, repair};
use geminga_common::clock::Clock;
use geminga_common::rng::Rng;
use mad_turmoil::time::SimClocksGuard;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Hosts take turns of this length.
const TICK: Duration = Duration::from_millis(2);
/// Load goes on for so long after the healing, and something has to come of it.
const AFTER: Duration = Duration::from_secs(15);
/// A seed that is not over by then hangs.
const END: Duration = Duration::from_secs(600);

/// What a seed came to.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    /// Simulated time.
    pub(crate) ms: u64,
    pub(crate) seen: Seen,
    pub(crate) broken: Option<String>,
}

impl Report {
    /// One line, for the parent.
    pub(crate) fn line(&self) -> String {
        let Self { seed, hash, events, ms, seen, broken } = self;
        let mut seen = *seen;
        let seen: Vec<String> =
            seen.fields().iter().map(|(name, number)| format!("{name}={number}")).collect();
        let broken = broken.as_deref().unwrap_or("nothing");
        format!(
            "sim1 seed={seed} hash={hash:016x} events={events} ms={ms} {} broken={broken}",
            seen.join(" ")
        )
    }
}

/// Runs a seed in this process, which runs no other: what the C library gives as random, and its clocks, repeat themselves.
#[allow(clippy::disallowed_methods)] // a thread of its own, so that no hash map has drawn its keys yet
pub(crate) fn alone(seed: u64, told: bool) -> Report {
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let run = move || {
        let _clocks = SimClocksGuard::init();
        #[cfg(feature = "museum")]
        let _back = crate::museum::asked();
        seeded(seed, told)
    };
    std::thread::spawn(run).join().expect("a seed does not panic")
}

fn seeded(seed: u64, told: bool) -> Report {
    let plan = Plan::new(&mut Rng::seeded(seed));
    if told {
        println!("{plan:#?}");
    }
    let sim = Sim::new(seed, plan, told);
    let mut turmoil = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(END * 2)
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(sim.plan.latency_max)
        .tcp_capacity(4096)
        .build();
    hosts(&mut turmoil, &sim);
    let mut faults = Faults::new(sim.clone());
    let (mut acked, mut judged) = (None, false);
    let mut step = |turmoil: &mut turmoil::Sim<'_>| {
        if let Err(error) = turmoil.step() {
            sim.check.lock().broken(format!("a host ended: {error}"));
        }
        sim.clock.advance(TICK);
        sim.metadata().tick();
        let now = sim.clock.mono();
        if now < sim.plan.heal {
            faults.step(turmoil);
        } else if acked.is_none() {
            faults.heal(turmoil);
            sim.note(|| "healed".to_owned());
            acked = Some(sim.check.lock().seen.acked);
        } else {
            // A store that failed before the healing starts again after it.
            faults.step(turmoil);
        }
        if now >= sim.plan.heal + AFTER && !judged {
            judged = true;
            sim.ending.store(true, Ordering::Relaxed);
            let mut check = sim.check.lock();
            if Some(check.seen.acked) == acked {
                check.broken(format!("liveness: nothing was acknowledged for {AFTER:?} after the healing"));
            }
            let sim = sim.clone();
            turmoil.client("judge", async move { judge::judge(sim).await });
        }
        if now > END {
            sim.check.lock().broken("liveness: the end is not reached".to_owned());
        }
        judged
    };
    loop {
        let judged = step(&mut turmoil);
        let over = sim.check.lock().is_broken().is_some() || (judged && !turmoil.is_host_running("judge"));
        if over {
            break;
        }
    }
    let (hash, events) = sim.story();
    let ms = sim.clock.mono().as_millis() as u64;
    let check = sim.check.lock();
    Report { seed, hash, events, ms, seen: check.seen, broken: check.is_broken().cloned() }
}

fn hosts(turmoil: &mut turmoil::Sim<'_>, sim: &Arc<Sim>) {
    for number in 0..sim.plan.bookies {
        let sim = sim.clone();
        turmoil.host(format!("b{number}"), move || node::node(sim.clone(), number));
    }
    for number in 0..sim.plan.owners {
        let sim = sim.clone();
        turmoil.host(format!("o{number}"), move || owner::owner(sim.clone(), number));
    }
    let (one, other) = (sim.clone(), sim.clone());
    turmoil.host("reader", move || reader::reader(one.clone()));
    turmoil.host("repair", move || repair::repairer(other.clone()));
}
