//! The metadata's disk fills up while the server runs: what it answers meanwhile, and that it goes on by itself when there is room.

use super::disk::{LEFT_OUT, Small, log, start};
use super::lifecycle::eventually;
use anyhow::{Result, ensure};
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::process::{Standalone, refused};
use geminga_tests::wire::Wire;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const TENANTS: &str = "/admin/v2/tenants";

/// Makes a tenant whose record takes some room.
fn make(server: &Standalone, n: usize) -> Result<(u16, String)> {
    let roles: Vec<String> = (0..200).map(|role| format!("role-{n}-{role}-{}", "x".repeat(40))).collect();
    let body = serde_json::json!({ "adminRoles": roles, "allowedClusters": ["standalone"] });
    server.request_with("PUT", &format!("{TENANTS}/t{n}"), &body.to_string())
}

fn tenants(server: &Standalone) -> Result<BTreeSet<String>> {
    let (status, body) = server.request("GET", TENANTS)?;
    ensure!(status == 200, "{status} {body}");
    Ok(serde_json::from_str(&body)?)
}

/// Tenants made while there is room.
const EARLY: usize = 50;

/// Makes tenants until one is refused; how many were made, and what was said.
fn until_full(server: &Standalone) -> Result<(usize, String)> {
    for n in EARLY..20_000 {
        let (status, body) = make(server, n)?;
        if status != 204 {
            // Whether the one in doubt has happened was looked up, so this may be what the second attempt said.
            let coded = body.contains("GM-5001") || body.contains("GM-5002");
            ensure!(status == 503 && coded && body.contains("make room"), "tenant {n}: {status} {body}");
            return Ok((n, body));
        }
    }
    anyhow::bail!("the disk is not full")
}

/// What works needs metadata at every step: a new topic, a subscription, its first messages and their acknowledgement.
fn works(server: &Standalone, topic: &str) -> Result<()> {
    const MESSAGES: u64 = 20;
    let mut reader = Wire::connect(&server.pulsar)?;
    reader.subscribe(topic, "s", 2, SubType::Shared)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer(topic, 1)?;
    for n in 0..MESSAGES {
        wire.publish(1, n, &n.to_be_bytes())?;
        wire.receipt(n)?;
    }
    reader.flow(2, 1000)?;
    for n in 0..MESSAGES {
        let message = reader.message()?;
        ensure!(message.payload[..] == n.to_be_bytes(), "message {n} is another");
        reader.ack(2, vec![message.id])?;
    }
    let backlog = || Ok(server.stats(topic)?["subscriptions"]["s"]["msgBacklog"] == 0);
    eventually(Duration::from_secs(5), backlog).map(|_| ())
}

fn lines(log: &Path, word: &str) -> Result<Vec<String>> {
    let said = std::fs::read_to_string(log)?;
    Ok(said.lines().filter(|line| line.contains(word)).map(ToOwned::to_owned).collect())
}

#[test]
fn metadata_on_a_full_disk_come_back_without_a_restart() -> Result<()> {
    let Some(small) = Small::mount()? else {
        println!("{LEFT_OUT}");
        return Ok(());
    };
    let mut server = start(&small, &["--log", "info"])?;
    works(&server, "before")?;
    let before = tenants(&server)?;
    for n in 0..EARLY {
        ensure!(make(&server, n)?.0 == 204, "there is room");
    }
    small.fill()?;
    let (made, said) = until_full(&server)?;
    println!("after {made} tenants: {said}");
    let doubtful = format!("t{made}");
    // Reading goes on, and the doubtful one is there or it is not; writing says why not and what to do.
    let listed = tenants(&server)?;
    let acknowledged: BTreeSet<String> =
        before.iter().cloned().chain((0..made).map(|n| format!("t{n}"))).collect();
    ensure!(listed.iter().filter(|name| **name != doubtful).eq(&acknowledged), "{listed:?}");
    for _ in 0..50 {
        let (status, body) = make(&server, made + 1)?;
        ensure!(status == 503 && body.contains("GM-5001"), "{status} {body}");
        ensure!(body.contains("make room") && body.contains("metadata.redb"), "{body}");
    }
    ensure!(server.request("GET", "/admin/v2/brokers/ready")?.0 == 200, "it is not the broker that failed");
    let second = refused(&small.path().join("data"), &[])?;
    ensure!(second.contains("GM-6001"), "{second}");
    ensure!(server.ended()?.is_none(), "the server ended: {:?}", server.ended()?);

    small.empty()?;
    let took = eventually(Duration::from_secs(15), || Ok(make(&server, made + 2)?.0 == 204))?;
    println!("with room again it took {took:?}");
    // The store, on the same disk, asks for room once a second.
    let mut attempts = (0..).map(|n| format!("after-{n}"));
    eventually(Duration::from_secs(15), || {
        Ok(attempts.next().is_some_and(|topic| works(&server, &topic).is_ok()))
    })?;
    let now = tenants(&server)?;
    ensure!(now.is_superset(&acknowledged) && now.contains(&format!("t{}", made + 2)), "{now:?}");
    ensure!(now.contains(&doubtful) == listed.contains(&doubtful), "its outcome was seen and has changed");
    ensure!(!now.contains(&format!("t{}", made + 1)), "it was said that nothing was written");
    let (failed, back) = (lines(&log(&small), "out of service")?, lines(&log(&small), "in service again")?);
    ensure!(failed.len() == 1 && failed[0].contains("WARN") && failed[0].contains("GM-5001"), "{failed:?}");
    ensure!(back.len() == 1 && back[0].contains("INFO"), "{back:?}");

    server.kill()?;
    let server = start(&small, &["--log", "info"])?;
    ensure!(tenants(&server)? == now, "a restart changes what is there");
    works(&server, "restarted")
}
