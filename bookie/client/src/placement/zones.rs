//! Placement over the registry: spread over zones, then racks; no bookie that is dead, read-only, draining or damaged; slow ones and
//! nearly full ones only when there are no others. A full one comes last, whatever zone it stands in: it refuses messages, but takes what
//! cursor logs write, and that is what lets messages be deleted.
//!
//! The hard rule: the bookies of a write quorum stand in at least min(zones, Qw) zones. What cannot be met is not refused but
//! *flagged*: [`Placement::degraded`] says what is missing until an ensemble meets it again. Bookies come in an order in which
//! consecutive ones stand in different zones as far as possible, so that the rule holds for striped ledgers too.
//!
//! [`pick`] is pure. Ties are broken by chance, two at a time: of two drawn bookies the one with more room is taken.

use super::{Degraded, Placement};
use crate::grpc::health::Health;
use crate::registry::record::{Labels, NodeState, Room};
use crate::registry::{Registry, View};
use crate::rpc::BookieRef;
use geminga_common::ids::BookieId;
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A bookie that may be chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its store.
    pub bookie: BookieRef,
    /// Where it stands.
    pub labels: Labels,
    /// Size of its data volume.
    pub capacity_bytes: u64,
    /// Taken only when there are no others in a zone that would do: it is slow, or nearly full.
    pub spared: bool,
    /// Taken only when there are no others at all: it refuses messages.
    pub full: bool,
}

/// Chooses up to `count` candidates beside those who stay, whose labels are `kept`.
#[must_use]
pub fn pick(mut from: Vec<Candidate>, count: usize, kept: &[Labels], rng: &mut Rng) -> Vec<Candidate> {
    let (mut zones, mut racks) =
        (BTreeMap::<String, usize>::new(), BTreeMap::<(String, String), usize>::new());
    let place = |labels: &Labels| (labels.zone.clone(), labels.rack.clone());
    for labels in kept {
        *zones.entry(labels.zone.clone()).or_default() += 1;
        *racks.entry(place(labels)).or_default() += 1;
    }
    let mut picked: Vec<Candidate> = Vec::with_capacity(count);
    while picked.len() < count && !from.is_empty() {
        let cost = |c: &Candidate| {
            let (zone, rack) = (zones.get(&c.labels.zone), racks.get(&place(&c.labels)));
            (c.full, zone.copied().unwrap_or(0), c.spared, rack.copied().unwrap_or(0))
        };
        let least = from.iter().map(cost).min().unwrap_or_default();
        let best: Vec<usize> = (0..from.len()).filter(|at| cost(&from[*at]) == least).collect();
        let mut draw = || best[rng.below(best.len() as u64) as usize];
        let (a, b) = (draw(), draw());
        let one = from.swap_remove(if from[a].capacity_bytes >= from[b].capacity_bytes { a } else { b });
        *zones.entry(one.labels.zone.clone()).or_default() += 1;
        *racks.entry(place(&one.labels)).or_default() += 1;
        picked.push(one);
    }
    picked
}

/// Placement over the bookies of a registry.
pub struct ZonePlacement {
    registry: Registry,
    health: Option<Arc<Health>>,
    write_quorum: usize,
    rng: Mutex<Rng>,
    degraded: Mutex<Option<Degraded>>,
}

impl ZonePlacement {
    /// A placement for ledgers of this write quorum; `health` says who is slow.
    #[must_use]
    pub fn new(registry: Registry, health: Option<Arc<Health>>, write_quorum: u32, rng: Rng) -> Self {
        let (rng, degraded) = (Mutex::new(rng), Mutex::new(None));
        Self { registry, health, write_quorum: write_quorum as usize, rng, degraded }
    }

    fn candidates(&self, view: &View, exclude: &[BookieRef]) -> Vec<Candidate> {
        let now = tokio::time::Instant::now();
        let slow = self.health.as_ref().map(|health| health.slow(now)).unwrap_or_default();
        let one = |(id, known): (&BookieId, &crate::registry::Known)| {
            let (record, live) = (known.record.as_ref()?, known.live.as_ref()?);
            let bookie = BookieRef { id: id.clone(), incarnation: record.incarnation };
            let good = record.state == NodeState::ReadWrite
                && live.incarnation == record.incarnation
                && !exclude.contains(&bookie);
            good.then(|| Candidate {
                spared: slow.contains(id) || record.room == Room::NoNewLedgers,
                full: record.room > Room::NoNewLedgers,
                labels: record.labels.clone(),
                capacity_bytes: record.capacity_bytes,
                bookie,
            })
        };
        view.bookies.iter().filter_map(one).collect()
    }

    fn judge(&self, view: &View, wanted: usize, ensemble: &[Labels]) {
        let in_service = |known: &&crate::registry::Known| {
            known.record.as_ref().is_some_and(|r| !matches!(r.state, NodeState::Gone | NodeState::Lost))
        };
        let known = view.bookies.values().filter(in_service).filter_map(|known| known.record.as_ref());
        let zones: BTreeSet<&str> = known.map(|record| record.labels.zone.as_str()).collect();
        let stands: BTreeSet<&str> = ensemble.iter().map(|labels| labels.zone.as_str()).collect();
        let need = zones.len().min(self.write_quorum);
        let short = ensemble.len() < wanted || stands.len() < need;
        let now =
            short.then_some(Degraded { bookies: (wanted, ensemble.len()), zones: (need, stands.len()) });
        let before = std::mem::replace(&mut *self.degraded.lock(), now);
        match &now {
            Some(degraded) if before != now => {
                tracing::warn!(%degraded, "ledgers are placed below what was asked for");
            }
            None if before.is_some() => tracing::info!("ledgers are placed as asked for again"),
            _ => {}
        }
    }
}

fn labels_of(view: &View, bookie: &BookieRef) -> Labels {
    let record = view.bookies.get(&bookie.id).and_then(|known| known.record.as_ref());
    record.map(|record| record.labels.clone()).unwrap_or_default()
}

impl Placement for ZonePlacement {
    fn choose(&self, count: usize, exclude: &[BookieRef]) -> Vec<BookieRef> {
        self.replace(count, &[], exclude)
    }

    fn replace(&self, count: usize, keep: &[BookieRef], exclude: &[BookieRef]) -> Vec<BookieRef> {
        let view = self.registry.view();
        let mut ensemble: Vec<Labels> = keep.iter().map(|bookie| labels_of(&view, bookie)).collect();
        let picked = pick(self.candidates(&view, exclude), count, &ensemble, &mut self.rng.lock());
        ensemble.extend(picked.iter().map(|candidate| candidate.labels.clone()));
        self.judge(&view, keep.len() + count, &ensemble);
        picked.into_iter().map(|candidate| candidate.bookie).collect()
    }

    fn degraded(&self) -> Option<Degraded> {
        *self.degraded.lock()
    }

    fn slow_told(&self) -> u64 {
        self.health.as_ref().map_or(0, |health| health.told())
    }

    fn instead_of_slow(
        &self,
        member: &BookieRef,
        keep: &[BookieRef],
        exclude: &[BookieRef],
    ) -> Option<BookieRef> {
        let slow = self.health.as_ref()?.slow(tokio::time::Instant::now());
        if !slow.contains(&member.id) {
            return None;
        }
        let view = self.registry.view();
        let kept: Vec<Labels> = keep.iter().map(|bookie| labels_of(&view, bookie)).collect();
        let better = self.candidates(&view, exclude).into_iter().filter(|c| !c.spared && !c.full).collect();
        let one = pick(better, 1, &kept, &mut self.rng.lock()).pop()?;
        // Better slow than in fewer zones.
        let zones = |with: &Labels| {
            kept.iter().chain([with]).map(|labels| labels.zone.as_str()).collect::<BTreeSet<_>>().len()
        };
        (zones(&one.labels) >= zones(&labels_of(&view, member))).then_some(one.bookie)
    }

    fn slow_verdicts(&self) -> u64 {
        self.health.as_ref().map_or(0, |health| health.verdicts())
    }

    fn given_up(&self, bookie: &BookieRef) -> bool {
        let view = self.registry.view();
        let record = view.bookies.get(&bookie.id).and_then(|known| known.record.as_ref());
        record.is_some_and(|record| matches!(record.state, NodeState::Gone | NodeState::Lost))
    }
}

#[cfg(test)]
mod tests;
