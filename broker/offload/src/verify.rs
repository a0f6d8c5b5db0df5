//! Reading an object back: whole, before bookie copies may go for it.

use crate::blob::{BlobError, Blobs};
use crate::format::block;
use crate::format::footer::{Footer, Row, Trailer};
use crate::format::{FormatError, HEADER_LEN, TRAILER_LEN, check_header};
use crate::writer::{Closed, Shape};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{EntryId, LedgerId};
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

/// Reads the index of an object whose shape is known: one request.
///
/// # Errors
/// The store does not answer, or the object is damaged or another one.
pub async fn footer(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    shape: &Shape,
) -> Result<Footer, ObjectError> {
    let tail = blobs.range(key, shape.footer_offset..shape.size).await?;
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let trailer = Trailer::open(&tail).map_err(damaged)?;
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

/// Reads the index of an object of which only its size is known, and its shape: two requests.
///
/// # Errors
/// The store does not answer, or the object is damaged.
pub async fn discover(blobs: &dyn Blobs, key: &str, size: u64) -> Result<(Footer, Shape), ObjectError> {
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let from = size.checked_sub(TRAILER_LEN as u64).ok_or_else(|| other("less than a trailer"))?;
    let trailer = Trailer::open(&blobs.range(key, from..size).await?).map_err(damaged)?;
    if trailer.object_length() != size {
        return Err(other("its size"));
    }
    let shape = Shape { size, footer_offset: trailer.footer_offset, footer_crc: trailer.footer_crc };
    let footer = footer(blobs, key, trailer.ledger, &shape).await?;
    Ok((footer, shape))
}

/// Looks at an object's size and index, and holds them against what the ledger's record says: two requests.
///
/// # Errors
/// It is not there, or not as it was written.
pub async fn ends(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    shape: &Shape,
) -> Result<Footer, ObjectError> {
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    if blobs.size(key).await? != shape.size {
        return Err(other("its size"));
    }
    let footer = footer(blobs, key, ledger, shape).await?;
    if (footer.entries, footer.length) != (closed.entries, closed.length) {
        return Err(other("its entries"));
    }
    Ok(footer)
}

/// Reads a whole object back and holds it against what the ledger's record says.
///
/// # Errors
/// Whatever is not as it was written.
pub async fn whole(
    blobs: &dyn Blobs,
    key: &str,
    ledger: LedgerId,
    closed: Closed,
    shape: &Shape,
) -> Result<(), ObjectError> {
    let damaged = |error| ObjectError::Format { key: key.to_owned(), error };
    let other = |what| ObjectError::Other { key: key.to_owned(), what };
    let footer = ends(blobs, key, ledger, closed, shape).await?;
    check_header(&blobs.range(key, 0..HEADER_LEN as u64).await?).map_err(damaged)?;
    let (mut entries, mut length) = (0, 0);
    for run in runs(&footer.rows, RUN_BYTES) {
        let rows = &footer.rows[run];
        let span = span(rows);
        let bytes = blobs.range(key, span.clone()).await?;
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
