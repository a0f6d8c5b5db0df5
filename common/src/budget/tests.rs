//! The budget's promises: never above the limit, in order, nothing lost when somebody gives up.

use super::*;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use proptest::prelude::*;

fn now<T>(future: &mut BoxFuture<'_, T>) -> Option<T> {
    future.now_or_never()
}

#[test]
fn permits_count_and_come_back() {
    let budget = Budget::new(10);
    let mut a = budget.try_take(6).unwrap();
    assert!(budget.try_take(5).is_none());
    let b = budget.try_take(4).unwrap();
    assert_eq!((budget.used(), budget.limit()), (10, 10));
    let part = a.split(2).unwrap();
    assert!(a.split(5).is_none());
    assert_eq!((a.bytes(), part.bytes(), budget.used()), (4, 2, 10));
    drop(part);
    assert_eq!(budget.used(), 8);
    a.merge(b);
    assert_eq!((a.bytes(), budget.used()), (8, 8));
    drop(a);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_request_above_the_limit_is_served_alone() {
    let budget = Budget::new(10);
    let small = budget.try_take(1).unwrap();
    assert!(budget.try_take(11).is_none());
    let mut large = budget.take(100).boxed();
    assert!(now(&mut large).is_none());
    drop(small);
    let permit = now(&mut large).expect("empty otherwise");
    assert_eq!(budget.used(), 100);
    assert!(budget.try_take(1).is_none());
    drop(permit);
    assert!(budget.try_take(u64::MAX).is_some());
}

#[test]
fn waiters_are_served_in_order() {
    let budget = Budget::new(10);
    let held = budget.try_take(8).unwrap();
    let (mut first, mut second) = (budget.take(5).boxed(), budget.take(1).boxed());
    assert!(now(&mut first).is_none() && now(&mut second).is_none());
    assert!(budget.try_take(1).is_none(), "nobody overtakes");
    assert_eq!(budget.waiting(), 2);
    drop(held);
    let (first, second) = (now(&mut first).unwrap(), now(&mut second).unwrap());
    assert_eq!((first.bytes(), second.bytes(), budget.used(), budget.waiting()), (5, 1, 6, 0));
}

#[test]
fn giving_up_lets_those_behind_move_up() {
    let budget = Budget::new(10);
    let held = budget.try_take(8).unwrap();
    let (mut first, mut second) = (budget.take(5).boxed(), budget.take(1).boxed());
    assert!(now(&mut first).is_none() && now(&mut second).is_none());
    drop(first);
    assert_eq!(now(&mut second).expect("its turn").bytes(), 1);
    drop(held);
    assert_eq!(budget.used(), 0);
}

#[test]
fn giving_up_after_the_grant_gives_the_bytes_back() {
    let budget = Budget::new(10);
    let held = budget.try_take(8).unwrap();
    let (mut first, mut second) = (budget.take(10).boxed(), budget.take(10).boxed());
    assert!(now(&mut first).is_none() && now(&mut second).is_none());
    drop(held);
    assert_eq!(budget.used(), 10, "granted, not yet seen");
    drop(first);
    assert_eq!(now(&mut second).expect("its turn").bytes(), 10);
    assert_eq!((budget.used(), budget.waiting()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_contention_nothing_is_lost_and_the_limit_holds() {
    let budget = Budget::new(100);
    let tasks = (1..=8_u64).map(|task| {
        let budget = budget.clone();
        async move {
            for i in 0..2000 {
                let permit = budget.take((task * 13 + i) % 60 + 1).await;
                assert!(budget.used() <= 100);
                if i % 7 == 0 {
                    tokio::task::yield_now().await;
                }
                drop(permit);
            }
        }
    });
    let group = crate::tasks::TaskGroup::new();
    for task in tasks {
        group.spawn("taker", crate::tasks::OnFailure::StopProcess, task);
    }
    assert!(group.join(std::time::Duration::from_secs(60)).await.is_empty());
    assert_eq!((budget.used(), budget.waiting()), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Try(u64),
    Take(u64),
    Poll(usize),
    GiveUp(usize),
    Drop(usize),
    Split(usize, u64),
}

/// Requests above the limit have a test of their own.
const LIMIT: u64 = 20;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..=LIMIT).prop_map(Step::Try),
        (0..=LIMIT).prop_map(Step::Take),
        (0..8_usize).prop_map(Step::Poll),
        (0..8_usize).prop_map(Step::GiveUp),
        (0..8_usize).prop_map(Step::Drop),
        (0..8_usize, 0..10_u64).prop_map(|(at, bytes)| Step::Split(at, bytes)),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn never_above_the_limit_and_nothing_leaks(steps in steps()) {
        let budget = Budget::new(LIMIT);
        let mut permits: Vec<Permit> = Vec::new();
        let mut takers: Vec<BoxFuture<'_, Permit>> = Vec::new();
        for step in steps {
            match step {
                Step::Try(bytes) => permits.extend(budget.try_take(bytes)),
                Step::Take(bytes) => {
                    let mut taker = budget.take(bytes).boxed();
                    match now(&mut taker) {
                        Some(permit) => permits.push(permit),
                        None => takers.push(taker),
                    }
                }
                Step::Poll(at) if at < takers.len() => {
                    if let Some(permit) = now(&mut takers[at]) {
                        permits.push(permit);
                        drop(takers.remove(at));
                    }
                }
                Step::GiveUp(at) if at < takers.len() => drop(takers.remove(at)),
                Step::Drop(at) if at < permits.len() => drop(permits.remove(at)),
                Step::Split(at, bytes) if at < permits.len() => {
                    let part = permits[at].split(bytes);
                    permits.extend(part);
                }
                _ => {}
            }
            let held: u64 = permits.iter().map(Permit::bytes).sum();
            prop_assert!(budget.used() >= held);
            prop_assert!(budget.used() <= LIMIT, "{} bytes are out", budget.used());
        }
        // Every waiter gets its turn once the others have let go.
        permits.clear();
        while !takers.is_empty() {
            let before = takers.len();
            takers.retain_mut(|taker| now(taker).is_none());
            prop_assert!(takers.len() < before, "a waiter is stuck with {} bytes out", budget.used());
        }
        prop_assert_eq!((budget.used(), budget.waiting()), (0, 0));
    }
}
