//! What a bookie's threads do, as events: journal batches, flushes, files, looking at metadata.

use super::{Flight, NodeEvent};
use crate::calls::Req;
use crate::plan::{MS, SECOND, Us};
use crate::world::{Ev, World};
use geminga_bookie::Health;
use geminga_common::ids::LedgerId;

impl World {
    pub(super) fn node_soon(&mut self, node: usize, delay: Us, event: NodeEvent) {
        let run = self.nodes[node].run;
        self.after(delay, Ev::Node(node, run, event));
    }

    fn disk_delay(&mut self, node: usize) -> Us {
        let base = 100 + self.rng.below(900);
        if self.now < self.nodes[node].slow_until { base * 100 } else { base }
    }

    pub(crate) fn node_event(&mut self, node: usize, run: u64, event: NodeEvent) {
        match event {
            NodeEvent::NewDisk => return self.replace_disk(node),
            NodeEvent::DiskFree => self.nodes[node].disk.limit(None),
            _ => {}
        }
        if self.nodes[node].run != run {
            return;
        }
        if event == NodeEvent::Expire {
            if self.nodes[node].paused || self.nodes[node].steps.is_none() {
                let me = self.nodes[node].me.clone();
                self.meta.live(&me, false);
            }
            return;
        }
        if self.nodes[node].paused && event != NodeEvent::Resume {
            return self.nodes[node].stalled.push(event);
        }
        match event {
            NodeEvent::Start => self.start_node(node),
            NodeEvent::Register => self.register(node),
            NodeEvent::Resume => self.resume_node(node),
            NodeEvent::NewDisk | NodeEvent::Expire => {}
            NodeEvent::Watermark => {
                if self.now >= self.meta_down {
                    self.tell_watermark(node);
                }
                let delay = SECOND + self.rng.below(3 * SECOND);
                self.node_soon(node, delay, NodeEvent::Watermark);
            }
            NodeEvent::LetGo => self.look_whether_let_go(node),
            NodeEvent::Batch => self.batch(node),
            NodeEvent::Write => {
                let pick = self.rng.next_u64();
                let Some(steps) = &mut self.nodes[node].steps else { return };
                if steps.outstanding() > 0 {
                    steps.write((pick % steps.outstanding() as u64) as usize);
                    self.node_soon(node, 20, NodeEvent::Batch);
                    self.nodes[node].batch_due = true;
                    self.node_soon(node, 10 * MS, NodeEvent::Idle);
                }
                self.pump(node);
            }
            NodeEvent::Idle => {
                let Some(steps) = &mut self.nodes[node].steps else { return };
                if steps.outstanding() == 0 && steps.health() == Health::Serving {
                    steps.idle();
                }
                self.pump(node);
            }
            NodeEvent::Flush | NodeEvent::DiskFree => {
                self.flush(node);
                if event == NodeEvent::Flush {
                    let delay = 300 * MS + self.rng.below(3 * SECOND);
                    self.node_soon(node, delay, NodeEvent::Flush);
                }
            }
            NodeEvent::Room => self.flush(node),
        }
    }

    /// The store is told the dead-id watermark when it has risen.
    fn tell_watermark(&mut self, node: usize) {
        let to = self.meta.watermark();
        let n = &mut self.nodes[node];
        if to > n.watermark && n.steps.as_ref().is_some_and(|steps| steps.health() == Health::Serving) {
            n.watermark = to;
            n.arrivals += 1;
            let (order, me) = (n.arrivals, n.me.clone());
            self.check.watermark_told(&me, LedgerId(to));
            self.take(node, order, (0, 0), Req::Watermark { to: LedgerId(to) });
            self.pump(node);
        }
    }

    fn batch(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.batch_due = false;
        let Some(steps) = &mut n.steps else { return };
        let mut built = 0;
        while steps.outstanding() < 4 && steps.next_batch() {
            built += 1;
        }
        if steps.outstanding() == 0 {
            steps.prepare();
        }
        for _ in 0..built {
            let delay = self.disk_delay(node);
            self.node_soon(node, delay, NodeEvent::Write);
        }
    }

    /// What the flush and file threads do, then what waited for them.
    fn flush(&mut self, node: usize) {
        let Some(steps) = &mut self.nodes[node].steps else { return };
        steps.prepare();
        let mut full = false;
        if steps.health() == Health::Serving {
            full = !steps.flush();
        }
        self.pump(node);
        while let Some((call, proc, req)) = self.nodes[node].waiting.pop_front() {
            self.nodes[node].arrivals += 1;
            let order = self.nodes[node].arrivals;
            let n = &mut self.nodes[node];
            n.flight.insert(order, Flight { call, proc, order, req: req.clone() });
            if !n.admit(order, &req) {
                n.flight.remove(&order);
                n.waiting.push_front((call, proc, req));
                // Journal room comes with batches written and files made; a full disk is asked again later.
                let delay = if full { 500 * MS } else { 2 * MS };
                self.node_soon(node, delay, NodeEvent::Room);
                break;
            }
        }
        self.pump(node);
    }

    fn resume_node(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.paused = false;
        let proc = self.store_proc(node);
        self.resume(proc);
        let n = &mut self.nodes[node];
        let (stalled, backlog) = (std::mem::take(&mut n.stalled), std::mem::take(&mut n.backlog));
        for event in stalled {
            self.node_soon(node, 0, event);
        }
        self.node_soon(node, 5 * MS, NodeEvent::Register);
        for (call, proc, to, req) in backlog {
            self.after(0, Ev::ToBookie { node, call, proc, to, req });
        }
    }
}
