//! The replication protocol: everything that turns single bookies into ledgers that cannot lose an acknowledged entry.
//!
//! | module | what it holds |
//! |---|---|
//! | [`entry`] | an entry, its fixed header and its checksum |
//! | [`rpc`] | [`rpc::BookieRpc`], the seam to bookies, and its messages |
//! | [`record`] | the ledger record in metadata: state, term, fragments, repair |
//! | [`placement`] | which bookies a ledger goes to |
//! | [`registry`] | which bookies there are, followed through metadata |
//! | [`quorum`] | ensemble ≥ write quorum ≥ ack quorum; write sets, coverage (pure) |
//! | [`writer`] | the writer machine and the shell that drives it |
//! | [`recovery`] | FenceTail recovery: machine and shell |
//! | [`repair`] | closed ledgers back to their write quorum: plan, driver, the destination's side |
//! | [`ledgers`] | [`ledgers::Ledgers`], what a managed ledger sees, and [`ledgers::LedgerClient`] |
//! | [`grpc`] | [`grpc::GrpcBookies`]: bookies that are processes of their own |
//! | [`watermark`] | raising the dead-id watermark: creators first, bookies last |
//! | `conformance` (feature `test-util`) | what every [`rpc::BookieRpc`] must do |
//! | [`mutant`] | known bugs that tests can bring back |
//! | `memory` (feature `test-util`) | bookies in memory, for tests |

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod entry;
#[cfg(test)]
mod exploration;
pub mod grpc;
pub mod ledgers;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
pub mod mutant;
pub mod placement;
pub mod quorum;
pub mod record;
pub mod recovery;
pub mod registry;
pub mod repair;
pub mod rpc;
pub mod watermark;
pub mod writer;
