//! What in a segment is dead, and which segments are worth merging. Pure.
//!
//! Invariant: a block is dead only if every ledger that may have an entry in it is deleted by a committed tombstone. Nothing is
//! concluded from a ledger or a file that is missing somewhere, nor from a footer that does not check.

use crate::format::segment::Footer;
use geminga_common::ids::LedgerId;

/// Holes begin and end at multiples of this.
const PAGE: u64 = 4096;

/// Which blocks hold nothing but entries of ledgers that are gone.
pub(crate) fn dead_blocks(footer: &Footer, gone: impl Fn(LedgerId) -> bool) -> Vec<bool> {
    let mut from = 0;
    let dead = |at: usize| {
        let block = &footer.blocks[at];
        let start = (block.ledger, block.first);
        let end = footer
            .blocks
            .get(at + 1)
            .map_or((LedgerId(u64::MAX), u64::MAX), |next| (next.ledger, next.first));
        while footer.runs.get(from).is_some_and(|run| (run.ledger, run.first + run.count - 1) < start) {
            from += 1;
        }
        let within = footer.runs[from..].iter().take_while(|run| (run.ledger, run.first) < end);
        // A block that no run covers is a contradiction: it is kept.
        let mut some = false;
        let mut within = within;
        let all = within.all(|run| {
            some = true;
            gone(run.ledger)
        });
        all && some
    };
    (0..footer.blocks.len()).map(dead).collect()
}

/// Bytes of the blocks that are not dead.
pub(crate) fn live_bytes(footer: &Footer, dead: &[bool]) -> u64 {
    footer.blocks.iter().zip(dead).filter(|(_, dead)| !**dead).map(|(block, _)| block.len).sum()
}

/// Dead bytes in a row, as aligned ranges of at least `least` bytes.
pub(crate) fn holes(footer: &Footer, dead: &[bool], least: u64) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut open: Option<(u64, u64)> = None;
    let mut close = |open: &mut Option<(u64, u64)>| {
        if let Some((start, end)) = open.take() {
            let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
            if end.saturating_sub(start) >= least {
                out.push((start, end));
            }
        }
    };
    for (block, dead) in footer.blocks.iter().zip(dead) {
        match &mut open {
            Some((_, end)) if *dead && *end == block.offset => *end += block.len,
            _ => {
                close(&mut open);
                open = dead.then_some((block.offset, block.offset + block.len));
            }
        }
    }
    close(&mut open);
    out
}

/// A segment as merging sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: u64,
    /// Bytes of blocks.
    pub(crate) body: u64,
    pub(crate) live: u64,
    pub(crate) small: bool,
}

/// Segments to rewrite as one: `count` of small runs and about the same size, or one of which less than a quarter lives.
pub(crate) fn pick(candidates: &[Candidate], count: usize, bytes_max: u64) -> Vec<u64> {
    let worn = |c: &&Candidate| c.live < c.body / 4 && c.live <= bytes_max;
    if let Some(worn) = candidates.iter().find(worn) {
        return vec![worn.id];
    }
    let tier = |c: &Candidate| (c.live.max(1).ilog2() / 3, c.live);
    let mut small: Vec<&Candidate> = candidates.iter().filter(|c| c.small).collect();
    small.sort_by_key(|c| (tier(c).0, c.id));
    for same in small.chunk_by(|a, b| tier(a).0 == tier(b).0).filter(|same| same.len() >= count) {
        let chosen = &same[..count];
        if chosen.iter().map(|c| c.live).sum::<u64>() <= bytes_max {
            return chosen.iter().map(|c| c.id).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::segment::{Block, Run};

    fn footer() -> Footer {
        let run = |ledger, first, count| Run { ledger: LedgerId(ledger), first, count };
        let block = |at: u64, ledger, first| Block {
            offset: at * 10_000,
            len: 10_000,
            ledger: LedgerId(ledger),
            first,
        };
        // 1: blocks 0, 1 and the front of 2; 2: the rest of 2; 3: blocks 3 and 4, with a hole in its ids.
        Footer {
            runs: vec![run(1, 0, 25), run(2, 0, 5), run(3, 10, 10), run(3, 30, 10)],
            blocks: vec![block(0, 1, 0), block(1, 1, 10), block(2, 1, 20), block(3, 3, 10), block(4, 3, 30)],
        }
    }

    #[test]
    fn a_block_dies_with_the_last_of_its_ledgers() {
        let dead = |gone: &[u64]| dead_blocks(&footer(), |ledger| gone.contains(&ledger.0));
        assert_eq!(dead(&[]), [false; 5]);
        assert_eq!(dead(&[1]), [true, true, false, false, false]);
        assert_eq!(dead(&[2]), [false; 5]);
        assert_eq!(dead(&[1, 2]), [true, true, true, false, false]);
        assert_eq!(dead(&[3]), [false, false, false, true, true]);
        assert_eq!(live_bytes(&footer(), &dead(&[1])), 30_000);
        let orphan = Footer { runs: Vec::new(), ..footer() };
        assert_eq!(dead_blocks(&orphan, |_| true), [false; 5], "no run speaks for them");
    }

    #[test]
    fn holes_are_aligned_and_large_enough() {
        let dead = [true, true, false, true, true];
        assert_eq!(holes(&footer(), &dead, 4096), [(0, 16_384), (32_768, 49_152)]);
        assert_eq!(holes(&footer(), &dead, 17_000), []);
        assert_eq!(holes(&footer(), &[true; 5], 17_000), [(0, 49_152)]);
    }

    #[test]
    fn small_segments_of_one_size_are_merged_and_worn_ones_rewritten() {
        let small = |id, live| Candidate { id, body: live, live, small: true };
        let mut all = vec![small(1, 1000), small(2, 1100), small(3, 90_000), small(4, 1001)];
        assert_eq!(pick(&all, 3, 1 << 20), [1, 2, 4]);
        assert_eq!(pick(&all, 3, 2000), [0; 0], "too many bytes for one merge");
        assert_eq!(pick(&all, 4, 1 << 20), [0; 0]);
        all.push(Candidate { id: 9, body: 100, live: 24, small: false });
        assert_eq!(pick(&all, 3, 1 << 20), [9]);
        let large = Candidate { id: 1, body: 100, live: 26, small: false };
        assert_eq!(pick(&[large; 9], 2, 1 << 20), [0; 0], "long runs are not rewritten while they live");
    }
}
