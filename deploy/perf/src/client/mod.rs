//! A Pulsar client as small as a load generator needs. This file is only a map.
//!
//! What it does not do, on purpose: reconnect (a lost connection ends the run with an error, so that no figure hides an
//! outage), TLS, authentication, compression, schemas.

mod connection;
mod consumer;
mod lookup;
mod producer;

pub(crate) use connection::Pool;
pub(crate) use consumer::{Consumer, Subscription};
pub(crate) use lookup::expand_partitions;
pub(crate) use producer::{Producer, ProducerOptions, Waker};
