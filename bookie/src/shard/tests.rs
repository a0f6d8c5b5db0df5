//! Stories of the machine: operations in, batches and answers out.

use super::*;
use geminga_common::disk::sim::SimDisk;
use geminga_common::disk::{Disk, OpenMode};
use geminga_common::ids::{BookieId, MessageIndex};
use std::path::Path;
use std::sync::Mutex;

type Told = Arc<Mutex<Vec<(u64, Result<(), AddError>)>>>;

struct Story {
    shard: Shard,
    told: Told,
}

fn file(name: &str) -> JournalFile {
    let disk = SimDisk::new();
    let file = disk.open(&Path::new("/").join(name), OpenMode::CreateNew).unwrap();
    JournalFile { generation: 1, made: 1, capacity: 64 << 10, file }
}

fn entry(id: u64, text: &'static [u8]) -> Entry {
    crate::samples::entry(1, id, text)
}

impl Story {
    fn new() -> Self {
        let mut config = Config::new(BookieId::new("b").unwrap(), "/d".into(), "c");
        config.control_reserve = 8192;
        config.write_cache = 8192;
        let set = Arc::new(SegmentSet::default());
        let mut shard = Shard::new(Arc::new(config), set, Status::Serving);
        shard.begin(1, file("j"), Vec::new(), Vec::new());
        let first = shard.next_batch().unwrap();
        assert_eq!(first.records, [Record::ReplayStopped { seq: 1 }]);
        assert!(shard.written(1, true).is_empty());
        Self { shard, told: Told::default() }
    }

    fn add(&mut self, tag: u64, term: u64, entries: Vec<Entry>) -> &'static str {
        let told = self.told.clone();
        let done: AddDone = Box::new(move |result| told.lock().unwrap().push((tag, result)));
        let term = Term(term);
        let add = Add { ledger: LedgerId(1), term, lac: None, lafr: None, attributes: None, entries };
        match self
            .shard
            .admit(Op::Add { add, copies: false, checked: Ok(()), stored: None, done }, Mono::ZERO)
        {
            Admitted::Queued => "queued",
            Admitted::Answered(told) => {
                answer(told);
                "answered"
            }
            Admitted::Lookup(_) => "lookup",
            Admitted::Blocked(_) => "blocked",
        }
    }

    fn written(&mut self, seq: u64, good: bool) {
        self.shard.written(seq, good).into_iter().for_each(answer);
    }

    fn told(&self) -> Vec<(u64, Result<(), AddError>)> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

#[test]
fn answers_leave_in_sequence_though_writes_end_out_of_order() {
    let mut story = Story::new();
    story.add(1, 1, vec![entry(0, b"a")]);
    assert_eq!(story.shard.next_batch().unwrap().head.seq, 2);
    story.add(2, 1, vec![entry(1, b"b")]);
    assert_eq!(story.shard.next_batch().unwrap().head.seq, 3);
    story.written(3, true);
    assert_eq!(story.told(), []);
    story.written(2, true);
    assert_eq!(story.told(), [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_duplicate_waits_for_the_first_copy_and_its_term() {
    let mut story = Story::new();
    story.add(1, 1, vec![entry(0, b"a")]);
    let first = story.shard.next_batch().unwrap();
    assert_eq!(story.add(2, 1, vec![entry(0, b"a")]), "queued");
    assert!(story.shard.next_batch().is_none(), "nothing new to write");
    assert_eq!(story.told(), []);
    story.written(first.head.seq, true);
    assert_eq!(story.told(), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(story.add(3, 1, vec![entry(0, b"a")]), "answered");
    assert_eq!(story.told(), [(3, Ok(()))]);
    assert_eq!(story.add(4, 2, vec![entry(0, b"a")]), "queued");
    let raise = story.shard.next_batch().unwrap();
    assert_eq!(raise.records, [Record::Term { ledger: LedgerId(1), term: Term(2) }]);
    story.written(raise.head.seq, true);
    assert_eq!(story.add(5, 1, vec![entry(1, b"b")]), "answered");
    assert_eq!(story.told(), [(4, Ok(())), (5, Err(AddError::StaleTerm(Term(2))))]);
    story.add(6, 2, vec![entry(0, b"other")]);
    assert_eq!(story.told(), [(6, Err(AddError::Conflict(EntryId(0))))]);
}

/// What `Stat` lists is told behind a barrier: a crash could still take back what is only visible.
#[test]
fn a_barrier_waits_for_what_was_admitted_before_it() {
    let mut story = Story::new();
    let barrier = |story: &mut Story, tag| {
        let told = story.told.clone();
        let tell = move |r: Result<(), ControlError>| {
            told.lock().unwrap().push((tag, r.map_err(|_| AddError::Failed)));
        };
        if let Admitted::Answered(told) = story.shard.admit(Op::Barrier { done: Box::new(tell) }, Mono::ZERO)
        {
            answer(told);
        }
    };
    barrier(&mut story, 1);
    assert_eq!(story.told(), [(1, Ok(()))], "nothing to wait for");
    story.add(2, 1, vec![entry(0, b"a")]);
    barrier(&mut story, 3);
    let first = story.shard.next_batch().unwrap();
    barrier(&mut story, 4);
    story.add(5, 1, vec![entry(1, b"b")]);
    assert_eq!(story.told(), []);
    story.written(first.head.seq, true);
    assert_eq!(story.told(), [(2, Ok(())), (3, Ok(())), (4, Ok(()))]);
    barrier(&mut story, 6);
    let second = story.shard.next_batch().unwrap();
    story.written(second.head.seq, false);
    let unknown = Err(AddError::Unknown("journal write failed"));
    assert_eq!(story.told(), [(5, unknown), (6, Err(AddError::Failed))]);
    let mut lost = Story::new();
    lost.shard.status = Status::DataLoss;
    barrier(&mut lost, 7);
    assert_eq!(lost.told(), [(7, Ok(()))], "all it holds came from the disk");
}

#[test]
fn a_failed_write_ends_everything() {
    let mut story = Story::new();
    story.add(1, 1, vec![entry(0, b"a")]);
    let first = story.shard.next_batch().unwrap();
    story.add(2, 1, vec![entry(1, b"b")]);
    story.written(first.head.seq, false);
    let unknown = || Err(AddError::Unknown("journal write failed"));
    assert_eq!(story.told(), [(1, unknown()), (2, unknown())]);
    story.add(3, 1, vec![entry(2, b"c")]);
    assert_eq!(story.told(), [(3, Err(AddError::Failed))]);
    assert!(story.shard.next_batch().is_none());
}

#[test]
fn a_full_cache_makes_adds_wait_for_a_flush() {
    let mut story = Story::new();
    let mut id = 0;
    while story.add(id, 1, vec![entry(id, &[7; 1000])]) == "queued" {
        id += 1;
    }
    assert!(id >= 6, "{id}");
    assert_eq!(story.shard.flush_due(), Some(Mono::ZERO));
    let plan = story.shard.begin_flush().unwrap();
    assert_eq!(story.add(id, 1, vec![entry(id, &[7; 1000])]), "blocked");
    story.shard.end_flush(plan, Arc::new(SegmentSet::default()));
    assert_eq!(story.add(id, 1, vec![entry(id, &[7; 1000])]), "queued");
    assert_eq!(story.add(99, 1, vec![entry(0, &[7; 1000])]), "lookup");
}

#[test]
fn a_full_disk_that_has_room_again_is_noticed_without_anything_to_store() {
    let mut story = Story::new();
    let admitted = story.shard.admit(Op::Watermark { to: LedgerId(7), done: Box::new(|_| ()) }, Mono::ZERO);
    assert!(matches!(admitted, Admitted::Queued));
    let plan = story.shard.begin_flush().unwrap();
    story.shard.undo_flush(plan, Mono::ZERO);
    assert_eq!(story.shard.status, Status::DiskFull);
    let plan = story.shard.begin_flush().expect("a watermark is flushed again");
    story.shard.end_flush(plan, Arc::new(SegmentSet::default()));
    assert_eq!(story.shard.status, Status::Serving);
    assert!(story.shard.wants_file().is_none());
    story.shard.disk_full();
    assert!(story.shard.wants_file().is_some(), "a file is wanted");
    story.shard.disk_full();
    assert!(story.shard.wants_file().is_some(), "and wanted again, as often as there was no room");
    story.shard.add_spare(file("k"));
    assert_eq!(story.shard.status, Status::Serving);
    assert!(story.shard.wants_file().is_none());
}

#[test]
fn reserves_let_recoveries_and_cursors_write_on_a_full_disk_and_end() {
    use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
    let attributes = LedgerAttributes {
        kind: LedgerKind::CursorLog,
        owner: "bundle".to_owned(),
        topic: geminga_common::ids::TopicId(1),
        ordinal: 0,
        predecessor: None,
        owner_epoch: geminga_common::ids::OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    let add = |shard: &mut Shard, ledger: u64, id: u64, term: u64| {
        let told = Arc::new(Mutex::new(None));
        let tell = told.clone();
        let entries = vec![Entry { ..entry(id, b"12345678") }];
        let attributes = (ledger == 5).then(|| Arc::new(attributes.clone()));
        let add =
            Add { ledger: LedgerId(ledger), term: Term(term), lac: None, lafr: None, attributes, entries };
        let done: AddDone = Box::new(move |result| *tell.lock().unwrap() = Some(result));
        match shard.admit(Op::Add { add, copies: false, checked: Ok(()), stored: None, done }, Mono::ZERO) {
            Admitted::Answered(told) => answer(told),
            other => assert!(matches!(other, Admitted::Queued)),
        }
        told.lock().unwrap().take() != Some(Err(AddError::DiskFull))
    };
    let mut story = Story::new();
    let shard = &mut story.shard;
    let one = cost(&entry(0, b"12345678")) as u64;
    let config =
        Config { recovery_reserve: one + 100, cursor_reserve: 2 * one + 100, ..(*shard.config).clone() };
    shard.config = Arc::new(config);
    shard.set_room(Room::NoNewLedgers);
    assert!(add(shard, 1, 0, 1), "a warning refuses nothing");
    shard.set_room(Room::RecoveryOnly);
    assert!(!add(shard, 1, 1, 1) && add(shard, 1, 1, 2) && !add(shard, 1, 2, 2), "one write-back fits");
    assert!(add(shard, 5, 0, 1));
    shard.set_room(Room::Nothing);
    assert!(!add(shard, 1, 2, 3) && add(shard, 5, 1, 1) && !add(shard, 5, 2, 1), "acknowledgements go on");
    shard.set_room(Room::Open);
    assert!(add(shard, 1, 2, 3) && add(shard, 5, 2, 1));
}
