//! What can still be read of a block that does not check, and of a segment whose footer does not: entry by entry, each by its own
//! checksum, which covers ledger, id, header and payload.
//!
//! Invariant: an entry counts only where it must lie. In a block the footer says which entries follow one another, and each is looked for
//! where the one before it ends; without a footer blocks are walked from the beginning for as long as they check. Nothing is searched
//! for: a payload could hold what looks like an entry.

use super::Segment;
use crate::format::segment::{self as format, BLOCK_HEADER, Block, Footer};
use crate::shard::cache::range;
use bytes::Bytes;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::IdRange;
use geminga_common::ids::{EntryId, LedgerId};
use std::io;

/// Ids that a block holds by its footer, rising.
pub(crate) fn expected(footer: &Footer, at: usize) -> Vec<(LedgerId, IdRange)> {
    let block = &footer.blocks[at];
    let start = (block.ledger, block.first);
    let end =
        footer.blocks.get(at + 1).map_or((LedgerId(u64::MAX), u64::MAX), |next| (next.ledger, next.first));
    let from = footer.runs.partition_point(|run| (run.ledger, run.first + run.count - 1) < start);
    let within = footer.runs[from..].iter().take_while(|run| (run.ledger, run.first) < end);
    let cut = within.map(|run| {
        let first = if run.ledger == start.0 { run.first.max(start.1) } else { run.first };
        let last = run.first + run.count - 1;
        let last = if run.ledger == end.0 { last.min(end.1 - 1) } else { last };
        (run.ledger, range(first, last))
    });
    cut.collect()
}

impl Segment {
    /// Entries of a block that are intact, whatever the block's own checksum says; rising.
    pub(crate) fn salvage_block(&self, footer: &Footer, at: usize) -> Vec<(LedgerId, Entry)> {
        let Some(bytes) = self.bytes(footer.blocks[at].offset, footer.blocks[at].len) else {
            return Vec::new();
        };
        let (mut out, mut place) = (Vec::new(), BLOCK_HEADER);
        for (ledger, ids) in expected(footer, at) {
            for id in ids.first.0..=ids.last.0 {
                let Some((found, end)) = format::entry_at(&bytes, place) else { return out };
                place = end;
                let sound = |(owner, entry): &(LedgerId, Entry)| {
                    *owner == ledger && entry.id == EntryId(id) && entry.verify(ledger)
                };
                out.extend(found.filter(sound));
            }
        }
        out
    }

    /// Hands out the entries of all blocks from the beginning on that check, without the footer's help; whether those are all blocks there
    /// are.
    pub(crate) fn salvage_whole(
        &self,
        take: &mut dyn FnMut(Vec<(LedgerId, Entry)>) -> io::Result<()>,
    ) -> io::Result<bool> {
        let body = self.row.len.saturating_sub(self.row.footer);
        let mut offset = 0;
        while let Some(len) =
            self.bytes(offset, BLOCK_HEADER as u64).and_then(|head| format::block_len(&head))
        {
            if offset.checked_add(len).is_none_or(|end| end > body) {
                break;
            }
            let block = Block { offset, len, ledger: *self.row.ledgers.start(), first: 0 };
            let Ok(entries) = self.verified(&block) else { break };
            take(entries)?;
            offset += len;
        }
        Ok(offset == body)
    }

    fn bytes(&self, offset: u64, len: u64) -> Option<Bytes> {
        let end = offset.checked_add(len)?;
        if end > self.row.len.checked_sub(self.row.footer)? {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.as_ref()?.read_exact_at(&mut bytes, offset).ok()?;
        Some(Bytes::from(bytes))
    }
}

/// The ids of entries, rising, as runs.
pub(crate) fn ids_of(entries: &[(LedgerId, Entry)]) -> Vec<(LedgerId, IdRange)> {
    let follows = |a: &(LedgerId, Entry), b: &(LedgerId, Entry)| a.0 == b.0 && a.1.id.next() == b.1.id;
    let runs = entries.chunk_by(follows);
    runs.map(|run| (run[0].0, IdRange { first: run[0].1.id, last: run[run.len() - 1].1.id })).collect()
}
