//! Coverage-guided fuzz targets. This file is only a map.
//!
//! | target | what bytes from outside it feeds |
//! |---|---|
//! | [`frames`] | the frame splitter and every command decoder, the hand-written ones against the generated one |
//! | [`messages`] | message parts, metadata, batches, and the unfolding of compressed payloads |
//! | [`names`] | tenants, namespaces, topics, subscriptions, bundles, percent-encoding, metadata keys |
//! | [`session`] | whole connections of legal and illegal commands and raw bytes against a broker in this process |
//! | [`formats`] | the bookie's bytes on disk: journal batches, segments, footers, rows, identity |
//! | [`store`] | a whole store that was written well and then damaged, opened and read |
//! | [`rpc`] | packed tables and control calls between brokers and bookies, both ways |
//! | [`objects`] | objects of tiering: blocks, footers, and whole ones that were damaged |
//! | [`records`] | ledger, topic, cursor and namespace records in metadata and logs |
//!
//! - [`alloc`]: the allocator that ends the run when bytes make a decoder allocate beyond its limit
//! - [`seed`]: the seed corpora, made from frames and golden bytes

pub mod alloc;
pub mod formats;
pub mod frames;
pub mod messages;
pub mod names;
pub mod objects;
pub mod records;
pub mod rpc;
pub mod seed;
pub mod session;
pub mod store;
