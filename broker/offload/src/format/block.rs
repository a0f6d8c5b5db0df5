//! A block: a run of consecutive entries, the unit of checksum, compression and caching.

use super::footer::Row;
use super::{ENTRY_HEADER_LEN, FormatError, u32_at, u64_at};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use geminga_common::checksum::Crc32c;
use geminga_common::ids::EntryId;

/// Bytes of a block before its body.
pub const BLOCK_HEADER_LEN: usize = 32;
/// Bytes of an entry in a body before its payload: length, the entry's own checksum, its header.
pub const ENTRY_OVERHEAD: usize = 8 + ENTRY_HEADER_LEN;
/// Largest body a block may claim to have, so that a damaged length allocates nothing.
pub const BODY_MAX: usize = 1 << 30;

const MAGIC: [u8; 4] = *b"GMBK";

/// How bodies are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: producers mostly compress their batches already.
    #[default]
    None,
    /// zstd, level 1. A block that it makes no smaller is stored as it is.
    Zstd,
}

/// An entry as its ledger holds it. The payload shares the block's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its id in the ledger.
    pub id: EntryId,
    /// The ledger protocol's own checksum over ledger, id, header and payload: kept as it is, so that an entry can be verified
    /// from the producer's bookie to the reader's broker.
    pub crc: u32,
    /// The ledger protocol's fixed header, as it is stored there.
    pub header: [u8; ENTRY_HEADER_LEN],
    /// The payload.
    pub payload: Bytes,
}

impl Entry {
    /// Bytes that count against budgets and ledger lengths: header and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        ENTRY_HEADER_LEN + self.payload.len()
    }
}

/// A body that is being filled.
#[derive(Debug, Default)]
pub struct Body {
    bytes: BytesMut,
    entries: u32,
}

impl Body {
    /// Takes an entry in.
    pub fn push(&mut self, entry: &Entry) {
        self.bytes.reserve(ENTRY_OVERHEAD + entry.payload.len());
        self.bytes.put_u32_le(entry.payload.len() as u32);
        self.bytes.put_u32_le(entry.crc);
        self.bytes.put_slice(&entry.header);
        self.bytes.put_slice(&entry.payload);
        self.entries += 1;
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The block, beginning with entry `first`; the body is empty again. Also its checksum, as the index keeps it.
    ///
    /// # Panics
    /// When zstd cannot get memory.
    pub fn seal(&mut self, first: EntryId, compression: Compression) -> (BytesMut, u32) {
        let plain = self.bytes.split();
        let packed = match compression {
            Compression::None => None,
            Compression::Zstd => {
                let packed =
                    zstd::bulk::compress(&plain, 1).expect("zstd in memory fails for lack of memory only");
                Some(packed).filter(|packed| packed.len() < plain.len())
            }
        };
        let stored: &[u8] = packed.as_deref().unwrap_or(&plain);
        let mut head = [0; BLOCK_HEADER_LEN];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = u8::from(packed.is_some());
        head[8..16].copy_from_slice(&first.0.to_le_bytes());
        head[16..20].copy_from_slice(&std::mem::take(&mut self.entries).to_le_bytes());
        head[20..24].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        head[24..28].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        let crc = Crc32c::new().update(&head[..28]).update(stored).value();
        head[28..].copy_from_slice(&crc.to_le_bytes());
        let mut out = BytesMut::with_capacity(BLOCK_HEADER_LEN + stored.len());
        out.put_slice(&head);
        out.put_slice(stored);
        (out, crc)
    }
}

/// The entries of the block that an index row tells of: besides damage, blocks that were mixed up show.
///
/// # Errors
/// It is no block, another one, or damaged.
pub fn open_at(block: Bytes, row: &Row) -> Result<Vec<Entry>, FormatError> {
    let told = block.len() >= BLOCK_HEADER_LEN && u32_at(&block, 28) == row.crc;
    let entries = open(block)?;
    if !told || entries.first().is_none_or(|entry| entry.id != row.first) {
        return Err(FormatError::Inconsistent("a block is not the one its index row tells of"));
    }
    Ok(entries)
}

/// The entries of a block.
///
/// # Errors
/// It is no block, or damaged.
pub fn open(mut block: Bytes) -> Result<Vec<Entry>, FormatError> {
    if block.len() < BLOCK_HEADER_LEN {
        return Err(FormatError::Length("a block"));
    }
    let head = block.split_to(BLOCK_HEADER_LEN);
    if head[..4] != MAGIC {
        return Err(FormatError::Magic("a block"));
    }
    let (stored, plain) = (u32_at(&head, 20) as usize, u32_at(&head, 24) as usize);
    if block.len() != stored || plain > BODY_MAX {
        return Err(FormatError::Length("a block"));
    }
    if Crc32c::new().update(&head[..28]).update(&block).value() != u32_at(&head, 28) {
        return Err(FormatError::Checksum("a block"));
    }
    let body = match (head[4], &head[5..8]) {
        (0, [0, 0, 0]) => block,
        (1, [0, 0, 0]) => zstd::bulk::decompress(&block, plain).map_err(|_| FormatError::Compression)?.into(),
        _ => return Err(FormatError::Compression),
    };
    if body.len() != plain {
        return Err(FormatError::Length("a block"));
    }
    split(body, u64_at(&head, 8), u32_at(&head, 16))
}

fn split(mut body: Bytes, first: u64, count: u32) -> Result<Vec<Entry>, FormatError> {
    const RAGGED: FormatError = FormatError::Inconsistent("a block's entries do not fill it");
    // Each entry takes so much at least: a damaged count allocates nothing.
    if count as usize > body.len() / ENTRY_OVERHEAD || first.checked_add(u64::from(count)).is_none() {
        return Err(RAGGED);
    }
    let mut entries = Vec::with_capacity(count as usize);
    for nth in 0..u64::from(count) {
        if body.len() < ENTRY_OVERHEAD {
            return Err(RAGGED);
        }
        let (length, crc) = (body.get_u32_le() as usize, body.get_u32_le());
        let header = body.split_to(ENTRY_HEADER_LEN);
        if body.len() < length {
            return Err(RAGGED);
        }
        let header = header[..].try_into().expect("split at this length");
        entries.push(Entry { id: EntryId(first + nth), crc, header, payload: body.split_to(length) });
    }
    if body.is_empty() { Ok(entries) } else { Err(RAGGED) }
}
