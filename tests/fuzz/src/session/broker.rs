//! A broker over bookies and metadata in memory.

use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::memory::MemoryBookies;
use geminga_bookie_client::placement::StaticPlacement;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_broker::{Broker, Config, Deps};
use geminga_common::clock::SystemClock;
use geminga_common::config::ByteSize;
use geminga_common::metadata::MetadataStore;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Longest a broker may take to unload and end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running broker.
pub(super) struct Running {
    /// Where clients connect.
    pub(super) address: SocketAddr,
    broker: Arc<Broker>,
    tasks: TaskGroup,
}

fn config() -> Config {
    Config {
        max_message_size: ByteSize(64 << 10),
        publish_budget: ByteSize(256 << 10),
        cache: ByteSize(64 << 10),
        keep_alive_ms: 300_000,
        liveness_timeout_ms: 10,
        cursor_write_ms: 1,
        // Small, so that a few messages cross a ledger.
        ledger_entries: 3,
        cursor_ledger_size: ByteSize(4 << 10),
        failover_delay_ms: 0,
        ..Config::default()
    }
}

impl Running {
    pub(super) async fn start() -> Self {
        let (tasks, clock) = (TaskGroup::new(), SystemClock::shared());
        let metadata: Arc<dyn MetadataStore> = Arc::new(MemoryStore::new(clock.clone()));
        let config = config();
        let bookies = MemoryBookies::new(1);
        let ledgers = LedgerClient::new(Parts {
            placement: Arc::new(StaticPlacement::new(bookies.refs())),
            rpc: Arc::new(bookies),
            meta: metadata.clone(),
            keys: Keys::new(&config.cluster),
            quorum: QuorumSpec::new(1, 1, 1).expect("1/1/1 is a quorum"),
            limits: Default::default(),
            recovery: Default::default(),
            rng: Rng::seeded(1),
            tasks: tasks.clone(),
        });
        let ledgers = Arc::new(ledgers);
        let pulsar = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has a free port");
        let http = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has a free port");
        let address = pulsar.local_addr().expect("it is bound");
        let deps = Deps::alone(metadata, ledgers, &tasks, &address.to_string()).await;
        let broker = Broker::start(config, deps).await.expect("metadata in memory answers");
        broker.serve(pulsar, http, geminga_broker::Bounds::NONE);
        Self { address, broker, tasks }
    }

    pub(super) async fn stop(self) {
        tokio::time::timeout(PATIENCE, self.broker.drain()).await.expect("every topic unloads");
        self.tasks.stop();
        let late = self.tasks.join(PATIENCE).await;
        assert!(late.is_empty(), "still running: {late:?}");
    }
}
