//! `geminga admin`: looking after what runs, or does not: the object store, and losses of a standalone (`accept_loss.rs`).

use crate::cli::{AdminCommand, FsckArgs, RebuildArgs, StorageArgs, StorageCommand, StorageRole};
use crate::{failure, process};
use geminga_broker::offload::{fsck, rebuild};
use geminga_common::clock::SystemClock;
use geminga_common::error::{Code, Coded};
use geminga_common::lane::Lane;
use geminga_common::metadata::MetadataStore;
use geminga_common::tasks::TaskGroup;
use geminga_offload::blob::{Blobs, store};
use geminga_offload::meters::Meters;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs one command.
pub(crate) fn main(command: AdminCommand) -> anyhow::Result<ExitCode> {
    process::start_log("warn")?;
    let runtime = process::runtime(1)?;
    match command {
        AdminCommand::Storage(StorageCommand::Fsck(args)) => runtime.block_on(check(args)),
        AdminCommand::Storage(StorageCommand::Rebuild(args)) => runtime.block_on(attach(args)),
        AdminCommand::AcceptLoss(args) => {
            runtime.block_on(crate::accept_loss::main(args)).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Where a role's metadata and bucket are.
pub(crate) struct Storage {
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) cluster: String,
    pub(crate) offload: geminga_offload::Config,
    /// Held while the metadata is open: nobody else has it open then.
    pub(crate) lock: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// Exit codes of a look that was made and found something; one that could not be made ends with 1.
const MESSAGES_AT_STAKE: u8 = 3;
const ONLY_SPACE: u8 = 4;

fn exit_code(graves: impl Iterator<Item = bool>) -> ExitCode {
    match graves.max() {
        None => ExitCode::SUCCESS,
        Some(true) => MESSAGES_AT_STAKE.into(),
        Some(false) => ONLY_SPACE.into(),
    }
}

/// The metadata and the bucket of a role, and what the bucket is called.
async fn opened(args: &StorageArgs, tasks: &TaskGroup) -> anyhow::Result<(Storage, Arc<dyn Blobs>, String)> {
    let storage = match args.role {
        StorageRole::Broker => crate::broker::storage(args.config.as_deref(), tasks).await?,
        StorageRole::Standalone => {
            crate::standalone::storage(args.config.as_deref(), args.data_dir.as_deref(), tasks)?
        }
    };
    let invalid = |error: &dyn std::fmt::Display| failure::coded(Code::CONFIG_INVALID, error);
    storage.offload.validate().map_err(|error| invalid(&error))?;
    let place = storage.offload.place();
    anyhow::ensure!(
        storage.offload.enabled(),
        "GM-6004: offload.url is not set in these settings, so there is no bucket to look at; pass the role's --config"
    );
    let clock = SystemClock::shared();
    let meters = Meters::new(clock.clone());
    let blobs =
        store::open(&storage.offload, clock, &meters, Lane::here()).map_err(|error| invalid(&error))?;
    Ok((storage, blobs, place))
}

/// Writes the report to stdout. The exit code says whether something differs.
async fn check(args: FsckArgs) -> anyhow::Result<ExitCode> {
    let tasks = TaskGroup::new();
    let (storage, blobs, place) = opened(&args.storage, &tasks).await?;
    let report = fsck::fsck(&*storage.metadata, &storage.cluster, &place, &*blobs, args.verify).await;
    let report = report.map_err(|error| {
        let doing = format!("holding {place} against the metadata of cluster {}", storage.cluster);
        failure::coded(error.code(), format_args!("{doing}: {error}"))
    })?;
    writeln!(std::io::stdout(), "{report}")?;
    tasks.stop();
    drop(storage.lock);
    Ok(exit_code(report.findings.iter().map(fsck::Finding::is_grave)))
}

/// Attaches topics from the bucket, or says what it would do; writes that to stdout, how far it is to stderr.
async fn attach(args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let tasks = TaskGroup::new();
    let (storage, blobs, place) = opened(&args.storage, &tasks).await?;
    let failed = |error: rebuild::RebuildError| {
        let doing = format!("attaching topics of cluster {} from {place}", storage.cluster);
        failure::coded(error.code(), format_args!("{doing}: {error}"))
    };
    let options = rebuild::Options { whole: args.verify, names: args.name.into_iter().collect() };
    let (meta, cluster) = (storage.metadata.clone(), storage.cluster.clone());
    let progress = Progress::default();
    let tell = |read, total| progress.tell(read, total);
    let plan = rebuild::plan(&*meta, &cluster, &place, &*blobs, &options, &tell).await;
    let mut plan = plan.map_err(failed)?;
    if args.dry_run {
        writeln!(std::io::stdout(), "{plan}")?;
        if let Some(id) = plan.to_adopt {
            writeln!(std::io::stdout(), "nothing was written; to carry it out: --adopt {id}")?;
        }
    } else {
        let alone = storage.lock.is_some();
        let target = rebuild::Target { meta, cluster, place: place.clone(), adopt: args.adopt, alone };
        rebuild::apply(&target, &mut plan, &tasks).await.map_err(failed)?;
        writeln!(std::io::stdout(), "{plan}")?;
    }
    tasks.stop();
    drop(storage.lock);
    Ok(exit_code(plan.findings.iter().map(rebuild::Finding::is_grave)))
}

/// Tells how far a long run is, every few seconds.
struct Progress {
    begun: Instant,
    /// Seconds after which it was told last.
    told: AtomicU64,
}

impl Default for Progress {
    #[allow(clippy::disallowed_methods)] // a person waits, nothing else depends on it
    fn default() -> Self {
        Self { begun: Instant::now(), told: AtomicU64::new(0) }
    }
}

impl Progress {
    const EVERY_S: u64 = 2;

    fn tell(&self, read: usize, total: usize) {
        let now = self.begun.elapsed().as_secs();
        if now >= self.told.load(Ordering::Relaxed) + Self::EVERY_S {
            self.told.store(now, Ordering::Relaxed);
            let _stderr_may_be_closed = writeln!(std::io::stderr(), "{read} of {total} objects read");
        }
    }
}
