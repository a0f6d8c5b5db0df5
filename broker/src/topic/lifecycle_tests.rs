//! The lifecycle engine in single steps and in random walks.

use super::*;
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::rng::Rng;

const SECOND: u64 = 1000;

fn at(entry: u64) -> Position {
    Position::new(LedgerId(1), EntryId(entry))
}

fn rules() -> Rules {
    Rules { ttl_ms: None, size: None, age: None, retention: Retention::NONE }
}

fn quota(limit: u64, policy: QuotaPolicy) -> Option<Quota> {
    Some(Quota { limit, policy })
}

fn view(now_ms: u64, oldest: Option<u64>, end: u64) -> View {
    View { now_ms, oldest: oldest.map(at), end: at(end), backlog_bytes: 0, trim_at_ms: None }
}

fn decide(life: &mut Lifecycle, rules: &Rules, view: View) -> Vec<Action> {
    let mut out = Vec::new();
    life.decide(rules, &view, &mut out);
    out
}

#[test]
fn a_topic_without_backlog_is_never_woken() {
    let rules = Rules {
        ttl_ms: Some(10 * SECOND),
        age: quota(5 * SECOND, QuotaPolicy::ConsumerBacklogEviction),
        size: quota(100, QuotaPolicy::ProducerException),
        ..rules()
    };
    let mut life = Lifecycle::new();
    assert_eq!(decide(&mut life, &rules, view(0, None, 7)), []);
    assert_eq!((life.wake_ms(), life.exceeded()), (None, None));
}

#[test]
fn a_backlog_found_at_load_is_looked_at_and_expired_to_the_limit() {
    let rules = Rules { ttl_ms: Some(10 * SECOND), ..rules() };
    let mut life = Lifecycle::new();
    assert_eq!(decide(&mut life, &rules, view(100 * SECOND, Some(3), 9)), [Action::Learn(at(3))]);
    assert_eq!(decide(&mut life, &rules, view(100 * SECOND, Some(3), 9)), [], "one read at a time");
    life.learned(at(3), Some(95 * SECOND), 100 * SECOND);
    assert_eq!(decide(&mut life, &rules, view(100 * SECOND, Some(3), 9)), [], "young enough");
    assert_eq!(life.wake_ms(), Some(105 * SECOND));
    let expire = Action::Expire { before_ms: 95 * SECOND + 1, at_least: Some(at(3)) };
    assert_eq!(decide(&mut life, &rules, view(105 * SECOND, Some(3), 9)), [expire]);
    assert_eq!(decide(&mut life, &rules, view(105 * SECOND, Some(3), 9)), [], "one search at a time");
    life.expired(true, 105 * SECOND);
    assert_eq!(decide(&mut life, &rules, view(105 * SECOND, Some(5), 9)), [Action::Learn(at(5))]);
}

#[test]
fn a_consumer_that_keeps_up_costs_one_look_per_time_to_live() {
    let rules = Rules { ttl_ms: Some(60 * SECOND), ..rules() };
    let mut life = Lifecycle::new();
    let mut looks = 0;
    decide(&mut life, &rules, view(0, None, 0));
    for n in 0..6_000 {
        let now = n * 100; // ten entries a second for ten minutes, one of them unacknowledged
        for action in decide(&mut life, &rules, view(now, Some(n), n + 1)) {
            let Action::Learn(floor) = action else { panic!("{action:?}") };
            looks += 1;
            life.learned(floor, Some(now), now);
        }
    }
    assert!((9..=10).contains(&looks), "{looks} looks in ten minutes");
}

#[test]
fn a_moving_floor_does_not_hide_an_old_backlog() {
    let rules = Rules { ttl_ms: Some(SECOND), ..rules() };
    let mut life = Lifecycle::new();
    assert_eq!(decide(&mut life, &rules, view(100 * SECOND, Some(0), 99)), [Action::Learn(at(0))]);
    life.learned(at(0), Some(0), 100 * SECOND);
    let actions = decide(&mut life, &rules, view(100 * SECOND, Some(1), 99));
    assert!(matches!(actions[..], [Action::Expire { at_least: None, .. }]), "{actions:?}");
}

#[test]
fn a_seek_back_is_looked_at_anew() {
    let rules = Rules { ttl_ms: Some(10 * SECOND), ..rules() };
    let mut life = Lifecycle::new();
    decide(&mut life, &rules, view(100 * SECOND, None, 50));
    let after = view(101 * SECOND, Some(50), 51);
    assert_eq!(decide(&mut life, &rules, after), [], "published since the last look");
    assert_eq!(life.wake_ms(), Some(110 * SECOND));
    assert_eq!(decide(&mut life, &rules, view(102 * SECOND, Some(4), 51)), [Action::Learn(at(4))]);
    let mut life = Lifecycle::new();
    decide(&mut life, &rules, view(100 * SECOND, None, 50));
    assert_eq!(decide(&mut life, &rules, view(101 * SECOND, Some(4), 51)), [Action::Learn(at(4))]);
}

#[test]
fn a_failed_read_is_tried_again_later() {
    let rules = Rules { ttl_ms: Some(SECOND), ..rules() };
    let mut life = Lifecycle::new();
    decide(&mut life, &rules, view(0, Some(0), 1));
    life.learned(at(0), None, 0);
    assert_eq!(decide(&mut life, &rules, view(SECOND, Some(0), 1)), []);
    assert_eq!(life.wake_ms(), Some(RETRY_MS));
    assert_eq!(decide(&mut life, &rules, view(RETRY_MS, Some(0), 1)), [Action::Learn(at(0))]);
}

#[test]
fn a_size_quota_blocks_and_unblocks() {
    for policy in [QuotaPolicy::ProducerException, QuotaPolicy::ProducerRequestHold] {
        let rules = Rules { size: quota(100, policy), ..rules() };
        let mut life = Lifecycle::new();
        let with = |bytes| View { backlog_bytes: bytes, ..view(0, Some(0), 9) };
        assert_eq!(decide(&mut life, &rules, with(99)), []);
        assert_eq!(decide(&mut life, &rules, with(100)), [Action::Block(Exceeded::Size(policy))]);
        assert_eq!(decide(&mut life, &rules, with(200)), [], "told once");
        assert_eq!(life.exceeded(), Some(Exceeded::Size(policy)));
        decide(&mut life, &rules, with(99));
        assert_eq!(life.exceeded(), None);
        assert_eq!(life.wake_ms(), None, "nothing is polled");
    }
}

#[test]
fn a_size_quota_evicts_to_nine_tenths_with_pauses() {
    let rules = Rules { size: quota(100, QuotaPolicy::ConsumerBacklogEviction), ..rules() };
    let mut life = Lifecycle::new();
    let with = |now, bytes| View { backlog_bytes: bytes, ..view(now, Some(0), 9) };
    assert_eq!(decide(&mut life, &rules, with(0, 100)), []);
    assert_eq!(decide(&mut life, &rules, with(0, 101)), [Action::Shrink(90)]);
    assert_eq!(decide(&mut life, &rules, with(1, 101)), [], "it did not help, so it waits");
    assert_eq!(life.wake_ms(), Some(SECOND));
    assert_eq!(decide(&mut life, &rules, with(SECOND, 101)), [Action::Shrink(90)]);
    assert_eq!(life.exceeded(), None);
}

#[test]
fn an_age_quota_blocks_until_the_floor_is_young_again() {
    let policy = QuotaPolicy::ProducerException;
    let rules = Rules { age: quota(10 * SECOND, policy), ..rules() };
    let mut life = Lifecycle::new();
    assert_eq!(decide(&mut life, &rules, view(20 * SECOND, Some(0), 9)), [Action::Learn(at(0))]);
    life.learned(at(0), Some(SECOND), 20 * SECOND);
    let block = Action::Block(Exceeded::Age(policy));
    assert_eq!(decide(&mut life, &rules, view(20 * SECOND, Some(0), 9)), [block]);
    assert_eq!(decide(&mut life, &rules, view(22 * SECOND, Some(5), 9)), [Action::Learn(at(5))]);
    assert_eq!(life.exceeded(), Some(Exceeded::Age(policy)), "until it is known better");
    life.learned(at(5), Some(19 * SECOND), 22 * SECOND);
    assert_eq!(decide(&mut life, &rules, view(22 * SECOND, Some(5), 9)), []);
    assert_eq!((life.exceeded(), life.wake_ms()), (None, Some(29 * SECOND)));
}

#[test]
fn retention_is_due_at_its_time_and_not_polled() {
    let mut life = Lifecycle::new();
    let with = |now, at| View { trim_at_ms: at, ..view(now, None, 9) };
    assert_eq!(decide(&mut life, &rules(), with(0, Some(70 * SECOND))), []);
    assert_eq!(life.wake_ms(), Some(70 * SECOND));
    assert_eq!(decide(&mut life, &rules(), with(70 * SECOND, Some(70 * SECOND))), [Action::Trim]);
    assert_eq!(decide(&mut life, &rules(), with(70 * SECOND, Some(70 * SECOND))), [], "under way");
    assert_eq!(decide(&mut life, &rules(), with(71 * SECOND, None)), []);
    assert_eq!(life.wake_ms(), None);
}

/// A topic of entries with rising stamps, one cursor, a clock; the engine's actions are carried out with delays.
#[test]
fn random_walks_expire_all_that_is_old_and_nothing_that_is_young() {
    for seed in 0..300 {
        let mut rng = Rng::seeded(seed);
        let ttl = 2 * SECOND + rng.below(30 * SECOND);
        let rules = Rules { ttl_ms: Some(ttl), ..rules() };
        let (mut stamps, mut floor, mut now) = (Vec::<u64>::new(), 0usize, SECOND);
        let (mut life, mut pending) = (Lifecycle::new(), Vec::<Action>::new());
        let (mut calls, mut sought) = (0, 0);
        for _ in 0..400 {
            now += rng.below(SECOND);
            match rng.below(10) {
                0..4 => stamps.push(now),
                4 if floor < stamps.len() => floor += 1,
                5 if rng.below(8) == 0 => (floor, sought) = (rng.below(floor as u64 + 1) as usize, now),
                _ => {}
            }
            if rng.below(3) > 0 {
                for action in pending.drain(..) {
                    match action {
                        Action::Learn(p) => life.learned(p, stamps.get(p.entry.0 as usize).copied(), now),
                        Action::Expire { before_ms, at_least } => {
                            let found = stamps.partition_point(|s| *s < before_ms);
                            let to = found.max(at_least.map_or(0, |p| p.entry.0 as usize + 1));
                            for young in stamps.iter().take(to).skip(floor) {
                                assert!(
                                    now - young >= ttl,
                                    "seed {seed}: expired at {} of {ttl}",
                                    now - young
                                );
                            }
                            life.expired(to > floor, now);
                            floor = floor.max(to);
                        }
                        other => panic!("seed {seed}: {other:?}"),
                    }
                }
            }
            let oldest = (floor < stamps.len()).then_some(floor as u64);
            let actions = decide(&mut life, &rules, view(now, oldest, stamps.len() as u64));
            calls += actions.len();
            assert!(life.wake_ms().is_none_or(|wake| wake > now), "seed {seed}: woken in the past");
            let asleep = life.wake_ms().is_none() && actions.is_empty() && pending.is_empty();
            assert!(!(asleep && oldest.is_some()), "seed {seed}: a backlog is forgotten");
            pending.extend(actions);
            if let Some(old) = stamps.get(floor) {
                // Look, search, pauses and the delays of this walk.
                let due = (old + ttl).max(sought);
                assert!(now < due + 20 * SECOND, "seed {seed}: {} old, limit {ttl}", now - old);
            }
        }
        assert!(calls < 400, "seed {seed}: {calls} actions");
    }
}
