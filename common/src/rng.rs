//! The seam for randomness: a seeded source that is handed around. Production seeds it from the system once.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng};

/// A random source. Not for secrets.
#[derive(Debug)]
pub struct Rng(StdRng);

impl Rng {
    /// A source that repeats for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A source that nobody can repeat.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub fn from_system() -> Self {
        Self(StdRng::from_rng(&mut rand::rng()))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; 0 for bound 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of a plain remainder is below 2^-32 for the bounds used here, and determinism matters more.
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}
