//! The driver over bookies in memory: lags, vacancies, lost stores, entries nobody can give, destinations that lie.

use super::*;
use crate::entry::{Entry, Header, Kind};
use crate::memory::MemoryBookies;
use crate::placement::StaticPlacement;
use crate::quorum::QuorumSpec;
use crate::record::{Fragment, RepairRange};
use crate::rpc::{Add, IdRange};
use bytes::Bytes;
use geminga_common::ids::{LedgerId, MessageIndex, Term};

const LEDGER: LedgerId = LedgerId(7);
const LAST: u64 = 49;

fn entry(id: u64) -> Entry {
    let (messages, first_index) = (1, MessageIndex(id));
    let header =
        Header { kind: Kind::Messages, messages, first_index, timestamp_ms: 0, bytes_before: id * 100 };
    Entry::new(LEDGER, EntryId(id), header, Bytes::from(format!("payload {id} {}", "x".repeat(60))))
}

fn give(bookies: &MemoryBookies, to: &BookieRef, ids: impl Iterator<Item = u64>) {
    let entries = ids.map(entry).collect();
    let add = Add { ledger: LEDGER, term: Term(3), lac: None, lafr: None, attributes: None, entries };
    bookies.with_store(&to.id, |store| store.add(to, add)).unwrap().unwrap();
}

fn ledger(members: Vec<Option<BookieRef>>, repair: Vec<RepairRange>) -> ClosedLedger {
    ClosedLedger {
        id: LEDGER,
        last: Some(EntryId(LAST)),
        length: 1,
        term: Term(3),
        quorum: QuorumSpec::new(3, 3, 2).unwrap(),
        fragments: vec![Fragment { first: EntryId(0), ensemble: members }],
        repair,
    }
}

fn range(first: u64, last: u64, slot: u32) -> RepairRange {
    RepairRange { first: EntryId(first), last: Some(EntryId(last)), slot }
}

/// Repairs with all bookies sound but those that are gone.
async fn go(bookies: &MemoryBookies, ledger: &ClosedLedger, gone: &[BookieRef]) -> Outcome {
    let alive = bookies.refs().into_iter().filter(|bookie| !gone.contains(bookie)).collect();
    let placement = StaticPlacement::new(alive);
    let now = bookies.refs();
    let standing = |b: &BookieRef| {
        if gone.contains(b) || !now.contains(b) { Standing::Gone } else { Standing::Sound }
    };
    let means = Means { rpc: bookies, placement: &placement, standing: &standing, copied: &|_, _| {} };
    repair(&means, ledger.clone()).await
}

fn holds(bookies: &MemoryBookies, at: &BookieRef, ids: std::ops::RangeInclusive<u64>) -> bool {
    bookies
        .with_store(&at.id, |s| ids.clone().all(|id| s.entry(LEDGER, EntryId(id)) == Some(&entry(id))))
        .unwrap()
}

#[tokio::test]
async fn a_member_that_lagged_gets_what_it_lacks_and_nothing_else_moves() {
    let bookies = MemoryBookies::new(3);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    give(&bookies, &refs[2], (0..20).chain(30..=LAST));
    let members: Vec<_> = refs.iter().cloned().map(Some).collect();
    let before = ledger(members, vec![range(20, 29, 2)]);
    let outcome = go(&bookies, &before, &[]).await;
    assert_eq!(outcome, Outcome { ledger: ClosedLedger { repair: vec![], ..before.clone() }, stuck: None });
    assert!(holds(&bookies, &refs[2], 0..=LAST));
}

#[tokio::test]
async fn a_vacant_slot_and_a_lost_store_get_new_members() {
    let bookies = MemoryBookies::new(4);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    // Vacant.
    let members = vec![Some(refs[0].clone()), Some(refs[1].clone()), None];
    let outcome = go(&bookies, &ledger(members, vec![range(0, LAST, 2)]), &[]).await;
    assert_eq!(outcome.stuck, None);
    assert!(outcome.ledger.repair.is_empty());
    let third = outcome.ledger.fragments[0].ensemble[2].clone().unwrap();
    assert!(third == refs[2] || third == refs[3]);
    assert!(holds(&bookies, &third, 0..=LAST));
    // The store of a member is lost; it comes back empty under the same name.
    bookies.wipe(&refs[1].id, true);
    let outcome = go(&bookies, &outcome.ledger, &[]).await;
    assert_eq!(outcome.stuck, None);
    let second = outcome.ledger.fragments[0].ensemble[1].clone().unwrap();
    assert_ne!(second, refs[1]);
    assert!(holds(&bookies, &second, 0..=LAST));
}

#[tokio::test]
async fn without_a_spare_nothing_is_published_and_the_reason_is_named() {
    let bookies = MemoryBookies::new(3);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    let before = ledger(refs.iter().cloned().map(Some).collect(), vec![]);
    let gone = [refs[2].clone()];
    let outcome = go(&bookies, &before, &gone).await;
    assert_eq!(outcome, Outcome { ledger: before, stuck: Some(Stuck::NoPlace) });
}

#[tokio::test]
async fn an_entry_that_no_holder_can_give_stops_its_job_and_damage_is_not_copied() {
    let bookies = MemoryBookies::new(4);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    for one in &refs[..2] {
        bookies.with_store(&one.id, |s| s.damage(LEDGER, EntryId(33)));
    }
    let members = vec![Some(refs[0].clone()), Some(refs[1].clone()), None];
    let before = ledger(members, vec![range(0, LAST, 2)]);
    let outcome = go(&bookies, &before, &[refs[3].clone()]).await;
    assert_eq!(outcome, Outcome { ledger: before.clone(), stuck: Some(Stuck::Unreadable(EntryId(33))) });
    // What came before it stays copied: the next attempt goes on from there.
    assert!(holds(&bookies, &refs[2], 0..=32));
    // The one holder that is damaged is passed over.
    give(&bookies, &refs[0], 33..=33);
    let outcome = go(&bookies, &before, &[refs[3].clone()]).await;
    assert_eq!(outcome.stuck, None);
    assert!(holds(&bookies, &refs[2], 0..=LAST));
}

#[tokio::test]
async fn terms_stay_and_a_destination_that_lies_is_found_out() {
    let bookies = MemoryBookies::new(3);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    // A stray fence of a late recoverer: copies are taken all the same, and leave it in force.
    bookies
        .with_store(&refs[2].id, |s| s.fence_tail(&refs[2], LEDGER, Term(9), EntryId(0)))
        .unwrap()
        .unwrap();
    let members: Vec<_> = refs.iter().cloned().map(Some).collect();
    let before = ledger(members, vec![range(0, LAST, 2)]);
    let outcome = go(&bookies, &before, &[]).await;
    assert_eq!(outcome.stuck, None);
    assert_eq!(bookies.with_store(&refs[2].id, |s| s.term(LEDGER)), Some(Term(9)));
    // It loses everything and does not say so: the proof fails.
    let job = Job {
        fragment: 0,
        slot: 2,
        ids: IdRange { first: EntryId(0), last: EntryId(LAST) },
        keep: None,
        copies: 2,
    };
    bookies.wipe(&refs[2].id, false);
    let placement = StaticPlacement::new(refs.clone());
    let means =
        Means { rpc: &bookies, placement: &placement, standing: &|_| Standing::Sound, copied: &|_, _| {} };
    let proof = prove(&means, &before, &job, &refs[2]).await;
    assert_eq!(proof, Err(Stuck::Unproven(refs[2].clone(), EntryId(0))));
}

#[tokio::test]
async fn a_destination_that_cannot_be_reached_leaves_the_ledger_as_it_is() {
    let bookies = MemoryBookies::new(3);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], 0..=LAST);
    bookies.faults(&refs[2].id, |faults| faults.down = true);
    let before = ledger(refs.iter().cloned().map(Some).collect(), vec![range(3, 5, 2)]);
    let outcome = go(&bookies, &before, &[]).await;
    assert_eq!(outcome.ledger, before);
    assert!(matches!(outcome.stuck, Some(Stuck::Unreachable(..))), "{:?}", outcome.stuck);
}

#[tokio::test]
async fn a_member_that_found_damage_fetches_what_it_lost_and_the_ledger_stays_as_it_is() {
    let bookies = MemoryBookies::new(3);
    let refs = bookies.refs();
    give(&bookies, &refs[0], 0..=LAST);
    give(&bookies, &refs[1], (0..20).chain(25..=LAST));
    give(&bookies, &refs[2], 0..=LAST);
    let whole = ledger(refs.iter().cloned().map(Some).collect(), vec![]);
    let placement = StaticPlacement::new(refs.clone());
    let means =
        Means { rpc: &bookies, placement: &placement, standing: &|_| Standing::Sound, copied: &|_, _| {} };
    // Nothing in the record says so, and nobody else is asked.
    assert_eq!(repair(&means, whole.clone()).await, Outcome { ledger: whole.clone(), stuck: None });
    assert_eq!(make_good(&means, &whole, |member| *member == refs[0]).await, Ok(false));
    assert!(!holds(&bookies, &refs[1], 20..=24));
    assert_eq!(make_good(&means, &whole, |member| *member == refs[1]).await, Ok(true));
    assert!(holds(&bookies, &refs[1], 0..=LAST));
    assert_eq!(make_good(&means, &whole, |member| *member == refs[1]).await, Ok(false));
}
