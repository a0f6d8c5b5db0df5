//! What an object holds that is made of several ledgers: their objects one behind the other, each as it would be by itself, so that
//! every offset in one counts from its own begin; behind them the directory, and a trailer as long as that of a single ledger and
//! with a magic of its own. The topic record has all that readers need: the directory is for whoever has the bucket alone.

use super::{FormatError, HEADER_LEN, TRAILER_LEN, VERSION, u32_at, u64_at};
use crate::writer::Shape;
use bytes::{BufMut as _, Bytes, BytesMut};
use geminga_common::checksum::crc32c;
use geminga_common::ids::LedgerId;

const DIRECTORY_MAGIC: [u8; 4] = *b"GMDR";
const END_MAGIC: [u8; 8] = *b"GMPARTED";
const FIXED: usize = 16;
const ROW: usize = 40;

/// One ledger of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The ledger.
    pub ledger: LedgerId,
    /// Where its object begins.
    pub offset: u64,
    /// What identifies that.
    pub shape: Shape,
}

/// The ledgers of an object, in the order of their ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    /// At least two.
    pub rows: Vec<Row>,
}

/// What the last bytes of such an object tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Where the directory begins: all ledgers lie before it.
    pub offset: u64,
    /// Bytes of the directory.
    pub length: u64,
    /// The first ledger, which names the object.
    pub first: LedgerId,
    /// How many there are.
    pub ledgers: u32,
    /// Checksum of the directory.
    pub crc: u32,
}

impl Directory {
    /// Directory and trailer.
    ///
    /// # Panics
    /// Without a row.
    #[must_use]
    pub fn seal(&self) -> Bytes {
        let (first, last) = (self.rows[0], self.rows[self.rows.len() - 1]);
        let mut out = BytesMut::with_capacity(FIXED + ROW * self.rows.len() + TRAILER_LEN);
        out.put_slice(&DIRECTORY_MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(self.rows.len() as u32);
        out.put_u32_le(0);
        for row in &self.rows {
            for number in [row.ledger.0, row.offset, row.shape.size, row.shape.footer_offset] {
                out.put_u64_le(number);
            }
            out.put_u32_le(row.shape.footer_crc);
            out.put_u32_le(0);
        }
        let (length, crc) = (out.len() as u64, crc32c(&out));
        let start = out.len();
        out.put_slice(&END_MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(crc);
        out.put_u64_le(last.offset + last.shape.size);
        out.put_u64_le(length);
        out.put_u64_le(first.ledger.0);
        out.put_u32_le(self.rows.len() as u32);
        let end_crc = crc32c(&out[start..]);
        out.put_u32_le(end_crc);
        out.freeze()
    }

    /// Reads a directory whose place and checksum its trailer told.
    ///
    /// # Errors
    /// It is damaged, newer, or says what cannot be.
    pub fn open(bytes: &[u8], end: &End) -> Result<Self, FormatError> {
        if bytes.len() as u64 != end.length || bytes.len() < FIXED {
            return Err(FormatError::Length("the directory"));
        }
        if bytes[..4] != DIRECTORY_MAGIC {
            return Err(FormatError::Magic("the directory"));
        }
        if crc32c(bytes) != end.crc {
            return Err(FormatError::Checksum("the directory"));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let count = u32_at(bytes, 8);
        if (count as usize).checked_mul(ROW).and_then(|rows| rows.checked_add(FIXED)) != Some(bytes.len()) {
            return Err(FormatError::Length("the directory"));
        }
        let row = |at: &[u8]| Row {
            ledger: LedgerId(u64_at(at, 0)),
            offset: u64_at(at, 8),
            shape: Shape { size: u64_at(at, 16), footer_offset: u64_at(at, 24), footer_crc: u32_at(at, 32) },
        };
        let reserved = |at: &[u8]| u32_at(at, 36) == 0;
        if bytes[6..8] != [0; 2] || u32_at(bytes, 12) != 0 || !bytes[FIXED..].chunks_exact(ROW).all(reserved)
        {
            return Err(FormatError::Inconsistent("reserved bytes of the directory are not 0"));
        }
        let directory = Self { rows: bytes[FIXED..].chunks_exact(ROW).map(row).collect() };
        directory.check(end)?;
        Ok(directory)
    }

    /// Ledgers rise and fill the space before the directory without a gap.
    fn check(&self, end: &End) -> Result<(), FormatError> {
        let (mut at, mut last) = (0_u64, None);
        for row in &self.rows {
            let shape = row.shape;
            let fits = shape.footer_offset > HEADER_LEN as u64
                && shape.size.checked_sub(TRAILER_LEN as u64).is_some_and(|ends| shape.footer_offset < ends);
            if row.offset != at || last.is_some_and(|last| row.ledger <= last) || !fits {
                return Err(FormatError::Inconsistent("rows of the directory do not follow each other"));
            }
            at = at.checked_add(shape.size).ok_or(FormatError::Length("a ledger of the directory"))?;
            last = Some(row.ledger);
        }
        let names = (self.rows.first().map(|row| row.ledger), self.rows.len());
        if names != (Some(end.first), end.ledgers as usize) || names.1 < 2 || at != end.offset {
            return Err(FormatError::Inconsistent("directory and trailer disagree"));
        }
        Ok(())
    }
}

impl End {
    /// Reads the last bytes of an object; `None` where they are not those of several ledgers.
    ///
    /// # Errors
    /// They are, and damaged or newer.
    pub fn open(bytes: &[u8]) -> Result<Option<Self>, FormatError> {
        let Some(start) = bytes.len().checked_sub(TRAILER_LEN) else { return Ok(None) };
        let bytes = &bytes[start..];
        if bytes[..8] != END_MAGIC {
            return Ok(None);
        }
        if crc32c(&bytes[..TRAILER_LEN - 4]) != u32_at(bytes, TRAILER_LEN - 4) {
            return Err(FormatError::Checksum("the trailer"));
        }
        match u16::from_le_bytes([bytes[8], bytes[9]]) {
            VERSION if bytes[10..12] == [0; 2] => {}
            VERSION => return Err(FormatError::Inconsistent("reserved bytes of the trailer are not 0")),
            other => return Err(FormatError::Version(other)),
        }
        let end = Self {
            offset: u64_at(bytes, 16),
            length: u64_at(bytes, 24),
            first: LedgerId(u64_at(bytes, 32)),
            ledgers: u32_at(bytes, 40),
            crc: u32_at(bytes, 12),
        };
        match end.offset.checked_add(end.length) {
            Some(ends) if ends < u64::MAX - TRAILER_LEN as u64 => Ok(Some(end)),
            _ => Err(FormatError::Length("the directory")),
        }
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_length(&self) -> u64 {
        self.offset + self.length + TRAILER_LEN as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directory() -> Directory {
        let row = |ledger, offset, size| Row {
            ledger: LedgerId(ledger),
            offset,
            shape: Shape { size, footer_offset: size - 100, footer_crc: 0x0403_0201 },
        };
        Directory { rows: vec![row(7, 0, 300), row(9, 300, 200)] }
    }

    fn opened(bytes: &[u8]) -> Result<Option<Directory>, FormatError> {
        let Some(end) = End::open(bytes)? else { return Ok(None) };
        Directory::open(&bytes[..bytes.len() - TRAILER_LEN], &end).map(Some)
    }

    #[test]
    fn golden_bytes_never_change() {
        let bytes = directory().seal();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert_eq!(opened(&bytes), Ok(Some(directory())));
        let end = End::open(&bytes).unwrap().unwrap();
        assert_eq!((end.object_length(), end.first, end.ledgers), (500 + bytes.len() as u64, LedgerId(7), 2));
    }

    const GOLDEN: &str = concat!(
        "474d4452010000000200000000000000070000000000000000000000000000002c01000000000000c800000000000000",
        "010203040000000009000000000000002c01000000000000c80000000000000064000000000000000102030400000000",
        "474d50415254454401000000d868c43bf401000000000000600000000000000007000000000000000200000058e5824c",
    );

    /// The directory with a change, and checksums that hold for it.
    fn with(change: impl FnOnce(&mut Directory)) -> Result<Option<Directory>, FormatError> {
        let mut changed = directory();
        change(&mut changed);
        opened(&changed.seal())
    }

    #[test]
    fn what_cannot_be_is_refused_although_its_checksums_hold() {
        assert!(with(|d| d.rows[1].offset = 301).is_err(), "a gap");
        assert!(with(|d| d.rows[1].ledger = LedgerId(7)).is_err(), "a ledger twice");
        assert!(with(|d| d.rows.truncate(1)).is_err(), "one ledger alone");
        assert!(with(|d| d.rows[0].shape.footer_offset = 260).is_err(), "no room for a trailer");
        assert!(with(|d| d.rows[0].shape.footer_offset = 3).is_err(), "no room for a header");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_shows() {
        let bytes = directory().seal();
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            assert_ne!(opened(&changed), Ok(Some(directory())), "bit {at}");
            assert!(!matches!(opened(&changed), Ok(Some(_))), "bit {at}");
        }
        for left in 0..bytes.len() {
            assert!(!matches!(opened(&bytes[..left]), Ok(Some(_))), "{left} bytes");
            assert!(!matches!(opened(&bytes[bytes.len() - left..]), Ok(Some(_))), "last {left} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut body in proptest::collection::vec(any::<u8>(), FIXED..200),
            offset: u64,
            first: u64,
            ledgers in 0_u32..6,
        ) {
            body[..8].copy_from_slice(b"GMDR\x01\0\0\0");
            body[8..12].copy_from_slice(&ledgers.to_le_bytes());
            let end = End { offset, length: body.len() as u64, first: LedgerId(first), ledgers, crc: crc32c(&body) };
            let _refused = Directory::open(&body, &end);
        }

        #[test]
        fn no_last_bytes_make_it_panic(mut last in proptest::collection::vec(any::<u8>(), TRAILER_LEN)) {
            last[..12].copy_from_slice(b"GMPARTED\x01\0\0\0");
            let crc = crc32c(&last[..44]).to_le_bytes();
            last[44..].copy_from_slice(&crc);
            if let Ok(Some(end)) = End::open(&last) {
                prop_assert!(end.object_length() > end.offset);
            }
        }
    }
}
