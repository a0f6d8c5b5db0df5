//! One bookie's semantics (storage.md 1.6) as a pure value: no durability of its own, everything accepted is durable. The
//! explorer runs it beside the real machines, [`super::MemoryBookies`] wraps it as a [`crate::rpc::BookieRpc`].

use crate::entry::Entry;
use crate::mutant::{Mutant, active};
use crate::record::LedgerAttributes;
use crate::rpc::{
    Add, AddError, BookieRef, ControlError, Doubt, IdRange, LedgerStat, Presence, Proof, Read, ReadAnswer,
    Tail,
};
use geminga_common::ids::{EntryId, Incarnation, LedgerId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Payload bytes a fence answers inline.
const TAIL_BYTES: usize = 1 << 20;

/// What a bookie keeps of a ledger.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Ledger {
    term: Term,
    sealed: Option<Option<EntryId>>,
    lac: Option<EntryId>,
    lafr: Option<EntryId>,
    attributes: Option<Arc<LedgerAttributes>>,
    entries: BTreeMap<EntryId, Entry>,
}

/// A bookie's store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Store {
    me: BookieRef,
    ledgers: BTreeMap<LedgerId, Ledger>,
    tombstones: BTreeSet<LedgerId>,
    damaged: BTreeSet<(LedgerId, EntryId)>,
    entry_bytes_max: usize,
}

fn runs(ids: impl Iterator<Item = EntryId>) -> Vec<IdRange> {
    let mut runs: Vec<IdRange> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some(run) if run.last.next() == id => run.last = id,
            _ => runs.push(IdRange { first: id, last: id }),
        }
    }
    runs
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(me: BookieRef) -> Self {
        Self {
            me,
            ledgers: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            damaged: BTreeSet::new(),
            entry_bytes_max: 64 << 20,
        }
    }

    /// Name and incarnation.
    #[must_use]
    pub fn me(&self) -> &BookieRef {
        &self.me
    }

    /// Loses everything. With `tells`, it takes a new incarnation as it must; without, it lies.
    pub fn wipe(&mut self, tells: bool) {
        let incarnation = Incarnation(self.me.incarnation.0 + u64::from(tells));
        *self = Self::new(BookieRef { incarnation, ..self.me.clone() });
    }

    /// Makes an entry unreadable, as a scrub would find it.
    pub fn damage(&mut self, ledger: LedgerId, entry: EntryId) {
        self.damaged.insert((ledger, entry));
    }

    /// Sets the largest entry it takes, bytes.
    pub fn limit_entries(&mut self, entry_bytes_max: usize) {
        self.entry_bytes_max = entry_bytes_max;
    }

    /// An entry as stored, for observers.
    #[must_use]
    pub fn entry(&self, ledger: LedgerId, id: EntryId) -> Option<&Entry> {
        self.ledgers.get(&ledger)?.entries.get(&id)
    }

    /// Highest term of a ledger, for observers.
    #[must_use]
    pub fn term(&self, ledger: LedgerId) -> Term {
        self.ledgers.get(&ledger).map_or(Term(0), |l| l.term)
    }

    fn is_me(&self, to: &BookieRef) -> bool {
        to.id == self.me.id && (to.incarnation == self.me.incarnation || active(Mutant::TrustAmnesiac))
    }

    /// Stores entries.
    ///
    /// # Errors
    /// As the rules of storage.md 1.6 say; then nothing was stored.
    pub fn add(&mut self, to: &BookieRef, add: Add) -> Result<(), AddError> {
        if !self.is_me(to) {
            return Err(AddError::WrongIncarnation);
        }
        if self.tombstones.contains(&add.ledger) {
            return Err(AddError::Tombstoned);
        }
        if let Some(l) = self.ledgers.get(&add.ledger) {
            if add.term < l.term {
                return Err(AddError::StaleTerm(l.term));
            }
            let last = add.entries.last().map(|e| e.id);
            if let Some(sealed) = l.sealed
                && last > sealed
            {
                return Err(AddError::Sealed(sealed));
            }
        }
        for entry in &add.entries {
            if !entry.verify(add.ledger) {
                return Err(AddError::Corrupt(entry.id));
            }
            if entry.size() > self.entry_bytes_max {
                let (id, size, limit) = (entry.id, entry.size(), self.entry_bytes_max);
                return Err(AddError::TooLarge { id, size, limit });
            }
            if self.entry(add.ledger, entry.id).is_some_and(|stored| stored.crc != entry.crc) {
                return Err(AddError::Conflict(entry.id));
            }
        }
        let l = self.ledgers.entry(add.ledger).or_default();
        l.term = l.term.max(add.term);
        l.lac = l.lac.max(add.lac);
        l.lafr = l.lafr.max(add.lafr);
        l.attributes = l.attributes.take().or(add.attributes);
        for entry in add.entries {
            self.damaged.remove(&(add.ledger, entry.id));
            l.entries.insert(entry.id, entry);
        }
        Ok(())
    }

    /// Reads a run.
    #[must_use]
    pub fn read(&self, to: &BookieRef, read: Read) -> ReadAnswer {
        if !self.is_me(to) {
            return ReadAnswer::Unknown(Doubt::WrongIncarnation);
        }
        // Once there, now dropped: that is not "never stored here".
        if self.tombstones.contains(&read.ledger) {
            return ReadAnswer::Unknown(Doubt::DataLoss);
        }
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for id in (read.first.0..=read.last.0).map(EntryId) {
            if self.damaged.contains(&(read.ledger, id)) {
                if found.is_empty() {
                    return ReadAnswer::Unknown(Doubt::Damaged);
                }
                break;
            }
            let Some(entry) = self.entry(read.ledger, id) else { break };
            bytes += entry.payload.len();
            if !found.is_empty() && bytes > read.bytes_max {
                break;
            }
            found.push(entry.clone());
        }
        if found.is_empty() {
            ReadAnswer::NotFound(Proof::from_intact_index())
        } else {
            ReadAnswer::Found(found)
        }
    }

    /// Fences and tells the tail.
    ///
    /// # Errors
    /// Wrong incarnation, a tombstone, or a higher term.
    pub fn fence_tail(
        &mut self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> Result<Tail, ControlError> {
        self.control(to, ledger)?;
        let l = self.ledgers.entry(ledger).or_default();
        if term < l.term {
            return Err(ControlError::StaleTerm(l.term));
        }
        if !active(Mutant::FenceWithoutTerm) {
            l.term = term;
        }
        let damaged = &self.damaged;
        let intact = |id: &EntryId| !damaged.contains(&(ledger, *id));
        let inline_from = l.lac.map_or(from, |lac| lac.max(from));
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.size();
            bytes <= TAIL_BYTES
        };
        let inline =
            l.entries.range(inline_from..).map(|(_, e)| e).filter(|e| intact(&e.id)).take_while(fits);
        Ok(Tail {
            lacks: false,
            lac: l.lac,
            lafr: l.lafr,
            entries: inline.cloned().collect(),
            present: runs(l.entries.range(from..).map(|(id, _)| *id).filter(intact)),
            doubtful: runs(damaged.iter().filter(|(l, id)| *l == ledger && *id >= from).map(|(_, id)| *id)),
            attributes: l.attributes.clone(),
        })
    }

    /// Seals at `last` and drops what lies beyond.
    ///
    /// # Errors
    /// Wrong incarnation or a tombstone.
    pub fn seal(
        &mut self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> Result<(), ControlError> {
        self.control(to, ledger)?;
        let l = self.ledgers.entry(ledger).or_default();
        l.sealed = Some(l.sealed.unwrap_or(last));
        let end = last.map_or(EntryId(0), EntryId::next);
        l.entries.retain(|id, _| *id < end);
        Ok(())
    }

    /// Deletes a ledger.
    ///
    /// # Errors
    /// Wrong incarnation.
    pub fn delete(&mut self, to: &BookieRef, ledger: LedgerId) -> Result<(), ControlError> {
        match self.control(to, ledger) {
            Ok(()) | Err(ControlError::Tombstoned) => {}
            Err(error) => return Err(error),
        }
        self.ledgers.remove(&ledger);
        self.tombstones.insert(ledger);
        Ok(())
    }

    /// What is known of a ledger.
    ///
    /// # Errors
    /// Wrong incarnation or a tombstone.
    pub fn stat(&self, to: &BookieRef, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        self.control(to, ledger)?;
        let l = self.ledgers.get(&ledger).cloned().unwrap_or_default();
        let present = runs(l.entries.keys().copied());
        Ok(LedgerStat { term: l.term, sealed: l.sealed, lac: l.lac, present, attributes: l.attributes })
    }

    /// Stores copies of entries of a closed ledger, whatever its term.
    ///
    /// # Errors
    /// As [`Self::add`], but for terms.
    pub fn store_copies(
        &mut self,
        to: &BookieRef,
        ledger: LedgerId,
        entries: Vec<Entry>,
    ) -> Result<(), AddError> {
        let (term, lac, lafr, attributes) = (self.term(ledger), None, None, None);
        self.add(to, Add { ledger, term, lac, lafr, attributes, entries })
    }

    /// Which of these ids are there.
    ///
    /// # Errors
    /// Wrong incarnation or a tombstone.
    pub fn presence(&self, to: &BookieRef, ledger: LedgerId, ids: IdRange) -> Result<Presence, ControlError> {
        self.control(to, ledger)?;
        let Some(l) = self.ledgers.get(&ledger) else { return Ok(Presence::default()) };
        let (damaged, intact): (Vec<EntryId>, Vec<EntryId>) = l
            .entries
            .range(ids.first..=ids.last)
            .map(|(id, _)| *id)
            .partition(|id| self.damaged.contains(&(ledger, *id)));
        Ok(Presence { present: runs(intact.into_iter()), doubtful: runs(damaged.into_iter()) })
    }

    fn control(&self, to: &BookieRef, ledger: LedgerId) -> Result<(), ControlError> {
        if !self.is_me(to) {
            Err(ControlError::WrongIncarnation)
        } else if self.tombstones.contains(&ledger) {
            Err(ControlError::Tombstoned)
        } else {
            Ok(())
        }
    }
}
