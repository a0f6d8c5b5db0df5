//! The wires: Pulsar's, and our own between brokers and bookies. This file is only a map; everything here is a pure function over
//! bytes.
//!
//! Between brokers and bookies:
//! - [`bookie`]: messages, client and server generated from `geminga/v1/bookie.proto`
//! - [`packed`]: its message of many entries, by hand
//! - [`codec`]: the gRPC codec
//!
//! Pulsar:
//! - [`pulsar`]: the messages generated from `pulsar/wire.proto`
//! - [`frame`]: cutting the byte stream of a connection into frames
//! - [`payload`]: what follows the command of SEND and MESSAGE: broker entry block, checksum, metadata, payload
//! - [`encode`]: writing frames; by hand for the commands sent once per message
//! - [`decode`]: reading commands; by hand for the commands received once per message
//! - [`metadata_view`]: the fields of a message header a broker needs, without decoding the rest
//! - [`broker_entry`]: the block a broker puts in front of a stored entry
//! - [`batch`]: the members of an uncompressed batch
//! - [`checksum`], [`murmur`]: CRC32C and the key hash
//! - [`test_support`]: the entry point of fuzz runs
//!
//! `wire` holds the protobuf primitives under the hand-written codecs.

pub mod batch;
pub mod broker_entry;
pub mod checksum;
pub mod codec;
pub mod decode;
pub mod encode;
pub mod frame;
pub mod metadata_view;
pub mod murmur;
pub mod packed;
pub mod payload;
pub mod test_support;
mod wire;

#[cfg(test)]
mod tests;

/// The messages of the Pulsar binary protocol, generated from `pulsar/wire.proto` at build time.
///
/// Generated decoding does not notice a missing `required` field: it reads as the type's zero value.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod pulsar {
    include!(concat!(env!("OUT_DIR"), "/pulsar.proto.rs"));
}

/// What brokers and bookies say to each other, generated from `geminga/v1/bookie.proto` at build time.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod bookie {
    include!(concat!(env!("OUT_DIR"), "/geminga.bookie.v1.rs"));
}
