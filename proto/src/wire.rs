//! Protobuf primitives for the hand-written codecs: varints, keys, length-delimited fields, skipping.
//!
//! Owner: this crate's codecs only. Invariants: nothing panics and nothing allocates, whatever the bytes; a read that
//! fails leaves the error to the caller and the reader is not used again. The rules for what is well-formed are those of
//! prost (ten-byte varints whose last byte is 0 or 1, no field number 0, groups balanced and at most 100 deep), so that a
//! hand-written decoder never disagrees with the generated one.

use bytes::BufMut;

use crate::decode::DecodeError;

/// Nesting allowed when an unknown group is skipped.
const MAX_GROUP_DEPTH: u32 = 100;

/// How a field's value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Len,
    GroupStart,
    GroupEnd,
    Fixed32,
}

/// Number and layout of the field that follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) field: u32,
    pub(crate) wire: WireType,
}

/// A cursor over the bytes of one message.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next key, or `None` at the end of the message.
    #[inline]
    pub(crate) fn next_key(&mut self) -> Result<Option<Key>, DecodeError> {
        if self.rest.is_empty() { Ok(None) } else { self.key().map(Some) }
    }

    fn key(&mut self) -> Result<Key, DecodeError> {
        let raw = u32::try_from(self.varint()?).map_err(|_| DecodeError::BadKey)?;
        let wire = match raw & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Len,
            3 => WireType::GroupStart,
            4 => WireType::GroupEnd,
            5 => WireType::Fixed32,
            _ => return Err(DecodeError::BadKey),
        };
        let field = raw >> 3;
        if field == 0 { Err(DecodeError::BadKey) } else { Ok(Key { field, wire }) }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, DecodeError> {
        if let Some((&first, rest)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(first));
        }
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                if i == 9 && byte > 1 {
                    return Err(DecodeError::BadVarint);
                }
                self.rest = self.rest.get(i + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(if self.rest.len() >= 10 { DecodeError::BadVarint } else { DecodeError::Truncated })
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn delimited(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
        self.take(n)
    }

    /// Value of a field that the schema declares a 64-bit varint.
    #[inline]
    pub(crate) fn u64(&mut self, key: Key) -> Result<u64, DecodeError> {
        if key.wire == WireType::Varint { self.varint() } else { Err(DecodeError::WrongWireType(key.field)) }
    }

    /// Value of an `int64` field: negative numbers travel as two's complement.
    pub(crate) fn i64(&mut self, key: Key) -> Result<i64, DecodeError> {
        self.u64(key).map(u64::cast_signed)
    }

    /// Value of an `int32` or enum field; upper bits are dropped as protobuf prescribes.
    pub(crate) fn i32(&mut self, key: Key) -> Result<i32, DecodeError> {
        self.u64(key).map(|v| v as i32)
    }

    /// Value of a `uint32` field; upper bits are dropped as protobuf prescribes.
    pub(crate) fn u32(&mut self, key: Key) -> Result<u32, DecodeError> {
        self.u64(key).map(|v| v as u32)
    }

    /// Value of a `bool` field: anything but zero is true.
    pub(crate) fn bool(&mut self, key: Key) -> Result<bool, DecodeError> {
        self.u64(key).map(|v| v != 0)
    }

    /// Contents of a `bytes` or message field.
    pub(crate) fn bytes(&mut self, key: Key) -> Result<&'a [u8], DecodeError> {
        if key.wire == WireType::Len { self.delimited() } else { Err(DecodeError::WrongWireType(key.field)) }
    }

    /// Contents of a `string` field.
    pub(crate) fn str(&mut self, key: Key) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(key)?).map_err(|_| DecodeError::NotUtf8(key.field))
    }

    /// Passes over a field of no interest.
    pub(crate) fn skip(&mut self, key: Key) -> Result<(), DecodeError> {
        self.skip_nested(key, MAX_GROUP_DEPTH)
    }

    fn skip_nested(&mut self, key: Key, depth: u32) -> Result<(), DecodeError> {
        match key.wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.take(8).map(drop),
            WireType::Fixed32 => self.take(4).map(drop),
            WireType::Len => self.delimited().map(drop),
            WireType::GroupEnd => Err(DecodeError::BadGroup),
            WireType::GroupStart => {
                let depth = depth.checked_sub(1).ok_or(DecodeError::BadGroup)?;
                loop {
                    let inner = self.key()?;
                    if inner.wire == WireType::GroupEnd {
                        return if inner.field == key.field { Ok(()) } else { Err(DecodeError::BadGroup) };
                    }
                    self.skip_nested(inner, depth)?;
                }
            }
        }
    }
}

/// Bytes a varint takes.
#[inline]
pub(crate) const fn varint_len(value: u64) -> usize {
    // Seven bits per byte, and zero still takes one.
    ((63 - (value | 1).leading_zeros()) / 7 + 1) as usize
}

/// Appends a varint.
#[inline]
pub(crate) fn put_varint(mut value: u64, out: &mut impl BufMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Length of a varint field whose number is below 16.
#[inline]
pub(crate) const fn small_field_len(value: u64) -> usize {
    1 + varint_len(value)
}

/// Appends a varint field whose number is below 16.
#[inline]
pub(crate) fn put_small_field(field: u8, value: u64, out: &mut impl BufMut) {
    out.put_u8(field << 3);
    put_varint(value, out);
}
