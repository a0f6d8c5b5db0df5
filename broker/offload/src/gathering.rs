//! Ledgers on their way into the parts of one upload: each becomes an object by itself, and where there are several, these lie one
//! behind the other with a directory at the end. Holds what waits to be sent, one unfinished block and one index.

use crate::config::Config;
use crate::format::directory::{Directory, Row};
use crate::offloader::{Job, OffloadError, Source};
use crate::parts::Parts;
use crate::writer::{ObjectWriter, Shape};
use bytes::Bytes;
use geminga_common::ids::EntryId;

/// Bytes read from a ledger at a time.
const SOURCE_BYTES: usize = 4 << 20;

/// Where a ledger has come to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Placed {
    pub(crate) offset: u64,
    pub(crate) shape: Shape,
}

/// Ledgers and how far they are written.
pub(crate) struct Gathering<'a, S> {
    ledgers: &'a [(Job, S)],
    config: &'a Config,
    part_bytes: usize,
    /// Of the ledger that is being written.
    writer: Option<ObjectWriter>,
    next: EntryId,
    /// Those that are written.
    placed: Vec<Placed>,
    parts: Parts,
    /// Bytes written so far.
    bytes: u64,
    is_ended: bool,
}

impl<'a, S: Source> Gathering<'a, S> {
    pub(crate) fn new(ledgers: &'a [(Job, S)], config: &'a Config, part_bytes: usize) -> Self {
        Self {
            ledgers,
            config,
            part_bytes,
            writer: None,
            next: EntryId(0),
            placed: Vec::with_capacity(ledgers.len()),
            parts: Parts::default(),
            bytes: 0,
            is_ended: false,
        }
    }

    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len() as u64;
        self.parts.push(piece);
    }

    /// Reads on until there are so many bytes to be sent, or everything is written.
    pub(crate) async fn fill(&mut self, bytes: usize) -> Result<(), OffloadError> {
        while self.parts.len() < bytes && !self.is_ended {
            let Some((job, source)) = self.ledgers.get(self.placed.len()) else {
                self.end();
                return Ok(());
            };
            if self.writer.is_none() {
                let (block_bytes, compression) = (self.config.block_size.0 as usize, self.config.compression);
                let writer = ObjectWriter::new(job.attributes.clone(), job.closed, block_bytes, compression);
                self.push(writer.begin());
                self.writer = Some(writer);
            }
            if self.next.0 == job.closed.entries {
                self.finish()?;
                continue;
            }
            let run = source.read(self.next, SOURCE_BYTES).await.map_err(OffloadError::Source)?;
            if run.is_empty() {
                return Err(OffloadError::Source("nothing came".to_owned()));
            }
            for sourced in &run {
                let writer = self.writer.as_mut().expect("made above");
                if let Some(block) = writer.push(sourced)? {
                    self.push(block);
                }
                self.next = sourced.entry.id.next();
            }
        }
        Ok(())
    }

    /// The ledger has been read to its end.
    fn finish(&mut self) -> Result<(), OffloadError> {
        let (last, shape) = self.writer.take().expect("a ledger is finished once").finish()?;
        self.push(last);
        self.placed.push(Placed { offset: self.bytes - shape.size, shape });
        self.next = EntryId(0);
        Ok(())
    }

    /// All ledgers are written.
    fn end(&mut self) {
        self.is_ended = true;
        if self.ledgers.len() > 1 {
            let row = |(placed, (job, _)): (&Placed, &(Job, S))| Row {
                ledger: job.attributes.ledger,
                offset: placed.offset,
                shape: placed.shape,
            };
            let directory = Directory { rows: self.placed.iter().zip(self.ledgers).map(row).collect() };
            self.push(directory.seal());
        }
    }

    /// Whether all there is has been written and fits one part.
    pub(crate) fn fits_one_part(&self) -> bool {
        self.is_ended && self.parts.len() <= self.part_bytes
    }

    /// A whole part; at the end what is left.
    pub(crate) fn next_part(&mut self) -> Option<Vec<Bytes>> {
        if self.parts.len() >= self.part_bytes {
            return Some(self.parts.take(self.part_bytes));
        }
        Some(self.parts.rest()).filter(|rest| self.is_ended && !rest.is_empty())
    }

    /// All that waits.
    pub(crate) fn rest(&mut self) -> Vec<Bytes> {
        self.parts.rest()
    }

    /// Where the ledgers lie, and how many bytes there are in all.
    pub(crate) fn placed(&self) -> (&[Placed], u64) {
        (&self.placed, self.bytes)
    }
}
