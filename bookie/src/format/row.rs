//! Ledger state and attributes as bytes: rows of the manifest and journal records.
//!
//! Attributes: version u8 = 1, kind u8 (1 topic data, 2 cursor log), topic u64, ordinal u64, predecessor u64 + 1 or 0,
//! owner epoch u64, first index u64, owner: length u32 + UTF-8.
//!
//! State: version u8 = 1, flags u8 (1 tombstone, 2 sealed, 4 attributes), term u64, sealed last, LAC, LAFR, last flushed id
//! (each id + 1 or 0), attributes.

use super::{Fields, id_word};
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use std::sync::Arc;

/// What a store keeps of a ledger besides its entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct LedgerRow {
    pub(crate) term: Term,
    pub(crate) tombstone: bool,
    pub(crate) sealed: Option<Option<EntryId>>,
    pub(crate) lac: Option<EntryId>,
    pub(crate) lafr: Option<EntryId>,
    /// Highest id ever flushed: above it no segment needs to be asked.
    pub(crate) flushed: Option<EntryId>,
    pub(crate) attributes: Option<Arc<LedgerAttributes>>,
}

pub(crate) fn encode_attributes(a: &LedgerAttributes) -> Vec<u8> {
    let kind = match a.kind {
        LedgerKind::TopicData => 1_u8,
        LedgerKind::CursorLog => 2,
    };
    let mut out = vec![1, kind];
    let predecessor = a.predecessor.map_or(0, |l| l.0 + 1);
    for word in [a.topic.0, a.ordinal, predecessor, a.owner_epoch.0, a.first_index.0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(a.owner.len() as u32).to_le_bytes());
    out.extend_from_slice(a.owner.as_bytes());
    out
}

pub(crate) fn decode_attributes(bytes: &[u8]) -> Option<LedgerAttributes> {
    let mut f = Fields(bytes);
    let kind = match (f.u8()?, f.u8()?) {
        (1, 1) => LedgerKind::TopicData,
        (1, 2) => LedgerKind::CursorLog,
        _ => return None,
    };
    let (topic, ordinal, predecessor) = (TopicId(f.u64()?), f.u64()?, f.u64()?.checked_sub(1).map(LedgerId));
    let (owner_epoch, first_index) = (OwnerEpoch(f.u64()?), MessageIndex(f.u64()?));
    let owner = f.text()?;
    f.end()?;
    Some(LedgerAttributes { kind, owner, topic, ordinal, predecessor, owner_epoch, first_index })
}

impl LedgerRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.tombstone)
            | (u8::from(self.sealed.is_some()) << 1)
            | (u8::from(self.attributes.is_some()) << 2);
        let mut out = vec![1, flags];
        let sealed = id_word(self.sealed.flatten());
        for word in [self.term.0, sealed, id_word(self.lac), id_word(self.lafr), id_word(self.flushed)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        if let Some(attributes) = &self.attributes {
            out.extend_from_slice(&encode_attributes(attributes));
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields(bytes);
        let (version, flags) = (f.u8()?, f.u8()?);
        if version != 1 || flags > 7 {
            return None;
        }
        let (term, sealed, lac, lafr, flushed) = (f.u64()?, f.id()?, f.id()?, f.id()?, f.id()?);
        let attributes = match flags & 4 {
            0 => {
                f.end()?;
                None
            }
            _ => Some(Arc::new(decode_attributes(f.0)?)),
        };
        Some(Self {
            term: Term(term),
            tombstone: flags & 1 != 0,
            sealed: (flags & 2 != 0).then_some(sealed),
            lac,
            lafr,
            flushed,
            attributes,
        })
    }
}
