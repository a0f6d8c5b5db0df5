//! The storage node: it stores entries durably and decides nothing about quorums. See the README of this folder.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Config`] | settings |
//! | [`Bookie`] | the running store: journal, flush and reader threads |
//! | [`InProcess`] | `BookieRpc` over bookies of this process |
//! | [`node`] | a bookie as a process of a cluster: registration, liveness |
//! | [`service`] | the gRPC edge |
//! | `store` | opening a store; its single steps, without threads |
//! | `shard` | the machine: admission, write cache, batches, flush plans (pure) |
//! | `journal` | journal files, replay |
//! | `segments` | segment files: written, read, looked up |
//! | `manifest` | segments, ledger states and the journal's mark, in redb |
//! | `query` | reads, tails, stats |
//! | `format` | the bytes of every file |
//! | `mutant` | known defects, for tests |

mod config;
mod engine;
mod format;
mod in_process;
mod journal;
mod manifest;
#[cfg(feature = "museum")]
pub mod mutant;
#[cfg(not(feature = "museum"))]
#[allow(unreachable_pub)]
mod mutant;
pub mod node;
mod query;
mod segments;
pub mod service;
mod shard;
#[cfg(any(test, feature = "test-util"))]
pub mod steps;
mod store;

pub use config::{Config, ConfigError};
pub use engine::{Bookie, Health};
pub use in_process::InProcess;
pub use store::OpenError;
