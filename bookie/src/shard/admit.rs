//! Admission: what is asked for, tried against the state of its ledger and of the disk, becomes records and cache entries; and the
//! same records applied again by replay.

use super::{Admitted, Done, Op, Shard, Status, cost};
use crate::format::journal::Record;
use crate::mutant::{Mutant, active};
use crate::space::Room;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::mutant::Mutant as Protocol;
use geminga_bookie_client::record::LedgerKind;
use geminga_bookie_client::rpc::{Add, AddError};
use geminga_common::clock::Mono;
use geminga_common::ids::{EntryId, LedgerId, Term};

/// What an add may still use while the disk is too full for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserve {
    Recovery,
    Cursors,
    None,
}

impl Shard {
    pub(crate) fn admit(&mut self, op: Op, now: Mono) -> Admitted {
        match self.status {
            // What it holds came from the disk: nothing is admitted any more.
            Status::DataLoss if let Op::Barrier { done } = op => {
                return Admitted::Answered((Done::Control(done), Ok(())));
            }
            Status::Failed | Status::DataLoss => return Admitted::Answered(op.refuse(AddError::Failed)),
            Status::DiskFull if matches!(op, Op::Add { .. }) => {
                return Admitted::Answered(op.refuse(AddError::DiskFull));
            }
            _ => {}
        }
        match op {
            Op::Add { .. } => self.admit_add(op, now),
            Op::Barrier { done } if active(Mutant::ListedEarly) => {
                Admitted::Answered((Done::Control(done), Ok(())))
            }
            Op::Barrier { done } => self.queue(Done::Control(done)),
            Op::Watermark { to, done } => {
                if Some(to) > self.dead_below {
                    self.dead_below = Some(to);
                    self.push(Record::Watermark { to });
                    self.dirty_since.get_or_insert(now);
                }
                self.queue(Done::Control(done))
            }
            Op::Fence { done, .. } if active(Protocol::FenceWithoutTerm) => self.queue(Done::Control(done)),
            Op::Fence { ledger, term, done } => match self.raise(ledger, term, now) {
                Ok(()) => self.queue(Done::Control(done)),
                Err(error) => Admitted::Answered((Done::Control(done), Err(error))),
            },
            Op::Seal { ledger, last, done } => match self.seal(ledger, last, now) {
                Ok(()) => self.queue(Done::Control(done)),
                Err(error) => Admitted::Answered((Done::Control(done), Err(error))),
            },
            Op::Delete { ledger, done } => {
                if !self.ledgers.get(&ledger).is_some_and(|l| l.row.tombstone) {
                    self.push(Record::Delete { ledger });
                    self.apply_delete(ledger, now);
                }
                self.queue(Done::Control(done))
            }
        }
    }

    pub(super) fn raise(&mut self, id: LedgerId, term: Term, now: Mono) -> Result<(), AddError> {
        let row = &mut self.ledgers.entry(id).or_default().row;
        if row.tombstone {
            return Err(AddError::Tombstoned);
        }
        if term < row.term {
            return Err(AddError::StaleTerm(row.term));
        }
        if term > row.term {
            row.term = term;
            self.push(Record::Term { ledger: id, term });
            self.touch(id, now);
        }
        Ok(())
    }

    fn seal(&mut self, id: LedgerId, last: Option<EntryId>, now: Mono) -> Result<(), AddError> {
        let row = &self.ledgers.entry(id).or_default().row;
        match row.sealed {
            _ if row.tombstone => Err(AddError::Tombstoned),
            Some(before) if before == last => Ok(()),
            Some(_) => Err(AddError::Unknown("sealed at another last entry")),
            None => {
                self.push(Record::Seal { ledger: id, last });
                self.apply_seal(id, last, now);
                Ok(())
            }
        }
    }

    fn has_place(&self, bytes: usize) -> bool {
        let cache_full = self.cache_bytes + bytes > self.config.write_cache && self.cache_bytes > 0;
        let Some(current) = &self.current else { return false };
        let batches = (self.pending_bytes + bytes) / self.config.batch_bytes_max() + 3;
        let need = (self.pending_bytes + bytes + batches * 4096) as u64;
        let left = current.capacity.saturating_sub(self.used + self.config.control_reserve);
        !cache_full && (need <= left || !self.spares.is_empty())
    }

    fn admit_add(&mut self, op: Op, now: Mono) -> Admitted {
        let bytes = op.bytes();
        let Op::Add { add, copies, checked, stored, done } = op else { return Admitted::Queued };
        let refusal = checked
            .and_then(|()| self.refusal(&add, copies))
            .and_then(|()| self.disk_refusal(&add, copies, bytes));
        if let Err(error) = refusal {
            return Admitted::Answered((Done::Add(done), Err(error)));
        }
        if !self.has_place(bytes) {
            self.starved = true;
            return Admitted::Blocked(Op::Add { add, copies, checked: Ok(()), stored, done });
        }
        let ledger = self.ledgers.entry(add.ledger).or_default();
        let stored = stored.filter(|s| s.flushes == self.flushes);
        let mut fresh = Vec::with_capacity(add.entries.len());
        for entry in &add.entries {
            let known = match (ledger.get(entry.id), &stored) {
                (Some(held), _) => Some(held.crc),
                (None, _) if Some(entry.id) > ledger.row.flushed => None,
                (None, Some(stored)) => stored.crcs.get(&entry.id).copied(),
                (None, None) => {
                    return Admitted::Lookup(Op::Add { add, copies, checked: Ok(()), stored: None, done });
                }
            };
            match known {
                None => fresh.push(entry.clone()),
                Some(crc) if crc == entry.crc => {}
                Some(_) => return Admitted::Answered((Done::Add(done), Err(AddError::Conflict(entry.id)))),
            }
        }
        if fresh.is_empty() && !add.entries.is_empty() && active(Mutant::DuplicateAckedEarly) {
            return Admitted::Answered((Done::Add(done), Ok(())));
        }
        let reserve = self.reserve(&add, copies);
        self.store(&add, reserve, fresh, now);
        self.queue(Done::Add(done))
    }

    /// Above the second watermark only write-backs of a recovery (terms above the first are a recoverer's) and copies are taken, and what
    /// consumers have acknowledged, as far as the reserve of each goes. Acknowledgements are taken above the third as well: without
    /// them nothing can be deleted.
    fn disk_refusal(&self, add: &Add, copies: bool, bytes: usize) -> Result<(), AddError> {
        if add.entries.is_empty() || self.room < Room::RecoveryOnly {
            return Ok(());
        }
        let left = match self.reserve(add, copies) {
            Reserve::Cursors => self.cursors_left,
            Reserve::Recovery if self.room == Room::RecoveryOnly => self.recovery_left,
            Reserve::Recovery | Reserve::None => 0,
        };
        if bytes as u64 <= left { Ok(()) } else { Err(AddError::DiskFull) }
    }

    /// Which reserve an add may use.
    fn reserve(&self, add: &Add, copies: bool) -> Reserve {
        let known = self.ledgers.get(&add.ledger).and_then(|ledger| ledger.row.attributes.as_ref());
        match known.or(add.attributes.as_ref()).map(|attributes| &attributes.kind) {
            Some(LedgerKind::CursorLog) => Reserve::Cursors,
            _ if copies || add.term > Term(1) => Reserve::Recovery,
            _ => Reserve::None,
        }
    }

    fn refusal(&self, add: &Add, copies: bool) -> Result<(), AddError> {
        // A closed ledger may well lie below: the watermark is about writers.
        if Some(add.ledger) <= self.dead_below && !copies {
            return Err(AddError::Tombstoned);
        }
        let Some(ledger) = self.ledgers.get(&add.ledger) else { return Ok(()) };
        let row = &ledger.row;
        if row.tombstone {
            return Err(AddError::Tombstoned);
        }
        if add.term < row.term && !copies {
            return Err(AddError::StaleTerm(row.term));
        }
        match row.sealed {
            Some(last) if add.entries.iter().any(|e| Some(e.id) > last) => Err(AddError::Sealed(last)),
            _ => Ok(()),
        }
    }

    /// Takes an add that nothing speaks against.
    fn store(&mut self, add: &Add, reserve: Reserve, fresh: Vec<Entry>, now: Mono) {
        let id = add.ledger;
        let _checked_before = self.raise(id, add.term, now);
        let row = &mut self.ledgers.entry(id).or_default().row;
        let (lac, lafr) = (row.lac.max(add.lac), row.lafr.max(add.lafr));
        let hint = (lac, lafr) != (row.lac, row.lafr);
        (row.lac, row.lafr) = (lac, lafr);
        let attributes = add.attributes.clone().filter(|_| row.attributes.is_none());
        if let Some(attributes) = attributes {
            row.attributes = Some(attributes.clone());
            self.push(Record::Attributes { ledger: id, attributes });
        }
        if hint {
            self.push(Record::Hint { ledger: id, lac, lafr });
        }
        if !fresh.is_empty() || hint || add.attributes.is_some() {
            self.touch(id, now);
        }
        if self.room >= Room::RecoveryOnly {
            let bytes = fresh.iter().map(cost).sum::<usize>() as u64;
            match reserve {
                Reserve::Cursors => self.cursors_left = self.cursors_left.saturating_sub(bytes),
                Reserve::Recovery => self.recovery_left = self.recovery_left.saturating_sub(bytes),
                Reserve::None => {}
            }
        }
        for entry in fresh {
            self.push(Record::Add { ledger: id, entry: entry.clone() });
            self.insert(id, entry);
        }
    }

    fn insert(&mut self, id: LedgerId, entry: Entry) {
        let ledger = self.ledgers.entry(id).or_default();
        if ledger.visible(entry.id) && ledger.get(entry.id).is_none() {
            self.cache_bytes += cost(&entry);
            ledger.active.insert(entry);
        }
    }

    fn apply_delete(&mut self, id: LedgerId, now: Mono) {
        self.touch(id, now);
        let ledger = self.ledgers.entry(id).or_default();
        let freed = ledger.active.cut(None);
        ledger.row.tombstone = true;
        self.cache_bytes = self.cache_bytes.saturating_sub(freed);
    }

    fn apply_seal(&mut self, id: LedgerId, last: Option<EntryId>, now: Mono) {
        self.touch(id, now);
        let ledger = self.ledgers.entry(id).or_default();
        let freed = ledger.active.cut(last);
        ledger.row.sealed = Some(last);
        self.cache_bytes = self.cache_bytes.saturating_sub(freed);
    }

    /// Applies a record from the journal: it was admitted before, nothing is asked again.
    pub(crate) fn replay(&mut self, record: Record, now: Mono) {
        match record {
            Record::Add { ledger, entry } => {
                self.touch(ledger, now);
                self.insert(ledger, entry);
            }
            Record::Term { ledger, term } => {
                if !active(Mutant::FenceLost) {
                    self.touch(ledger, now);
                    let row = &mut self.ledgers.entry(ledger).or_default().row;
                    row.term = row.term.max(term);
                }
            }
            Record::Hint { ledger, lac, lafr } => {
                self.touch(ledger, now);
                let row = &mut self.ledgers.entry(ledger).or_default().row;
                (row.lac, row.lafr) = (row.lac.max(lac), row.lafr.max(lafr));
            }
            Record::Delete { ledger } => self.apply_delete(ledger, now),
            Record::Seal { ledger, last } => self.apply_seal(ledger, last, now),
            Record::Attributes { ledger, attributes } => {
                self.touch(ledger, now);
                self.ledgers.entry(ledger).or_default().row.attributes.get_or_insert(attributes);
            }
            Record::Watermark { to } => {
                self.dead_below = self.dead_below.max(Some(to));
                self.dirty_since.get_or_insert(now);
            }
            Record::ReplayStopped { .. } | Record::Idle => {}
        }
    }
}
