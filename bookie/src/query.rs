//! Reads, tails and stats: what is asked of a store besides storing. Cache first, then segments, from one consistent picture.

use crate::mutant::{Mutant, active};
use crate::segments::{Lookup, SegmentSet};
use crate::shard::cache::{join, range, without};
use crate::shard::{Op, Status, Stored};
use crate::store::Store;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{
    Add, AddError, ControlError, Doubt, IdRange, LedgerStat, Presence, Proof, Read, ReadAnswer, ReadClass,
    Tail,
};
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Payload bytes that a tail answer carries along.
const TAIL_BYTES: usize = 1 << 20;

/// Entry ids are below this: clients read them as signed, and sums with lengths cannot overflow.
pub(crate) const ID_LIMIT: u64 = 1 << 63;

/// How a read goes on.
pub(crate) enum ReadStart {
    Answered(ReadAnswer),
    /// Ask these segments, on a reader thread.
    Segments(Arc<SegmentSet>, Read),
}

impl Store {
    /// Answers from the cache, or says what to ask.
    pub(crate) fn read_start(&self, mut read: Read) -> ReadStart {
        let shard = self.shard.lock();
        if shard.status == Status::Failed {
            return ReadStart::Answered(ReadAnswer::Unknown(Doubt::Damaged));
        }
        if let Some(answer) = shard.read_cached(&read) {
            return ReadStart::Answered(answer);
        }
        if let Some(ledger) = shard.ledgers.get(&read.ledger) {
            if !ledger.visible(read.first) {
                return ReadStart::Answered(ReadAnswer::Unknown(Doubt::DataLoss));
            }
            if let Some(Some(last)) = ledger.row.sealed {
                read.last = read.last.min(last);
            }
        }
        ReadStart::Segments(shard.segments.clone(), read)
    }

    /// Answers from segments. Blocks on the disk.
    pub(crate) fn read_segments(&self, segments: &SegmentSet, read: &Read) -> ReadAnswer {
        match segments.read(read.ledger, read.first..=read.last, read.bytes_max, &self.blocks) {
            Lookup::Found(entries) => ReadAnswer::Found(entries),
            Lookup::Absent if self.intact() => ReadAnswer::NotFound(Proof::from_intact_index()),
            Lookup::Absent => ReadAnswer::Unknown(Doubt::DataLoss),
            Lookup::Damaged if active(Mutant::UnreadableNotFound) => {
                ReadAnswer::NotFound(Proof::from_intact_index())
            }
            Lookup::Damaged => ReadAnswer::Unknown(Doubt::Damaged),
        }
    }

    fn intact(&self) -> bool {
        self.shard.lock().intact() || active(Mutant::AmnesiacNotFound)
    }

    /// A whole read. Blocks on the disk.
    pub(crate) fn read(&self, read: Read) -> ReadAnswer {
        match self.read_start(read) {
            ReadStart::Answered(answer) => answer,
            ReadStart::Segments(segments, read) => self.read_segments(&segments, &read),
        }
    }

    /// Asks segments which of an add's ids they hold. Blocks on the disk.
    pub(crate) fn resolve(&self, op: Op) -> Op {
        let Op::Add { add, copies, checked, done, .. } = op else { return op };
        let (segments, flushes) = {
            let shard = self.shard.lock();
            (shard.segments.clone(), shard.flushes)
        };
        let mut crcs = BTreeMap::new();
        let mut checked = checked;
        for entry in &add.entries {
            match segments.read(add.ledger, entry.id..=entry.id, 1, &self.blocks) {
                Lookup::Found(found) => crcs.extend(found.iter().map(|e| (e.id, e.crc))),
                Lookup::Absent => {}
                // Copies of a closed ledger are what was written, and so is what a recovery read elsewhere: they take the place of what
                // cannot be read. Refused, a recovery that needs this store for its quorum could never end.
                Lookup::Damaged if copies || add.term > Term(1) => {}
                // What cannot be read cannot be compared: a writer's word is not taken.
                Lookup::Damaged => checked = Err(AddError::Unknown("segment is damaged")),
            }
        }
        Op::Add { add, copies, checked, stored: Some(Stored { flushes, crcs }), done }
    }

    /// What an add must satisfy before it is looked at. Done by the caller's thread: it costs a pass over the bytes.
    pub(crate) fn check(&self, add: &Add) -> Result<(), AddError> {
        let limit = self.config.entry_bytes_max;
        let hints = add.lac.iter().chain(&add.lafr);
        if let Some(id) = hints.chain(add.entries.iter().map(|e| &e.id)).find(|id| id.0 >= ID_LIMIT) {
            return Err(AddError::Corrupt(*id));
        }
        for entry in &add.entries {
            if entry.size() > limit {
                return Err(AddError::TooLarge { id: entry.id, size: entry.size(), limit });
            }
            if !entry.verify(add.ledger) {
                return Err(AddError::Corrupt(entry.id));
            }
        }
        Ok(())
    }

    /// Runs present and runs in doubt from `from` on. Blocks on the disk.
    fn present(&self, id: LedgerId, from: EntryId) -> Result<(LedgerStat, Tail), ControlError> {
        let shard = self.shard.lock();
        if shard.status == Status::Failed {
            return Err(ControlError::Failed);
        }
        let row = shard.ledgers.get(&id).map(|ledger| ledger.row.clone()).unwrap_or_default();
        let (cached, segments, intact) = (shard.cached_ids(id, from), shard.segments.clone(), shard.intact());
        drop(shard);
        if row.tombstone {
            return Err(ControlError::Tombstoned);
        }
        let (stored, lost, mut damaged) = segments.ids(id);
        damaged |= !intact;
        let reach =
            stored.into_iter().filter(|r| r.last >= from).map(|r| range(r.first.0.max(from.0), r.last.0));
        let end = row.sealed.map_or(u64::MAX, |last| last.map_or(0, |last| last.0 + 1));
        let within =
            |r: &IdRange| (r.first.0 < end).then(|| range(r.first.0, r.last.0.min(end.saturating_sub(1))));
        let all: Vec<IdRange> = cached.into_iter().chain(reach).collect();
        let present = join(all.iter().filter_map(within).collect());
        let doubtful = if damaged {
            gaps(&present, from.0)
        } else {
            let lost: Vec<IdRange> = lost.iter().filter_map(within).filter(|r| r.last >= from).collect();
            without(&lost, &present)
        };
        let stat = LedgerStat {
            term: row.term,
            sealed: row.sealed,
            lac: row.lac,
            present: present.clone(),
            attributes: row.attributes.clone(),
        };
        let (lac, lafr, attributes) = (row.lac, row.lafr, row.attributes);
        Ok((stat, Tail { lac, lafr, present, doubtful, entries: Vec::new(), attributes, lacks: false }))
    }

    pub(crate) fn stat(&self, id: LedgerId) -> Result<LedgerStat, ControlError> {
        Ok(self.present(id, EntryId(0))?.0)
    }

    /// Which of these ids are there, after a settling: what is visible then is durable.
    pub(crate) fn presence(&self, ledger: LedgerId, ids: IdRange) -> Result<Presence, ControlError> {
        let tail = self.present(ledger, ids.first)?.1;
        let cut = |runs: Vec<IdRange>| {
            let below = runs.into_iter().take_while(|run| run.first <= ids.last);
            below.map(|run| range(run.first.0, run.last.0.min(ids.last.0))).collect()
        };
        Ok(Presence { present: cut(tail.present), doubtful: cut(tail.doubtful) })
    }

    /// The tail, after the fence is durable. An id whose bytes cannot be read moves from present to doubtful.
    pub(crate) fn tail(&self, ledger: LedgerId, from: EntryId) -> Result<Tail, ControlError> {
        let mut tail = self.present(ledger, from)?.1;
        let mut left = TAIL_BYTES;
        for run in tail.present.clone() {
            let mut id = run.first;
            while id <= run.last && left > 0 {
                let read =
                    Read { ledger, first: id, last: run.last, bytes_max: left, class: ReadClass::Tail };
                match self.read(read) {
                    ReadAnswer::Found(entries) => {
                        id = entries.last().map_or(run.last, |e| e.id).next();
                        left = left.saturating_sub(entries.iter().map(Entry::size).sum());
                        tail.entries.extend(entries);
                    }
                    _ => {
                        // Not id by id: each would read the same bad block again, and a run can be a million long.
                        let segments = self.shard.lock().segments.clone();
                        let last = segments.unreadable_to(ledger, id).min(run.last);
                        tail.doubtful.push(IdRange { first: id, last });
                        id = last.next();
                    }
                }
            }
        }
        tail.doubtful = join(tail.doubtful);
        tail.present = without(&tail.present, &tail.doubtful);
        Ok(tail)
    }
}

/// All ids from `from` on that are not in `runs`.
fn gaps(runs: &[IdRange], from: u64) -> Vec<IdRange> {
    without(&[range(from, u64::MAX - 1)], runs)
}
