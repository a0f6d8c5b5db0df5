//! The omniscient observer: it sees every send, every durable answer and every commit, and knows what was promised.
//!
//! Numbers are those of the storage design. The first violation is kept; nothing is checked after it.

use crate::meta::{TOPIC, Topic};
use crate::plan::{Plan, Us};
use bytes::Bytes;
use geminga_bookie::steps::Steps;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::record::{ClosedLedger, Fragment, LedgerRecord, LedgerState, RepairRange};
use geminga_bookie_client::rpc::{Add, BookieRef, ControlError, IdRange, Read, ReadAnswer, Tail};
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::Op;
use geminga_common::metadata::keys::Keys;
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
}

impl Seen {
    pub(crate) fn all(&mut self) -> [(&'static str, &mut u64); 18] {
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
        ]
    }
}

pub(crate) struct Checker {
    pub(crate) broken: Option<String>,
    pub(crate) ledgers: BTreeMap<LedgerId, Ledger>,
    durable: BTreeMap<(BookieRef, LedgerId), BTreeSet<EntryId>>,
    fences: BTreeMap<(BookieRef, LedgerId), (Term, u64)>,
    lost: BTreeSet<BookieRef>,
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

    // ---- damage --------------------------------------------------------------------------------------------------------

    pub(crate) fn undamaged(&self) -> bool {
        self.ack >= 2 && self.fully_replicated()
    }

    pub(crate) fn is_lost(&self, me: &BookieRef) -> bool {
        self.lost.contains(me)
    }

    pub(crate) fn lost(&mut self, me: &BookieRef) {
        self.lost.insert(me.clone());
    }

    pub(crate) fn damaged(&mut self, me: &BookieRef) {
        self.lost.insert(me.clone());
    }

    fn holds(&self, me: &BookieRef, ledger: LedgerId, id: EntryId) -> bool {
        self.durable.get(&(me.clone(), ledger)).is_some_and(|ids| ids.contains(&id))
    }

    /// Whether everything that counts is on all of its write quorum, on sound stores.
    pub(crate) fn fully_replicated(&self) -> bool {
        self.missing().is_none()
    }

    /// Something that is not on all of its write quorum.
    pub(crate) fn missing(&self) -> Option<String> {
        for (id, l) in self.ledgers.iter().filter(|(_, l)| !l.tombstoned) {
            let last = l.closed.as_ref().map_or(l.acked, |c| c.last);
            let Some(quorum) = l.record.as_ref().map(|r| r.quorum) else { continue };
            // Who lost Qa of an open ledger's bookies can never decide its end, whatever was acknowledged.
            let tail = l.fragments().last().filter(|_| l.closed.is_none());
            if let Some(gone) = tail.and_then(|f| f.ensemble.iter().flatten().find(|m| self.lost.contains(m)))
            {
                return Some(format!("{id} is open over {gone}, which is lost"));
            }
            for entry in (0..last.map_or(0, |e| e.0 + 1)).map(EntryId) {
                let Some(fragment) = fragment_of(l.fragments(), entry) else {
                    return Some(format!("{id}:{entry}"));
                };
                for slot in quorum.write_order(entry) {
                    let member = fragment.ensemble[slot as usize].as_ref();
                    // A hung bookie is not asked; what it lacks cannot be repaired.
                    let hung = member.is_some() && member == self.hung.as_ref();
                    let good = |m: &BookieRef| !self.lost.contains(m) && self.holds(m, *id, entry);
                    if !hung && !member.is_some_and(good) {
                        let lost = member.is_some_and(|m| self.lost.contains(m));
                        return Some(format!(
                            "{id}:{entry} on slot {slot} {member:?} lost {lost} of {:?}",
                            l.closed
                        ));
                    }
                }
            }
        }
        None
    }

    // ---- bookies -------------------------------------------------------------------------------------------------------

    /// An add leaves a process.
    pub(crate) fn sent(&mut self, add: &Add) {
        if add.term != Term(1) {
            return self.known(add.ledger, &add.entries, "written back");
        }
        let before = self.ledgers.get(&add.ledger).and_then(|l| l.record.as_ref());
        let before = before.and_then(|r| r.attributes.predecessor);
        if before.is_some_and(|b| self.ledgers.get(&b).is_none_or(|l| l.closed.is_none())) {
            self.broken(format!("I11: an entry is sent to {} before {before:?} is closed", add.ledger));
        }
        let ledger = self.ledgers.entry(add.ledger).or_default();
        for entry in &add.entries {
            if !entry.verify(add.ledger) {
                return self.broken(format!("I4: {}:{} is sent with damaged bytes", add.ledger, entry.id));
            }
            let content = Content { crc: entry.crc, size: entry.size() as u64 };
            if *ledger.contents.entry(entry.id).or_insert(content) != content {
                return self.broken(format!("I4: {}:{} is sent with two contents", add.ledger, entry.id));
            }
        }
    }

    fn known(&mut self, ledger: LedgerId, entries: &[Entry], how: &str) {
        let contents = self.ledgers.get(&ledger).map(|l| &l.contents);
        for entry in entries {
            let good = contents.and_then(|c| c.get(&entry.id)).is_some_and(|c| c.crc == entry.crc);
            if !good || !entry.verify(ledger) {
                return self.broken(format!(
                    "I4: {ledger}:{} is {how} with other bytes than its writer's",
                    entry.id
                ));
            }
        }
    }

    /// A bookie says that an add is durable.
    pub(crate) fn stored(&mut self, me: &BookieRef, add: &Add, order: u64) {
        if let Some((term, fenced)) = self.fences.get(&(me.clone(), add.ledger))
            && *term > add.term
            && order > *fenced
        {
            let text = format!("I5: {me} took an add at term {} after it was fenced at {term}", add.term);
            return self.broken(text);
        }
        let ids = self.durable.entry((me.clone(), add.ledger)).or_default();
        ids.extend(add.entries.iter().map(|e| e.id));
    }

    /// What a store lists it holds durably.
    pub(crate) fn listed(&mut self, me: &BookieRef, ledger: LedgerId, present: &[IdRange]) {
        let ids = self.durable.entry((me.clone(), ledger)).or_default();
        ids.extend(present.iter().flat_map(|run| (run.first.0..=run.last.0).map(EntryId)));
    }

    fn absent(&mut self, me: &BookieRef, ledger: LedgerId, id: EntryId, how: &str) {
        let excused = self.ledgers.get(&ledger).is_some_and(|l| l.may_be_gone(id));
        if self.holds(me, ledger, id) && !excused {
            self.broken(format!("I7: {me} said that {ledger}:{id} is durable, and now {how}"));
        }
    }

    /// A bookie answers a read.
    pub(crate) fn read(&mut self, me: &BookieRef, read: &Read, answer: &ReadAnswer) {
        match answer {
            ReadAnswer::Found(entries) => self.known(read.ledger, entries, "read"),
            ReadAnswer::NotFound(_) => self.absent(me, read.ledger, read.first, "not found"),
            ReadAnswer::Unknown(_) => {}
        }
    }

    /// A bookie answers a fence.
    pub(crate) fn fenced(
        &mut self,
        me: &BookieRef,
        (ledger, term, from): (LedgerId, Term, EntryId),
        order: u64,
        tail: &Tail,
        damaged: bool,
    ) {
        self.known(ledger, &tail.entries, "in a tail");
        let fence = self.fences.entry((me.clone(), ledger)).or_insert((term, order));
        if term > fence.0 {
            *fence = (term, order);
        }
        let held: Vec<EntryId> = self
            .durable
            .get(&(me.clone(), ledger))
            .into_iter()
            .flatten()
            .copied()
            .filter(|id| *id >= from)
            .collect();
        for id in held {
            if !within(&tail.present, id) && !within(&tail.doubtful, id) {
                self.absent(me, ledger, id, "its tail lacks it");
            }
        }
        if !damaged {
            let ids = self.durable.entry((me.clone(), ledger)).or_default();
            for run in &tail.present {
                ids.extend((run.first.0..=run.last.0).map(EntryId));
            }
        }
    }

    /// I17: a store that works refuses neither a fence nor a deletion for want of room.
    pub(crate) fn control(&mut self, what: &str, result: &Result<(), ControlError>, serving: bool) {
        if serving && matches!(result, Err(ControlError::Unknown(_) | ControlError::Failed)) {
            self.broken(format!("I17: a working store refuses to {what}: {result:?}"));
        }
    }

    pub(crate) fn sealed(&mut self, ledger: LedgerId, last: Option<EntryId>) {
        let closed = self.ledgers.get(&ledger).and_then(|l| l.closed.as_ref());
        if closed.is_none_or(|c| c.last != last) {
            self.broken(format!("I3: {ledger} is sealed at {last:?}, which is not its committed end"));
        }
    }

    pub(crate) fn delete_sent(&mut self, ledger: LedgerId) {
        if self.ledgers.get(&ledger).is_none_or(|l| !l.tombstoned) {
            self.broken(format!("I13: {ledger} is deleted without a tombstone"));
        }
    }

    /// A sound store has started again: all it ever said is still so (I5, I7, I8, I9).
    pub(crate) fn restarted(&mut self, me: &BookieRef, steps: &Steps) {
        self.seen.restarts += 1;
        let ledgers: BTreeSet<LedgerId> =
            self.durable.keys().filter(|(of, _)| of == me).map(|(_, ledger)| *ledger).collect();
        for id in ledgers {
            let gone = self.ledgers.get(&id).is_some_and(|l| l.tombstoned);
            let stat = match steps.stat(id) {
                Ok(stat) => stat,
                Err(ControlError::Tombstoned) if gone => continue,
                Err(error) => return self.broken(format!("I7: {me} knows no more of {id}: {error}")),
            };
            let held: Vec<EntryId> = self.durable[&(me.clone(), id)].iter().copied().collect();
            for entry in held.into_iter().filter(|e| !within(&stat.present, *e)) {
                self.absent(me, id, entry, "a restart forgot it");
            }
            if let Some((term, _)) = self.fences.get(&(me.clone(), id))
                && stat.term < *term
            {
                return self.broken(format!("I5: {me} forgot that {id} was fenced at {term}"));
            }
        }
    }

    // ---- writers -------------------------------------------------------------------------------------------------------

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

    // ---- metadata ------------------------------------------------------------------------------------------------------

    pub(crate) fn committed(&mut self, ops: &[Op], keys: &Keys) {
        for op in ops {
            match op {
                Op::Put { key, .. } if keys.tombstone_of_key(key).is_some() => {
                    let id = keys.tombstone_of_key(key).expect("just asked");
                    self.ledgers.entry(id).or_default().tombstoned = true;
                }
                _ => {}
            }
        }
        for op in ops {
            match op {
                Op::Put { key, value, .. } if key == TOPIC => {
                    self.topic_written(Topic::decode(value), ops, keys)
                }
                Op::Put { key, value, .. } if *key == keys.wm() => {
                    let wm = u64::from_be_bytes(value.as_ref().try_into().expect("a counter"));
                    self.seen.watermarks += 1;
                    let live = |(id, l): &(&LedgerId, &Ledger)| {
                        id.0 <= wm && l.record.is_some() && l.closed.is_none()
                    };
                    if let Some(id) = self.ledgers.iter().find(live).map(|(id, _)| *id) {
                        self.broken(format!(
                            "I14: bookies are told to refuse ids up to {wm}, and {id} is open"
                        ));
                    }
                }
                Op::Put { key, value, .. } if keys.ledger_of_key(key).is_some() => {
                    match LedgerRecord::decode(value) {
                        Ok(record) => self.record_written(record),
                        Err(error) => self.broken(format!("a ledger record does not decode: {error}")),
                    }
                }
                _ => {}
            }
        }
        for op in ops {
            if let Op::Delete { key } = op
                && let Some(id) = keys.ledger_of_key(key)
            {
                let ledger = self.ledgers.entry(id).or_default();
                // An empty ledger goes with its tombstone.
                if ledger.closed.is_none() && ledger.tombstoned {
                    self.close_empty(id);
                } else if ledger.closed.is_none() {
                    self.broken(format!("I12: the record of {id} goes, and nothing says how it ended"));
                }
            }
        }
        let open = self.ledgers.iter().filter(|(_, l)| l.closed.is_none() && l.record.is_some());
        let open: Vec<LedgerId> = open.map(|(id, _)| *id).collect();
        if open.len() > 1 || open.iter().any(|id| self.topic.open != Some(*id)) {
            self.broken(format!("I12: ledgers {open:?} are open, the topic names {:?}", self.topic.open));
        }
    }

    fn close_empty(&mut self, id: LedgerId) {
        let ledger = self.ledgers.entry(id).or_default();
        if let Some(record) = &ledger.record {
            let closed = ClosedLedger {
                id,
                last: None,
                length: 0,
                term: record.term,
                quorum: record.quorum,
                fragments: record.fragments.clone(),
                repair: Vec::new(),
            };
            self.closed(closed);
        }
    }

    fn topic_written(&mut self, topic: Topic, ops: &[Op], keys: &Keys) {
        let before = std::mem::replace(&mut self.topic, topic);
        let topic = self.topic.clone();
        if topic.epoch < before.epoch {
            self.broken(format!("S2: the topic went from epoch {} to {}", before.epoch, topic.epoch));
        }
        if !topic.segments.is_sorted_by(|a, b| a.id < b.id)
            || topic.segments.iter().any(|s| Some(s.id) == topic.open)
        {
            self.broken("I12: the chain is out of order");
        }
        for segment in &topic.segments {
            let known = before.segments.iter().any(|s| s.id == segment.id) || before.open == Some(segment.id);
            if !known {
                self.broken(format!("I12: {} joins the chain from nowhere", segment.id));
            }
            self.closed(segment.clone());
        }
        let left = before.segments.iter().map(|s| s.id).chain(before.open);
        for id in left {
            let stays = topic.open == Some(id) || topic.segments.iter().any(|s| s.id == id);
            if !stays && !self.ledgers.get(&id).is_some_and(|l| l.tombstoned) {
                self.broken(format!("I12: {id} left the chain without a tombstone"));
            }
        }
        if let Some(open) = topic.open.filter(|open| before.open != Some(*open)) {
            let key = keys.ledger(open);
            let created = ops.iter().any(|op| matches!(op, Op::Put { key: k, .. } if *k == key));
            if !created || Some(open) <= before.highest() {
                self.broken(format!("I12: {open} opens after {:?}, created: {created}", before.highest()));
            }
            self.seen.ledgers += 1;
        }
    }

    fn record_written(&mut self, record: LedgerRecord) {
        let id = record.id;
        if !record.fragments.is_sorted_by(|a, b| a.first < b.first) {
            return self.broken(format!("I10: fragments of {id} out of order: {:?}", record.fragments));
        }
        let ledger = self.ledgers.entry(id).or_default();
        let Some(before) = ledger.record.replace(record.clone()) else {
            if record.state != LedgerState::Open || record.term != Term(1) {
                self.broken(format!("{id} begins as {:?}", record.state));
            }
            return;
        };
        let legal = match (before.state, record.state) {
            (LedgerState::Open, LedgerState::Open) => before.term == record.term,
            (LedgerState::Open | LedgerState::Recovering, LedgerState::Recovering) => {
                record.term > before.term
            }
            (LedgerState::Open | LedgerState::Recovering, LedgerState::Closed { .. }) => {
                record.term == before.term
            }
            (LedgerState::Closed { .. }, after) => after == before.state,
            (LedgerState::Recovering, LedgerState::Open) => false,
        };
        if !legal || ledger.closed.is_some() && record.closed().is_none() {
            return self.broken(format!("I3: {id} goes from {before:?} to {record:?}"));
        }
        if record.state == LedgerState::Open {
            self.seen.changes += 1;
            self.seen.degraded += u64::from(!record.last_fragment().vacant().is_empty());
        }
        self.fragments_kept(id, &before.fragments, &record.fragments);
        if let Some(closed) = record.closed() {
            self.closed(closed);
        }
    }

    /// I10: what was published stays, but for the last fragment, which may be replaced whole or extended, and member swaps.
    fn fragments_kept(&mut self, id: LedgerId, before: &[Fragment], after: &[Fragment]) {
        let kept = before.len() - 1;
        let firsts = |f: &[Fragment]| f.iter().take(kept).map(|f| f.first).collect::<Vec<_>>();
        if after.len() < before.len() || firsts(before) != firsts(after) {
            self.broken(format!("I10: fragments of {id} went from {before:?} to {after:?}"));
        }
    }

    /// A ledger is closed, or is written again as closed: by repair.
    fn closed(&mut self, closed: ClosedLedger) {
        let id = closed.id;
        let ledger = self.ledgers.entry(id).or_default();
        if let Some(before) = &ledger.closed {
            if (before.last, before.length) != (closed.last, closed.length) {
                let text = format!("I3: {id} was closed at {:?}, now {:?}", before.last, closed.last);
                return self.broken(text);
            }
            ledger.closed = Some(closed);
            return;
        }
        if closed.last < ledger.acked {
            let text =
                format!("I2: {id} is closed at {:?}, acknowledged up to {:?}", closed.last, ledger.acked);
            return self.broken(text);
        }
        let contents: Vec<Option<u64>> = (0..closed.last.map_or(0, |l| l.0 + 1))
            .map(|e| ledger.contents.get(&EntryId(e)).map(|c| c.size))
            .collect();
        ledger.closed = Some(closed.clone());
        if contents.iter().any(Option::is_none) {
            return self.broken(format!("I4: {id} is closed over an entry that nobody wrote"));
        }
        if contents.iter().flatten().sum::<u64>() != closed.length {
            return self.broken(format!("{id} is closed with a length of {}", closed.length));
        }
        self.honest(&closed);
    }

    /// I15: every id is on all of its write quorum, or said to be due for repair, or its bookie was lost.
    fn honest(&mut self, closed: &ClosedLedger) {
        for entry in (0..closed.last.map_or(0, |l| l.0 + 1)).map(EntryId) {
            let Some(fragment) = fragment_of(&closed.fragments, entry) else {
                return self.broken(format!("I10: no fragment holds {}:{entry}", closed.id));
            };
            let mut copies = 0;
            for slot in closed.quorum.write_order(entry) {
                let member = fragment.ensemble[slot as usize].as_ref();
                let held = member.is_some_and(|m| self.holds(m, closed.id, entry));
                let lost = member.is_some_and(|m| self.lost.contains(m));
                copies += u32::from(held || lost);
                if !held && !lost && !covered(&closed.repair, slot, entry) {
                    return self.broken(format!(
                        "I15: slot {slot} lacks {}:{entry}, which no repair range covers: {closed:?}",
                        closed.id
                    ));
                }
            }
            if copies < closed.quorum.ack() {
                return self.broken(format!("I1: {}:{entry} is closed with {copies} copies", closed.id));
            }
        }
    }

    // ---- the end -------------------------------------------------------------------------------------------------------

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
