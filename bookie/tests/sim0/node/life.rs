//! A bookie's starts and ends, and what befalls its disk.

use super::{NodeEvent, config, formatted};
use crate::plan::{Fault, MS, SECOND, Us};
use crate::world::{Ev, World};
use geminga_bookie::node::registration::Start;
use geminga_bookie::steps::Steps;
use geminga_bookie::{Health, OpenError};
use geminga_common::disk::Disk;
use geminga_common::disk::sim::{Crash, SimDisk};
use std::path::Path;
use std::sync::Arc;

impl World {
    /// The process is gone, and nothing that it was about to do is done.
    fn stop_store(&mut self, node: usize) {
        self.nodes[node].forget();
        let proc = self.store_proc(node);
        self.kill(proc);
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        self.stop_store(node);
        let n = &mut self.nodes[node];
        let disk: Arc<dyn Disk> = Arc::new(n.disk.clone());
        let steps = match Steps::open(n.config.clone(), disk, n.clock.clone()) {
            Ok(steps) => steps,
            Err(OpenError::Disk(error)) => {
                self.trace
                    .note(self.now, "start", node as u64, 1, || format!("b{node} does not start: {error}"));
                return self.crash(node, false);
            }
            Err(error) => return self.check.broken(format!("b{node} does not open: {error}")),
        };
        let (health, before) = (steps.health(), n.me.clone());
        if health == Health::Serving || n.damaged {
            n.me.incarnation = steps.incarnation();
        }
        if health == Health::Serving && n.damaged && n.me != before {
            // What it was is lost; what it is now is sound.
            n.damaged = false;
            self.check.promoted(&before, &n.me);
        }
        let (me, damaged) = (n.me.clone(), n.damaged);
        self.trace.note(self.now, "start", node as u64, 0, || format!("{me} starts: {health:?}"));
        if health != Health::Serving && !damaged {
            return self.check.broken(format!("S9: a crash alone made {me} {health:?}"));
        }
        if damaged {
            self.check.lost(&me);
        } else {
            self.check.restarted(&me, &steps);
        }
        self.nodes[node].steps = Some(steps);
        let proc = self.store_proc(node);
        self.procs[proc].alive = true;
        let first = 300 * MS + self.rng.below(2 * SECOND);
        self.node_soon(node, first, NodeEvent::Flush);
        self.node_soon(node, first, NodeEvent::Watermark);
        let delay = 5 * MS + self.rng.below(300 * MS);
        self.node_soon(node, delay, NodeEvent::Register);
        if damaged {
            self.second_losses(300 * MS);
            let run = self.nodes[node].run;
            let delay = 3 * SECOND + self.rng.below(10 * SECOND);
            self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
        }
    }

    fn data_loss(&self, node: usize) -> bool {
        self.nodes[node].steps.as_ref().is_some_and(|steps| steps.health() == Health::DataLoss)
    }

    pub(super) fn register(&mut self, node: usize) {
        if self.now < self.meta_down {
            return self.node_soon(node, 500 * MS, NodeEvent::Register);
        }
        let data_loss = self.data_loss(node);
        let n = &self.nodes[node];
        let Some(steps) = &n.steps else { return };
        match self.meta.register(&n.me, steps.boot(), data_loss) {
            Start::Write(_) => {
                self.meta.live(&n.me, true);
                if data_loss {
                    self.node_soon(node, 500 * MS, NodeEvent::LetGo);
                    self.second_losses(SECOND);
                }
            }
            Start::Released => self.promote(node),
            Start::Refused => {
                let text = format!("I7: {} comes back, sound, under what was let go of", n.me);
                self.check.broken(text);
            }
        }
    }

    /// Other disks may be lost in the time to come.
    fn second_losses(&mut self, within: Us) {
        for _ in 0..self.plan.second_losses {
            let delay = self.rng.below(within);
            self.after(delay, Ev::Fault(Fault::SecondLoss));
        }
    }

    pub(super) fn look_whether_let_go(&mut self, node: usize) {
        if self.now >= self.meta_down && self.meta.is_let_go(&self.nodes[node].me) {
            return self.promote(node);
        }
        let delay = 500 * MS + self.rng.below(2 * SECOND);
        self.node_soon(node, delay, NodeEvent::LetGo);
    }

    /// Nothing counts on what the store was: it becomes another one, with what it has. Now and then power fails meanwhile.
    fn promote(&mut self, node: usize) {
        self.stop_store(node);
        let torn = self.rng.below(3) == 0;
        let (dice, variant) = (self.rng.next_u64(), self.rng.next_u64());
        let n = &mut self.nodes[node];
        n.disks += 1;
        n.config = config(n.number, n.disks);
        let (disk, before) = (n.disk.clone(), n.disk.fork());
        if torn {
            disk.record();
        }
        match geminga_bookie::promote(n.config.clone(), Arc::new(disk.clone()), n.clock.clone()) {
            Ok(_) | Err(OpenError::Disk(_) | OpenError::NotLost) => {}
            Err(error) => return self.check.broken(format!("b{node} is not promoted: {error}")),
        }
        if torn {
            n.disk = somewhere_in(&disk, &before, dice, variant);
        }
        self.check.seen.promotions += 1;
        let me = n.me.clone();
        self.trace.note(self.now, "promote", node as u64, 0, || {
            format!("{me} was let go of and becomes another store (torn: {torn})")
        });
        let delay = 100 * MS + self.rng.below(SECOND);
        self.node_soon(node, delay, NodeEvent::Start);
    }

    /// The operator has a blank disk. A store that says it lost data may be let go of, if that is how this operator does it.
    pub(super) fn replace_disk(&mut self, node: usize) {
        if !self.nodes[node].damaged {
            return;
        }
        if self.plan.let_go && self.nodes[node].steps.is_none() {
            let run = self.nodes[node].run;
            return self.after(2 * SECOND, Ev::Node(node, run, NodeEvent::NewDisk));
        }
        if !(self.plan.let_go && self.data_loss(node)) {
            self.new_disk(node);
        }
    }

    /// Power fails on one bookie, now or in the middle of its next step on the disk.
    pub(crate) fn crash(&mut self, node: usize, torn: bool) {
        let (dice, variant) = (self.rng.next_u64(), self.rng.next_u64());
        let n = &mut self.nodes[node];
        let mut steps = n.steps.take();
        n.disk = match (&mut steps, torn) {
            (Some(steps), true) => crash_amid(steps, &n.disk, dice, variant),
            _ => n.disk.crash(&match dice % 4 {
                0 => Crash::Lost,
                1 => Crash::Kept,
                _ => Crash::Random(variant),
            }),
        };
        drop(steps);
        self.stop_store(node);
        self.trace.note(self.now, "crash", node as u64, 0, || format!("b{node} is down (torn: {torn})"));
        let delay = 200 * MS + self.rng.below(if self.healed { SECOND } else { 8 * SECOND });
        self.node_soon(node, delay, NodeEvent::Start);
        self.node_soon(node, 10 * SECOND, NodeEvent::Expire);
    }

    /// A blank disk under the old name: another incarnation.
    pub(crate) fn new_disk(&mut self, node: usize) {
        self.stop_store(node);
        let n = &mut self.nodes[node];
        n.disks += 1;
        n.config = config(n.number, n.disks);
        let (disk, incarnation) = formatted(&n.config, &n.clock);
        self.check.lost(&n.me);
        n.disk = disk;
        n.me.incarnation = incarnation;
        n.damaged = false;
        let me = n.me.clone();
        self.trace.note(self.now, "wipe", node as u64, 0, || format!("{me} starts with a blank disk"));
        self.meta.live(&me, false);
        let delay = 200 * MS + self.rng.below(3 * SECOND);
        self.node_soon(node, delay, NodeEvent::Start);
    }

    /// A bit of a file flips while the store runs; the operator replaces the disk some time later.
    pub(crate) fn flip(&mut self, node: usize) {
        let (dice, bit) = (self.rng.next_u64(), self.rng.below(8) as u8);
        let n = &mut self.nodes[node];
        let wanted = |path: &Path| path.extension().is_some_and(|e| e == "jnl" || e == "seg");
        let files: Vec<_> = n.disk.files().into_iter().filter(|(p, len)| *len > 0 && wanted(p)).collect();
        if files.is_empty() {
            return;
        }
        let (path, len) = &files[(dice % files.len() as u64) as usize];
        let byte = (dice >> 16) % len;
        n.disk.flip(path, byte, bit);
        n.damaged = true;
        let me = n.me.clone();
        self.check.damaged(&me);
        self.trace.note(self.now, "flip", node as u64, byte, || {
            format!("{me}: bit flips at {byte} of {}", path.display())
        });
        let run = self.nodes[node].run;
        let delay = 2 * SECOND + self.rng.below(15 * SECOND);
        self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
    }

    /// A store goes down and some file of it is lost.
    pub(crate) fn lose_file(&mut self, node: usize) {
        self.crash(node, false);
        if self.plan.second_losses > 0 {
            // It was stopped in order: nobody places on it any more when it comes back damaged.
            self.meta.live(&self.nodes[node].me, false);
        }
        let dice = self.rng.next_u64();
        let n = &mut self.nodes[node];
        let within = |path: &Path| match dice % 5 {
            0 => path.ends_with("b/IDENTITY"),
            1 => path.ends_with("journal/IDENTITY"),
            2 => path.ends_with("manifest.redb"),
            3 => path.extension().is_some_and(|e| e == "seg"),
            _ => path.parent().is_some_and(|dir| dir.ends_with("journal")),
        };
        for (path, _) in n.disk.files().iter().filter(|(path, _)| within(path)) {
            n.disk.remove(path).expect("it was listed");
            n.disk.sync_dir(path.parent().expect("it has one")).expect("no fault is armed");
        }
        n.damaged = true;
        let me = n.me.clone();
        self.check.damaged(&me);
        self.trace
            .note(self.now, "lose", node as u64, dice % 5, || format!("{me} loses files ({})", dice % 5));
        let run = self.nodes[node].run;
        let delay = 8 * SECOND + self.rng.below(15 * SECOND);
        self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
    }
}

/// The disk after power failed somewhere within the store's next step.
fn crash_amid(steps: &mut Steps, disk: &SimDisk, dice: u64, variant: u64) -> SimDisk {
    let before = disk.fork();
    disk.record();
    match dice % 4 {
        0 => drop(steps.flush()),
        1 => steps.prepare(),
        _ if steps.outstanding() > 0 => steps.write((dice >> 8) as usize % steps.outstanding()),
        _ => steps.write_all(),
    }
    somewhere_in(disk, &before, dice, variant)
}

/// What power failing somewhere in what was recorded leaves.
fn somewhere_in(disk: &SimDisk, before: &SimDisk, dice: u64, variant: u64) -> SimDisk {
    let mut history = disk.history(before);
    let stop = (dice >> 16) as usize % (disk.position() + 1);
    while history.position() < stop && history.step() {}
    let all = history.crashes(2, variant);
    history.disk(&all[(variant >> 8) as usize % all.len()])
}
