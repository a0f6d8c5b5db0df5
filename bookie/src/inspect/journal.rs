//! Journal files, read as replay reads them, without touching them.

use super::{Part, Report};
use crate::format::journal::Record;
use crate::journal::{self, Scanned, Survey, Unsound};
use crate::manifest::Content;
use crate::store::Place;
use geminga_common::ids::LedgerId;
use std::io;

impl Report<'_> {
    pub(super) fn journal(&mut self, place: &Place, id: u64, content: &Content) -> io::Result<()> {
        let survey = match journal::survey(self.disk, place, id, 0) {
            Ok(survey) => survey,
            Err(error) => {
                self.findings.push(format!("{}: {error}", place.journal_dir.display()));
                return Ok(());
            }
        };
        let Survey { files, batches, unsound } = survey;
        for (number, file) in files.iter().enumerate() {
            let own = batches.iter().filter(|b| b.file == number);
            let seqs = own.clone().map(|b| b.found.head.seq);
            let (count, low, high) = (own.clone().count(), seqs.clone().min(), seqs.max());
            match file.generation {
                Some(generation) => writeln!(
                    self.out,
                    "  journal/{}: {} B, generation {generation:x}, {count} batches {:?} to {:?}",
                    file.name,
                    file.len,
                    low.unwrap_or(0),
                    high.unwrap_or(0)
                )?,
                None if file.blank => writeln!(self.out, "  journal/{}: never used", file.name)?,
                None => self.findings.push(format!("journal/{}: its header does not check", file.name)),
            }
            for batch in own {
                self.batch(batch)?;
            }
        }
        if files.is_empty() {
            self.findings.push(format!("{}: no journal file", place.journal_dir.display()));
        }
        let chain = journal::follow(batches, content.mark, content.durable);
        writeln!(
            self.out,
            "  journal: whole from batch {} to {}",
            content.mark,
            chain.stopped.saturating_sub(1)
        )?;
        for tail in unsound.iter().filter(|tail| tail.seq >= chain.stopped) {
            let name = files.get(tail.file).map_or("", |file| &file.name);
            let Unsound { seq, at, len, .. } = tail;
            writeln!(
                self.out,
                "  journal/{name}: batch {seq} at {at}, {len} B, does not check: replay ends before it"
            )?;
        }
        if chain.known >= chain.stopped {
            let text = format!("batch {} is missing and was durable: data is lost", chain.stopped);
            self.findings.push(format!("{}: {text}", place.journal_dir.display()));
        }
        Ok(())
    }

    fn batch(&mut self, batch: &Scanned) -> io::Result<()> {
        let Some(records) = crate::format::journal::decode_records(&batch.records, batch.found.count) else {
            self.findings.push(format!(
                "batch {} holds a record that this program does not know",
                batch.found.head.seq
            ));
            return Ok(());
        };
        let part = self.part;
        let wanted = |record: &&Record| match part {
            Part::Journal => true,
            Part::Ledger(ledger) => of(record) == Some(ledger),
            _ => false,
        };
        for record in records.iter().filter(wanted) {
            let seq = batch.found.head.seq;
            match record {
                Record::Add { ledger, entry } => {
                    let (id, len) = (entry.id, entry.payload.len());
                    let sound = if entry.verify(*ledger) { "" } else { ", checksum wrong" };
                    writeln!(self.out, "    {seq}: add {ledger}:{id}, {len} B{sound}")?;
                }
                other => writeln!(self.out, "    {seq}: {other:?}")?,
            }
        }
        let wrong =
            |record: &&Record| matches!(record, Record::Add { ledger, entry } if !entry.verify(*ledger));
        for record in records.iter().filter(wrong) {
            let text =
                format!("{:?} of batch {}: entry with a wrong checksum", of(record), batch.found.head.seq);
            self.findings.push(text);
        }
        Ok(())
    }
}

fn of(record: &Record) -> Option<LedgerId> {
    match record {
        Record::Add { ledger, .. }
        | Record::Term { ledger, .. }
        | Record::Hint { ledger, .. }
        | Record::Delete { ledger }
        | Record::Seal { ledger, .. }
        | Record::Attributes { ledger, .. } => Some(*ledger),
        Record::ReplayStopped { .. } | Record::Idle | Record::Watermark { .. } => None,
    }
}
