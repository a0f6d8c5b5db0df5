//! A payload of 4 KiB or more is copied once between the producer's socket and the consumer's: into the journal's buffer.

use anyhow::{Result, ensure};
use geminga_common::copies;
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::server::Server;
use geminga_tests::wire::Wire;

/// Publishes `count` messages of `size` bytes, `window` at a time, and consumes them; answers copied bytes per payload byte.
fn copied(address: &str, size: usize, count: u64, window: u64) -> Result<f64> {
    let topic = format!("persistent://public/default/copies-{size}-{window}");
    let (mut producer, mut consumer) = (Wire::connect(address)?, Wire::connect(address)?);
    producer.producer(&topic, 1)?;
    consumer.subscribe(&topic, "s", 1, SubType::Exclusive)?;
    consumer.flow(1, u32::try_from(count)?)?;
    let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
    let before = copies::total();
    for first in (0..count).step_by(usize::try_from(window)?) {
        let these = first..(first + window).min(count);
        for n in these.clone() {
            producer.publish(1, n, &payload)?;
        }
        for n in these.clone() {
            producer.receipt(n)?;
        }
        for _ in these {
            ensure!(consumer.message()?.payload == payload, "other bytes came back");
        }
    }
    Ok((copies::total() - before) as f64 / (size as f64 * count as f64))
}

#[test]
fn a_payload_is_copied_once_between_the_sockets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = runtime.block_on(Server::start(&dir.path().join("bookie")))?;
    for (size, count, window) in [
        (4 << 10, 4_000, 64),
        (16 << 10, 1_000, 16),
        (64 << 10, 400, 8),
        (128 << 10, 200, 8),
        (1 << 20, 40, 2),
    ] {
        let copies = copied(&server.pulsar, size, count, window)?;
        println!("figure: payload of {size} bytes between two sockets: {copies:.3} copies");
        // The frame's own bytes around the payload are counted too, and a first frame whose size nobody could know.
        ensure!(copies < 1.05, "payloads of {size} bytes are copied {copies:.3} times");
        ensure!(copies > 0.99, "the counter does not count: {copies:.3}");
    }
    runtime.block_on(server.stop());
    Ok(())
}
