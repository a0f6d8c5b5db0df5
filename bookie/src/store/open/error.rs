//! Why a store does not open, said so that an operator knows what to do next.

use crate::ConfigError;
use crate::store::loss::Losses;
use geminga_common::error::{Code, Coded};
use std::io;

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of its range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Another process has it open.
    #[error("the store is in use by another process; stop that one first")]
    InUse,
    /// A newer version wrote it; nothing was changed.
    #[error("the store has format version {0}, newer than this program; start the version that wrote it")]
    Newer(u32),
    /// It belongs to another cluster; nothing was changed.
    #[error("the store belongs to cluster {0}; correct the cluster's name, or pass another data directory")]
    OtherCluster(String),
    /// The format file is damaged, or missing beside data; nothing was changed.
    #[error(
        "the file FORMAT is damaged, or missing beside data; put it back from a copy, nothing was changed"
    )]
    Format,
    /// It was made with other numbers of shards or directories; nothing was changed.
    #[error(
        "the store was made with {shards} shards in {data_dirs} data and {journal_dirs} journal directories; \
         set shards, more_data_dirs and journal_dirs to that"
    )]
    Layout {
        /// Shards it has.
        shards: u16,
        /// Data directories it has.
        data_dirs: u16,
        /// Journal directories of its own that it has.
        journal_dirs: u16,
    },
    /// It lacks what it had, and is to be refused then; nothing was changed.
    #[error(
        "{0}. Nothing was changed; put back what is missing, from a copy as new as the rest, and start again"
    )]
    Lost(Losses),
    /// It has lost nothing, so there is nothing to promote or to accept.
    #[error("the store has lost nothing: its incarnation stays")]
    NotLost,
    /// The disk failed.
    #[error("{}", describe(.0))]
    Disk(#[from] io::Error),
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("the file system is mounted read-only ({error}); mount it for writing and start again")
        }
        io::ErrorKind::StorageFull => {
            format!("the file system is full ({error}); make room and start again")
        }
        io::ErrorKind::PermissionDenied => {
            format!("permission is denied ({error}); look at owner, mode and attributes (lsattr)")
        }
        io::ErrorKind::IsADirectory => {
            format!(
                "a directory lies where a file belongs ({error}); move it away and put the file back from a copy"
            )
        }
        io::ErrorKind::NotADirectory => {
            format!(
                "a file lies where a directory belongs ({error}); move it away and put the directory back from a copy"
            )
        }
        _ => format!("the disk failed ({error}); look at that file and its disk, and at the system's log"),
    }
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Config(_) | Self::Layout { .. } => Code::CONFIG_INVALID,
            Self::InUse => Code::DATA_DIRECTORY_LOCKED,
            Self::Newer(_) => Code::FORMAT_TOO_NEW,
            Self::OtherCluster(_) => Code::DATA_DIRECTORY_FOREIGN,
            Self::Format | Self::Lost(_) => Code::DATA_LOSS,
            Self::Disk(error) if error.kind() == io::ErrorKind::StorageFull => Code::DISK_FULL,
            Self::Disk(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Code::READ_ONLY_DISK,
            Self::Disk(_) | Self::NotLost => Code::DATA_DIRECTORY_UNUSABLE,
        }
    }
}
