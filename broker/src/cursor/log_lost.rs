//! A cursor log that lost something, and the loss was accepted: the only copy of it went.
//!
//! What is left is a state that was true once if only the end of the log is gone; every subscription in it goes on from there, and gets some
//! messages again. A log with a hole, or without the end of the snapshot that it begins with, tells no state: the subscriptions that are
//! left by name begin at the earliest message that their topic still has. Either way there may have been subscriptions of which nothing
//! is left. For them every topic of the bundle gets the subscription `lost-cursors` at its earliest message: it keeps what they have not
//! acknowledged, and while it is there a durable subscription that is made begins where it stands. Nothing is skipped, much may come again.
//!
//! All of it follows from what is stored, so it is the same at each opening until the log's next ledger makes it durable.

use super::log::Deps;
use super::log_state::Cursors;
use super::record::{self, Cursor, CursorId, CursorImage, Record};
use super::state::Acked;
use crate::managed_ledger::record as topic_record;
use crate::topic::LOST_CURSORS;
use geminga_bookie_client::ledgers::ReadError;
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, LedgerId, Position, TopicId};
use geminga_common::metadata::MetaError;
use geminga_common::names::{Bundle, SubscriptionName};
use std::collections::BTreeMap;

const PAGE: usize = 256;
const READ_BYTES_MAX: usize = 4 << 20;

/// The earliest there is: every topic's floor settles at its own first message.
fn earliest() -> Acked {
    Acked::below(Position::new(LedgerId(0), EntryId(0)))
}

/// Names that are left, from whatever entries are.
#[derive(Default)]
pub(super) struct Salvage {
    cursors: BTreeMap<CursorId, Cursor>,
    next_id: u64,
}

impl Salvage {
    /// Takes an entry's payload; one that does not make sense tells nothing.
    fn entry(&mut self, payload: &[u8]) {
        for record in record::decode(payload).unwrap_or_default() {
            match record {
                Record::Create(cursor) | Record::State(cursor) => {
                    self.next_id = self.next_id.max(cursor.id.0.saturating_add(1));
                    self.cursors.insert(cursor.id, *cursor);
                }
                Record::Delete(id) => drop(self.cursors.remove(&id)),
                Record::DeleteTopic(topic) => self.cursors.retain(|_, cursor| cursor.topic != topic),
                Record::Properties(id, properties) => {
                    if let Some(cursor) = self.cursors.get_mut(&id) {
                        cursor.image.properties = properties;
                    }
                }
                // Whoever it speaks of, its number is taken.
                Record::Delta(id, _) | Record::Reset(id, _) => {
                    self.next_id = self.next_id.max(id.0.saturating_add(1));
                }
                Record::SnapshotBegin | Record::SnapshotEnd(_) => {}
            }
        }
    }

    /// All of them, at the earliest; of two with one name the later.
    fn finish(self) -> Cursors {
        let mut by_name: BTreeMap<(TopicId, SubscriptionName), Cursor> = BTreeMap::new();
        for (_, cursor) in self.cursors {
            by_name.insert((cursor.topic, cursor.subscription.clone()), cursor);
        }
        let mut cursors = Cursors::starting_at(self.next_id);
        for mut cursor in by_name.into_values() {
            cursor.image.acked = earliest();
            cursor.image.ack_properties.clear();
            // Numbers and names are each there once.
            let _taken = cursors.apply(&Record::Create(Box::new(cursor)));
        }
        cursors
    }
}

/// Reads what is left, passing what is lost.
pub(super) async fn salvage(deps: &Deps, ledgers: &[ClosedLedger]) -> Result<Cursors, (LedgerId, ReadError)> {
    let mut salvage = Salvage::default();
    for ledger in ledgers {
        let Some(last) = ledger.last else { continue };
        let view = ledger.view();
        let mut next = EntryId(0);
        while next <= last {
            match deps.ledgers.read(&view, next, last, READ_BYTES_MAX, ReadClass::CatchUp).await {
                Ok(entries) => {
                    for entry in entries {
                        salvage.entry(&entry.payload);
                        next = entry.id.next();
                    }
                }
                Err(ReadError::Lost(ids)) => {
                    tracing::warn!(
                        code = %Code::LOST_FOR_GOOD, ledger = %ledger.id, first = %ids.first, last = %ids.last,
                        "entries of a cursor log are lost for good: its subscriptions begin at the earliest message again"
                    );
                    next = ids.last.next();
                }
                Err(error) => return Err((ledger.id, error)),
            }
        }
    }
    Ok(salvage.finish())
}

/// Gives every topic of the bundle the subscription that keeps what it has.
pub(super) async fn keep_all(deps: &Deps, bundle: &Bundle, cursors: &mut Cursors) -> Result<(), MetaError> {
    let Ok(name) = SubscriptionName::parse(LOST_CURSORS) else { return Ok(()) };
    let mut topics = 0_u64;
    for topic in topics_of(deps, bundle).await? {
        if cursors.find(topic, &name).is_some() {
            continue;
        }
        let image = CursorImage {
            acked: earliest(),
            ack_properties: Vec::new(),
            properties: BTreeMap::new(),
            created_ms: deps.clock.wall_ms(),
            replicated: false,
        };
        let cursor = Cursor { id: cursors.free_id(), topic, subscription: name.clone(), image };
        if cursors.apply(&Record::Create(Box::new(cursor))).is_ok() {
            topics += 1;
        }
    }
    tracing::warn!(
        code = %Code::LOST_FOR_GOOD, %bundle, topics,
        "the cursor log of a bundle may have lost subscriptions: `{LOST_CURSORS}` keeps all messages of its topics, and new \
         subscriptions begin there; delete it on each topic once all subscribers are back"
    );
    Ok(())
}

async fn topics_of(deps: &Deps, bundle: &Bundle) -> Result<Vec<TopicId>, MetaError> {
    let range = deps.keys.topics_of_bundle(bundle);
    let (mut after, mut found) = (range.after.clone(), Vec::new());
    loop {
        let page = deps.metadata.list(&range.prefix, Some(&after), PAGE).await?;
        let inside = page.iter().take_while(|record| range.contains(record));
        let id = |value: &[u8]| topic_record::decode(value).ok().map(|(state, _)| state.topic_id);
        found.extend(inside.filter_map(|record| id(&record.value)));
        match page.last() {
            Some(last) if page.len() == PAGE && range.contains(last) => after.clone_from(&last.key),
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Packer;
    use super::super::state::Delta;
    use super::*;

    fn cursor(id: u64, topic: u64, name: &str, floor: u64) -> Box<Cursor> {
        let image = CursorImage {
            acked: Acked::below(Position::new(LedgerId(5), EntryId(floor))),
            ack_properties: vec![("n".to_owned(), 1)],
            properties: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            created_ms: 3,
            replicated: false,
        };
        let subscription = SubscriptionName::parse(name).unwrap();
        Box::new(Cursor { id: CursorId(id), topic: TopicId(topic), subscription, image })
    }

    fn take(salvage: &mut Salvage, records: &[Record]) {
        let mut packer = Packer::default();
        records.iter().for_each(|record| packer.push(record));
        packer.finish().iter().for_each(|payload| salvage.entry(payload));
    }

    #[test]
    fn every_name_that_is_left_begins_at_the_earliest() {
        let mut salvage = Salvage::default();
        // The beginning of the snapshot is gone, and who was made where the hole is.
        take(&mut salvage, &[Record::State(cursor(2, 1, "a", 40)), Record::State(cursor(3, 1, "b", 9))]);
        let floor = Position::new(LedgerId(5), EntryId(77));
        let delta = Delta { floor, holes: Default::default(), batches: Vec::new(), ack_properties: None };
        take(&mut salvage, &[Record::Delta(CursorId(90), delta), Record::Delete(CursorId(3))]);
        // Its deletion was lost, and it was made again.
        take(&mut salvage, &[Record::Create(cursor(4, 1, "a", 50)), Record::Create(cursor(5, 2, "a", 1))]);
        salvage.entry(b"not an entry");
        let cursors = salvage.finish();
        let left = cursors.of_topic(TopicId(1));
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!((left[0].0.as_str(), left[0].1), ("a", CursorId(4)));
        assert_eq!((&left[0].2.acked, left[0].2.properties["k"].as_str()), (&earliest(), "v"));
        assert_eq!(cursors.of_topic(TopicId(2)).len(), 1);
        assert_eq!(cursors.free_id(), CursorId(91), "no number is given again");
    }
}
