//! What strikes. Times after which it ends are drawn here; everything ends with the healing.
//!
//! Damage stays within what the quorums promise to survive: one bookie loses its disk, or has a bit flipped, in a seed; and only when no
//! entry is acknowledged by a single store.

use crate::plan::Fault;
use crate::sim::{Machine, Sim};
use geminga_common::clock::Clock;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::rng::Rng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Something that ends later.
#[derive(Clone, PartialEq, Eq, Debug)]
enum End {
    Bounce(String),
    Repair(String, String),
    RepairOneWay(String, String),
    Release(String, String),
    FastLink(String, String),
    FastDisk(usize),
    DiskFree(usize),
    Metadata,
}

pub(crate) struct Faults {
    sim: Arc<Sim>,
    rng: Rng,
    ends: Vec<(Duration, End)>,
    next: usize,
    down: Vec<bool>,
    /// The one bookie whose disk may lose something for good.
    victim: Option<usize>,
}

impl Faults {
    pub(crate) fn new(sim: Arc<Sim>) -> Self {
        let (rng, down) = (sim.rng(), vec![false; sim.plan.bookies]);
        Self { sim, rng, ends: Vec::new(), next: 0, down, victim: None }
    }

    fn host(&mut self, with_owners: bool) -> String {
        let (bookies, owners) = (self.sim.plan.bookies as u64, self.sim.plan.owners as u64);
        let dice = self.rng.below(bookies + if with_owners { owners } else { 0 });
        if dice < bookies { format!("b{dice}") } else { format!("o{}", dice - bookies) }
    }

    fn pair(&mut self) -> (String, String) {
        let one = self.host(true);
        loop {
            let other = self.host(true);
            if other != one {
                return (one, other);
            }
        }
    }

    fn until(&mut self, now: Duration, most: u64) -> Duration {
        now + Duration::from_millis(100 + self.rng.below(most))
    }

    /// What is due at this time.
    pub(crate) fn step(&mut self, turmoil: &mut turmoil::Sim<'_>) {
        let now = self.sim.clock.mono();
        while let Some(at) = self.ends.iter().position(|(due, _)| *due <= now) {
            let (_, end) = self.ends.swap_remove(at);
            self.end(turmoil, end);
        }
        let failed = |machines: &[Machine]| machines.iter().position(|machine| machine.failed);
        while let Some(number) = { failed(&self.sim.machines.lock()) } {
            self.sim.note(|| format!("b{number} fail-stops"));
            self.crash(turmoil, number);
        }
        while let Some((_, fault)) = self.sim.plan.faults.get(self.next).filter(|(at, _)| *at <= now) {
            self.next += 1;
            self.strike(turmoil, *fault, now);
        }
    }

    fn strike(&mut self, turmoil: &mut turmoil::Sim<'_>, fault: Fault, now: Duration) {
        let number = self.rng.below(self.sim.plan.bookies as u64) as usize;
        self.sim.check.lock().seen.faults += 1;
        self.sim.note(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Crash => self.crash(turmoil, number),
            Fault::PowerCut => (0..self.sim.plan.bookies).for_each(|number| self.crash(turmoil, number)),
            Fault::Wipe => self.wipe(turmoil, number),
            Fault::Flip => self.flip(number),
            Fault::Garble => {
                if self.may_damage(number) {
                    self.sim.machines.lock()[number].garbles = true;
                }
            }
            Fault::SyncFails => {
                let syncs = self.rng.below(3);
                self.sim.machines.lock()[number].disk.fail_sync_in(syncs);
            }
            Fault::DiskFull => {
                let (end, left) = (self.until(now, 4000), self.rng.below(100_000));
                self.sim.machines.lock()[number].disk.limit(Some(left));
                self.ends.push((end, End::DiskFree(number)));
            }
            Fault::SlowDisk => {
                self.sim.machines.lock()[number].slow = true;
                let end = self.until(now, 4000);
                self.ends.push((end, End::FastDisk(number)));
            }
            Fault::SlowBookie => {
                self.sim.machines.lock()[number].slow = true;
                self.ends.push((Duration::MAX, End::FastDisk(number)));
            }
            Fault::OwnerCrash => {
                let owner = format!("o{}", self.rng.below(self.sim.plan.owners as u64));
                if turmoil.is_host_running(owner.as_str()) {
                    turmoil.crash(owner.as_str());
                    let end = self.until(now, 3000);
                    self.ends.push((end, End::Bounce(owner)));
                }
            }
            Fault::Partition | Fault::OneWay | Fault::Hold | Fault::SlowLink => {
                self.strike_link(turmoil, fault, now)
            }
            Fault::Metadata => {
                if self.rng.below(2) == 0 {
                    self.sim.trouble.down.store(true, Ordering::Relaxed);
                }
                self.sim.trouble.unknown.store(self.sim.plan.meta_unknown + 300, Ordering::Relaxed);
                let end = self.until(now, 3000);
                self.ends.push((end, End::Metadata));
            }
        }
    }

    fn strike_link(&mut self, turmoil: &mut turmoil::Sim<'_>, fault: Fault, now: Duration) {
        let (one, other) = self.pair();
        let (lasts, end) = match fault {
            Fault::Partition => {
                turmoil.partition(one.as_str(), other.as_str());
                (12_000, End::Repair(one, other))
            }
            Fault::OneWay => {
                turmoil.partition_oneway(one.as_str(), other.as_str());
                (12_000, End::RepairOneWay(one, other))
            }
            Fault::Hold => {
                turmoil.hold(one.as_str(), other.as_str());
                (6000, End::Release(one, other))
            }
            _ => {
                let slow = Duration::from_millis(50 + self.rng.below(400));
                turmoil.set_link_latency(one.as_str(), other.as_str(), slow);
                (5000, End::FastLink(one, other))
            }
        };
        let due = self.until(now, lasts);
        self.ends.push((due, end));
    }

    fn end(&mut self, turmoil: &mut turmoil::Sim<'_>, end: End) {
        self.sim.note(|| format!("ends: {end:?}"));
        match end {
            End::Bounce(host) => {
                if let Some(number) = host.strip_prefix('b').and_then(|number| number.parse::<usize>().ok()) {
                    self.down[number] = false;
                }
                turmoil.bounce(host);
            }
            End::Repair(one, other) => turmoil.repair(one, other),
            End::RepairOneWay(one, other) => turmoil.repair_oneway(one, other),
            End::Release(one, other) => turmoil.release(one, other),
            End::FastLink(one, other) => {
                turmoil.set_link_latency(one, other, Duration::from_millis(1));
            }
            End::FastDisk(number) => self.sim.machines.lock()[number].slow = false,
            End::DiskFree(number) => self.sim.machines.lock()[number].disk.limit(None),
            End::Metadata => {
                self.sim.trouble.down.store(false, Ordering::Relaxed);
                self.sim.trouble.unknown.store(self.sim.plan.meta_unknown, Ordering::Relaxed);
            }
        }
    }

    /// Power fails on one bookie; it starts again some time later.
    fn crash(&mut self, turmoil: &mut turmoil::Sim<'_>, number: usize) {
        if std::mem::replace(&mut self.down[number], true) {
            return;
        }
        let host = format!("b{number}");
        turmoil.crash(host.as_str());
        let crash = match self.rng.below(4) {
            0 => Crash::Lost,
            1 => Crash::Kept,
            _ => Crash::Random(self.rng.next_u64()),
        };
        let mut machines = self.sim.machines.lock();
        let machine = &mut machines[number];
        machine.disk = machine.disk.crash(&crash);
        machine.failed = false;
        drop(machines);
        self.sim.note(|| format!("b{number} is down ({crash:?})"));
        let end = self.until(self.sim.clock.mono(), 4000);
        self.ends.push((end, End::Bounce(host)));
    }

    /// One bookie only may lose something for good in a seed.
    fn may_damage(&mut self, number: usize) -> bool {
        let spare = self.sim.plan.quorum.ack() > 1;
        spare && self.victim.replace(number).is_none()
    }

    fn wipe(&mut self, turmoil: &mut turmoil::Sim<'_>, number: usize) {
        if !self.may_damage(number) {
            return;
        }
        self.crash(turmoil, number);
        let mut machines = self.sim.machines.lock();
        machines[number].disks += 1;
        machines[number].disk = SimDisk::new();
        drop(machines);
        self.sim.note(|| format!("b{number} gets a blank disk"));
    }

    fn flip(&mut self, number: usize) {
        if !self.may_damage(number) {
            return;
        }
        let (dice, bit) = (self.rng.next_u64(), self.rng.below(8) as u8);
        let disk = self.sim.machines.lock()[number].disk.clone();
        let segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
        let files: Vec<_> =
            disk.files().into_iter().filter(|(path, len)| *len > 0 && segment(path)).collect();
        if let Some((path, len)) = files.get((dice % files.len().max(1) as u64) as usize) {
            disk.flip(path, (dice >> 16) % len, bit);
            self.sim.note(|| format!("b{number}: a bit of {} flips", path.display()));
        }
    }

    /// Everything ends, and nothing strikes any more.
    pub(crate) fn heal(&mut self, turmoil: &mut turmoil::Sim<'_>) {
        self.next = usize::MAX;
        self.sim.healed.store(true, Ordering::Relaxed);
        self.sim.machines.lock().iter().for_each(|machine| machine.disk.disarm());
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(turmoil, end);
        }
        self.sim.trouble.unknown.store(0, Ordering::Relaxed);
    }
}
