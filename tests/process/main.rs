//! The real binary as its user meets it: start, refusals with a reason, stop, restart, kill.
#![allow(clippy::disallowed_methods)] // real files and processes

mod accepted;
mod backlog;
mod bounds;
mod damaged;
mod disk;
mod killed;
mod lifecycle;
mod lost;
mod metadata;
mod open_files;
mod refusals;
mod rot;

use anyhow::{Context as _, Result, ensure};
use geminga_tests::process::{Standalone, refused, refused_as};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TOPIC: &str = "/admin/v2/persistent/public/default/kept";

/// Copies a file or a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "copying {} failed", from.display());
    Ok(())
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "`{word}` is missing in: {text}");
    }
    Ok(())
}

#[test]
fn a_second_process_on_the_same_data_directory_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = Standalone::start(dir.path(), &[])?;
    says(&refused(dir.path(), &[])?, &["GM-6001", &dir.path().display().to_string()])?;
    ensure!(first.request("GET", "/admin/v2/brokers/health")? == (200, "ok".to_owned()));
    Ok(())
}

#[test]
fn sigterm_ends_it_within_five_seconds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    server.perf(&["produce", "--messages", "100", "--rate", "0"])?;
    let (status, took) = server.terminate()?;
    ensure!(status.success(), "ended with {status}");
    ensure!(took <= Duration::from_secs(5), "took {took:?}");
    Ok(())
}

fn publish_then(end: impl FnOnce(Standalone) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    let (status, body) = server.request("PUT", &format!("{TOPIC}/subscription/perf"))?;
    ensure!(status == 204, "{status} {body}");
    let sent =
        server.perf(&["produce", "--topic", "kept", "--messages", "500", "--rate", "0", "--no-batch"])?;
    ensure!(sent["messages"] == 500 && sent["failed"] == 0, "{sent}");
    end(server)?;
    let server = Standalone::start(dir.path(), &[])?;
    let got = server.perf(&["consume", "--topic", "kept", "--messages", "500", "--duration", "20"])?;
    ensure!(got["messages"] == 500, "{got}");
    Ok(())
}

#[test]
fn a_restart_keeps_the_messages() -> Result<()> {
    publish_then(|server| server.terminate().map(|_| ()))
}

#[test]
fn a_kill_keeps_the_messages() -> Result<()> {
    publish_then(Standalone::kill)
}

#[test]
fn other_addresses_than_the_loopback_need_insecure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    says(&refused(dir.path(), &["--bind", "0.0.0.0"])?, &["GM-6007", "--insecure"])
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() -> Result<()> {
    // Permissions do not bind root, who runs most build machines; this file system takes new files from nobody.
    let dir = std::path::Path::new("/sys/kernel");
    says(&refused(dir, &[])?, &["GM-6009", "/sys/kernel", "read-only"])
}

#[test]
fn an_unknown_setting_names_the_nearest_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("geminga.toml");
    std::fs::write(&file, "[standalone]\npulsar_prot = 1\n")?;
    let file = file.to_str().context("the path is text")?;
    says(&refused(&dir.path().join("data"), &["--config", file])?, &["pulsar_prot", "pulsar_port"])?;
    ensure!(!dir.path().join("data").exists(), "a refused start wrote something");
    Ok(())
}

#[test]
fn a_bookie_names_what_it_cannot_use() -> Result<()> {
    let dir = tempfile::tempdir()?;
    says(
        &refused_as("bookie", dir.path(), &["--metadata", "zk:localhost:2181"])?,
        &["GM-6004", "zk:localhost:2181"],
    )?;
    says(&refused_as("bookie", dir.path(), &["--bind", "0.0.0.0"])?, &["0.0.0.0", "--insecure"])?;
    let file = dir.path().join("geminga.toml");
    std::fs::write(&file, "[bookie]\nzoen = 'a'\n")?;
    let file = file.to_str().context("a path of text")?;
    says(&refused_as("bookie", dir.path(), &["--config", file])?, &["zoen", "zone"])?;
    ensure!(!dir.path().join("bookie").exists(), "nothing was made");
    Ok(())
}

#[test]
fn a_killed_store_is_looked_into_and_found_whole_until_it_is_damaged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    server.perf(&["produce", "--messages", "200", "--rate", "0", "--no-batch"])?;
    server.kill()?;
    let inspect = |more: &[&str]| -> Result<(bool, String, String)> {
        let store = dir.path().join("bookie");
        let output = std::process::Command::new(geminga_tests::process::binary()?)
            .args(["bookie", "inspect"])
            .arg(store)
            .args(more)
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    };
    let (good, shown, error) = inspect(&["--show", "journal"])?;
    ensure!(good, "{shown}{error}");
    says(&shown, &["0 findings", "add ", "generation"])?;
    std::fs::remove_file(dir.path().join("bookie/journal/IDENTITY"))?;
    let (good, shown, error) = inspect(&[])?;
    ensure!(!good, "{shown}");
    says(&shown, &["journal/IDENTITY is missing"])?;
    says(&error, &["1 findings in the store in"])?;
    Ok(())
}
