//! What a bookie does with calls: admits, waits until it is durable, answers.

use super::pull::Pull;
use super::{Flight, Listed, NodeEvent, Refusal};
use crate::calls::{Outcome, Req};
use crate::plan::MS;
use crate::world::World;
use geminga_bookie::Health;
use geminga_bookie_client::mutant::{Mutant, active};
use geminga_bookie_client::rpc::{AddError, BookieRef, ControlError, Tail};
use geminga_common::ids::{EntryId, LedgerId, Term};

impl World {
    pub(crate) fn node_request(&mut self, node: usize, (call, proc): (u64, usize), to: BookieRef, req: Req) {
        if self.nodes[node].steps.is_none() {
            // Mostly the connection is refused; a host that is gone says nothing.
            if self.rng.below(4) > 0 {
                self.reply(node, proc, call, req.failed(ControlError::Unknown("connection refused")));
            }
            return;
        }
        if self.nodes[node].paused {
            self.nodes[node].backlog.push((call, proc, to, req));
            return;
        }
        self.serve(node, (call, proc), to, req);
        self.pump(node);
    }

    fn serve(&mut self, node: usize, (call, proc): (u64, usize), to: BookieRef, req: Req) {
        let n = &mut self.nodes[node];
        if to.incarnation != n.me.incarnation && !active(Mutant::TrustAmnesiac) {
            return self.reply(node, proc, call, req.failed(ControlError::WrongIncarnation));
        }
        n.arrivals += 1;
        let order = n.arrivals;
        match req {
            Req::Read(read) => {
                let Some(steps) = &n.steps else { return };
                let answer = steps.read(read);
                let me = n.me.clone();
                self.check.read(&me, &read, &answer);
                self.reply(node, proc, call, Outcome::Read(answer));
            }
            Req::Stat { .. } | Req::Presence { .. } => {
                let Some(steps) = &n.steps else { return };
                let listed = match req {
                    Req::Presence { ledger, ids } => steps.presence(ledger, ids).map(Listed::Presence),
                    Req::Stat { ledger } => steps.stat(ledger).map(Listed::Stat),
                    _ => return,
                };
                match listed {
                    Ok(listed) => {
                        n.listed.insert(order, listed);
                        self.take(node, order, (call, proc), req);
                    }
                    Err(error) => self.reply(node, proc, call, req.failed(error)),
                }
            }
            Req::Replicate(request) => self.pulls.push(Pull { node, call, caller: proc, request }),
            // Adds keep their order: one that waits for room is not overtaken.
            Req::Add(_) | Req::Copies { .. } if !n.waiting.is_empty() => {
                n.waiting.push_back((call, proc, req))
            }
            req => {
                if let Req::Delete { ledger } = req {
                    self.check.delete_sent(ledger);
                }
                self.take(node, order, (call, proc), req);
            }
        }
    }

    pub(super) fn take(&mut self, node: usize, order: u64, (call, proc): (u64, usize), req: Req) -> bool {
        let n = &mut self.nodes[node];
        n.flight.insert(order, Flight { call, proc, order, req: req.clone() });
        if n.admit(order, &req) {
            return true;
        }
        n.flight.remove(&order);
        n.waiting.push_front((call, proc, req));
        self.node_soon(node, MS, NodeEvent::Room);
        false
    }

    /// Sends the answers that are due, and has what was admitted written soon.
    pub(super) fn pump(&mut self, node: usize) {
        let answers = std::mem::take(&mut *self.nodes[node].outbox.lock().expect("no holder panics"));
        for (order, result) in answers {
            let Some(flight) = self.nodes[node].flight.remove(&order) else { continue };
            self.answer(node, flight, result);
        }
        let n = &mut self.nodes[node];
        let Some(steps) = &n.steps else { return };
        if steps.health() == Health::Failed {
            self.trace.note(self.now, "failed", node as u64, 0, || format!("b{node} fail-stops"));
            return self.crash(node, false);
        }
        if !n.batch_due {
            n.batch_due = true;
            self.node_soon(node, 50, NodeEvent::Batch);
        }
    }

    fn answer(&mut self, node: usize, flight: Flight, result: Result<(), Refusal>) {
        let me = self.nodes[node].me.clone();
        let Flight { call, proc, order, req } = flight;
        let control = |result| match result {
            Ok(()) => Ok(()),
            Err(Refusal::Control(error)) => Err(error),
            Err(Refusal::Add(_)) => Err(ControlError::Failed),
        };
        let outcome = match req {
            Req::Add(add) => {
                if result.is_ok() {
                    self.check.stored(&me, &add, order);
                }
                Outcome::Add(match result {
                    Ok(()) => Ok(()),
                    Err(Refusal::Add(error)) => Err(error),
                    Err(Refusal::Control(_)) => Err(AddError::Failed),
                })
            }
            Req::Fence { ledger, term, from } => {
                Outcome::Tail(self.fenced(node, (ledger, term, from), control(result)))
            }
            Req::Seal { ledger, last } => {
                if result.is_ok() {
                    self.check.sealed(ledger, last);
                }
                Outcome::Control(control(result))
            }
            Req::Delete { ledger } => {
                let serving = self.nodes[node].steps.as_ref().is_some_and(|s| s.health() == Health::Serving);
                let result = control(result);
                self.check.control("delete", &result, serving);
                self.trace
                    .note(self.now, "deleted", node as u64, ledger.0, || format!("b{node} deletes {ledger}"));
                Outcome::Control(result)
            }
            Req::Copies { ledger, entries } => {
                if result.is_ok() {
                    self.check.copied(&me, ledger, &entries);
                }
                Outcome::Add(result.map_err(|error| match error {
                    Refusal::Add(error) => error,
                    Refusal::Control(_) => AddError::Failed,
                }))
            }
            Req::Stat { ledger } | Req::Presence { ledger, .. } => {
                let Some(listed) = self.nodes[node].listed.remove(&order) else { return };
                self.listed(node, ledger, listed, control(result))
            }
            // Nobody asked for it.
            Req::Watermark { to } => {
                if result.is_ok() {
                    self.check.watermark(&me, to, order);
                }
                return;
            }
            Req::Read(_) | Req::Replicate(_) => return,
        };
        self.reply(node, proc, call, outcome);
    }

    /// The answer to a fence that is durable or refused.
    fn fenced(
        &mut self,
        node: usize,
        (ledger, term, from): (LedgerId, Term, EntryId),
        result: Result<(), ControlError>,
    ) -> Result<Tail, ControlError> {
        let n = &self.nodes[node];
        let serving = n.steps.as_ref().is_some_and(|s| s.health() == Health::Serving);
        self.check.control("fence", &result, serving);
        result?;
        let tail = n.steps.as_ref().ok_or(ControlError::Failed)?.tail(ledger, from)?;
        self.check.fenced(&n.me, (ledger, term, from), n.arrivals, &tail, n.damaged);
        Ok(tail)
    }

    /// The answer to a listing, now that what was listed is durable.
    fn listed(
        &mut self,
        node: usize,
        ledger: LedgerId,
        listed: Listed,
        result: Result<(), ControlError>,
    ) -> Outcome {
        let n = &self.nodes[node];
        if result.is_ok() && !n.damaged {
            let present = match &listed {
                Listed::Stat(stat) => &stat.present,
                Listed::Presence(presence) => &presence.present,
            };
            self.check.listed(&n.me, ledger, present);
        }
        match listed {
            Listed::Stat(stat) => Outcome::Stat(result.map(|()| stat)),
            Listed::Presence(presence) => Outcome::Presence(result.map(|()| presence)),
        }
    }
}
