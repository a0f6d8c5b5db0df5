//! Tests of the wire format: vectors written by hand for each rule, and properties against the generated codec.

mod codec;
mod framing;
mod message;
mod properties;

use bytes::{Bytes, BytesMut};

/// A buffer holding the concatenation of `parts`.
fn buf(parts: &[&[u8]]) -> BytesMut {
    BytesMut::from(parts.concat().as_slice())
}

/// Shared bytes holding the concatenation of `parts`.
fn bytes(parts: &[&[u8]]) -> Bytes {
    buf(parts).freeze()
}
