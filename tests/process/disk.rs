//! A disk that fills up while the server runs, on a small file system of its own. Where none can be mounted the test says so.

use super::backlog::{BODY, body};
use super::lifecycle::eventually;
use anyhow::{Context as _, Result, ensure};
use geminga_proto::pulsar::command_subscribe::SubType;
use geminga_tests::process::{Standalone, refused};
use geminga_tests::wire::Wire;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub(crate) const LEFT_OUT: &str =
    "not possible here: a full disk needs a file system that can be mounted (root, mkfs.ext4 or tmpfs)";

/// A mounted file system of 64 MiB; gone when dropped.
pub(crate) struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    /// `None` where mounting is not possible.
    pub(crate) fn mount() -> Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(64 << 20)?;
        let small = Self { dir };
        std::fs::create_dir(small.path())?;
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
        };
        let made = run("mkfs.ext4", &["-q".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_ref()]);
        let mounted =
            made && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), small.path().as_ref()]);
        let mounted = mounted
            || run(
                "mount",
                &["-t", "tmpfs", "-o", "size=64m", "tmpfs"]
                    .map(std::ffi::OsStr::new)
                    .into_iter()
                    .chain([small.path().as_os_str()])
                    .collect::<Vec<_>>(),
            );
        Ok(mounted.then_some(small))
    }

    /// Takes all the room there is, down to the last block.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut ballast = std::fs::File::create(self.path().join("all-the-room"))?;
        let (mut size, bytes) = (1 << 20, vec![1; 1 << 20]);
        while size >= 4096 {
            // What was not written whole is written in smaller pieces.
            if ballast.write_all(&bytes[..size]).and_then(|()| ballast.sync_data()).is_err() {
                size /= 2;
            }
        }
        Ok(())
    }

    /// Gives back what [`Self::fill`] took.
    pub(crate) fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.path().join("all-the-room"))?)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a server that is being killed may still hold it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

pub(crate) fn log(small: &Small) -> PathBuf {
    small.dir.path().join("log")
}

pub(crate) fn start(small: &Small, more: &[&str]) -> Result<Standalone> {
    let config = small.dir.path().join("small.toml");
    std::fs::write(
        &config,
        "[standalone.bookie]\njournal_file_size = \"2 MiB\"\nwrite_cache = \"4 MiB\"\nflush_ms = 500\n\
         [standalone.broker]\nmax_message_size = \"1 MiB\"\npublish_budget = \"2 MiB\"\n",
    )?;
    let config = config.to_str().context("the path is text")?;
    let more: Vec<&str> = ["--config", config].iter().chain(more).copied().collect();
    Standalone::start_logged(&small.path().join("data"), &more, &log(small))
}

/// Clients that come back at once, as all do, neither open the topic each time nor fill the log.
fn coming_back_fills_no_log(server: &Standalone, small: &Small) -> Result<()> {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let sent = Wire::connect(&server.pulsar).and_then(|mut wire| {
            wire.producer("full", 1)?;
            wire.publish(1, 0, &body(0))?;
            wire.receipt(0)
        });
        ensure!(sent.is_err(), "the disk has room");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = std::fs::read_to_string(log(small))?;
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("topic=")).collect();
    ensure!(
        (1..=ATTEMPTS / 10).contains(&lines.len()),
        "{} lines for {ATTEMPTS} attempts:\n{said}",
        lines.len()
    );
    ensure!(lines[0].contains("WARN") && lines[0].contains("disk is full"), "{}", lines[0]);
    ensure!(server.stats("full")?["publishWaitReason"] == "disk_full", "{}", server.stats("full")?);
    let refused = Wire::connect(&server.pulsar)?.producer("full", 1);
    let refused = refused.err().map(|why| why.to_string()).unwrap_or_default();
    ensure!(refused.contains("GM-4002") || refused.is_empty(), "{refused}");
    Ok(())
}

#[test]
fn a_disk_that_fills_up_loses_nothing_and_goes_on_when_there_is_room() -> Result<()> {
    let Some(small) = Small::mount()? else {
        println!("{LEFT_OUT}");
        return Ok(());
    };
    let ballast = small.path().join("ballast");
    std::fs::write(&ballast, vec![1; 24 << 20])?;
    let mut server = start(&small, &[])?;
    let mut reader = Wire::connect(&server.pulsar)?;
    reader.subscribe("full", "s", 2, SubType::Shared)?;
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("full", 1)?;
    // Whoever watches has asked before: the topic that answers needs room to be made.
    ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "no health");
    let mut acked = 0;
    let why = loop {
        ensure!(acked < 10_000, "the disk never filled up");
        match wire.publish(1, acked, &body(acked)).and_then(|()| wire.receipt(acked)) {
            Ok(_) => acked += 1,
            Err(why) => break why.to_string(),
        }
    };
    println!("after {acked} messages of {BODY} bytes: {why}");
    ensure!(acked > 100, "full after {acked} messages");
    ensure!(server.ended()?.is_none(), "the server ended: {:?}", server.ended()?);
    ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "no health on a full disk");
    // A publisher that comes back is told why, with a code, and not that it may never come again.
    let again = (|| {
        let mut wire = Wire::connect(&server.pulsar)?;
        wire.producer("full", 1)?;
        wire.publish(1, 0, &body(0))?;
        wire.receipt(0)
    })();
    println!("and again: {:?}", again.as_ref().err().map(ToString::to_string));
    coming_back_fills_no_log(&server, &small)?;
    // Everything that was acknowledged can be read.
    let mut reader = Wire::connect(&server.pulsar)?;
    reader.subscribe("full", "s", 2, SubType::Shared)?;
    reader.flow(2, 1_000_000)?;
    for n in 0..acked {
        let message = reader.message()?;
        ensure!(message.payload == body(n), "message {n} is another");
    }
    std::fs::remove_file(&ballast)?;
    let took = eventually(Duration::from_secs(30), || {
        let mut wire = Wire::connect(&server.pulsar)?;
        let sent = wire.producer("full", 1).and_then(|()| wire.publish(1, acked, &body(acked)));
        Ok(sent.and_then(|()| wire.receipt(acked)).is_ok())
    })?;
    println!("with room again it took {took:?} until a message was stored, without a restart");
    server.kill()?;
    let server = start(&small, &[])?;
    let backlog = server.stats("full")?["subscriptions"]["s"]["msgBacklog"].as_u64().context("no backlog")?;
    ensure!(backlog > acked, "{backlog} are left of {acked} and those since");
    Ok(())
}

#[test]
fn a_disk_without_room_at_the_start_is_named() -> Result<()> {
    let Some(small) = Small::mount()? else {
        println!("{LEFT_OUT}");
        return Ok(());
    };
    small.fill()?;
    let said = refused(&small.path().join("data"), &[])?;
    let data = small.path().display().to_string();
    ensure!(said.contains("GM-") && said.contains(&data) && said.contains("full"), "{said}");
    Ok(())
}
