//! Policies that act on their own: time to live, backlog quotas, publish rate; and that they cost nothing while there is nothing
//! to do.

use anyhow::{Context as _, Result, ensure};
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::process::Standalone;
use geminga_tests::wire::Wire;
use std::time::{Duration, Instant};

const TOPIC: &str = "/admin/v2/persistent/public/default/kept";
const NAMESPACE: &str = "/admin/v2/namespaces/public/default";

fn ok(answer: (u16, String)) -> Result<()> {
    ensure!(answer.0 == 204, "{} {}", answer.0, answer.1);
    Ok(())
}

/// Asks until the answer is as wanted.
pub(crate) fn eventually(limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if holds()? {
            return Ok(begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("not within {limit:?}")
}

fn backlog(server: &Standalone) -> Result<(u64, u64)> {
    let stats = server.stats("kept")?;
    let sub = &stats["subscriptions"]["s"];
    let number = |name: &str| sub[name].as_u64().with_context(|| format!("no {name} in {sub}"));
    Ok((number("msgBacklog")?, number("totalMsgExpired")?))
}

fn with_backlog(messages: u64) -> Result<(tempfile::TempDir, Standalone)> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    ok(server.request("PUT", &format!("{TOPIC}/subscription/s"))?)?;
    publish(&server, messages)?;
    Ok((dir, server))
}

fn publish(server: &Standalone, messages: u64) -> Result<()> {
    let count = messages.to_string();
    let sent =
        server.perf(&["produce", "--topic", "kept", "--messages", &count, "--rate", "0", "--no-batch"])?;
    ensure!(sent["messages"] == messages, "{sent}");
    Ok(())
}

#[test]
fn what_outlives_its_time_expires_for_good_and_what_is_young_stays() -> Result<()> {
    let (dir, server) = with_backlog(300)?;
    ensure!(backlog(&server)?.0 == 300);
    std::thread::sleep(Duration::from_secs(1));
    ok(server.request("POST", &format!("{TOPIC}/messageTTL?messageTTL=3"))?)?;
    ensure!(backlog(&server)?.0 == 300, "expired before its time");
    std::thread::sleep(Duration::from_millis(1500));
    publish(&server, 200)?;
    eventually(Duration::from_secs(5), || Ok(backlog(&server)? == (200, 300)))?;
    eventually(Duration::from_secs(8), || Ok(backlog(&server)? == (0, 500)))?;
    // Written within a second; then a kill brings nothing back.
    std::thread::sleep(Duration::from_millis(1500));
    server.kill()?;
    let server = Standalone::start(dir.path(), &[])?;
    ok(server.request("DELETE", &format!("{TOPIC}/messageTTL"))?)?;
    ensure!(backlog(&server)? == (0, 0), "the expiry was not durable");
    Ok(())
}

#[test]
fn a_time_to_live_that_is_far_away_writes_nothing_and_takes_no_time() -> Result<()> {
    let (_dir, server) = with_backlog(100)?;
    ok(server.request("POST", &format!("{TOPIC}/messageTTL?messageTTL=3600"))?)?;
    std::thread::sleep(Duration::from_secs(3)); // the policy and the publishes are written
    let io = || -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", server.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(line.context("no write_bytes")?.parse()?)
    };
    let ticks = || -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
        let words: Vec<&str> = text.rsplit(')').next().context("no stat")?.split_whitespace().collect();
        Ok(words[11].parse::<u64>()? + words[12].parse::<u64>()?)
    };
    let (bytes, cpu) = (io()?, ticks()?);
    std::thread::sleep(Duration::from_secs(4));
    let (bytes, cpu) = (io()? - bytes, ticks()? - cpu);
    println!("4 s with a backlog and a time to live of an hour: {bytes} bytes written, {cpu} ticks of 10 ms");
    ensure!(bytes == 0 && cpu <= 2, "{bytes} bytes, {cpu} ticks");
    Ok(())
}

fn set_quota(server: &Standalone, kind: &str, quota: &str) -> Result<()> {
    ok(server.request_with("POST", &format!("{NAMESPACE}/backlogQuota?backlogQuotaType={kind}"), quota)?)
}

#[test]
fn a_full_backlog_keeps_producers_out_until_it_is_consumed() -> Result<()> {
    let (_dir, server) = with_backlog(50)?; // 50 KiB
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("kept", 1)?;
    for (policy, code) in [("producer_exception", "error 8"), ("producer_request_hold", "error 7")] {
        set_quota(
            &server,
            "destination_storage",
            &format!(r#"{{"limitSize":60000,"limitTime":-1,"policy":"{policy}"}}"#),
        )?;
        let reason = || Ok(server.stats("kept")?["publishWaitReason"] == "backlog_quota_size");
        if policy == "producer_exception" {
            std::thread::sleep(Duration::from_millis(300));
            // Filled up by a producer that was let in: it is sent away.
            let refused =
                (1..200).find_map(|n| wire.publish(1, n, &[7; 1024]).and_then(|()| wire.receipt(n)).err());
            ensure!(
                refused.is_some_and(|why| why.to_string().contains("was closed")),
                "nobody was sent away"
            );
        }
        eventually(Duration::from_secs(3), reason)?;
        eventually(Duration::from_secs(3), || {
            let refused = Wire::connect(&server.pulsar)?.producer("kept", 1);
            Ok(refused.is_err_and(|why| why.to_string().contains(code)))
        })
        .context(policy)?;
        let stats = server.stats("kept")?;
        ensure!(stats["backlogQuotaLimitSize"] == 60_000, "{stats}");
    }
    ok(server.request("POST", &format!("{TOPIC}/subscription/s/skip_all"))?)?;
    eventually(Duration::from_secs(3), || Ok(server.stats("kept")?["publishWaitReason"].is_null()))?;
    Wire::connect(&server.pulsar)?.producer("kept", 1)
}

#[test]
fn an_evicting_quota_drops_the_oldest_backlog_only() -> Result<()> {
    let (_dir, server) = with_backlog(100)?;
    set_quota(&server, "destination_storage", r#"{"limitSize":50000,"policy":"consumer_backlog_eviction"}"#)?;
    eventually(Duration::from_secs(5), || Ok(backlog(&server)?.0 < 60))?;
    let stats = server.stats("kept")?;
    let size = stats["backlogSize"].as_u64().context("no backlogSize")?;
    ensure!((35_000..=46_000).contains(&size), "{size} bytes are left of at most 45 000");
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.subscribe("kept", "s", 1, SubType::Exclusive)?;
    wire.flow(1, 1000)?;
    let left = backlog(&server)?.0;
    let mut last = None;
    for _ in 0..left {
        last = Some(wire.message()?.id.entry_id);
    }
    ensure!(last == Some(99), "the newest message is kept, the last read is {last:?}");
    Ok(())
}

#[test]
fn an_old_backlog_keeps_producers_out() -> Result<()> {
    let (_dir, server) = with_backlog(10)?;
    set_quota(&server, "message_age", r#"{"limitSize":-1,"limitTime":2,"policy":"producer_exception"}"#)?;
    Wire::connect(&server.pulsar)?.producer("kept", 1)?;
    let old = || Ok(server.stats("kept")?["publishWaitReason"] == "backlog_quota_age");
    eventually(Duration::from_secs(6), old)?;
    let refused = Wire::connect(&server.pulsar)?.producer("kept", 1);
    ensure!(refused.as_ref().is_err_and(|why| why.to_string().contains("error 8")), "{refused:?}");
    ok(server.request("POST", &format!("{TOPIC}/subscription/s/skip_all"))?)?;
    eventually(Duration::from_secs(3), || Ok(server.stats("kept")?["publishWaitReason"].is_null()))?;
    Wire::connect(&server.pulsar)?.producer("kept", 1)
}

#[test]
fn a_publish_rate_holds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    let rate = r#"{"publishThrottlingRateInMsg":200,"publishThrottlingRateInByte":-1}"#;
    ok(server.request_with("POST", &format!("{NAMESPACE}/publishRate"), rate)?)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("kept", 1)?;
    let mut send = |numbers: std::ops::Range<u64>| {
        numbers.clone().try_for_each(|n| wire.publish(1, n, &n.to_be_bytes()))?;
        wire.receipt(numbers.end - 1)
    };
    // The first reads of a connection are ahead of its first pause: the second's worth that is saved up goes with them.
    send(0..400)?;
    let begun = Instant::now();
    send(400..1500)?;
    let took = begun.elapsed();
    println!("1100 messages at 200 a second took {took:?}");
    ensure!(took >= Duration::from_millis(3500), "{took:?}");
    let stats = server.stats("kept")?;
    ensure!(stats["publishRateLimitedTimes"].as_u64() > Some(0), "{stats}");
    Ok(())
}

#[test]
fn first_use_counts_against_the_bound_on_topics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    ok(server.request_with("POST", &format!("{NAMESPACE}/maxTopicsPerNamespace"), "1")?)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("one", 1)?;
    let refused = wire.producer("two", 2);
    ensure!(refused.as_ref().is_err_and(|why| why.to_string().contains("error 22")), "{refused:?}");
    wire.producer("one", 3)
}
