//! What every serving role does alike: settings, log, runtime, listeners, the order of stopping.

use crate::failure;
use anyhow::Context as _;
use geminga_broker::{Addresses, Bounds, Broker};
use geminga_common::config::{self, ConfigError};
use geminga_common::error::{Code, Coded as _};
use geminga_common::tasks::TaskGroup;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Serialize, de::DeserializeOwned};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long topics may take to unload.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);
/// How long tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// A directory of the settings, from the root on.
pub(crate) fn absolute(dir: &Path) -> anyhow::Result<PathBuf> {
    let refused = |error| {
        let shown = dir.display();
        failure::coded(
            Code::CONFIG_INVALID,
            format_args!("the data directory \"{shown}\" cannot be used ({error}); name one"),
        )
    };
    std::path::absolute(dir).map_err(refused)
}

/// Settings of a role: flags beat the environment, which beats the table of that name in the file, which beats defaults.
pub(crate) fn load<T: Default + Serialize + DeserializeOwned, const N: usize>(
    role: &str,
    file: Option<&Path>,
    flags: [(&str, Option<toml::Value>); N],
) -> anyhow::Result<T> {
    let text = file.map(read_file).transpose()?;
    let given = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let loaded = match &text {
        Some(text) => check_file(text),
        None => Ok(()),
    };
    let loaded = loaded
        .and_then(|()| config::load(role, text.as_deref(), std::env::vars(), given.collect::<toml::Table>()));
    loaded.map_err(|error| match file.filter(|_| error.is_in_file()) {
        Some(file) => failure::about(&error, "configuration file", file),
        None => failure::coded(error.code(), error),
    })
}

/// All of the file, the tables of other roles too: a name that is misspelt there would show only when that role starts.
fn check_file(text: &str) -> Result<(), ConfigError> {
    config::check_tables(text, &["standalone", "bookie", "broker"])?;
    config::check::<crate::standalone::Config>("standalone", text)?;
    config::check::<crate::bookie::Config>("bookie", text)?;
    config::check::<crate::broker::Config>("broker", text)
}

#[allow(clippy::disallowed_methods)] // before anything runs that could be simulated
fn read_file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let text = format!("configuration file {} cannot be read: {error}; correct --config", path.display());
        failure::coded(Code::CONFIG_UNREADABLE, text)
    })
}

/// Logs to standard error.
pub(crate) fn start_log(directives: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(directives).map_err(|error| {
        let help = "pass `info`, or directives such as `warn,geminga_broker=debug`";
        failure::coded(
            Code::CONFIG_INVALID,
            format_args!("'log' is `{directives}`, no log filter ({error}); {help}"),
        )
    })?;
    // Nobody may read the log any more: that is no reason to stop serving.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    log.log_internal_errors(false).init();
    for target in targets_of_nobody(directives) {
        let own = PARTS.join(", ");
        tracing::warn!(
            target,
            "'log' names no part of Geminga, only what a library may call itself; its parts are {own}"
        );
    }
    Ok(())
}

/// The crates whose names targets of log directives begin with.
const PARTS: [&str; 6] = [
    "geminga",
    "geminga_bookie",
    "geminga_bookie_client",
    "geminga_broker",
    "geminga_common",
    "geminga_offload",
];

/// Targets of directives under which none of Geminga's crates logs: a library's, or misspelt. A target stands for all that begin
/// with it.
fn targets_of_nobody(directives: &str) -> Vec<&str> {
    let targets =
        directives.split(',').map(str::trim).filter_map(|directive| match directive.find(['=', '[']) {
            Some(end) => directive.get(..end),
            // Alone it is a level or a target.
            None => directive.parse::<tracing::level_filters::LevelFilter>().is_err().then_some(directive),
        });
    let known = |target: &&str| {
        PARTS.iter().any(|part| match target.strip_prefix(part) {
            Some(rest) => rest.is_empty() || rest.starts_with("::"),
            None => part.starts_with(*target),
        })
    };
    targets.filter(|target| !known(target)).collect()
}

/// Lets the process open as many files as it may: the usual soft limit, 1024, is for programs that use `select`.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let shown = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let (from, to) = (shown(limit.current), shown(limit.maximum));
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::info!(%from, %to, "the limit on open files (`ulimit -n`) was raised"),
        // The bounds follow from the limit that holds.
        Err(error) => tracing::warn!(%from, %to, %error, "the limit on open files could not be raised"),
    }
}

/// How many clients the limit on open files leaves room for.
pub(crate) fn bounds() -> Bounds {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let bounds = Bounds::of_open_files(limit);
    tracing::debug!(limit, bounds.pulsar, bounds.http, "clients that may be connected at once");
    bounds
}

/// Says on standard output that the process serves. Nobody may listen there: that is no reason to stop serving.
pub(crate) fn say_ready(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "ready: {line}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "standard output failed: the ready line could not be written; serving all the same: {line}");
    }
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

/// Listens; port 0 takes any free one.
pub(crate) async fn listen(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(bind, port);
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => failure::coded(
            Code::PORT_IN_USE,
            format_args!(
                "cannot listen on {address}: another server is there, or a connection of this machine holds the port; \
                 end it or take another port, 0 for any free one"
            ),
        ),
        _ => failure::coded(
            Code::CONFIG_INVALID,
            format_args!("cannot listen on {address}: {error}; correct 'bind' and the port"),
        ),
    })
}

/// Where clients reach a broker that listens there; `advertised` is the host that they know it by.
pub(crate) fn addresses(
    pulsar: &TcpListener,
    http: &TcpListener,
    advertised: Option<&str>,
) -> anyhow::Result<Addresses> {
    let (pulsar, http) = (pulsar.local_addr()?, http.local_addr()?);
    let shown = |address: SocketAddr| match advertised {
        Some(host) => format!("{host}:{}", address.port()),
        None => address.to_string(),
    };
    Ok(Addresses {
        pulsar: format!("pulsar://{}", shown(pulsar)),
        http: format!("http://{}", shown(http)),
        loopback: pulsar.ip().is_loopback(),
    })
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

/// Topics unload, then tasks end, then what they stood on; each phase has a deadline and names who is late.
pub(crate) async fn stop(broker: &Arc<Broker>, tasks: &TaskGroup, below: &TaskGroup) {
    tracing::info!("stopping: topics unload");
    if tokio::time::timeout(DRAIN_DEADLINE, broker.drain()).await.is_err() {
        tracing::warn!("topics took too long to unload; what they hold is recovered at the next start");
    }
    for group in [tasks, below] {
        group.stop();
        for late in group.join(STOP_DEADLINE).await {
            tracing::warn!(task = %late, "still running at the deadline");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_target_that_is_in_no_part_of_geminga_is_found() {
        assert_eq!(targets_of_nobody("info"), [""; 0]);
        assert_eq!(targets_of_nobody("warn, geminga_broker=debug,geminga_bookie::engine=trace"), [""; 0]);
        assert_eq!(targets_of_nobody("geminga=debug,geminga_b,[span]=info,debug"), [""; 0]);
        assert_eq!(
            targets_of_nobody("info,geminga_brokr=debug,h2,geminga_brokers::x"),
            ["geminga_brokr", "h2", "geminga_brokers::x"]
        );
    }
}
