//! The stored form of ledger records: one version byte, then protobuf. Owns the format of [`LedgerRecord`] (key `l/{id}`),
//! [`ClosedLedger`] (inside topic and cursor-log records) and [`LedgerAttributes`] (in bookies' journals).
//!
//! Decoding trusts nothing: an unknown version, an impossible quorum, unordered fragments or a name that is none are errors.
//! Field numbers are never reused. Optional ids are stored as id + 1 with 0 for "none", which keeps records short.

use super::*;
use bytes::Bytes;
use geminga_common::ids::{BookieId, Incarnation};
use prost::Message;

const VERSION: u8 = 1;

/// Bytes that are no record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version, or empty.
    #[error("record version {0:?} is not known")]
    Version(Option<u8>),
    /// Not protobuf of this shape.
    #[error("record is damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    /// A field is out of its range.
    #[error("record field {0} is impossible")]
    Impossible(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct PbBookie {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(fixed64, tag = "2")]
    incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PbSlot {
    #[prost(message, optional, tag = "1")]
    bookie: Option<PbBookie>,
}

#[derive(Clone, PartialEq, Message)]
struct PbFragment {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(message, repeated, tag = "2")]
    slots: Vec<PbSlot>,
}

#[derive(Clone, PartialEq, Message)]
struct PbRepair {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    last_plus_one: u64,
    #[prost(uint32, tag = "3")]
    slot: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PbAttributes {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    owner: String,
    #[prost(uint64, tag = "3")]
    topic: u64,
    #[prost(uint64, tag = "4")]
    ordinal: u64,
    #[prost(uint64, tag = "5")]
    predecessor_plus_one: u64,
    #[prost(uint64, tag = "6")]
    owner_epoch: u64,
    #[prost(uint64, tag = "7")]
    first_index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PbQuorum {
    #[prost(uint32, tag = "1")]
    ensemble: u32,
    #[prost(uint32, tag = "2")]
    write: u32,
    #[prost(uint32, tag = "3")]
    ack: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PbLedger {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    /// 1 open, 2 recovering, 3 closed.
    #[prost(uint32, tag = "3")]
    state: u32,
    #[prost(uint64, tag = "4")]
    last_plus_one: u64,
    #[prost(uint64, tag = "5")]
    length: u64,
    #[prost(message, optional, tag = "6")]
    quorum: Option<PbQuorum>,
    #[prost(message, repeated, tag = "7")]
    fragments: Vec<PbFragment>,
    #[prost(message, repeated, tag = "8")]
    repair: Vec<PbRepair>,
    #[prost(message, optional, tag = "9")]
    attributes: Option<PbAttributes>,
    #[prost(fixed64, tag = "10")]
    op_id: u64,
}

fn plus_one(id: Option<u64>) -> u64 {
    id.map_or(0, |id| id + 1)
}

fn framed(message: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(VERSION);
    message.encode(&mut out).expect("a vector grows as needed");
    out.into()
}

fn unframed<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(M::decode(body)?),
        other => Err(DecodeError::Version(other.map(|(version, _)| *version))),
    }
}

fn fragments_out(fragments: &[Fragment]) -> Vec<PbFragment> {
    let slot = |bookie: &Option<BookieRef>| PbSlot {
        bookie: bookie
            .as_ref()
            .map(|b| PbBookie { id: b.id.as_str().to_owned(), incarnation: b.incarnation.0 }),
    };
    let one = |f: &Fragment| PbFragment { first: f.first.0, slots: f.ensemble.iter().map(slot).collect() };
    fragments.iter().map(one).collect()
}

fn fragments_in(quorum: QuorumSpec, stored: Vec<PbFragment>) -> Result<Vec<Fragment>, DecodeError> {
    let slot = |slot: PbSlot| -> Result<Option<BookieRef>, DecodeError> {
        match slot.bookie {
            None => Ok(None),
            Some(bookie) => {
                let id = BookieId::new(&bookie.id).ok_or(DecodeError::Impossible("bookie id"))?;
                Ok(Some(BookieRef { id, incarnation: Incarnation(bookie.incarnation) }))
            }
        }
    };
    let mut fragments: Vec<Fragment> = Vec::with_capacity(stored.len());
    for fragment in stored {
        let rising = fragments.last().map_or(fragment.first == 0, |last| last.first.0 < fragment.first);
        if !rising || fragment.slots.len() != quorum.ensemble() as usize {
            return Err(DecodeError::Impossible("fragments"));
        }
        let ensemble = fragment.slots.into_iter().map(slot).collect::<Result<_, _>>()?;
        fragments.push(Fragment { first: EntryId(fragment.first), ensemble });
    }
    if fragments.is_empty() { Err(DecodeError::Impossible("fragments")) } else { Ok(fragments) }
}

fn repair_out(repair: &[RepairRange]) -> Vec<PbRepair> {
    let one = |r: &RepairRange| PbRepair {
        first: r.first.0,
        last_plus_one: plus_one(r.last.map(|id| id.0)),
        slot: r.slot,
    };
    repair.iter().map(one).collect()
}

fn repair_in(quorum: QuorumSpec, stored: Vec<PbRepair>) -> Result<Vec<RepairRange>, DecodeError> {
    let one = |r: PbRepair| {
        let last = r.last_plus_one.checked_sub(1).map(EntryId);
        if r.slot >= quorum.ensemble() || last.is_some_and(|last| last.0 < r.first) {
            return Err(DecodeError::Impossible("repair"));
        }
        Ok(RepairRange { first: EntryId(r.first), last, slot: r.slot })
    };
    stored.into_iter().map(one).collect()
}

fn quorum_out(quorum: QuorumSpec) -> Option<PbQuorum> {
    Some(PbQuorum { ensemble: quorum.ensemble(), write: quorum.write(), ack: quorum.ack() })
}

fn quorum_in(stored: Option<PbQuorum>) -> Result<QuorumSpec, DecodeError> {
    let q = stored.ok_or(DecodeError::Impossible("quorum"))?;
    QuorumSpec::new(q.ensemble, q.write, q.ack).map_err(|_| DecodeError::Impossible("quorum"))
}

fn attributes_out(a: &LedgerAttributes) -> PbAttributes {
    PbAttributes {
        kind: match a.kind {
            LedgerKind::TopicData => 1,
            LedgerKind::CursorLog => 2,
        },
        owner: a.owner.clone(),
        topic: a.topic.0,
        ordinal: a.ordinal,
        predecessor_plus_one: plus_one(a.predecessor.map(|id| id.0)),
        owner_epoch: a.owner_epoch.0,
        first_index: a.first_index.0,
    }
}

fn attributes_in(a: PbAttributes) -> Result<LedgerAttributes, DecodeError> {
    Ok(LedgerAttributes {
        kind: match a.kind {
            1 => LedgerKind::TopicData,
            2 => LedgerKind::CursorLog,
            _ => return Err(DecodeError::Impossible("kind")),
        },
        owner: a.owner,
        topic: TopicId(a.topic),
        ordinal: a.ordinal,
        predecessor: a.predecessor_plus_one.checked_sub(1).map(LedgerId),
        owner_epoch: OwnerEpoch(a.owner_epoch),
        first_index: MessageIndex(a.first_index),
    })
}

fn last_in(last_plus_one: u64, fragments: &[Fragment]) -> Result<Option<EntryId>, DecodeError> {
    let last = last_plus_one.checked_sub(1).map(EntryId);
    // The last fragment may be empty, an earlier one may not.
    let reachable = fragments.last().is_none_or(|f| last_plus_one >= f.first.0);
    if reachable { Ok(last) } else { Err(DecodeError::Impossible("last entry")) }
}

impl LedgerAttributes {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        framed(&attributes_out(self))
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version, damage, impossible fields.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        attributes_in(unframed(bytes)?)
    }
}

impl ClosedLedger {
    /// The stored form, to be embedded in the owner's record.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        framed(&PbLedger {
            id: self.id.0,
            term: self.term.0,
            state: 3,
            last_plus_one: plus_one(self.last.map(|id| id.0)),
            length: self.length,
            quorum: quorum_out(self.quorum),
            fragments: fragments_out(&self.fragments),
            repair: repair_out(&self.repair),
            attributes: None,
            op_id: 0,
        })
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version, damage, impossible fields, or a ledger that is not closed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let stored: PbLedger = unframed(bytes)?;
        if stored.state != 3 {
            return Err(DecodeError::Impossible("state"));
        }
        let quorum = quorum_in(stored.quorum)?;
        let fragments = fragments_in(quorum, stored.fragments)?;
        Ok(Self {
            id: LedgerId(stored.id),
            last: last_in(stored.last_plus_one, &fragments)?,
            length: stored.length,
            term: Term(stored.term),
            quorum,
            fragments,
            repair: repair_in(quorum, stored.repair)?,
        })
    }
}

impl LedgerRecord {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (state, last, length) = match self.state {
            LedgerState::Open => (1, None, 0),
            LedgerState::Recovering => (2, None, 0),
            LedgerState::Closed { last, length } => (3, last, length),
        };
        framed(&PbLedger {
            id: self.id.0,
            term: self.term.0,
            state,
            last_plus_one: plus_one(last.map(|id| id.0)),
            length,
            quorum: quorum_out(self.quorum),
            fragments: fragments_out(&self.fragments),
            repair: repair_out(&self.repair),
            attributes: Some(attributes_out(&self.attributes)),
            op_id: self.op_id.0,
        })
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version, damage, impossible fields.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let stored: PbLedger = unframed(bytes)?;
        let quorum = quorum_in(stored.quorum)?;
        let fragments = fragments_in(quorum, stored.fragments)?;
        let state = match stored.state {
            1 => LedgerState::Open,
            2 => LedgerState::Recovering,
            3 => {
                let last = last_in(stored.last_plus_one, &fragments)?;
                LedgerState::Closed { last, length: stored.length }
            }
            _ => return Err(DecodeError::Impossible("state")),
        };
        Ok(Self {
            id: LedgerId(stored.id),
            term: Term(stored.term),
            state,
            quorum,
            fragments,
            repair: repair_in(quorum, stored.repair)?,
            attributes: Arc::new(attributes_in(
                stored.attributes.ok_or(DecodeError::Impossible("attributes"))?,
            )?),
            op_id: OpId(stored.op_id),
        })
    }
}
