//! A loss that is accepted for good: without a copy of what was lost the server goes on with what is left, and says what is not there.

use super::killed::{FLUSHED, Killed, UNFLUSHED};
use super::says;
use anyhow::{Context as _, Result, ensure};
use geminga_proto::pulsar::command_subscribe::{InitialPosition, SubType};
use geminga_tests::process::{Standalone, refused, run};
use geminga_tests::wire::{Message, Wire};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Messages of one life of the server; it lives twice before something is lost.
const MESSAGES: u64 = 1000;
const ACKED: u64 = 100;
/// Entries of a ledger: what the last one lost at its end may not be known to anybody.
const ROLL: u64 = 300;

fn payload(number: u64) -> Vec<u8> {
    let mut bytes = format!("{number:08} ").into_bytes();
    bytes.extend((0..1500_u64).map(|at| (at.wrapping_mul(number + 7) >> 3) as u8));
    bytes
}

fn number(message: &Message) -> Result<u64> {
    let text = std::str::from_utf8(message.payload.get(..8).context("too short")?)?;
    let number = text.parse()?;
    ensure!(message.payload[..] == payload(number)[..], "message {number} has other bytes");
    Ok(number)
}

pub(crate) fn publish(server: &Standalone, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut wire = Wire::connect(&server.pulsar)?;
    wire.producer("kept", 1)?;
    for block in numbers.collect::<Vec<u64>>().chunks(50) {
        block.iter().try_for_each(|number| wire.publish(1, *number, &payload(*number)))?;
        block.iter().try_for_each(|number| wire.receipt(*number).map(drop))?;
    }
    Ok(())
}

/// All that a subscription gets until nothing comes any more; nothing is acknowledged.
pub(crate) fn consume(server: &Standalone, subscription: &str) -> Result<Vec<(u64, Message)>> {
    let mut wire = Wire::connect(&server.pulsar)?;
    // As most clients do: one of which nothing is known any more must not begin at the end for that.
    let initial = if subscription == "s" { InitialPosition::Latest } else { InitialPosition::Earliest };
    wire.subscribe_from("kept", subscription, 1, SubType::Exclusive, initial)?;
    wire.flow(1, 100_000)?;
    let (mut got, mut wait) = (Vec::new(), Duration::from_secs(10));
    while let Some(message) = wire.message_within(wait)? {
        got.push((number(&message)?, message));
        wait = Duration::from_secs(2);
    }
    Ok(got)
}

impl Killed {
    /// Published in two lives, over several ledgers; one subscription has acknowledged a little.
    fn twice(settings: &str) -> Result<Self> {
        let killed = Self::with(settings, "ledger_entries = 300\n")?;
        for life in 0..2 {
            let server = Standalone::start(&killed.data(), &killed.args())?;
            if life == 0 {
                let made =
                    server.request("PUT", "/admin/v2/persistent/public/default/kept/subscription/s")?;
                ensure!(made.0 == 204, "{made:?}");
            }
            publish(&server, life * MESSAGES..(life + 1) * MESSAGES)?;
            if life == 0 {
                let mut wire = Wire::connect(&server.pulsar)?;
                wire.subscribe("kept", "s", 1, SubType::Exclusive)?;
                wire.flow(1, ACKED as u32)?;
                let ids: Result<Vec<_>> = (0..ACKED).map(|_| Ok(wire.message()?.id)).collect();
                wire.ack(1, ids?)?;
            }
            std::thread::sleep(Duration::from_millis(700));
            server.kill()?;
        }
        killed.keep()?;
        Ok(killed)
    }

    pub(crate) fn accept(&self, yes: bool) -> Result<(bool, String, String)> {
        let data = self.data().display().to_string();
        let args = ["admin", "accept-loss", "--config", &self.config, "--data-dir", &data];
        if yes { run(&[&args[..], &["--yes"]].concat()) } else { run(&args) }
    }

    /// Loses files, is refused, is asked what that means, accepts it, and goes on; how many messages of the topic were lost.
    fn goes_on_without(&self, parts: &[&Path]) -> Result<u64> {
        self.reset()?;
        let first = parts.first().context("something is lost")?;
        // Of a journal without any file nobody knows which there were.
        let no_journal = parts.len() > 1 && first.extension().is_some_and(|is| is == "jnl");
        let named = if no_journal { first.parent().context("a directory")? } else { first };
        for part in parts {
            std::fs::remove_file(self.data().join(part))?;
        }
        let said = refused(&self.data(), &self.args())?;
        says(&said, &["GM-4005", "accept-loss", &named.display().to_string()])?;
        ensure!(!said.contains("other bookies"), "there are none: {said}");
        let (good, told, error) = self.accept(false)?;
        ensure!(good, "{error}");
        says(&told, &["lost: ", &named.display().to_string(), "nothing was changed", "--yes"])?;
        // Looking has changed nothing: it is refused as before.
        ensure!(refused(&self.data(), &self.args())? == said, "the look changed something");
        let (good, accepted, error) = self.accept(true)?;
        ensure!(good, "{error}");
        says(&accepted, &["the loss is accepted", "incarnation"])?;
        let (_, again, _) = self.accept(true)?;
        says(&again, &["nothing is missing"])?;
        let log = self.dir.path().join("log");
        let _old = std::fs::remove_file(&log);
        let server = Standalone::start_logged(&self.data(), &self.args(), &log)?;
        // It was there: what it had not acknowledged comes, in order, and nothing comes twice.
        let got: Vec<u64> = consume(&server, "s")?.into_iter().map(|(number, _)| number).collect();
        ensure!(got.is_sorted_by(|a, b| a < b), "not in order: {got:?}");
        // Everything that is left comes to a subscription that begins at the earliest.
        let all: Vec<u64> = consume(&server, "fresh")?.into_iter().map(|(number, _)| number).collect();
        ensure!(all.is_sorted_by(|a, b| a < b), "not in order: {all:?}");
        ensure!(all.iter().filter(|n| **n >= ACKED).all(|n| got.contains(n)), "`s` has skipped something");
        let lost = 2 * MESSAGES - all.len() as u64;
        self.tells(&server, &log, lost, &told)?;
        publish(&server, 5000..5100)?;
        let after: Vec<u64> = consume(&server, "s")?.into_iter().map(|(number, _)| number).collect();
        ensure!(after.ends_with(&(5000..5100).collect::<Vec<u64>>()), "what is new does not come: {after:?}");
        server.kill()?;
        // And again, without a word.
        let server = Standalone::start(&self.data(), &self.args())?;
        let again: Vec<u64> = consume(&server, "fresh")?.into_iter().map(|(number, _)| number).collect();
        ensure!(again.len() == all.len() + 100 && again.starts_with(&all), "not the same after a restart");
        server.terminate()?;
        let store = self.data().join("bookie").display().to_string();
        let (good, shown, error) = run(&["bookie", "inspect", &store])?;
        ensure!(good, "{shown}{error}");
        says(&shown, &["accepted at ", &named.display().to_string()])?;
        Ok(lost)
    }

    /// What is lost is counted: before by the look, and then in log, stats and metrics.
    fn tells(&self, server: &Standalone, log: &Path, lost: u64, told: &str) -> Result<()> {
        let log = std::fs::read_to_string(log)?;
        says(&log, &["GM-4019", "this store has lost something, and that was accepted"])?;
        let count: Option<u64> = told.lines().find_map(|line| {
            let (count, rest) = line.split_once(" entries of ")?;
            rest.contains("topics are known to be lost").then(|| count.parse().ok())?
        });
        let count = count.with_context(|| format!("no count in {told}"))?;
        ensure!(
            (lost.saturating_sub(ROLL)..=lost).contains(&count),
            "{count} are said to be lost, {lost} are"
        );
        let stats = server.stats("kept")?;
        let passed = stats["subscriptions"]["fresh"]["lostEntries"].as_u64().unwrap_or(0);
        if passed > 0 {
            let metrics = server.request("GET", "/metrics/")?.1;
            let line = metrics.lines().find(|line| {
                line.starts_with("geminga_subscription_lost_entries_total") && line.contains("\"fresh\"")
            });
            says(line.context("no metric")?, &[&format!("}} {passed}.0")])?;
            says(&log, &["entries of the topic are lost for good", "fresh"])?;
        }
        let closings =
            log.lines().filter(|l| l.contains("closed behind an accepted loss") && l.contains("kept"));
        let tails: u64 =
            closings.map(behind_the_end).sum::<Option<u64>>().context("a closing that tells nothing")?;
        let told = passed + tails;
        ensure!(
            (lost.saturating_sub(ROLL)..=lost).contains(&told),
            "{lost} are lost, {passed} + {tails} told: {log}"
        );
        Ok(())
    }
}

/// Entries that a closing tells to be lost behind its ledger's end; those below it are holes, which a subscription passes and counts.
fn behind_the_end(line: &str) -> Option<u64> {
    let (before, lost) = line.split_once(" lost=")?;
    let last = before.split_once(" last=")?.1.split(' ').next()?.parse::<i64>().unwrap_or(-1);
    let run = |run: &str| {
        let (first, end) = run.split_once("..=")?;
        let (first, end) = (first.parse::<i64>().ok()?, end.parse::<i64>().ok()?);
        Some(if first > last { (end - first + 1) as u64 } else { 0 })
    };
    lost.split_whitespace().map(run).sum()
}

#[test]
fn a_flushed_store_goes_on_without_its_manifest_an_identity_or_segments() -> Result<()> {
    let killed = Killed::twice(FLUSHED)?;
    for part in ["bookie/manifest.redb", "bookie/IDENTITY", "bookie/journal/IDENTITY"] {
        let lost = killed.goes_on_without(&[Path::new(part)]).with_context(|| part.to_owned())?;
        ensure!(lost == 0, "{part}: {lost} messages were lost, and all are in segments or journal");
    }
    let both = [Path::new("bookie/IDENTITY"), Path::new("bookie/journal/IDENTITY")];
    ensure!(killed.goes_on_without(&both).context("both identities")? == 0, "messages were lost");
    let segments = killed.files("bookie/segments", "seg")?;
    let size =
        |path: &PathBuf| std::fs::metadata(killed.kept().join(path)).map(|data| data.len()).unwrap_or(0);
    let largest = segments.iter().max_by_key(|path| size(path)).context("no segment was written")?;
    let lost = killed.goes_on_without(&[largest]).with_context(|| largest.display().to_string())?;
    ensure!(lost > 0, "nothing lay in {}", largest.display());
    // Small runs, the cursor log's among them, lie in files of their own.
    let smallest = segments.iter().min_by_key(|path| size(path)).context("no segment was written")?;
    killed.goes_on_without(&[smallest]).with_context(|| smallest.display().to_string())?;
    let all: Vec<&Path> = segments.iter().map(PathBuf::as_path).collect();
    let lost = killed.goes_on_without(&all).context("all segments")?;
    ensure!(lost > MESSAGES, "only {lost} were lost");
    Ok(())
}

#[test]
fn an_unflushed_store_goes_on_without_journal_files() -> Result<()> {
    let killed = Killed::twice(UNFLUSHED)?;
    let files = killed.files("bookie/journal", "jnl")?;
    ensure!(files.len() >= 4, "only {} journal files", files.len());
    let lost = killed.goes_on_without(&[&files[files.len() / 2]]).context("one in the middle")?;
    ensure!(lost > 0, "nothing lay in the middle one");
    let all: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    killed.goes_on_without(&all).context("all of them")?;
    Ok(())
}

#[test]
fn a_bookie_of_a_cluster_has_nothing_to_accept() -> Result<()> {
    let killed = Killed::twice(FLUSHED)?;
    let store = killed.data().join("bookie").display().to_string();
    let (good, _, error) = run(&["admin", "accept-loss", "--data-dir", &store, "--yes"])?;
    ensure!(!good, "it was accepted");
    says(&error, &["GM-6014", "copies of others"])
}

/// Ledgers keep naming the store as it was before each loss: an acceptance that has lost the memory of those before learns of them from
/// metadata, and starts are counted on from what metadata know.
#[test]
fn losing_what_told_of_a_loss_or_every_identity_again_and_again_shuts_nothing() -> Result<()> {
    let killed = Killed::twice(FLUSHED)?;
    let identities = ["bookie/IDENTITY", "bookie/journal/IDENTITY"];
    let memory = ["bookie/LOSSES", "bookie/journal/LOSSES"];
    for parts in [&["bookie/manifest.redb"][..], &memory, &identities, &memory, &identities] {
        for part in parts {
            std::fs::remove_file(killed.data().join(part)).with_context(|| (*part).to_owned())?;
        }
        says(&refused(&killed.data(), &killed.args())?, &["GM-4005", "accept-loss"])?;
        let (good, accepted, error) = killed.accept(true)?;
        ensure!(good, "{parts:?}: {accepted}{error}");
        for _ in 0..2 {
            let server = Standalone::start(&killed.data(), &killed.args())
                .with_context(|| format!("after {parts:?} were lost and that was accepted"))?;
            let fresh = format!("fresh-{}", std::process::id());
            let all: Vec<u64> = consume(&server, &fresh)?.into_iter().map(|(number, _)| number).collect();
            ensure!(all == (0..2 * MESSAGES).collect::<Vec<_>>(), "{parts:?}: {} are left", all.len());
            server.kill()?;
        }
    }
    Ok(())
}
