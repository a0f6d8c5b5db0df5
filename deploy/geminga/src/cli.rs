//! The command line.

use clap::{Args, Parser, Subcommand};
use geminga_common::ids::TopicId;
use geminga_common::names::TopicName;
use geminga_offload::identity::StoreId;
use std::path::PathBuf;

/// Geminga: messages that stay.
#[derive(Parser)]
#[command(name = "geminga", version, about)]
pub(crate) struct Cli {
    /// What to be.
    #[command(subcommand)]
    pub(crate) role: Role,
}

/// What this process is.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// A whole Geminga in one process: metadata, one bookie, one broker. Loopback only unless told otherwise.
    Standalone(Box<StandaloneArgs>),
    /// A storage node of a cluster. Loopback only unless told otherwise.
    Bookie(Box<BookieArgs>),
    /// Serve topics of a cluster, over its bookies and its metadata in etcd.
    Broker(Box<BrokerArgs>),
    /// A whole cluster of processes on this machine.
    #[command(subcommand)]
    Cluster(crate::cluster::Command),
    /// Look after a cluster or a standalone.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Publish or consume load and report latencies.
    Perf(geminga_perf::Args),
}

/// Flags of `standalone`. A flag beats `GEMINGA_STANDALONE_<KEY>`, which beats the file, which beats the default.
#[derive(Args, Clone, Debug)]
pub(crate) struct StandaloneArgs {
    /// Where everything is stored. Default `data`, made if it is not there.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address to listen on. Default 127.0.0.1.
    #[arg(long)]
    pub(crate) bind: Option<String>,
    /// Port of the Pulsar protocol; 0 takes any free one. Default 6650.
    #[arg(long)]
    pub(crate) pulsar_port: Option<u16>,
    /// Port of REST and metrics; 0 takes any free one. Default 8080.
    #[arg(long)]
    pub(crate) http_port: Option<u16>,
    /// Configuration file (TOML, table `[standalone]`).
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// What to log: `info`, or directives such as `geminga_broker=debug`. Default `info`.
    #[arg(long)]
    pub(crate) log: Option<String>,
    /// Allow a bind address other than the loopback although nobody is authenticated.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Start although the store lacks files that it had, and serve what is left of it.
    #[arg(long)]
    pub(crate) serve_damaged: bool,
}

/// Flags of `broker`. A flag beats `GEMINGA_BROKER_<KEY>`, which beats the file, which beats the default.
#[derive(Args, Clone, Debug)]
pub(crate) struct BrokerArgs {
    /// Name of the cluster. Default `standalone`.
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// Metadata store: `etcd:http://host:port`, all members separated by commas. Default `etcd:http://127.0.0.1:2379`.
    #[arg(long)]
    pub(crate) metadata: Option<String>,
    /// Address to listen on. Default 127.0.0.1.
    #[arg(long)]
    pub(crate) bind: Option<String>,
    /// Host that clients and other brokers reach this one by. Default: the address it listens on.
    #[arg(long)]
    pub(crate) advertised_host: Option<String>,
    /// Port of the Pulsar protocol; 0 takes any free one. Default 6650.
    #[arg(long)]
    pub(crate) pulsar_port: Option<u16>,
    /// Port of REST and metrics; 0 takes any free one. Default 8080.
    #[arg(long)]
    pub(crate) http_port: Option<u16>,
    /// Copies of new ledgers, `ensemble/write/ack`. Default `3/3/2`.
    #[arg(long)]
    pub(crate) quorum: Option<String>,
    /// Configuration file (TOML, table `[broker]`).
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// What to log: `info`, or directives such as `geminga_broker=debug`. Default `info`.
    #[arg(long)]
    pub(crate) log: Option<String>,
    /// Allow a bind address other than the loopback although nobody is authenticated.
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// Flags of `bookie`. A flag beats `GEMINGA_BOOKIE_<KEY>`, which beats the file, which beats the default.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BookieArgs {
    /// Something else than serving.
    #[command(subcommand)]
    pub(crate) command: Option<BookieCommand>,
    /// Shards, each with a journal and threads of its own. Default 1, 1 to 64. Fixed when the store is made.
    #[arg(long)]
    pub(crate) shards: Option<u16>,
    /// A further data directory, on a volume of its own; once for each. Fixed when the store is made.
    #[arg(long)]
    pub(crate) more_data_dir: Vec<PathBuf>,
    /// A directory for journals, on a volume of its own; once for each. Default: beside the data. Fixed when the store is made.
    #[arg(long)]
    pub(crate) journal_dir: Vec<PathBuf>,
    /// Where everything is stored. Default `data`, made if it is not there.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Name of this bookie; every bookie of a cluster has its own, and keeps it. Default `bookie-0`.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Name of the cluster. Default `standalone`.
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// Address to listen on. Default 127.0.0.1.
    #[arg(long)]
    pub(crate) bind: Option<String>,
    /// Port of the bookie service; 0 takes any free one. Default 3181.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// `host:port` that others reach it by. Default: the address it listens on.
    #[arg(long)]
    pub(crate) advertised: Option<String>,
    /// URL of the cluster's metadata, `etcd:http://host:port`.
    #[arg(long)]
    pub(crate) metadata: Option<String>,
    /// Availability zone it stands in.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Rack it stands in.
    #[arg(long)]
    pub(crate) rack: Option<String>,
    /// Configuration file (TOML, table `[bookie]`).
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// What to log: `info`, or directives such as `geminga_bookie=debug`. Default `info`.
    #[arg(long)]
    pub(crate) log: Option<String>,
    /// Allow a bind address other than the loopback although nobody is authenticated.
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// What can be done with a bookie's store besides serving from it.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum BookieCommand {
    /// Look into a store that is not running: what lies in it, and whether every checksum holds. Changes nothing.
    Inspect(InspectArgs),
}

/// Flags of `bookie inspect`.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// The bookie's first data directory, the one with `FORMAT` in it (of a standalone: `DATA-DIR/bookie`).
    pub(crate) dir: PathBuf,
    /// A further data directory; once for each, in the order of the configuration.
    #[arg(long)]
    pub(crate) more_data_dir: Vec<PathBuf>,
    /// A journal directory of its own; once for each, in the order of the configuration.
    #[arg(long)]
    pub(crate) journal_dir: Vec<PathBuf>,
    /// Show more than a line per file: `journal`, `segments` or `manifest`.
    #[arg(long, value_enum)]
    pub(crate) show: Option<Shown>,
    /// Show all that is stored of this ledger.
    #[arg(long, conflicts_with = "show")]
    pub(crate) ledger: Option<u64>,
}

/// What `bookie inspect` shows in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Shown {
    /// Every batch of the journal.
    Journal,
    /// Every run of every segment.
    Segments,
    /// Every row of the manifest.
    Manifest,
}

/// What can be looked after.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum AdminCommand {
    /// The object store that closed ledgers go to.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Go on with what is left of a standalone's store that lost files, when there is no copy to put back. Tells what that means; changes
    /// nothing without `--yes`. The standalone must not run.
    AcceptLoss(AcceptLossArgs),
}

/// Flags of `admin accept-loss`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AcceptLossArgs {
    /// Configuration file (TOML, table `[standalone]`): the one that the standalone ran with.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Where the standalone stores everything. Default as in its settings.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Accept it, for good: a file that is put back later is not believed any more.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// What can be done with the object store.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum StorageCommand {
    /// Hold the bucket against the metadata and report what differs. Removes nothing. A cluster may run meanwhile, a standalone
    /// may not: its metadata is its own.
    Fsck(FsckArgs),
    /// Attach the topics of a bucket again whose metadata are gone, from the bucket alone. Nothing in the bucket is changed, no topic
    /// that is there is touched. No broker may run; a standalone has to have been started once, so that it has data.
    Rebuild(RebuildArgs),
}

/// Where the metadata and the bucket are. Read as the role itself reads it.
#[derive(Args, Clone, Debug)]
pub(crate) struct StorageArgs {
    /// Whose settings to use: table `[broker]` or `[standalone]` of the file.
    #[arg(long, value_enum)]
    pub(crate) role: StorageRole,
    /// Configuration file (TOML).
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Where a standalone stores everything. Default as in its settings.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Flags of `admin storage fsck`.
#[derive(Args, Clone, Debug)]
pub(crate) struct FsckArgs {
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    /// Also read every referenced object whole and check every byte: as many bytes as the bucket holds.
    #[arg(long)]
    pub(crate) verify: bool,
}

/// Flags of `admin storage rebuild`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RebuildArgs {
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    /// Say what would be done, and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The bucket's identity, 32 hexadecimal digits as a dry run tells them: its old metadata are lost, and this cluster takes it over.
    #[arg(long, value_name = "ID", value_parser = store_id)]
    pub(crate) adopt: Option<StoreId>,
    /// What a topic is called whose objects do not say (`offload.hide_names`), as TOPIC-ID=NAME; once for each.
    #[arg(long, value_name = "TOPIC-ID=NAME", value_parser = topic_name)]
    pub(crate) name: Vec<(TopicId, TopicName)>,
    /// Read every object whole and check every byte first: as many bytes as the bucket holds.
    #[arg(long)]
    pub(crate) verify: bool,
}

fn store_id(text: &str) -> Result<StoreId, String> {
    let wrong = || "an identity has 32 hexadecimal digits; a dry run tells it".to_owned();
    let id = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten();
    id.map(StoreId).ok_or_else(wrong)
}

fn topic_name(text: &str) -> Result<(TopicId, TopicName), String> {
    let (id, name) = text.split_once('=').ok_or("it is TOPIC-ID=persistent://tenant/namespace/topic")?;
    let id = id.parse().map_err(|_| format!("{id} is no topic id; a dry run tells it"))?;
    Ok((TopicId(id), TopicName::parse(name).map_err(|error| format!("{name}: {error}"))?))
}

/// A role that offloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum StorageRole {
    /// A cluster's broker.
    Broker,
    /// A standalone that is not running.
    Standalone,
}
