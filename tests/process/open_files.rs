//! The limit on open files: clients that take all they can get leave enough of it to the store.

use super::lifecycle::eventually;
use super::says;
use anyhow::{Context as _, Result, ensure};
use geminga_tests::process::Standalone;
use geminga_tests::wire::Wire;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

const SETTINGS: &str = "[standalone.bookie]\njournal_file_size = '6 MiB'\n";
/// What an open-file limit of 160 leaves to clients of the Pulsar port, and of the HTTP port.
const PULSAR: usize = 70;
const HTTP: usize = 10;

/// Connections that say nothing.
fn idle(url: &str, count: usize) -> Result<Vec<TcpStream>> {
    let address = url.split_once("//").context("a URL")?.1;
    (0..count)
        .map(|_| {
            let socket = TcpStream::connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect()
}

/// How many of them the server holds.
fn held(sockets: &[TcpStream]) -> usize {
    let open =
        |socket: &&TcpStream| socket.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    sockets.iter().filter(open).count()
}

/// Names of the journal's files.
fn journal(dir: &std::path::Path) -> Result<std::collections::BTreeSet<String>> {
    let names = std::fs::read_dir(dir.join("bookie/journal"))?;
    names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[test]
fn idle_clients_leave_the_store_its_files_and_come_back_when_others_left() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (file, log) = (dir.path().join("geminga.toml"), dir.path().join("log"));
    std::fs::write(&file, SETTINGS)?;
    let (data, file) = (dir.path().join("data"), file.to_str().context("the path is text")?);
    let mut server = Standalone::start_limited("-n 160", &data, &["--config", file], &log)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("kept", 1)?;
    let before = journal(&data)?;

    let pulsar = idle(&server.pulsar, 200)?;
    let mut sent = 0;
    let mut publish = |count: u64| {
        (0..count).try_for_each(|_| {
            sent += 1;
            wire.publish(1, sent, &[7; 512 << 10])?;
            wire.receipt(sent).map(drop)
        })
    };
    publish(40).context("publishing while idle clients hold what they can get")?;
    ensure!(journal(&data)?.difference(&before).count() >= 2, "no journal file was made: {before:?}");
    // One place is the publisher's.
    eventually(Duration::from_secs(5), || Ok(held(&pulsar) == PULSAR - 1))
        .with_context(|| format!("{} are held", held(&pulsar)))?;
    ensure!(Wire::connect(&server.pulsar).is_err(), "one more was let in");
    let (_, metrics) = server.request("GET", "/metrics/")?;
    let cluster = "{cluster=\"standalone\",port=\"pulsar\"}";
    says(
        &metrics,
        &[
            &format!("geminga_connections{cluster} 70.0\n"),
            &format!("geminga_connections_max{cluster} 70.0\n"),
            &format!("geminga_connections_refused_total{cluster} 132.0\n"),
        ],
    )?;

    let http = idle(&server.http, 100)?;
    eventually(Duration::from_secs(5), || Ok(held(&http) == HTTP))
        .with_context(|| format!("{} are held", held(&http)))?;
    publish(40).context("publishing while both ports are full")?;
    ensure!(server.ended()?.is_none(), "the server ended");
    drop((pulsar, http));
    eventually(Duration::from_secs(5), || Ok(Wire::connect(&server.pulsar).is_ok()))?;
    eventually(Duration::from_secs(5), || {
        Ok(server.request("GET", "/admin/v2/brokers/health").is_ok_and(|answer| answer.0 == 200))
    })?;

    let log = std::fs::read_to_string(&log)?;
    says(&log, &["GM-4027", "ulimit -n", "port=\"pulsar\"", "port=\"http\""])?;
    let lines = log.matches("GM-4027").count();
    ensure!(lines < 20, "{lines} lines for what one can say: {log}");
    Ok(())
}

#[test]
fn a_soft_limit_is_raised_to_the_hard_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let data = dir.path().join("data");
    let server = Standalone::start_limited("-Sn 100", &data, &["--log", "info"], &log)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid()))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no such limit")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words[3] == words[4] && words[3] != "100", "{line}");
    says(&std::fs::read_to_string(&log)?, &["the limit on open files (`ulimit -n`) was raised", words[4]])
}

#[test]
fn a_standard_output_that_takes_nothing_is_named_and_the_server_serves() -> Result<()> {
    let full = std::fs::File::options().write(true).open("/dev/full")?;
    for (stdout, why) in [(full.into(), "No space left"), (Stdio::piped(), "Broken pipe")] {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        let mut child = Command::new(geminga_tests::process::binary()?)
            .args(["standalone", "--pulsar-port", "0", "--http-port", "0", "--data-dir"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        drop(child.stdout.take()); // nobody reads
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        let told = eventually(Duration::from_secs(10), || Ok(text().contains("standard output failed")));
        std::thread::sleep(Duration::from_millis(500));
        let ended = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        ensure!(told.is_ok() && ended.is_none() && text().contains(why), "{why}: {ended:?} {}", text());
    }
    Ok(())
}
