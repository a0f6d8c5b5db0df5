//! Values shared between states, with their hash: most of a state is its predecessor's, and only what changed is hashed again.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

/// A plain multiplicative hash: fast, the same in every run.
#[derive(Clone, Copy, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let x = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^ (x >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(25) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

pub(super) fn hash_of(value: &impl Hash) -> u64 {
    let mut mix = Mix::default();
    value.hash(&mut mix);
    mix.finish()
}

/// A value and its hash.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Kept<T> {
    pub(super) hash: u64,
    value: T,
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Hash for Kept<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

pub(super) fn keep<T: Hash>(value: T) -> Rc<Kept<T>> {
    Rc::new(Kept { hash: hash_of(&value), value })
}
