//! What a person reads when a start is refused: one line with a code, the file or setting it is about, and what to do next.

use super::lifecycle::eventually;
use super::{copy, says};
use anyhow::{Context as _, Result, ensure};
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::metadata::redb::RedbStore;
use geminga_common::tasks::TaskGroup;
use geminga_tests::process::{Standalone, binary, refused, refused_as, run};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Holds a refusal against the rules for all of them, and looks for what this one has to say.
fn refusal(said: &str, code: &str, words: &[&str]) -> Result<()> {
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 1, "one line was wanted: {said}");
    ensure!(lines[0].starts_with("geminga: "), "{said}");
    for unwanted in ["panicked", "backtrace", "Error {", "Kind("] {
        ensure!(!said.contains(unwanted), "`{unwanted}` is in: {said}");
    }
    says(said, &[code])?;
    says(said, words)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// A data directory with messages in it, and nothing that runs.
fn used(dir: &Path) -> Result<()> {
    let server = Standalone::start(dir, &[])?;
    let made = server.request("PUT", "/admin/v2/persistent/public/default/kept/subscription/s")?;
    ensure!(made.0 == 204, "{made:?}");
    let sent =
        server.perf(&["produce", "--topic", "kept", "--messages", "50", "--rate", "0", "--no-batch"])?;
    ensure!(sent["messages"] == 50, "{sent}");
    server.kill()
}

/// A data directory in which both halves were made and nothing was ever stored.
fn fresh(dir: &Path) -> Result<()> {
    Standalone::start(dir, &[])?.kill()
}

fn starts_with_its_messages(dir: &Path) -> Result<()> {
    let server = Standalone::start(dir, &[])?;
    let stats = server.stats("kept")?;
    ensure!(stats["storageSize"].as_u64() > Some(50 * 1024), "{stats}");
    server.kill()
}

#[test]
fn metadata_and_a_store_that_do_not_belong_together_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ours, others) = (dir.path().join("ours"), dir.path().join("others"));
    used(&ours)?;
    used(&others)?;
    let (metadata, store) = (ours.join("metadata.redb"), ours.join("bookie"));
    let aside = |path: &Path| path.with_extension("aside");
    let paths = [text(&metadata), text(&store), "do not belong together", "Put back"];

    std::fs::rename(&metadata, aside(&metadata))?;
    refusal(&refused(&ours, &[])?, "GM-6008", &paths)?;
    ensure!(!metadata.exists(), "the refused start made metadata");
    copy(&others.join("metadata.redb"), &metadata)?;
    refusal(&refused(&ours, &[])?, "GM-6008", &paths)?;
    std::fs::remove_file(&metadata)?;
    blank_metadata(&metadata)?;
    refusal(&refused(&ours, &[])?, "GM-6008", &paths)?;
    std::fs::rename(aside(&metadata), &metadata)?;

    std::fs::rename(&store, aside(&store))?;
    refusal(&refused(&ours, &[])?, "GM-6008", &paths)?;
    ensure!(!store.join("FORMAT").exists(), "the refused start formatted a store");
    copy(&others.join("bookie"), &store)?;
    refusal(&refused(&ours, &[])?, "GM-6008", &paths)?;
    std::fs::remove_dir_all(&store)?;
    copy(&aside(&store), &store)?;
    starts_with_its_messages(&ours)?;

    // The copy is one start behind now.
    std::fs::remove_dir_all(&store)?;
    std::fs::rename(aside(&store), &store)?;
    refusal(&refused(&ours, &[])?, "GM-6008", &[text(&metadata), text(&store), "older copy"])
}

#[test]
fn metadata_without_a_byte_are_missing_metadata() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let metadata = dir.path().join("metadata.redb");
    std::fs::write(&metadata, "")?;
    fresh(dir.path())?; // nothing is beside it
    std::fs::write(&metadata, "")?;
    let words = [text(&metadata), "missing beside a store", "Put back"];
    refusal(&refused(dir.path(), &[])?, "GM-6008", &words)?;
    ensure!(std::fs::metadata(&metadata)?.len() == 0, "the refused start made metadata");
    Ok(())
}

/// Metadata as the first start makes them before anything else.
fn blank_metadata(path: &Path) -> Result<()> {
    let tasks = TaskGroup::new();
    let store = RedbStore::open(RealDisk::shared(), path, SystemClock::shared(), &tasks)?;
    tasks.stop();
    drop(store);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let late = runtime.block_on(tasks.join(Duration::from_secs(10)));
    ensure!(late.is_empty(), "the store does not close");
    Ok(())
}

#[test]
fn a_first_start_that_was_cut_short_between_the_halves_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Before the store.
    let first = dir.path().join("first");
    std::fs::create_dir(&first)?;
    blank_metadata(&first.join("metadata.redb"))?;
    used(&first)?;
    // In the middle of formatting it: identities come before FORMAT.
    let second = dir.path().join("second");
    fresh(&second)?;
    std::fs::remove_file(second.join("metadata.redb"))?;
    blank_metadata(&second.join("metadata.redb"))?;
    for file in ["FORMAT", "manifest.redb", "BALLAST"] {
        drop(std::fs::remove_file(second.join("bookie").join(file)));
    }
    for file in std::fs::read_dir(second.join("bookie/journal"))? {
        let path = file?.path();
        if path.extension().is_some_and(|kind| kind == "jnl") {
            std::fs::remove_file(path)?;
        }
    }
    used(&second)?;
    // After the store and before its record.
    let third = dir.path().join("third");
    fresh(&third)?;
    std::fs::remove_file(third.join("metadata.redb"))?;
    blank_metadata(&third.join("metadata.redb"))?;
    used(&third)?;
    starts_with_its_messages(&third)
}

fn with_config(dir: &Path, content: &str) -> Result<(PathBuf, String)> {
    let file = dir.join("geminga.toml");
    std::fs::write(&file, content)?;
    let said = refused(&dir.join("data"), &["--config", text(&file)])?;
    Ok((file, said))
}

#[test]
fn a_configuration_file_is_checked_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let table: &[(&str, &str, &[&str])] = &[
        ("[standalon]\nhttp_port = 1\n", "GM-6003", &["'standalon'", "'standalone'"]),
        ("[standalone.brokr]\ncache = '1MiB'\n", "GM-6003", &["'standalone.brokr'", "'standalone.broker'"]),
        ("[standalone.broker]\ncach = '1MiB'\n", "GM-6003", &["'standalone.broker.cach'", "broker.cache'"]),
        ("[bookie]\nzoen = 'a'\n", "GM-6003", &["'bookie.zoen'", "'bookie.zone'"]),
        ("[broker.servce]\n", "GM-6003", &["'broker.servce'", "'broker.service'"]),
        ("http_port = 1\n", "GM-6003", &["'http_port'"]),
        ("[standalone]\nhttp_port = 'x'\n", "GM-6004", &["'standalone.http_port'"]),
        ("standalone = 1\n", "GM-6004", &["'standalone'", "a table"]),
        ("[standalone]\nlog = 'info'\nhttp_port = \n", "GM-6005", &["line 3"]),
        ("[standalone.broker]\nledger_entries = 0\n", "GM-6004", &["ledger_entries"]),
        ("[standalone.bookie]\nflush_ms = 1\n", "GM-6004", &["flush_ms"]),
        (
            "[standalone.bookie]\njournal_file_size = '1 MiB'\n",
            "GM-6004",
            &["journal_file_size is 1048576 bytes", "5394432 are needed", "max_message_size"],
        ),
        ("[standalone.bookie]\nid = 'a b'\n", "GM-6004", &["id is not a name"]),
    ];
    for (content, code, words) in table {
        let (file, said) = with_config(dir.path(), content)?;
        refusal(&said, code, words).with_context(|| (*content).to_owned())?;
        let in_file = !said.contains("settings of the store") && !said.contains("[standalone.broker]");
        ensure!(!in_file || said.contains(text(&file)), "the file is not named: {said}");
    }
    ensure!(!dir.path().join("data").exists(), "a refused start wrote something");
    let missing = dir.path().join("none.toml");
    let said = refused(&dir.path().join("data"), &["--config", text(&missing)])?;
    refusal(&said, "GM-6005", &[text(&missing), "--config"])
}

#[test]
fn flags_that_make_no_sense_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    refusal(&refused(&data, &["--bind", "nonsense"])?, "GM-6004", &["bind", "the command line"])?;
    let said = run(&["standalone", "--data-dir", text(&data), "--log", "geminga=loud=x"])?;
    ensure!(!said.0, "it ran");
    refusal(&said.2, "GM-6004", &["'log'", "geminga=loud=x"])?;
    ensure!(!data.exists(), "a refused start wrote something");
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let said = run(&[
        "standalone",
        "--data-dir",
        text(&data),
        "--pulsar-port",
        &port,
        "--http-port",
        "0",
        "--log",
        "warn",
    ])?;
    ensure!(!said.0, "it ran");
    refusal(&said.2, "GM-6006", &[&format!("127.0.0.1:{port}"), "another server"])
}

/// Changes one byte.
fn damage(file: &Path, offset: usize) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    *bytes.get_mut(offset).with_context(|| format!("{} has no byte {offset}", file.display()))? ^= 0x40;
    Ok(std::fs::write(file, bytes)?)
}

#[test]
fn damaged_files_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    used(&data)?;
    let format = data.join("bookie/FORMAT");
    damage(&format, 14)?;
    refusal(&refused(&data, &[])?, "GM-4005", &[text(&data.join("bookie")), "FORMAT", "copy"])?;
    damage(&format, 14)?;
    let metadata = data.join("metadata.redb");
    let whole = std::fs::read(&metadata)?;
    // The head, the bookkeeping behind it, and pages in the middle: every one is an error or without consequence, never a panic.
    let mut refusals = 0;
    for offset in [0, 9, 70, 4096, 4100, 8200, 12_300, whole.len() / 2, whole.len() - 100] {
        damage(&metadata, offset)?;
        match Standalone::start(&data, &[]) {
            Ok(server) => server.kill()?,
            Err(_) => {
                refusal(&refused(&data, &[])?, "GM-4005", &[text(&metadata), "copy"])
                    .with_context(|| format!("byte {offset}"))?;
                refusals += 1;
            }
        }
        std::fs::write(&metadata, &whole)?;
    }
    // redb makes up for some of it from its second root.
    ensure!(refusals >= 1, "no damage was noticed");
    let mut emptied = whole.clone();
    emptied[4096..].fill(0);
    for content in [&emptied[..], b"not a database"] {
        std::fs::write(&metadata, content)?;
        refusal(&refused(&data, &[])?, "GM-4005", &[text(&metadata), "copy"])?;
    }
    std::fs::write(&metadata, &whole)?;
    starts_with_its_messages(&data)
}

/// An attribute against which not even root writes. False where the file system has none.
fn set_immutable(path: &Path, on: bool) -> bool {
    let flag = if on { "+i" } else { "-i" };
    Command::new("chattr").arg(flag).arg(path).output().is_ok_and(|done| done.status.success())
}

#[test]
fn directories_that_take_no_writes_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    used(&data)?;
    for part in ["", "bookie", "bookie/journal"] {
        let path = data.join(part);
        if !set_immutable(&path, true) {
            println!("not possible here: immutable directories need chattr and root");
            return Ok(());
        }
        // The lock of the data directory itself is there already: what cannot be written shows later.
        let outcome = refused(&path.join(if part.is_empty() { "new" } else { "" }), &[]);
        let said = if part.is_empty() { outcome } else { refused(&data, &[]) };
        set_immutable(&path, false);
        refusal(&said?, "GM-6009", &[text(&path), "lsattr"]).with_context(|| part.to_owned())?;
    }
    starts_with_its_messages(&data)
}

#[test]
fn inspecting_says_what_is_in_the_way() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let store = data.join("bookie");
    let server = Standalone::start(&data, &[])?;
    let inspect = |dir: &Path| run(&["bookie", "inspect", text(dir)]);
    let (good, shown, error) = inspect(&store)?;
    ensure!(!good && shown.is_empty(), "a running store was looked into: {shown}");
    refusal(&error, "GM-6001", &[text(&store), "stop it"])?;
    ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "it is no longer healthy");
    server.kill()?;
    let (good, shown, error) = inspect(&store)?;
    ensure!(good && shown.contains("0 findings"), "{shown}{error}");
    refusal(&inspect(&data)?.2, "GM-6009", &[text(&data), "DATA-DIR/bookie"])?;
    refusal(&inspect(&data.join("none"))?.2, "GM-6009", &[text(&data.join("none"))])?;
    std::fs::remove_file(store.join("journal/IDENTITY"))?;
    refusal(&inspect(&store)?.2, "GM-4005", &["1 findings", text(&store)])
}

#[test]
fn waiting_for_etcd_is_said_at_once_and_then_seldom() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("geminga.toml");
    // Nothing listens on port 1.
    let metadata = "[bookie.metadata]\nurl = 'etcd:http://127.0.0.1:1'\nstart_timeout_ms = 4000\n";
    std::fs::write(&file, metadata)?;
    let begun = Instant::now();
    let said = refused_as("bookie", &dir.path().join("data"), &["--config", text(&file)])?;
    ensure!(begun.elapsed() >= Duration::from_secs(4), "it did not wait: {said}");
    let waiting = said.lines().filter(|line| line.contains("waiting for etcd")).count();
    ensure!((1..=4).contains(&waiting), "said {waiting} times: {said}");
    let last = said.lines().last().context("it said nothing")?;
    refusal(last, "GM-5001", &["127.0.0.1:1", "is it running"])
}

#[test]
fn a_load_of_messages_that_are_too_large_names_the_limit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), &[])?;
    let limit = 5 << 20;
    for batching in ["--batch", "--no-batch"] {
        let size = (limit + 1).to_string();
        let args = ["perf", "produce", "--url", &server.pulsar, "--size", &size, "--messages", "1", batching];
        let (good, _, error) = run(&args)?;
        ensure!(!good, "it went through");
        says(&error, &["--size 5242881", "5242880 bytes", "max_message_size"])?;
        // As large as allowed is allowed, and a batch grows no further than that.
        let size = limit.to_string();
        let sent = server.perf(&["produce", "--size", &size, "--messages", "3", "--rate", "0", batching])?;
        ensure!(sent["messages"] == 3 && sent["failed"] == 0, "{sent}");
    }
    let large = ["--size", "3000000", "--messages", "6", "--rate", "0", "--batch-bytes", "50000000"];
    let sent = server.perf(&[&["produce"][..], &large[..]].concat())?;
    ensure!(sent["messages"] == 6, "{sent}");
    Ok(())
}

#[test]
fn help_lists_every_command() -> Result<()> {
    let (good, shown, _) = run(&["--help"])?;
    ensure!(good, "{shown}");
    says(&shown, &["standalone", "bookie", "broker", "cluster", "perf"])?;
    ensure!(!shown.contains("standalone, perf\n"), "the summary names two commands only: {shown}");
    says(&run(&["perf", "--help"])?.1, &["produce", "consume"])
}

#[test]
fn a_port_that_is_taken_leaves_the_data_directory_usable() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    for _ in 0..3 {
        let args = ["standalone", "--data-dir", text(dir.path()), "--pulsar-port", &port, "--http-port", "0"];
        ensure!(!run(&args)?.0, "it ran");
    }
    used(dir.path())
}

#[test]
fn who_does_not_speak_the_protocol_is_named_with_a_reason_and_not_each_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let server = Standalone::start_logged(&dir.path().join("data"), &["--log", "info"], &log)?;
    let address = server.pulsar.trim_start_matches("pulsar://");
    let mut peers = Vec::new();
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(address)?;
        stranger.set_read_timeout(Some(Duration::from_secs(10)))?;
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        peers.push(stranger.local_addr()?.to_string());
        // Closed, in order or not.
        let _reset = stranger.read(&mut [0; 16]);
    }
    let said = std::fs::read_to_string(&log)?;
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("closed for what it sent")).collect();
    ensure!((1..=2).contains(&lines.len()), "{} lines for 20 strangers: {said}", lines.len());
    says(lines[0], &["INFO", &peers[0], "reason=malformed frame"])
}

#[test]
fn a_start_that_waits_for_credentials_of_an_object_store_says_how_to_give_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (file, log) = (dir.path().join("geminga.toml"), dir.path().join("log"));
    std::fs::write(&file, "[standalone.offload]\nurl = 's3://bucket/prefix'\n")?;
    let data = dir.path().join("data");
    let mut command = Command::new(binary()?);
    command.args(["standalone", "--pulsar-port", "0", "--http-port", "0", "--log", "warn"]);
    command.args(["--config", text(&file), "--data-dir", text(&data)]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    // Nothing listens on port 1: no machine has a role there.
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1").stdout(std::process::Stdio::null());
    let mut child = command.stderr(std::fs::File::create(&log)?).spawn()?;
    let said = || Ok(std::fs::read_to_string(&log)?.contains("GM-4009"));
    let told = eventually(Duration::from_secs(20), said);
    child.kill()?;
    child.wait()?;
    let log = std::fs::read_to_string(&log)?;
    told.with_context(|| log.clone())?;
    says(&log, &["s3://bucket/prefix", "No credentials are given", "AWS_ACCESS_KEY_ID"])
}
