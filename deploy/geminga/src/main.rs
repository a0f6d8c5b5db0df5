//! The one Geminga binary. Parses, sets up tracing, and calls one role.

mod accept_loss;
mod admin;
mod bookie;
mod bookie_inspect;
mod bookie_settings;
mod broker;
mod cli;
mod cluster;
mod failure;
mod halves;
mod metadata;
mod process;
mod standalone;

use clap::Parser;

fn main() -> std::process::ExitCode {
    geminga_allocator::set_up();
    let cli = cli::Cli::parse();
    let outcome = match cli.role {
        cli::Role::Standalone(args) => standalone::main(*args),
        cli::Role::Broker(args) => broker::main(*args),
        cli::Role::Cluster(command) => cluster::main(command),
        cli::Role::Bookie(args) => bookie::main(*args),
        cli::Role::Admin(command) => return ended(admin::main(command)),
        cli::Role::Perf(args) => perf(args),
    };
    ended(outcome.map(|()| std::process::ExitCode::SUCCESS))
}

fn ended(outcome: anyhow::Result<std::process::ExitCode>) -> std::process::ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write as _;
            // For people: what failed, which object, what to do next; never a back-trace.
            let _stderr_may_be_closed = writeln!(std::io::stderr(), "geminga: {}", failure::line(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

fn perf(args: geminga_perf::Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(geminga_perf::run(args))
}
