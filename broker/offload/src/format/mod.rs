//! The object format: one immutable, self-describing object for each closed ledger. This folder owns it; the table of bytes is
//! in the crate's README.
//!
//! An object is `header, block…, footer, trailer`. Nothing before the footer is needed to find the footer: its place is in the
//! trailer, which is the last [`TRAILER_LEN`] bytes. Every part carries its own checksum over its own place, so that a part that
//! was cut, moved or mixed up shows. Numbers are little endian. A version this build does not know is refused, never guessed at.
//!
//! | file | thought |
//! |---|---|
//! | [`block`] | entries in a block, compressed or not |
//! | [`footer`] | the index of blocks, what the ledger was, the trailer |
//! | [`attributes`] | who the ledger belongs to |
//! | [`directory`] | what an object holds that is made of several ledgers |

pub mod attributes;
pub mod block;
pub mod directory;
pub mod footer;
#[cfg(test)]
mod tests;

use geminga_common::checksum::crc32c;

/// Version of the format that is written.
pub const VERSION: u16 = 1;
/// Bytes before the first block.
pub const HEADER_LEN: usize = 16;
/// Bytes of the fixed header that each entry has; what they mean is the ledger protocol's business.
pub const ENTRY_HEADER_LEN: usize = 32;

pub use footer::TRAILER_LEN;

const MAGIC: [u8; 8] = *b"GMOBJECT";

/// An object, or a part of one, that cannot be taken as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as this part of an object does.
    #[error("not {0} of an offloaded ledger")]
    Magic(&'static str),
    /// Written by a newer version.
    #[error("object format version {0} is not known")]
    Version(u16),
    /// Its checksum does not hold.
    #[error("checksum of {0} does not hold")]
    Checksum(&'static str),
    /// Shorter than it says it is, or longer.
    #[error("length of {0} is not what it says")]
    Length(&'static str),
    /// Compressed in a way this build does not know, or damaged before it was checksummed.
    #[error("block does not decompress")]
    Compression,
    /// Parts do not fit together.
    #[error("object is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// The bytes every object begins with.
#[must_use]
pub fn header() -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c(&out[..12]);
    out[12..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks the bytes an object begins with.
///
/// # Errors
/// It is no object, a newer one, or damaged.
pub fn check_header(bytes: &[u8]) -> Result<(), FormatError> {
    let Some(head) = bytes.get(..HEADER_LEN) else { return Err(FormatError::Length("the header")) };
    if head[..8] != MAGIC {
        return Err(FormatError::Magic("the header"));
    }
    if u32_at(head, 12) != crc32c(&head[..12]) {
        return Err(FormatError::Checksum("the header"));
    }
    match u16::from_le_bytes([head[8], head[9]]) {
        VERSION if head[10..12] == [0; 2] => Ok(()),
        VERSION => Err(FormatError::Inconsistent("reserved bytes of the header are not 0")),
        other => Err(FormatError::Version(other)),
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
