//! What the tests of more than one room share. This file is only a map.
//!
//! | target | what it holds to |
//! |---|---|
//! | `tidy` | the shape of the repository: arrows, sizes, words, formatting, licences |
//! | `cluster` | etcd, bookies and brokers as processes: kills, pauses, two brokers; a bare writer without a broker |
//! | `process` | the real binary: start, stop, refusals, restart |
//! | `copies` | how often a payload is copied between the sockets |
//! | `fuzz/` | coverage-guided targets, a package of its own; its README says how long runs are made |
//! | `python/`, `java/`, `go/` | official clients: smoke tests, the conformance probe, the scenario under kill -9, the faults of a cluster; run by `tests/run` |
//!
//! - [`audit`]: what metadata says of closed ledgers, asked of the bookies entry by entry; `examples/audit` is its command
//! - [`client`]: a Pulsar client that repeats nothing and remembers what was acknowledged
//! - [`process`]: a `geminga standalone` that can be started, killed and asked
//! - [`server`]: a server inside the test's process
//! - [`wire`]: a client of one socket that decides itself when to read

pub mod audit;
pub mod client;
pub mod process;
pub mod server;
pub mod wire;
