//! The formats on disk, each with one owning file, magic, version and checksum. All numbers are little endian. An optional id
//! is stored as id + 1, with 0 for none.

pub(crate) mod identity;
pub(crate) mod journal;
pub(crate) mod losses;
pub(crate) mod row;
pub(crate) mod segment;
#[cfg(test)]
mod tests;

use geminga_bookie_client::entry::Entry;
use geminga_common::checksum::Crc32c;
use geminga_common::ids::{EntryId, LedgerId};

/// Takes fields off the front of a slice; every method answers `None` when there are too few bytes.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn id(&mut self) -> Option<Option<EntryId>> {
        Some(self.u64()?.checked_sub(1).map(EntryId))
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }

    pub(crate) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// The stored form of an optional id.
pub(crate) fn id_word(id: Option<EntryId>) -> u64 {
    id.map_or(0, |id| id.0 + 1)
}

/// Brings a running checksum of `buf` up to `end`, where the payload of a checked entry ends; leaves small ones for a pass with what
/// follows them.
fn sum_up_to(
    buf: &[u8],
    end: usize,
    (ledger, entry): (LedgerId, &Entry),
    (sum, summed): (&mut Crc32c, &mut usize),
) {
    if let Some(payload) = entry.payload_crc(ledger) {
        let len = entry.payload.len();
        *sum = sum.update(&buf[*summed..end - len]).append(payload, len as u32);
        *summed = end;
    }
}

/// Writes fields one behind the other into a buffer that is large enough.
pub(crate) struct Fill<'a> {
    pub(crate) buf: &'a mut [u8],
    pub(crate) at: usize,
}

impl Fill<'_> {
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.buf[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub(crate) fn u64(&mut self, word: u64) {
        self.put(&word.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, word: u32) {
        self.put(&word.to_le_bytes());
    }
}
