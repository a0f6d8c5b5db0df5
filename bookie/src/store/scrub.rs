//! Scrub: every block of every segment is read and checked once in a period, so that rot is found while other copies are sound.
//!
//! A block that does not check goes into the manifest and answers `Unknown` from then on; readers take other replicas, and repair has a
//! range to work on. What died meanwhile is not judged: its bytes may have been given back. A block that a reader found damaged is judged
//! at once, whatever the period.

use super::Store;
use crate::gc;
use crate::manifest::{BadBlock, Change};
use crate::segments::{Segment, SegmentSet};
use geminga_common::error::Code;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where checking goes on.
pub(super) struct Scrub {
    segment: u64,
    block: usize,
}

impl Scrub {
    pub(super) fn at(segment: u64) -> Self {
        Self { segment, block: 0 }
    }
}

/// Bytes of one step.
pub(crate) const STEP: u64 = 4 << 20;

impl Store {
    /// Checks blocks, up to so many bytes; the bytes read, and whether the pass is complete.
    pub(crate) fn scrub_some(&self, bytes_max: u64) -> io::Result<(u64, bool)> {
        let _tidy = self.tidy.lock();
        let mut scrub = self.scrub.lock();
        let set = self.shard.lock().segments.clone();
        let mut read = 0;
        while read < bytes_max {
            // Segments are in the order of their making, not of their ids.
            let next = set.all.iter().filter(|s| s.row.id >= scrub.segment).min_by_key(|s| s.row.id);
            let Some(segment) = next else {
                *scrub = Scrub::at(0);
                self.counts.scrub_passes.fetch_add(1, Ordering::Relaxed);
                return Ok((read, true));
            };
            if segment.row.id > scrub.segment {
                *scrub = Scrub::at(segment.row.id);
            }
            let (bytes, ended) = self.scrub_segment(segment, &mut scrub.block, bytes_max - read)?;
            read += bytes;
            if ended {
                *scrub = Scrub::at(segment.row.id + 1);
            }
        }
        Ok((read, false))
    }

    fn scrub_segment(
        &self,
        segment: &Arc<Segment>,
        at: &mut usize,
        bytes_max: u64,
    ) -> io::Result<(u64, bool)> {
        let Ok(footer) = segment.footer() else { return Ok((segment.row.footer, true)) };
        let ledgers = footer.runs.iter().map(|run| run.ledger).collect();
        let dead = || {
            let gone = self.gone(&ledgers);
            gc::dead_blocks(footer, |ledger| gone.contains(&ledger))
        };
        let known = dead();
        let (mut read, mut bad) = (0, Vec::new());
        while *at < footer.blocks.len() && read < bytes_max {
            let block = &footer.blocks[*at];
            if !known[*at] && segment.counts(block.offset) {
                read += block.len;
                if segment.verified(block).is_err() {
                    bad.push((
                        *at,
                        BadBlock { segment: segment.row.id, offset: block.offset, len: block.len },
                    ));
                }
            }
            *at += 1;
        }
        self.counts.scrubbed_bytes.fetch_add(read, Ordering::Relaxed);
        if !bad.is_empty() {
            let now = dead();
            bad.retain(|(at, _)| !now[*at]);
            let bad = bad.into_iter().map(|(_, block)| block).collect();
            self.condemn(segment, bad, Some(segment.row.id))?;
        }
        Ok((read, *at >= footer.blocks.len()))
    }

    /// Judges the blocks that readers found damaged.
    pub(crate) fn judge_suspects(&self) -> io::Result<()> {
        let _tidy = self.tidy.lock();
        let set = self.shard.lock().segments.clone();
        for segment in &set.all {
            let suspects = segment.take_suspects();
            let (false, Ok(footer)) = (suspects.is_empty(), segment.footer()) else { continue };
            let gone = self.gone(&footer.runs.iter().map(|run| run.ledger).collect());
            let dead = gc::dead_blocks(footer, |ledger| gone.contains(&ledger));
            let blocks = footer.blocks.iter().zip(dead);
            let bad = blocks.filter(|(block, dead)| {
                let fresh = suspects.contains(&block.offset) && segment.counts(block.offset);
                !dead && fresh && segment.verified(block).is_err()
            });
            let bad = bad.map(|(b, _)| BadBlock { segment: segment.row.id, offset: b.offset, len: b.len });
            self.condemn(segment, bad.collect(), None)?;
        }
        Ok(())
    }

    /// Writes down that blocks do not check; they answer `Unknown` from now on.
    fn condemn(&self, segment: &Segment, bad: Vec<BadBlock>, scrub: Option<u64>) -> io::Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        for block in &bad {
            tracing::error!(
                code = %Code::DATA_LOSS,
                file = %segment.path().display(),
                offset = block.offset,
                "a block does not check any more: its entries are lost here"
            );
            segment.mark_bad(block.offset);
        }
        self.change(&Change { bad, scrub, ..Change::default() })
    }

    /// Blocks and footers that are known not to check.
    pub(crate) fn damage(&self) -> u64 {
        let set = self.shard.lock().segments.clone();
        set.all.iter().map(|s| s.bad_blocks() as u64 + u64::from(s.footer_is_bad())).sum()
    }

    /// Whether readers found something damaged that nobody has judged yet, among these.
    pub(crate) fn has_suspects(segments: &SegmentSet) -> bool {
        segments.all.iter().any(|segment| segment.has_suspects())
    }

    /// The segment that checking stands at.
    pub(super) fn scrub_position(&self) -> u64 {
        self.scrub.lock().segment
    }

    /// How long to wait after a step that read so many bytes: as long as the period allows, and not so short that the rate is exceeded.
    pub(crate) fn scrub_pause(&self, read: u64) -> Option<Duration> {
        let set = self.shard.lock().segments.clone();
        let total: u64 = set.all.iter().map(|s| s.live.load(Ordering::Relaxed)).sum();
        pause(read, total, self.config.scrub_period, self.config.scrub_rate)
    }
}

/// See [`Store::scrub_pause`]. `None`: there is nothing to check.
fn pause(read: u64, total: u64, period: Duration, rate: u64) -> Option<Duration> {
    if total == 0 {
        return None;
    }
    // A step that found little to read still takes its share of the period.
    let share = read.clamp(STEP.min(total), total.max(read)) as f64 / total as f64;
    let by_period = period.mul_f64(share.min(1.0));
    let by_rate = Duration::from_secs_f64(read as f64 / rate as f64);
    Some(by_period.max(by_rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_its_period_and_no_more_than_its_rate() {
        let day = Duration::from_secs(86_400);
        assert_eq!(pause(0, 0, day, 1 << 20), None);
        assert_eq!(pause(1000, 1000, day, 1 << 20), Some(day), "a small store is read once a period");
        let step = pause(STEP, 100 * STEP, day, 1 << 30).unwrap();
        assert_eq!(step.as_secs(), 864);
        let late = pause(STEP, 1_000_000 * STEP, day, 1 << 20).unwrap();
        assert_eq!(late, Duration::from_secs(4), "the rate outweighs the period");
    }
}
