//! A payload of 4 KiB or more is copied once between the producer's socket and the consumer's: into the journal's buffer.

use anyhow::{Result, ensure};
use geminga_common::copies;
use geminga_proto::pulsar::base_command::Type;
use geminga_tests::server::Server;
use geminga_tests::wire::Wire;

/// Publishes `count` messages of `size` bytes, `window` at a time, and consumes them; answers copied bytes per payload byte.
async fn copied(server: &Server, size: usize, count: u64, window: u64) -> Result<f64> {
    let topic = format!("persistent://public/default/copies-{size}-{window}");
    let (mut producer, mut consumer) =
        (Wire::connect(&server.pulsar).await?, Wire::connect(&server.pulsar).await?);
    producer.producer(&topic).await?;
    consumer.consumer(&topic, u32::try_from(count)?).await?;
    let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
    let before = copies::total();
    for first in (0..count).step_by(usize::try_from(window)?) {
        for n in first..(first + window).min(count) {
            producer.raw(&Wire::send_frame(n, &payload)).await?;
        }
        for _ in first..(first + window).min(count) {
            producer.until(Type::SendReceipt).await?;
        }
        for _ in first..(first + window).min(count) {
            let (_, rest) = consumer.until(Type::Message).await?;
            ensure!(rest.ends_with(&payload), "other bytes came back");
        }
    }
    Ok((copies::total() - before) as f64 / (size as f64 * count as f64))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_is_copied_once_between_the_sockets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(&dir.path().join("bookie")).await?;
    for (size, count, window) in [
        (4 << 10, 4_000, 64),
        (16 << 10, 1_000, 16),
        (64 << 10, 400, 8),
        (128 << 10, 200, 8),
        (1 << 20, 40, 2),
    ] {
        let copies = copied(&server, size, count, window).await?;
        println!("{size} bytes: {copies:.3} copies");
        // The frame's own bytes around the payload are counted too, and a first frame whose size nobody could know.
        ensure!(copies < 1.05, "payloads of {size} bytes are copied {copies:.3} times");
        ensure!(copies > 0.99, "the counter does not count: {copies:.3}");
    }
    server.stop().await;
    Ok(())
}
