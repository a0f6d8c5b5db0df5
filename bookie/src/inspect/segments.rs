//! Segment files: every footer, block and entry checked, except where only deleted ledgers lie.

use super::{Part, Report, gone};
use crate::gc;
use crate::manifest::Content;
use crate::segments::{Segment, SegmentRow, Wanting, is_gone};
use crate::store::Place;
use std::io;

impl Report<'_> {
    pub(super) fn segments(&mut self, place: &Place, content: &Content) -> io::Result<()> {
        let dir = place.data_dir.join("segments");
        let mut known = Vec::new();
        for row in &content.segments {
            known.push(format!("{:016x}.seg", row.id));
            let segment = Segment::open(self.disk, &dir, row.clone());
            self.segment(row, &segment, content)?;
        }
        match self.disk.list(&dir) {
            Ok(names) => {
                for name in names.iter().filter(|name| !known.contains(name)) {
                    let what = if is_gone(name) { "on its way out" } else { "not in the manifest" };
                    writeln!(self.out, "  segments/{name}: {what}")?;
                }
            }
            Err(error) => self.findings.push(format!("{}: {error}", dir.display())),
        }
        Ok(())
    }

    fn segment(&mut self, row: &SegmentRow, segment: &Segment, content: &Content) -> io::Result<()> {
        let name = format!("segments/{:016x}.seg", row.id);
        let Ok(footer) = segment.footer() else {
            let what = match segment.wanting() {
                Some(Wanting::Missing) => "the file is missing".to_owned(),
                Some(Wanting::Unreadable(kind)) => format!("the file cannot be opened ({kind})"),
                Some(Wanting::Length(len)) => format!("the file has {len} bytes instead of {}", row.len),
                None => "its footer does not check".to_owned(),
            };
            self.findings.push(format!("{name}: {what}"));
            return Ok(());
        };
        let dead = gc::dead_blocks(footer, |ledger| gone(content, ledger));
        let (mut entries, mut bytes, mut bad, mut accepted) = (0, 0, 0, 0);
        let let_go = |offset| content.let_go.iter().any(|b| (b.segment, b.offset) == (row.id, offset));
        for (block, _) in footer.blocks.iter().zip(&dead).filter(|(_, dead)| !**dead) {
            if let_go(block.offset) {
                accepted += 1;
                continue;
            }
            match segment.verified(block) {
                Ok(found) => {
                    entries += found.len();
                    bytes += found.iter().map(|(_, entry)| entry.payload.len()).sum::<usize>();
                }
                Err(_) => {
                    bad += 1;
                    let first = (block.ledger, block.first);
                    self.findings
                        .push(format!("{name}: the block at {} from {first:?} does not check", block.offset));
                }
            }
        }
        let dead = dead.iter().filter(|dead| **dead).count();
        writeln!(
            self.out,
            "  {name}: {} B, ledgers {} to {}, {} runs, {} blocks ({dead} dead, {bad} bad, {accepted} accepted as lost), {entries} entries with {bytes} B",
            row.len,
            row.ledgers.start(),
            row.ledgers.end(),
            footer.runs.len(),
            footer.blocks.len()
        )?;
        let part = self.part;
        for run in footer.runs.iter().filter(|run| part.shows(run.ledger, Part::Segments)) {
            let last = run.first + run.count - 1;
            writeln!(self.out, "    ledger {}: entries {} to {last}", run.ledger, run.first)?;
        }
        Ok(())
    }
}
