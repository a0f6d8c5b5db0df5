//! Reads against holders that are slow, empty or gone.

use super::*;
use crate::entry::{Header, Kind};
use crate::memory::MemoryBookies;
use crate::quorum::QuorumSpec;
use crate::record::Fragment;
use crate::rpc::Add;
use bytes::Bytes;
use geminga_common::ids::{MessageIndex, Term};
use std::time::Duration;

const LEDGER: LedgerId = LedgerId(1);
const LONG: Duration = Duration::from_secs(20);

fn entry() -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(0),
        timestamp_ms: 0,
        bytes_before: 0,
    };
    Entry::new(LEDGER, EntryId(0), header, Bytes::from_static(b"entry"))
}

/// Three bookies; those in `holders` have the entry.
async fn world(holders: &[usize]) -> (MemoryBookies, LedgerView) {
    let bookies = MemoryBookies::new(3);
    for at in holders {
        let (tell, told) = futures::channel::oneshot::channel();
        let (ledger, term, entries) = (LEDGER, Term(1), vec![entry()]);
        let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries };
        bookies.add(&bookies.refs()[*at], add, Box::new(move |result| drop(tell.send(result))));
        told.await.unwrap().unwrap();
    }
    let ensemble = bookies.refs().into_iter().map(Some).collect();
    let quorum = QuorumSpec::new(3, 3, 2).unwrap();
    let view = LedgerView { id: LEDGER, quorum, fragments: vec![Fragment { first: EntryId(0), ensemble }] };
    (bookies, view)
}

async fn read(bookies: &MemoryBookies, view: &LedgerView, hedge: &Hedge) -> Result<Vec<Entry>, ReadError> {
    let plan = plan(view, EntryId(0), EntryId(0), 1 << 20, ReadClass::Tail).unwrap();
    run(bookies, hedge, plan).await
}

fn slow(bookies: &MemoryBookies, at: usize) {
    bookies.faults(&bookies.refs()[at].id, |faults| faults.delay = LONG);
}

#[tokio::test]
async fn a_slow_holder_costs_a_percentile_and_not_a_deadline() {
    let (bookies, view) = world(&[0, 1, 2]).await;
    let hedge = Hedge::default();
    for _ in 0..100 {
        assert_eq!(read(&bookies, &view, &hedge).await, Ok(vec![entry()]));
    }
    slow(&bookies, 0);
    let start = Instant::now();
    assert_eq!(read(&bookies, &view, &hedge).await, Ok(vec![entry()]));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    slow(&bookies, 1);
    assert_eq!(read(&bookies, &view, &hedge).await, Ok(vec![entry()]), "and of two slow ones, two");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn when_the_budget_is_spent_a_slow_holder_costs_its_patience() {
    let (bookies, view) = world(&[0, 1, 2]).await;
    slow(&bookies, 0);
    let hedge = Hedge::default();
    while hedge.spend(ReadClass::Tail) {}
    let start = Instant::now();
    assert_eq!(read(&bookies, &view, &hedge).await, Ok(vec![entry()]));
    assert!(start.elapsed() >= PATIENCE);
}

#[tokio::test]
async fn a_no_asks_the_next_at_once_and_absence_needs_a_quorum() {
    let (bookies, view) = world(&[2]).await;
    let (hedge, start) = (Hedge::default(), Instant::now());
    assert_eq!(read(&bookies, &view, &hedge).await, Ok(vec![entry()]));
    assert!(start.elapsed() < Duration::from_millis(90), "no percentile was waited for");
    let (bookies, view) = world(&[]).await;
    assert_eq!(read(&bookies, &view, &hedge).await, Err(ReadError::NoSuchEntry(EntryId(0))));
    for at in [0, 1] {
        bookies.faults(&bookies.refs()[at].id, |faults| faults.down = true);
    }
    assert_eq!(read(&bookies, &view, &hedge).await, Err(ReadError::Unavailable(EntryId(0))));
}
