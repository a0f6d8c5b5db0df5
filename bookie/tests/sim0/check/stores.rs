//! What bookies answer: what a store once called durable stays found or in doubt, what it refused stays refused.

use super::{Checker, Content, within};
use geminga_bookie::steps::Steps;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{Add, BookieRef, ControlError, IdRange, Read, ReadAnswer, Tail};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::BTreeSet;

impl Checker {
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
        if let Some((to, since)) = self.watermarks.get(me)
            && add.ledger <= *to
            && order > *since
        {
            let text = format!("I14: {me} took an add of {} below its watermark {to}", add.ledger);
            return self.broken(text);
        }
        let ids = self.durable.entry((me.clone(), add.ledger)).or_default();
        ids.extend(add.entries.iter().map(|e| e.id));
    }

    /// A bookie has fetched copies, and they are durable.
    pub(crate) fn copied(&mut self, me: &BookieRef, ledger: LedgerId, entries: &[Entry]) {
        self.known(ledger, entries, "copied");
        let ids = self.durable.entry((me.clone(), ledger)).or_default();
        ids.extend(entries.iter().map(|e| e.id));
    }

    /// A store is told a watermark.
    pub(crate) fn watermark_told(&mut self, me: &BookieRef, to: LedgerId) {
        self.watermarks_told.insert(me.clone(), to);
    }

    /// A store refuses ledgers up to `to`, durably.
    pub(crate) fn watermark(&mut self, me: &BookieRef, to: LedgerId, order: u64) {
        self.seen.watermarks_obeyed += 1;
        let known = self.watermarks.entry(me.clone()).or_insert((to, order));
        if to > known.0 {
            *known = (to, order);
        }
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
            ReadAnswer::NotFound(_) => {
                self.absent(me, read.ledger, read.first, "not found");
                self.heir_lacks(me, read.ledger, read.first);
            }
            ReadAnswer::Unknown(_) => {}
            ReadAnswer::Lost { .. } => {
                self.broken(format!("{me} gave up a ledger that has other copies: {read:?}"))
            }
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
            // The state of what is deleted, or was never held, is forgotten below the watermark, which refuses its writers instead.
            let covered = self.watermarks_told.get(me).is_some_and(|to| id <= *to);
            if let Some((term, _)) = self.fences.get(&(me.clone(), id))
                && stat.term < *term
                && !covered
            {
                return self.broken(format!("I5: {me} forgot that {id} was fenced at {term}"));
            }
        }
    }
}
