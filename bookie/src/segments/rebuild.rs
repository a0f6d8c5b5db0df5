//! What segments tell of themselves, for a store whose manifest is lost. Nothing of it proves absence.

use super::{SegmentRow, id_of, path};
use crate::format::row::LedgerRow;
use crate::format::segment::{Footer, TRAILER, footer_len};
use crate::manifest::Content;
use geminga_common::disk::{Disk, OpenMode};
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, LedgerId};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// All segments in a directory whose footers check, and the ledgers they hold. Terms, seals and tombstones are not to be had.
pub(crate) fn rebuild(disk: &dyn Disk, dir: &Path) -> io::Result<Content> {
    let mut content = Content { mark: 1, next_segment: 1, ..Content::default() };
    let mut ledgers: BTreeMap<LedgerId, LedgerRow> = BTreeMap::new();
    for name in disk.list(dir)? {
        let Some(id) = id_of(&name) else { continue };
        content.next_segment = content.next_segment.max(id + 2);
        let Some((row, footer)) = read(disk, dir, id) else {
            tracing::warn!(code = %Code::DATA_LOSS, name, "a segment's footer does not check: what it holds cannot be told");
            continue;
        };
        for run in &footer.runs {
            let last = Some(EntryId(run.first + run.count - 1));
            let known = ledgers.entry(run.ledger).or_default();
            known.flushed = known.flushed.max(last);
        }
        content.segments.push(row);
    }
    content.ledgers = ledgers.into_iter().collect();
    Ok(content)
}

fn read(disk: &dyn Disk, dir: &Path, id: u64) -> Option<(SegmentRow, Footer)> {
    let file = disk.open(&path(dir, id), OpenMode::Read).ok()?;
    let len = file.len().ok()?;
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, len.checked_sub(TRAILER as u64)?).ok()?;
    let footer = footer_len(&trailer)?;
    let live = len.checked_sub(footer)?;
    let mut bytes = vec![0; usize::try_from(footer).ok()?];
    file.read_exact_at(&mut bytes, live).ok()?;
    let footer_read = Footer::decode(&bytes, id)?;
    let (low, high) = (footer_read.runs.first()?.ledger, footer_read.runs.last()?.ledger);
    let row = SegmentRow { id, len, footer, ledgers: low..=high, live, punch_due: false, small: false };
    Some((row, footer_read))
}
