//! What the disk cache has of an object, and what is offered to it. Without one nothing is looked for and nothing is kept.

use super::cache::Block;
use super::{Shared, Target};
use crate::disk_cache::INDEX;
use crate::format::block;
use crate::format::footer::{Footer, Row};
use crate::state::PartId;
use crate::verify;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// From the first block that is not there up to the last.
pub(super) fn lacking(blocks: &[Option<Block>]) -> Range<usize> {
    let first = blocks.iter().position(Option::is_none).unwrap_or(blocks.len());
    first..blocks.iter().rposition(Option::is_none).map_or(first, |last| last + 1)
}

impl Shared {
    /// Blocks of an object, from the first on, as far as they are on disk and hold against the object's index.
    pub(super) async fn blocks_on_disk(
        &self,
        part: PartId,
        first: usize,
        rows: &[Row],
    ) -> Vec<Option<Block>> {
        let Some(disk) = &self.disk else { return vec![None; rows.len()] };
        let wanted = (first..).zip(rows).map(|(nth, row)| (nth as u32, row.length)).collect();
        let rows = rows.to_vec();
        disk.read(part, wanted, move |at, bytes| block::open_at(bytes, &rows[at]).ok().map(Arc::new)).await
    }

    /// The index of an object, if it is on disk and holds against the ledger's record.
    pub(super) async fn index_on_disk(&self, target: &Target) -> Option<Footer> {
        let disk = self.disk.as_ref()?;
        let (ledger, shape) = (target.ledger, target.object.shape);
        let length = u32::try_from(shape.size - shape.footer_offset).ok()?;
        let open = move |_, tail: Bytes| verify::footer_of("", ledger, &shape, &tail).ok();
        disk.read(target.object.id(), vec![(INDEX, length)], open).await.pop().flatten()
    }

    /// Offers an index, and blocks of an answer that begins with the first of them, all of which have been checked.
    pub(super) fn keep_on_disk(
        &self,
        part: PartId,
        index: Option<Bytes>,
        first: usize,
        bytes: &Bytes,
        rows: &[Row],
    ) {
        let Some(disk) = &self.disk else { return };
        let held = bytes.len().max(index.as_ref().map_or(0, Bytes::len));
        let place = |row: &Row| {
            let at = (row.offset - rows[0].offset) as usize;
            bytes.slice(at..at + row.length as usize)
        };
        let blocks = (first..).zip(rows).map(|(nth, row)| (nth as u32, place(row)));
        disk.offer(part, blocks.chain(index.map(|tail| (INDEX, tail))).collect(), held);
    }
}
