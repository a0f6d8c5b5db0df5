//! Flipped bits in the only copy there is: what cannot be read names the file, the place and the way out; once its loss is accepted all else
//! is read back, nothing that is intact is given up, and nothing is skipped.

use super::accepted::{consume, publish};
use super::killed::{FLUSHED, Killed, UNFLUSHED};
use super::lifecycle::eventually;
use super::says;
use anyhow::{Context as _, Result, ensure};
use geminga_proto::pulsar::command_subscribe::{InitialPosition, SubType};
use geminga_tests::process::{Standalone, refused, run};
use geminga_tests::wire::Wire;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MESSAGES: u64 = 600;
const ACKED: u64 = 100;
/// Acknowledged in so many steps, each an entry of the cursor log.
const STEPS: u64 = 5;

/// An entry in a segment file, as `bookie/src/format/segment.rs` has it.
#[derive(Clone, Debug)]
struct Stored {
    segment: PathBuf,
    /// Where its payload begins.
    at: u64,
    len: u64,
    cursors: bool,
    payload: Vec<u8>,
}

impl Stored {
    fn is(&self, number: u64) -> bool {
        let text = format!("{number:08} ");
        self.payload.windows(text.len()).any(|bytes| bytes == text.as_bytes())
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from(u32::from_le_bytes(bytes.get(at..at + 4).context("cut short")?.try_into()?)))
}

/// All entries of all segments, in the order of their files and places.
fn stored(data: &Path) -> Result<Vec<Stored>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(data.join("bookie/segments"))?.flatten().map(|file| file.path()).collect();
    files.sort();
    let mut out = Vec::new();
    for segment in files {
        let bytes = std::fs::read(&segment)?;
        let mut block = 0;
        while bytes.get(block..block + 4) == Some(b"GMBK") {
            let (len, count) = (word(&bytes, block + 8)? as usize, word(&bytes, block + 12)?);
            let mut at = block + 16;
            for _ in 0..count {
                let (len, payload) = (word(&bytes, at + 52)? as usize, at + 56);
                let cursors = bytes.get(at + 21) == Some(&2);
                let held = bytes.get(payload..payload + len).context("cut short")?.to_vec();
                let (segment, place, size) = (segment.clone(), payload as u64, len as u64);
                out.push(Stored { segment, at: place, len: size, cursors, payload: held });
                at = payload + len;
            }
            block += 16 + len;
        }
    }
    Ok(out)
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    *bytes.get_mut(at as usize).context("beyond the end")? ^= 4;
    Ok(std::fs::write(path, bytes)?)
}

/// The journal file that holds a message, and where.
fn journaled(data: &Path, number: u64) -> Result<(PathBuf, u64)> {
    let text = format!("{number:08} ");
    for file in std::fs::read_dir(data.join("bookie/journal"))?.flatten() {
        let bytes = std::fs::read(file.path())?;
        if let Some(at) = bytes.windows(text.len()).position(|found| found == text.as_bytes()) {
            return Ok((file.path(), at as u64));
        }
    }
    anyhow::bail!("message {number} is in no journal file")
}

/// Acknowledges what comes, one message after the other, as the first of a subscription.
fn acknowledge(server: &Standalone) -> Result<()> {
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.subscribe("kept", "s", 1, SubType::Exclusive)?;
    wire.flow(1, ACKED as u32)?;
    for _ in 0..STEPS {
        let ids: Result<Vec<_>> = (0..ACKED / STEPS).map(|_| Ok(wire.message()?.id)).collect();
        wire.ack(1, ids?)?;
        std::thread::sleep(Duration::from_millis(150));
    }
    Ok(())
}

fn numbers(server: &Standalone, subscription: &str) -> Result<Vec<u64>> {
    Ok(consume(server, subscription)?.into_iter().map(|(number, _)| number).collect())
}

impl Killed {
    /// 600 messages of one subscription that has acknowledged 100 of them.
    fn some(store: &str, broker: &str, kill: bool) -> Result<Self> {
        let killed = Self::with(store, broker)?;
        let server = Standalone::start(&killed.data(), &killed.args())?;
        // The other one keeps what `s` has acknowledged.
        for name in ["s", "keeper"] {
            let path = format!("/admin/v2/persistent/public/default/kept/subscription/{name}");
            let made = server.request("PUT", &path)?;
            ensure!(made.0 == 204, "{made:?}");
        }
        publish(&server, 0..MESSAGES)?;
        acknowledge(&server)?;
        if store == FLUSHED {
            eventually(Duration::from_secs(20), || {
                let held = stored(&killed.data())?;
                let cursors = held.iter().filter(|entry| entry.cursors).count() as u64;
                Ok((0..MESSAGES).rev().all(|n| held.iter().any(|entry| entry.is(n))) && cursors > STEPS)
            })?;
        }
        if kill {
            server.kill()?
        } else {
            server.terminate().map(|_| ())?
        }
        killed.keep()?;
        Ok(killed)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn start(&self) -> Result<Standalone> {
        let _old = std::fs::remove_file(self.log());
        Standalone::start_logged(&self.data(), &self.args(), &self.log())
    }

    /// What whoever opens the topic is told.
    fn shut(&self, file: &Path) -> Result<()> {
        let server = self.start()?;
        let named = file.display().to_string();
        let mut wire = Wire::connect(&server.pulsar)?;
        let opened = wire.subscribe_from("kept", "s", 1, SubType::Exclusive, InitialPosition::Latest);
        let told = opened.err().context("the topic opens")?.to_string();
        says(&told, &["GM-4020", &named, "offset", "geminga admin accept-loss"])?;
        let (status, told) = server.request("GET", "/admin/v2/persistent/public/default/kept/stats")?;
        ensure!(status == 500, "{status} {told}");
        says(&told, &["GM-4020", &named, "offset", "geminga admin accept-loss"])?;
        server.kill()
    }

    /// What whoever reads the topic is told; it comes so far.
    fn stuck(&self, file: &Path, before: u64) -> Result<()> {
        let server = self.start()?;
        let named = file.display().to_string();
        let got = numbers(&server, "s")?;
        ensure!(got.iter().all(|n| *n < before), "something behind the damage came: {got:?}");
        eventually(Duration::from_secs(10), || {
            let stats = server.stats("kept")?;
            let reason = &stats["subscriptions"]["s"]["waitReason"];
            let told = reason.as_str().unwrap_or_default();
            Ok(["GM-4020", &named, "offset", "geminga admin accept-loss"]
                .iter()
                .all(|word| told.contains(word)))
        })
        .with_context(|| format!("{:?}", server.stats("kept")))?;
        let log = std::fs::read_to_string(self.log())?;
        let line = log.lines().find(|line| line.contains("a read failed")).context("nothing in the log")?;
        says(line, &["GM-4020", &named, "geminga admin accept-loss"])?;
        server.kill()
    }

    /// Accepts what is lost; how many messages that are.
    fn accepts(&self, file: &Path) -> Result<u64> {
        let named = file.display().to_string();
        let (good, told, error) = self.accept(false)?;
        ensure!(good, "{error}");
        says(&told, &["lost: ", &named, "nothing was changed", "--yes"])?;
        if file.extension().is_some_and(|is| is == "seg") {
            says(&error, &["checked "])?;
        }
        let before = std::fs::read(file)?;
        let (good, accepted, error) = self.accept(true)?;
        ensure!(good, "{accepted}{error}");
        says(&accepted, &["the loss is accepted"])?;
        if file.extension().is_some_and(|is| is == "seg") {
            ensure!(std::fs::read(file)? == before, "bytes of the damaged file were changed");
        }
        let (good, again, error) = self.accept(true)?;
        ensure!(good, "{error}");
        says(&again, &["nothing is missing"])?;
        let count = told.lines().find_map(|line| line.split_once(" entries of ")?.0.parse().ok());
        count.with_context(|| format!("no count in {told}"))
    }

    /// All but these are read, by a new subscription and, but for what it had acknowledged, by the old one; also after another restart.
    fn is_whole_but_for(&self, lost: &[u64]) -> Result<()> {
        let left: Vec<u64> = (0..MESSAGES).filter(|n| !lost.contains(n)).collect();
        for round in 0..2 {
            let server = self.start()?;
            let all = numbers(&server, &format!("fresh-{round}"))?;
            let expected: Vec<u64> = left.iter().copied().chain(5000..5000 + round).collect();
            ensure!(all == expected, "{} of {} were read: {all:?}", all.len(), expected.len());
            let got = numbers(&server, "s")?;
            ensure!(got.is_sorted_by(|a, b| a < b), "not in order: {got:?}");
            let due = expected.iter().filter(|n| **n >= ACKED);
            ensure!(due.clone().all(|n| got.contains(n)), "`s` has skipped something: {got:?}");
            publish(&server, 5000 + round..5001 + round)?;
            server.kill()?;
        }
        let store = self.data().join("bookie").display().to_string();
        let (good, shown, error) = run(&["bookie", "inspect", &store])?;
        ensure!(good, "{shown}{error}");
        Ok(())
    }
}

fn of(all: &[Stored], number: u64) -> Result<&Stored> {
    all.iter().find(|entry| entry.is(number)).with_context(|| format!("message {number} is in no segment"))
}

#[test]
fn an_open_message_ledger_goes_on_without_an_entry_in_its_middle_or_its_last_one() -> Result<()> {
    let killed = Killed::some(FLUSHED, "", true)?;
    let all = stored(&killed.data())?;
    for lost in [300, MESSAGES - 1] {
        killed.reset()?;
        let entry = of(&all, lost)?;
        flip(&entry.segment, entry.at + entry.len / 2)?;
        if lost == 300 {
            killed.stuck(&entry.segment, lost)?
        } else {
            killed.shut(&entry.segment)?
        }
        let count = killed.accepts(&entry.segment)?;
        ensure!(count == 1, "message {lost}: {count} are said to be lost");
        killed.is_whole_but_for(&[lost]).with_context(|| format!("without message {lost}"))?;
    }
    Ok(())
}

#[test]
fn a_closed_message_ledger_goes_on_without_an_entry() -> Result<()> {
    let killed = Killed::some(FLUSHED, "ledger_entries = 100\n", false)?;
    let all = stored(&killed.data())?;
    let entry = of(&all, 350)?;
    flip(&entry.segment, entry.at + entry.len / 2)?;
    killed.stuck(&entry.segment, 350)?;
    ensure!(killed.accepts(&entry.segment)? == 1);
    killed.is_whole_but_for(&[350])
}

#[test]
fn an_open_cursor_log_falls_back_and_skips_nothing() -> Result<()> {
    let killed = Killed::some(FLUSHED, "", true)?;
    let all: Vec<Stored> = stored(&killed.data())?.into_iter().filter(|entry| entry.cursors).collect();
    let (middle, last) = (all.len() / 2, all.len() - 1);
    for lost in [0, middle, last] {
        killed.reset()?;
        let entry = &all[lost];
        flip(&entry.segment, entry.at + entry.len / 2)?;
        killed.shut(&entry.segment).with_context(|| format!("entry {lost} of {}", all.len()))?;
        killed.accepts(&entry.segment)?;
        if lost == last {
            // The state before it was true once: the subscription goes on from there.
            let server = killed.start()?;
            let got = numbers(&server, "s")?;
            let first = *got.first().context("nothing comes")?;
            ensure!((1..=ACKED).contains(&first), "it goes on from message {first}");
            server.kill()?;
        }
        killed.is_whole_but_for(&[]).with_context(|| format!("without entry {lost} of {}", all.len()))?;
    }
    Ok(())
}

#[test]
fn a_journal_that_was_not_flushed_goes_on_without_an_entry_in_its_middle() -> Result<()> {
    let killed = Killed::some(UNFLUSHED, "", true)?;
    let (file, at) = journaled(&killed.data(), 300)?;
    flip(&file, at + 700)?;
    let said = refused(&killed.data(), &killed.args())?;
    says(&said, &["GM-4005", &file.display().to_string(), "offset", "accept-loss"])?;
    ensure!(killed.accepts(&file).context("accepting")? == 1);
    killed.is_whole_but_for(&[300])
}

#[test]
fn damage_beside_the_entries_loses_none() -> Result<()> {
    let killed = Killed::some(FLUSHED, "", true)?;
    let all = stored(&killed.data())?;
    let segment = of(&all, 300)?.segment.clone();
    let len = std::fs::metadata(&segment)?.len();
    // The checksum of the first block; the footer's end.
    for at in [5, len - 40] {
        killed.reset()?;
        flip(&segment, at)?;
        let lost = killed.accepts(&segment).with_context(|| format!("byte {at}"))?;
        ensure!(lost == 0, "byte {at}: {lost} are said to be lost");
        killed.is_whole_but_for(&[]).with_context(|| format!("byte {at}"))?;
    }
    Ok(())
}
