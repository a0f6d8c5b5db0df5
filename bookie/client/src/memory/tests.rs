//! The fake holds to the rules, and its faults do what they say.

use super::*;
use crate::entry::{Entry, Header, Kind};
use bytes::Bytes;
use geminga_common::ids::MessageIndex;
use std::sync::mpsc;

#[tokio::test]
async fn bookies_in_memory_conform() {
    let bookies = MemoryBookies::new(1);
    let me = bookies.refs()[0].clone();
    crate::conformance::bookie_rpc(Arc::new(bookies), me).await;
}

fn add(id: u64) -> Add {
    let header = Header {
        kind: Kind::CursorLog,
        messages: 0,
        first_index: MessageIndex(0),
        timestamp_ms: 0,
        bytes_before: 0,
    };
    let entries = vec![Entry::new(LedgerId(1), EntryId(id), header, Bytes::from_static(b"x"))];
    Add { ledger: LedgerId(1), term: Term(1), lac: None, lafr: None, attributes: None, entries }
}

fn send(bookies: &MemoryBookies, id: u64) -> mpsc::Receiver<Result<(), AddError>> {
    let (told, answer) = mpsc::sync_channel(1);
    let me = bookies.refs()[0].clone();
    bookies.add(&me, add(id), Box::new(move |result| told.send(result).unwrap()));
    answer
}

#[test]
fn faults_decide_between_executed_and_answered() {
    let bookies = MemoryBookies::new(1);
    let me = bookies.refs()[0].id.clone();
    let stored = |id| bookies.with_store(&me, |s| s.entry(LedgerId(1), EntryId(id)).is_some()).unwrap();
    bookies.faults(&me, |f| f.down = true);
    assert!(matches!(send(&bookies, 0).try_recv(), Ok(Err(AddError::Unknown(_)))));
    assert!(!stored(0));
    bookies.faults(&me, |f| *f = Faults { lose_answers: true, ..Faults::default() });
    assert!(matches!(send(&bookies, 0).try_recv(), Ok(Err(AddError::Unknown(_)))));
    assert!(stored(0));
    bookies.faults(&me, |f| *f = Faults { hold_answers: true, ..Faults::default() });
    let held = send(&bookies, 1);
    assert!(stored(1) && held.try_recv().is_err());
    bookies.release(&me);
    assert_eq!(held.try_recv(), Ok(Ok(())));
    bookies.wipe(&me, true);
    assert_eq!(bookies.refs()[0].incarnation, Incarnation(2));
    assert!(!stored(1));
}

#[test]
fn in_stepping_mode_the_test_chooses_what_arrives() {
    let bookies = MemoryBookies::new(1);
    bookies.stepping(true);
    let (first, second) = (send(&bookies, 0), send(&bookies, 1));
    assert_eq!(bookies.underway().len(), 2);
    bookies.deliver(1);
    assert!(first.try_recv().is_err());
    assert_eq!(second.try_recv(), Ok(Ok(())));
    bookies.lose(0);
    assert!(matches!(first.try_recv(), Ok(Err(AddError::Unknown(_)))));
}
