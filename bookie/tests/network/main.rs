//! Bookies over gRPC on the loopback, with the real store and a real disk.

#![allow(clippy::unwrap_used)] // a test

mod cluster;
mod edge;
mod log;
mod nodes;
mod support;
mod transport;
