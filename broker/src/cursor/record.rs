//! Records of a cursor log: the payload of entries of kind `CursorLog`.
//!
//! An entry holds several records (group commit) and is at most [`ENTRY_MAX`] bytes. What is too long for one record, the
//! holes of a huge cursor, is cut: the record with the first part, then deltas. Every prefix is a state that was true.
//!
//! # Entry
//! | size | field |
//! |---|---|
//! | 1 | version, 1 |
//! | … | records: kind (1 byte), length of the body (varint), body |
//!
//! # Bodies (v = unsigned LEB128 varint, s = v length + UTF-8, p = v ledger + v entry)
//! | kind | record | body |
//! |---|---|---|
//! | 1 | Create | v cursor, v topic, s subscription, v created ms, v flags (1 = replicated), properties, numbers, acked |
//! | 2 | Delta | v cursor, p floor, holes, batches, byte 0 or (byte 1, numbers) |
//! | 3 | Reset | v cursor, acked |
//! | 4 | Delete | v cursor |
//! | 5 | DeleteTopic | v topic |
//! | 6 | Properties | v cursor, properties |
//! | 7 | SnapshotBegin | – |
//! | 8 | State | as Create; only inside a snapshot, as are the deltas that go on with it |
//! | 9 | SnapshotEnd | v number of State records since SnapshotBegin |
//!
//! properties: v count, (s, s)…; numbers: v count, (s, v)…; acked: p floor, holes, batches;
//! holes: v count, per ledger: v ledger, form byte, v length, bytes; form 0: pairs (v gap since the last run, v run length),
//! form 1: portable roaring bitmap, whichever is shorter; batches: v count, each p, v batch size, v words, 8-byte words (LE, bit
//! set = not acked).
//!
//! An unknown version or kind is an error, never skipped: a skipped ack is a redelivery at best.

use super::codec::{self, DecodeError, Properties, Reader};
use super::holes::Holes;
use super::state::{Acked, Batch, Delta};
use bytes::Bytes;
use geminga_common::ids::{Position, TopicId};
use geminga_common::names::SubscriptionName;
use std::fmt;

/// Most bytes of an entry's payload.
pub const ENTRY_MAX: usize = 1 << 20;
/// Records are cut near this size, so that one always fits.
const CUT_AT: usize = 256 << 10;
/// Most bytes of a cursor's name and properties together.
pub const PROPERTIES_MAX: usize = 256 << 10;
/// Ids of one ledger in one piece: its bitmap takes at most 256 KiB.
const PIECE_IDS: u64 = 1 << 21;
const VERSION: u8 = 1;

/// A cursor within its log: what deltas name instead of topic and subscription. Never reused while the log lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CursorId(pub u64);

impl fmt::Display for CursorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A durable cursor as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CursorImage {
    /// What is acknowledged.
    pub acked: Acked,
    /// Properties of the last cumulative ack that carried some.
    pub ack_properties: Vec<(String, u64)>,
    /// Properties of the subscription.
    pub properties: Properties,
    /// When it was created, ms since 1970.
    pub created_ms: u64,
    /// Whether its state is replicated to other clusters.
    pub replicated: bool,
}

/// A cursor with its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// Its id in the log.
    pub id: CursorId,
    /// Its topic.
    pub topic: TopicId,
    /// Its subscription.
    pub subscription: SubscriptionName,
    /// The rest.
    pub image: CursorImage,
}

/// A record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A new cursor.
    Create(Box<Cursor>),
    /// Acks.
    Delta(CursorId, Delta),
    /// A seek: replaces what is acked.
    Reset(CursorId, Acked),
    /// The cursor is gone.
    Delete(CursorId),
    /// All cursors of the topic are gone.
    DeleteTopic(TopicId),
    /// Replaces the subscription's properties.
    Properties(CursorId, Properties),
    /// What follows up to the end replaces everything before.
    SnapshotBegin,
    /// A cursor of the snapshot.
    State(Box<Cursor>),
    /// The snapshot is whole; so many cursors.
    SnapshotEnd(u64),
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Create(_) => 1,
            Record::Delta(..) => 2,
            Record::Reset(..) => 3,
            Record::Delete(_) => 4,
            Record::DeleteTopic(_) => 5,
            Record::Properties(..) => 6,
            Record::SnapshotBegin => 7,
            Record::State(_) => 8,
            Record::SnapshotEnd(_) => 9,
        }
    }

    fn put_body(&self, out: &mut Vec<u8>) {
        match self {
            Record::Create(cursor) | Record::State(cursor) => put_cursor(out, cursor),
            Record::Delta(id, delta) => put_delta(out, *id, delta),
            Record::Reset(id, acked) => {
                codec::put_varint(out, id.0);
                codec::put_acked(out, acked);
            }
            Record::Delete(id) => codec::put_varint(out, id.0),
            Record::DeleteTopic(topic) => codec::put_varint(out, topic.0),
            Record::Properties(id, properties) => {
                codec::put_varint(out, id.0);
                codec::put_properties(out, properties);
            }
            Record::SnapshotBegin => {}
            Record::SnapshotEnd(cursors) => codec::put_varint(out, *cursors),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader(body);
        let record = match kind {
            1 => Record::Create(Box::new(cursor(&mut r)?)),
            2 => {
                let id = CursorId(r.varint()?);
                Record::Delta(id, delta(&mut r)?)
            }
            3 => Record::Reset(CursorId(r.varint()?), r.acked()?),
            4 => Record::Delete(CursorId(r.varint()?)),
            5 => Record::DeleteTopic(TopicId(r.varint()?)),
            6 => Record::Properties(CursorId(r.varint()?), r.properties()?),
            7 => Record::SnapshotBegin,
            8 => Record::State(Box::new(cursor(&mut r)?)),
            9 => Record::SnapshotEnd(r.varint()?),
            kind => return Err(DecodeError::Kind(kind)),
        };
        if r.is_empty() { Ok(record) } else { Err(DecodeError::Damaged("bytes after the record")) }
    }
}

fn put_cursor(out: &mut Vec<u8>, cursor: &Cursor) {
    codec::put_varint(out, cursor.id.0);
    codec::put_varint(out, cursor.topic.0);
    codec::put_bytes(out, cursor.subscription.as_str().as_bytes());
    codec::put_varint(out, cursor.image.created_ms);
    codec::put_varint(out, u64::from(cursor.image.replicated));
    codec::put_properties(out, &cursor.image.properties);
    codec::put_numbers(out, &cursor.image.ack_properties);
    codec::put_acked(out, &cursor.image.acked);
}

fn cursor(r: &mut Reader<'_>) -> Result<Cursor, DecodeError> {
    let (id, topic) = (CursorId(r.varint()?), TopicId(r.varint()?));
    let subscription =
        SubscriptionName::parse(&r.text()?).map_err(|_| DecodeError::Damaged("subscription name"))?;
    let created_ms = r.varint()?;
    let replicated = match r.varint()? {
        0 => false,
        1 => true,
        _ => return Err(DecodeError::Damaged("unknown flags")),
    };
    let (properties, ack_properties) = (r.properties()?, r.numbers()?);
    let image = CursorImage { acked: r.acked()?, ack_properties, properties, created_ms, replicated };
    Ok(Cursor { id, topic, subscription, image })
}

fn put_delta(out: &mut Vec<u8>, id: CursorId, delta: &Delta) {
    codec::put_varint(out, id.0);
    codec::put_position(out, delta.floor);
    codec::put_holes(out, &delta.holes);
    codec::put_batches(out, delta.batches.iter().map(|(p, batch)| (*p, batch)), delta.batches.len());
    match &delta.ack_properties {
        None => out.push(0),
        Some(numbers) => {
            out.push(1);
            codec::put_numbers(out, numbers);
        }
    }
}

fn delta(r: &mut Reader<'_>) -> Result<Delta, DecodeError> {
    let (floor, holes, batches) = (r.position()?, r.holes()?, r.batches()?);
    let ack_properties = match r.byte()? {
        0 => None,
        1 => Some(r.numbers()?),
        _ => return Err(DecodeError::Damaged("flag")),
    };
    Ok(Delta { floor, holes, batches, ack_properties })
}

/// Packs records into entries. A record that is too long for one is cut into itself and deltas.
#[derive(Debug, Default)]
pub struct Packer {
    full: Vec<Bytes>,
    open: Vec<u8>,
    body: Vec<u8>,
}

impl Packer {
    /// Adds a record.
    pub fn push(&mut self, record: &Record) {
        match record {
            Record::Create(cursor) if cursor.image.acked.size() > CUT_AT => {
                self.push_cut_cursor(cursor, Record::Create);
            }
            Record::State(cursor) if cursor.image.acked.size() > CUT_AT => {
                self.push_cut_cursor(cursor, Record::State);
            }
            Record::Reset(id, acked) if acked.size() > CUT_AT => {
                self.push_whole(&Record::Reset(*id, Acked::below(acked.floor)));
                self.push_pieces(*id, acked.floor, &acked.holes, acked.batches.iter().map(|(p, b)| (*p, b)));
            }
            Record::Delta(id, delta) if delta.size() > CUT_AT => {
                let batches = delta.batches.iter().map(|(p, b)| (*p, b));
                self.push_pieces(*id, delta.floor, &delta.holes, batches);
                let (holes, batches) = (Holes::default(), Vec::new());
                self.push_whole(&Record::Delta(*id, Delta { holes, batches, ..delta.clone() }));
            }
            record => self.push_whole(record),
        }
    }

    /// The entries.
    #[must_use]
    pub fn finish(mut self) -> Vec<Bytes> {
        self.seal();
        self.full
    }

    fn push_cut_cursor(&mut self, cursor: &Cursor, make: fn(Box<Cursor>) -> Record) {
        let acked = &cursor.image.acked;
        let mut first = cursor.clone();
        first.image.acked = Acked::below(acked.floor);
        self.push_whole(&make(Box::new(first)));
        self.push_pieces(cursor.id, acked.floor, &acked.holes, acked.batches.iter().map(|(p, b)| (*p, b)));
    }

    fn push_pieces<'a>(
        &mut self,
        id: CursorId,
        floor: Position,
        holes: &Holes,
        batches: impl Iterator<Item = (Position, &'a Batch)>,
    ) {
        let empty = || Delta { floor, holes: Holes::default(), batches: Vec::new(), ack_properties: None };
        let mut piece = empty();
        let mut size = 0;
        for (ledger, bitmap) in holes.ledgers() {
            let last = u64::from(bitmap.max().unwrap_or(0));
            for first in (0..=last).step_by(PIECE_IDS as usize) {
                let end = (first + PIECE_IDS).min(last + 1);
                let mut part = bitmap.clone();
                part.remove_range(end as u32..);
                part.remove_range(..first as u32);
                size += 64 + part.serialized_size();
                piece.holes.add(ledger, part);
                if size > CUT_AT {
                    self.push_whole(&Record::Delta(id, std::mem::replace(&mut piece, empty())));
                    size = 0;
                }
            }
        }
        for (p, batch) in batches {
            size += 48 + batch.remaining.len() * 8;
            piece.batches.push((p, batch.clone()));
            if size > CUT_AT {
                self.push_whole(&Record::Delta(id, std::mem::replace(&mut piece, empty())));
                size = 0;
            }
        }
        self.push_whole(&Record::Delta(id, piece));
    }

    fn push_whole(&mut self, record: &Record) {
        self.body.clear();
        record.put_body(&mut self.body);
        if self.open.len() + self.body.len() + 11 > ENTRY_MAX {
            self.seal();
        }
        if self.open.is_empty() {
            self.open.push(VERSION);
        }
        self.open.push(record.kind());
        codec::put_bytes(&mut self.open, &self.body);
        assert!(self.open.len() <= ENTRY_MAX, "records are cut and properties bounded");
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.full.push(std::mem::take(&mut self.open).into());
        }
    }
}

/// The records of an entry's payload.
///
/// # Errors
/// Unknown version or kind, damage.
pub fn decode(payload: &[u8]) -> Result<Vec<Record>, DecodeError> {
    let mut r = Reader(payload);
    let version = r.byte()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let mut records = Vec::new();
    while !r.is_empty() {
        let kind = r.byte()?;
        records.push(Record::decode(kind, r.bytes()?)?);
    }
    Ok(records)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
