//! Files of a data directory that are lost while the server is stopped: the start is refused, names what is missing and changes nothing, so
//! that the file, put back, makes everything whole again.

use super::killed::{FLUSHED, Killed, UNFLUSHED};
use super::{copy, says};
use anyhow::{Context as _, Result, ensure};
use geminga_tests::process::{Standalone, refused, run};
use std::path::Path;

const MESSAGES: u64 = 4000;

impl Killed {
    fn new(settings: &str) -> Result<Self> {
        let killed = Self::with(settings, "")?;
        let server = Standalone::start(&killed.data(), &killed.args())?;
        let made = server.request("PUT", "/admin/v2/persistent/public/default/kept/subscription/s")?;
        ensure!(made.0 == 204, "{made:?}");
        let count = MESSAGES.to_string();
        server.perf(&["produce", "--topic", "kept", "--messages", &count, "--rate", "0", "--no-batch"])?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        server.kill()?;
        killed.keep()?;
        Ok(killed)
    }

    /// Loses something, is refused twice for it, and starts whole with it put back.
    fn refuses_without(&self, part: &Path, how: How) -> Result<()> {
        self.reset()?;
        let (path, kept) = (self.data().join(part), self.kept().join(part));
        how.apply(&path)?;
        let named = path.to_str().context("a path of text")?;
        for _ in 0..2 {
            let said = refused(&self.data(), &self.args())?;
            ensure!(said.lines().count() == 1, "one line was wanted: {said}");
            says(&said, &["GM-4005", named, "Nothing was changed", "from a copy", "--serve-damaged"])?;
        }
        ensure!(how != How::Gone || !path.exists(), "the refused start made another {named}");
        if path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else if path.exists() {
            std::fs::remove_file(&path)?;
        }
        copy(&kept, &path)?;
        self.is_whole()
    }

    fn is_whole(&self) -> Result<()> {
        let server = Standalone::start(&self.data(), &self.args())?;
        let backlog = server.stats("kept")?["subscriptions"]["s"]["msgBacklog"].as_u64();
        ensure!(backlog == Some(MESSAGES), "a backlog of {backlog:?}");
        let args = ["consume", "--topic", "kept", "--subscription", "s", "--messages"];
        let got = server.perf(&[&args[..], &[&MESSAGES.to_string(), "--duration", "20"]].concat())?;
        ensure!(got["messages"] == MESSAGES, "{got}");
        server.kill()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Gone,
    Halved,
    Emptied,
}

impl How {
    fn apply(self, path: &Path) -> Result<()> {
        match self {
            How::Gone if path.is_dir() => std::fs::remove_dir_all(path)?,
            How::Gone => std::fs::remove_file(path)?,
            How::Halved | How::Emptied => {
                let len = std::fs::metadata(path)?.len();
                let left = if self == How::Halved { len / 2 } else { 0 };
                std::fs::OpenOptions::new().write(true).open(path)?.set_len(left)?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_store_without_a_segment_its_manifest_or_a_directory_is_refused_and_whole_once_it_is_back() -> Result<()>
{
    let killed = Killed::new(FLUSHED)?;
    let segments = killed.files("bookie/segments", "seg")?;
    let largest = segments.iter().max_by_key(|path| {
        std::fs::metadata(killed.kept().join(path)).map(|data| data.len()).unwrap_or_default()
    });
    let largest = largest.context("no segment was written")?;
    let smallest = segments.last().context("no segment was written")?;
    let manifest = Path::new("bookie/manifest.redb");
    let cases = [
        (largest.as_path(), How::Gone),
        (largest, How::Halved),
        (largest, How::Emptied),
        (smallest, How::Gone),
        (manifest, How::Gone),
        (manifest, How::Halved),
        (manifest, How::Emptied),
        (Path::new("bookie/segments"), How::Gone),
        (Path::new("bookie/journal"), How::Gone),
        (Path::new("bookie/IDENTITY"), How::Gone),
        (Path::new("bookie/journal/IDENTITY"), How::Gone),
    ];
    for (part, how) in cases {
        killed.refuses_without(part, how).with_context(|| format!("{} {how:?}", part.display()))?;
    }
    Ok(())
}

#[test]
fn a_store_without_one_of_its_journal_files_is_refused_whichever_it_is() -> Result<()> {
    let killed = Killed::new(UNFLUSHED)?;
    let files = killed.files("bookie/journal", "jnl")?;
    ensure!(files.len() >= 5, "only {} journal files", files.len());
    // The last one is ready and not begun; the one before it is the newest that holds something.
    let (first, middle, newest) = (&files[0], &files[files.len() / 2], &files[files.len() - 2]);
    for (part, how) in [
        (first, How::Gone),
        (middle, How::Gone),
        (middle, How::Emptied),
        (newest, How::Gone),
        (newest, How::Halved),
        (newest, How::Emptied),
    ] {
        killed.refuses_without(part, how).with_context(|| format!("{} {how:?}", part.display()))?;
    }
    Ok(())
}

#[test]
fn what_is_left_of_a_damaged_store_is_served_when_that_is_asked_for() -> Result<()> {
    let killed = Killed::new(FLUSHED)?;
    let segments = killed.files("bookie/segments", "seg")?;
    let part = segments.first().context("no segment was written")?;
    std::fs::remove_file(killed.data().join(part))?;
    let log = killed.dir.path().join("log");
    let args = [&killed.args()[..], &["--serve-damaged"]].concat();
    let server = Standalone::start_logged(&killed.data(), &args, &log)?;
    ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "no health");
    server.kill()?;
    let said = std::fs::read_to_string(&log)?;
    let named = killed.data().join(part).display().to_string();
    let line = said.lines().find(|line| line.contains(" ERROR ") && line.contains(&named));
    says(line.with_context(|| format!("the loss is not told: {said}"))?, &["GM-4005", "is missing"])?;
    // A segment that is put back counts again.
    copy(&killed.kept().join(part), &killed.data().join(part))?;
    killed.is_whole()
}

#[test]
fn a_store_that_lost_both_identities_and_was_served_as_it_is_can_still_be_accepted() -> Result<()> {
    let killed = Killed::new(FLUSHED)?;
    for part in ["bookie/IDENTITY", "bookie/journal/IDENTITY"] {
        std::fs::remove_file(killed.data().join(part))?;
    }
    let damaged = [&killed.args()[..], &["--serve-damaged"]].concat();
    for _ in 0..2 {
        let server = Standalone::start(&killed.data(), &damaged)?;
        ensure!(server.request("GET", "/admin/v2/brokers/health")?.0 == 200, "no health");
        server.kill()?;
    }
    let said = refused(&killed.data(), &killed.args())?;
    says(&said, &["GM-4005", "accept-loss"])?;
    let data = killed.data().display().to_string();
    let accept = ["admin", "accept-loss", "--config", &killed.config, "--data-dir", &data, "--yes"];
    let (good, told, error) = run(&accept)?;
    ensure!(good, "{error}");
    says(&told, &["the loss is accepted"])?;
    killed.is_whole()
}

#[test]
fn a_directory_in_the_place_of_a_file_is_named_and_left_alone() -> Result<()> {
    let killed = Killed::new(UNFLUSHED)?;
    let journal = killed.files("bookie/journal", "jnl")?;
    let first = journal.first().context("no journal file")?;
    for part in
        [Path::new("bookie/FORMAT"), "bookie/IDENTITY".as_ref(), "bookie/journal/IDENTITY".as_ref(), first]
    {
        killed.reset()?;
        let path = killed.data().join(part);
        std::fs::remove_file(&path)?;
        std::fs::create_dir(&path)?;
        let said = refused(&killed.data(), &killed.args())?;
        ensure!(said.lines().count() == 1, "one line was wanted: {said}");
        let named = path.to_str().context("a path of text")?;
        says(&said, &["GM-6009", named, "a directory lies where a file belongs", "from a copy"])?;
        std::fs::remove_dir(&path)?;
        copy(&killed.kept().join(part), &path)?;
        killed.is_whole().with_context(|| part.display().to_string())?;
    }
    Ok(())
}
