//! The real ledger client of a host.

use crate::node::transport;
use crate::sim::{Sim, keys};
use crate::topic::{KEY, Topic};
use geminga_bookie_client::grpc::GrpcBookies;
use geminga_bookie_client::ledgers::{LedgerClient, Parts};
use geminga_bookie_client::placement::zones::ZonePlacement;
use geminga_bookie_client::registry::Registry;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::{MetadataStore, Revision};
use geminga_common::tasks::TaskGroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

pub(crate) struct Client {
    pub(crate) ledgers: LedgerClient,
    pub(crate) rpc: GrpcBookies,
    pub(crate) meta: Arc<dyn MetadataStore>,
    pub(crate) registry: Registry,
    pub(crate) placement: Arc<ZonePlacement>,
}

impl Client {
    pub(crate) async fn new(sim: &Sim, name: &str, tasks: &TaskGroup) -> Self {
        let meta: Arc<dyn MetadataStore> = Arc::new(sim.meta());
        let registry = loop {
            match Registry::start(meta.clone(), keys(), tasks).await {
                Ok(registry) => break registry,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let rpc = GrpcBookies::new(transport(sim, name), registry.resolve(), tasks.clone());
        let (health, quorum) = (rpc.health().clone(), sim.plan.quorum);
        let placement =
            Arc::new(ZonePlacement::new(registry.clone(), Some(health), quorum.write(), sim.rng()));
        let ledgers = LedgerClient::new(Parts {
            rpc: Arc::new(rpc.clone()),
            meta: meta.clone(),
            keys: keys(),
            placement: placement.clone(),
            quorum,
            limits: Default::default(),
            recovery: Default::default(),
            rng: sim.rng(),
            tasks: tasks.clone(),
        });
        Self { ledgers, rpc, meta, registry, placement }
    }

    /// The topic's record, for as long as it takes.
    pub(crate) async fn topic(&self) -> (Topic, Option<Revision>) {
        loop {
            match self.meta.get(KEY).await {
                Ok(Some(stored)) => return (Topic::decode(&stored.value), Some(stored.mod_revision)),
                Ok(None) => return (Topic::default(), None),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Revision of an open ledger's record, for as long as it takes.
    pub(crate) async fn record(&self, id: LedgerId) -> Option<Revision> {
        loop {
            match self.meta.get(&keys().ledger(id)).await {
                Ok(stored) => return stored.map(|stored| stored.mod_revision),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }
}
