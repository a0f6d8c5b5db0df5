//! The process's allocator: when freed memory goes back to the kernel, and the size of its pages.
//!
//! Bytes of messages come from it and go back to it by the tens of megabytes: what clients send lies in it until a flush. Memory that is
//! given back to the kernel in between is faulted in again, page by page and zeroed, within the same second. The figures are in the
//! broker's README.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3; a test holds it against the value that is documented.
const PURGE_DELAY: c_int = 15;
/// Freed memory goes back to the kernel after so long without use, in ms: longer than a busy server takes from one flush to the next, and
/// not so long that what one kind of load has freed is there still under the next.
const KEPT_MS: c_long = 2_500;

/// Sets the allocator up. The first thing a process does; again changes nothing.
pub fn set_up() {
    small_pages();
    keep_freed(KEPT_MS);
}

/// The allocator asks for pages of 2 MiB, of which an idle server fills a tenth: without them it takes 17 MB instead of 28, after a load a
/// third less, and no more CPU for a message.
fn small_pages() {
    #[cfg(target_os = "linux")]
    // Where the kernel has no such switch it has no such pages either, or the memory is the price.
    let _costs_memory_only = rustix::thread::disable_transparent_huge_pages(true);
}

#[expect(unsafe_code, reason = "no library wraps the allocator's options")]
fn keep_freed(ms: c_long) {
    // SAFETY: stores a number in a table of the allocator, with an atomic write, whatever other threads do.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, ms) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "no library wraps the allocator's options")]
    fn kept() -> c_long {
        // SAFETY: reads a number from the same table.
        unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) }
    }

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // A second is what mimalloc 3 documents for it, and for no other option.
        assert_eq!(kept(), 1000, "the allocator numbers its options anew: look the purge delay up");
        set_up();
        assert_eq!(kept(), KEPT_MS);
    }
}
