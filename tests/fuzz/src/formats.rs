//! The bookie's bytes on disk, each format by itself.
//!
//! Held to: no panic, allocation in proportion to the bytes, and what was read is written again to the same bytes.

use crate::alloc::bounded;
use geminga_bookie::fuzz;

/// Formats; the first byte of the input chooses one.
pub const KINDS: u8 = 6;

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    bounded((64 << 10) + 128 * data.len(), || match kind % KINDS {
        0 => fuzz::journal(bytes),
        1 => fuzz::block(bytes),
        2 => fuzz::footer(bytes),
        3 => fuzz::row(bytes),
        4 => fuzz::identity(bytes),
        _ => fuzz::segment_row(bytes),
    });
}
