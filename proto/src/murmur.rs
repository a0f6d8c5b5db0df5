//! Murmur3 (x86, 32 bits, seed 0): the hash that maps a message key to a partition and to a Key_Shared slot.
//!
//! Clients compute the same value on their side, so it may never change. Pulsar drops the sign bit; [`key_hash`] is that form.

const C1: u32 = 0xcc9e_2d51;
const C2: u32 = 0x1b87_3593;

fn scramble(word: u32) -> u32 {
    word.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2)
}

/// The plain 32-bit hash with seed 0.
#[must_use]
pub fn murmur3_32(bytes: &[u8]) -> u32 {
    let mut hash = 0u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        hash ^= scramble(u32::from_le_bytes(*word));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        let mut last = [0u8; 4];
        last[..tail.len()].copy_from_slice(tail);
        hash ^= scramble(u32::from_le_bytes(last));
    }
    // The algorithm folds in the length modulo 2^32.
    hash ^= bytes.len() as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// Pulsar's hash of a key: Murmur3 without the sign bit, so 0 to 2^31-1.
#[must_use]
pub fn key_hash(key: &[u8]) -> u32 {
    murmur3_32(key) & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::{key_hash, murmur3_32};

    #[test]
    fn published_vectors() {
        // Widely published vectors of MurmurHash3_x86_32, seed 0: every tail length, zero words, text.
        let vectors: [(&[u8], u32); 13] = [
            (b"", 0),
            (&[0xff; 4], 0x7629_3B50),
            (&[0x21, 0x43, 0x65, 0x87], 0xF55B_516B),
            (&[0x21, 0x43, 0x65], 0x7E4A_8634),
            (&[0x21, 0x43], 0xA0F7_B07A),
            (&[0x21], 0x7266_1CF4),
            (&[0; 4], 0x2362_F9DE),
            (&[0; 3], 0x85F0_B427),
            (&[0; 2], 0x30F4_C306),
            (&[0; 1], 0x514E_28B7),
            (b"test", 0xba6b_d213),
            (b"Hello, world!", 0xc036_3e43),
            (b"The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
        ];
        for (bytes, expected) in vectors {
            assert_eq!(murmur3_32(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn the_key_hash_has_no_sign_bit() {
        assert_eq!(key_hash(b"test"), 0x3a6b_d213);
        assert_eq!(key_hash(&[0xff; 4]), 0x7629_3B50);
    }
}
