//! Words and tools that every room of Geminga shares.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | newtypes for every id; [`ids::Position`] |
//! | [`names`] | tenant, namespace, topic and subscription names: valid by construction |
//! | [`error`] | the catalogue of coded errors, `GM-nnnn` |
//! | [`config`] | layered configuration: flags > environment > file > default |
//! | [`clock`], [`rng`] | the seams for time and randomness |
//! | [`disk`] | the seam for files: real and simulated |
//! | [`metadata`] | the seam for cluster metadata: redb and in-memory |
//! | [`museum`] | the switch for known bugs that tests bring back |
//! | [`tasks`] | named tasks and threads, phased shutdown |
//! | [`lane`] | threads of a lower priority, for what no acknowledgement waits for |
//! | [`watermark`], [`budget`], [`retry`] | progress that only moves forward, byte budgets, backoff |
//! | [`checksum`] | CRC32C over several slices |
//! | [`ports`] | free ports for processes that come back on the same one |
//! | [`copies`] | counts payload bytes that are copied, for tests |

pub mod budget;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod copies;
pub mod disk;
pub mod error;
pub mod ids;
pub mod lane;
pub mod metadata;
pub mod museum;
pub mod names;
pub mod ports;
pub mod retry;
pub mod rng;
pub mod tasks;
pub mod watermark;
