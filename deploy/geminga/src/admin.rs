//! `geminga admin`: looking after what runs, or does not: the object store, and losses of a standalone (`accept_loss.rs`).

use crate::cli::{AdminCommand, FsckArgs, StorageCommand, StorageRole};
use crate::{failure, process};
use geminga_broker::offload::fsck::{Finding, fsck};
use geminga_common::clock::SystemClock;
use geminga_common::error::{Code, Coded as _};
use geminga_common::metadata::MetadataStore;
use geminga_common::tasks::TaskGroup;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

/// Runs one command.
pub(crate) fn main(command: AdminCommand) -> anyhow::Result<ExitCode> {
    process::start_log("warn")?;
    let runtime = process::runtime(1)?;
    match command {
        AdminCommand::Storage(StorageCommand::Fsck(args)) => runtime.block_on(check(args)),
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
    /// Held while the metadata is open.
    pub(crate) lock: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// Exit codes of a check that was made and found something; one that could not be made ends with 1.
const MESSAGES_AT_STAKE: u8 = 3;
const ONLY_SPACE: u8 = 4;

/// Writes the report to stdout. The exit code says whether something differs.
async fn check(args: FsckArgs) -> anyhow::Result<ExitCode> {
    let tasks = TaskGroup::new();
    let storage = match args.role {
        StorageRole::Broker => crate::broker::storage(args.config.as_deref(), &tasks).await?,
        StorageRole::Standalone => {
            crate::standalone::storage(args.config.as_deref(), args.data_dir.as_deref(), &tasks)?
        }
    };
    let invalid = |error: &dyn std::fmt::Display| failure::coded(Code::CONFIG_INVALID, error);
    storage.offload.validate().map_err(|error| invalid(&error))?;
    let place = storage.offload.place();
    anyhow::ensure!(
        storage.offload.enabled(),
        "GM-6004: offload.url is not set in these settings, so there is no bucket to look at; pass the role's --config"
    );
    let blobs = geminga_offload::blob::store::open(&storage.offload, SystemClock::shared())
        .map_err(|error| invalid(&error))?;
    let report = fsck(&*storage.metadata, &storage.cluster, &place, &*blobs, args.verify).await;
    let report = report.map_err(|error| {
        let doing = format!("holding {place} against the metadata of cluster {}", storage.cluster);
        failure::coded(error.code(), format_args!("{doing}: {error}"))
    })?;
    writeln!(std::io::stdout(), "{report}")?;
    tasks.stop();
    drop(storage.lock);
    Ok(match report.findings.iter().map(Finding::is_grave).max() {
        None => ExitCode::SUCCESS,
        Some(true) => MESSAGES_AT_STAKE.into(),
        Some(false) => ONLY_SPACE.into(),
    })
}
