//! Verdicts over made-up time.

use super::*;

fn id(n: u32) -> BookieId {
    BookieId::new(&format!("b{n}")).unwrap()
}

fn run(health: &Health, from: Instant, seconds: u64, millis: &[u64]) -> Instant {
    for tenth in 0..seconds * 10 {
        for (n, took) in (0..).zip(millis) {
            let now = from + Duration::from_millis(tenth * 100);
            health.answered(&id(n), Duration::from_millis(*took), now);
        }
    }
    from + Duration::from_secs(seconds)
}

#[test]
fn slow_is_four_times_the_median_for_five_seconds() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 4, &[2, 2, 40]);
    assert_eq!(health.slow(now), [], "not yet");
    let now = run(&health, now, 3, &[2, 2, 40]);
    assert_eq!(health.slow(now), [id(2)]);
    let now = run(&health, now, 10, &[2, 2, 3]);
    assert_eq!(health.slow(now), [], "it has come back");
}

#[test]
fn a_short_pause_is_not_slow_and_neither_is_fast_against_faster() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 2, &[1, 1, 900]);
    let now = run(&health, now, 20, &[1, 1, 4]);
    assert_eq!(health.slow(now), [], "4 ms is below the floor");
}

#[test]
fn only_the_slowest_is_slow_and_silence_is_forgotten() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 20, &[1, 1, 1, 50, 60]);
    assert_eq!(health.slow(now), [id(4)]);
    assert_eq!(health.slow(now + FORGOTTEN), []);
    assert_eq!(health.latency(&id(4), now + FORGOTTEN), None);
}

/// Answers of b2 alone, which is under a verdict, beside others that are fast.
fn standing(health: &Health, now: Instant) -> bool {
    health.slow(now).contains(&id(2))
}

#[test]
fn whoever_is_still_slow_when_taken_back_stays_away_twice_as_long_each_time() {
    let (health, mut now) = (Health::default(), Instant::now());
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
        let begun = run(&health, now, 6, &[2, 2, 40]);
        assert!(standing(&health, begun), "before {minutes} min");
        // Nobody writes to it; the others go on.
        let hold = Duration::from_secs(60 * minutes);
        assert!(standing(&health, begun + hold - Duration::from_secs(2)), "{minutes} min");
        assert!(!standing(&health, begun + hold), "it is tried again after {minutes} min");
        now = begun + hold;
    }
    assert_eq!(health.verdicts(), 8);
}

#[test]
fn whoever_was_fast_for_as_long_as_it_was_away_begins_anew() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 6, &[2, 2, 40]) + HOLD_FIRST;
    let now = run(&health, now, 6, &[2, 2, 40]) + HOLD_FIRST * 2;
    let short = run(&health, now, 60, &[2, 2, 2]);
    let begun = run(&health, short, 12, &[2, 2, 40]);
    assert!(standing(&health, begun + HOLD_FIRST * 3), "one fast minute proves nothing after two away");
    let now = run(&health, begun + HOLD_FIRST * 4, 245, &[2, 2, 2]);
    let begun = run(&health, now, 12, &[2, 2, 40]);
    assert!(standing(&health, begun));
    assert!(!standing(&health, begun + HOLD_FIRST), "four fast minutes do after four");
}

#[test]
fn whoever_stays_because_there_is_nobody_else_is_cleared_by_being_fast() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 6, &[2, 2, 40]);
    // Fast at once, and for five seconds: less is no proof.
    let now = run(&health, now, 5, &[2, 2, 2]);
    assert!(standing(&health, now));
    let now = run(&health, now, 8, &[2, 2, 2]);
    assert!(!standing(&health, now));
}

#[test]
fn a_verdict_is_told_when_it_comes_and_again_while_it_stands() {
    let (health, start) = (Health::default(), Instant::now());
    let now = run(&health, start, 4, &[2, 2, 40]);
    assert_eq!(health.told(), 0);
    let now = run(&health, now, 3, &[2, 2, 40]);
    assert_eq!((health.told(), health.verdicts()), (1, 1));
    run(&health, now, 10, &[2, 2, 40]);
    assert_eq!((health.told(), health.verdicts()), (3, 1));
}

#[test]
fn the_median_is_reckoned_once_a_tick_and_not_for_every_answer() {
    let (health, start) = (Health::default(), Instant::now());
    run(&health, start, 1, &[2, 2, 2]);
    let reckoned = || health.tracks.lock().median;
    let at = start + Duration::from_secs(1);
    health.answered(&id(0), Duration::from_millis(2), at);
    assert_eq!(reckoned(), Some((at, Some(Duration::from_millis(2)))));
    for n in 0..1000 {
        health.answered(&id(n % 3), Duration::from_millis(80), at + TICK / 2);
    }
    assert_eq!(reckoned(), Some((at, Some(Duration::from_millis(2)))), "the tick is not over");
    health.answered(&id(0), Duration::from_millis(80), at + TICK);
    let (when, median) = reckoned().unwrap();
    assert!(when == at + TICK && median > Some(Duration::from_millis(70)), "{median:?}");
}
