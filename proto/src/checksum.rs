//! CRC32C as it guards a message on the wire and at rest.
//!
//! A thin name over `crc-fast`, which picks the CPU's instructions at run time: the rest of the system says what it means
//! (the checksum of these bytes) and the choice of library stays here.

/// CRC32C (Castagnoli, iSCSI) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn published_vectors() {
        // The check value of the CRC catalogue and three vectors of RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46DD_794E);
        assert_eq!(crc32c(b""), 0);
    }
}
