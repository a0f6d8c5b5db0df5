//! What every [`BookieRpc`] must do, as named cases: run against the in-memory bookies here, against the engine and the network
//! elsewhere. Each case uses ledgers of its own, so that the suite may run on a store that already holds others (ids from
//! [`FIRST_LEDGER`] on must be unused).

use crate::entry::{Entry, Header, Kind};
use crate::record::{LedgerAttributes, LedgerKind};
use crate::rpc::{
    Add, AddError, BookieRef, BookieRpc, ControlError, Doubt, IdRange, Read, ReadAnswer, ReadClass, Tail,
};
use bytes::Bytes;
use futures::channel::oneshot;
use geminga_common::ids::{EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use std::sync::Arc;

/// First ledger id the suite uses.
pub const FIRST_LEDGER: u64 = 7_000_000;

/// One case's view: a bookie and a ledger of its own.
struct Case {
    rpc: Arc<dyn BookieRpc>,
    me: BookieRef,
    ledger: LedgerId,
}

fn id(n: u64) -> EntryId {
    EntryId(n)
}

fn run(first: u64, last: u64) -> IdRange {
    IdRange { first: id(first), last: id(last) }
}

impl Case {
    fn entry(&self, n: u64, text: &str) -> Entry {
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(n),
            timestamp_ms: 1,
            bytes_before: 100 * n,
        };
        Entry::new(self.ledger, id(n), header, Bytes::copy_from_slice(text.as_bytes()))
    }

    fn of(&self, ids: &[u64]) -> Vec<Entry> {
        ids.iter().map(|n| self.entry(*n, &format!("entry {n}"))).collect()
    }

    async fn send(&self, to: &BookieRef, add: Add) -> Result<(), AddError> {
        let (told, answer) = oneshot::channel();
        self.rpc.add(to, add, Box::new(move |result| drop(told.send(result))));
        answer.await.expect("every add is answered")
    }

    fn adding(&self, term: u64, entries: Vec<Entry>) -> Add {
        Add { ledger: self.ledger, term: Term(term), lac: None, lafr: None, attributes: None, entries }
    }

    async fn add(&self, term: u64, ids: &[u64]) -> Result<(), AddError> {
        self.send(&self.me, self.adding(term, self.of(ids))).await
    }

    async fn read_from(&self, to: &BookieRef, first: u64, last: u64, bytes_max: usize) -> ReadAnswer {
        let (first, last) = (id(first), id(last));
        self.rpc.read(to, Read { ledger: self.ledger, first, last, bytes_max, class: ReadClass::Tail }).await
    }

    async fn read(&self, first: u64, last: u64) -> ReadAnswer {
        self.read_from(&self.me, first, last, 1 << 20).await
    }

    async fn fence(&self, term: u64, from: u64) -> Result<Tail, ControlError> {
        self.rpc.fence_tail(&self.me, self.ledger, Term(term), id(from)).await
    }

    fn stranger(&self) -> BookieRef {
        BookieRef { incarnation: Incarnation(self.me.incarnation.0 ^ 0x5555), ..self.me.clone() }
    }
}

/// Runs every case.
///
/// # Panics
/// When the bookie breaks a rule; the message names it.
pub async fn bookie_rpc(rpc: Arc<dyn BookieRpc>, me: BookieRef) {
    let case = |n: u64| Case { rpc: rpc.clone(), me: me.clone(), ledger: LedgerId(FIRST_LEDGER + n) };
    what_was_added_reads_back(case(0)).await;
    reads_stop_at_holes_and_at_their_limit(case(1)).await;
    absence_is_proved_and_a_stranger_knows_nothing(case(2)).await;
    terms_only_rise(case(3)).await;
    a_fence_refuses_the_old_writer_even_of_an_unknown_ledger(case(4)).await;
    a_fence_tells_runs_bounds_and_attributes(case(5)).await;
    a_duplicate_is_acknowledged_and_raises_the_term(case(6)).await;
    other_bytes_under_an_id_are_a_conflict(case(7)).await;
    bytes_that_fail_their_checksum_are_refused(case(8)).await;
    a_seal_ends_the_ledger(case(9)).await;
    a_deleted_ledger_takes_nothing(case(10)).await;
    another_incarnation_is_refused_everywhere(case(11)).await;
    an_add_without_entries_carries_term_and_bounds(case(12)).await;
    pipelined_adds_arrive_in_call_order(case(13)).await;
}

async fn what_was_added_reads_back(c: Case) {
    c.add(1, &[0, 1, 2]).await.expect("a first add");
    assert_eq!(c.read(0, 2).await, ReadAnswer::Found(c.of(&[0, 1, 2])), "entries read back byte for byte");
    assert_eq!(c.read(1, 1).await, ReadAnswer::Found(c.of(&[1])), "a read ends at its last id");
}

async fn reads_stop_at_holes_and_at_their_limit(c: Case) {
    c.add(1, &[0, 1, 3]).await.expect("ids may leave holes: striping does");
    assert_eq!(c.read(0, 9).await, ReadAnswer::Found(c.of(&[0, 1])), "a run ends at a hole");
    assert!(matches!(c.read(2, 9).await, ReadAnswer::NotFound(_)), "a hole is provably absent");
    let one = c.read_from(&c.me, 0, 9, 1).await;
    assert_eq!(one, ReadAnswer::Found(c.of(&[0])), "at least one entry, whatever the limit");
}

async fn absence_is_proved_and_a_stranger_knows_nothing(c: Case) {
    assert!(matches!(c.read(0, 0).await, ReadAnswer::NotFound(_)), "an unknown ledger is provably absent");
    c.add(1, &[0]).await.expect("an add");
    assert!(matches!(c.read(1, 1).await, ReadAnswer::NotFound(_)), "an id beyond the end is provably absent");
    let answer = c.read_from(&c.stranger(), 1, 1, 1).await;
    assert_eq!(answer, ReadAnswer::Unknown(Doubt::WrongIncarnation), "another incarnation proves nothing");
}

async fn terms_only_rise(c: Case) {
    c.add(3, &[0]).await.expect("any first term");
    assert_eq!(c.add(2, &[1]).await, Err(AddError::StaleTerm(Term(3))), "lower terms are refused");
    c.add(4, &[1]).await.expect("a higher term is taken");
    assert_eq!(c.add(3, &[2]).await, Err(AddError::StaleTerm(Term(4))), "an add raises the term");
    assert!(matches!(c.read(2, 2).await, ReadAnswer::NotFound(_)), "what was refused is not stored");
}

async fn a_fence_refuses_the_old_writer_even_of_an_unknown_ledger(c: Case) {
    let tail = c.fence(2, 0).await.expect("a fence of an unknown ledger");
    assert_eq!((tail.lac, tail.present), (None, vec![]));
    assert_eq!(c.add(1, &[0]).await, Err(AddError::StaleTerm(Term(2))), "the old writer is over");
    assert_eq!(
        c.fence(1, 0).await.expect_err("must be refused"),
        ControlError::StaleTerm(Term(2)),
        "so is an older recoverer"
    );
    c.fence(2, 0).await.expect("the same term may fence again");
    c.add(2, &[0]).await.expect("the recoverer writes back at its term");
}

async fn a_fence_tells_runs_bounds_and_attributes(c: Case) {
    let attributes = Arc::new(LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "persistent://tenant/space/topic".into(),
        topic: TopicId(3),
        ordinal: 4,
        predecessor: Some(LedgerId(5)),
        owner_epoch: OwnerEpoch(6),
        first_index: MessageIndex(7),
    });
    let add = Add { attributes: Some(attributes.clone()), ..c.adding(1, c.of(&[0, 1, 2])) };
    c.send(&c.me, add).await.expect("an add");
    let add = Add { lac: Some(id(2)), lafr: Some(id(1)), ..c.adding(1, c.of(&[3, 5])) };
    c.send(&c.me, add).await.expect("an add");
    let tail = c.fence(2, 1).await.expect("a fence");
    assert_eq!((tail.lac, tail.lafr), (Some(id(2)), Some(id(1))));
    assert_eq!(tail.present, [run(1, 3), run(5, 5)], "runs from the first id asked for");
    assert_eq!(tail.doubtful, []);
    assert_eq!(tail.attributes, Some(attributes));
    for entry in &tail.entries {
        assert!(entry.verify(c.ledger), "what a fence brings along is intact");
        assert_eq!(*entry, c.of(&[entry.id.0])[0]);
    }
    let brought: Vec<u64> = tail.entries.iter().map(|e| e.id.0).collect();
    assert!(brought.ends_with(&[2, 3, 5]), "a small tail from the LAC on comes with the fence: {brought:?}");
}

async fn a_duplicate_is_acknowledged_and_raises_the_term(c: Case) {
    c.add(1, &[0]).await.expect("an add");
    c.add(1, &[0]).await.expect("the same again");
    c.add(5, &[0]).await.expect("the same at a higher term");
    assert_eq!(c.add(4, &[1]).await, Err(AddError::StaleTerm(Term(5))), "a duplicate raises the term too");
    assert_eq!(c.rpc.stat(&c.me, c.ledger).await.expect("a stat").term, Term(5));
}

async fn other_bytes_under_an_id_are_a_conflict(c: Case) {
    c.add(1, &[0]).await.expect("an add");
    let other = c.adding(1, vec![c.entry(0, "something else")]);
    assert_eq!(c.send(&c.me, other).await, Err(AddError::Conflict(id(0))));
    assert_eq!(c.read(0, 0).await, ReadAnswer::Found(c.of(&[0])), "nothing is overwritten");
}

async fn bytes_that_fail_their_checksum_are_refused(c: Case) {
    let mut entry = c.entry(0, "payload");
    entry.payload = Bytes::from_static(b"pAyload").into();
    assert_eq!(c.send(&c.me, c.adding(1, vec![entry])).await, Err(AddError::Corrupt(id(0))));
    let elsewhere = Case { ledger: LedgerId(c.ledger.0 + 1_000_000), ..c };
    let misdirected = elsewhere.entry(0, "payload");
    let c = Case { ledger: LedgerId(elsewhere.ledger.0 - 1_000_000), ..elsewhere };
    let refused = c.send(&c.me, c.adding(1, vec![misdirected])).await;
    assert_eq!(refused, Err(AddError::Corrupt(id(0))), "an entry of another ledger is no entry of this one");
    assert!(matches!(c.read(0, 0).await, ReadAnswer::NotFound(_)));
}

async fn a_seal_ends_the_ledger(c: Case) {
    c.add(1, &[0, 1, 2]).await.expect("an add");
    c.rpc.seal(&c.me, c.ledger, Some(id(1))).await.expect("a seal");
    c.rpc.seal(&c.me, c.ledger, Some(id(1))).await.expect("the same seal again");
    assert_eq!(c.add(1, &[3]).await, Err(AddError::Sealed(Some(id(1)))));
    c.add(1, &[1]).await.expect("ids up to the end are still taken: late duplicates");
    assert_eq!(c.read(0, 9).await, ReadAnswer::Found(c.of(&[0, 1])), "what lies beyond is dropped");
    assert_eq!(c.rpc.stat(&c.me, c.ledger).await.expect("a stat").sealed, Some(Some(id(1))));
    let empty = Case { ledger: LedgerId(c.ledger.0 + 2_000_000), ..c };
    empty.rpc.seal(&empty.me, empty.ledger, None).await.expect("a ledger closed empty");
    assert_eq!(empty.add(1, &[0]).await, Err(AddError::Sealed(None)));
}

async fn a_deleted_ledger_takes_nothing(c: Case) {
    c.add(1, &[0]).await.expect("an add");
    c.rpc.delete(&c.me, c.ledger).await.expect("a delete");
    c.rpc.delete(&c.me, c.ledger).await.expect("the same again");
    assert_eq!(c.add(9, &[1]).await, Err(AddError::Tombstoned), "no term brings it back");
    assert!(!matches!(c.read(0, 0).await, ReadAnswer::Found(_)), "its entries are gone");
    assert_eq!(c.fence(9, 0).await.expect_err("must be refused"), ControlError::Tombstoned);
}

async fn another_incarnation_is_refused_everywhere(c: Case) {
    let stranger = c.stranger();
    let add = c.adding(1, c.of(&[0]));
    assert_eq!(c.send(&stranger, add).await, Err(AddError::WrongIncarnation));
    let fenced = c.rpc.fence_tail(&stranger, c.ledger, Term(9), id(0)).await;
    assert_eq!(fenced.expect_err("must be refused"), ControlError::WrongIncarnation);
    assert_eq!(c.rpc.seal(&stranger, c.ledger, None).await, Err(ControlError::WrongIncarnation));
    assert_eq!(c.rpc.delete(&stranger, c.ledger).await, Err(ControlError::WrongIncarnation));
    assert_eq!(
        c.rpc.stat(&stranger, c.ledger).await.expect_err("must be refused"),
        ControlError::WrongIncarnation
    );
    c.add(1, &[0]).await.expect("nothing of that touched the real one");
}

async fn an_add_without_entries_carries_term_and_bounds(c: Case) {
    let add = Add { lac: Some(id(4)), lafr: Some(id(3)), ..c.adding(6, vec![]) };
    c.send(&c.me, add).await.expect("an empty add");
    let stat = c.rpc.stat(&c.me, c.ledger).await.expect("a stat");
    assert_eq!((stat.term, stat.lac, stat.present), (Term(6), Some(id(4)), vec![]));
    let add = Add { lac: Some(id(2)), ..c.adding(6, vec![]) };
    c.send(&c.me, add).await.expect("an older bound");
    assert_eq!(c.rpc.stat(&c.me, c.ledger).await.expect("a stat").lac, Some(id(4)), "bounds never go back");
    assert_eq!(c.add(5, &[5]).await, Err(AddError::StaleTerm(Term(6))));
}

async fn pipelined_adds_arrive_in_call_order(c: Case) {
    let adds: Vec<_> = (0..64).map(|n| c.adding(1, c.of(&[n]))).collect();
    // Polled together: every add is called before any answer is awaited.
    let sent = futures::future::join_all(adds.into_iter().map(|add| c.send(&c.me, add))).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let tail = c.fence(2, 0).await.expect("a fence");
    assert_eq!(tail.present, [run(0, 63)], "a fence sees every add that was acknowledged before");
}
