//! The adds of one pair of processes, as a machine: queued, in flight, answered. Pure; time comes in as an argument.
//!
//! Owner: the add lane, under its lock. Invariants, each held by a test below:
//! - every add that was taken in is told exactly once: by an answer, by its deadline, or by the end of its stream;
//! - adds leave in the order in which they came, and an add's number is its place on the stream;
//! - what is in flight never exceeds the credit, but for one add that alone is larger;
//! - what is queued and in flight never exceeds the window, but for one add that alone is larger;
//! - an add that its deadline ended keeps its credit until the bookie answers or the stream ends: the bookie still holds its bytes.

use super::table::wire_size;
use crate::rpc::{Add, AddError};
use geminga_common::ids::Incarnation;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A bookie answered what was not asked: the stream is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Violation(pub(crate) &'static str);

struct Queued<D> {
    incarnation: Incarnation,
    add: Add,
    done: D,
    bytes: usize,
    due: Instant,
}

struct Flying<D> {
    /// `None` once told.
    done: Option<D>,
    answered: bool,
    bytes: usize,
    sent: Instant,
    due: Instant,
}

/// Limits of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A batch is closed at this many bytes.
    pub(crate) batch: usize,
    /// Most bytes queued and in flight.
    pub(crate) window: usize,
    /// Time from the call to `Unknown`.
    pub(crate) deadline: Duration,
}

/// `D` is what an add is told through.
pub(crate) struct Window<D> {
    limits: Limits,
    queue: VecDeque<Queued<D>>,
    queued_bytes: usize,
    flight: VecDeque<Flying<D>>,
    flight_bytes: usize,
    /// Number of the front of `flight`.
    first: u64,
    credit: usize,
}

pub(crate) type Answer<D> = (D, Result<(), AddError>);

impl<D> Window<D> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue: VecDeque::new(),
            queued_bytes: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
            first: 0,
            credit: 0,
        }
    }

    /// Takes an add in, or gives its handle back with the reason.
    pub(crate) fn offer(
        &mut self,
        to: Incarnation,
        add: Add,
        done: D,
        now: Instant,
    ) -> Result<(), Answer<D>> {
        let bytes = wire_size(&add);
        let used = self.queued_bytes + self.flight_bytes;
        if used > 0 && used + bytes > self.limits.window {
            return Err((done, Err(AddError::Unknown("too much is waiting for this bookie"))));
        }
        self.queued_bytes += bytes;
        let due = now + self.limits.deadline;
        self.queue.push_back(Queued { incarnation: to, add, done, bytes, due });
        Ok(())
    }

    /// A stream is open: `credit` bytes may be unanswered.
    pub(crate) fn opened(&mut self, credit: usize) {
        debug_assert!(self.flight.is_empty(), "the last stream's adds were told at its end");
        self.credit = credit;
        self.first = 0;
    }

    /// What goes out next: what is queued, up to a batch's size, the credit, and the next change of incarnation.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Option<(Incarnation, Vec<Add>)> {
        let incarnation = self.queue.front()?.incarnation;
        let mut adds = Vec::new();
        let mut taken = 0;
        while let Some(front) = self.queue.front() {
            let fits =
                self.flight_bytes + front.bytes <= self.credit || (self.flight.is_empty() && self.credit > 0);
            let full = !adds.is_empty() && taken + front.bytes > self.limits.batch;
            if !fits || full || front.incarnation != incarnation {
                break;
            }
            let Some(Queued { add, done, bytes, due, .. }) = self.queue.pop_front() else { break };
            taken += bytes;
            self.queued_bytes -= bytes;
            self.flight_bytes += bytes;
            self.flight.push_back(Flying { done: Some(done), answered: false, bytes, sent: now, due });
            adds.push(add);
        }
        (!adds.is_empty()).then_some((incarnation, adds))
    }

    /// The bookie answered `count` adds from number `first` on. Answers how long the last of them took.
    pub(crate) fn answered(
        &mut self,
        (first, count): (u64, u64),
        result: &Result<(), AddError>,
        now: Instant,
        told: &mut Vec<Answer<D>>,
    ) -> Result<Option<Duration>, Violation> {
        let from = first.checked_sub(self.first).filter(|from| *from < self.flight.len() as u64);
        let from = from.ok_or(Violation("an answer to no add"))? as usize;
        if count == 0 || count > (self.flight.len() - from) as u64 {
            return Err(Violation("an answer to more adds than are in flight"));
        }
        let mut took = None;
        for flying in self.flight.range_mut(from..from + count as usize) {
            if std::mem::replace(&mut flying.answered, true) {
                return Err(Violation("a second answer to one add"));
            }
            self.flight_bytes -= flying.bytes;
            took = Some(now.saturating_duration_since(flying.sent));
            told.extend(flying.done.take().map(|done| (done, result.clone())));
        }
        while self.flight.front().is_some_and(|flying| flying.answered) {
            self.flight.pop_front();
            self.first += 1;
        }
        Ok(took)
    }

    /// When the next add runs out of time.
    pub(crate) fn due(&self) -> Option<Instant> {
        let flying = self.flight.iter().find(|flying| flying.done.is_some()).map(|flying| flying.due);
        flying.or_else(|| self.queue.front().map(|queued| queued.due))
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.limits.deadline
    }

    /// Ends what ran out of time.
    pub(crate) fn expire(&mut self, now: Instant, told: &mut Vec<Answer<D>>) {
        let late = || Err(AddError::Unknown("no answer in time"));
        for flying in self.flight.iter_mut().take_while(|flying| flying.due <= now) {
            told.extend(flying.done.take().map(|done| (done, late())));
        }
        while let Some(queued) = self.queue.pop_front_if(|queued| queued.due <= now) {
            self.queued_bytes -= queued.bytes;
            told.push((queued.done, late()));
        }
    }

    /// The stream has ended, or none could be had: nothing that waits will be answered.
    pub(crate) fn broken(&mut self, why: &'static str, told: &mut Vec<Answer<D>>) {
        let flying = self.flight.drain(..).filter_map(|flying| flying.done);
        let queued = self.queue.drain(..).map(|queued| queued.done);
        told.extend(flying.chain(queued).map(|done| (done, Err(AddError::Unknown(why)))));
        (self.queued_bytes, self.flight_bytes, self.first, self.credit) = (0, 0, 0, 0);
    }

    pub(crate) fn wanting(&self) -> bool {
        !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::ids::{LedgerId, Term};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const ROW: usize = 48;

    fn limits(batch: usize, window: usize) -> Limits {
        Limits { batch, window, deadline: Duration::from_secs(3) }
    }

    /// An add without entries weighs one row.
    fn add(n: u64) -> Add {
        Add { ledger: LedgerId(n), term: Term(1), lac: None, lafr: None, attributes: None, entries: vec![] }
    }

    fn sent(batch: Option<(Incarnation, Vec<Add>)>) -> Vec<u64> {
        batch.map_or(vec![], |(_, adds)| adds.iter().map(|add| add.ledger.0).collect())
    }

    fn filled(limits: Limits, count: u64, now: Instant) -> Window<u64> {
        let mut window = Window::new(limits);
        (0..count).for_each(|n| window.offer(Incarnation(1), add(n), n, now).unwrap());
        window
    }

    #[test]
    fn batches_close_at_their_size_at_the_credit_and_at_another_incarnation() {
        let now = Instant::now();
        let mut window = filled(limits(3 * ROW, 100 * ROW), 8, now);
        assert_eq!(sent(window.next_batch(now)), [], "without a stream there is no credit");
        window.opened(5 * ROW);
        assert_eq!(sent(window.next_batch(now)), [0, 1, 2]);
        assert_eq!(sent(window.next_batch(now)), [3, 4]);
        assert_eq!(sent(window.next_batch(now)), []);
        let mut told = vec![];
        window.answered((0, 1), &Ok(()), now, &mut told).unwrap();
        assert_eq!(sent(window.next_batch(now)), [5]);
        window.offer(Incarnation(2), add(9), 9, now).unwrap();
        window.answered((1, 5), &Ok(()), now, &mut told).unwrap();
        assert_eq!(sent(window.next_batch(now)), [6, 7]);
        assert_eq!(window.next_batch(now).unwrap().0, Incarnation(2));
    }

    #[test]
    fn an_add_above_the_credit_goes_alone_and_one_above_the_window_too() {
        let now = Instant::now();
        let mut window = filled(limits(10 * ROW, ROW / 2), 1, now);
        assert!(window.offer(Incarnation(1), add(1), 1, now).is_err(), "not beside another");
        window.opened(1);
        assert_eq!(sent(window.next_batch(now)), [0]);
        window.answered((0, 1), &Ok(()), now, &mut vec![]).unwrap();
        window.offer(Incarnation(1), add(2), 2, now).unwrap();
        assert_eq!(sent(window.next_batch(now)), [2]);
    }

    #[test]
    fn what_ran_out_of_time_keeps_its_credit() {
        let now = Instant::now();
        let mut window = filled(limits(10 * ROW, 100 * ROW), 2, now);
        window.opened(2 * ROW);
        window.next_batch(now);
        let later = now + Duration::from_secs(3);
        let mut told = vec![];
        window.expire(later, &mut told);
        assert_eq!(told.len(), 2);
        window.offer(Incarnation(1), add(2), 2, later).unwrap();
        assert_eq!(sent(window.next_batch(later)), [], "the bookie still holds the bytes");
        window.answered((0, 2), &Ok(()), later, &mut told).unwrap();
        assert_eq!(told.len(), 2, "told once");
        assert_eq!(sent(window.next_batch(later)), [2]);
    }

    #[test]
    fn answers_to_nothing_are_noticed() {
        let now = Instant::now();
        let mut window = filled(limits(10 * ROW, 100 * ROW), 3, now);
        window.opened(10 * ROW);
        window.next_batch(now);
        let mut answer = |range| window.answered(range, &Ok(()), now, &mut vec![]).is_ok();
        assert!(!answer((3, 1)) && !answer((0, 4)) && !answer((1, u64::MAX)) && !answer((0, 0)));
        assert!(answer((1, 1)));
        assert!(!answer((1, 1)), "a second answer");
        assert!(answer((0, 1)));
        assert!(!answer((0, 1)), "numbers below are settled");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Offer(u64),
        Batch,
        Answer(prop::sample::Index, u64),
        Wait,
        Break,
        Open(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..3).prop_map(Step::Offer),
            4 => Just(Step::Batch),
            4 => (any::<prop::sample::Index>(), 1_u64..4).prop_map(|(at, n)| Step::Answer(at, n)),
            1 => Just(Step::Wait),
            1 => Just(Step::Break),
            1 => (1_u64..6).prop_map(Step::Open),
        ]
    }

    proptest! {
        #[test]
        fn every_add_is_told_once_and_bounds_hold(steps in prop::collection::vec(step(), 0..200)) {
            let (mut window, mut now, mut offered) = (Window::new(limits(3 * ROW, 8 * ROW)), Instant::now(), 0);
            let (mut told, mut counts, mut last_sent, mut open) = (vec![], BTreeMap::<u64, u32>::new(), None, false);
            for step in steps {
                match step {
                    Step::Offer(incarnation) => {
                        if let Err(refused) = window.offer(Incarnation(incarnation), add(offered), offered, now) {
                            told.push(refused);
                        }
                        offered += 1;
                    }
                    Step::Batch => for n in sent(window.next_batch(now)) {
                        prop_assert!(last_sent.is_none_or(|last| last < n), "order");
                        last_sent = Some(n);
                    },
                    Step::Answer(at, count) if !window.flight.is_empty() => {
                        let first = window.first + at.index(window.flight.len()) as u64;
                        if window.answered((first, count), &Ok(()), now, &mut told).is_err() {
                            window.broken("violation", &mut told);
                            open = false;
                        }
                    }
                    Step::Wait => {
                        now += Duration::from_secs(2);
                        window.expire(now, &mut told);
                    }
                    Step::Open(rows) if !open => {
                        window.opened(rows as usize * ROW);
                        open = true;
                    }
                    Step::Break => {
                        window.broken("test", &mut told);
                        open = false;
                    }
                    _ => {}
                }
                prop_assert!(window.flight_bytes <= window.credit.max(ROW));
                prop_assert!(window.flight_bytes + window.queued_bytes <= 8 * ROW);
                prop_assert!(window.due().is_none_or(|due| due > now), "nothing is overdue after a look");
            }
            window.broken("end", &mut told);
            told.iter().for_each(|(n, _)| *counts.entry(*n).or_default() += 1);
            prop_assert_eq!(counts.len() as u64, offered);
            prop_assert!(counts.values().all(|count| *count == 1));
        }
    }
}
