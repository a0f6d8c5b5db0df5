//! Who of the bookies should no longer be counted on: wiped, damaged, given up, or without a lease for longer than a grace. Pure:
//! pictures and time in, suspects out. A suspicion is a hint only; whoever has such a bookie in an open ledger asks it.
//!
//! Each is told once, when it comes up; a bookie that comes back and goes again is told again.

use super::View;
use super::record::NodeState;
use crate::rpc::BookieRef;
use geminga_common::clock::Mono;
use geminga_common::ids::{BookieId, Incarnation};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A bookie that should not be counted on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspect {
    /// Its name.
    pub id: BookieId,
    /// The only incarnation that is still good; `None`: not one is.
    pub standing: Option<Incarnation>,
}

impl Suspect {
    /// Whether it is this member of an ensemble.
    #[must_use]
    pub fn is(&self, member: &BookieRef) -> bool {
        self.id == member.id && self.standing != Some(member.incarnation)
    }
}

/// What one look at the picture shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// Who has become suspect.
    pub suspects: Vec<Suspect>,
    /// Some bookie is back, or is given up for good: what waited for it may go on.
    pub settled: bool,
    /// When to look again although nothing changes; `None`: not before something does.
    pub again: Option<Mono>,
}

#[derive(Debug, Default)]
struct Past {
    incarnation: Option<Incarnation>,
    unusable: bool,
    given_up: bool,
    /// Without a lease since, and whether that was told.
    absent: Option<(Mono, bool)>,
}

/// Compares each picture with what was seen before.
#[derive(Debug)]
pub struct Absence {
    grace: Duration,
    past: BTreeMap<BookieId, Past>,
    begun: bool,
}

impl Absence {
    /// `grace`: how long a bookie may be without its lease.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, past: BTreeMap::new(), begun: false }
    }

    /// Takes the picture of this moment in.
    pub fn observe(&mut self, view: &View, now: Mono) -> Observed {
        let mut observed = Observed::default();
        let first = !std::mem::replace(&mut self.begun, true);
        let ids: BTreeSet<BookieId> = view.bookies.keys().chain(self.past.keys()).cloned().collect();
        for id in ids {
            let known = view.bookies.get(&id);
            let past = self.past.entry(id.clone()).or_default();
            if let Some(record) = known.and_then(|known| known.record.as_ref()) {
                let incarnation = Some(record.incarnation);
                if past.incarnation.is_some() && past.incarnation != incarnation {
                    observed.suspects.push(Suspect { id: id.clone(), standing: incarnation });
                }
                past.incarnation = incarnation;
                let given_up = matches!(record.state, NodeState::Gone | NodeState::Lost);
                let unusable = given_up || record.state == NodeState::DataLoss;
                if unusable && !past.unusable {
                    observed.suspects.push(Suspect { id: id.clone(), standing: None });
                }
                observed.settled |= given_up && !past.given_up && !first;
                (past.unusable, past.given_up) = (unusable, given_up);
            }
            if known.is_some_and(|known| known.live.is_some()) {
                observed.settled |= past.absent.take().is_some();
                continue;
            }
            let (since, told) = past.absent.get_or_insert((now, false));
            let due = *since + self.grace;
            if !*told && due <= now {
                *told = true;
                observed.suspects.push(Suspect { id, standing: None });
            } else if !*told {
                observed.again = Some(observed.again.map_or(due, |at| at.min(due)));
            }
        }
        observed
    }
}

#[cfg(test)]
mod tests {
    use super::super::Known;
    use super::super::record::{BookieRecord, Labels, LiveRecord};
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn id() -> BookieId {
        BookieId::new("b1").unwrap()
    }

    fn view(incarnation: u64, state: NodeState, live: bool) -> View {
        let incarnation = Incarnation(incarnation);
        let record = BookieRecord {
            incarnation,
            boot: 1,
            address: "h:1".into(),
            labels: Labels::default(),
            state,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        };
        let live = live.then(|| LiveRecord { incarnation, address: "h:1".into(), process: 1 });
        View { bookies: BTreeMap::from([(id(), Known { record: Some(record), live })]) }
    }

    fn at(seconds: u64) -> Mono {
        Duration::from_secs(seconds)
    }

    fn of(incarnation: u64) -> BookieRef {
        BookieRef { id: id(), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_bookie_without_a_lease_is_suspect_after_the_grace_and_once() {
        let mut absence = Absence::new(GRACE);
        let (alive, dead) = (view(1, NodeState::ReadWrite, true), view(1, NodeState::ReadWrite, false));
        assert_eq!(absence.observe(&alive, at(0)), Observed::default(), "nothing is due while all live");
        let observed = absence.observe(&dead, at(1));
        assert_eq!((observed.suspects.len(), observed.again), (0, Some(at(6))));
        assert!(absence.observe(&dead, at(5)).suspects.is_empty());
        let observed = absence.observe(&dead, at(6));
        assert_eq!(
            observed,
            Observed { suspects: vec![Suspect { id: id(), standing: None }], ..Observed::default() }
        );
        assert_eq!(absence.observe(&dead, at(60)), Observed::default(), "told once, and no timer left");
        assert!(absence.observe(&alive, at(61)).settled, "it is back");
        // One that flaps within the grace is nobody's suspect.
        absence.observe(&dead, at(62));
        assert!(absence.observe(&alive, at(66)).suspects.is_empty());
        absence.observe(&dead, at(67));
        assert_eq!(absence.observe(&View::default(), at(72)).suspects.len(), 1, "also when its record goes");
    }

    #[test]
    fn a_new_incarnation_makes_the_old_ones_suspect_and_damage_all() {
        let mut absence = Absence::new(GRACE);
        assert_eq!(absence.observe(&view(1, NodeState::ReadWrite, true), at(0)), Observed::default());
        let observed = absence.observe(&view(2, NodeState::ReadWrite, true), at(1));
        let [suspect] = &observed.suspects[..] else { panic!("{observed:?}") };
        assert!(suspect.is(&of(1)) && !suspect.is(&of(2)));
        let observed = absence.observe(&view(2, NodeState::DataLoss, true), at(2));
        assert!(observed.suspects[0].is(&of(2)) && !observed.settled);
        let observed = absence.observe(&view(2, NodeState::Lost, true), at(3));
        assert_eq!(observed.suspects, [], "known already");
        assert!(observed.settled, "nobody need wait for it any more");
        assert_eq!(absence.observe(&view(2, NodeState::Lost, true), at(4)), Observed::default());
    }
}
