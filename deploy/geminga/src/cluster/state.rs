//! What the directory of a cluster says: `cluster.json`, replaced as a whole.

use anyhow::{Context as _, Result};
use geminga_common::ports;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Layout of `cluster.json`.
const VERSION: u32 = 1;

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Etcd,
    Bookie,
    Broker,
}

/// A process that was started: ids are given again, so that the start time belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) id: u32,
    /// Clock ticks from boot to its start.
    pub(super) started: u64,
}

/// One process of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// etcd: clients; bookie: service; broker: Pulsar.
    pub(super) port: u16,
    /// etcd: peers; broker: HTTP; bookie: not used.
    pub(super) second_port: u16,
    pub(super) running: Option<Running>,
}

/// The cluster; processes in the order in which they start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cluster {
    version: u32,
    pub(super) processes: Vec<Process>,
    /// Configuration file of brokers and bookies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<PathBuf>,
}

/// Where a process logs.
pub(super) fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.log"))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("cluster.json")
}

/// One command at a time.
pub(super) fn lock(dir: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(dir.join("LOCK"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another `geminga cluster` command is at work in {}", dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

impl Cluster {
    /// A cluster that nothing runs of yet. Its ports are free now.
    pub(super) fn new(dir: &Path, bookies: u16, pulsar_port: u16, http_port: u16) -> Result<Self> {
        let process =
            |name: String, kind, port, second_port| Process { name, kind, port, second_port, running: None };
        let [clients, peers, any_pulsar, any_http] = ports::free()?;
        let mut processes = vec![process("etcd".into(), Kind::Etcd, clients, peers)];
        let of_bookies = ports::free::<9>()?;
        for (n, port) in of_bookies.into_iter().take(usize::from(bookies)).enumerate() {
            processes.push(process(format!("bookie-{n}"), Kind::Bookie, port, 0));
        }
        let or = |port, any| if port == 0 { any } else { port };
        let (pulsar, http) = (or(pulsar_port, any_pulsar), or(http_port, any_http));
        processes.push(process("broker".into(), Kind::Broker, pulsar, http));
        let cluster = Self { version: VERSION, processes, config: None };
        std::fs::create_dir_all(dir.join("logs"))?;
        cluster.store(dir)?;
        Ok(cluster)
    }

    /// The cluster of a directory, if there is one.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = file(dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let cluster: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what `geminga cluster` writes", path.display()))?;
        anyhow::ensure!(
            cluster.version == VERSION,
            "{} has layout {}, this program knows {VERSION}",
            path.display(),
            cluster.version
        );
        Ok(Some(cluster))
    }

    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        let next = dir.join("cluster.json.new");
        std::fs::write(&next, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&next, file(dir)).with_context(|| format!("writing {}", file(dir).display()))
    }

    /// The first process of a kind; every cluster has one of each.
    pub(super) fn of(&self, kind: Kind) -> &Process {
        self.processes.iter().find(|p| p.kind == kind).expect("every cluster has etcd, a bookie and a broker")
    }

    /// The processes of these names, in the order in which they start; all when none is named.
    pub(super) fn wanted(&self, names: &[String]) -> Result<Vec<usize>> {
        let known = || self.processes.iter().map(|p| p.name.as_str());
        for name in names {
            anyhow::ensure!(
                known().any(|known| known == name),
                "there is no `{name}`; there are {}",
                known().collect::<Vec<_>>().join(", ")
            );
        }
        let wanted = |(n, known): (usize, &str)| {
            (names.is_empty() || names.iter().any(|name| name == known)).then_some(n)
        };
        Ok(known().enumerate().filter_map(wanted).collect())
    }

    pub(super) fn bookies(&self) -> u32 {
        self.processes.iter().filter(|p| p.kind == Kind::Bookie).count() as u32
    }
}
