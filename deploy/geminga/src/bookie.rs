//! `geminga bookie`: a storage node as a process of its own. Start: configuration, metadata, store, registration, service, ready
//! line. Stop (SIGTERM or SIGINT): the liveness key goes, streams end once what is open is answered, the store closes.

use crate::cli::{BookieArgs, BookieCommand};
use crate::{failure, metadata, process};
use anyhow::Context as _;
use geminga_bookie::node::{self, Node, NodeError};
use geminga_bookie_client::registry::record::Labels;
use geminga_common::clock::SystemClock;
use geminga_common::config::ByteSize;
use geminga_common::disk::RealDisk;
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Settings of `bookie`, table `[bookie]` of the configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Directory that holds everything. Default `data`.
    data_dir: PathBuf,
    /// Name of the cluster. Default `standalone`. A store of another cluster is refused, as are callers of another one.
    #[serde(deserialize_with = "geminga_common::names::deserialize_cluster")]
    cluster: String,
    /// Address to listen on. Default 127.0.0.1.
    bind: IpAddr,
    /// Port of the bookie service, 0 for any. Default 3181.
    port: u16,
    /// `host:port` that others reach it by. Default none: the address it listens on.
    advertised: String,
    /// What to log. Default `info`.
    log: String,
    /// Allow another bind address than the loopback although nobody is authenticated. Default false.
    insecure: bool,
    /// Threads that serve connections, 0 for half of the cores. Default 0, at most 256. The store has threads of its own.
    threads: usize,
    /// Availability zone; ledgers are spread over zones first. Default none.
    zone: String,
    /// Rack within the zone; ledgers are spread over racks second. Default none.
    rack: String,
    /// Size of the data volume. Default 0, not told. Of two bookies that would do, the larger is chosen more often.
    capacity: ByteSize,
    /// Life of the lease, in milliseconds. Default 10 000, 1 000 to 60 000. Shorter notices a death sooner and takes a stall for one.
    lease_ms: u64,
    /// Largest message of the cluster's brokers. Default 5 MiB, as theirs. A larger one is refused by this bookie.
    max_message_size: ByteSize,
    /// Metadata of the cluster.
    metadata: metadata::Settings,
    /// The store. Its `id` is the bookie's name: every bookie of a cluster has its own.
    store: crate::bookie_settings::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            cluster: "standalone".to_owned(),
            bind: IpAddr::from([127, 0, 0, 1]),
            port: 3181,
            advertised: String::new(),
            log: "info".to_owned(),
            insecure: false,
            threads: 0,
            zone: String::new(),
            rack: String::new(),
            capacity: ByteSize(0),
            lease_ms: 10_000,
            max_message_size: ByteSize(5 << 20),
            metadata: metadata::Settings::default(),
            store: crate::bookie_settings::Settings::default(),
        }
    }
}

/// How long the metadata's tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Runs until told to stop.
pub(crate) fn main(mut args: BookieArgs) -> anyhow::Result<()> {
    if let Some(BookieCommand::Inspect(args)) = args.command.take() {
        return crate::bookie_inspect::main(args);
    }
    let config = load(&args)?;
    process::start_log(&config.log)?;
    process::raise_open_files();
    process::check_bind(config.bind, config.insecure)?;
    process::runtime(config.threads)?.block_on(run(config))
}

fn load(args: &BookieArgs) -> anyhow::Result<Config> {
    let text = |value: &Option<String>| value.clone().map(toml::Value::String);
    let table = |key: &str, value: Option<toml::Value>| {
        value.map(|value| toml::Value::Table(toml::Table::from_iter([(key.to_owned(), value)])))
    };
    let flags = [
        ("data_dir", args.data_dir.as_ref().map(|path| path.to_string_lossy().into_owned().into())),
        ("cluster", text(&args.cluster)),
        ("bind", text(&args.bind)),
        ("port", args.port.map(|port| i64::from(port).into())),
        ("advertised", text(&args.advertised)),
        ("log", text(&args.log)),
        ("insecure", args.insecure.then_some(toml::Value::Boolean(true))),
        ("zone", text(&args.zone)),
        ("rack", text(&args.rack)),
        ("metadata", table("url", text(&args.metadata))),
        ("store", store_flags(args)),
    ];
    process::load("bookie", args.config.as_deref(), flags)
}

fn store_flags(args: &BookieArgs) -> Option<toml::Value> {
    let paths = |dirs: &[PathBuf]| {
        let texts = dirs.iter().map(|dir| toml::Value::String(dir.to_string_lossy().into_owned()));
        (!dirs.is_empty()).then(|| toml::Value::Array(texts.collect()))
    };
    let flags = [
        ("id", args.id.clone().map(toml::Value::String)),
        ("shards", args.shards.map(|shards| i64::from(shards).into())),
        ("more_data_dirs", paths(&args.more_data_dir)),
        ("journal_dirs", paths(&args.journal_dir)),
    ];
    let given: toml::Table =
        flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    (!given.is_empty()).then_some(toml::Value::Table(given))
}

impl Config {
    fn node(&self, dir: &Path) -> anyhow::Result<node::Config> {
        anyhow::ensure!(
            (1_000..=60_000).contains(&self.lease_ms),
            "GM-6004: bookie.lease_ms must be 1000 to 60000"
        );
        let message_max =
            usize::try_from(self.max_message_size.0).context("max_message_size is too large")?;
        // As in standalone, so that its data can grow into a cluster.
        let mut node =
            node::Config::new(self.store.config(dir.join("bookie"), &self.cluster, message_max)?);
        node.listen = SocketAddr::new(self.bind, self.port);
        node.advertised = Some(self.advertised.clone()).filter(|advertised| !advertised.is_empty());
        node.labels = Labels { zone: self.zone.clone(), rack: self.rack.clone() };
        node.capacity_bytes = self.capacity.0;
        node.lease_ttl = Duration::from_millis(self.lease_ms);
        Ok(node)
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut told = process::Stop::listen()?;
    let tasks = TaskGroup::new();
    let dir = process::absolute(&config.data_dir)?;
    let node = config.node(&dir)?;
    let metadata = metadata::open(&config.metadata, &tasks).await?;
    let parts = node::Parts { metadata, disk: RealDisk::shared(), clock: SystemClock::shared() };
    let shutdown = CancellationToken::new();
    let running = node::run(node, parts, |node| ready(node, &dir), shutdown.clone());
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = told.told() => {
            tracing::info!("stopping: streams end");
            shutdown.cancel();
            running.await
        }
    };
    tasks.stop();
    for late in tasks.join(STOP_DEADLINE).await {
        tracing::warn!(task = %late, "still running at the deadline");
    }
    match ended {
        // Told to stop while it still waited for metadata: that is a clean end.
        Ok(()) | Err(NodeError::Stopped) => Ok(()),
        Err(error) => Err(failure::about(&error, "bookie in", &dir)),
    }
}

fn ready(node: &Node, dir: &Path) {
    let (id, address) = (node.bookie().id(), node.address());
    process::say_ready(format_args!("bookie {id} {address} data {}", dir.display()));
}
