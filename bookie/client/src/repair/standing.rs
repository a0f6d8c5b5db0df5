//! How far each bookie can be counted on, from the registry and from how long it has been away. Pure: time comes in.

use super::plan::Standing;
use crate::registry::View;
use crate::registry::record::NodeState;
use crate::rpc::BookieRef;
use geminga_common::clock::Mono;
use geminga_common::ids::{BookieId, Incarnation};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The picture of one round.
#[derive(Clone, Debug)]
pub struct Standings {
    view: Arc<View>,
    /// Bookies that have been away for too long.
    given_up: BTreeSet<BookieId>,
}

impl Standings {
    /// How far `member` can be counted on.
    #[must_use]
    pub fn of(&self, member: &BookieRef) -> Standing {
        let known = self.view.bookies.get(&member.id);
        let Some(record) = known.and_then(|known| known.record.as_ref()) else {
            // A record is never removed by a bookie: without one nothing is known of it but that it is not there.
            return if self.given_up.contains(&member.id) { Standing::Gone } else { Standing::Away };
        };
        let live = known.and_then(|known| known.live.as_ref());
        let there = live.is_some_and(|live| live.incarnation == member.incarnation);
        match record.state {
            _ if record.incarnation != member.incarnation => Standing::Gone,
            NodeState::Gone | NodeState::Lost => Standing::Gone,
            NodeState::DataLoss => Standing::Damaged,
            _ if there => Standing::Sound,
            _ if self.given_up.contains(&member.id) => Standing::Gone,
            _ => Standing::Away,
        }
    }

    /// Whether `member` is there, but has found damage in its store: of what it should hold it may lack copies.
    #[must_use]
    pub fn has_damage(&self, member: &BookieRef) -> bool {
        let record = self.view.bookies.get(&member.id).and_then(|known| known.record.as_ref());
        self.of(member) == Standing::Sound && record.is_some_and(|record| record.damage > 0)
    }

    /// Stores that lost something and are there.
    pub fn damaged(&self) -> impl Iterator<Item = BookieRef> + '_ {
        self.view.bookies.iter().filter_map(|(id, known)| {
            let record = known.record.as_ref().filter(|record| record.state == NodeState::DataLoss)?;
            known.live.as_ref()?;
            Some(BookieRef { id: id.clone(), incarnation: record.incarnation })
        })
    }

    /// What a change of makes a look at every ledger worth while: which stores there are, which are given up, and
    /// how much damage each has found.
    #[must_use]
    pub fn stores(&self) -> BTreeSet<(BookieId, Option<Incarnation>, bool, u64)> {
        let one = |(id, known): (&BookieId, &crate::registry::Known)| {
            let record = known.record.as_ref();
            let lost = record.is_some_and(|record| {
                matches!(record.state, NodeState::Gone | NodeState::Lost | NodeState::DataLoss)
            });
            let damage = record.map_or(0, |record| record.damage);
            let lost = lost || self.given_up.contains(id);
            (id.clone(), record.map(|record| record.incarnation), lost, damage)
        };
        self.view.bookies.iter().map(one).collect()
    }

    /// Bookies that take new entries.
    #[must_use]
    pub fn in_service(&self) -> usize {
        let serving = |known: &&crate::registry::Known| {
            known.live.is_some() && known.record.as_ref().is_some_and(|r| r.state == NodeState::ReadWrite)
        };
        self.view.bookies.values().filter(serving).count()
    }
}

/// Since when bookies have been away.
#[derive(Debug, Default)]
pub struct Absences(BTreeMap<BookieId, Mono>);

impl Absences {
    /// The picture now; whoever has been away for `grace` is given up. Also when the next one will be.
    pub fn look(&mut self, view: Arc<View>, now: Mono, grace: Duration) -> (Standings, Option<Mono>) {
        let away = |id: &BookieId| view.bookies.get(id).is_some_and(|known| known.live.is_none());
        self.0.retain(|id, _| away(id));
        for id in view.bookies.keys().filter(|id| away(id)) {
            self.0.entry(id.clone()).or_insert(now);
        }
        let given_up = self.0.iter().filter(|(_, since)| now >= **since + grace).map(|(id, _)| id.clone());
        let given_up: BTreeSet<BookieId> = given_up.collect();
        let next = self.0.values().map(|since| *since + grace).filter(|due| *due > now).min();
        (Standings { view, given_up }, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Known;
    use crate::registry::record::{BookieRecord, Labels, LiveRecord};

    const GRACE: Duration = Duration::from_secs(600);

    fn view(bookies: &[(&str, u64, NodeState, bool)]) -> Arc<View> {
        let one = |(name, incarnation, state, live): &(&str, u64, NodeState, bool)| {
            let (incarnation, address) = (Incarnation(*incarnation), "h:1".to_owned());
            let live = live.then(|| LiveRecord { incarnation, address: address.clone(), process: 1 });
            let labels = Labels::default();
            let record = BookieRecord {
                incarnation,
                boot: 1,
                address,
                labels,
                state: *state,
                capacity_bytes: 0,
                damage: 0,
                room: Default::default(),
            };
            (BookieId::new(name).unwrap(), Known { record: Some(record), live })
        };
        Arc::new(View { bookies: bookies.iter().map(one).collect() })
    }

    fn member(name: &str, incarnation: u64) -> BookieRef {
        BookieRef { id: BookieId::new(name).unwrap(), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn who_is_away_is_waited_for_and_then_given_up_and_counts_again_when_back() {
        use NodeState::ReadWrite;
        let mut absences = Absences::default();
        let at = |secs| Mono::ZERO + Duration::from_secs(secs);
        let away = view(&[("a", 1, ReadWrite, false), ("b", 1, ReadWrite, true)]);
        let (standings, next) = absences.look(away.clone(), at(5), GRACE);
        assert_eq!(
            (standings.of(&member("a", 1)), standings.of(&member("b", 1))),
            (Standing::Away, Standing::Sound)
        );
        assert_eq!(next, Some(at(605)));
        let (standings, next) = absences.look(away.clone(), at(605), GRACE);
        assert_eq!((standings.of(&member("a", 1)), next), (Standing::Gone, None));
        assert_eq!(standings.in_service(), 1);
        let back = view(&[("a", 1, ReadWrite, true), ("b", 1, ReadWrite, true)]);
        let (standings, _) = absences.look(back, at(606), GRACE);
        assert_eq!(standings.of(&member("a", 1)), Standing::Sound);
        let (standings, next) = absences.look(away, at(607), GRACE);
        assert_eq!((standings.of(&member("a", 1)), next), (Standing::Away, Some(at(1207))), "counted anew");
    }

    #[test]
    fn damage_that_a_store_has_found_is_a_reason_to_look_at_it_and_none_to_replace_it() {
        let mut absences = Absences::default();
        let mut seen =
            View::clone(&view(&[("a", 1, NodeState::ReadWrite, true), ("b", 1, NodeState::ReadWrite, true)]));
        let before = absences.look(Arc::new(seen.clone()), Mono::ZERO, GRACE).0;
        let record = seen.bookies.values_mut().next().and_then(|known| known.record.as_mut());
        record.unwrap().damage = 1;
        let after = absences.look(Arc::new(seen), Mono::ZERO, GRACE).0;
        assert_ne!(before.stores(), after.stores(), "news");
        assert_eq!(after.of(&member("a", 1)), Standing::Sound);
        assert!(after.has_damage(&member("a", 1)) && !after.has_damage(&member("a", 2)));
        assert!(!after.has_damage(&member("b", 1)) && !before.has_damage(&member("a", 1)));
    }

    #[test]
    fn another_store_under_the_name_a_state_and_a_stranger() {
        let mut absences = Absences::default();
        let seen = view(&[
            ("a", 2, NodeState::ReadWrite, true),
            ("b", 1, NodeState::DataLoss, true),
            ("c", 1, NodeState::Lost, false),
            ("d", 1, NodeState::Draining, true),
        ]);
        let (standings, _) = absences.look(seen, Mono::ZERO, GRACE);
        assert_eq!(standings.of(&member("a", 1)), Standing::Gone, "its store was wiped");
        assert_eq!(standings.of(&member("a", 2)), Standing::Sound);
        assert_eq!(standings.of(&member("b", 1)), Standing::Damaged);
        assert_eq!(standings.of(&member("c", 1)), Standing::Gone);
        assert_eq!(standings.of(&member("d", 1)), Standing::Sound);
        assert_eq!(standings.of(&member("x", 1)), Standing::Away, "nothing is known of it");
    }
}
