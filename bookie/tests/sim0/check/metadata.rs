//! Every commit: the chain of ledgers, ends that stay, copies that are told honestly.

use super::{Checker, Ledger, covered, fragment_of};
use crate::meta::{TOPIC, Topic};
use geminga_bookie_client::record::{ClosedLedger, Fragment, LedgerRecord, LedgerState};
use geminga_bookie_client::registry::record::{BookieRecord, NodeState};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::Op;
use geminga_common::metadata::keys::Keys;

impl Checker {
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
                Op::Put { key, value, .. } if keys.bookie_of_key(key).is_some() => {
                    let id = keys.bookie_of_key(key).expect("just asked");
                    let record = BookieRecord::decode(value).expect("only records are stored there");
                    if record.state == NodeState::Lost {
                        self.let_go(&BookieRef { id, incarnation: record.incarnation });
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

    /// I15: every id is on all of its write quorum, or said to be due for repair, or its bookie was lost. Repair finds by itself who
    /// is lost; but of what a ledger's own writer was told, its close has to speak.
    fn honest(&mut self, closed: &ClosedLedger) {
        // A recovery closes at a higher term, and does not know what was told to the writer.
        let by_writer = closed.term == Term(1);
        let told = self.ledgers.get(&closed.id).filter(|_| by_writer).map(|l| l.told_lost.clone());
        let told = told.unwrap_or_default();
        for entry in (0..closed.last.map_or(0, |l| l.0 + 1)).map(EntryId) {
            let Some(fragment) = fragment_of(&closed.fragments, entry) else {
                return self.broken(format!("I10: no fragment holds {}:{entry}", closed.id));
            };
            let mut copies = 0;
            for slot in closed.quorum.write_order(entry) {
                let member = fragment.ensemble[slot as usize].as_ref();
                let held = member.is_some_and(|m| self.holds(m, closed.id, entry));
                let lost = member.is_some_and(|m| self.lost.contains(m));
                let excused = (held || lost) && !member.is_some_and(|m| told.contains(m));
                copies += u32::from(held || lost);
                if !excused && !covered(&closed.repair, slot, entry) {
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
}
