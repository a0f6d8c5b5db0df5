//! Entries of one ledger that no segment holds yet. Ids are dense almost always, so they lie in one vector; an id that comes
//! out of order waits in a side map.

use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::IdRange;
use geminga_common::ids::EntryId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an entry costs beside its payload, in bytes.
pub(crate) const ENTRY_COST: usize = 96;

#[derive(Clone, Default, Debug)]
pub(crate) struct Cache {
    dense: Vec<Entry>,
    side: BTreeMap<u64, Entry>,
}

/// Sorted by id; being flushed.
pub(crate) type Frozen = Arc<Vec<Entry>>;

impl Cache {
    pub(crate) fn get(&self, id: EntryId) -> Option<&Entry> {
        let first = self.dense.first()?.id.0;
        match id.0.checked_sub(first).and_then(|at| self.dense.get(at as usize)) {
            Some(entry) => Some(entry),
            None => self.side.get(&id.0),
        }
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        match self.dense.last() {
            Some(last) if last.id.0 + 1 != entry.id.0 => {
                self.side.insert(entry.id.0, entry);
            }
            _ => {
                let mut next = entry.id.0 + 1;
                self.dense.push(entry);
                while let Some(entry) = self.side.remove(&next) {
                    self.dense.push(entry);
                    next += 1;
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.dense.is_empty()
    }

    pub(crate) fn freeze(&mut self) -> Frozen {
        let mut all = std::mem::take(&mut self.dense);
        if !self.side.is_empty() {
            all.extend(std::mem::take(&mut self.side).into_values());
            all.sort_unstable_by_key(|entry| entry.id);
        }
        Arc::new(all)
    }

    /// Drops ids above `last`; answers the bytes they took.
    pub(crate) fn cut(&mut self, last: Option<EntryId>) -> usize {
        let mut all = std::mem::take(self).freeze().to_vec();
        let keep = all.partition_point(|entry| Some(entry.id) <= last);
        let freed = all.drain(keep..).map(|entry| entry.payload.len() + ENTRY_COST).sum();
        all.into_iter().for_each(|entry| self.insert(entry));
        freed
    }

    pub(crate) fn ids(&self, from: u64, out: &mut Vec<IdRange>) {
        ids_of(&self.dense, from, out);
        self.side.range(from..).for_each(|(id, _)| out.push(range(*id, *id)));
    }
}

pub(crate) fn find(frozen: &Frozen, id: EntryId) -> Option<&Entry> {
    frozen.binary_search_by_key(&id, |entry| entry.id).ok().map(|at| &frozen[at])
}

pub(crate) fn range(first: u64, last: u64) -> IdRange {
    IdRange { first: EntryId(first), last: EntryId(last) }
}

/// The ids of sorted entries as runs.
pub(crate) fn ids_of(entries: &[Entry], from: u64, out: &mut Vec<IdRange>) {
    let start = entries.partition_point(|entry| entry.id.0 < from);
    for chunk in entries[start..].chunk_by(|a, b| a.id.0 + 1 == b.id.0) {
        out.push(range(chunk[0].id.0, chunk[chunk.len() - 1].id.0));
    }
}

/// Sorts runs and joins those that touch or overlap.
pub(crate) fn join(mut runs: Vec<IdRange>) -> Vec<IdRange> {
    runs.sort_unstable();
    let mut out: Vec<IdRange> = Vec::with_capacity(runs.len());
    for run in runs {
        match out.last_mut() {
            Some(before) if run.first.0 <= before.last.0.saturating_add(1) => {
                before.last = before.last.max(run.last);
            }
            _ => out.push(run),
        }
    }
    out
}

/// What of sorted, disjoint runs is not in sorted holes.
pub(crate) fn without(runs: &[IdRange], holes: &[IdRange]) -> Vec<IdRange> {
    let mut out = Vec::new();
    for run in runs {
        let mut first = run.first.0;
        for hole in holes.iter().filter(|h| h.last >= run.first && h.first <= run.last) {
            if hole.first.0 > first {
                out.push(range(first, hole.first.0 - 1));
            }
            first = first.max(hole.last.0.saturating_add(1));
        }
        if first <= run.last.0 {
            out.push(range(first, run.last.0));
        }
    }
    out
}
