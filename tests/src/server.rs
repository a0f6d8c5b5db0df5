//! A whole server inside the test's process, for what cannot be seen from outside: the copy counter, say. Wired as the
//! standalone role is, with metadata in memory.

use anyhow::{Context as _, Result};
use geminga_bookie::{Bookie, InProcess};
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_broker::{Broker, Config, Deps};
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::ids::BookieId;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore, keys::Keys};
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;

/// A running server.
pub struct Server {
    /// `host:port` of the Pulsar protocol.
    pub pulsar: String,
    broker: Arc<Broker>,
    tasks: TaskGroup,
}

impl Server {
    /// Starts a broker and a bookie that stores in `dir`.
    ///
    /// # Errors
    /// The store does not open or a port cannot be had.
    pub async fn start(dir: &Path) -> Result<Self> {
        let (clock, tasks) = (SystemClock::shared(), TaskGroup::new());
        let config = Config::default();
        let id = BookieId::new("bookie-0").context("a name")?;
        let store = geminga_bookie::Config::new(id, dir.to_path_buf(), &config.cluster);
        let bookie = Bookie::open(store, Arc::new(RealDisk), clock.clone(), &tasks)?;
        let metadata: Arc<dyn MetadataStore> = Arc::new(MemoryStore::new(clock.clone()));
        let rpc = InProcess::new([bookie]);
        let ledgers = LedgerClient::new(Parts {
            placement: Arc::new(StaticPlacement::new(rpc.refs())),
            rpc: Arc::new(rpc),
            meta: metadata.clone(),
            keys: Keys::new(&config.cluster),
            quorum: QuorumSpec::new(1, 1, 1)?,
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::from_system(),
            tasks: tasks.clone(),
        });
        let (pulsar, http) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let address = pulsar.local_addr()?.to_string();
        let deps = Deps::alone(metadata, Arc::new(ledgers), &tasks, &address).await;
        let broker = Broker::start(config, deps).await?;
        broker.serve(pulsar, http, geminga_broker::Bounds::NONE);
        Ok(Self { pulsar: address, broker, tasks })
    }

    /// Unloads the topics and ends every task.
    pub async fn stop(self) {
        self.broker.drain().await;
        self.tasks.stop();
        self.tasks.join(std::time::Duration::from_secs(5)).await;
    }
}
