//! Turns the entries of a closed ledger into the bytes of an object, piece by piece. Pure; holds one unfinished block and the
//! index (40 bytes a block), whatever the ledger's size.

use crate::format::attributes::Attributes;
use crate::format::block::{Body, Compression, Entry};
use crate::format::footer::{Footer, Row};
use crate::format::{HEADER_LEN, header};
use bytes::{Bytes, BytesMut};
use geminga_common::ids::{EntryId, MessageIndex};

/// An entry, with what of its header the index wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sourced {
    /// The entry.
    pub entry: Entry,
    /// When the broker took it, ms since 1970.
    pub publish_ms: u64,
    /// Index of its first message along the topic.
    pub first_index: MessageIndex,
}

/// Why a ledger did not become an object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// An entry is missing or came twice.
    #[error("entry {got} came where entry {wanted} belongs")]
    Order {
        /// What came.
        got: EntryId,
        /// What belongs there.
        wanted: EntryId,
    },
    /// The ledger ends otherwise than its record says.
    #[error(
        "{entries} entries of {length} bytes were read, the record says {entries_closed} of {length_closed}"
    )]
    End {
        /// Entries read.
        entries: u64,
        /// Bytes read.
        length: u64,
        /// Entries by the record.
        entries_closed: u64,
        /// Bytes by the record.
        length_closed: u64,
    },
}

/// What a closed ledger holds, by its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    /// Entries; at least 1.
    pub entries: u64,
    /// Bytes of headers and payloads.
    pub length: u64,
}

/// What identifies the content of a finished object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    /// Bytes of the object.
    pub size: u64,
    /// Where its footer begins.
    pub footer_offset: u64,
    /// The footer's checksum; the footer holds those of all blocks.
    pub footer_crc: u32,
}

/// Writes one object.
#[derive(Debug)]
pub struct ObjectWriter {
    closed: Closed,
    block_bytes: usize,
    compression: Compression,
    footer: Footer,
    body: Body,
    first: Option<(EntryId, u64, MessageIndex)>,
    offset: u64,
}

impl ObjectWriter {
    /// A writer that begins blocks anew once they hold `block_bytes` before compression. The first bytes of the object are
    /// [`header`].
    #[must_use]
    pub fn new(attributes: Attributes, closed: Closed, block_bytes: usize, compression: Compression) -> Self {
        let footer = Footer { attributes, rows: Vec::new(), entries: 0, length: 0, last_publish_ms: 0 };
        let body = Body::default();
        Self { closed, block_bytes, compression, footer, body, first: None, offset: HEADER_LEN as u64 }
    }

    /// The object's first bytes.
    #[must_use]
    pub fn begin(&self) -> Bytes {
        Bytes::copy_from_slice(&header())
    }

    /// Takes the next entry; answers a block when one is full.
    ///
    /// # Errors
    /// It is not the next one.
    pub fn push(&mut self, sourced: &Sourced) -> Result<Option<Bytes>, WriteError> {
        let (entry, wanted) = (&sourced.entry, EntryId(self.footer.entries));
        if entry.id != wanted {
            return Err(WriteError::Order { got: entry.id, wanted });
        }
        self.first.get_or_insert((entry.id, sourced.publish_ms, sourced.first_index));
        self.body.push(entry);
        self.footer.entries += 1;
        self.footer.length += entry.size() as u64;
        self.footer.last_publish_ms = sourced.publish_ms;
        Ok(if self.body.len() >= self.block_bytes { self.seal().map(BytesMut::freeze) } else { None })
    }

    fn seal(&mut self) -> Option<BytesMut> {
        let (first, first_publish_ms, first_index) = self.first.take()?;
        let (block, crc) = self.body.seal(first, self.compression);
        let length = block.len() as u32;
        self.footer.rows.push(Row { first, first_publish_ms, first_index, offset: self.offset, length, crc });
        self.offset += u64::from(length);
        Some(block)
    }

    /// The last bytes of the object: what is left of a block, footer, trailer.
    ///
    /// # Errors
    /// The ledger has not been given whole.
    pub fn finish(mut self) -> Result<(Bytes, Shape), WriteError> {
        let (entries, length) = (self.footer.entries, self.footer.length);
        let Closed { entries: entries_closed, length: length_closed } = self.closed;
        if (entries, length) != (entries_closed, length_closed) || entries == 0 {
            return Err(WriteError::End { entries, length, entries_closed, length_closed });
        }
        let mut last = self.seal().unwrap_or_default();
        let (end, footer_crc) = self.footer.seal(self.offset);
        last.extend_from_slice(&end);
        let size = self.offset + end.len() as u64;
        Ok((last.freeze(), Shape { size, footer_offset: self.offset, footer_crc }))
    }
}
