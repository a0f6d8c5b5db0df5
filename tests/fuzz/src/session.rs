//! Whole connections against a broker in this process: its real service code over loopback, its ledgers and metadata in memory.
//!
//! An input is a list of steps: legal commands with small numbers, commands with any numbers, damaged and raw frames, sends,
//! acknowledgements of what was delivered, silence, new connections. Every input has a broker of its own, so that it can be
//! run again.
//!
//! Held to: no panic anywhere; before CONNECT a stranger makes the broker allocate no more than two of its frames; what the broker sends are
//! frames of the protocol; a request on a connection that stays open is answered; what is delivered was sent, byte for byte;
//! afterwards another connection publishes and consumes; the broker unloads and its tasks end.

mod broker;
mod client;
mod steps;

use client::Client;
use std::sync::OnceLock;
use steps::Script;
use tokio::runtime::Runtime;
use tokio::signal::unix::SignalKind;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system grants a runtime");
        // Rust's own `main` ignores SIGPIPE, libFuzzer's does not: a handler, once made, stays.
        let inside = runtime.enter();
        drop(tokio::signal::unix::signal(SignalKind::pipe()).expect("the system takes a handler"));
        drop(inside);
        runtime
    })
}

/// Runs the target.
pub fn run(data: &[u8]) {
    runtime().block_on(async {
        let broker = broker::Running::start().await;
        let mut script = Script::new(data, broker.address);
        script.play().await;
        script.finish().await;
        Client::check_service(broker.address).await;
        broker.stop().await;
    });
}
