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

// The default allocator spends a fifth of a publish on page faults; see the broker's README for the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator asks for pages of 2 MiB, of which an idle server fills a tenth: without them it takes 17 MB instead of 28, after a load a
/// third less, and no more CPU for a message.
fn small_pages() {
    #[cfg(target_os = "linux")]
    // Where the kernel has no such switch it has no such pages either, or the memory is the price.
    let _costs_memory_only = rustix::thread::disable_transparent_huge_pages(true);
}

fn main() -> std::process::ExitCode {
    small_pages();
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
