//! Where the shards of a store lie, and whose store lies there, seen from outside.
//!
//! Shard n lies in data directory n modulo their number, and so with journals; the only shard of a store lies in the directories themselves.
//! Nothing here changes the disk.

use crate::Config;
use crate::format::identity::Identity;
use crate::store::accept;
use crate::store::files::read_file;
use geminga_common::disk::Disk;
use geminga_common::ids::Incarnation;
use std::io;
use std::path::{Path, PathBuf};

/// Where a shard lies and which it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) data_dir: PathBuf,
    pub(crate) journal_dir: PathBuf,
    pub(crate) shard: u16,
    pub(crate) shards: u16,
}

/// The places of all shards. One shard lies in the directories themselves.
pub(crate) fn places(config: &Config) -> Vec<Place> {
    let data: Vec<&PathBuf> = std::iter::once(&config.data_dir).chain(&config.more_data_dirs).collect();
    let within = |dir: &Path, shard: u16| match config.shards {
        1 => dir.to_owned(),
        _ => dir.join(format!("shard-{shard}")),
    };
    let place = |shard: u16| {
        let data_dir = within(data[usize::from(shard) % data.len()], shard);
        let journal_dir = match &config.journal_dirs[..] {
            [] => data_dir.join("journal"),
            dirs => within(&dirs[usize::from(shard) % dirs.len()], shard),
        };
        Place { data_dir, journal_dir, shard, shards: config.shards }
    };
    (0..config.shards).map(place).collect()
}

/// What lies in the directories of a store, seen from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whose {
    /// No store, or one whose formatting was never finished.
    Nothing,
    /// A store that says so much of itself.
    Store {
        /// Its incarnation.
        incarnation: Incarnation,
        /// Starts so far.
        boot: u64,
        /// Incarnations that it was before, whose losses were accepted.
        former: Vec<Incarnation>,
    },
    /// Something that opening it will say more about.
    Damaged,
}

/// Looks whose store lies there, without taking its lock and without changing anything.
///
/// # Errors
/// Those of the disk; a directory that is not there is none.
pub fn whose(config: &Config, disk: &dyn Disk) -> io::Result<Whose> {
    let names = |dir: &Path| match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    let places = places(config);
    let mut there = names(&config.data_dir)?.iter().any(|name| name == "FORMAT");
    for place in &places {
        there |= names(&place.data_dir)?.iter().any(|name| name == "manifest.redb");
    }
    if !there {
        return Ok(Whose::Nothing);
    }
    // The data directory's is written first: it is the newer one.
    for dir in [&places[0].data_dir, &places[0].journal_dir] {
        let bytes = read_file(disk, &dir.join("IDENTITY"))?;
        let identity = bytes.and_then(|bytes| Identity::decode(&bytes));
        if let Some(Identity { store, incarnation, boot, .. }) = identity {
            let accepted = accept::read(disk, &places, store)?;
            let former = accepted.iter().map(|loss| loss.incarnation).filter(|was| *was != incarnation);
            return Ok(Whose::Store { incarnation, boot, former: former.collect() });
        }
    }
    Ok(Whose::Damaged)
}
