//! `geminga broker`: serves topics over the bookies and the metadata of a cluster. Keeps nothing on disk.
//!
//! Start: configuration, metadata (waits for it), listeners, lease, bookies, broker, ready line. Stop (SIGTERM or SIGINT): topics
//! unload, the lease ends, so that other brokers serve them at once.

use crate::admin::Storage;
use crate::cli::BrokerArgs;
use crate::{failure, metadata, process};
use anyhow::Context as _;
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::placement::zones::ZonePlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::registry::Registry;
use geminga_broker::{Addresses, Broker, GatedStore};
use geminga_common::clock::SystemClock;
use geminga_common::error::{Code, Coded as _};
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::session::{self, Session};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Settings of `broker`, table `[broker]` of the configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the cluster. Default `standalone`. Part of every metadata key; brokers and bookies of a cluster agree on it, and it must
    /// not change later. It replaces `service.cluster`.
    #[serde(deserialize_with = "geminga_common::names::deserialize_cluster")]
    cluster: String,
    /// Address to listen on. Default 127.0.0.1.
    bind: IpAddr,
    /// Host that clients and other brokers reach this one by. Default empty: the address it listens on.
    advertised_host: String,
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
    /// Where metadata is.
    metadata: metadata::Settings,
    /// Life of the lease in milliseconds. Default 10 000, 3 000 to 120 000, and at least three of `metadata.call_timeout_ms`. A
    /// shorter one notices a dead broker sooner and a stalled one too.
    lease_ms: u64,
    /// Milliseconds a bookie may be without its lease before open ledgers that have it look for another. Default 5 000, 0 to 600 000.
    /// With a short one a bookie that restarts costs every such ledger a change of its ensemble; with a long one an idle topic
    /// lacks a copy for longer. Topics that are published to notice by themselves.
    bookie_grace_ms: u64,
    /// Copies of new ledgers: bookies of an ensemble, copies of an entry, copies that acknowledge. Default `3/3/2`. With fewer
    /// bookies than the first number copies are missing, and are made up for later; below the last nothing is acknowledged.
    quorum: String,
    /// How long a bookie may be away, in milliseconds, before what it held is copied to others. Default 600 000, 1 000 to 86 400 000.
    /// Shorter copies much for a bookie that only restarts; longer leaves fewer copies for longer.
    repair_after_ms: u64,
    /// Where closed ledgers go, table `[broker.offload]`; off by default. The keys: `broker/offload/src/config.rs`.
    offload: geminga_offload::Config,
    /// Topics and connections.
    service: geminga_broker::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "standalone".to_owned(),
            bind: IpAddr::from([127, 0, 0, 1]),
            advertised_host: String::new(),
            pulsar_port: 6650,
            http_port: 8080,
            log: "info".to_owned(),
            insecure: false,
            threads: 0,
            metadata: metadata::Settings::default(),
            lease_ms: 10_000,
            bookie_grace_ms: 5_000,
            quorum: "3/3/2".to_owned(),
            repair_after_ms: 600_000,
            offload: geminga_offload::Config::default(),
            service: geminga_broker::Config::default(),
        }
    }
}

impl Config {
    fn quorum(&self) -> anyhow::Result<QuorumSpec> {
        let numbers: Option<Vec<u32>> = self.quorum.split('/').map(|part| part.trim().parse().ok()).collect();
        let spec = match numbers.as_deref() {
            Some([ensemble, write, ack]) => QuorumSpec::new(*ensemble, *write, *ack).ok(),
            _ => None,
        };
        spec.with_context(|| {
            format!(
                "GM-6004: quorum is `{}`; it is ensemble/write/ack, such as 3/3/2, none above the one before",
                self.quorum
            )
        })
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.quorum()?;
        self.service.validate().map_err(|error| {
            failure::coded(Code::CONFIG_INVALID, format_args!("[broker.service] {error}"))
        })?;
        self.offload.validate().map_err(|error| {
            failure::coded(Code::CONFIG_INVALID, format_args!("[broker.offload] {error}"))
        })?;
        anyhow::ensure!(
            (1_000..=86_400_000).contains(&self.repair_after_ms),
            "GM-6004: repair_after_ms is {}; it must be 1000 to 86400000",
            self.repair_after_ms
        );
        anyhow::ensure!(
            (3_000..=120_000).contains(&self.lease_ms) && self.lease_ms >= 3 * self.metadata.call_timeout_ms,
            "GM-6004: lease_ms is {}; it must be 3000 to 120000 and at least three times metadata.call_timeout_ms",
            self.lease_ms
        );
        anyhow::ensure!(
            self.bookie_grace_ms <= 600_000,
            "GM-6004: bookie_grace_ms is {}; it must be 0 to 600000",
            self.bookie_grace_ms
        );
        Ok(())
    }
}

/// Runs until told to stop.
pub(crate) fn main(args: BrokerArgs) -> anyhow::Result<()> {
    let mut config = load(&args)?;
    config.service.cluster.clone_from(&config.cluster);
    process::start_log(&config.log)?;
    process::raise_open_files();
    process::check_bind(config.bind, config.insecure)?;
    config.validate()?;
    process::runtime(config.threads)?.block_on(run(config))
}

fn load(args: &BrokerArgs) -> anyhow::Result<Config> {
    let metadata = args.metadata.clone().map(|url| {
        toml::Value::Table(toml::Table::from_iter([("url".to_owned(), toml::Value::String(url))]))
    });
    let flags = [
        ("cluster", args.cluster.clone().map(Into::into)),
        ("metadata", metadata),
        ("bind", args.bind.clone().map(Into::into)),
        ("advertised_host", args.advertised_host.clone().map(Into::into)),
        ("pulsar_port", args.pulsar_port.map(|port| i64::from(port).into())),
        ("http_port", args.http_port.map(|port| i64::from(port).into())),
        ("quorum", args.quorum.clone().map(Into::into)),
        ("log", args.log.clone().map(Into::into)),
        ("insecure", args.insecure.then_some(toml::Value::Boolean(true))),
    ];
    process::load("broker", args.config.as_deref(), flags)
}

/// Opens the metadata of a cluster, for whoever looks after it.
pub(crate) async fn storage(file: Option<&Path>, tasks: &TaskGroup) -> anyhow::Result<Storage> {
    let config: Config = process::load("broker", file, [])?;
    let metadata = metadata::open(&config.metadata, tasks).await?;
    Ok(Storage { metadata, cluster: config.cluster, offload: config.offload, lock: None })
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut told_to_stop = process::Stop::listen()?;
    let (tasks, below) = (TaskGroup::new(), TaskGroup::new());
    let start = async {
        let metadata = metadata::open(&config.metadata, &below).await?;
        let (broker, addresses) = start_broker(&config, metadata, &tasks, &below).await?;
        let Addresses { pulsar, http, .. } = &addresses;
        process::say_ready(format_args!("{pulsar} {http} metadata {}", config.metadata.url));
        anyhow::Ok(broker)
    };
    let broker = tokio::select! {
        started = start => started?,
        () = told_to_stop.told() => return Ok(()),
    };
    told_to_stop.told().await;
    process::stop(&broker, &tasks, &below).await;
    Ok(())
}

async fn start_broker(
    config: &Config,
    metadata: Arc<dyn MetadataStore>,
    tasks: &TaskGroup,
    below: &TaskGroup,
) -> anyhow::Result<(Arc<Broker>, Addresses)> {
    let clock = SystemClock::shared();
    let pulsar = process::listen(config.bind, config.pulsar_port).await?;
    let http = process::listen(config.bind, config.http_port).await?;
    let advertised = Some(config.advertised_host.as_str()).filter(|host| !host.is_empty());
    let addresses = process::addresses(&pulsar, &http, advertised)?;
    let (keys, member) = (Keys::new(&config.cluster), addresses.member());
    let session = session::Settings {
        ttl: Duration::from_millis(config.lease_ms),
        keys: vec![(keys.live_broker(&member.id), member.encode())],
    };
    let session = Session::start(metadata.clone(), clock.clone(), session, below)
        .await
        .context("GM-5001: getting a lease from the metadata store")?;
    let registry = Registry::start(metadata.clone(), keys.clone(), tasks)
        .await
        .context("GM-5001: listing the bookies")?;
    let rpc = grpc::Config::new(&config.cluster, &member.id);
    let rpc = GrpcBookies::new(rpc, registry.resolve(), tasks.clone());
    let quorum = config.quorum()?;
    let health = Some(rpc.health().clone());
    let placement = ZonePlacement::new(registry.clone(), health, quorum.write(), Rng::from_system());
    let (placement, rpc) = (Arc::new(placement), Arc::new(rpc));
    let repair = geminga_broker::repair::Means {
        rpc: rpc.clone(),
        registry: registry.clone(),
        placement: placement.clone(),
        grace: Duration::from_millis(config.repair_after_ms),
    };
    let ledgers = LedgerClient::new(Parts {
        placement,
        rpc,
        meta: Arc::new(GatedStore::new(metadata.clone(), session.clone())),
        keys,
        quorum,
        limits: Default::default(),
        recovery: Default::default(),
        rng: Rng::from_system(),
        tasks: tasks.clone(),
    });
    let gated = Arc::new(GatedStore::new(metadata.clone(), session.clone()));
    let tier =
        geminga_offload::Tier::open(&config.offload, &config.service.cluster, clock.clone(), gated, tasks)
            .await
            .map_err(|error| failure::coded(error.code(), error))?;
    let deps = geminga_broker::Deps {
        tier,
        clock,
        metadata,
        metadata_url: config.metadata.url.clone(),
        session,
        ledgers: Arc::new(ledgers),
        tasks: tasks.clone(),
        bookies: Vec::new(),
        boot: Rng::from_system().next_u64(),
        addresses: addresses.clone(),
        in_cluster: true,
        repair: Some(repair),
    };
    let broker = Broker::start(config.service.clone(), deps).await.context("starting the broker")?;
    broker.follow_bookies(&registry, Duration::from_millis(config.bookie_grace_ms));
    broker.serve(pulsar, http, process::bounds());
    Ok((broker, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let refused = |config: Config| format!("{:#}", config.validate().unwrap_err());
        for quorum in ["3/2", "2/3/2", "a/b/c", "3/3/0", ""] {
            let config = Config { quorum: quorum.into(), ..Config::default() };
            assert!(refused(config).contains("quorum"), "{quorum}");
        }
        let lease = Config { lease_ms: 5_000, ..Config::default() };
        assert!(refused(lease).contains("lease_ms"));
        let grace = Config { bookie_grace_ms: 600_001, ..Config::default() };
        assert!(refused(grace).contains("bookie_grace_ms"));
        assert!(Config::default().validate().is_ok());
    }
}
