//! `geminga admin`: looking after what runs, or does not. So far the object store.

use crate::cli::{AdminCommand, FsckArgs, StorageCommand, StorageRole};
use crate::process;
use anyhow::Context as _;
use geminga_broker::offload::fsck::fsck;
use geminga_common::clock::SystemClock;
use geminga_common::metadata::MetadataStore;
use geminga_common::tasks::TaskGroup;
use std::io::Write as _;
use std::sync::Arc;

/// Runs one command.
pub(crate) fn main(command: AdminCommand) -> anyhow::Result<()> {
    let AdminCommand::Storage(StorageCommand::Fsck(args)) = command;
    process::start_log("warn")?;
    process::runtime(1)?.block_on(check(args))
}

/// Where a role's metadata and bucket are.
pub(crate) struct Storage {
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) cluster: String,
    pub(crate) offload: geminga_offload::Config,
    /// Held while the metadata is open.
    pub(crate) lock: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// Writes the report to stdout; fails when something differs.
async fn check(args: FsckArgs) -> anyhow::Result<()> {
    let tasks = TaskGroup::new();
    let storage = match args.role {
        StorageRole::Broker => crate::broker::storage(args.config.as_deref(), &tasks).await?,
        StorageRole::Standalone => {
            crate::standalone::storage(args.config.as_deref(), args.data_dir.as_deref(), &tasks)?
        }
    };
    storage.offload.validate().context("GM-6004: configuration of offloading")?;
    let url = &storage.offload.url;
    anyhow::ensure!(
        storage.offload.enabled(),
        "GM-6004: offload.url is not set in these settings, so there is no bucket to look at; pass the role's --config"
    );
    let blobs = geminga_offload::blob::store::open(&storage.offload, SystemClock::shared())
        .context("GM-6004: configuration of offloading")?;
    let report = fsck(&*storage.metadata, &storage.cluster, &*blobs, args.verify)
        .await
        .with_context(|| format!("holding {url} against the metadata of cluster {}", storage.cluster))?;
    writeln!(std::io::stdout(), "{report}")?;
    tasks.stop();
    drop(storage.lock);
    anyhow::ensure!(
        report.findings.is_empty(),
        "{} findings in {url}; see the lines that begin with `!`",
        report.findings.len()
    );
    Ok(())
}
