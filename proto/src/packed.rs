//! The message `Packed` of `geminga/v1/bookie.proto`, by hand: a table and one blob of data. What is sent may be in many pieces,
//! which are written one after the other into the transport's buffer without being gathered first; what is received is one
//! piece that shares the transport's buffer.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    DecodeContext, WireType, bytes as field, encode_key, encode_varint, encoded_len_varint, skip_field,
};
use prost::{DecodeError, Message};

const TABLE: u32 = 1;
const DATA: u32 = 2;

/// A table of fixed layout and the bytes it speaks of.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Packed {
    /// The table.
    pub table: Bytes,
    /// The data, in pieces; on the wire they are one blob.
    pub data: Vec<Bytes>,
}

impl Packed {
    /// Bytes of data.
    #[must_use]
    pub fn data_len(&self) -> usize {
        self.data.iter().map(Bytes::len).sum()
    }

    /// The data as one piece, as a received message has it. Gathers if there are several.
    #[must_use]
    pub fn into_blob(mut self) -> (Bytes, Bytes) {
        let data = match self.data.len() {
            0 => Bytes::new(),
            1 => self.data.swap_remove(0),
            _ => self.data.concat().into(),
        };
        (self.table, data)
    }
}

impl Message for Packed {
    fn encode_raw(&self, out: &mut impl BufMut) {
        if !self.table.is_empty() {
            field::encode(TABLE, &self.table, out);
        }
        let len = self.data_len();
        if len > 0 {
            encode_key(DATA, WireType::LengthDelimited, out);
            encode_varint(len as u64, out);
            self.data.iter().for_each(|piece| out.put_slice(piece));
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            TABLE => field::merge(wire_type, &mut self.table, buf, context),
            DATA => {
                let mut blob = Bytes::new();
                field::merge(wire_type, &mut blob, buf, context)?;
                // A field that comes twice counts once, the last time, as everywhere in protobuf.
                self.data = vec![blob];
                Ok(())
            }
            _ => skip_field(wire_type, tag, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let of = |len: usize| if len == 0 { 0 } else { 1 + encoded_len_varint(len as u64) + len };
        of(self.table.len()) + of(self.data_len())
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same message as prost would have made it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(bytes = "bytes", tag = "1")]
        table: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        data: Bytes,
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_schema(table: Vec<u8>, pieces: Vec<Vec<u8>>) {
            let packed = Packed { table: table.into(), data: pieces.into_iter().map(Bytes::from).collect() };
            let plain = Plain { table: packed.table.clone(), data: packed.data.concat().into() };
            prop_assert_eq!(packed.encode_to_vec(), plain.encode_to_vec());
            prop_assert_eq!(packed.encoded_len(), plain.encoded_len());
            let back = Packed::decode(&plain.encode_to_vec()[..]).unwrap();
            prop_assert_eq!(back.into_blob(), (plain.table, plain.data));
        }

        #[test]
        fn anything_may_be_decoded(bytes: Vec<u8>) {
            let (ours, plain) = (Packed::decode(&bytes[..]), Plain::decode(&bytes[..]));
            prop_assert_eq!(ours.is_ok(), plain.is_ok());
            if let (Ok(ours), Ok(plain)) = (ours, plain) {
                prop_assert_eq!(ours.into_blob(), (plain.table, plain.data));
            }
        }
    }
}
