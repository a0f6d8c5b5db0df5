//! What every serving role does alike: settings, log, runtime, signals.

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};
use std::net::IpAddr;
use std::path::Path;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Settings of a role: flags beat the environment, which beats the table of that name in the file, which beats defaults.
pub(crate) fn load<T: Default + Serialize + DeserializeOwned, const N: usize>(
    role: &str,
    file: Option<&Path>,
    flags: [(&str, Option<toml::Value>); N],
) -> anyhow::Result<T> {
    let file = file.map(read_file).transpose()?;
    let given = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Ok(geminga_common::config::load(role, file.as_deref(), std::env::vars(), given.collect())?)
}

#[allow(clippy::disallowed_methods)] // before anything runs that could be simulated
fn read_file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration file {}", path.display()))
}

/// Logs to standard error.
pub(crate) fn start_log(directives: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .with_context(|| format!("`{directives}` is no log filter"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

/// Refuses other addresses than the loopback unless they are meant.
pub(crate) fn check_bind(bind: IpAddr, insecure: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        bind.is_loopback() || insecure,
        "GM-6007: {bind} is not a loopback address and nobody is authenticated; pass --insecure if that is meant"
    );
    Ok(())
}

/// A runtime with so many threads; 0 is half of the cores.
pub(crate) fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores.div_ceil(2) } else { threads.min(256) };
    let runtime = if threads == 1 {
        // One thread needs no work stealing: cheaper wake-ups and less memory.
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
    };
    runtime.context("starting the runtime")
}

/// SIGTERM and SIGINT.
pub(crate) struct Stop(Signal, Signal);

impl Stop {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    /// Resolves when the process is to stop.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
