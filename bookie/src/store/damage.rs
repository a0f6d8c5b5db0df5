//! What a store has and cannot read: blocks and footers of segments that do not check. Found by reading every live byte, offline, for a
//! store that has the only copy; and let go of, once its loss is accepted.
//!
//! What is intact within a damaged block, or before the damage where a footer is gone, is not lost: each entry has a checksum of its own.
//! Letting go writes it to a segment of its own and takes the block out of the index, in one transaction per damaged segment. Not a byte
//! of the damaged file is changed, and nothing is let go of that was not told before.

use super::{Lost, Store};
use crate::gc;
use crate::manifest::{BadBlock, Change};
use crate::segments::{self, Segment, Writer, expected, ids_of};
use crate::shard::cache::{join, without};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{IdRange, Presence};
use geminga_common::ids::LedgerId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Runs of ids that a text names one by one.
const NAMED: usize = 4;

type Ids = Vec<(LedgerId, IdRange)>;

/// Told how many of how many bytes were read.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64);

/// Something of a segment that cannot be read, and of which a store without other copies can give back only what is intact in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub(super) shard: usize,
    segment: u64,
    /// Offset and length of a block; `None`: the footer, and with it all that does not follow from the blocks themselves.
    block: Option<(u64, u64)>,
    /// What of it is intact.
    pub(super) kept: Ids,
    /// What of it is lost, as far as ids are known.
    pub(super) gone: Ids,
    /// Where it is, and what that means.
    pub lost: Lost,
}

impl Store {
    /// Bytes that [`Self::find_damage`] reads at most.
    pub(super) fn readable_bytes(&self) -> u64 {
        let set = self.shard.lock().segments.clone();
        set.all.iter().map(|segment| segment.row.len).sum()
    }

    /// Reads all segments that are there as long as they were. Blocks in which only deleted ledgers lie are left out.
    pub(super) fn find_damage(&self, shard: usize, read: &mut dyn FnMut(u64)) -> Vec<Damage> {
        let set = self.shard.lock().segments.clone();
        let mut found = Vec::new();
        for segment in &set.all {
            let from = found.len();
            if segment.wanting().is_none() {
                look_at(segment, &|ledgers| self.gone(ledgers), &mut found);
            }
            found[from..].iter_mut().for_each(|damage| damage.shard = shard);
            read(segment.row.len);
        }
        found.iter().for_each(|damage| self.mark(damage));
        found.iter_mut().for_each(|damage| self.tell(damage));
        found
    }

    /// From now on what is damaged is not present, in memory.
    fn mark(&self, damage: &Damage) {
        let set = self.shard.lock().segments.clone();
        if let (Some(segment), Some((offset, _))) = (find(&set.all, damage.segment), damage.block) {
            segment.mark_bad(offset);
        }
    }

    /// Says which entries are lost: what lay there, is not intact, and is nowhere else in this store.
    fn tell(&self, damage: &mut Damage) {
        let set = self.shard.lock().segments.clone();
        let Some(segment) = find(&set.all, damage.segment) else { return };
        let Some((offset, len)) = damage.block else { return };
        let Ok(footer) = segment.footer() else { return };
        let Some(at) = footer.blocks.iter().position(|block| block.offset == offset) else { return };
        let mut lost: Ids = Vec::new();
        for (ledger, ids) in expected(footer, at) {
            let kept = damage.kept.iter().filter(|(owner, _)| *owner == ledger).map(|(_, ids)| *ids);
            // Of a deleted ledger nothing is lost.
            let Ok(Presence { present: here, .. }) = self.presence(ledger, ids) else { continue };
            let there = join(kept.chain(here).collect());
            lost.extend(without(&[ids], &there).into_iter().map(|ids| (ledger, ids)));
        }
        damage.lost.what = format!("does not check at offset {offset}, {len} bytes: {}", in_words(&lost));
        damage.lost.ledgers = lost.iter().map(|(ledger, _)| (*ledger, *ledger)).collect();
        damage.lost.ledgers.dedup();
        damage.gone = lost;
    }

    /// Lets go of what is damaged: what is intact of it is written anew, the rest is not in the index any more. Durable when it returns;
    /// done again after a crash it finds what is left to be done.
    pub(super) fn let_go(&self, damages: &[&Damage]) -> io::Result<()> {
        let set = self.shard.lock().segments.clone();
        let mut by_segment: BTreeMap<u64, Vec<&Damage>> = BTreeMap::new();
        damages.iter().for_each(|damage| by_segment.entry(damage.segment).or_default().push(damage));
        for (id, mut damages) in by_segment {
            let Some(segment) = find(&set.all, id) else { continue };
            damages.sort_by_key(|damage| damage.block);
            let fresh = self.take_ids();
            let rows = self.rewrite_intact(segment, &damages, fresh).inspect_err(|_| self.discard(fresh))?;
            let mut change = Change { put: rows, next_segment: fresh + 2, ..Change::default() };
            for damage in damages {
                match damage.block {
                    Some((offset, len)) => change.let_go.push(BadBlock { segment: id, offset, len }),
                    None => change.lost.push(id),
                }
            }
            self.change(&change)?;
        }
        Ok(())
    }

    /// Writes what is intact in damaged parts of a segment to one of its own.
    fn rewrite_intact(
        &self,
        segment: &Segment,
        damages: &[&Damage],
        id: u64,
    ) -> io::Result<Vec<segments::SegmentRow>> {
        let (disk, dir) = (&*self.disk, self.segment_dir.as_path());
        let mut out = Writer::new(disk, dir, &self.config, id, true);
        let mut push = |entries: Vec<(LedgerId, Entry)>| -> io::Result<()> {
            for run in entries.chunk_by(|a, b| a.0 == b.0) {
                let same: Vec<Entry> = run.iter().map(|(_, entry)| entry.clone()).collect();
                out.push(run[0].0, &same)?;
            }
            Ok(())
        };
        for damage in damages {
            match (damage.block, segment.footer()) {
                (Some((offset, _)), Ok(footer)) => {
                    if let Some(at) = footer.blocks.iter().position(|block| block.offset == offset) {
                        push(segment.salvage_block(footer, at))?;
                    }
                }
                _ => {
                    segment.salvage_whole(&mut push)?;
                }
            }
        }
        let none = Writer::new(disk, dir, &self.config, id + 1, true);
        segments::finish(disk, dir, [out, none])
    }
}

fn find(all: &[Arc<Segment>], id: u64) -> Option<&Arc<Segment>> {
    all.iter().find(|segment| segment.row.id == id)
}

fn look_at(
    segment: &Segment,
    gone: &dyn Fn(&BTreeSet<LedgerId>) -> BTreeSet<LedgerId>,
    found: &mut Vec<Damage>,
) {
    let damage = |block, kept, what: String, ledgers| Damage {
        shard: 0,
        segment: segment.row.id,
        block,
        kept,
        gone: Vec::new(),
        lost: Lost { path: segment.path().to_owned(), what, ledgers },
    };
    let Ok(footer) = segment.footer() else {
        let mut kept = Vec::new();
        let counted = segment.salvage_whole(&mut |entries| {
            kept.extend(ids_of(&entries));
            Ok(())
        });
        let (low, high) = (*segment.row.ledgers.start(), *segment.row.ledgers.end());
        let entries: u64 = kept.iter().map(|(_, ids)| ids.last.0 - ids.first.0 + 1).sum();
        let place = segment.row.len.saturating_sub(segment.row.footer);
        let whole = counted.is_ok_and(|all| all);
        let means = if whole { "no entry is lost" } else { "others may be lost" };
        let what = format!(
            "does not check at offset {place}, where the table of its entries begins: {entries} entries of ledgers {low} to {high} are \
             intact, {means}"
        );
        let ledgers = if whole { Vec::new() } else { vec![(low, high)] };
        return found.push(damage(None, kept, what, ledgers));
    };
    let gone = gone(&footer.runs.iter().map(|run| run.ledger).collect());
    let dead = gc::dead_blocks(footer, |ledger| gone.contains(&ledger));
    for (at, block) in footer.blocks.iter().enumerate() {
        if dead[at] || segment.is_let_go(block.offset) || segment.verified(block).is_ok() {
            continue;
        }
        let kept = ids_of(&segment.salvage_block(footer, at));
        found.push(damage(Some((block.offset, block.len)), kept, String::new(), Vec::new()));
    }
}

fn in_words(lost: &Ids) -> String {
    if lost.is_empty() {
        return "no entry in it is lost".to_owned();
    }
    let mut named: Vec<String> = lost
        .iter()
        .take(NAMED)
        .map(|(ledger, ids)| match ids.first == ids.last {
            true => format!("{ledger}:{}", ids.first),
            false => format!("{ledger}:{} to {ledger}:{}", ids.first, ids.last),
        })
        .collect();
    if lost.len() > NAMED {
        named.push(format!("and {} runs more", lost.len() - NAMED));
    }
    let entries: u64 = lost.iter().map(|(_, ids)| ids.last.0 - ids.first.0 + 1).sum();
    format!("{entries} entries in it are lost: {}", named.join(", "))
}

impl Store {
    /// Where something of a ledger lies that is known not to be readable; `None`: nothing is known of such.
    pub(crate) fn damage_of(&self, ledger: LedgerId) -> Option<String> {
        let set = self.shard.lock().segments.clone();
        set.all.iter().find_map(|segment| segment.damage_of(ledger))
    }
}
