//! The bytes of a file of the disk cache: a page that says what it is, then extents, each a page-aligned run of blocks of one
//! ledger that came together. Blocks are kept as they lie in the object, so that the object's own checksums hold for them: what is
//! here only tells where they lie. The table of bytes is in the crate's `README.md`.
//!
//! Nothing is ever changed in place and nothing is synced: what a crash left half is either no extent, or one whose blocks do not
//! check, and costs a request.

use crate::format::{u32_at, u64_at};
use crate::key::AttemptId;
use crate::state::PartId;
use bytes::Bytes;
use geminga_common::checksum::{Crc32c, crc32c};
use geminga_common::disk::{ALIGN, AlignedBuf};

/// Version of the format that is written.
const VERSION: u16 = 1;
/// Bytes before the first extent, and those by which an extent's place is found again.
pub(super) const PAGE: usize = ALIGN;
/// Bytes of an extent beyond which it takes no further block.
const EXTENT_BYTES: usize = 4 << 20;
/// Number of the index of an object among its blocks.
pub(crate) const INDEX: u32 = u32::MAX;

const FILE_MAGIC: [u8; 8] = *b"GMBLOCKS";
const EXTENT_MAGIC: [u8; 4] = *b"GMEX";
const FIXED: usize = 32;
const ROW: usize = 8;
/// Most blocks of an extent: its head fits into a page.
const ROWS_MAX: usize = (PAGE - FIXED) / ROW;

/// What an extent holds, as its head tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Of which ledger in which object.
    pub(super) part: PartId,
    /// Block, where in the extent it begins, its bytes.
    pub(super) blocks: Vec<(u32, u32, u32)>,
    /// Bytes of the extent, a multiple of [`PAGE`].
    pub(super) bytes: u32,
}

/// The first page of a file.
pub(super) fn head() -> AlignedBuf {
    let mut page = AlignedBuf::zeroed(PAGE);
    let out = page.as_mut_slice();
    out[..8].copy_from_slice(&FILE_MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c(&out[..12]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    page
}

/// Whether a file that begins so can be read here.
pub(super) fn is_known(page: &[u8]) -> bool {
    page.get(..16) == head().as_slice().get(..16)
}

/// So many of these blocks, from the first on, make the next extent.
pub(super) fn taken(blocks: &[(u32, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = |(nth, (_, block)): &(usize, &(u32, Bytes))| {
        bytes += block.len();
        *nth == 0 || (*nth < ROWS_MAX && bytes <= EXTENT_BYTES)
    };
    blocks.iter().enumerate().take_while(fits).count()
}

/// An extent of these blocks, which [`taken`] has counted, and what its head tells.
pub(super) fn seal(part: PartId, blocks: &[(u32, Bytes)]) -> (AlignedBuf, Extent) {
    let begin = FIXED + ROW * blocks.len();
    let bytes = begin + blocks.iter().map(|(_, block)| block.len()).sum::<usize>();
    let mut buffer = AlignedBuf::zeroed(bytes);
    let whole = buffer.len() as u32;
    let out = buffer.as_mut_slice();
    out[..4].copy_from_slice(&EXTENT_MAGIC);
    out[4..8].copy_from_slice(&(blocks.len() as u32).to_le_bytes());
    out[8..16].copy_from_slice(&part.0.0.to_le_bytes());
    out[16..24].copy_from_slice(&part.1.to_le_bytes());
    out[24..28].copy_from_slice(&whole.to_le_bytes());
    let (mut row, mut at, mut told) = (FIXED, begin, Vec::with_capacity(blocks.len()));
    for (nth, block) in blocks {
        out[row..row + 4].copy_from_slice(&nth.to_le_bytes());
        out[row + 4..row + 8].copy_from_slice(&(block.len() as u32).to_le_bytes());
        out[at..at + block.len()].copy_from_slice(block);
        told.push((*nth, at as u32, block.len() as u32));
        (row, at) = (row + ROW, at + block.len());
    }
    let crc = checksum(&out[..begin]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    (buffer, Extent { part, blocks: told, bytes: whole })
}

/// The extent whose first page this is; `None` where none begins, or none that was written whole.
pub(super) fn open(page: &[u8]) -> Option<Extent> {
    if page.len() < FIXED || page[..4] != EXTENT_MAGIC {
        return None;
    }
    let (count, whole) = (u32_at(page, 4) as usize, u32_at(page, 24));
    let begin = FIXED + ROW * count;
    // A damaged count is found by the checksum; it must not be followed before.
    let told = count <= ROWS_MAX && begin <= page.len() && u32_at(page, 28) == checksum(&page[..begin]);
    if !told || count == 0 || !whole.is_multiple_of(PAGE as u32) {
        return None;
    }
    let (mut at, mut blocks) = (begin as u32, Vec::with_capacity(count));
    for row in page[FIXED..begin].chunks_exact(ROW) {
        let (nth, length) = (u32_at(row, 0), u32_at(row, 4));
        blocks.push((nth, at, length));
        at = at.checked_add(length).filter(|end| *end <= whole)?;
    }
    Some(Extent { part: PartId(AttemptId(u64_at(page, 8)), u64_at(page, 16)), blocks, bytes: whole })
}

/// Of a head without the four bytes that hold it.
fn checksum(head: &[u8]) -> u32 {
    Crc32c::new().update(&head[..28]).update(&head[FIXED..]).value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PART: PartId = PartId(AttemptId(0x0102_0304_0506_0708), 0x11_2233);

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let page = head();
        let page = page.as_slice();
        assert_eq!((&page[..8], &page[8..12], page.len()), (&b"GMBLOCKS"[..], &[1, 0, 0, 0][..], 4096));
        assert_eq!(page[12..16], crc32c(&page[..12]).to_le_bytes());
        let blocks = [(7, Bytes::from_static(b"seven")), (INDEX, Bytes::from_static(b"index"))];
        let (buffer, extent) = seal(PART, &blocks);
        let told = buffer.as_slice();
        assert_eq!(told[..8], *b"GMEX\x02\0\0\0");
        assert_eq!(told[8..24], *b"\x08\x07\x06\x05\x04\x03\x02\x01\x33\x22\x11\0\0\0\0\0");
        assert_eq!(told[24..28], 4096_u32.to_le_bytes());
        assert_eq!(told[28..32], [6, 27, 10, 144]);
        assert_eq!(told[32..48], *b"\x07\0\0\0\x05\0\0\0\xff\xff\xff\xff\x05\0\0\0");
        assert_eq!(told[48..58], *b"sevenindex");
        assert_eq!((told.len(), told[58..].iter().all(|byte| *byte == 0)), (4096, true));
        assert_eq!(open(told), Some(extent));
    }

    #[test]
    fn files_of_other_versions_are_not_read() {
        let mut newer = head();
        newer.as_mut_slice()[8] = 2;
        let crc = crc32c(&newer.as_slice()[..12]);
        newer.as_mut_slice()[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            (is_known(head().as_slice()), is_known(newer.as_slice()), is_known(b"")),
            (true, false, false)
        );
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_found_again(lengths in prop::collection::vec(0_usize..9000, 1..1200)) {
            let blocks: Vec<_> = (0..).zip(lengths).map(|(nth, length)| (nth, Bytes::from(vec![nth as u8; length]))).collect();
            let mut left = &blocks[..];
            while !left.is_empty() {
                let (now, later) = left.split_at(taken(left));
                let (buffer, extent) = seal(PART, now);
                let bytes = buffer.as_slice();
                prop_assert_eq!(open(&bytes[..PAGE]), Some(extent.clone()));
                prop_assert_eq!(extent.bytes as usize, bytes.len());
                for ((nth, at, length), (block, content)) in extent.blocks.iter().zip(now) {
                    prop_assert_eq!((nth, &bytes[*at as usize..][..*length as usize]), (block, &content[..]));
                }
                left = later;
            }
        }

        #[test]
        fn a_damaged_head_is_none(byte in 0_usize..48, bit in 0_u8..8) {
            let blocks = [(7, Bytes::from_static(b"seven")), (8, Bytes::from_static(b"eight"))];
            let (mut buffer, _) = seal(PART, &blocks);
            buffer.as_mut_slice()[byte] ^= 1 << bit;
            prop_assert_eq!(open(&buffer.as_slice()[..PAGE]), None);
        }
    }
}
