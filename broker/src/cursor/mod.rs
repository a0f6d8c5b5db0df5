//! Acknowledgement state and its durability.
//!
//! | file | what it holds |
//! |---|---|
//! | [`slots`] | [`Log`], what cursors must know of a topic's chain of ledgers (pure) |
//! | [`holes`] | acked entries above the floor, a bitmap per ledger (pure) |
//! | [`state`] | [`AckState`], what one subscription has acknowledged (pure) |
//! | [`durable_floor`] | [`DurableFloor`], how far a topic may be trimmed (pure) |
//! | [`record`], `codec` | the records of a cursor log and their bytes (pure) |
//! | [`chain`] | the record `cl/{bundle}` in metadata, step by step (pure) |
//! | [`log_state`] | all cursors of a bundle, replay, snapshot (pure) |
//! | [`log`] | [`CursorLog`], the handle; `log_open` recovers and replays, `log_worker` is its task |

pub mod chain;
mod codec;
pub mod durable_floor;
pub mod holes;
pub mod log;
mod log_commit;
mod log_lost;
mod log_open;
pub mod log_state;
mod log_worker;
pub mod record;
pub mod slots;
pub mod state;

pub use codec::{DecodeError, Properties};
pub use durable_floor::DurableFloor;
pub use holes::Holes;
pub use log::{Config, CursorLog, Deps, Failed, OpenError, WriteError};
pub use record::{CursorId, CursorImage};
pub use slots::{Log, Span};
pub use state::{Ack, AckState, Acked, Batch, Delta, Run};
