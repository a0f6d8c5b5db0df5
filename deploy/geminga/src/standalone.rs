//! `geminga standalone`: a whole Geminga in one process. The same rooms as a cluster, wired differently: metadata in redb, one
//! bookie behind the in-process `BookieRpc`.
//!
//! Start: configuration, lock, metadata, bookie, broker, listeners, ready line. Stop (SIGTERM or SIGINT): topics unload, the
//! bookie flushes, tasks end; each phase has a deadline and names who is late.

use crate::cli::StandaloneArgs;
use anyhow::Context as _;
use geminga_bookie::{Bookie, Health, InProcess};
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_broker::{Addresses, Broker};
use geminga_common::clock::{Clock, SystemClock};
use geminga_common::disk::{Disk, RealDisk};
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::redb::RedbStore;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Settings of `standalone`, table `[standalone]` of the configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Directory that holds everything. Default `data`.
    data_dir: PathBuf,
    /// Address to listen on. Default 127.0.0.1.
    bind: IpAddr,
    /// Port of the Pulsar protocol, 0 for any. Default 6650.
    pulsar_port: u16,
    /// Port of REST and metrics, 0 for any. Default 8080.
    http_port: u16,
    /// What to log. Default `info`.
    log: String,
    /// Allow another bind address than the loopback although nobody is authenticated. Default false.
    insecure: bool,
    /// Threads that serve connections and topics, 0 for half of the cores. Default 0, at most 256.
    threads: usize,
    /// The broker.
    broker: geminga_broker::Config,
    /// The bookie.
    bookie: crate::bookie_settings::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            bind: IpAddr::from([127, 0, 0, 1]),
            pulsar_port: 6650,
            http_port: 8080,
            log: "info".to_owned(),
            insecure: false,
            threads: 0,
            broker: geminga_broker::Config::default(),
            bookie: crate::bookie_settings::Settings::default(),
        }
    }
}

/// How long topics may take to unload.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);
/// How long tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Runs until told to stop.
pub(crate) fn main(args: StandaloneArgs) -> anyhow::Result<()> {
    let config = load(&args)?;
    start_log(&config.log)?;
    anyhow::ensure!(
        config.bind.is_loopback() || config.insecure,
        "GM-1003: {} is not a loopback address and nobody is authenticated; pass --insecure if that is meant",
        config.bind
    );
    config.broker.validate().context("configuration of the broker")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.threads == 0 { cores.div_ceil(2) } else { config.threads.min(256) };
    let runtime = if threads == 1 {
        // One thread needs no work stealing: cheaper wake-ups and less memory.
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
    };
    runtime.context("starting the runtime")?.block_on(run(config))
}

fn load(args: &StandaloneArgs) -> anyhow::Result<Config> {
    let file = match &args.config {
        Some(path) => Some(read_file(path)?),
        None => None,
    };
    let mut flags = toml::Table::new();
    let mut flag = |key: &str, value: Option<toml::Value>| {
        if let Some(value) = value {
            flags.insert(key.to_owned(), value);
        }
    };
    flag("data_dir", args.data_dir.as_ref().map(|path| path.to_string_lossy().into_owned().into()));
    flag("bind", args.bind.clone().map(Into::into));
    flag("pulsar_port", args.pulsar_port.map(|port| i64::from(port).into()));
    flag("http_port", args.http_port.map(|port| i64::from(port).into()));
    flag("log", args.log.clone().map(Into::into));
    flag("insecure", args.insecure.then_some(toml::Value::Boolean(true)));
    Ok(geminga_common::config::load("standalone", file.as_deref(), std::env::vars(), flags)?)
}

#[allow(clippy::disallowed_methods)] // before anything runs that could be simulated
fn read_file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration file {}", path.display()))
}

fn start_log(directives: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .with_context(|| format!("`{directives}` is no log filter"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let dir = std::path::absolute(&config.data_dir)?;
    run_in(config, &dir).await.map_err(|error| explain(error, &dir))
}

/// Says it plainly when the disk is the cause, however deep below.
fn explain(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    let is = |text: &str| error.chain().any(|cause| cause.to_string().contains(text));
    // Some stores hand the system's error on as text only.
    if is("No space left on device") || is("os error 28") {
        let text = format!(
            "GM-4002: the disk that holds {} is full; free some space and start again",
            dir.display()
        );
        return error.context(text);
    }
    if is("Read-only file system") || is("os error 30") {
        let text = format!("GM-4003: the disk that holds {} is read-only", dir.display());
        return error.context(text);
    }
    error
}

async fn run_in(config: Config, dir: &Path) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let clock = SystemClock::shared();
    let storage_tasks = TaskGroup::new();
    let tasks = TaskGroup::new();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let _lock = lock(disk.as_ref(), dir)?;
    let metadata: Arc<dyn MetadataStore> = Arc::new(
        RedbStore::open(disk.as_ref(), &dir.join("metadata.redb"), clock.clone(), &storage_tasks)
            .with_context(|| format!("opening the metadata in {}", dir.display()))?,
    );
    let message_max = config.broker.max_message_size.0 as usize;
    let settings = config.bookie.config(dir.join("bookie"), &config.broker.cluster, message_max)?;
    let bookie = Bookie::open(settings, disk, clock.clone(), &storage_tasks)
        .with_context(|| format!("opening the bookie in {}", dir.display()))?;
    let (broker, addresses) = start_broker(&config, &bookie, metadata, clock, &tasks).await?;
    ready(&addresses, dir)?;
    let mut health = bookie.health();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = health.wait_for(|health| *health == Health::Failed) => anyhow::bail!(
            "GM-2001: the store in {} has failed and takes nothing any more; see the log, then start again",
            dir.display()
        ),
    }
    stop(&broker, &tasks, &storage_tasks).await;
    Ok(())
}

/// One process per data directory.
fn lock(disk: &dyn Disk, dir: &Path) -> anyhow::Result<Box<dyn std::any::Any + Send + Sync>> {
    disk.create_dir_all(dir).with_context(|| {
        format!("GM-1006: the data directory {} cannot be made; is its file system read-only?", dir.display())
    })?;
    disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => anyhow::anyhow!(
            "GM-1001: another process uses the data directory {}; stop it or pass another --data-dir",
            dir.display()
        ),
        _ => anyhow::Error::new(error).context(format!(
            "GM-1006: the data directory {} cannot be written; is its file system read-only or full?",
            dir.display()
        )),
    })
}

async fn start_broker(
    config: &Config,
    bookie: &Bookie,
    metadata: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    tasks: &TaskGroup,
) -> anyhow::Result<(Arc<Broker>, Addresses)> {
    let one = QuorumSpec::new(1, 1, 1).expect("1/1/1 is a quorum");
    let rpc = InProcess::new([bookie.clone()]);
    let bookies = rpc.refs();
    let ledgers = LedgerClient::new(Parts {
        placement: Arc::new(StaticPlacement::new(bookies.clone())),
        rpc: Arc::new(rpc),
        meta: metadata.clone(),
        keys: Keys::new(&config.broker.cluster),
        quorum: one,
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::from_system(),
        tasks: tasks.clone(),
    });
    let deps = geminga_broker::Deps {
        clock,
        metadata,
        ledgers: Arc::new(ledgers),
        tasks: tasks.clone(),
        bookies: bookies.iter().map(|bookie| bookie.id.to_string()).collect(),
        boot: Rng::from_system().next_u64() >> 32,
    };
    let broker = Broker::start(config.broker.clone(), deps).await.context("starting the broker")?;
    let pulsar = listen(config.bind, config.pulsar_port).await?;
    let http = listen(config.bind, config.http_port).await?;
    let addresses = Addresses {
        pulsar: format!("pulsar://{}", pulsar.local_addr()?),
        http: format!("http://{}", http.local_addr()?),
        loopback: config.bind.is_loopback(),
    };
    broker.serve(pulsar, http, addresses.clone());
    Ok((broker, addresses))
}

async fn listen(bind: IpAddr, port: u16) -> anyhow::Result<tokio::net::TcpListener> {
    let address = SocketAddr::new(bind, port);
    tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("GM-1002: cannot listen on {address}; is another server there? Port 0 takes any free one")
    })
}

fn ready(addresses: &Addresses, dir: &Path) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready: {} {} data {}", addresses.pulsar, addresses.http, dir.display())?;
    out.flush().context("writing the ready line")
}

async fn stop(broker: &Arc<Broker>, tasks: &TaskGroup, storage_tasks: &TaskGroup) {
    tracing::info!("stopping: topics unload");
    if tokio::time::timeout(DRAIN_DEADLINE, broker.drain()).await.is_err() {
        tracing::warn!("topics took too long to unload; what they hold is recovered at the next start");
    }
    tasks.stop();
    for late in tasks.join(STOP_DEADLINE).await {
        tracing::warn!(task = %late, "still running at the deadline");
    }
    storage_tasks.stop();
    for late in storage_tasks.join(STOP_DEADLINE).await {
        tracing::warn!(task = %late, "still running at the deadline");
    }
}
