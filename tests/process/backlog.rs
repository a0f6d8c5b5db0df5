//! Backlogs larger than every buffer, consumers that never read, and subscriptions whose gaps are full.

use super::lifecycle::eventually;
use anyhow::{Context as _, Result, ensure};
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::process::Standalone;
use geminga_tests::wire::Wire;
use std::path::Path;
use std::time::{Duration, Instant};

/// Buffers so small that ten times the largest is a short test. The outbox holds 1 MiB and is no setting.
const SMALL: &str = r#"
[standalone.bookie]
journal_file_size = "2 MiB"
write_cache = "1 MiB"
block_cache = "1 MiB"
[standalone.broker]
max_message_size = "1 MiB"
publish_budget = "1 MiB"
cache = "1 MiB"
ledger_size = "4 MiB"
ack_state_max = "512"
"#;
pub(crate) const BODY: usize = 16 << 10;
/// Ten times the read-ahead window of 8 MiB, the largest buffer there is.
const MESSAGES: u64 = (10 * (8 << 20) / BODY) as u64;

fn small(dir: &Path) -> Result<Standalone> {
    let file = dir.join("small.toml");
    std::fs::write(&file, SMALL)?;
    Standalone::start(&dir.join("data"), &["--config", file.to_str().context("the path is text")?])
}

/// The n-th payload.
pub(crate) fn body(n: u64) -> Vec<u8> {
    let mut body = vec![(n % 251) as u8; BODY];
    body[..8].copy_from_slice(&n.to_be_bytes());
    body
}

fn rss(server: &Standalone) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? >> 10)
}

/// Publishes messages by their numbers, waiting for a receipt now and then.
fn fill(wire: &mut Wire, from: u64, to: u64) -> Result<()> {
    for n in from..to {
        wire.publish(1, n, &body(n))?;
        if n % 32 == 31 {
            wire.receipt(n)?;
        }
    }
    Ok(())
}

#[test]
fn a_backlog_of_ten_times_every_buffer_is_delivered_whole_and_in_order() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = small(dir.path())?;
    let mut reader = Wire::connect(&server.pulsar)?;
    reader.subscribe("large", "s", 1, SubType::Exclusive)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("large", 1)?;
    fill(&mut wire, 0, MESSAGES)?;
    let begun = Instant::now();
    reader.flow(1, u32::try_from(MESSAGES)?)?;
    for n in 0..MESSAGES {
        let message = reader.message()?;
        ensure!(message.payload == body(n), "message {n} is another, or has other bytes");
    }
    let (took, memory) = (begun.elapsed(), rss(&server)?);
    let size = (MESSAGES * BODY as u64) >> 20;
    println!(
        "a backlog of {size} MiB, ten times the largest buffer: whole and in order in {took:?}; server at {memory} MiB"
    );
    ensure!(memory < 160, "{memory} MiB");
    Ok(())
}

/// Publishes for a while as fast as receipts come; messages a second.
fn pace(server: &Standalone, topic: &str, limit: Duration) -> Result<f64> {
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer(topic, 1)?;
    let (begun, mut n) = (Instant::now(), 0);
    while begun.elapsed() < limit {
        fill(&mut wire, n, n + 32)?;
        n += 32;
    }
    Ok(n as f64 / begun.elapsed().as_secs_f64())
}

#[test]
fn a_consumer_that_never_reads_touches_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = small(dir.path())?;
    let turn = Duration::from_millis(1500);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    pace(&server, "warm", turn)?;
    for round in 0..3 {
        alone.push(pace(&server, &format!("alone-{round}"), turn)?);
        let topic = format!("beside-{round}");
        let mut deaf = Wire::connect(&server.pulsar)?;
        deaf.subscribe(&topic, "deaf", 1, SubType::Shared)?;
        deaf.flow(1, 1_000_000)?;
        let mut other = Wire::connect(&server.pulsar)?;
        other.subscribe(&topic, "other", 1, SubType::Exclusive)?;
        other.flow(1, 1_000_000)?;
        beside.push(pace(&server, &topic, turn)?);
        // The other subscription gets everything, in order, while the deaf one's connection is full.
        for n in 0..64 {
            ensure!(other.message()?.payload == body(n), "message {n}");
        }
        let stats = server.stats(&topic)?;
        let why = stats["subscriptions"]["deaf"]["waitReason"].as_str().unwrap_or_default().to_owned();
        ensure!(why.contains("do not read"), "the deaf consumer's subscription says {why:?}");
    }
    let middle = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[1]
    };
    let (alone, beside, memory) = (middle(&mut alone), middle(&mut beside), rss(&server)?);
    println!(
        "a publisher alone {alone:.0} msg/s, beside a consumer that never reads {beside:.0} msg/s; server at {memory} MiB"
    );
    // Two subscriptions also cost dispatch; a publisher that waits for the deaf one would stand still.
    ensure!(beside > alone * 0.5, "{beside:.0} of {alone:.0} msg/s");
    ensure!(memory < 160, "{memory} MiB");
    Ok(())
}

#[test]
fn full_gaps_stop_new_messages_with_a_reason_lose_no_ack_and_go_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = small(dir.path())?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.subscribe("gaps", "s", 2, SubType::Shared)?;
    wire.producer("gaps", 1)?;
    let count = 1200;
    for n in 0..count {
        wire.publish(1, n, &n.to_be_bytes())?;
    }
    wire.receipt(count - 1)?;
    wire.flow(2, 20)?;
    // Every second message is acknowledged: a bitmap of two bytes for each, 512 are allowed.
    let (mut left, mut acked, mut seen) = (Vec::new(), 0, 0);
    while let Some(message) = wire.message_within(Duration::from_millis(700))? {
        seen += 1;
        wire.flow(2, 1)?;
        if message.id.entry_id % 2 == 1 {
            wire.ack(2, vec![message.id])?;
            acked += 1;
        } else {
            left.push(message.id);
        }
        if seen % 40 == 0 {
            std::thread::sleep(Duration::from_millis(110)); // gaps are measured ten times a second
        }
    }
    ensure!(seen < count, "nothing stopped {seen} messages");
    let stats = server.stats("gaps")?;
    let why = stats["subscriptions"]["s"]["waitReason"].as_str().unwrap_or_default().to_owned();
    ensure!(why.contains("too many gaps"), "the reason is {why:?}");
    ensure!(stats["subscriptions"]["s"]["msgBacklog"] == count - acked, "an ack was lost: {stats}");
    // What is before the gaps' end is still delivered again.
    wire.redeliver_all(2)?;
    ensure!(wire.message()?.id.entry_id == left[0].entry_id, "the oldest comes again");
    wire.ack(2, left)?;
    wire.flow(2, 2 * u32::try_from(count)?)?;
    let rest = eventually(Duration::from_secs(20), || {
        while let Some(message) = wire.message_within(Duration::from_millis(300))? {
            wire.ack(2, vec![message.id])?;
        }
        Ok(server.stats("gaps")?["subscriptions"]["s"]["msgBacklog"] == 0)
    })?;
    println!("stopped after {seen} of {count} messages, the rest came in {rest:?}");
    Ok(())
}
