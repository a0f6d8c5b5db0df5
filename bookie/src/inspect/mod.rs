//! Looking into a store offline: what its files hold, and whether all of it checks. Changes nothing, and works on a damaged store: what
//! cannot be read is a finding, not an end.
//!
//! The store must not be running: a file that is being written may look torn. Its locks are held meanwhile.

mod journal;
mod manifest;
mod segments;
#[cfg(test)]
mod tests;

use crate::format::identity::{Format, FormatError, Identity};
use crate::manifest::Content;
use crate::store::{Place, accepted_losses, places, read_file};
use geminga_common::disk::Disk;
use geminga_common::error::{Code, Coded};
use geminga_common::ids::{BookieId, LedgerId};
use std::any::Any;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What to show of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// A line or two per file, and whether everything checks.
    Summary,
    /// Every batch of the journal and what is in it.
    Journal,
    /// Every segment with its runs.
    Segments,
    /// Every row of the manifest.
    Manifest,
    /// What is known of one ledger, wherever it lies.
    Ledger(LedgerId),
}

impl Part {
    /// Whether details of a ledger in such a file are to be shown.
    fn shows(self, ledger: LedgerId, file: Part) -> bool {
        self == file || self == Part::Ledger(ledger)
    }
}

/// The directories of a store, as in its configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dirs {
    /// The first data directory, which holds `FORMAT`.
    pub data: PathBuf,
    /// Further data directories.
    pub more_data: Vec<PathBuf>,
    /// Journal directories of their own.
    pub journals: Vec<PathBuf>,
}

/// What is wrong, in words; empty when all checks. A torn tail of the journal is nothing wrong.
pub type Findings = Vec<String>;

struct Report<'a> {
    disk: &'a dyn Disk,
    part: Part,
    out: &'a mut dyn Write,
    findings: Findings,
}

/// Why a store could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A process serves from it.
    #[error(
        "a running process uses the store in {0}; stop it first, or inspect a copy (snapshot) of the directory"
    )]
    InUse(String),
    /// A newer version wrote it.
    #[error("the store has format version {0}, newer than this program; use the version that wrote it")]
    Newer(u32),
    /// No store lies there.
    #[error("{0} holds no FORMAT: no store lies there; of a standalone it is DATA-DIR/bookie")]
    NoStore(String),
    /// The disk, or whoever takes the report, failed.
    #[error("{0}; nothing was changed, look at owner, mode and disk")]
    Io(#[from] io::Error),
}

impl Coded for InspectError {
    fn code(&self) -> Code {
        match self {
            Self::InUse(_) => Code::DATA_DIRECTORY_LOCKED,
            Self::Newer(_) => Code::FORMAT_TOO_NEW,
            Self::NoStore(_) | Self::Io(_) => Code::DATA_DIRECTORY_UNUSABLE,
        }
    }
}

/// Takes the store's locks as far as there are any: whoever runs has them, and whoever would start meanwhile is told. A lock that cannot
/// be opened for writing (a snapshot, mounted read-only) is nobody's.
fn lock(disk: &dyn Disk, dirs: &Dirs) -> Result<Vec<Box<dyn Any + Send + Sync>>, InspectError> {
    let mut held = Vec::new();
    for dir in std::iter::once(&dirs.data).chain(&dirs.more_data).chain(&dirs.journals) {
        // Made by none but a start: looking changes nothing.
        if !disk.list(dir)?.iter().any(|name| name == "LOCK") {
            continue;
        }
        match disk.lock(&dir.join("LOCK")) {
            Ok(lock) => held.push(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(InspectError::InUse(dir.display().to_string()));
            }
            Err(_) => {}
        }
    }
    Ok(held)
}

/// Writes what a store holds to `out` and verifies every checksum in it.
///
/// # Errors
/// See [`InspectError`]. Damage is no error but a finding.
pub fn inspect(
    disk: &dyn Disk,
    dirs: &Dirs,
    part: Part,
    out: &mut dyn Write,
) -> Result<Findings, InspectError> {
    let _locks = lock(disk, dirs)?;
    let format = match read_file(disk, &dirs.data.join("FORMAT"))?.map(|bytes| Format::decode(&bytes)) {
        Some(Ok(format)) => Some(format),
        Some(Err(FormatError::Damaged)) => None,
        Some(Err(FormatError::Newer(version))) => return Err(InspectError::Newer(version)),
        None => return Err(InspectError::NoStore(dirs.data.display().to_string())),
    };
    let mut report = Report { disk, part, out, findings: Vec::new() };
    let id = match &format {
        Some(f) => {
            writeln!(report.out, "store {:016x} of cluster {}, {} shards", f.store, f.cluster, f.shards)?;
            f.store
        }
        None => {
            report.findings.push("FORMAT does not check".to_owned());
            first_identity(disk, dirs).map_or(0, |identity| identity.store)
        }
    };
    let mut config = crate::Config::new(BookieId::new("inspected").expect("a name"), dirs.data.clone(), "");
    config.shards = format.map_or(1, |f| f.shards);
    config.more_data_dirs.clone_from(&dirs.more_data);
    config.journal_dirs.clone_from(&dirs.journals);
    for place in places(&config) {
        let other = |ledger: LedgerId| ledger.0 % u64::from(place.shards) != u64::from(place.shard);
        if !matches!(part, Part::Ledger(ledger) if other(ledger)) {
            report.place(&place, id)?;
        }
    }
    writeln!(report.out, "{} findings", report.findings.len())?;
    for finding in &report.findings {
        writeln!(report.out, "! {finding}")?;
    }
    Ok(report.findings)
}

fn first_identity(disk: &dyn Disk, dirs: &Dirs) -> Option<Identity> {
    let bytes = read_file(disk, &dirs.data.join("IDENTITY")).ok()??;
    Identity::decode(&bytes)
}

impl Report<'_> {
    fn place(&mut self, place: &Place, id: u64) -> io::Result<()> {
        writeln!(self.out, "shard {} in {}", place.shard, place.data_dir.display())?;
        for dir in [&place.data_dir, &place.journal_dir] {
            self.identity(dir, place, id)?;
        }
        self.losses(place, id)?;
        let content = self.manifest(place)?;
        self.journal(place, id, &content)?;
        self.segments(place, &content)
    }

    /// Losses that were accepted: told, and nothing wrong.
    fn losses(&mut self, place: &Place, id: u64) -> io::Result<()> {
        for loss in accepted_losses(self.disk, std::slice::from_ref(place), id)? {
            let (incarnation, at) = (loss.incarnation, loss.at_ms);
            writeln!(self.out, "  accepted at {at} ms: what incarnation {incarnation} lost")?;
            for (first, last) in &loss.ledgers {
                match last.0 {
                    u64::MAX => writeln!(self.out, "    of any ledger from {first} on")?,
                    _ => writeln!(self.out, "    of ledgers {first} to {last}")?,
                }
            }
            for line in &loss.lines {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }

    fn identity(&mut self, dir: &Path, place: &Place, id: u64) -> io::Result<()> {
        let path = dir.join("IDENTITY");
        let found = read_file(self.disk, &path).ok().flatten().and_then(|bytes| Identity::decode(&bytes));
        match found {
            Some(i) if (i.store, i.shard) == (id, place.shard) => {
                let state = if i.data_loss { "lost data" } else { "sound" };
                let (incarnation, boot) = (i.incarnation, i.boot);
                writeln!(self.out, "  {}: incarnation {incarnation}, start {boot}, {state}", path.display())?;
                if i.data_loss {
                    self.findings.push(format!("{}: the store knows that it lost data", path.display()));
                }
            }
            Some(_) => self.findings.push(format!("{} is of another store or shard", path.display())),
            None => self.findings.push(format!("{} is missing or does not check", path.display())),
        }
        Ok(())
    }
}

/// Ledgers that are deleted by a committed tombstone.
fn gone(content: &Content, ledger: LedgerId) -> bool {
    let at = content.ledgers.binary_search_by_key(&ledger, |(id, _)| *id);
    at.is_ok_and(|at| content.ledgers[at].1.tombstone)
}
