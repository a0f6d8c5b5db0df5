//! Who gets which entry next, and why nobody does: pure machines for the four subscription types. Rules in README.md.
//!
//! | file | what it holds |
//! |---|---|
//! | `types` | the words: metas in, decisions, deliveries, effects and wait reasons out |
//! | `dispatcher` | [`Dispatcher`], the handle over the machines |
//! | `single` | Exclusive and Failover |
//! | `shared`, `chunks` | Shared, and chunked messages on it |
//! | `key_shared`, `selector`, `key_cells` | Key_Shared, who owns a hash, what is outstanding per hash |
//! | `multi`, `consumers`, `delayed` | what the last two have in common: holders, permits, limits, turns, delays |
//! | `reader` | the one read under way |
//! | `position_map` | positions to small values, in pages |
//! | [`hashing`] | Murmur3 as clients compute it |

mod chunks;
mod consumers;
mod delayed;
mod dispatcher;
pub mod hashing;
mod key_cells;
mod key_shared;
mod multi;
mod position_map;
mod reader;
mod selector;
mod shared;
mod single;
mod types;

pub use dispatcher::Dispatcher;
pub use types::*;

#[cfg(test)]
mod tests;
