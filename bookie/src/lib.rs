//! The storage node: it stores entries durably and decides nothing about quorums. See the README of this folder.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Config`] | settings |
//! | [`Bookie`] | the running store: journal, flush and reader threads |
//! | [`InProcess`] | `BookieRpc` over bookies of this process |
//! | [`node`] | a bookie as a process of a cluster: registration, liveness |
//! | [`service`] | the gRPC edge |
//! | [`promote`] | a new incarnation for a store that lost data |
//! | [`accept_loss`] | the same for a store that has the only copy |
//! | [`Room`] | how full the disk is, in steps with hysteresis (pure) |
//! | `store` | opening a store; its single steps, without threads: flush, collect, punch, merge, scrub |
//! | `gc` | what is dead, what is worth merging (pure) |
//! | `shard` | the machine: admission, write cache, batches, flush plans (pure) |
//! | `journal` | journal files, replay |
//! | `segments` | segment files: written, read, looked up |
//! | `manifest` | segments, ledger states and the journal's mark, in redb |
//! | `query` | reads, tails, stats |
//! | [`inspect`] | looking into a store offline |
//! | `format` | the bytes of every file |
//! | `fuzz` | entry points of fuzz runs |
//! | `mutant` | known defects, for tests |

mod config;
mod engine;
mod figures;
mod format;
#[cfg(feature = "test-util")]
pub mod fuzz;
mod gc;
mod in_process;
pub mod inspect;
mod journal;
mod manifest;
pub mod mutant;
pub mod node;
mod query;
#[cfg(test)]
mod samples;
mod segments;
pub mod service;
mod shard;
mod space;
#[cfg(any(test, feature = "test-util"))]
pub mod steps;
mod store;

pub use config::{Config, ConfigError};
pub use engine::{Bookie, Health, accept_loss, promote, view_loss};
pub use figures::Figures;
pub use format::losses::AcceptedLoss;
pub use in_process::InProcess;
pub use space::{Room, Watermarks};
pub use store::{Accepted, Damage, Losses, Lost, OpenError, Progress, View, Whose, whose};
