//! The allocator of every target: it counts, and it ends the process when one allocation is larger than the target allows.
//!
//! Why not libFuzzer's own limit: that one is a hook of the sanitizers, which the stable toolchain does not have. Ending the
//! process is what makes libFuzzer keep the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Largest single allocation allowed now, in bytes.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);

/// Runs `body` with no single allocation above `limit` bytes, and all of them together never above eight times that.
///
/// # Panics
/// When they are.
pub fn bounded<T>(limit: usize, body: impl FnOnce() -> T) -> T {
    LIMIT.store(limit, Relaxed);
    let before = start_peak();
    let out = body();
    LIMIT.store(usize::MAX, Relaxed);
    let took = peak() - before;
    assert!(took <= limit.saturating_mul(8), "{took} bytes allocated at once, in pieces of {limit} at most");
    out
}

/// Bytes allocated now.
#[must_use]
pub fn live() -> usize {
    LIVE.load(Relaxed)
}

/// Starts measuring the peak anew and answers the bytes allocated now.
pub fn start_peak() -> usize {
    let now = live();
    PEAK.store(now, Relaxed);
    now
}

/// Most bytes allocated at once since [`start_peak`].
#[must_use]
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

fn took(size: usize) {
    if size > LIMIT.load(Relaxed) && !ENDING.swap(true, Relaxed) {
        eprintln!("allocation of {size} bytes, {} are allowed", LIMIT.load(Relaxed));
        std::process::abort();
    }
    let now = LIVE.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
}

// The one unsafe block of this package: it only counts and passes on what the system's allocator is documented to take.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        took(new_size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(ptr, layout) }
    }
}
