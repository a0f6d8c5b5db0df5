//! Opening the metadata store of a cluster by its URL: `etcd:http://host:port[,http://host:port...]`, or `https`.

use anyhow::Context as _;
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::etcd::{Config, EtcdStore, Tls};
use geminga_common::tasks::TaskGroup;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where metadata is and how to log in, table `metadata` of a role. An empty text is none. Secrets come from files, never from flags,
/// which others see.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Default `etcd:http://127.0.0.1:2379`. List all members of the etcd cluster, separated by commas.
    pub(crate) url: String,
    /// User name, where etcd's authentication is on. Default none.
    pub(crate) user: String,
    /// File with the user's password, one line. Needed with `user`.
    pub(crate) password_file: PathBuf,
    /// File with the certificate (PEM) of the authority that signed etcd's. Needed for `https`.
    pub(crate) ca_file: PathBuf,
    /// File with an own certificate (PEM), where etcd asks for one. Default none.
    pub(crate) certificate_file: PathBuf,
    /// File with its key (PEM). Needed with `certificate_file`.
    pub(crate) key_file: PathBuf,
    /// Longest wait for one answer, in milliseconds. Default 2 000, 100 to 10 000; at most a third of the lease's life, else a slow
    /// answer costs the lease.
    pub(crate) call_timeout_ms: u64,
    /// Longest wait for etcd at start, in milliseconds. Default 30 000, 0 to 3 600 000.
    pub(crate) start_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "etcd:http://127.0.0.1:2379".to_owned(),
            user: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            call_timeout_ms: 2_000,
            start_timeout_ms: 30_000,
        }
    }
}

#[allow(clippy::disallowed_methods)] // before anything runs that could be simulated
fn read(what: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("GM-6005: {what} {} cannot be read", path.display()))
}

fn given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Settings {
    fn etcd(&self) -> anyhow::Result<Config> {
        let endpoints = self.url.strip_prefix("etcd:").with_context(|| {
            format!("GM-6004: metadata.url is `{}`; a cluster's is etcd:http://host:port", self.url)
        })?;
        let mut config = Config::plain(endpoints.split(',').map(|url| url.trim().to_owned()).collect());
        anyhow::ensure!(
            (100..=10_000).contains(&self.call_timeout_ms) && self.start_timeout_ms <= 3_600_000,
            "GM-6004: metadata.call_timeout_ms must be 100 to 10000, metadata.start_timeout_ms at most 3600000"
        );
        config.call_timeout = Duration::from_millis(self.call_timeout_ms);
        config.start_timeout = Duration::from_millis(self.start_timeout_ms);
        if !self.user.is_empty() {
            anyhow::ensure!(given(&self.password_file), "GM-6004: metadata.user needs password_file");
            let password = String::from_utf8(read("the password file", &self.password_file)?);
            let password = password.context("GM-6004: the password of metadata.user is not text")?;
            config.user = Some((self.user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()));
        }
        if given(&self.ca_file) {
            let identity = match (given(&self.certificate_file), given(&self.key_file)) {
                (true, true) => {
                    Some((read("the certificate", &self.certificate_file)?, read("the key", &self.key_file)?))
                }
                (false, false) => None,
                _ => anyhow::bail!("GM-6004: metadata.certificate_file and key_file come together"),
            };
            config.tls = Some(Tls { ca: read("the authority's certificate", &self.ca_file)?, identity });
        }
        Ok(config)
    }
}

/// Opens the store; waits for etcd as long as the settings say. Its tasks end with `tasks`.
pub(crate) async fn open(settings: &Settings, tasks: &TaskGroup) -> anyhow::Result<Arc<dyn MetadataStore>> {
    let store = EtcdStore::connect(settings.etcd()?, tasks).await;
    Ok(Arc::new(store.context("GM-5001: opening the metadata store")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_and_a_secret_that_is_missing_are_named() {
        let refused = |settings: Settings| format!("{:#}", settings.etcd().unwrap_err());
        let url = Settings { url: "zk:localhost:2181".into(), ..Settings::default() };
        assert!(refused(url).contains("zk:localhost:2181"));
        let user = Settings { user: "geminga".into(), ..Settings::default() };
        assert!(refused(user).contains("password_file"));
        let half = Settings {
            ca_file: "/dev/null".into(),
            certificate_file: "/dev/null".into(),
            ..Settings::default()
        };
        assert!(refused(half).contains("key_file"));
        let two = Settings { url: "etcd:http://a:1,http://b:2".into(), ..Settings::default() };
        assert_eq!(two.etcd().unwrap().endpoints, ["http://a:1", "http://b:2"]);
    }
}
