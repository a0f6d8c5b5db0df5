//! The hashes that clients and brokers agree on: Murmur3 x86 32 bit, seed 0, masked to 31 bits as Java does.
//!
//! Which consumer gets a key, and which Failover consumer is active, follows from them; they never change.

/// Points of each consumer on the Failover ring of a plain topic.
pub(super) const FAILOVER_POINTS: u32 = 100;

/// Murmur3 x86 32 bit with seed 0, masked to 31 bits.
#[must_use]
pub fn murmur3_31(data: &[u8]) -> u32 {
    const C1: u32 = 0xcc9e_2d51;
    const C2: u32 = 0x1b87_3593;
    let mix = |k: u32| k.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2);
    let mut chunks = data.chunks_exact(4);
    let mut h = 0u32;
    for chunk in &mut chunks {
        let k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        h = (h ^ mix(k)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let tail = chunks.remainder();
    if !tail.is_empty() {
        let k = tail.iter().rev().fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        h ^= mix(k);
    }
    // Like the original, the length counts modulo 2^32.
    h ^= data.len() as u32;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    (h ^ (h >> 16)) & 0x7fff_ffff
}

/// The sticky hash of a key, not yet cut to a slot: of the ordering key, else the partition key (base64-decoded where flagged),
/// else `producerName-sequenceId`; of a batch that of its first message. 31 bits.
#[must_use]
pub fn sticky_hash(key: &[u8]) -> u32 {
    murmur3_31(key)
}

/// The slot (1 to 65535) of a sticky hash where the broker spreads them. Observed on 4.2.4: the remainder is by 65535, not by
/// 65536 as for declared ranges.
#[must_use]
pub fn auto_split_slot(hash: u32) -> u16 {
    (hash % u32::from(u16::MAX)) as u16 + 1
}

/// The slot (1 to 65535) of a sticky hash where consumers declare ranges: the remainder by 65536 that clients compute, 0 counting
/// as 1.
#[must_use]
pub fn declared_slot(hash: u32) -> u16 {
    (hash as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values of MurmurHash3_x86_32 with seed 0.
    #[test]
    fn murmur_matches_the_reference() {
        assert_eq!(murmur3_31(b""), 0);
        assert_eq!(murmur3_31(b"test"), 0xba6b_d213 & 0x7fff_ffff);
        assert_eq!(murmur3_31(b"Hello, world!"), 0xc036_3e43 & 0x7fff_ffff);
        assert_eq!(murmur3_31(b"The quick brown fox jumps over the lazy dog"), 0x2e4f_f723);
    }

    #[test]
    fn slot_zero_is_not_used() {
        let edges = [0, 1, 65_534, 65_535, 65_536, 65_537, 131_070];
        assert_eq!(edges.map(auto_split_slot), [1, 2, 65_535, 1, 2, 3, 1]);
        assert_eq!(edges.map(declared_slot), [1, 1, 65_534, 65_535, 1, 1, 65_534]);
    }
}
