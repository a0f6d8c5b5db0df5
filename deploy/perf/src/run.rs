//! Entry of the load generator: hands the parsed command to its run.

use crate::args::{Args, Command};
use crate::{consume, produce};

/// Runs a load until its duration or message count is reached, or until interrupted, and prints the report.
///
/// # Errors
/// Bad options, no connection, a refused producer or consumer, a connection lost on the way, messages that failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Produce(args) => produce::run(args).await,
        Command::Consume(args) => consume::run(args).await,
    }
}
