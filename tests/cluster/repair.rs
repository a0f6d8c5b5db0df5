//! One of exactly three bookies goes away and comes back, or comes back empty: publishing goes on meanwhile, across rolls and new
//! topics, and afterwards every closed ledger is on its whole write quorum again, without a restart of anything else. What "whole"
//! means is read from metadata and asked of the bookies themselves, not of the broker.

use super::{Cluster, PATIENCE, again, payload};
use anyhow::{Context as _, Result, ensure};
use geminga_tests::audit::Auditor;
use geminga_tests::client::Client;
use std::time::Duration;

/// Ledgers roll after a hundred entries; nobody waits long for a bookie.
const SETTINGS: [(&str, &str); 4] = [
    ("GEMINGA_BROKER_SERVICE_LEDGER_ENTRIES", "100"),
    ("GEMINGA_BROKER_REPAIR_AFTER_MS", "5000"),
    ("GEMINGA_BROKER_BOOKIE_GRACE_MS", "1000"),
    ("GEMINGA_BOOKIE_LEASE_MS", "2000"),
];
/// How long all repairs may take here.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);

fn topic(name: &str) -> String {
    format!("persistent://public/default/{name}")
}

fn keep(url: &str, name: &str) -> Result<()> {
    again(|| {
        let at = Client::connect(url, PATIENCE)?.lookup(&topic(name))?;
        Client::connect(&at, Duration::from_secs(2))?.read(&topic(name), "keeper", 0, PATIENCE).map(drop)
    })
}

fn publish(url: &str, name: &str, range: std::ops::Range<u64>) -> Result<()> {
    let (mut client, producer) = again(|| {
        let mut client = Client::connect(url, PATIENCE)?;
        let producer = client.producer(&topic(name), name)?;
        Ok((client, producer))
    })?;
    for n in range {
        client.write(producer, name, n, &payload(name, n))?;
        let (sequence, ..) = client.receipt()?.with_context(|| format!("no receipt for {name} {n}"))?;
        ensure!(sequence == n, "receipt {sequence} instead of {n}");
    }
    Ok(())
}

fn read_all(url: &str, name: &str, count: u64) -> Result<()> {
    let got = again(|| {
        let at = Client::connect(url, PATIENCE)?.lookup(&topic(name))?;
        let mut client = Client::connect(&at, Duration::from_secs(2))?;
        client.read(&topic(name), "all", count as usize, Duration::from_secs(30))
    })?;
    for (n, message) in got.iter().enumerate() {
        ensure!(message.payload == payload(name, n as u64), "message {n} of {name} has other bytes");
    }
    ensure!(got.windows(2).all(|pair| pair[0].position < pair[1].position), "positions go back");
    Ok(())
}

#[test]
fn a_bookie_that_comes_back_and_one_that_comes_back_empty_are_caught_up() -> Result<()> {
    let Some(mut cluster) = Cluster::up_with("repair in a cluster", &SETTINGS)? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let auditor = runtime.block_on(Auditor::new(cluster.address("etcd")?))?;
    for name in ["a", "b"] {
        keep(&cluster.pulsar, name)?;
    }
    publish(&cluster.pulsar, "a", 0..250).with_context(|| cluster.logs())?;

    // Away: rolls and new topics go on, with two copies.
    cluster.signal("bookie-1", "-KILL")?;
    publish(&cluster.pulsar, "a", 250..620).with_context(|| cluster.logs())?;
    publish(&cluster.pulsar, "b", 0..130).with_context(|| cluster.logs())?;
    let wrong = runtime.block_on(auditor.wrong())?;
    ensure!(wrong.is_some(), "with a bookie down every ledger is whole: the audit sees nothing");
    cluster.start()?;
    let took = runtime.block_on(auditor.whole(WHOLE_WITHIN)).with_context(|| cluster.logs())?;
    println!("whole {} ms after the bookie came back", took.as_millis());

    // Empty: another store under the name.
    cluster.signal("bookie-2", "-KILL")?;
    std::fs::remove_dir_all(cluster.dir.path().join("bookie-2"))?;
    publish(&cluster.pulsar, "b", 130..300).with_context(|| cluster.logs())?;
    cluster.start()?;
    let took = runtime.block_on(auditor.whole(WHOLE_WITHIN)).with_context(|| cluster.logs())?;
    println!("whole {} ms after the bookie came back empty", took.as_millis());

    publish(&cluster.pulsar, "a", 620..700).with_context(|| cluster.logs())?;
    read_all(&cluster.pulsar, "a", 700).with_context(|| cluster.logs())?;
    read_all(&cluster.pulsar, "b", 300).with_context(|| cluster.logs())?;
    Ok(())
}
