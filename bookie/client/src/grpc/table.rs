//! Tables of fixed layout: many adds, or many entries, in one message. Beside a table travels one blob of data that holds
//! attributes and payloads in the table's order. All numbers little endian.
//!
//! | table | bytes |
//! |---|---|
//! | adds | head, then for each add its row and the rows of its entries, then the checksum |
//! | entries | head, then a row for each entry, then the checksum |
//!
//! | head, 24 bytes | size | |
//! |---|---|---|
//! | 0 | 4 | magic: `GMAD` adds, `GMEN` entries |
//! | 4 | 1 | version, 1 |
//! | 5 | 3 | 0 |
//! | 8 | 4 | rows: adds, or entries |
//! | 12 | 4 | bytes of data beside the table |
//! | 16 | 8 | adds: the incarnation that all of them expect; entries: the ledger |
//!
//! | add, 48 bytes | size | |
//! |---|---|---|
//! | 0 | 8 | ledger |
//! | 8 | 8 | term |
//! | 16 | 8 | LAC + 1, 0 for none |
//! | 24 | 8 | LAFR + 1, 0 for none |
//! | 32 | 4 | entries |
//! | 36 | 4 | bytes of attributes, 0 for none; in the data before the payloads of this add |
//! | 40 | 4 | CRC32C of the attributes, 0 for none |
//! | 44 | 4 | 0 |
//!
//! | entry, 48 bytes | size | |
//! |---|---|---|
//! | 0 | 8 | id |
//! | 8 | 32 | the entry's header |
//! | 40 | 4 | bytes of payload |
//! | 44 | 4 | CRC32C of the entry, over ledger, id, header and payload |
//!
//! The checksum is the CRC32C of all of the table before it, 4 bytes. The data needs none of its own: every byte of it is under an
//! entry's or the attributes' checksum.
//!
//! Decoding trusts nothing: a count is believed only as far as rows are there for it, lengths must add up to the data exactly, and
//! nothing is allocated for what is not there. Payloads are slices of the blob.

use crate::entry::{Entry, HEADER_LEN, Header};
use crate::record::LedgerAttributes;
use crate::rpc::{Add, AddError};
use bytes::{BufMut, Bytes, BytesMut};
use geminga_common::checksum::crc32c;
use geminga_common::ids::{EntryId, Incarnation, LedgerId, Term};
use geminga_proto::packed::Packed;
use std::sync::Arc;

const ADDS: &[u8; 4] = b"GMAD";
const ENTRIES: &[u8; 4] = b"GMEN";
const VERSION: u8 = 1;
const HEAD: usize = 24;
const ROW: usize = 48;
const CRC: usize = 4;

/// Bytes that are no table. The peer broke the protocol, or the bytes were damaged on the way: nothing of the message counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// Shorter than its rows.
    #[error("table is cut short")]
    Short,
    /// Not the table expected.
    #[error("no such table")]
    Magic,
    /// Written by a newer version.
    #[error("table version {0} is not known")]
    Version(u8),
    /// Checksum of the table.
    #[error("table fails its checksum")]
    Checksum,
    /// Bytes after the last row, or reserved bytes in use.
    #[error("table has more than its rows")]
    Surplus,
    /// Lengths do not add up to the data.
    #[error("lengths do not match the data")]
    Data,
    /// A row that cannot be.
    #[error("row {0} is impossible")]
    Row(usize),
}

/// An add as received. One whose own bytes are bad is refused by itself, its neighbours are not.
pub type ReceivedAdd = Result<Add, AddError>;

/// Bytes an add takes on the wire: what credits and windows count.
#[must_use]
pub fn wire_size(add: &Add) -> usize {
    let entries: usize = add.entries.iter().map(|e| ROW + e.payload.len()).sum();
    ROW + add.attributes.as_ref().map_or(0, |a| a.owner.len() + 64) + entries
}

fn plus_one(id: Option<EntryId>) -> u64 {
    id.map_or(0, |id| id.0.saturating_add(1))
}

fn head(out: &mut BytesMut, magic: &[u8; 4], rows: usize, data: usize, word: u64) {
    out.put_slice(magic);
    out.put_slice(&[VERSION, 0, 0, 0]);
    out.put_u32_le(rows as u32);
    out.put_u32_le(data as u32);
    out.put_u64_le(word);
}

fn entry_row(out: &mut BytesMut, entry: &Entry) {
    out.put_u64_le(entry.id.0);
    out.put_slice(&entry.header.encode());
    out.put_u32_le(entry.payload.len() as u32);
    out.put_u32_le(entry.crc);
}

fn finish(mut table: BytesMut, data: Vec<Bytes>) -> Packed {
    let crc = crc32c(&table);
    table.put_u32_le(crc);
    Packed { table: table.freeze(), data }
}

/// Packs adds that expect one incarnation. Payloads are shared, not copied.
#[must_use]
pub fn pack_adds(incarnation: Incarnation, adds: &[Add]) -> Packed {
    let entries: usize = adds.iter().map(|add| add.entries.len()).sum();
    let attributes: Vec<Bytes> =
        adds.iter().map(|a| a.attributes.as_ref().map_or_else(Bytes::new, |a| a.encode())).collect();
    let payloads: usize = adds.iter().flat_map(|add| &add.entries).map(|e| e.payload.len()).sum();
    let bytes = payloads + attributes.iter().map(Bytes::len).sum::<usize>();
    let mut table = BytesMut::with_capacity(HEAD + ROW * (adds.len() + entries) + CRC);
    let mut data = Vec::with_capacity(entries + 1);
    head(&mut table, ADDS, adds.len(), bytes, incarnation.0);
    for (add, attributes) in adds.iter().zip(attributes) {
        table.put_u64_le(add.ledger.0);
        table.put_u64_le(add.term.0);
        table.put_u64_le(plus_one(add.lac));
        table.put_u64_le(plus_one(add.lafr));
        table.put_u32_le(add.entries.len() as u32);
        table.put_u32_le(attributes.len() as u32);
        table.put_u32_le(if attributes.is_empty() { 0 } else { crc32c(&attributes) });
        table.put_u32_le(0);
        if !attributes.is_empty() {
            data.push(attributes);
        }
        for entry in &add.entries {
            entry_row(&mut table, entry);
            if !entry.payload.is_empty() {
                data.push((*entry.payload).clone());
            }
        }
    }
    finish(table, data)
}

/// Packs entries of one ledger. Payloads are shared, not copied.
#[must_use]
pub fn pack_entries(ledger: LedgerId, entries: &[Entry]) -> Packed {
    let mut table = BytesMut::with_capacity(HEAD + ROW * entries.len() + CRC);
    let bytes: usize = entries.iter().map(|e| e.payload.len()).sum();
    head(&mut table, ENTRIES, entries.len(), bytes, ledger.0);
    entries.iter().for_each(|entry| entry_row(&mut table, entry));
    let payloads = entries.iter().map(|e| (*e.payload).clone()).filter(|payload| !payload.is_empty());
    finish(table, payloads.collect())
}

/// A table being read: rows from the front, payloads from the front of the data.
struct Rows<'a> {
    rows: &'a [u8],
    data: Bytes,
    read: usize,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl<'a> Rows<'a> {
    /// Checks head and checksum; answers the rows, how many are announced, and the head's last word.
    fn open(magic: &[u8; 4], table: &'a [u8], data: Bytes) -> Result<(Self, usize, u64), TableError> {
        if table.len() < HEAD + CRC {
            return Err(TableError::Short);
        }
        if &table[..4] != magic {
            return Err(TableError::Magic);
        }
        if table[4] != VERSION {
            return Err(TableError::Version(table[4]));
        }
        let (body, crc) = table.split_at(table.len() - CRC);
        if half(crc, 0) != crc32c(body) {
            return Err(TableError::Checksum);
        }
        if table[5..8] != [0; 3] {
            return Err(TableError::Surplus);
        }
        if half(table, 12) as usize != data.len() {
            return Err(TableError::Data);
        }
        let rows = &body[HEAD..];
        let count = half(table, 8) as usize;
        if count > rows.len() / ROW {
            return Err(TableError::Short);
        }
        Ok((Self { rows, data, read: 0 }, count, word(table, 16)))
    }

    fn row(&mut self) -> Result<&'a [u8], TableError> {
        let (row, rest) = self.rows.split_at_checked(ROW).ok_or(TableError::Short)?;
        self.rows = rest;
        self.read += 1;
        Ok(row)
    }

    fn left(&self) -> usize {
        self.rows.len() / ROW
    }

    fn bytes(&mut self, len: u32) -> Result<Bytes, TableError> {
        let len = len as usize;
        if len > self.data.len() { Err(TableError::Data) } else { Ok(self.data.split_to(len)) }
    }

    /// An entry, or the id of one whose header this build cannot read.
    fn entry(&mut self) -> Result<Result<Entry, EntryId>, TableError> {
        let row = self.row()?;
        let id = EntryId(word(row, 0));
        if id.0 == u64::MAX {
            // No ledger is that long, and ids are stored plus one.
            return Err(TableError::Row(self.read));
        }
        let payload = self.bytes(half(row, 40))?;
        let header: &[u8; HEADER_LEN] = row[8..8 + HEADER_LEN].try_into().expect("the header's length");
        Ok(match Header::decode(header) {
            Ok(header) => Ok(Entry { id, crc: half(row, 44), header, payload: payload.into() }),
            Err(_) => Err(id),
        })
    }

    fn end(&self) -> Result<(), TableError> {
        match (self.rows.is_empty(), self.data.is_empty()) {
            (true, true) => Ok(()),
            (false, _) => Err(TableError::Surplus),
            (true, false) => Err(TableError::Data),
        }
    }

    fn add(&mut self) -> Result<ReceivedAdd, TableError> {
        let row = self.row()?;
        let (count, attributes_len, attributes_crc) = (half(row, 32) as usize, half(row, 36), half(row, 40));
        if half(row, 44) != 0 || count > self.left() {
            return Err(TableError::Row(self.read));
        }
        let attributes = self.bytes(attributes_len)?;
        let attributes = if attributes.is_empty() {
            None
        } else if crc32c(&attributes) == attributes_crc {
            let decoded = LedgerAttributes::decode(&attributes).map_err(|_| TableError::Row(self.read))?;
            Some(Arc::new(decoded))
        } else {
            return Err(TableError::Checksum);
        };
        let mut entries = Vec::with_capacity(count);
        let mut bad = None;
        for _ in 0..count {
            match self.entry()? {
                Ok(entry) => entries.push(entry),
                Err(id) => bad = bad.or(Some(id)),
            }
        }
        let (ledger, term) = (LedgerId(word(row, 0)), Term(word(row, 8)));
        let id = |at: usize| word(row, at).checked_sub(1).map(EntryId);
        let add = Add { ledger, term, lac: id(16), lafr: id(24), attributes, entries };
        Ok(bad.map_or(Ok(add), |id| Err(AddError::Corrupt(id))))
    }
}

/// Reads a table of adds: the incarnation they expect, and they.
///
/// # Errors
/// Anything but a sound table.
pub fn unpack_adds(packed: Packed) -> Result<(Incarnation, Vec<ReceivedAdd>), TableError> {
    let (table, data) = packed.into_blob();
    let (mut rows, count, incarnation) = Rows::open(ADDS, &table, data)?;
    let mut adds = Vec::with_capacity(count);
    for _ in 0..count {
        adds.push(rows.add()?);
    }
    rows.end()?;
    Ok((Incarnation(incarnation), adds))
}

/// Reads a table of entries: their ledger, and they. Their own checksums are the reader's to verify.
///
/// # Errors
/// Anything but a sound table, or an entry whose header this build cannot read.
pub fn unpack_entries(packed: Packed) -> Result<(LedgerId, Vec<Entry>), TableError> {
    let (table, data) = packed.into_blob();
    let (mut rows, count, ledger) = Rows::open(ENTRIES, &table, data)?;
    let mut entries = Vec::with_capacity(count);
    for at in 0..count {
        entries.push(rows.entry()?.map_err(|_| TableError::Row(at))?);
    }
    rows.end()?;
    Ok((LedgerId(ledger), entries))
}

#[cfg(test)]
mod tests;
