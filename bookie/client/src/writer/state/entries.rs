//! Entries on their way: handed out, sent to their slots, acknowledged in order.

use super::{Effect, Pending, SlotAdd, State, Status};
use crate::entry::{Entry, Payload};
use crate::ledgers::{AppendError, NewEntry};
use crate::mutant::{Mutant, active};
use crate::quorum::{AckSet, SlotSet};
use crate::rpc::AddError;
use crate::writer::invariants;
use geminga_common::ids::EntryId;

impl State {
    /// Takes entries in: gives them ids and sends them to their slots.
    ///
    /// # Errors
    /// The writer is over, or an entry is too large; nothing was taken.
    pub fn append(&mut self, new: Vec<NewEntry>, out: &mut Vec<Effect>) -> Result<EntryId, AppendError> {
        match &self.status {
            Status::Open => {}
            Status::Failed(error) => return Err(error.clone()),
            Status::Closing => return Err(AppendError::Closed),
        }
        let limit = self.limits.entry_bytes_max;
        let size = |entry: &NewEntry| crate::entry::HEADER_LEN + entry.payload.len();
        if let Some(size) = new.iter().map(size).find(|size| *size > limit) {
            return Err(AppendError::TooLarge { size, limit });
        }
        let first = self.next;
        let mut entries = Vec::with_capacity(new.len());
        for NewEntry { mut header, payload } in new {
            header.bytes_before = self.bytes_sent;
            let entry = Entry::new(self.ledger, self.next, header, payload);
            self.bytes_sent += entry.size() as u64;
            self.next = self.next.next();
            self.pending.push_back(Pending { entry: entry.clone(), acked: AckSet::EMPTY });
            entries.push(entry);
        }
        if !entries.is_empty() {
            self.fan_out(first, entries, out);
        }
        invariants::check(self);
        Ok(first)
    }

    /// A bookie answered an add.
    pub fn on_added(
        &mut self,
        slot: u32,
        generation: u32,
        (first, last): (EntryId, EntryId),
        result: Result<(), AddError>,
        out: &mut Vec<Effect>,
    ) {
        if self.status == Status::Closing || matches!(self.status, Status::Failed(_)) {
            return;
        }
        let stale = self.slots[slot as usize].generation != generation;
        match result {
            Ok(()) if stale => {}
            Ok(()) => {
                self.slots[slot as usize].introduced = true;
                self.acknowledge(slot, first, last);
                self.complete(out);
            }
            // The term is the ledger's, not the bookie's: who is told so is over, whoever told it.
            Err(AddError::StaleTerm(_) | AddError::Sealed(_) | AddError::Tombstoned) => {
                self.fail(AppendError::Fenced);
            }
            // Someone else wrote this id at our term: stop, and let recovery decide from what is stored.
            Err(AddError::Conflict(_)) => self.fail(AppendError::Fenced),
            Err(AddError::TooLarge { size, limit, .. }) => self.fail(AppendError::TooLarge { size, limit }),
            Err(_) if stale => {}
            Err(error) => {
                self.disk_full |= error == AddError::DiskFull;
                if error == AddError::WrongIncarnation {
                    self.lost.insert(slot);
                }
                self.failed.insert(slot);
                self.change_ensemble(out);
            }
        }
        invariants::check(self);
    }

    /// A bookie that is said to be gone has answered an add without entries, or did not.
    ///
    /// Hearsay never ends a writer: a slot is only given up while the ledger stays writable without it and may have another
    /// fragment. What is worse shows with the next append.
    pub fn on_probed(
        &mut self,
        slot: u32,
        generation: u32,
        result: Result<(), AddError>,
        out: &mut Vec<Effect>,
    ) {
        let holder = self.slots[slot as usize].generation == generation;
        match result {
            Err(AddError::StaleTerm(_) | AddError::Sealed(_) | AddError::Tombstoned) => {
                self.fail(AppendError::Fenced);
            }
            Ok(()) if holder => self.slots[slot as usize].introduced = true,
            Err(AddError::WrongIncarnation | AddError::Failed | AddError::Unknown(_))
                if holder && self.status == Status::Open =>
            {
                let without = self.vacant().or(self.failed).or([slot].into_iter().collect());
                let fragments = self.record.fragments.len() + usize::from(self.change.is_some());
                if self.quorum.writable_without(without) && fragments < self.limits.fragments_max {
                    if result == Err(AddError::WrongIncarnation) {
                        self.lost.insert(slot);
                    }
                    self.failed.insert(slot);
                    self.change_ensemble(out);
                }
            }
            // It lives, or it is no member any more.
            Ok(()) | Err(_) => {}
        }
        invariants::check(self);
    }

    /// Sends entries to every slot of their write sets.
    fn fan_out(&self, first: EntryId, mut entries: Vec<Entry>, out: &mut Vec<Effect>) {
        let last = entries[entries.len() - 1].id;
        let striped = self.quorum.ensemble() > self.quorum.write();
        let targets = self.quorum.all().minus(self.vacant());
        let final_target = targets.iter().last();
        for slot in targets.iter() {
            let of_slot: Vec<Entry> = if striped {
                entries.iter().filter(|e| self.quorum.write_set(e.id).contains(slot)).cloned().collect()
            } else if Some(slot) == final_target {
                std::mem::take(&mut entries)
            } else {
                entries.clone()
            };
            if !of_slot.is_empty() {
                let generation = self.slots[slot as usize].generation;
                out.push(Effect::Send(SlotAdd { slot, generation, first, last, entries: of_slot }));
            }
        }
    }

    fn acknowledge(&mut self, slot: u32, first: EntryId, last: EntryId) {
        let base = self.full_end.0;
        let from = first.0.max(base);
        for id in from..=last.0.min(self.next.0.saturating_sub(1)) {
            if self.quorum.write_set(EntryId(id)).contains(slot) {
                self.pending[(id - base) as usize].acked.insert(slot);
            }
        }
    }

    /// Moves LAC and LAFR as far as acks allow, then looks for slots that lag too far.
    pub(super) fn complete(&mut self, out: &mut Vec<Effect>) {
        if self.change.is_none() {
            while let Some(head) = self.pending.get((self.acked_end.0 - self.full_end.0) as usize) {
                if head.acked.len() < self.quorum.ack() {
                    break;
                }
                self.bytes_acked += head.entry.size() as u64;
                self.bytes_lagging += head.entry.size();
                self.acked_end = self.acked_end.next();
            }
        }
        let vacant = if active(Mutant::WindowFromLafr) { SlotSet::EMPTY } else { self.vacant() };
        while self.full_end < self.acked_end {
            let Some(head) = self.pending.front() else { break };
            if !self.quorum.write_set(head.entry.id).minus(vacant).minus(head.acked).is_empty() {
                break;
            }
            self.bytes_lagging -= head.entry.size();
            self.pending.pop_front();
            self.full_end = self.full_end.next();
        }
        if self.bytes_lagging > self.limits.lag_bytes_max
            && self.change.is_none()
            && !active(Mutant::LagUnbounded)
            && let Some(head) = self.pending.front()
        {
            let lagging = self.quorum.write_set(head.entry.id).minus(vacant).minus(head.acked);
            self.failed = self.failed.or(lagging);
            self.change_ensemble(out);
        }
    }

    pub(super) fn resend(&self, slot: u32, out: &mut Vec<Effect>) {
        let entries: Vec<Entry> = self
            .pending
            .iter()
            .filter(|p| self.quorum.write_set(p.entry.id).contains(slot))
            .map(|p| match active(Mutant::ResendDrained) {
                true => Entry { payload: Payload::default(), ..p.entry.clone() },
                false => p.entry.clone(),
            })
            .collect();
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let (first, last) = (first.id, last.id);
            let generation = self.slots[slot as usize].generation;
            out.push(Effect::Send(SlotAdd { slot, generation, first, last, entries }));
        }
    }
}
