//! `geminga perf`: a load generator over a small Pulsar client of its own. This file is only a map.
//!
//! | module | what it holds |
//! |---|---|
//! | `args` | the command line |
//! | `schedule` | which producer may send how much, and when the next one is due: pure |
//! | `produce`, `consume` | the two runs |
//! | `stamp` | what a payload carries: the intended send time |
//! | `report` | histograms, progress lines, the table and the JSON at the end |
//! | `client` | connection, lookup, producer and consumer sides of the wire |
//!
//! Latency is counted from the time at which the schedule wanted a message to leave, not from the time at which it left:
//! a server that stalls is charged with every message it held up.

mod args;
mod client;
mod consume;
mod produce;
mod report;
mod run;
mod schedule;
mod stamp;

pub use args::{Args, Command, ConsumeArgs, ProduceArgs};
pub use run::run;
