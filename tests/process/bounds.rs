//! Bounds on strangers: the time until CONNECT, and REST requests that make no sense.

use anyhow::{Context as _, Result, ensure};
use bytes::BytesMut;
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::process::Standalone;
use geminga_tests::wire::Wire;
use std::time::{Duration, Instant};

#[test]
fn a_connection_without_connect_is_closed_in_time_whatever_it_sends() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("short.toml");
    std::fs::write(&file, "[standalone.broker]\nhandshake_timeout_ms = 1500\n")?;
    let data = dir.path().join("data");
    let server = Standalone::start(&data, &["--config", file.to_str().context("the path is text")?])?;
    let mut ping = BytesMut::new();
    geminga_proto::encode::ping(&mut ping);
    let mut pinging = Wire::silent(&server.pulsar)?;
    let mut trickling = Wire::silent(&server.pulsar)?;
    let begun = Instant::now();
    trickling.raw(&[0, 0, 1, 0, 0, 0, 0, 252])?;
    // Signs of life do not count before CONNECT.
    let mut ended = false;
    while begun.elapsed() < Duration::from_secs(4) && !ended {
        std::thread::sleep(Duration::from_millis(100));
        ended = pinging.raw(&ping).is_err() | trickling.raw(&[0]).is_err();
    }
    ensure!(ended, "both are still open after {:?}", begun.elapsed());
    ensure!(begun.elapsed() >= Duration::from_millis(1400), "closed after {:?}", begun.elapsed());
    for mut wire in [trickling, pinging] {
        // Answers that were under way come first, then the end.
        while wire.read().is_ok() {}
    }
    ensure!(begun.elapsed() < Duration::from_secs(8), "one of them was served until {:?}", begun.elapsed());
    let mut good = Wire::connect(&server.pulsar)?;
    std::thread::sleep(Duration::from_secs(2));
    good.producer("later", 1)
}

#[test]
fn strangers_cost_at_most_64_kib_each_before_connect() -> Result<()> {
    const STRANGERS: u64 = 400;
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    drop(Wire::connect(&server.pulsar)?);
    let before = rss_kib(server.pid())?;
    let mut ping = BytesMut::new();
    geminga_proto::encode::ping(&mut ping);
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let mut wire = Wire::silent(&server.pulsar)?;
        // Answers that nobody reads, then nearly the largest frame there may be, which never ends.
        wire.raw(&ping.repeat(100))?;
        let size = (32_u32 << 10) - 4;
        let mut frame = [size.to_be_bytes(), (size - 4).to_be_bytes()].concat();
        frame.resize((32 << 10) - 8, 1);
        wire.raw(&frame)?;
        strangers.push(wire);
    }
    std::thread::sleep(Duration::from_millis(500));
    let each = (rss_kib(server.pid())?.saturating_sub(before)) as f64 / STRANGERS as f64;
    println!("{STRANGERS} connections without CONNECT, each with nearly a whole frame: {each:.1} KiB each");
    ensure!(each <= 64.0, "{each:.1} KiB each");
    ensure!(each >= 16.0, "{each:.1} KiB each: they are not waited for, so nothing was measured");
    // More than that is refused: a larger frame, and PING without end.
    let mut large = Wire::silent(&server.pulsar)?;
    large.raw(&(64_u32 << 10).to_be_bytes())?;
    ensure!(large.read().is_err(), "a frame of 64 KiB was waited for");
    let mut endless = Wire::silent(&server.pulsar)?;
    let flood = ping.repeat(10_000);
    let refused = (0..2000).find_map(|_| endless.raw(&flood).err());
    ensure!(refused.is_some(), "PING without end was answered");
    Ok(())
}

fn rss_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

#[test]
fn a_batch_that_announces_more_than_its_bytes_hold_blocks_nobody() -> Result<()> {
    const GOOD: u64 = 40;
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    for (kind, topic) in [
        (SubType::Shared, "lies-shared"),
        (SubType::Exclusive, "lies-exclusive"),
        (SubType::KeyShared, "lies-key"),
    ] {
        let consumers: u64 = if kind == SubType::Exclusive { 1 } else { 2 };
        let mut readers = Vec::new();
        for n in 0..consumers {
            let mut wire = Wire::connect(&server.pulsar)?;
            wire.subscribe(topic, "s", n, kind)?;
            readers.push(wire);
        }
        let mut wire = Wire::connect(&server.pulsar)?;
        wire.producer(topic, 1)?;
        let lies = [1 << 30, i32::MAX, i32::MIN, -1, 0, 1_000_000];
        for (n, lie) in (0..).zip(lies) {
            wire.publish_as(1, n, b"twelve bytes", Some(lie))?;
            wire.receipt(n)?;
        }
        let sent = lies.len() as u64 + GOOD;
        for n in lies.len() as u64..sent {
            wire.publish(1, n, b"good")?;
            wire.receipt(n)?;
        }
        // Enough for what there is, if each is counted as what it can be: two messages at most in twelve bytes.
        for (n, reader) in (0..).zip(&mut readers) {
            reader.flow(n, 100)?;
        }
        let (mut got, begun) = (0, Instant::now());
        while got < sent && begun.elapsed() < Duration::from_secs(20) {
            for reader in &mut readers {
                while reader.message_within(Duration::from_millis(100))?.is_some() {
                    got += 1;
                }
            }
        }
        ensure!(got == sent, "{kind:?}: {got} of {sent} were delivered: the subscription is blocked");
        let stats = server.stats(topic)?;
        let counted = stats["msgInCounter"].as_u64().context("no msgInCounter")?;
        ensure!(counted <= sent + lies.len() as u64, "{kind:?}: {counted} messages are counted of {sent}");
    }
    ensure!(rss_kib(server.pid())? < 200 << 10, "memory grew with the numbers");
    Ok(())
}

#[test]
fn rest_answers_nonsense_with_a_status_and_a_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    let ns = "/admin/v2/namespaces/public/default";
    let t = "/admin/v2/persistent/public/default";
    let long = format!("{t}/{}", "x".repeat(5000));
    let deep = format!("{ns}/backlogQuota");
    let nested = "[".repeat(100_000);
    let table: &[(&str, &str, &str, &[u16])] = &[
        ("GET", "/", "", &[404]),
        ("GET", "/admin/v2", "", &[404]),
        ("GET", "/admin/v2/nothing/at/all", "", &[404]),
        ("GET", "/admin/v3/tenants", "", &[404]),
        ("GET", "/admin/persistent/a/b/c/d", "", &[404]),
        ("PUT", "/admin/v2/tenants/with%20space", "{}", &[412]),
        ("PUT", "/admin/v2/tenants/a%2Fb", "{}", &[404, 412]),
        ("PUT", "/admin/v2/tenants/t", "{not json", &[400]),
        ("PUT", "/admin/v2/tenants/t", &nested, &[400, 413]),
        ("PUT", "/admin/v2/tenants/t", r#"{"allowedClusters":["nowhere"]}"#, &[412]),
        ("PUT", "/admin/v2/namespaces/public/b%C3%A4d", "{}", &[412]),
        ("PUT", "/admin/v2/namespaces/nobody/n", "{}", &[404]),
        ("POST", &deep, r#"{"limitSize":1,"policy":"fly"}"#, &[400]),
        ("POST", &deep, "\u{0}", &[400]),
        ("DELETE", &format!("{ns}/nonsense"), "", &[405, 412]),
        ("GET", &format!("{ns}/nonsense"), "", &[405]),
        ("POST", &format!("{ns}/messageTTL"), "-1", &[412]),
        ("POST", &format!("{ns}/messageTTL"), r#""soon""#, &[400]),
        ("POST", &format!("{ns}/retention"), r#"{"retentionTimeInMinutes":-5}"#, &[400]),
        ("PUT", &format!("{t}/p/partitions"), "0", &[406]),
        ("PUT", &format!("{t}/p/partitions"), "many", &[400]),
        ("PUT", &long, "", &[412]),
        ("PUT", "/admin/v2/tenants/.", r#"{"allowedClusters":["standalone"]}"#, &[412]),
        ("PUT", "/admin/v2/tenants/%2E%2E", r#"{"allowedClusters":["standalone"]}"#, &[412]),
        ("PUT", "/admin/v2/namespaces/public/..", "", &[412]),
        ("PUT", &format!("{t}/a%00b"), "", &[400]),
        ("POST", &format!("{t}/gone/subscription/s/skip/99999999999"), "", &[404]),
        ("GET", &format!("{ns}/topics?mode=FOO"), "", &[404]),
        ("POST", &format!("{ns}/backlogQuota?backlogQuotaType=x"), r#"{"limitSize":1}"#, &[404]),
        ("GET", &format!("{t}/gone/stats"), "", &[404]),
        ("GET", &format!("{t}/gone/fooBar"), "", &[404]),
        ("POST", &format!("{t}/gone/subscription/s/skip/x"), "", &[400, 404]),
        ("PATCH", &format!("{t}/gone"), "", &[405]),
        ("GET", "/admin/v2/schemas/public/default/gone/schema/x", "", &[400, 404]),
    ];
    for (method, path, body, wanted) in table {
        let (status, text) = server.request_with(method, path, body)?;
        let shown: String = path.chars().take(80).collect();
        ensure!(wanted.contains(&status), "{method} {shown}: {status} {text}");
        let reason = serde_json::from_str::<serde_json::Value>(&text).ok();
        let reason = reason.as_ref().and_then(|body| body["reason"].as_str()).unwrap_or_default();
        ensure!(!reason.is_empty(), "{method} {shown}: {status} without a reason: {text}");
    }
    ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "it is no longer healthy");
    Ok(())
}
