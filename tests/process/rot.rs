//! Bytes that changed on the disk: what cannot be read is named.

use super::lifecycle::eventually;
use anyhow::{Context as _, Result, ensure};
use geminga_tests::process::Standalone;
use geminga_tests::wire::Wire;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETTINGS: &str = "[standalone.bookie]\njournal_file_size = '1 MiB'\nwrite_cache = '1 MiB'\nflush_ms = 100\n\
     disk_reserve = '1 MiB'\n[standalone.broker]\nmax_message_size = '64 KiB'\ncache = '1 MiB'\n";

fn largest_segment(data: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(data.join("bookie/segments"))? {
        let file = file?;
        found.push((file.metadata()?.len(), file.path()));
    }
    Ok(found.into_iter().max().context("no segment was written")?.1)
}

#[test]
fn a_flipped_bit_in_a_segment_is_named_in_the_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file, log) = (dir.path().join("data"), dir.path().join("small.toml"), dir.path().join("log"));
    std::fs::write(&file, SETTINGS)?;
    let config = ["--config", file.to_str().context("a path of text")?];
    let server = Standalone::start(&data, &config)?;
    let made = server.request("PUT", "/admin/v2/persistent/public/default/kept/subscription/s")?;
    ensure!(made.0 == 204, "{made:?}");
    server.perf(&["produce", "--topic", "kept", "--messages", "4000", "--rate", "0", "--no-batch"])?;
    eventually(Duration::from_secs(10), || {
        let flushed = std::fs::read_dir(data.join("bookie/segments"))?.flatten();
        let bytes: u64 = flushed.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum();
        Ok(bytes > 4000 * 1024)
    })?;
    server.terminate()?;
    let segment = largest_segment(&data)?;
    let mut bytes = std::fs::read(&segment)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes)?;
    let server = Standalone::start_logged(&data, &config, &log)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.subscribe("kept", "s", 1, geminga_proto::pulsar::command_subscribe::SubType::Exclusive)?;
    wire.flow(1, 10_000)?;
    while wire.message_within(Duration::from_secs(1))?.is_some() {}
    let named = |log: &str| -> Vec<String> {
        let name = segment.display().to_string();
        let met = |line: &&str| {
            line.contains("WARN") && line.contains(" a block does not check") && line.contains(&name)
        };
        log.lines().filter(met).map(str::to_owned).collect()
    };
    eventually(Duration::from_secs(10), || Ok(!named(&std::fs::read_to_string(&log)?).is_empty()))?;
    std::thread::sleep(Duration::from_secs(1)); // the read is tried again meanwhile
    let lines = named(&std::fs::read_to_string(&log)?);
    let log = std::fs::read_to_string(&log)?;
    let failed = log.lines().filter(|line| line.contains("a read failed")).count();
    ensure!(
        (1..=4).contains(&failed),
        "{failed} lines tell that reads fail: they are to be told ever more seldom"
    );
    let stats = server.stats("kept")?;
    let wait = stats["subscriptions"]["s"]["waitReason"].as_str().unwrap_or_default();
    for word in ["GM-4020", "cannot be read", "offset", "accept-loss", &segment.display().to_string()] {
        ensure!(wait.contains(word), "`{word}` is missing in what consumers wait for: {wait:?}");
    }
    ensure!(lines.len() == 1, "once, not {} times: {lines:?}", lines.len());
    for word in ["WARN", "GM-4005", "offset=", "ledger=", "entry=", "does not check"] {
        ensure!(lines[0].contains(word), "`{word}` is missing in {}", lines[0]);
    }
    Ok(())
}
