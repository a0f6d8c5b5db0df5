//! Opening the metadata store of a cluster by its URL.

use geminga_common::metadata::MetadataStore;
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where metadata is, table `metadata` of a role.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Default `etcd:http://127.0.0.1:2379`.
    pub(crate) url: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { url: "etcd:http://127.0.0.1:2379".to_owned() }
    }
}

/// Opens the store. Its tasks end with `tasks`.
pub(crate) async fn open(settings: &Settings, _tasks: &TaskGroup) -> anyhow::Result<Arc<dyn MetadataStore>> {
    anyhow::bail!("GM-6004: metadata.url is `{}`; this build opens no cluster metadata", settings.url)
}
