//! Objects as a rebuild reads them: which ledgers one holds, whether they are whole, and where along their topic they lie. Three requests
//! for a ledger (trailer, index, last block), for several in one object two for each and two more; all bytes where they are to be checked.

use super::{Finding, Options};
use crate::managed_ledger::state::Segment;
use geminga_bookie_client::entry::Header;
use geminga_bookie_client::record::ClosedLedger;
use geminga_common::ids::{LedgerId, MessageIndex, OwnerEpoch, TopicId};
use geminga_offload::blob::{BlobError, Blobs};
use geminga_offload::format::footer::Footer;
use geminga_offload::format::{FormatError, block};
use geminga_offload::key::{self, Named};
use geminga_offload::state::{ObjectRef, Offload};
use geminga_offload::verify::{self, ObjectError};
use geminga_offload::writer::Closed;

/// A ledger in an object.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) key: String,
    /// The topic's name, where the object holds it.
    pub(super) name: Option<String>,
    pub(super) topic: TopicId,
    /// Epoch of the owner that uploaded it.
    pub(super) epoch: OwnerEpoch,
    /// The ledger as the topic record is to hold it.
    pub(super) segment: Segment,
    pub(super) object: ObjectRef,
    /// Index behind its last message.
    pub(super) end: MessageIndex,
    /// Time stamp of its last entry, ms since 1970.
    pub(super) last_stamp_ms: u64,
}

impl Found {
    pub(super) fn ledger(&self) -> LedgerId {
        self.segment.id()
    }

    fn closed(&self) -> Closed {
        Closed { entries: self.segment.entries(), length: self.segment.bytes() }
    }

    /// Whether every byte is as it was written.
    pub(super) async fn is_whole(&self, blobs: &dyn Blobs) -> Result<bool, BlobError> {
        match verify::whole(blobs, &self.key, self.ledger(), self.closed(), &self.object).await {
            Ok(()) => Ok(true),
            Err(ObjectError::Blob(error)) if !matches!(error, BlobError::Absent(_)) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// What an object in the listing turned out to be.
pub(super) enum Read {
    /// A ledger.
    Found(Box<Found>),
    /// The name is that of a ledger's object, and it is not one that can be used.
    Bad(Named, Finding),
    /// The name is no such name.
    Strange(Finding),
    /// It is gone by now.
    Gone,
}

/// Reads one object of the listing: each of its ledgers.
pub(super) async fn read(
    blobs: &dyn Blobs,
    cluster: &str,
    key: String,
    size: u64,
    options: &Options,
) -> Result<Vec<Read>, BlobError> {
    let Some(named) = key::read(cluster, &key) else {
        let why = "its name is none that this build makes";
        return Ok(vec![Read::Strange(Finding::Spare { key, size, why })]);
    };
    let ledgers = match verify::discover(blobs, &key, size, &named).await {
        Ok(ledgers) => ledgers,
        Err(error) => return Ok(vec![failed(key, named, error)?]),
    };
    let mut reads = Vec::with_capacity(ledgers.len());
    for (ledger, object) in ledgers {
        reads.push(match open(blobs, cluster, &key, (ledger, object), named, options.whole).await {
            Ok(found) => Read::Found(Box::new(found)),
            Err(error) => failed(key.clone(), Named { ledger, ..named }, error)?,
        });
    }
    Ok(reads)
}

fn failed(key: String, named: Named, error: ObjectError) -> Result<Read, BlobError> {
    Ok(match error {
        ObjectError::Blob(BlobError::Absent(_)) => Read::Gone,
        ObjectError::Blob(error) => return Err(error),
        ObjectError::Format { error: error @ FormatError::Version(_), .. } => {
            Read::Bad(named, Finding::TooNew { key, what: error.to_string() })
        }
        error => Read::Bad(named, Finding::Damaged { key, what: error.to_string() }),
    })
}

async fn open(
    blobs: &dyn Blobs,
    cluster: &str,
    key: &str,
    (ledger_id, object): (LedgerId, ObjectRef),
    named: Named,
    whole: bool,
) -> Result<Found, ObjectError> {
    let footer = verify::footer(blobs, key, ledger_id, &object).await?;
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let tells = &footer.attributes;
    // An object is named by the first of its ledgers.
    let named_by = object.part.map_or(ledger_id, |part| part.first);
    let is_named = tells.cluster == cluster
        && (tells.topic_id, named_by, tells.attempt) == (named.topic, named.ledger, named.attempt.0);
    if !is_named {
        return Err(other("another ledger than its name says"));
    }
    let ledger = ClosedLedger::decode(&tells.record).map_err(|_| other("no record of its ledger"))?;
    let holds = (ledger.id, ledger.last.map(|last| last.0 + 1), ledger.length);
    if holds != (ledger_id, Some(footer.entries), footer.length) {
        return Err(other("other entries than its ledger's record says"));
    }
    if whole {
        let closed = Closed { entries: footer.entries, length: footer.length };
        verify::whole(blobs, key, ledger_id, closed, &object).await?;
    }
    let last = last_header(blobs, key, &footer, object.base()).await?;
    let first_publish_ms = footer.rows[0].first_publish_ms;
    let segment = Segment::new(ledger, tells.first_index, first_publish_ms, tells.closed_ms);
    let mut segment = segment.ok_or_else(|| other("an empty ledger"))?;
    segment.offload = Offload::Released(object);
    Ok(Found {
        key: key.to_owned(),
        name: tells.topic.clone(),
        topic: named.topic,
        epoch: tells.owner_epoch,
        segment,
        object,
        end: MessageIndex(last.first_index.0 + u64::from(last.messages)),
        last_stamp_ms: last.timestamp_ms.max(footer.last_publish_ms),
    })
}

/// The header of the ledger's last entry.
async fn last_header(
    blobs: &dyn Blobs,
    key: &str,
    footer: &Footer,
    base: u64,
) -> Result<Header, ObjectError> {
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let row = footer.rows.last().ok_or_else(|| other("no block"))?;
    let range = row.range();
    let bytes = blobs.range(key, base + range.start..base + range.end).await?;
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let last = block::open_at(bytes, row).map_err(damaged)?.pop();
    let last = last.filter(|entry| entry.id.0 + 1 == footer.entries);
    let last = last.ok_or_else(|| other("fewer entries than its index says"))?;
    Header::decode(&last.header).map_err(|_| other("an entry whose header cannot be read"))
}
