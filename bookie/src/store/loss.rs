//! What a store had and has no more, found when it is opened and before anything of it is changed: a file that is put back then makes it
//! whole again.
//!
//! The manifest names every segment with its length, and every journal file that may be needed with its own; one that is not there, or
//! shorter, was lost. That is another thing than a file that does not check: its bytes may be somewhere.

#[cfg(test)]
mod tests;

use super::files::read_file;
use super::open::Place;
use crate::format::identity::Identity;
use crate::format::losses::EVERY_LEDGER;
use crate::journal::{self, Looked};
use crate::manifest::Content;
use crate::segments::{Segment, Wanting};
use geminga_common::disk::Disk;
use geminga_common::ids::LedgerId;
use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Losses that a text names one by one.
const NAMED: usize = 4;

/// A file or directory that is not as the store left it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Which.
    pub path: PathBuf,
    /// What became of it, and what that means; goes on after the path.
    pub what: String,
    /// Ledgers, as ranges of first and last, that may have lost something by it.
    pub ledgers: Vec<(LedgerId, LedgerId)>,
}

impl Lost {
    /// Something whose loss leaves every ledger in doubt.
    fn of_all(path: PathBuf, what: impl Into<String>) -> Self {
        Self { path, what: what.into(), ledgers: vec![EVERY_LEDGER] }
    }

    /// In words.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.path.display(), self.what)
    }
}

/// What a store lost, one at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Losses(pub Vec<Lost>);

impl Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, lost) in self.0.iter().take(NAMED).enumerate() {
            let between = if number == 0 { "" } else { "; " };
            write!(f, "{between}{} {}", lost.path.display(), lost.what)?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Directories that a store which was made once always has.
pub(super) fn directories(disk: &dyn Disk, places: &[Place]) -> io::Result<Vec<Lost>> {
    let mut lost = Vec::new();
    for place in places {
        for (path, held) in [
            (place.data_dir.join("segments"), "what was stored"),
            (place.journal_dir.clone(), "what was acknowledged last"),
        ] {
            match disk.list(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    lost.push(Lost::of_all(path, format!("is missing: it held {held}")));
                }
                other => drop(other?),
            }
        }
    }
    Ok(lost)
}

/// Why an identity tells of a loss: which of the two is gone, or that both are there and tell it.
pub(super) fn identity(disk: &dyn Disk, place: &Place) -> io::Result<Lost> {
    for dir in [&place.data_dir, &place.journal_dir] {
        let path = dir.join("IDENTITY");
        if read_file(disk, &path)?.and_then(|bytes| Identity::decode(&bytes)).is_none() {
            let what = "is missing or damaged: nobody can say whether what lies beside it is what this store wrote last";
            return Ok(Lost::of_all(path, what));
        }
    }
    let what =
        "says that the store lost data at an earlier start, or is older than its fellow beside the journal";
    Ok(Lost::of_all(place.data_dir.join("IDENTITY"), what))
}

/// Losses were accepted, and nobody can say which any more.
pub(super) fn record(place: &Place) -> Lost {
    let what = "is missing or damaged here and beside the journal: it says which losses were accepted";
    Lost::of_all(place.data_dir.join("LOSSES"), what)
}

pub(super) fn manifest(place: &Place, what: &str) -> Lost {
    let means = "it says which segments there are and what is deleted";
    Lost::of_all(place.data_dir.join("manifest.redb"), format!("{what}: {means}"))
}

/// Segments that are missing or of another length.
pub(super) fn segments(all: &[Arc<Segment>]) -> Vec<Lost> {
    let lost = |segment: &Arc<Segment>| {
        let (low, high) = (segment.row.ledgers.start(), segment.row.ledgers.end());
        let held = format!("it held entries of ledgers {low} to {high}");
        let what = match segment.wanting()? {
            Wanting::Missing => format!("is missing: {held}"),
            Wanting::Unreadable(kind) => format!("cannot be opened ({kind}): {held}"),
            Wanting::Length(len) => format!("has {len} bytes instead of {}: {held}", segment.row.len),
        };
        Some(Lost { path: segment.path().to_owned(), what, ledgers: vec![(*low, *high)] })
    };
    all.iter().filter_map(lost).collect()
}

/// What of a journal is missing. `start`: the last one, whose files the manifest may list. Without a manifest nobody knows where a
/// journal begins.
pub(super) fn journal(
    place: &Place,
    (content, known): (&Content, bool),
    looked: &Looked,
    start: u64,
) -> Vec<Lost> {
    let listed = if content.files_of == start { &content.journal[..] } else { &[] };
    let missing = listed.iter().filter(|row| !looked.has(row));
    let lost: Vec<Lost> = missing
        .map(|row| {
            let what = "is missing or shorter than it was: it may hold what was acknowledged last";
            Lost::of_all(journal::path(&place.journal_dir, row.made), what)
        })
        .collect();
    if lost.is_empty() && known && looked.damaged() {
        if let Some((name, at, seq)) = looked.damaged_batch() {
            let what = format!(
                "does not check at offset {at}, where batch {seq} begins, which was durable: what is not intact in it is lost"
            );
            return vec![Lost::of_all(place.journal_dir.join(name), what)];
        }
        let what = format!("lacks batch {}, which was durable: a file is gone or damaged", looked.stopped());
        return vec![Lost::of_all(place.journal_dir.clone(), what)];
    }
    lost
}

/// A journal was begun, and no file of it is there.
pub(super) fn no_journal(place: &Place) -> Lost {
    let what = "holds no journal file, and one was begun: what was acknowledged last is gone";
    Lost::of_all(place.journal_dir.clone(), what)
}
