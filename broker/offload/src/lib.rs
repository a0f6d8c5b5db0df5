//! Closed ledgers in object storage: one immutable, self-describing object for each ledger, or for several small ones, written once, verified, read back in
//! blocks. See `README.md` for the protocol, its invariants and the table of bytes.
//!
//! | module | what it holds |
//! |---|---|
//! | [`format`] | bytes of an object: blocks, footer, trailer |
//! | [`writer`] | entries → bytes of an object; pure |
//! | `gathering` | ledgers → parts of one upload |
//! | [`state`] | where a closed ledger is, and what may happen to it; pure |
//! | [`stored`] | that state in a topic record, and records of garbage |
//! | [`key`] | names of objects |
//! | [`identity`] | whose store it is, and that no other is used |
//! | [`blob`] | the seam for stores: real and simulated |
//! | [`offloader`] | the way of a ledger, or of several together: prepare, upload, verify, commit |
//! | [`disk_cache`] | blocks on a disk of the broker's own |
//! | [`reader`] | reading entries back: ranged requests, block cache, read-ahead |
//! | [`release`] | the last look before bookie copies go |
//! | [`verify`], `ranges` | reading an object back whole |
//! | [`meters`] | what it has done, for each topic |
//! | [`cost`] | what the store was asked for, for each tenant |
//! | [`sweep`] | removing what metadata lists as garbage |
//! | [`tier`] | all of it, as one broker uses it |
//! | [`config`] | settings |
//! | [`mutant`] | known bugs that tests bring back |

pub mod blob;
pub mod config;
pub mod cost;
pub mod disk_cache;
pub mod format;
mod gathering;
pub mod identity;
pub mod key;
pub mod meters;
pub mod mutant;
pub mod offloader;
mod parts;
mod ranges;
pub mod reader;
pub mod release;
pub mod state;
pub mod stored;
pub mod sweep;
#[cfg(test)]
mod tests;
pub mod tier;
pub mod verify;
pub mod writer;

pub use config::Config;
pub use tier::{OpenError, Tier};
