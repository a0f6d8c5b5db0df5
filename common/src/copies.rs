//! Counts payload bytes that are moved in user space between one socket and another, so that a test can hold the path to one
//! copy. Every place that copies payloads calls [`note`]; without the feature `test-util` it is nothing.

/// A payload's bytes were copied here.
#[inline]
pub fn note(bytes: usize) {
    #[cfg(any(test, feature = "test-util"))]
    TOTAL.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(any(test, feature = "test-util")))]
    let _ = bytes;
}

#[cfg(any(test, feature = "test-util"))]
static TOTAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Bytes copied by this process so far.
#[cfg(any(test, feature = "test-util"))]
#[must_use]
pub fn total() -> u64 {
    TOTAL.load(std::sync::atomic::Ordering::Relaxed)
}
