//! Where bytes of an object come from while it is checked: the store, request by request, or a stretch of it that was fetched at once
//! because much of it is asked for in small pieces.

use crate::blob::{Answer, BlobError, Blobs};
use bytes::Bytes;
use futures::FutureExt as _;
use parking_lot::Mutex;
use std::ops::Range;

/// Answers ranges of objects.
pub(crate) trait Ranges: Sync {
    /// Bytes from a range that lies within the object.
    fn read<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes>;
}

impl Ranges for &dyn Blobs {
    fn read<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.range(key, range)
    }
}

/// One object of so many bytes, read in stretches.
pub(crate) struct Stretches<'b> {
    blobs: &'b dyn Blobs,
    size: u64,
    stretch: u64,
    here: Mutex<(u64, Bytes)>,
}

impl<'b> Stretches<'b> {
    pub(crate) fn new(blobs: &'b dyn Blobs, size: u64, stretch: u64) -> Self {
        Self { blobs, size, stretch, here: Mutex::new((0, Bytes::new())) }
    }

    fn here(&self, range: &Range<u64>) -> Option<Bytes> {
        let here = self.here.lock();
        let (start, bytes) = (here.0, &here.1);
        let within = start <= range.start && range.end <= start + bytes.len() as u64;
        within.then(|| bytes.slice((range.start - start) as usize..(range.end - start) as usize))
    }

    /// Has a range here, and what lies behind it up to a whole stretch.
    pub(crate) async fn fetch(&self, key: &str, range: Range<u64>) -> Result<(), BlobError> {
        if self.here(&range).is_none() {
            let end = (range.start + self.stretch).min(self.size).max(range.end);
            let bytes = self.blobs.range(key, range.start..end).await?;
            *self.here.lock() = (range.start, bytes);
        }
        Ok(())
    }
}

impl Ranges for Stretches<'_> {
    fn read<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        match self.here(&range) {
            Some(bytes) => std::future::ready(Ok(bytes)).boxed(),
            None => self.blobs.range(key, range),
        }
    }
}
