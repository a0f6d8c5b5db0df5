//! Serves topics: the Pulsar wire, managed ledgers, cursors, dispatch, REST. Owns no durable state: everything it knows is in
//! ledgers and metadata.
//!
//! | room | what it holds | may import |
//! |---|---|---|
//! | [`service`] | connections: framing, handshake, one task per peer, the mapping of errors to the wire | all below |
//! | [`rest`] | admin REST, `/metrics`, HTTP lookup | all below |
//! | [`topic`] | one owner task per topic: producers, subscriptions | dispatch, cursor, managed_ledger, namespace, schema |
//! | [`dispatch`] | who gets which entry next, and why nobody does: pure machines | nothing of ours but ids |
//! | [`cursor`] | acknowledgement state (pure) and the per-bundle cursor log | bookie client |
//! | [`managed_ledger`] | a topic's chain of ledgers: append, roll, recover, read, trim | bookie client |
//! | [`namespace`] | tenants, namespaces, policies, partition counts | metadata |
//! | [`repair`] | closed ledgers back to their write quorum, by one leader | managed_ledger and cursor records, bookie client |
//! | [`schema`] | schema registry | metadata |

mod admin;
mod bookies;
mod broker;
mod bundles;
mod config;
pub mod cursor;
pub mod dispatch;
mod doors;
pub mod loss;
pub mod managed_ledger;
pub mod namespace;
pub mod offload;
pub mod repair;
mod repair_roll;
pub mod rest;
pub mod schema;
mod seldom;
mod service;
mod topic;

pub use broker::{Addresses, Broker, Deps};
pub use config::{Config, OutOfRange};
pub use doors::Bounds;
pub use namespace::ownership::{GatedStore, Member};
