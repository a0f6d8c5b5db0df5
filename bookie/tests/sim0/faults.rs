//! What strikes: every fault of the plan, as long as the damage stays within what quorums promise to survive.

use crate::damage::Loss;
use crate::plan::{Fault, MS, SECOND, Us};
use crate::world::{Ev, World};
use geminga_bookie_client::registry::record::NodeState;

impl World {
    fn any_node(&mut self) -> usize {
        self.rng.below(self.nodes.len() as u64) as usize
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        let node = self.any_node();
        match fault {
            Fault::Crash if self.nodes[node].steps.is_some() => {
                self.inject("bookie crash");
                let torn = self.rng.below(2) == 0;
                self.crash(node, torn);
            }
            Fault::PowerCut => {
                self.inject("power cut of all bookies");
                for node in 0..self.nodes.len() {
                    if self.nodes[node].steps.is_some() {
                        let torn = self.rng.below(2) == 0;
                        self.crash(node, torn);
                    }
                }
            }
            Fault::Pause if self.nodes[node].steps.is_some() && !self.nodes[node].paused => {
                self.inject("bookie paused");
                self.pause_node(node);
            }
            Fault::Wipe if self.may_damage() => {
                self.inject("disk replaced");
                self.new_disk(node);
            }
            Fault::Flip if self.nodes[node].steps.is_some() && self.may_damage() => {
                self.inject("bit flipped");
                self.flip(node);
            }
            Fault::FileLost if self.nodes[node].steps.is_some() && self.may_damage() => {
                self.inject("file lost");
                self.lose_file(node);
            }
            Fault::SecondLoss => self.lose_another(node),
            Fault::SyncFails => {
                self.inject("sync fails");
                let n = self.rng.below(12);
                self.nodes[node].disk.fail_sync_in(n);
            }
            Fault::DiskFull => self.fill_disk(node),
            Fault::SlowDisk => {
                self.inject("slow disk");
                self.nodes[node].slow_until = self.now + SECOND + self.rng.below(10 * SECOND);
            }
            Fault::BrokerCrash => self.crash_broker(),
            Fault::BrokerPause => self.pause_broker(),
            Fault::Partition => self.cut_link(node),
            Fault::MetaCut => {
                self.inject("process cut off from metadata");
                let proc = self.rng.below(self.plan.brokers as u64 + 2) as usize;
                self.procs[proc].meta_cut = self.now + 500 * MS + self.rng.below(15 * SECOND);
            }
            Fault::MetaDown => {
                self.inject("metadata down");
                self.meta_down = self.now + 500 * MS + self.rng.below(8 * SECOND);
            }
            Fault::MetaRestore => self.restore_meta(),
            Fault::SlowVerdict => self.find_slow(node),
            Fault::Stray => {
                self.inject("stray recovery");
                self.check.stray_wanted += 1;
            }
            _ => {}
        }
    }

    /// Another disk is lost while a store is in DataLoss, and that one cannot be asked for a while: whoever lets go of it now loses what it
    /// alone has. The first bookie from the drawn one on strikes which leaves something on the damaged store alone; once metadata knows
    /// that store as damaged, else the drawn one.
    fn lose_another(&mut self, drawn: usize) {
        let all = self.nodes.len();
        let may: Vec<_> =
            (0..all).map(|n| (drawn + n) % all).filter_map(|n| self.may_lose_beside(n)).collect();
        let known = |loss: &&Loss| {
            let state = self.meta.state_of(&self.nodes[loss.hurt].me);
            loss.victim == drawn && state == Some(NodeState::DataLoss)
        };
        let hurts = may.iter().find(|loss| loss.leaves_alone).or(may.iter().find(known));
        let Some(&Loss { victim, hurt, leaves_alone }) = hurts else { return };
        if leaves_alone {
            self.inject("a damaged store left alone with what counts");
        }
        self.inject("disk replaced beside a damaged store");
        self.begin_second_loss();
        self.new_disk(victim);
        let until = self.now + SECOND + self.rng.below(6 * SECOND);
        for links in &mut self.links {
            links[hurt].requests_cut = links[hurt].requests_cut.max(until);
        }
        self.trace
            .note(self.now, "silent", hurt as u64, 0, || format!("nobody reaches b{hurt} until {until}"));
    }

    fn fill_disk(&mut self, node: usize) {
        self.inject("disk full");
        let room = self.rng.below(60_000);
        self.nodes[node].disk.limit(Some(room));
        let run = self.nodes[node].run;
        let delay = SECOND + self.rng.below(10 * SECOND);
        self.after(delay, Ev::Node(node, run, crate::node::NodeEvent::DiskFree));
    }

    fn pause_length(&mut self) -> Us {
        // Mostly short; now and then past every deadline there is.
        let longest = if self.rng.below(3) == 0 { 40 * SECOND } else { 4 * SECOND };
        100 * MS + self.rng.below(longest)
    }

    pub(crate) fn pause_node(&mut self, node: usize) {
        self.nodes[node].paused = true;
        let proc = self.store_proc(node);
        self.procs[proc].paused = true;
        self.trace.note(self.now, "pause", node as u64, 0, || format!("b{node} stands still"));
        let (length, run) = (self.pause_length(), self.nodes[node].run);
        self.after(length, Ev::Node(node, run, crate::node::NodeEvent::Resume));
        self.after(10 * SECOND, Ev::Node(node, run, crate::node::NodeEvent::Expire));
    }

    /// As an operator does it: everybody stops, the content goes into a fresh store, everybody starts.
    fn restore_meta(&mut self) {
        self.inject("metadata restored");
        self.trace.note(self.now, "restore", 0, 0, || "metadata is restored: revisions begin anew".into());
        self.forget_meta_calls();
        self.meta.restore();
        self.looking = 0;
        for proc in 0..=self.plan.brokers {
            self.kill(proc);
            let delay = 100 * MS + self.rng.below(3 * SECOND);
            self.after(delay, Ev::StartBroker(proc));
        }
    }

    fn crash_broker(&mut self) {
        let proc = self.rng.below(self.plan.brokers as u64) as usize;
        if !self.procs[proc].alive {
            return;
        }
        self.inject("broker crash");
        self.kill(proc);
        self.trace.note(self.now, "kill", proc as u64, 0, || format!("broker {proc} dies"));
        let delay = 100 * MS + self.rng.below(5 * SECOND);
        self.after(delay, Ev::StartBroker(proc));
    }

    fn pause_broker(&mut self) {
        let proc = self.rng.below(self.plan.brokers as u64) as usize;
        if !self.procs[proc].alive || self.procs[proc].paused {
            return;
        }
        self.inject("broker paused");
        self.procs[proc].paused = true;
        self.trace.note(self.now, "pause", proc as u64, 0, || format!("broker {proc} stands still"));
        let (length, life) = (self.pause_length(), self.procs[proc].life);
        self.after(length, Ev::Resume(proc, life));
    }

    fn cut_link(&mut self, node: usize) {
        self.inject("partition");
        let all = self.rng.below(4) == 0;
        let proc = self.rng.below(self.procs.len() as u64) as usize;
        let until = self.now + 300 * MS + self.rng.below(12 * SECOND);
        let direction = self.rng.below(3);
        for (number, links) in self.links.iter_mut().enumerate() {
            if number == proc || all {
                let link = &mut links[node];
                if direction != 1 {
                    link.requests_cut = until;
                }
                if direction != 0 {
                    link.answers_cut = until;
                }
            }
        }
        self.trace.note(self.now, "cut", proc as u64, node as u64, || {
            format!("process {proc} and b{node} are cut (direction {direction}, all: {all}) until {until}")
        });
    }

    /// No more faults: everything comes back, except possibly one bookie that stays hung.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.net = crate::plan::NetFaults::default();
        self.meta_down = 0;
        self.trace.note(self.now, "heal", 0, 0, || "no more faults".into());
        for proc in 0..self.procs.len() {
            self.procs[proc].meta_cut = 0;
            if self.procs[proc].paused {
                self.resume(proc);
            }
            for link in &mut self.links[proc] {
                (link.requests_cut, link.answers_cut) = (0, 0);
            }
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.limit(None);
            self.nodes[node].disk.disarm();
            self.nodes[node].slow_until = 0;
            let run = self.nodes[node].run;
            if self.nodes[node].paused {
                self.after(0, Ev::Node(node, run, crate::node::NodeEvent::Resume));
            }
        }
        let sound = self.nodes.iter().all(|n| !n.damaged);
        let node = self.any_node();
        // Nobody could tell that the store of an incarnation which never registered is gone (seed 673); and one that hangs beside
        // one that is lost, both in one ensemble, is beyond the budget (seed 31051).
        let known = self.registered().contains(&self.nodes[node].me) && !self.lost_is_placeable();
        if self.plan.hung_after && sound && known && self.check.undamaged() {
            self.inject("bookie hung for good");
            self.nodes[node].paused = true;
            let proc = self.store_proc(node);
            self.procs[proc].paused = true;
            self.nodes[node].run += 1;
            let run = self.nodes[node].run;
            self.after(10 * SECOND, Ev::Node(node, run, crate::node::NodeEvent::Expire));
            self.check.hung = Some(self.nodes[node].me.clone());
            self.trace.note(self.now, "hang", node as u64, 0, || format!("b{node} hangs for good"));
        }
    }
}
