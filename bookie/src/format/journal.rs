//! The journal's bytes. A file is a header page and batches, each starting at a multiple of 4096.
//!
//! Header (first page): magic `GMJRNL01` 8, version u32 = 1, shard u16, shards u16 (a ledger's shard is its id modulo the number
//! of shards), store id u64, generation u64, CRC32C u32 over the 32 bytes before. All zero: never used.
//!
//! Batch: magic `GMBT` 4, CRC32C u32, generation u64, seq u64, durable seq u64, length of the records u32, number of records u32,
//! records, zeros up to the next multiple of 4096. The CRC covers the store id (so that no payload can pose as a batch) and all
//! from generation to the last record.
//!
//! Records (kind u8 first): 1 add: ledger, id, CRC u32, entry header 32, length u32, payload; 2 term: ledger, term; 3 hint:
//! ledger, LAC, LAFR; 4 delete: ledger; 5 seal: ledger, last; 6 attributes: ledger, length u32, bytes; 7 replay stopped: seq;
//! 8 idle; 9 dead-id watermark: ledger.

use super::row::{decode_attributes, encode_attributes};
use super::{Fields, Fill, id_word};
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, HEADER_LEN, Header};
use geminga_bookie_client::record::LedgerAttributes;
use geminga_common::checksum::{Crc32c, crc32c};
use geminga_common::disk::ALIGN;
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::sync::Arc;

const FILE_MAGIC: &[u8; 8] = b"GMJRNL01";
const BATCH_MAGIC: &[u8; 4] = b"GMBT";
const VERSION: u32 = 1;
pub(crate) const BATCH_HEADER: usize = 40;
/// Bytes of an add before its payload.
const ADD_HEAD: usize = 1 + 16 + 4 + HEADER_LEN + 4;
/// First byte of [`Record::ReplayStopped`].
const REPLAY_STOPPED: u8 = 7;

/// One thing that must survive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    Add { ledger: LedgerId, entry: Entry },
    Term { ledger: LedgerId, term: Term },
    Hint { ledger: LedgerId, lac: Option<EntryId>, lafr: Option<EntryId> },
    Delete { ledger: LedgerId },
    Seal { ledger: LedgerId, last: Option<EntryId> },
    Attributes { ledger: LedgerId, attributes: Arc<LedgerAttributes> },
    ReplayStopped { seq: u64 },
    Idle,
    Watermark { to: LedgerId },
}

impl Record {
    pub(crate) fn len(&self) -> usize {
        match self {
            Record::Add { entry, .. } => ADD_HEAD + entry.payload.len(),
            Record::Term { .. } | Record::Seal { .. } => 17,
            Record::Hint { .. } => 25,
            Record::Delete { .. } | Record::ReplayStopped { .. } | Record::Watermark { .. } => 9,
            Record::Attributes { attributes, .. } => 1 + 8 + 4 + 2 + 40 + 4 + attributes.owner.len(),
            Record::Idle => 1,
        }
    }

    fn encode(&self, out: &mut Fill<'_>) {
        match self {
            Record::Add { ledger, entry } => {
                out.put(&[1]);
                out.u64(ledger.0);
                out.u64(entry.id.0);
                out.u32(entry.crc);
                out.put(&entry.header.encode());
                out.u32(entry.payload.len() as u32);
                geminga_common::copies::note(entry.payload.len());
                out.put(&entry.payload);
            }
            Record::Term { ledger, term } => {
                out.put(&[2]);
                out.u64(ledger.0);
                out.u64(term.0);
            }
            Record::Hint { ledger, lac, lafr } => {
                out.put(&[3]);
                out.u64(ledger.0);
                out.u64(id_word(*lac));
                out.u64(id_word(*lafr));
            }
            Record::Delete { ledger } => {
                out.put(&[4]);
                out.u64(ledger.0);
            }
            Record::Seal { ledger, last } => {
                out.put(&[5]);
                out.u64(ledger.0);
                out.u64(id_word(*last));
            }
            Record::Attributes { ledger, attributes } => {
                let bytes = encode_attributes(attributes);
                out.put(&[6]);
                out.u64(ledger.0);
                out.u32(bytes.len() as u32);
                out.put(&bytes);
            }
            Record::ReplayStopped { seq } => {
                out.put(&[REPLAY_STOPPED]);
                out.u64(*seq);
            }
            Record::Idle => out.put(&[8]),
            Record::Watermark { to } => {
                out.put(&[9]);
                out.u64(to.0);
            }
        }
    }

    fn decode(f: &mut Fields<'_>, whole: &Bytes) -> Option<Self> {
        let kind = f.u8()?;
        match kind {
            REPLAY_STOPPED => return Some(Record::ReplayStopped { seq: f.u64()? }),
            8 => return Some(Record::Idle),
            9 => return Some(Record::Watermark { to: LedgerId(f.u64()?) }),
            _ => {}
        }
        let ledger = LedgerId(f.u64()?);
        Some(match kind {
            1 => Record::Add { ledger, entry: decode_entry(f, whole)? },
            2 => Record::Term { ledger, term: Term(f.u64()?) },
            3 => Record::Hint { ledger, lac: f.id()?, lafr: f.id()? },
            4 => Record::Delete { ledger },
            5 => Record::Seal { ledger, last: f.id()? },
            6 => {
                let len = f.u32()? as usize;
                Record::Attributes { ledger, attributes: Arc::new(decode_attributes(f.take(len)?)?) }
            }
            _ => return None,
        })
    }
}

/// Id, checksum, header and payload, the payload as a slice of `whole`; shared with segments. The highest number is no id: ids
/// are stored plus one elsewhere.
pub(crate) fn decode_entry(f: &mut Fields<'_>, whole: &Bytes) -> Option<Entry> {
    let (id, crc) = (f.u64().filter(|id| *id < u64::MAX).map(EntryId)?, f.u32()?);
    let header = Header::decode(&f.array()?).ok()?;
    let len = f.u32()? as usize;
    let payload = whole.slice_ref(f.take(len)?);
    Some(Entry { id, crc, header, payload: payload.into() })
}

/// Which journal a file belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) store: u64,
    pub(crate) shard: u16,
    pub(crate) shards: u16,
}

pub(crate) fn encode_header(owner: Owner, generation: u64) -> [u8; 36] {
    let mut out = [0; 36];
    out[..8].copy_from_slice(FILE_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..14].copy_from_slice(&owner.shard.to_le_bytes());
    out[14..16].copy_from_slice(&owner.shards.to_le_bytes());
    out[16..24].copy_from_slice(&owner.store.to_le_bytes());
    out[24..32].copy_from_slice(&generation.to_le_bytes());
    let crc = crc32c(&out[..32]);
    out[32..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The generation in a file's header; `None` for anything that is not a sound header of this journal.
pub(crate) fn decode_header(page: &[u8], owner: Owner) -> Option<u64> {
    let generation = u64::from_le_bytes(page.get(24..32)?.try_into().ok()?);
    (page.get(..36)? == encode_header(owner, generation)).then_some(generation)
}

/// What stands before the records of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHead {
    pub(crate) generation: u64,
    pub(crate) seq: u64,
    pub(crate) durable: u64,
}

/// Bytes on disk of a batch with so many bytes of records.
pub(crate) fn batch_len(records_len: usize) -> usize {
    (BATCH_HEADER + records_len).next_multiple_of(ALIGN)
}

/// Writes a batch of checked entries to the front of `out`, which holds at least [`batch_len`] bytes of anything; answers that length.
pub(crate) fn encode_batch(
    out: &mut [u8],
    store: u64,
    head: BatchHead,
    records: &[Record],
    len: usize,
) -> usize {
    let total = batch_len(len);
    let end = BATCH_HEADER + len;
    let mut fill = Fill { buf: out, at: 0 };
    fill.put(BATCH_MAGIC);
    fill.u32(0);
    for word in [head.generation, head.seq, head.durable] {
        fill.u64(word);
    }
    fill.u32(len as u32);
    fill.u32(records.len() as u32);
    let (mut sum, mut summed) = (Crc32c::new().update(&store.to_le_bytes()), 8);
    for record in records {
        record.encode(&mut fill);
        if let Record::Add { ledger, entry } = record {
            super::sum_up_to(fill.buf, fill.at, (*ledger, entry), (&mut sum, &mut summed));
        }
    }
    assert_eq!(fill.at, end, "records are as long as they said");
    out[end..total].fill(0);
    let crc = sum.update(&out[summed..end]).value();
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    total
}

/// A sound batch found in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) head: BatchHead,
    /// Bytes of its records, behind the header.
    pub(crate) records_len: usize,
    /// How many records.
    pub(crate) count: u32,
}

/// Number of a batch of `generation` at the front of `bytes`, and how long it says it is, with its padding; `None` where no such
/// batch begins. Neither is to be believed before its checksum is.
pub(crate) fn claimed(bytes: &[u8], generation: u64) -> Option<(u64, usize)> {
    let mut f = Fields(bytes);
    let magic = f.take(4)? == BATCH_MAGIC;
    let _crc = f.u32()?;
    let own = f.u64()? == generation;
    let (seq, _durable, records_len) = (f.u64()?, f.u64()?, f.u32()? as usize);
    (magic && own).then(|| (seq, batch_len(records_len)))
}

/// Entries that are intact in a batch which does not check: each has a checksum of its own. No other record has, so none is believed. Behind
/// an entry that is not intact, whose length may be what is wrong, entries count only if all records end where the batch does.
pub(crate) fn intact_adds(batch: &Bytes) -> Vec<Record> {
    let Some(mut head) = batch.get(BATCH_HEADER - 8..BATCH_HEADER).map(Fields) else { return Vec::new() };
    let (Some(len), Some(count)) = (head.u32(), head.u32()) else { return Vec::new() };
    let records = batch.slice(BATCH_HEADER..BATCH_HEADER.saturating_add(len as usize).min(batch.len()));
    let (mut sure, mut likely, mut f) = (Vec::new(), Vec::new(), Fields(&records));
    let mut doubt = false;
    for _ in 0..count {
        let rest = f.0;
        match Record::decode(&mut f, &records) {
            Some(Record::Add { ledger, entry }) if entry.verify(ledger) => {
                if doubt { &mut likely } else { &mut sure }.push(Record::Add { ledger, entry });
            }
            Some(Record::Add { .. }) => doubt = true,
            Some(_) => {}
            None => {
                // An entry whose header is damaged still says how long it is.
                let Some(end) = rest.get(ADD_HEAD - 4..ADD_HEAD).and_then(|len| Fields(len).u32()) else {
                    return sure;
                };
                let Some(next) = rest.get(ADD_HEAD + end as usize..).filter(|_| rest[0] == 1) else {
                    return sure;
                };
                (f, doubt) = (Fields(next), true);
            }
        }
    }
    if f.0.is_empty() && len as usize == records.len() {
        sure.extend(likely);
    }
    sure
}

/// Whether the records of a batch begin with the one that tells where a replay stopped.
pub(crate) fn tells_of_replay(records: &[u8]) -> bool {
    records.first() == Some(&REPLAY_STOPPED)
}

/// The batch at the front of `bytes`; `None` unless it is sound and of this store and generation.
pub(crate) fn decode_batch(bytes: &[u8], store: u64, generation: u64) -> Option<Found> {
    let mut f = Fields(bytes);
    if f.take(4)? != BATCH_MAGIC {
        return None;
    }
    let crc = f.u32()?;
    let head = BatchHead { generation: f.u64()?, seq: f.u64()?, durable: f.u64()? };
    let (records_len, count) = (f.u32()? as usize, f.u32()?);
    if head.generation != generation {
        return None;
    }
    f.take(records_len)?;
    let body = &bytes[8..BATCH_HEADER + records_len];
    let sum = Crc32c::new().update(&store.to_le_bytes()).update(body).value();
    (sum == crc).then_some(Found { head, records_len, count })
}

/// The records of a sound batch; `None` when this build does not know one of them.
pub(crate) fn decode_records(records: &Bytes, n: u32) -> Option<Vec<Record>> {
    let mut f = Fields(records);
    let out = (0..n).map(|_| Record::decode(&mut f, records)).collect::<Option<Vec<_>>>()?;
    f.end()?;
    Some(out)
}
