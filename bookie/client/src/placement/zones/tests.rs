//! Placement: the zone rule, who is avoided, and the flag.

use super::*;
use crate::registry::Known;
use crate::registry::record::{BookieRecord, LiveRecord};
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use proptest::prelude::*;

fn id(name: &str) -> BookieId {
    BookieId::new(name).unwrap()
}

/// A bookie for each name; the first letter is its zone.
fn view(names: &[&str]) -> View {
    let bookies = names.iter().map(|name| {
        let record = BookieRecord {
            incarnation: Incarnation(1),
            boot: 1,
            address: "h:1".into(),
            labels: Labels { zone: name[..1].into(), rack: String::new() },
            state: NodeState::ReadWrite,
            capacity_bytes: 1,
            damage: 0,
            room: Default::default(),
        };
        let live = LiveRecord { incarnation: Incarnation(1), address: "h:1".into(), process: 1 };
        (id(name), Known { record: Some(record), live: Some(live) })
    });
    View { bookies: bookies.collect() }
}

fn refs(names: &[&str]) -> Vec<BookieRef> {
    names.iter().map(|name| BookieRef { id: id(name), incarnation: Incarnation(1) }).collect()
}

fn placement(view: View, seed: u64) -> ZonePlacement {
    ZonePlacement::new(Registry::fixed(view), None, 3, Rng::seeded(seed))
}

fn zones(chosen: &[BookieRef]) -> String {
    let mut zones: Vec<char> = chosen.iter().filter_map(|b| b.id.as_str().chars().next()).collect();
    zones.sort_unstable();
    zones.into_iter().collect()
}

fn degraded(placement: &ZonePlacement) -> Option<Degraded> {
    placement.degraded()
}

#[test]
fn three_zones_get_one_each_and_a_replacement_goes_where_the_lost_one_stood() {
    for seed in 0..50 {
        let placement = placement(view(&["a1", "a2", "b1", "b2", "c1", "c2"]), seed);
        assert_eq!(zones(&placement.choose(3, &[])), "abc");
        assert_eq!(degraded(&placement), None);
        let found = placement.replace(1, &refs(&["b1", "c1"]), &refs(&["a1", "b1", "c1"]));
        assert_eq!(found, refs(&["a2"]));
        assert_eq!(degraded(&placement), None);
    }
}

#[test]
fn a_zone_that_is_down_is_flagged_until_it_is_back() {
    let mut down = view(&["a1", "a2", "b1", "b2", "c1"]);
    down.bookies.get_mut(&id("c1")).unwrap().live = None;
    let placement = placement(down, 1);
    assert_eq!(placement.choose(3, &[]).len(), 3, "publishing goes on");
    assert_eq!(degraded(&placement), Some(Degraded { bookies: (3, 3), zones: (3, 2) }));
    let back = ZonePlacement { registry: Registry::fixed(view(&["a1", "b1", "c1"])), ..placement };
    back.choose(3, &[]);
    assert_eq!(degraded(&back), None);
}

#[test]
fn too_few_bookies_are_flagged() {
    let placement = placement(view(&["a1", "a2"]), 1);
    assert_eq!(placement.choose(3, &[]).len(), 2);
    assert_eq!(degraded(&placement), Some(Degraded { bookies: (3, 2), zones: (1, 1) }));
}

#[test]
fn only_live_writable_bookies_of_the_recorded_incarnation_are_chosen() {
    use NodeState::*;
    for state in [Provisioning, ReadOnly, Draining, Gone, DataLoss, Lost] {
        let mut view = view(&["a1", "b1"]);
        view.bookies.get_mut(&id("a1")).unwrap().record.as_mut().unwrap().state = state;
        assert_eq!(placement(view, 1).choose(2, &[]), refs(&["b1"]), "{state:?}");
    }
    let mut view = view(&["a1", "b1"]);
    view.bookies.get_mut(&id("a1")).unwrap().live.as_mut().unwrap().incarnation = Incarnation(9);
    assert_eq!(placement(view, 1).choose(2, &[]), refs(&["b1"]));
}

/// Under which `slow` has a verdict now.
fn slow_among(slow: &str, others: &[&str]) -> Arc<Health> {
    let health = Arc::new(Health::default());
    let mut now = tokio::time::Instant::now() - std::time::Duration::from_secs(10);
    for _ in 0..100 {
        now += std::time::Duration::from_millis(100);
        health.answered(&id(slow), std::time::Duration::from_millis(100), now);
        others.iter().for_each(|name| health.answered(&id(name), std::time::Duration::from_millis(1), now));
    }
    health
}

#[tokio::test]
async fn a_slow_member_is_replaced_by_somebody_better_or_by_nobody() {
    let health = slow_among("a1", &["a2", "b1", "c1"]);
    let instead = |names: &[&str], member: &str, room: Room| {
        let mut view = view(names);
        view.bookies.values_mut().filter_map(|k| k.record.as_mut()).for_each(|r| r.room = room);
        let placement = ZonePlacement::new(Registry::fixed(view), Some(health.clone()), 3, Rng::seeded(1));
        let members = refs(&["a1", "b1", "c1"]);
        let member = refs(&[member]).remove(0);
        let keep: Vec<BookieRef> = members.iter().filter(|m| **m != member).cloned().collect();
        placement.instead_of_slow(&member, &keep, &members)
    };
    assert_eq!(instead(&["a1", "a2", "b1", "c1"], "a1", Room::default()), Some(refs(&["a2"]).remove(0)));
    assert_eq!(instead(&["a1", "a2", "b1", "c1"], "b1", Room::default()), None, "b1 is not slow");
    assert_eq!(instead(&["a1", "b1", "c1"], "a1", Room::default()), None, "better slow than missing");
    assert_eq!(
        instead(&["a1", "b1", "b2", "c1"], "a1", Room::default()),
        None,
        "better slow than in two zones"
    );
    assert_eq!(instead(&["a1", "a2", "b1", "c1"], "a1", Room::NoNewLedgers), None, "better slow than full");
}

#[tokio::test]
async fn a_slow_bookie_is_taken_only_when_there_is_no_other() {
    let health = slow_among("a1", &["a2", "b1"]);
    let of = |names: &[&str], seed| {
        let registry = Registry::fixed(view(names));
        ZonePlacement::new(registry, Some(health.clone()), 2, Rng::seeded(seed)).choose(2, &[])
    };
    for seed in 0..50 {
        assert!(!of(&["a1", "a2", "b1"], seed).contains(&refs(&["a1"])[0]));
        assert!(of(&["a1", "b1"], seed).contains(&refs(&["a1"])[0]), "better slow than one zone");
    }
}

#[test]
fn a_nearly_full_bookie_is_spared_and_a_full_one_comes_last() {
    let of = |room: Room, names: &[&str], seed| {
        let mut view = view(names);
        view.bookies.get_mut(&id("a1")).unwrap().record.as_mut().unwrap().room = room;
        placement(view, seed).choose(2, &[])
    };
    let a1 = &refs(&["a1"])[0];
    for seed in 0..50 {
        for room in [Room::NoNewLedgers, Room::RecoveryOnly, Room::Nothing] {
            assert!(!of(room, &["a1", "a2", "b1"], seed).contains(a1), "{room:?}");
        }
        assert!(
            of(Room::NoNewLedgers, &["a1", "b1", "b2"], seed).contains(a1),
            "better nearly full than one zone"
        );
        assert!(
            !of(Room::RecoveryOnly, &["a1", "b1", "b2"], seed).contains(a1),
            "better one zone than no room"
        );
        assert!(of(Room::Nothing, &["a1", "b1"], seed).contains(a1), "cursor logs are written even there");
    }
}

#[test]
fn racks_differ_within_a_zone_and_room_draws() {
    let mut view = view(&["a1", "a2", "a3", "a4"]);
    for (name, rack) in [("a1", "r1"), ("a2", "r1"), ("a3", "r2"), ("a4", "r2")] {
        view.bookies.get_mut(&id(name)).unwrap().record.as_mut().unwrap().labels.rack = rack.into();
    }
    view.bookies.get_mut(&id("a1")).unwrap().record.as_mut().unwrap().capacity_bytes = 100;
    let mut often = 0;
    for seed in 0..100 {
        let chosen = placement(view.clone(), seed).choose(2, &[]);
        let first_rack = chosen.iter().filter(|b| ["a1", "a2"].contains(&b.id.as_str())).count();
        assert_eq!(first_rack, 1, "{chosen:?}");
        often += usize::from(chosen.contains(&refs(&["a1"])[0]));
    }
    assert!(often > 55, "the larger one is drawn more often: {often}");
}

proptest! {
    /// Whatever the bookies, the chosen stand in as many zones as they can, consecutive ones apart, none twice.
    #[test]
    fn the_rule_holds(counts in prop::collection::vec(0_usize..4, 1..6), wanted in 1_usize..8, seed: u64) {
        let names: Vec<String> = counts.iter().enumerate()
            .flat_map(|(zone, count)| (0..*count).map(move |n| format!("{}{n}", char::from(b'a' + zone as u8))))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let chosen = placement(view(&names), seed).choose(wanted, &[]);
        let (zones_all, total) = (counts.iter().filter(|count| **count > 0).count(), names.len());
        prop_assert_eq!(chosen.len(), wanted.min(total));
        let distinct: BTreeSet<&BookieRef> = chosen.iter().collect();
        prop_assert_eq!(distinct.len(), chosen.len());
        let first = &chosen[..chosen.len().min(zones_all)];
        let stand: BTreeSet<&str> = first.iter().map(|b| &b.id.as_str()[..1]).collect();
        prop_assert_eq!(stand.len(), first.len(), "the first ones stand apart");
    }
}

#[test]
fn only_who_is_gone_or_lost_is_given_up() {
    for (state, given_up) in [
        (NodeState::ReadWrite, false),
        (NodeState::ReadOnly, false),
        (NodeState::Draining, false),
        (NodeState::DataLoss, false),
        (NodeState::Gone, true),
        (NodeState::Lost, true),
    ] {
        let mut view = view(&["a1"]);
        let known = view.bookies.get_mut(&id("a1")).unwrap();
        known.record.as_mut().unwrap().state = state;
        known.live = None;
        assert_eq!(placement(view, 1).given_up(&refs(&["a1"])[0]), given_up, "{state:?}");
    }
    assert!(!placement(view(&[]), 1).given_up(&refs(&["a1"])[0]), "who is not known may come back");
}
