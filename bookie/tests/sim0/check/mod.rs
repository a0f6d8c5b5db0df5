//! The omniscient observer: it sees every send, every durable answer and every commit, and knows what was promised.
//!
//! Numbers are those of the storage design. The first violation is kept; nothing is checked after it.
//!
//! | file | what it watches |
//! |---|---|
//! | `stores` | what bookies answer, across restarts and promotions |
//! | `metadata` | every commit |
//! | `losses` | what is lost, what that leaves, and what is let go of |

mod losses;
mod metadata;
mod stores;

use crate::meta::Topic;
use crate::plan::{Plan, Us};
use bytes::Bytes;
use geminga_bookie_client::record::{ClosedLedger, Fragment, LedgerRecord, RepairRange};
use geminga_bookie_client::rpc::{BookieRef, IdRange};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Content {
    crc: u32,
    size: u64,
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) record: Option<LedgerRecord>,
    pub(crate) closed: Option<ClosedLedger>,
    pub(crate) acked: Option<EntryId>,
    contents: BTreeMap<EntryId, Content>,
    /// Members of which its writer was told, while they were members, that their stores are lost.
    told_lost: BTreeSet<BookieRef>,
    pub(crate) tombstoned: bool,
}

impl Ledger {
    fn fragments(&self) -> &[Fragment] {
        match (&self.closed, &self.record) {
            (Some(closed), _) => &closed.fragments,
            (None, Some(record)) => &record.fragments,
            (None, None) => &[],
        }
    }

    /// Whether a bookie may have dropped this id: it lies beyond the close, or the ledger is to be deleted.
    fn may_be_gone(&self, id: EntryId) -> bool {
        self.tombstoned || self.closed.as_ref().is_some_and(|c| Some(id) > c.last)
    }
}

/// What rare paths the runs came across.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seen {
    pub(crate) acked: u64,
    pub(crate) ledgers: u64,
    pub(crate) closed_by_writer: u64,
    pub(crate) closed_by_recovery: u64,
    pub(crate) fenced_writers: u64,
    pub(crate) changes: u64,
    pub(crate) degraded: u64,
    pub(crate) readmissions: u64,
    pub(crate) rebased: u64,
    pub(crate) superseded: u64,
    pub(crate) undecided: u64,
    pub(crate) written_back: u64,
    pub(crate) repaired: u64,
    pub(crate) deleted: u64,
    pub(crate) takeovers: u64,
    pub(crate) unknown_resolved: u64,
    pub(crate) restarts: u64,
    pub(crate) watermarks: u64,
    pub(crate) watermarks_obeyed: u64,
    pub(crate) fetched: u64,
    pub(crate) let_go: u64,
    pub(crate) promotions: u64,
    pub(crate) slow_left: u64,
    pub(crate) slow_left_in_flight: u64,
    pub(crate) slow_owed: u64,
    pub(crate) slow_kept: u64,
    pub(crate) losses_told: u64,
    pub(crate) losses_told_amid_a_change: u64,
}

impl Seen {
    pub(crate) fn all(&mut self) -> [(&'static str, &mut u64); 28] {
        [
            ("acked", &mut self.acked),
            ("ledgers", &mut self.ledgers),
            ("closed by writer", &mut self.closed_by_writer),
            ("closed by recovery", &mut self.closed_by_recovery),
            ("fenced writers", &mut self.fenced_writers),
            ("changes", &mut self.changes),
            ("degraded", &mut self.degraded),
            ("readmissions", &mut self.readmissions),
            ("rebased", &mut self.rebased),
            ("superseded", &mut self.superseded),
            ("undecided", &mut self.undecided),
            ("written back", &mut self.written_back),
            ("repaired", &mut self.repaired),
            ("deleted", &mut self.deleted),
            ("take-overs", &mut self.takeovers),
            ("unknown outcomes resolved", &mut self.unknown_resolved),
            ("restarts", &mut self.restarts),
            ("watermarks raised", &mut self.watermarks),
            ("watermarks durable in a store", &mut self.watermarks_obeyed),
            ("entries fetched by bookies", &mut self.fetched),
            ("stores let go of", &mut self.let_go),
            ("promotions", &mut self.promotions),
            ("slow members left", &mut self.slow_left),
            ("slow members left with entries in flight", &mut self.slow_left_in_flight),
            ("slow members left owing copies", &mut self.slow_owed),
            ("slow members kept for want of another", &mut self.slow_kept),
            ("losses of members told to writers", &mut self.losses_told),
            ("losses of members told amid a change", &mut self.losses_told_amid_a_change),
        ]
    }
}

pub(crate) struct Checker {
    pub(crate) broken: Option<String>,
    pub(crate) ledgers: BTreeMap<LedgerId, Ledger>,
    durable: BTreeMap<(BookieRef, LedgerId), BTreeSet<EntryId>>,
    fences: BTreeMap<(BookieRef, LedgerId), (Term, u64)>,
    lost: BTreeSet<BookieRef>,
    /// What a store was before it was let go of.
    heirs: BTreeMap<BookieRef, BookieRef>,
    /// The watermark that a store has durably, and since which call.
    watermarks: BTreeMap<BookieRef, (LedgerId, u64)>,
    /// The one it was told last: it may have it, though a crash kept it from saying so.
    watermarks_told: BTreeMap<BookieRef, LedgerId>,
    ack: u32,
    pub(crate) topic: Topic,
    /// Message, where it was acknowledged, and when.
    pub(crate) acked: Vec<(u64, LedgerId, EntryId, Us)>,
    pub(crate) stray_wanted: u32,
    pub(crate) hung: Option<BookieRef>,
    pub(crate) seen: Seen,
    pub(crate) last_ack: Us,
}

pub(crate) fn message_of(payload: &Bytes) -> (u64, u64) {
    let word =
        |n: usize| u64::from_be_bytes(payload[8 * n..8 * n + 8].try_into().expect("sixteen bytes at least"));
    (word(0), word(1))
}

fn within(runs: &[IdRange], id: EntryId) -> bool {
    runs.iter().any(|run| run.first <= id && id <= run.last)
}

fn covered(repair: &[RepairRange], slot: u32, id: EntryId) -> bool {
    repair.iter().any(|r| r.slot == slot && r.first <= id && r.last.is_none_or(|last| id <= last))
}

pub(crate) fn fragment_of(fragments: &[Fragment], id: EntryId) -> Option<&Fragment> {
    fragments.iter().rfind(|f| f.first <= id)
}

impl Checker {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            broken: None,
            ledgers: BTreeMap::new(),
            durable: BTreeMap::new(),
            fences: BTreeMap::new(),
            lost: BTreeSet::new(),
            heirs: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            watermarks_told: BTreeMap::new(),
            ack: plan.quorum.ack(),
            topic: Topic::default(),
            acked: Vec::new(),
            stray_wanted: 0,
            hung: None,
            seen: Seen::default(),
            last_ack: 0,
        }
    }

    pub(crate) fn broken(&mut self, what: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = Some(what.into());
        }
    }

    /// A writer acknowledges an entry.
    pub(crate) fn acked(&mut self, record: &LedgerRecord, entry: EntryId, message: u64, now: Us) {
        let id = record.id;
        let fragment = fragment_of(&record.fragments, entry).expect("the first fragment begins at 0");
        let copies = record.quorum.write_order(entry).filter(|slot| {
            fragment.ensemble[*slot as usize].as_ref().is_some_and(|m| self.holds(m, id, entry))
        });
        let copies = copies.count();
        if (copies as u32) < record.quorum.ack() {
            self.broken(format!("I1: {id}:{entry} is acknowledged with {copies} durable copies"));
        }
        let committed = self.ledgers.get(&id).is_some_and(|l| {
            l.closed.is_some()
                || l.record.as_ref().is_some_and(|r| r.fragments.contains(fragment) || r.term > record.term)
        });
        if !committed {
            self.broken(format!(
                "S1: {id}:{entry} is acknowledged in a fragment that metadata does not name"
            ));
        }
        let ledger = self.ledgers.entry(id).or_default();
        ledger.acked = ledger.acked.max(Some(entry));
        if ledger.closed.as_ref().is_some_and(|c| Some(entry) > c.last) {
            self.broken(format!("I2: {id}:{entry} is acknowledged beyond the end of its closed ledger"));
        }
        self.seen.acked += 1;
        self.last_ack = now;
        self.acked.push((message, id, entry, now));
    }

    /// Everything that was read at the end, in order of the chain: (ledger, entry, message, producer).
    pub(crate) fn read_all(&mut self, read: &[(LedgerId, EntryId, u64, u64)]) {
        let mut at: BTreeMap<u64, (LedgerId, EntryId)> = BTreeMap::new();
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for (ledger, entry, message, producer) in read {
            if let Some(before) = at.insert(*message, (*ledger, *entry)) {
                return self
                    .broken(format!("message {message} is there twice: {before:?} and {ledger}:{entry}"));
            }
            if last.insert(*producer, *message).is_some_and(|before| before >= *message) {
                return self.broken(format!("S3: message {message} comes after a later one of its producer"));
            }
        }
        for (message, ledger, entry, _) in self.acked.clone() {
            let trimmed = self.ledgers.get(&ledger).is_some_and(|l| l.tombstoned);
            if !trimmed && at.get(&message) != Some(&(ledger, entry)) {
                let found = at.get(&message);
                return self.broken(format!(
                    "S1: message {message}, acknowledged at {ledger}:{entry}, is at {found:?}"
                ));
            }
        }
    }
}
