//! Looking into a store offline: what its files hold, and whether all of it checks. Changes nothing, and works on a damaged store: what
//! cannot be read is a finding, not an end.
//!
//! The store should not be running: a file that is being written may look torn.

mod journal;
mod manifest;
mod segments;
#[cfg(test)]
mod tests;

use crate::format::identity::{Format, FormatError, Identity};
use crate::manifest::Content;
use crate::store::{Place, places, read_file};
use geminga_common::disk::Disk;
use geminga_common::ids::{BookieId, LedgerId};
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

/// Writes what a store holds to `out` and verifies every checksum in it.
///
/// # Errors
/// `out` cannot be written, or `FORMAT` is missing or newer. Damage is no error but a finding.
pub fn inspect(disk: &dyn Disk, dirs: &Dirs, part: Part, out: &mut dyn Write) -> io::Result<Findings> {
    let format = match read_file(disk, &dirs.data.join("FORMAT"))?.map(|bytes| Format::decode(&bytes)) {
        Some(Ok(format)) => Some(format),
        Some(Err(FormatError::Damaged)) => None,
        Some(Err(FormatError::Newer(version))) => {
            let text = format!("the store has format version {version}, newer than this program");
            return Err(io::Error::other(text));
        }
        None => {
            let text = format!("{} holds no FORMAT: no store lies there", dirs.data.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
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
        let content = self.manifest(place)?;
        self.journal(place, id, &content)?;
        self.segments(place, &content)
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
