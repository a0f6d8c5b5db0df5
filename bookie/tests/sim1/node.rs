//! A bookie: opens what its machine has, registers, serves. It ends when its host does; a store that failed says so and stands still.

use crate::net;
use crate::sim::{CLUSTER, Sim, keys};
use crate::store::Store;
use geminga_bookie::node::registration::{Mine, Start, decide};
use geminga_bookie::service::{self, Service};
use geminga_bookie::steps::Steps;
use geminga_bookie::{Health, OpenError};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::registry::Registry;
use geminga_bookie_client::registry::record::{BookieRecord, Labels, LiveRecord, NodeState};
use geminga_common::metadata::{Compare, MetadataStore, Op, Txn, TxnOutcome};
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(3);

pub(crate) async fn node(sim: Arc<Sim>, number: usize) -> turmoil::Result {
    let tasks = TaskGroup::new();
    let config = sim.config(number);
    let disk = sim.machines.lock()[number].disk.clone();
    let steps = match Steps::open(config.clone(), Arc::new(disk), sim.clock.clone()) {
        Ok(steps) => steps,
        Err(OpenError::Disk(error)) => {
            sim.note(|| format!("b{number} does not start: {error}"));
            sim.machines.lock()[number].failed = true;
            return std::future::pending().await;
        }
        Err(error) => {
            sim.check.lock().broken(format!("b{number} does not open: {error}"));
            return std::future::pending().await;
        }
    };
    let (health, boot) = (steps.health(), steps.boot());
    if health != Health::Serving {
        sim.check.lock().broken(format!("S9: a crash alone made b{number} {health:?}"));
    }
    let store = Store::new(sim.clone(), number, steps);
    let incarnation = store.with(|steps| steps.incarnation());
    sim.note(|| format!("b{number}#{incarnation} starts"));
    let address = format!("b{number}:{}", net::PORT);
    let record = BookieRecord {
        incarnation,
        boot,
        address: address.clone(),
        labels: Labels { zone: format!("z{}", number % 3), ..Labels::default() },
        state: NodeState::ReadWrite,
        capacity_bytes: 0,
        damage: 0,
        room: Default::default(),
    };
    register(&sim, number, Mine { record, data_loss: false }).await;
    let (writing, keeping) = (store.clone(), store.clone());
    tasks.spawn("write", OnFailure::StopProcess, async move { writing.write().await });
    tasks.spawn("keep", OnFailure::StopProcess, async move { keeping.keep().await });
    let meta = Arc::new(sim.meta());
    let registry = loop {
        match Registry::start(meta.clone(), keys(), &tasks).await {
            Ok(registry) => break registry,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let peers = GrpcBookies::new(transport(&sim, &format!("b{number}")), registry.resolve(), tasks.clone());
    let live = LiveRecord { incarnation, address, process: sim.rng().next_u64() };
    let keeper = sim.clone();
    tasks.spawn("lease", OnFailure::StopProcess, async move { alive(&keeper, number, &live).await });
    let edge = Service::new(store, CLUSTER, service::Config::new(&config), Arc::new(peers), tasks.clone());
    edge.serve_on(net::incoming().await?).await?;
    Ok(())
}

/// The settings of a transport between hosts.
pub(crate) fn transport(sim: &Sim, client: &str) -> grpc::Config {
    let mut config = grpc::Config::new(CLUSTER, client);
    config.connector = Some(net::connector());
    config.seed = Some(sim.rng().next_u64());
    config
}

async fn register(sim: &Sim, number: usize, mine: Mine) {
    let (meta, key) = (sim.meta(), keys().bookie(&sim.config(number).id));
    loop {
        let Ok(stored) = meta.get(&key).await else { continue };
        let known = stored.as_ref().map(|stored| BookieRecord::decode(&stored.value).expect("ours"));
        let record = match decide(known.as_ref(), &mine) {
            Start::Write(record) => record,
            other => {
                sim.check.lock().broken(format!("I7: b{number} is not registered: {other:?}"));
                return std::future::pending().await;
            }
        };
        if record.state != NodeState::ReadWrite {
            sim.check.lock().broken(format!("b{number} registers as {:?}", record.state));
        }
        let compare = match &stored {
            Some(stored) => Compare::ModRevision(key.clone(), stored.mod_revision),
            None => Compare::Absent(key.clone()),
        };
        let txn = Txn { compares: vec![compare], ops: vec![Op::put(key.clone(), record.encode())] };
        if let Ok(TxnOutcome::Committed(_)) = meta.txn(txn).await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Keeps the liveness key while the host runs.
async fn alive(sim: &Sim, number: usize, live: &LiveRecord) {
    let (meta, key) = (sim.meta(), keys().live_bookie(&sim.config(number).id));
    let mut lease = None;
    loop {
        let renewed = match lease {
            Some(lease) => meta.lease_keep_alive(lease).await.is_ok(),
            None => false,
        };
        if !renewed {
            lease = None;
            if let Ok(granted) = meta.lease_grant(TTL).await {
                let put = Op::Put { key: key.clone(), value: live.encode(), lease: Some(granted) };
                if meta.txn(Txn { compares: Vec::new(), ops: vec![put] }).await.is_ok() {
                    lease = Some(granted);
                }
            }
        }
        sleep(if lease.is_some() { TTL / 3 } else { TTL / 20 }).await;
    }
}
