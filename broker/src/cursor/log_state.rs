//! The cursors of a bundle as its log tells them, and how a log is replayed. Pure.
//!
//! A log is a chain of ledgers; every ledger but the first begins with a snapshot of all cursors. [`Replay`] takes the entries
//! of all listed ledgers in order. A snapshot counts once its end is there; a crash in the middle of one leaves a part that the
//! next ledger's begin throws away, and the ledgers before it are still listed. So whatever was durable is found: old ledgers
//! are dropped only after the snapshot that repeats them is durable.

use super::codec::{DecodeError, Properties};
use super::record::{self, Cursor, CursorId, CursorImage, Packer, Record};
use bytes::Bytes;
use geminga_common::ids::TopicId;
use geminga_common::names::SubscriptionName;
use std::collections::BTreeMap;

/// Why a log cannot be replayed. Nothing of it may be used then: acks would be lost unseen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// An entry cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A record speaks of a cursor that is not there.
    #[error("the log speaks of cursor {0}, which it never made")]
    UnknownCursor(CursorId),
    /// A cursor is made twice.
    #[error("the log makes cursor {0} twice")]
    Twice(CursorId),
    /// Snapshot records where none may be, or a wrong count.
    #[error("the log has a broken snapshot")]
    Snapshot,
}

/// All cursors of a bundle.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cursors {
    cursors: BTreeMap<CursorId, Cursor>,
    names: BTreeMap<TopicId, BTreeMap<SubscriptionName, CursorId>>,
    next_id: u64,
}

impl Cursors {
    /// None, and numbers up to here are taken.
    #[must_use]
    pub(super) fn starting_at(next_id: u64) -> Self {
        Self { next_id, ..Self::default() }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cursors.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cursors.is_empty()
    }

    /// An id for a new cursor.
    #[must_use]
    pub fn free_id(&self) -> CursorId {
        CursorId(self.next_id)
    }

    /// The cursor of a subscription.
    #[must_use]
    pub fn find(&self, topic: TopicId, subscription: &SubscriptionName) -> Option<CursorId> {
        self.names.get(&topic)?.get(subscription).copied()
    }

    /// Whether a topic has cursors.
    #[must_use]
    pub fn has_topic(&self, topic: TopicId) -> bool {
        self.names.contains_key(&topic)
    }

    /// The subscriptions of a topic.
    #[must_use]
    pub fn of_topic(&self, topic: TopicId) -> Vec<(SubscriptionName, CursorId, CursorImage)> {
        let Some(names) = self.names.get(&topic) else { return Vec::new() };
        names.iter().map(|(name, id)| (name.clone(), *id, self.cursors[id].image.clone())).collect()
    }

    /// Takes a record in. Snapshot records are [`Replay`]'s.
    ///
    /// # Errors
    /// A record that cannot follow on what is there.
    pub fn apply(&mut self, record: &Record) -> Result<(), ReplayError> {
        match record {
            Record::Create(cursor) | Record::State(cursor) => self.insert(cursor)?,
            Record::Delta(id, delta) => {
                let image = self.image(*id)?;
                image.acked.apply(delta);
                if let Some(properties) = &delta.ack_properties {
                    image.ack_properties.clone_from(properties);
                }
            }
            Record::Reset(id, acked) => {
                let image = self.image(*id)?;
                image.acked = acked.clone();
                image.ack_properties.clear();
            }
            Record::Delete(id) => {
                let cursor = self.cursors.remove(id).ok_or(ReplayError::UnknownCursor(*id))?;
                if let Some(names) = self.names.get_mut(&cursor.topic) {
                    names.remove(&cursor.subscription);
                    if names.is_empty() {
                        self.names.remove(&cursor.topic);
                    }
                }
            }
            Record::DeleteTopic(topic) => {
                for id in self.names.remove(topic).into_iter().flat_map(BTreeMap::into_values) {
                    self.cursors.remove(&id);
                }
            }
            Record::Properties(id, properties) => self.image(*id)?.properties = Properties::clone(properties),
            Record::SnapshotBegin | Record::SnapshotEnd(_) => return Err(ReplayError::Snapshot),
        }
        Ok(())
    }

    /// All of it as entries: a snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Bytes> {
        let mut packer = Packer::default();
        packer.push(&Record::SnapshotBegin);
        for cursor in self.cursors.values() {
            packer.push(&Record::State(Box::new(cursor.clone())));
        }
        packer.push(&Record::SnapshotEnd(self.cursors.len() as u64));
        packer.finish()
    }

    fn insert(&mut self, cursor: &Cursor) -> Result<(), ReplayError> {
        if self.cursors.contains_key(&cursor.id) || self.find(cursor.topic, &cursor.subscription).is_some() {
            return Err(ReplayError::Twice(cursor.id));
        }
        let names = self.names.entry(cursor.topic).or_default();
        names.insert(cursor.subscription.clone(), cursor.id);
        self.cursors.insert(cursor.id, cursor.clone());
        self.next_id = self.next_id.max(cursor.id.0.saturating_add(1));
        Ok(())
    }

    fn image(&mut self, id: CursorId) -> Result<&mut CursorImage, ReplayError> {
        self.cursors.get_mut(&id).map(|cursor| &mut cursor.image).ok_or(ReplayError::UnknownCursor(id))
    }
}

/// Replays a log.
#[derive(Debug, Default)]
pub struct Replay {
    cursors: Cursors,
    /// The snapshot being read, and how many cursors it has so far.
    snapshot: Option<(Cursors, u64)>,
}

impl Replay {
    /// The next ledger of the chain begins.
    pub fn begin_ledger(&mut self) {
        self.snapshot = None; // its writer crashed: the ledgers before it hold the same
    }

    /// The next entry.
    ///
    /// # Errors
    /// The log is damaged.
    pub fn entry(&mut self, payload: &[u8]) -> Result<(), ReplayError> {
        record::decode(payload)?.iter().try_for_each(|record| self.record(record))
    }

    /// Whether it ends within a snapshot.
    pub(super) fn is_cut(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The cursors, at the end.
    #[must_use]
    pub fn finish(self) -> Cursors {
        self.cursors
    }

    fn record(&mut self, record: &Record) -> Result<(), ReplayError> {
        match (record, &mut self.snapshot) {
            (Record::SnapshotBegin, None) => self.snapshot = Some((Cursors::default(), 0)),
            (Record::SnapshotEnd(expected), Some((whole, count))) if expected == count => {
                // Ids go on from the highest ever seen: a deleted cursor's id is not given away again.
                let next_id = whole.next_id.max(self.cursors.next_id);
                self.cursors = Cursors { next_id, ..std::mem::take(whole) };
                self.snapshot = None;
            }
            (Record::State(_), Some((whole, count))) => {
                *count += 1;
                whole.apply(record)?;
            }
            (Record::Delta(..), Some((whole, _))) => whole.apply(record)?,
            (Record::State(_) | Record::SnapshotBegin | Record::SnapshotEnd(_), _) | (_, Some(_)) => {
                return Err(ReplayError::Snapshot);
            }
            (_, None) => self.cursors.apply(record)?,
        }
        Ok(())
    }
}
