//! `geminga standalone`: a whole Geminga in one process. The same rooms as a cluster, wired differently: metadata in redb, one
//! bookie behind the in-process `BookieRpc`.
//!
//! Start: configuration, lock, metadata, bookie, broker, listeners, ready line. Stop (SIGTERM or SIGINT): topics unload, the
//! bookie flushes, tasks end; each phase has a deadline and names who is late.

use crate::admin::Storage;
use crate::cli::StandaloneArgs;
use crate::halves::{Checked, Halves};
use crate::{failure, process};
use anyhow::Context as _;
use geminga_bookie::{Bookie, Health, InProcess, OpenError};
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_broker::{Addresses, Broker, GatedStore};
use geminga_common::clock::{Clock, SystemClock};
use geminga_common::disk::{Disk, OpenMode, RealDisk};
use geminga_common::error::{Code, Coded as _};
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::redb::{self, RedbStore};
use geminga_common::metadata::session::{self, Session};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
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
    /// Start although the store lacks files that it had, and serve what is left: for reading what can be read, once; `geminga admin
    /// accept-loss` is for going on. Entries that were
    /// in them are answered as not readable, never as absent, and topics that need them stay shut. After the loss of a journal file,
    /// the manifest or an identity the store takes nothing any more, and a file put back later is not believed. Default false: the
    /// start is refused and nothing changed.
    serve_damaged: bool,
    /// Threads that serve connections and topics, 0 for half of the cores. Default 0, at most 256.
    threads: usize,
    /// The broker.
    broker: geminga_broker::Config,
    /// Where closed ledgers go, table `[standalone.offload]`; off by default. The keys: `broker/offload/src/config.rs`.
    offload: geminga_offload::Config,
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
            serve_damaged: false,
            threads: 0,
            broker: geminga_broker::Config::default(),
            offload: geminga_offload::Config::default(),
            bookie: crate::bookie_settings::Settings::standalone(),
        }
    }
}

/// Life of the process's lease: nobody else could take over, so it need not be short.
const LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs until told to stop.
pub(crate) fn main(args: StandaloneArgs) -> anyhow::Result<()> {
    let config = load(&args)?;
    process::start_log(&config.log)?;
    process::raise_open_files();
    process::check_bind(config.bind, config.insecure)?;
    config
        .broker
        .validate()
        .map_err(|error| failure::coded(Code::CONFIG_INVALID, format_args!("[standalone.broker] {error}")))?;
    config.offload.validate().map_err(|error| {
        failure::coded(Code::CONFIG_INVALID, format_args!("[standalone.offload] {error}"))
    })?;
    process::runtime(config.threads)?.block_on(run(config))
}

fn load(args: &StandaloneArgs) -> anyhow::Result<Config> {
    let flags = [
        ("data_dir", args.data_dir.as_ref().map(|path| path.to_string_lossy().into_owned().into())),
        ("bind", args.bind.clone().map(Into::into)),
        ("pulsar_port", args.pulsar_port.map(|port| i64::from(port).into())),
        ("http_port", args.http_port.map(|port| i64::from(port).into())),
        ("log", args.log.clone().map(Into::into)),
        ("insecure", args.insecure.then_some(toml::Value::Boolean(true))),
        ("serve_damaged", args.serve_damaged.then_some(toml::Value::Boolean(true))),
    ];
    process::load("standalone", args.config.as_deref(), flags)
}

/// Opens the metadata of a standalone that is not running, for whoever looks after it.
pub(crate) fn storage(
    file: Option<&Path>,
    data_dir: Option<&Path>,
    tasks: &TaskGroup,
) -> anyhow::Result<Storage> {
    let dir = data_dir.map(|path| path.to_string_lossy().into_owned().into());
    let config: Config = process::load("standalone", file, [("data_dir", dir)])?;
    let dir = process::absolute(&config.data_dir)?;
    let path = dir.join("metadata.redb");
    // Opening would make one.
    anyhow::ensure!(
        path.exists(),
        "GM-6009: {} holds no standalone's data; pass --data-dir, or start it once there, which makes some",
        dir.display()
    );
    let lock = Some(lock(&RealDisk, &dir)?);
    let metadata = RedbStore::open(RealDisk::shared(), &path, SystemClock::shared(), tasks)
        .map_err(|error| metadata_failure(&error, &path))?;
    let (metadata, cluster, offload) = (Arc::new(metadata), config.broker.cluster, config.offload);
    Ok(Storage { metadata, cluster, offload, lock })
}

/// A standalone that is not running: its metadata, open, and its store, not.
pub(crate) struct Offline {
    pub(crate) dir: PathBuf,
    pub(crate) settings: geminga_bookie::Config,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) halves: Halves,
    pub(crate) checked: Checked,
    pub(crate) lock: Box<dyn std::any::Any + Send + Sync>,
}

/// Opens the metadata of a standalone whose store is to be looked after, if the two belong together.
pub(crate) async fn offline(
    file: Option<&Path>,
    data_dir: Option<&Path>,
    tasks: &TaskGroup,
) -> anyhow::Result<Offline> {
    let data_dir = data_dir.map(|path| path.to_string_lossy().into_owned().into());
    let config: Config = process::load("standalone", file, [("data_dir", data_dir)])?;
    let dir = process::absolute(&config.data_dir)?;
    // Opening would make them.
    if !dir.join("metadata.redb").exists() {
        return Err(failure::coded(
            Code::LOSS_NOT_ACCEPTED,
            format_args!(
                "{} holds no metadata.redb, so no standalone's data. A bookie of a cluster has nothing to accept: started as it is, it \
                 gets back what it lacks from the copies of others; of a standalone, pass the --data-dir that it was started with",
                dir.display()
            ),
        ));
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let message_max = config.broker.max_message_size.0 as usize;
    let mut settings = config.bookie.config(dir.join("bookie"), &config.broker.cluster, message_max)?;
    settings.only_copy = true;
    let lock = lock(disk.as_ref(), &dir)?;
    let (metadata, halves, checked) =
        open_metadata(&settings, &disk, &SystemClock::shared(), &dir, tasks).await?;
    settings.known = Halves::counted_on(&checked);
    settings.known_boot = Halves::starts_known(&checked);
    Ok(Offline { dir, settings, metadata, halves, checked, lock })
}

async fn run(config: Config) -> anyhow::Result<()> {
    let dir = process::absolute(&config.data_dir)?;
    run_in(config, &dir).await.map_err(|error| failure::explain(error, &dir))
}

async fn run_in(config: Config, dir: &Path) -> anyhow::Result<()> {
    let mut told_to_stop = process::Stop::listen()?;
    let clock = SystemClock::shared();
    let storage_tasks = TaskGroup::new();
    let tasks = TaskGroup::new();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let message_max = config.broker.max_message_size.0 as usize;
    let mut settings = config.bookie.config(dir.join("bookie"), &config.broker.cluster, message_max)?;
    // There is no other copy to heal from.
    settings.only_copy = true;
    settings.refuse_losses = !config.serve_damaged;
    let _lock = lock(disk.as_ref(), dir)?;
    let (metadata, bookie) = open_halves(settings, &disk, &clock, dir, &storage_tasks).await?;
    let (broker, addresses) =
        start_broker(&config, &bookie, metadata, clock, (&tasks, &storage_tasks)).await?;
    process::say_ready(format_args!("{} {} data {}", addresses.pulsar, addresses.http, dir.display()));
    let mut health = bookie.health();
    tokio::select! {
        () = told_to_stop.told() => {}
        _ = health.wait_for(|health| *health == Health::Failed) => anyhow::bail!(
            "{}: the store in {} has failed and takes nothing any more; see the log, then start again",
            Code::DISK_FAILED,
            dir.display()
        ),
    }
    process::stop(&broker, &tasks, &storage_tasks).await;
    Ok(())
}

/// Opens metadata and store, if they belong together.
async fn open_halves(
    mut settings: geminga_bookie::Config,
    disk: &Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    dir: &Path,
    tasks: &TaskGroup,
) -> anyhow::Result<(Arc<dyn MetadataStore>, Bookie)> {
    let store_path = settings.data_dir.clone();
    let (metadata, halves, checked) = open_metadata(&settings, disk, clock, dir, tasks).await?;
    settings.known = Halves::counted_on(&checked);
    settings.known_boot = Halves::starts_known(&checked);
    let bookie = Bookie::open(settings, disk.clone(), clock.clone(), tasks)
        .map_err(|error| store_failure(&error, &store_path))?;
    halves.register(&*metadata, checked, &bookie).await?;
    Ok((metadata, bookie))
}

/// Opens metadata, if they and the store belong together as far as can be told before that is opened.
async fn open_metadata(
    settings: &geminga_bookie::Config,
    disk: &Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    dir: &Path,
    tasks: &TaskGroup,
) -> anyhow::Result<(Arc<dyn MetadataStore>, Halves, Checked)> {
    let (path, store_path) = (dir.join("metadata.redb"), settings.data_dir.clone());
    let halves = Halves {
        metadata_path: path.clone(),
        store_path: store_path.clone(),
        keys: Keys::new(&settings.cluster),
        id: settings.id.clone(),
    };
    let whose = geminga_bookie::whose(settings, &**disk)
        .map_err(|error| failure::disk(&error, "looking at the store in", &store_path))?;
    let names =
        disk.list(dir).map_err(|error| failure::disk(&error, "looking at the data directory", dir))?;
    // A file without a byte holds as much as none: opening would make metadata of it.
    let has_metadata = names.iter().any(|name| name == "metadata.redb")
        && !disk
            .open(&path, OpenMode::Read)
            .and_then(|file| file.is_empty())
            .map_err(|error| failure::disk(&error, "looking at the metadata in", &path))?;
    halves.check_files(has_metadata, &whose)?;
    let metadata = RedbStore::open(disk.clone(), &path, clock.clone(), tasks)
        .map_err(|error| metadata_failure(&error, &path))?;
    let metadata: Arc<dyn MetadataStore> = Arc::new(metadata);
    let checked = halves.check(&*metadata, &whose).await?;
    Ok((metadata, halves, checked))
}

fn store_failure(error: &OpenError, path: &Path) -> anyhow::Error {
    let failure = failure::about(error, "opening the store in", path);
    match error {
        OpenError::Lost(_) => {
            anyhow::anyhow!(
                "{failure}. Without a copy, `geminga admin accept-loss` shows what is lost and goes on without it for good; \
                 --serve-damaged serves what is left once, for reading it"
            )
        }
        _ => failure,
    }
}

fn metadata_failure(error: &redb::OpenError, path: &Path) -> anyhow::Error {
    match error {
        redb::OpenError::Disk(error) => failure::disk(error, "opening the metadata in", path),
        redb::OpenError::Database(_) => failure::coded(
            error.code(),
            format_args!(
                "opening the metadata in {}: {error}; put the file back from a copy made together with the store",
                path.display()
            ),
        ),
        redb::OpenError::FormatTooNew(_) => failure::about(error, "opening the metadata in", path),
    }
}

/// One process per data directory.
fn lock(disk: &dyn Disk, dir: &Path) -> anyhow::Result<Box<dyn std::any::Any + Send + Sync>> {
    disk.create_dir_all(dir).map_err(|error| failure::disk(&error, "making the data directory", dir))?;
    disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => failure::coded(
            Code::DATA_DIRECTORY_LOCKED,
            format_args!(
                "another process uses the data directory {}; stop it or pass another --data-dir",
                dir.display()
            ),
        ),
        _ => failure::disk(&error, "locking the data directory", dir),
    })
}

async fn start_broker(
    config: &Config,
    bookie: &Bookie,
    metadata: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    (tasks, storage_tasks): (&TaskGroup, &TaskGroup),
) -> anyhow::Result<(Arc<Broker>, Addresses)> {
    let pulsar = process::listen(config.bind, config.pulsar_port).await?;
    let http = process::listen(config.bind, config.http_port).await?;
    let addresses = process::addresses(&pulsar, &http, None)?;
    // The store's leases end with this process and its former ones' are purged when it opens: nothing has to be kept alive.
    let session = session::Settings { ttl: LEASE, keys: Vec::new() };
    let session = Session::start(metadata.clone(), clock.clone(), session, storage_tasks).await?;
    let one = QuorumSpec::new(1, 1, 1).expect("1/1/1 is a quorum");
    let rpc = InProcess::new([bookie.clone()]);
    let bookies = rpc.refs();
    let ledgers = LedgerClient::new(Parts {
        placement: Arc::new(StaticPlacement::new(bookies.clone())),
        rpc: Arc::new(rpc),
        meta: Arc::new(GatedStore::new(metadata.clone(), session.clone())),
        keys: Keys::new(&config.broker.cluster),
        quorum: one,
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::from_system(),
        tasks: tasks.clone(),
    });
    let gated = Arc::new(GatedStore::new(metadata.clone(), session.clone()));
    let tier =
        geminga_offload::Tier::open(&config.offload, &config.broker.cluster, clock.clone(), gated, tasks)
            .await
            .map_err(|error| failure::coded(error.code(), error))?;
    let deps = geminga_broker::Deps {
        tier,
        clock,
        metadata,
        metadata_url: "redb:metadata.redb".to_owned(),
        session,
        ledgers: Arc::new(ledgers),
        tasks: tasks.clone(),
        bookies: bookies.iter().map(|bookie| bookie.id.to_string()).collect(),
        boot: Rng::from_system().next_u64() >> 32,
        addresses: addresses.clone(),
        in_cluster: false,
        repair: None,
    };
    let broker = Broker::start(config.broker.clone(), deps).await.context("starting the broker")?;
    broker.serve(pulsar, http, process::bounds());
    Ok((broker, addresses))
}
