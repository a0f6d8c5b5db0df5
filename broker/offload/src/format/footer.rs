//! The footer: one row for each block with its first id, time and message index, what the ledger was, and the trailer that tells
//! where the footer lies.

use super::attributes::Attributes;
use super::{FormatError, HEADER_LEN, VERSION, u32_at, u64_at};
use bytes::{BufMut as _, Bytes, BytesMut};
use geminga_common::checksum::crc32c;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex};
use std::ops::Range;

/// Bytes at the end of an object.
pub const TRAILER_LEN: usize = 48;
const FOOTER_MAGIC: [u8; 4] = *b"GMFT";
const TRAILER_MAGIC: [u8; 8] = *b"GMOBJEND";
const FIXED: usize = 64;
const ROW: usize = 40;

/// Where a block is and what it begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// First entry.
    pub first: EntryId,
    /// When the broker took that entry, ms since 1970.
    pub first_publish_ms: u64,
    /// Index of that entry's first message along the topic.
    pub first_index: MessageIndex,
    /// Where the block begins.
    pub offset: u64,
    /// Bytes of the block, its header included.
    pub length: u32,
    /// The block's checksum, as it stands in the block.
    pub crc: u32,
}

impl Row {
    /// Where the block's bytes are.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

/// The index of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Who the ledger belongs to.
    pub attributes: Attributes,
    /// Blocks, in order; never empty.
    pub rows: Vec<Row>,
    /// Entries of the ledger.
    pub entries: u64,
    /// Bytes of headers and payloads: the ledger's length.
    pub length: u64,
    /// Time stamp of the last entry, ms since 1970.
    pub last_publish_ms: u64,
}

/// What the trailer tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Where the footer begins: all blocks lie before it.
    pub footer_offset: u64,
    /// Bytes of the footer.
    pub footer_length: u64,
    /// The ledger, so that objects that were mixed up show.
    pub ledger: LedgerId,
    /// Checksum of the footer.
    pub footer_crc: u32,
}

impl Footer {
    /// The block that holds an entry.
    #[must_use]
    pub fn block_of(&self, entry: EntryId) -> Option<usize> {
        if entry.0 >= self.entries {
            return None;
        }
        self.rows.partition_point(|row| row.first <= entry).checked_sub(1)
    }

    /// Footer and trailer, for an object whose blocks end at `offset`. Also the footer's checksum.
    #[must_use]
    pub fn seal(&self, offset: u64) -> (Bytes, u32) {
        let attributes = self.attributes.encode();
        let mut out = BytesMut::with_capacity(FIXED + attributes.len() + ROW * self.rows.len() + TRAILER_LEN);
        out.put_slice(&FOOTER_MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(attributes.len() as u32);
        out.put_u32_le(self.rows.len() as u32);
        for number in [self.entries, self.length, self.last_publish_ms, offset, 0, 0] {
            out.put_u64_le(number);
        }
        out.put_slice(&attributes);
        for row in &self.rows {
            for number in [row.first.0, row.first_publish_ms, row.first_index.0, row.offset] {
                out.put_u64_le(number);
            }
            out.put_u32_le(row.length);
            out.put_u32_le(row.crc);
        }
        let (length, crc) = (out.len() as u64, crc32c(&out));
        let start = out.len();
        out.put_slice(&TRAILER_MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(crc);
        out.put_u64_le(offset);
        out.put_u64_le(length);
        out.put_u64_le(self.attributes.ledger.0);
        out.put_u32_le(0);
        let trailer_crc = crc32c(&out[start..]);
        out.put_u32_le(trailer_crc);
        (out.freeze(), crc)
    }

    /// Reads a footer whose place and checksum the trailer told.
    ///
    /// # Errors
    /// It is damaged, newer, or says what cannot be.
    pub fn open(bytes: &[u8], trailer: &Trailer) -> Result<Self, FormatError> {
        if bytes.len() as u64 != trailer.footer_length || bytes.len() < FIXED {
            return Err(FormatError::Length("the footer"));
        }
        if bytes[..4] != FOOTER_MAGIC {
            return Err(FormatError::Magic("the footer"));
        }
        if crc32c(bytes) != trailer.footer_crc {
            return Err(FormatError::Checksum("the footer"));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let (attributes, rows) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
        let wanted = rows.checked_mul(ROW).and_then(|rows| rows.checked_add(FIXED + attributes));
        if wanted != Some(bytes.len()) {
            return Err(FormatError::Length("the footer"));
        }
        let row = |at: &[u8]| Row {
            first: EntryId(u64_at(at, 0)),
            first_publish_ms: u64_at(at, 8),
            first_index: MessageIndex(u64_at(at, 16)),
            offset: u64_at(at, 24),
            length: u32_at(at, 32),
            crc: u32_at(at, 36),
        };
        let footer = Self {
            attributes: Attributes::decode(&bytes[FIXED..FIXED + attributes])?,
            rows: bytes[FIXED + attributes..].chunks_exact(ROW).map(row).collect(),
            entries: u64_at(bytes, 16),
            length: u64_at(bytes, 24),
            last_publish_ms: u64_at(bytes, 32),
        };
        footer.check(trailer)?;
        if u64_at(bytes, 40) != trailer.footer_offset || bytes[48..FIXED] != [0; 16] {
            return Err(FormatError::Inconsistent("footer and trailer disagree"));
        }
        Ok(footer)
    }

    /// Blocks fill the space between header and footer without a gap, ids rise from 0.
    fn check(&self, trailer: &Trailer) -> Result<(), FormatError> {
        let mut at = HEADER_LEN as u64;
        let mut first = 0;
        for (nth, row) in self.rows.iter().enumerate() {
            if row.offset != at || (nth == 0) != (row.first.0 == 0) || row.first.0 < first {
                return Err(FormatError::Inconsistent("rows of the index do not follow each other"));
            }
            at = row.range().end;
            let next = row.first.0.checked_add(1);
            first =
                next.ok_or(FormatError::Inconsistent("a row of the index begins with an impossible entry"))?;
        }
        if at != trailer.footer_offset || self.rows.is_empty() || self.entries < first {
            return Err(FormatError::Inconsistent("blocks do not fill the object"));
        }
        if self.attributes.ledger != trailer.ledger {
            return Err(FormatError::Inconsistent("footer and trailer name different ledgers"));
        }
        Ok(())
    }
}

impl Trailer {
    /// Reads the last bytes of an object.
    ///
    /// # Errors
    /// They are no trailer, or damaged.
    pub fn open(bytes: &[u8]) -> Result<Self, FormatError> {
        let start = bytes.len().checked_sub(TRAILER_LEN).ok_or(FormatError::Length("the trailer"))?;
        let bytes = &bytes[start..];
        if bytes[..8] != TRAILER_MAGIC {
            return Err(FormatError::Magic("the trailer"));
        }
        if crc32c(&bytes[..TRAILER_LEN - 4]) != u32_at(bytes, TRAILER_LEN - 4) {
            return Err(FormatError::Checksum("the trailer"));
        }
        match u16::from_le_bytes([bytes[8], bytes[9]]) {
            VERSION if bytes[10..12] == [0; 2] && bytes[40..44] == [0; 4] => {}
            VERSION => return Err(FormatError::Inconsistent("reserved bytes of the trailer are not 0")),
            other => return Err(FormatError::Version(other)),
        }
        let trailer = Self {
            footer_offset: u64_at(bytes, 16),
            footer_length: u64_at(bytes, 24),
            ledger: LedgerId(u64_at(bytes, 32)),
            footer_crc: u32_at(bytes, 12),
        };
        match trailer.footer_offset.checked_add(trailer.footer_length) {
            Some(end) if end < u64::MAX - TRAILER_LEN as u64 => Ok(trailer),
            _ => Err(FormatError::Length("the footer")),
        }
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_length(&self) -> u64 {
        self.footer_offset + self.footer_length + TRAILER_LEN as u64
    }
}
