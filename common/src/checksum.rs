//! CRC32C (Castagnoli) over several slices, by the machine's own instructions.

/// The polynomial of CRC32C, its lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// `POWERS[i][n]` is x^(8 n 256^i): what a checksum is multiplied by for n 256^i bytes that follow it.
const POWERS: [[u32; 256]; 4] = powers();

/// A running CRC32C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// The checksum of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(0)
    }

    /// Takes more bytes in.
    #[must_use]
    pub fn update(self, bytes: &[u8]) -> Self {
        let state = u64::from(!self.0);
        let mut digest = crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, state);
        digest.update(bytes);
        Self(digest.finalize() as u32)
    }

    /// Takes in `len` bytes of which the checksum is known, without a look at them. It costs as much as a pass over some 4 KiB, whatever
    /// `len` is; the library's own combination costs as much as a pass over 256 KiB.
    #[must_use]
    pub fn append(self, sum: u32, len: u32) -> Self {
        Self(self.followed_by(len) ^ sum)
    }

    /// The checksum of the `len` bytes behind those of `self`, where `both` is the checksum of all of them.
    #[must_use]
    pub fn tail_of(self, both: u32, len: u32) -> u32 {
        self.followed_by(len) ^ both
    }

    /// What these bytes contribute to the checksum when `len` more follow.
    fn followed_by(self, len: u32) -> u32 {
        let steps = len.to_le_bytes().into_iter().zip(&POWERS).filter(|(n, _)| *n != 0);
        steps.fold(self.0, |sum, (n, powers)| times(sum, powers[usize::from(n)]))
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn value(self) -> u32 {
        self.0
    }
}

/// Product of two polynomials, modulo that of the checksum.
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 32);
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}

const fn powers() -> [[u32; 256]; 4] {
    let mut out = [[ONE; 256]; 4];
    // x^8.
    let mut step = ONE >> 8;
    let mut i = 0;
    while i < 4 {
        let mut n = 1;
        while n < 256 {
            out[i][n] = times(out[i][n - 1], step);
            n += 1;
        }
        step = times(out[i][255], step);
        i += 1;
    }
    out
}

/// CRC32C of one slice.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue_holds() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn slices_add_up_to_the_whole() {
        assert_eq!(Crc32c::new().update(b"1234").update(b"").update(b"56789").value(), 0xE306_9283);
    }

    #[test]
    fn known_sums_add_up_to_the_whole() {
        let bytes: Vec<u8> = (0..200_000_u64).map(|n| (n * n / 7) as u8).collect();
        let whole = crc32c(&bytes);
        for at in [0, 1, 2, 255, 256, 257, 4096, 65_535, 65_536, 65_537, 131_071, 199_999, 200_000] {
            let (head, tail) = bytes.split_at(at);
            let head = Crc32c::new().update(head);
            let len = tail.len() as u32;
            assert_eq!(head.append(crc32c(tail), len).value(), whole, "cut at {at}");
            assert_eq!(head.tail_of(whole, len), crc32c(tail), "cut at {at}");
        }
        assert_eq!(Crc32c::new().append(0xE306_9283, 9).update(b"").value(), 0xE306_9283);
    }

    #[test]
    fn a_known_sum_moves_by_lengths_of_gigabytes() {
        // 2^32 - 1 zeros, by doubling: a sum of zeros of twice the length is that of the first half, followed by the second.
        let (mut sum, mut len) = (Crc32c::new().update(&[0]), 1_u32);
        while len < u32::MAX {
            sum = sum.append(sum.value(), len).update(&[0]);
            len = len * 2 + 1;
        }
        let parts = [1 << 31, (1 << 31) - 1].map(|len| Crc32c::new().followed_by(len));
        assert_eq!(parts, [0, 0], "nothing contributes nothing");
        let one = Crc32c::new().update(&[0]);
        assert_eq!(one.append(sum.value(), u32::MAX), sum.append(one.value(), 1), "zeros before or behind");
    }
}
