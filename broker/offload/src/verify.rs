//! Reading an object back: whole, before bookie copies may go for it.

use crate::blob::{BlobError, Blobs};
use crate::format::directory::{self, Directory, End};
use crate::format::footer::{Footer, Row, Trailer};
use crate::format::{FormatError, HEADER_LEN, TRAILER_LEN, block, check_header};
use crate::key::Named;
use crate::ranges::{Ranges, Stretches};
use crate::state::{ObjectRef, Part};
use crate::writer::{Closed, Shape};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{EntryId, LedgerId, TopicId};
use geminga_common::lane::Stopped;
use std::ops::Range;

/// Bytes of one request while an object is read whole.
pub(crate) const RUN_BYTES: u64 = 8 << 20;

/// Why an object is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    /// The store.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Its bytes.
    #[error("object {key} is damaged: {error}")]
    Format {
        /// The object.
        key: String,
        /// What is wrong.
        error: FormatError,
    },
    /// It is a whole object, but not the one that belongs here.
    #[error("object {key} holds something else: {what}")]
    Other {
        /// The object.
        key: String,
        /// What differs.
        what: &'static str,
    },
    /// It was not read: the process stops.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Coded for ObjectError {
    fn code(&self) -> Code {
        match self {
            ObjectError::Blob(error) => error.code(),
            ObjectError::Format { error: FormatError::Version(_), .. } => Code::FORMAT_TOO_NEW,
            ObjectError::Stopped(_) => Code::SHUTTING_DOWN,
            ObjectError::Format { .. } | ObjectError::Other { .. } => Code::OBJECT_DAMAGED,
        }
    }
}

/// Reads the index of what an object holds of a ledger: one request.
///
/// # Errors
/// The store does not answer, or the object is damaged or another one.
pub async fn footer(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    object: &ObjectRef,
) -> Result<Footer, ObjectError> {
    footer_from(&blobs, key, ledger, object).await
}

async fn footer_from(
    ranges: &impl Ranges,
    key: &str,
    ledger: LedgerId,
    object: &ObjectRef,
) -> Result<Footer, ObjectError> {
    let (shape, base) = (&object.shape, object.base());
    let tail = ranges.read(key, base + shape.footer_offset..base + shape.size).await?;
    footer_of(key, ledger, shape, &tail)
}

/// The index at the end of an object, or of its part, whose bytes from there on are at hand.
pub(crate) fn footer_of(
    key: &str,
    ledger: LedgerId,
    shape: &Shape,
    tail: &[u8],
) -> Result<Footer, ObjectError> {
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let trailer = Trailer::open(tail).map_err(damaged)?;
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    if trailer.object_length() != shape.size || trailer.footer_offset != shape.footer_offset {
        return Err(other("its size"));
    }
    if trailer.footer_crc != shape.footer_crc {
        return Err(other("its checksum"));
    }
    if trailer.ledger != ledger {
        return Err(other("its ledger"));
    }
    Footer::open(&tail[..tail.len() - TRAILER_LEN], &trailer).map_err(damaged)
}

/// What an object holds of which only name and size are known: its ledgers, each where it lies. One request, two where there are
/// several ledgers. Their indexes are not looked at.
///
/// # Errors
/// The store does not answer, or the object is damaged.
pub async fn discover(
    blobs: &dyn Blobs,
    key: &str,
    size: u64,
    named: &Named,
) -> Result<Vec<(LedgerId, ObjectRef)>, ObjectError> {
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let from = size.checked_sub(TRAILER_LEN as u64).ok_or_else(|| other("less than a trailer"))?;
    let last = blobs.range(key, from..size).await?;
    let (attempt, begun_ms) = (named.attempt, named.begun_ms);
    let Some(end) = End::open(&last).map_err(damaged)? else {
        let trailer = Trailer::open(&last).map_err(damaged)?;
        if trailer.object_length() != size {
            return Err(other("its size"));
        }
        let shape = Shape { size, footer_offset: trailer.footer_offset, footer_crc: trailer.footer_crc };
        return Ok(vec![(trailer.ledger, ObjectRef { attempt, begun_ms, shape, part: None })]);
    };
    if end.object_length() != size {
        return Err(other("its size"));
    }
    if end.first != named.ledger {
        return Err(other("other ledgers than its name says"));
    }
    let directory = Directory::open(&blobs.range(key, end.offset..from).await?, &end).map_err(damaged)?;
    let place = |row: &directory::Row| {
        let part = Some(Part { first: end.first, offset: row.offset, whole: size });
        (row.ledger, ObjectRef { attempt, begun_ms, shape: row.shape, part })
    };
    Ok(directory.rows.iter().map(place).collect())
}

/// Looks at an object's size and the ledger's index, and holds them against what the ledger's record says: two requests.
///
/// # Errors
/// It is not there, or not as it was written.
pub async fn ends(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    object: &ObjectRef,
) -> Result<Footer, ObjectError> {
    sized(blobs, key, object).await?;
    index(&blobs, key, ledger, closed, object).await
}

async fn sized(blobs: &dyn Blobs, key: &str, object: &ObjectRef) -> Result<(), ObjectError> {
    let good = blobs.size(key).await? == object.whole();
    if good { Ok(()) } else { Err(ObjectError::Other { key: key.to_owned(), what: "its size" }) }
}

async fn index(
    ranges: &impl Ranges,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    object: &ObjectRef,
) -> Result<Footer, ObjectError> {
    let footer = footer_from(ranges, key, ledger, object).await?;
    if (footer.entries, footer.length) != (closed.entries, closed.length) {
        return Err(ObjectError::Other { key: key.to_owned(), what: "its entries" });
    }
    Ok(footer)
}

/// Reads all that an object holds of a ledger back and holds it against what the ledger's record says.
///
/// # Errors
/// Whatever is not as it was written.
pub async fn whole(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    object: &ObjectRef,
) -> Result<(), ObjectError> {
    sized(blobs, key, object).await?;
    every_byte(&blobs, key, ledger, closed, object).await
}

/// Reads an object of several ledgers back whole, its directory as well: their bytes come in stretches, because each is small.
///
/// # Errors
/// Whatever is not as it was written.
pub async fn together(
    blobs: &dyn Blobs,
    key: &str,
    ledgers: &[(LedgerId, Closed, ObjectRef)],
) -> Result<(), ObjectError> {
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let Some((first, _, object)) = ledgers.first() else { return Err(other("no ledger")) };
    sized(blobs, key, object).await?;
    let named =
        Named { topic: TopicId(0), ledger: *first, attempt: object.attempt, begun_ms: object.begun_ms };
    let told = discover(blobs, key, object.whole(), &named).await?;
    if !told.iter().copied().eq(ledgers.iter().map(|(ledger, _, object)| (*ledger, *object))) {
        return Err(other("its directory"));
    }
    let stretches = Stretches::new(blobs, object.whole(), RUN_BYTES);
    for (ledger, closed, object) in ledgers {
        stretches.fetch(key, object.base()..object.base() + object.shape.size).await?;
        every_byte(&stretches, key, *ledger, *closed, object).await?;
    }
    Ok(())
}

async fn every_byte(
    ranges: &impl Ranges,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    object: &ObjectRef,
) -> Result<(), ObjectError> {
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let (footer, base) = (index(ranges, key, ledger, closed, object).await?, object.base());
    check_header(&ranges.read(key, base..base + HEADER_LEN as u64).await?).map_err(damaged)?;
    let (mut entries, mut length) = (0, 0);
    for run in runs(&footer.rows, RUN_BYTES) {
        let rows = &footer.rows[run];
        let span = span(rows);
        let bytes = ranges.read(key, base + span.start..base + span.end).await?;
        for row in rows {
            let at = (row.offset - span.start) as usize;
            let block = bytes.slice(at..at + row.length as usize);
            for entry in block::open_at(block, row).map_err(damaged)? {
                if entry.id != EntryId(entries) {
                    return Err(other("the order of its entries"));
                }
                entries += 1;
                length += entry.size() as u64;
            }
        }
    }
    if (entries, length) == (closed.entries, closed.length) { Ok(()) } else { Err(other("its entries")) }
}

/// The bytes that consecutive rows cover.
pub(crate) fn span(rows: &[Row]) -> Range<u64> {
    let start = rows.first().map_or(0, |row| row.offset);
    start..rows.last().map_or(start, |row| row.range().end)
}

/// Rows in runs of at most so many bytes, at least one row each.
pub(crate) fn runs(rows: &[Row], bytes_max: u64) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (nth, row) in rows.iter().enumerate() {
        match found.last_mut() {
            Some(run) if row.range().end - rows[run.start].offset <= bytes_max => run.end = nth + 1,
            _ => found.push(nth..nth + 1),
        }
    }
    found
}
