//! Scripts, and a naive model: the set of acked entries and the set of acked messages.

use super::*;
use crate::cursor::slots::Span;
use proptest::prelude::*;

/// A chain of ledgers: how many entries each holds; ids 10, 20, 30, …
#[derive(Clone, Debug)]
struct Chain(Vec<u64>);

impl Log for Chain {
    fn span_from(&self, from: LedgerId) -> Option<Span> {
        let spans =
            self.0.iter().enumerate().map(|(nth, entries)| Span { ledger: id(nth), entries: *entries });
        spans.filter(|span| span.entries > 0).find(|span| span.ledger >= from)
    }

    fn end(&self) -> Position {
        Position::new(id(self.0.len() - 1), EntryId(*self.0.last().expect("one ledger at least")))
    }
}

fn id(nth: usize) -> LedgerId {
    LedgerId((nth as u64 + 1) * 10)
}

fn at(ledger: u64, entry: u64) -> Position {
    Position::new(LedgerId(ledger), EntryId(entry))
}

fn start() -> AckState {
    AckState::new(Acked::below(at(0, 0)))
}

impl Chain {
    fn all(&self) -> Vec<Position> {
        let of =
            |(nth, entries): (usize, &u64)| (0..*entries).map(move |e| Position::new(id(nth), EntryId(e)));
        self.0.iter().enumerate().flat_map(of).collect()
    }
}

#[test]
fn in_order_acks_move_the_floor_across_ledgers_and_leave_no_holes() {
    let log = Chain(vec![3, 0, 2]);
    let mut state = start();
    for p in log.all() {
        assert_eq!(state.ack(p, &log), Ack::Entry);
        assert!(state.acked().holes.is_empty());
    }
    assert_eq!(state.floor(), log.end());
    assert_eq!(state.backlog(&log), 0);
}

#[test]
fn a_floor_at_the_end_of_a_rolled_ledger_goes_on_in_the_next() {
    let mut state = start();
    let log = Chain(vec![2]);
    state.ack(at(10, 0), &log);
    state.ack(at(10, 1), &log);
    assert_eq!(state.floor(), at(10, 2));
    let log = Chain(vec![2, 3]);
    assert_eq!(state.next_unacked(at(0, 0), &log), Some(at(20, 0)));
    assert_eq!(state.ack(at(20, 0), &log), Ack::Entry);
    assert_eq!(state.floor(), at(20, 1));
    assert!(state.acked().holes.is_empty());
}

#[test]
fn a_floor_runs_over_holes_into_the_next_ledger() {
    let log = Chain(vec![3, 3]);
    let mut state = start();
    for p in [at(10, 1), at(10, 2), at(20, 0), at(20, 2)] {
        assert_eq!(state.ack(p, &log), Ack::Entry);
    }
    assert_eq!(state.individually_deleted(9), "[(10:0..10:2],(20:-1..20:0],(20:1..20:2]]");
    assert_eq!(state.individually_deleted(1), "[(10:0..10:2]]");
    assert_eq!(state.deleted_ranges_count(), 3);
    assert_eq!(state.ack(at(10, 0), &log), Ack::Entry);
    assert_eq!(state.floor(), at(20, 1));
    assert_eq!(state.individually_deleted(9), "[(20:1..20:2]]");
    assert_eq!(state.deleted_ranges_count(), 1);
}

#[test]
fn numbers_that_are_no_entries_are_not_acked() {
    let log = Chain(vec![3, 2]);
    let mut state = start();
    for p in [at(10, 3), at(15, 0), at(20, 2), at(u64::MAX, u64::MAX), at(10, u64::MAX), at(99, 0)] {
        assert_eq!(state.ack(p, &log), Ack::NotFound, "{p}");
        assert_eq!(state.ack_batch(p, &[0], 2, &log), Ack::NotFound, "{p}");
    }
    assert_eq!(state.ack_cumulative(at(20, 2), None, &log), Ack::NotFound);
    assert_eq!(state.ack_cumulative(at(u64::MAX, u64::MAX), None, &log), Ack::NotFound);
    assert_eq!(state.ack_batch(at(10, 0), &[0], u32::MAX, &log), Ack::NotFound);
    assert_eq!(state.ack_batch(at(10, 0), &[0; BATCH_WORDS_MAX + 1], 2, &log), Ack::NotFound);
    assert_eq!(state, start());
}

#[test]
fn parts_of_a_batch_add_up() {
    let log = Chain(vec![3]);
    let mut state = start();
    assert_eq!(state.ack_batch(at(10, 1), &[0b1110], 4, &log), Ack::Part(1));
    assert_eq!(state.remaining(at(10, 1)), Some(&[0b1110][..]));
    assert_eq!(state.ack_batch(at(10, 1), &[0b0111], 4, &log), Ack::Part(1));
    assert_eq!(state.acked_in_batch(at(10, 1)), 2);
    assert_eq!(state.ack_batch(at(10, 1), &[0b1111], 4, &log), Ack::Duplicate);
    assert_eq!(state.ack_batch(at(10, 1), &[0b1001], 4, &log), Ack::Entry);
    assert!(state.is_acked(at(10, 1)) && state.remaining(at(10, 1)).is_none());
    assert_eq!(state.ack_cumulative(at(10, 2), Some((&[0b10], 2)), &log), Ack::Part(1));
    assert_eq!(state.floor(), at(10, 2));
    assert_eq!(state.ack_cumulative(at(10, 2), Some((&[], 2)), &log), Ack::Entry);
    assert_eq!(state.floor(), log.end());
}

#[test]
fn an_unknown_batch_size_is_read_from_the_set() {
    let log = Chain(vec![1]);
    let mut state = start();
    assert_eq!(state.ack_batch(at(10, 0), &[0b1010], 0, &log), Ack::Part(2));
    assert_eq!(state.ack_batch(at(10, 0), &[0b0101], 0, &log), Ack::Entry);
}

/// The Go client acknowledges the last message of a batch first, and says neither how many there are nor that it is the last.
#[test]
fn the_last_message_of_a_batch_of_unknown_size_counts_as_acknowledged() {
    let log = Chain(vec![3]);
    let mut state = start();
    assert_eq!(state.ack_batch(at(10, 1), &[0b1], 0, &log), Ack::Part(1), "the second of two");
    assert_eq!(state.remaining(at(10, 1)), Some(&[0b1][..]));
    assert_eq!(state.ack_batch(at(10, 1), &[0b1], 0, &log), Ack::Duplicate);
    assert_eq!(state.ack_batch(at(10, 2), &[u64::MAX], 0, &log), Ack::Part(1), "the last of 65");
    assert_eq!(state.remaining(at(10, 2)), Some(&[u64::MAX, 0][..]));
    assert_eq!(state.ack_batch(at(10, 2), &[u64::MAX << 1], 0, &log), Ack::Part(1));
    assert_eq!(state.ack(at(10, 2), &log), Ack::Entry);
    // A set as long as any may be: nothing lies behind it.
    assert_eq!(state.ack_batch(at(10, 0), &[u64::MAX; BATCH_WORDS_MAX], 0, &log), Ack::Duplicate);
}

#[test]
fn seek_goes_back_and_keeps_the_acked_part_of_a_batch() {
    let log = Chain(vec![5]);
    let mut state = start();
    state.ack_cumulative(at(10, 2), None, &log);
    state.ack(at(10, 4), &log);
    state.reset(at(10, 1), Some((&[0b100], 3)), &log);
    assert_eq!((state.floor(), state.backlog(&log)), (at(10, 1), 4));
    assert_eq!(state.acked_in_batch(at(10, 1)), 2);
    assert!(!state.is_dirty(), "a reset is made durable as a reset");
    state.reset(at(77, 7), None, &log);
    assert_eq!(state.floor(), log.end(), "outside the log snaps to its end");
}

#[test]
fn a_hundred_thousand_alternating_acks_are_all_kept() {
    let log = Chain(vec![200_001]);
    let mut state = start();
    for e in (1..200_000).step_by(2) {
        assert_eq!(state.ack(at(10, e), &log), Ack::Entry);
    }
    assert_eq!(state.acked().holes.len(), 100_000);
    assert!(state.size() < 64 << 10, "{}", state.size());
    assert_eq!(state.backlog(&log), 100_001);
    for e in (0..200_000).step_by(2) {
        assert_eq!(state.ack(at(10, e), &log), Ack::Entry);
        assert_eq!(state.floor(), at(10, e + 2));
    }
    assert!(state.acked().holes.is_empty());
}

#[test]
fn a_non_durable_state_gathers_no_deltas() {
    let log = Chain(vec![5]);
    let mut state = AckState::non_durable(Acked::below(at(0, 0)));
    state.ack(at(10, 3), &log);
    assert!(!state.is_dirty() && state.take_delta().is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Ack(usize),
    AckBatch(usize, u8),
    Cumulative(usize),
    CumulativeBatch(usize, u8),
    Reset(usize),
    ResetInBatch(usize, u8),
    Skip(u64),
    Grow(u64),
    Roll,
    Persist,
    Refused,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<usize>().prop_map(Step::Ack),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(p, b)| Step::AckBatch(p, b)),
        1 => any::<usize>().prop_map(Step::Cumulative),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(p, b)| Step::CumulativeBatch(p, b)),
        1 => any::<usize>().prop_map(Step::Reset),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(p, b)| Step::ResetInBatch(p, b)),
        1 => (0..5_u64).prop_map(Step::Skip),
        3 => (1..9_u64).prop_map(Step::Grow),
        1 => Just(Step::Roll),
        3 => Just(Step::Persist),
        1 => Just(Step::Refused),
    ]
}

/// Every entry is a batch of 8; a model entry holds the bits that are not acked, and 0 when it is acked whole.
struct Model {
    left: BTreeMap<Position, u8>,
}

impl Model {
    fn at(&self, nth: usize) -> Option<Position> {
        (!self.left.is_empty()).then(|| *self.left.keys().nth(nth % self.left.len()).expect("in range"))
    }

    fn and(&mut self, p: Position, bits: u8) {
        *self.left.get_mut(&p).expect("an entry") &= bits;
    }

    fn below(&mut self, p: Position) {
        self.left.range_mut(..p).for_each(|(_, left)| *left = 0);
    }

    fn reset(&mut self, p: Position, bits: u8) {
        self.below(p);
        self.left.range_mut(p..).for_each(|(_, left)| *left = u8::MAX);
        self.and(p, bits);
    }
}

fn apply(step: &Step, log: &mut Chain, state: &mut AckState, replica: &mut Acked, model: &mut Model) {
    let target = |nth: &usize| model.at(*nth);
    match step {
        Step::Ack(nth) => {
            let Some(p) = target(nth) else { return };
            let expected = if model.left[&p] == 0 { Ack::Duplicate } else { Ack::Entry };
            assert_eq!(state.ack(p, log), expected);
            model.and(p, 0);
        }
        Step::AckBatch(nth, bits) => {
            let Some(p) = target(nth) else { return };
            let before = model.left[&p];
            model.and(p, *bits);
            let newly = before.count_ones() - model.left[&p].count_ones();
            let expected = match (newly, model.left[&p]) {
                (0, _) => Ack::Duplicate,
                (_, 0) => Ack::Entry,
                (newly, _) => Ack::Part(newly),
            };
            assert_eq!(state.ack_batch(p, &[u64::from(*bits)], 8, log), expected);
        }
        Step::Cumulative(nth) => {
            let Some(p) = target(nth) else { return };
            state.ack_cumulative(p, None, log);
            model.below(p);
            model.and(p, 0);
        }
        Step::CumulativeBatch(nth, bits) => {
            let Some(p) = target(nth) else { return };
            state.ack_cumulative(p, Some((&[u64::from(*bits)], 8)), log);
            model.below(p);
            model.and(p, *bits);
        }
        Step::Reset(nth) => {
            let Some(p) = target(nth) else { return };
            state.reset(p, None, log);
            model.reset(p, u8::MAX);
            *replica = state.acked().clone();
        }
        Step::ResetInBatch(nth, bits) => {
            let Some(p) = target(nth) else { return };
            state.reset(p, Some((&[u64::from(*bits)], 8)), log);
            model.reset(p, *bits);
            *replica = state.acked().clone();
        }
        Step::Skip(entries) => {
            let unacked: Vec<Position> =
                model.left.iter().filter(|(_, left)| **left > 0).map(|(p, _)| *p).collect();
            let skipped = &unacked[..unacked.len().min(*entries as usize)];
            assert_eq!(state.skip(*entries, log), skipped.len() as u64);
            skipped.iter().for_each(|p| model.and(*p, 0));
        }
        Step::Grow(entries) => {
            *log.0.last_mut().expect("one ledger at least") += entries;
            log.all().into_iter().for_each(|p| {
                model.left.entry(p).or_insert(u8::MAX);
            });
        }
        Step::Roll => log.0.push(0),
        Step::Persist => {
            if let Some(delta) = state.take_delta() {
                replica.apply(&delta);
                replica.apply(&delta); // twice is once
            }
            assert_eq!(replica.holes, state.acked().holes);
            assert_eq!(replica.batches, state.acked().batches);
            assert_eq!(log.entries_between(replica.floor.min(state.floor()), state.floor()), 0);
        }
        Step::Refused => {
            if let Some(delta) = state.take_delta() {
                state.restore_delta(delta);
            }
        }
    }
}

fn check(log: &Chain, state: &AckState, model: &Model) {
    let unacked = |from: Position| model.left.range(from..).find(|(_, left)| **left > 0).map(|(p, _)| *p);
    for (p, left) in &model.left {
        assert_eq!(state.is_acked(*p), *left == 0, "{p}");
        assert_eq!(state.next_unacked(*p, log), unacked(*p), "from {p}");
        if *left > 0 {
            assert_eq!(state.acked_in_batch(*p), left.count_zeros(), "{p}");
            assert_eq!(state.remaining(*p).map_or(0xff, |words| words[0]), u64::from(*left), "{p}");
        }
    }
    let backlog = model.left.values().filter(|left| **left > 0).count() as u64;
    assert_eq!(state.backlog(log), backlog);
    let acked = model.left.len() as u64 - backlog;
    assert_eq!(state.acked_entries_between(at(0, 0), log.end(), log), acked);
    let mut runs = Vec::new();
    let mut from = at(0, 0);
    while let Some(run) = state.next_unacked_run(from, log.end(), 3, log) {
        assert!(run.entries <= 3);
        runs.extend((0..run.entries).map(|n| at(run.first.ledger.0, run.first.entry.0 + n)));
        from = run.end();
    }
    let expected: Vec<Position> = model.left.iter().filter(|(_, left)| **left > 0).map(|(p, _)| *p).collect();
    assert_eq!(runs, expected);
    if let Some(first) = expected.first() {
        assert_eq!(log.settle(state.floor()), *first, "the floor is at the first unacked entry");
    }
    let all = log.all();
    for n in 0..=all.len() {
        let expected = all.get(n).copied().unwrap_or(log.settle(log.end()));
        assert_eq!(log.entries_between(log.skip(at(0, 0), n as u64), expected), 0, "skip {n}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn behaves_as_a_set_of_acked_messages(steps in prop::collection::vec(step(), 1..60)) {
        let mut log = Chain(vec![0]);
        let mut state = start();
        let mut replica = Acked::below(at(0, 0));
        let mut model = Model { left: BTreeMap::new() };
        for step in &steps {
            apply(step, &mut log, &mut state, &mut replica, &mut model);
            check(&log, &state, &model);
        }
        apply(&Step::Persist, &mut log, &mut state, &mut replica, &mut model);
    }
}
