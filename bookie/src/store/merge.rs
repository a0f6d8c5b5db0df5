//! Merging: segments of short runs become one in which they are longer; a segment of which little lives is written anew.
//!
//! Inputs are read block by block and every entry is checked. If anything does not check, the merge is given up and the input never
//! tried again: what cannot be read may not be dropped.

use super::Store;
use crate::format::segment::Footer;
use crate::gc::{self, Candidate};
use crate::manifest::Change;
use crate::mutant::{Mutant, active};
use crate::segments::{Segment, SegmentRow, Writer, finish};
use crate::shard::cost;
use geminga_bookie_client::entry::Entry;
use geminga_common::error::Code;
use geminga_common::ids::LedgerId;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a merge ended without a result.
enum Stopped {
    /// The input with this number does not check.
    Damaged(usize),
    Disk(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Stopped::Disk(error)
    }
}

/// Entries of one segment, in order, without those in dead blocks.
struct Input<'a> {
    segment: &'a Segment,
    footer: &'a Footer,
    dead: Vec<bool>,
    block: usize,
    ready: VecDeque<(LedgerId, Entry)>,
    skip_bad: bool,
}

impl Input<'_> {
    /// The ledger of the next entry.
    fn head(&mut self) -> Result<Option<LedgerId>, ()> {
        while self.ready.is_empty() && self.block < self.footer.blocks.len() {
            let at = self.block;
            self.block += 1;
            if !self.dead[at] {
                match self.segment.verified(&self.footer.blocks[at]) {
                    Ok(entries) => self.ready.extend(entries),
                    Err(_) if self.skip_bad => {}
                    Err(_) => return Err(()),
                }
            }
        }
        Ok(self.ready.front().map(|(ledger, _)| *ledger))
    }
}

impl Store {
    /// One merge, if one is worth it; whether there was one.
    pub(crate) fn merge_once(&self) -> io::Result<bool> {
        let _tidy = self.tidy.lock();
        let set = self.shard.lock().segments.clone();
        let usable = set.all.iter().filter(|s| !s.unmergeable.load(Ordering::Relaxed));
        let candidates: Vec<Candidate> = usable
            .map(|s| Candidate {
                id: s.row.id,
                body: s.row.len - s.row.footer,
                live: s.live.load(Ordering::Relaxed),
                small: s.row.small,
            })
            .collect();
        let chosen = gc::pick(&candidates, self.config.merge_count, self.config.merge_bytes);
        if chosen.is_empty() {
            return Ok(false);
        }
        let inputs: Vec<Arc<Segment>> =
            set.all.iter().filter(|s| chosen.contains(&s.row.id)).cloned().collect();
        let id = self.take_ids();
        let (rows, ledgers) = match self.rewrite(&inputs, id) {
            Ok(done) => done,
            Err(Stopped::Damaged(at)) => {
                self.discard(id);
                tracing::warn!(code = %Code::DATA_LOSS, segment = inputs[at].row.id, "a segment does not check and is left as it is");
                inputs[at].unmergeable.store(true, Ordering::Relaxed);
                let blocks = inputs[at].footer().map(|footer| &footer.blocks[..]).unwrap_or_default();
                blocks.iter().for_each(|block| inputs[at].suspect(block.offset));
                return Ok(true);
            }
            Err(Stopped::Disk(error)) => {
                self.discard(id);
                return Err(error);
            }
        };
        let change = Change { put: rows.clone(), forget: chosen, next_segment: id + 2, ..Change::default() };
        self.counts.merged_segments.fetch_add(inputs.len() as u64, Ordering::Relaxed);
        let fresh = self.open_segments(rows);
        self.replace(&set, change, fresh).inspect_err(|error| {
            if super::is_full(error) {
                self.discard(id);
            }
        })?;
        // A tombstone that came meanwhile was counted against the inputs.
        let gone = self.gone(&ledgers);
        self.shard.lock().buried.extend(gone);
        Ok(true)
    }

    /// Writes what lives in the inputs as one segment of short runs and one of long ones; also tells the ledgers.
    fn rewrite(
        &self,
        inputs: &[Arc<Segment>],
        id: u64,
    ) -> Result<(Vec<SegmentRow>, BTreeSet<LedgerId>), Stopped> {
        let footers: Vec<&Footer> = inputs
            .iter()
            .enumerate()
            .map(|(at, s)| s.footer().map_err(|_| Stopped::Damaged(at)))
            .collect::<Result<_, _>>()?;
        let mut ledgers: BTreeSet<LedgerId> =
            footers.iter().flat_map(|f| &f.runs).map(|run| run.ledger).collect();
        let gone = self.gone(&ledgers);
        ledgers.retain(|ledger| !gone.contains(ledger));
        let mut inputs: Vec<Input<'_>> = inputs
            .iter()
            .zip(footers)
            .map(|(segment, footer)| Input {
                dead: gc::dead_blocks(footer, |ledger| gone.contains(&ledger)),
                segment,
                footer,
                block: 0,
                ready: VecDeque::new(),
                skip_bad: active(Mutant::MergeSkipsBad),
            })
            .collect();
        let (disk, dir) = (&*self.disk, self.segment_dir.as_path());
        let mut long = Writer::new(disk, dir, &self.config, id, false);
        let mut short = Writer::new(disk, dir, &self.config, id + 1, true);
        while let Some((ledger, entries)) = next_ledger(&mut inputs)? {
            if gone.contains(&ledger) {
                continue;
            }
            let bytes: usize = entries.iter().map(cost).sum();
            let out = if bytes < self.config.small_run { &mut short } else { &mut long };
            out.push(ledger, &entries)?;
        }
        Ok((finish(disk, dir, [long, short])?, ledgers))
    }
}

/// All entries of the lowest ledger that is left, by id, each once.
fn next_ledger(inputs: &mut [Input<'_>]) -> Result<Option<(LedgerId, Vec<Entry>)>, Stopped> {
    let mut lowest: Option<LedgerId> = None;
    for (at, input) in inputs.iter_mut().enumerate() {
        let head = input.head().map_err(|()| Stopped::Damaged(at))?;
        lowest = head.into_iter().chain(lowest).min();
    }
    let Some(ledger) = lowest else { return Ok(None) };
    let mut entries = Vec::new();
    for (at, input) in inputs.iter_mut().enumerate() {
        while input.head().map_err(|()| Stopped::Damaged(at))? == Some(ledger) {
            entries.extend(input.ready.pop_front().map(|(_, entry)| entry));
        }
    }
    entries.sort_by_key(|entry| entry.id);
    if entries.windows(2).any(|pair| pair[0].id == pair[1].id && pair[0].crc != pair[1].crc) {
        // Two contents for one id: nobody may choose between them here.
        return Err(Stopped::Damaged(0));
    }
    entries.dedup_by_key(|entry| entry.id);
    Ok(Some((ledger, entries)))
}
