//! Opening a store: whose it is, whether it is whole, and what of it the journal must bring back.
//!
//! A store of several shards has one `FORMAT`, in its first data directory, and per shard a directory with identity, manifest and
//! segments and one with identity and journal. Shard n lies in data directory n modulo their number, and so with journals.

use super::accept;
use super::files::{read_file, replace_file};
use super::loss::{self, Losses, Lost};
use super::room::{Ballast, cut_ballast};
use super::scrub::Scrub;
use super::{Counts, Locks, Store};
use crate::format::identity::{Format, FormatError, Identity};
use crate::format::losses::AcceptedLoss;
use crate::journal::Looked;
use crate::manifest::{Change, Content, JournalRow, Manifest, ManifestError};
use crate::mutant::{Mutant, active};
use crate::segments::SegmentRow;
use crate::segments::{self, BlockCache, Segment, SegmentSet, rebuild};
use crate::shard::{JournalFile, Ledger, Shard, Status};
use crate::{Config, ConfigError, journal};
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk, OpenMode};
use geminga_common::error::{Code, Coded};
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of its range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Another process has it open.
    #[error("the store is in use by another process; stop that one first")]
    InUse,
    /// A newer version wrote it; nothing was changed.
    #[error("the store has format version {0}, newer than this program; start the version that wrote it")]
    Newer(u32),
    /// It belongs to another cluster; nothing was changed.
    #[error("the store belongs to cluster {0}; correct the cluster's name, or pass another data directory")]
    OtherCluster(String),
    /// The format file is damaged, or missing beside data; nothing was changed.
    #[error(
        "the file FORMAT is damaged, or missing beside data; put it back from a copy, nothing was changed"
    )]
    Format,
    /// It was made with other numbers of shards or directories; nothing was changed.
    #[error(
        "the store was made with {shards} shards in {data_dirs} data and {journal_dirs} journal directories; \
         set shards, more_data_dirs and journal_dirs to that"
    )]
    Layout {
        /// Shards it has.
        shards: u16,
        /// Data directories it has.
        data_dirs: u16,
        /// Journal directories of its own that it has.
        journal_dirs: u16,
    },
    /// It lacks what it had, and is to be refused then; nothing was changed.
    #[error(
        "{0}. Nothing was changed; put back what is missing, from a copy as new as the rest, and start again"
    )]
    Lost(Losses),
    /// It has lost nothing, so there is nothing to promote or to accept.
    #[error("the store has lost nothing: its incarnation stays")]
    NotLost,
    /// The disk failed.
    #[error("{}", describe(.0))]
    Disk(#[from] io::Error),
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("the file system is mounted read-only ({error}); mount it for writing and start again")
        }
        io::ErrorKind::StorageFull => {
            format!("the file system is full ({error}); make room and start again")
        }
        io::ErrorKind::PermissionDenied => {
            format!("permission is denied ({error}); look at owner, mode and attributes (lsattr)")
        }
        io::ErrorKind::IsADirectory => {
            format!(
                "a directory lies where a file belongs ({error}); move it away and put the file back from a copy"
            )
        }
        io::ErrorKind::NotADirectory => {
            format!(
                "a file lies where a directory belongs ({error}); move it away and put the directory back from a copy"
            )
        }
        _ => format!("the disk failed ({error}); look at that file and its disk, and at the system's log"),
    }
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Config(_) | Self::Layout { .. } => Code::CONFIG_INVALID,
            Self::InUse => Code::DATA_DIRECTORY_LOCKED,
            Self::Newer(_) => Code::FORMAT_TOO_NEW,
            Self::OtherCluster(_) => Code::DATA_DIRECTORY_FOREIGN,
            Self::Format | Self::Lost(_) => Code::DATA_LOSS,
            Self::Disk(error) if error.kind() == io::ErrorKind::StorageFull => Code::DISK_FULL,
            Self::Disk(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Code::READ_ONLY_DISK,
            Self::Disk(_) | Self::NotLost => Code::DATA_DIRECTORY_UNUSABLE,
        }
    }
}

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

/// What a store is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// To serve.
    Serve,
    /// To see what is left of it: nothing is written, nothing can be.
    View,
    /// To accept its loss: that it lost something is durable in every shard before anything else is changed.
    Accept,
}

/// Opens all shards of a store, formatting a blank one. If one has lost something, none proves absence or takes anything.
pub(crate) fn open_all(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
) -> Result<Vec<Store>, OpenError> {
    Ok(open_for(Purpose::Serve, config, disk, clock)?.0)
}

/// As [`open_all`], and what the store lost.
pub(crate) fn open_for(
    purpose: Purpose,
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
) -> Result<(Vec<Store>, Vec<Lost>), OpenError> {
    config.validate()?;
    let config = Arc::new(config);
    match try_open(purpose, &config, &disk, &clock) {
        // A store must start on a full disk as well: that is where deletions are wanted.
        Err(OpenError::Disk(error)) if super::is_full(&error) && cut_ballast(&*disk, &places(&config)) => {
            try_open(purpose, &config, &disk, &clock)
        }
        other => other,
    }
}

fn try_open(
    purpose: Purpose,
    config: &Arc<Config>,
    disk: &Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
) -> Result<(Vec<Store>, Vec<Lost>), OpenError> {
    let opening = Opening { places: places(config), config, disk: &**disk };
    let locks = opening.lock()?;
    opening.refuse_newer()?;
    let mut lost = opening.lost_directories()?;
    if purpose == Purpose::View && !lost.is_empty() {
        // There is nothing to be seen without making them, and nothing is made.
        return Err(OpenError::Lost(Losses(lost)));
    }
    if purpose == Purpose::Serve {
        opening.refuse(std::mem::take(&mut lost))?;
    }
    for place in &opening.places {
        disk.create_dir_all(&place.journal_dir)?;
        disk.create_dir_all(&place.data_dir.join("segments"))?;
        for dir in [&place.data_dir, &place.journal_dir] {
            disk.sync_dir(dir)?;
            dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))?;
        }
    }
    let format = opening.format()?;
    let mut identities = opening.identities(&format)?;
    let accepted: Arc<[AcceptedLoss]> = accept::read(&**disk, &opening.places, format.store)?.into();
    let each = opening.places.iter().zip(&mut identities);
    let found: Vec<Found> = each
        .map(|(place, identity)| opening.look((place, format.store), identity, &mut lost))
        .collect::<Result<_, _>>()?;
    if let Some(place) = found.iter().position(|found| found.content.losses > accepted.len() as u64) {
        lost.push(loss::record(&opening.places[place]));
        identities.iter_mut().for_each(|identity| identity.data_loss = true);
    }
    match purpose {
        Purpose::Serve => opening.refuse(std::mem::take(&mut lost))?,
        Purpose::View | Purpose::Accept if lost.is_empty() => return Err(OpenError::NotLost),
        Purpose::View | Purpose::Accept => {
            identities.iter_mut().for_each(|identity| identity.data_loss = true);
        }
    }
    if purpose != Purpose::View {
        opening.catch_up(&mut identities)?;
    }
    let mut stores = Vec::new();
    for ((place, identity), found) in opening.places.iter().zip(identities).zip(found) {
        let context = (config.share(), disk.clone(), clock.clone());
        let named = (place.clone(), format.store, identity, accepted.clone());
        stores.push(Store::open(purpose, context, named, found, locks.clone())?);
    }
    if stores.iter().any(|store| store.shard.lock().status == Status::DataLoss) {
        stores.iter().for_each(|store| store.shard.lock().status = Status::DataLoss);
    }
    Ok((stores, lost))
}

struct Opening<'a> {
    places: Vec<Place>,
    config: &'a Config,
    disk: &'a dyn Disk,
}

/// What lies in one place, looked at and not touched.
struct Found {
    manifest: Option<Manifest>,
    content: Content,
    segments: Vec<Arc<Segment>>,
    journal: Looked,
}

impl Opening<'_> {
    /// Those of a store that was made once; a blank one has none yet.
    fn lost_directories(&self) -> io::Result<Vec<Lost>> {
        match read_file(self.disk, &self.config.data_dir.join("FORMAT"))? {
            Some(_) => loss::directories(self.disk, &self.places),
            None => Ok(Vec::new()),
        }
    }

    /// What to do with losses: each is told, unless the store is refused for them.
    fn refuse(&self, lost: Vec<Lost>) -> Result<(), OpenError> {
        if self.config.refuse_losses && !lost.is_empty() {
            return Err(OpenError::Lost(Losses(lost)));
        }
        let until = if self.config.only_copy {
            "it is put back from a copy while the server is stopped"
        } else {
            "repair has copied it back from other bookies, or the file is put back while this one is stopped"
        };
        for Lost { path, what, .. } in lost {
            let path = path.display();
            tracing::error!(
                code = %Code::DATA_LOSS, %path,
                "{path} {what}. What was in it cannot be read here until {until}"
            );
        }
        Ok(())
    }

    /// Looks at what lies in a place. Losses that leave the store as a whole in doubt are marked in its identity; missing segments are
    /// damage.
    fn look(
        &self,
        (place, store): (&Place, u64),
        identity: &mut Identity,
        lost: &mut Vec<Lost>,
    ) -> Result<Found, OpenError> {
        if identity.data_loss {
            lost.push(loss::identity(self.disk, place)?);
        }
        let (manifest, content) = manifest(self.disk, place, identity, lost)?;
        let dir = place.data_dir.join("segments");
        let open = |row: &SegmentRow| Arc::new(Segment::open(self.disk, &dir, row.clone()));
        let segments: Vec<_> = content.segments.iter().map(open).collect();
        lost.extend(loss::segments(&segments));
        let marks = (content.mark, content.durable);
        let looked = journal::look(self.disk, place, store, marks)?;
        // Who takes a missing identity back takes the directory for a new one.
        let taken_back = active(Mutant::IdentityMissingOk) && !identity.journaled;
        let unnoticed = active(Mutant::JournalLossUnnoticed) || taken_back;
        let mut missing = if unnoticed {
            Vec::new()
        } else {
            loss::journal(place, (&content, manifest.is_some()), &looked, identity.boot)
        };
        if identity.journaled && looked.is_empty() && !unnoticed {
            missing = vec![loss::no_journal(place)];
        }
        identity.data_loss |= looked.damaged() || !missing.is_empty();
        lost.extend(missing);
        Ok(Found { manifest, content, segments, journal: looked })
    }

    fn lock(&self) -> Result<Locks, OpenError> {
        let mut locks = Vec::new();
        let roots = std::iter::once(&self.config.data_dir);
        for dir in roots.chain(&self.config.more_data_dirs).chain(&self.config.journal_dirs) {
            self.disk.create_dir_all(dir)?;
            dir.parent().map_or(Ok(()), |parent| self.disk.sync_dir(parent))?;
            locks.push(self.disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => OpenError::InUse,
                _ => OpenError::Disk(error),
            })?);
        }
        Ok(Arc::new(locks))
    }

    fn refuse_newer(&self) -> Result<(), OpenError> {
        match read_file(self.disk, &self.config.data_dir.join("FORMAT"))?.map(|bytes| Format::decode(&bytes))
        {
            Some(Err(FormatError::Newer(version))) => Err(OpenError::Newer(version)),
            _ => Ok(()),
        }
    }

    fn format(&self) -> Result<Format, OpenError> {
        let config = self.config;
        let layout =
            (config.shards, 1 + config.more_data_dirs.len() as u16, config.journal_dirs.len() as u16);
        let Some(bytes) = read_file(self.disk, &config.data_dir.join("FORMAT"))? else {
            // Formatting that was cut short made none of these.
            for place in &self.places {
                for dir in [&place.data_dir, &place.data_dir.join("segments"), &place.journal_dir] {
                    let data = |name: &String| {
                        name == "manifest.redb" || name.ends_with(".seg") || name.ends_with(".jnl")
                    };
                    if self.disk.list(dir)?.iter().any(data) {
                        return Err(OpenError::Format);
                    }
                }
            }
            return self.fresh(layout);
        };
        let format = match Format::decode(&bytes) {
            Err(FormatError::Newer(version)) => return Err(OpenError::Newer(version)),
            Err(FormatError::Damaged) => return Err(OpenError::Format),
            Ok(format) if format.cluster != config.cluster => {
                return Err(OpenError::OtherCluster(format.cluster));
            }
            Ok(format) => format,
        };
        if (format.shards, format.data_dirs, format.journal_dirs) != layout {
            let Format { shards, data_dirs, journal_dirs, .. } = format;
            return Err(OpenError::Layout { shards, data_dirs, journal_dirs });
        }
        if format.encode() != bytes {
            // The first version. Raised before anything is written that it does not know.
            replace_file(self.disk, &config.data_dir, "FORMAT", &format.encode())?;
        }
        Ok(format)
    }

    /// Formats a store: identities first, `FORMAT` last, so that a store with a `FORMAT` has its identities.
    fn fresh(&self, (shards, data_dirs, journal_dirs): (u16, u16, u16)) -> Result<Format, OpenError> {
        let mut rng = self.config.seed.map_or_else(Rng::from_system, Rng::seeded);
        let (store, cluster) = (rng.next_u64(), self.config.cluster.clone());
        let format = Format { store, cluster, shards, data_dirs, journal_dirs };
        let incarnation = Incarnation(rng.next_u64() >> 1 | 1);
        for place in &self.places {
            let identity = Identity {
                store,
                incarnation,
                boot: 0,
                data_loss: false,
                journaled: false,
                shard: place.shard,
            };
            write_identity(self.disk, place, &identity)?;
        }
        replace_file(self.disk, &self.config.data_dir, "FORMAT", &format.encode())?;
        Ok(format)
    }

    /// The identities of all shards, marked as having lost data unless all directories tell the same story.
    fn identities(&self, format: &Format) -> io::Result<Vec<Identity>> {
        let found: Vec<Option<Identity>> =
            self.places.iter().map(|place| self.identity(place, format)).collect::<io::Result<_>>()?;
        let incarnation = found
            .iter()
            .flatten()
            .map(|identity| identity.incarnation)
            .next()
            // Lost here: the one that others count on, so that they know it again as what it is, a store that lost data.
            .or(self.config.known)
            .unwrap_or_else(|| {
                // Nobody can say which incarnation this was: it gets one that nobody relies on.
                let mut rng = self.config.seed.map_or_else(Rng::from_system, |s| Rng::seeded(s ^ 1));
                Incarnation(rng.next_u64() >> 1 | 1)
            });
        // One that is further behind than a crash leaves it went back in time.
        let latest = found.iter().flatten().map(|identity| identity.boot).max().unwrap_or(0);
        let all = self.places.iter().zip(found).map(|(place, identity)| match identity {
            Some(identity) => {
                let back = identity.boot + 1 < latest;
                let lost = identity.data_loss || identity.incarnation != incarnation || back;
                Identity { data_loss: lost, incarnation, ..identity }
            }
            None => Identity {
                store: format.store,
                incarnation,
                boot: self.config.known_boot.max(1 << 20),
                data_loss: true,
                journaled: true,
                shard: place.shard,
            },
        });
        Ok(all.collect())
    }

    /// A start is counted in one shard after the other, and all are caught up before the next one is, so that a crash leaves none further
    /// behind than one. All have a manifest by now: one that has none although it was started has lost it.
    fn catch_up(&self, identities: &mut [Identity]) -> io::Result<()> {
        let latest = identities.iter().map(|identity| identity.boot).max().unwrap_or(0);
        for (place, identity) in self.places.iter().zip(identities) {
            if identity.boot < latest {
                identity.boot = latest;
                write_identity(self.disk, place, identity)?;
            }
        }
        Ok(())
    }

    fn identity(&self, place: &Place, format: &Format) -> io::Result<Option<Identity>> {
        let read = |dir: &Path| -> io::Result<Option<Identity>> {
            let bytes = read_file(self.disk, &dir.join("IDENTITY"))?;
            let identity = bytes.and_then(|bytes| Identity::decode(&bytes));
            Ok(identity.filter(|identity| (identity.store, identity.shard) == (format.store, place.shard)))
        };
        Ok(match (read(&place.data_dir)?, read(&place.journal_dir)?) {
            (Some(a), Some(b)) => {
                // The data directory is written first: a crash leaves it one start ahead.
                let torn = a.boot == b.boot || a.boot == b.boot + 1;
                let sound = a.incarnation == b.incarnation && torn;
                let data_loss = a.data_loss || b.data_loss || !sound;
                if sound && a.boot > b.boot {
                    // Caught up first, so that they are never two apart.
                    replace_file(self.disk, &place.journal_dir, "IDENTITY", &a.encode())?;
                }
                let journaled = a.journaled || b.journaled;
                Some(Identity { boot: a.boot.max(b.boot), data_loss, journaled, ..a })
            }
            (Some(one), None) | (None, Some(one)) => {
                let excused = active(Mutant::IdentityMissingOk);
                Some(Identity { data_loss: !excused, journaled: one.journaled && !excused, ..one })
            }
            (None, None) => None,
        })
    }
}

pub(super) fn write_identity(disk: &dyn Disk, place: &Place, identity: &Identity) -> io::Result<()> {
    replace_file(disk, &place.data_dir, "IDENTITY", &identity.encode())?;
    replace_file(disk, &place.journal_dir, "IDENTITY", &identity.encode())
}

/// The manifest, or what of it can be told from the segments themselves.
fn manifest(
    disk: &dyn Disk,
    place: &Place,
    identity: &mut Identity,
    losses: &mut Vec<Lost>,
) -> Result<(Option<Manifest>, Content), OpenError> {
    let dir = &place.data_dir;
    let path = dir.join("manifest.redb");
    let mut known = disk.list(dir)?.iter().any(|name| name == "manifest.redb");
    if known && identity.boot > 0 {
        // redb would make a new database of an empty file.
        known = disk.open(&path, OpenMode::Read)?.len()? > 0;
    }
    if identity.boot > 0 && !known {
        losses.push(loss::manifest(place, "is missing or empty"));
        identity.data_loss = true;
    }
    let lost = || rebuild(disk, &dir.join("segments"));
    if identity.data_loss && !known {
        return Ok((None, lost()?));
    }
    match Manifest::open(disk, &path) {
        Ok((manifest, content)) => {
            // A directory that went back in time.
            if content.boot > identity.boot {
                losses.push(loss::manifest(place, "is newer than the identity beside it"));
                identity.data_loss = true;
            }
            Ok((Some(manifest), content))
        }
        Err(ManifestError::Io(error)) => Err(error.into()),
        Err(ManifestError::Damaged) => {
            losses.push(loss::manifest(place, "is damaged"));
            identity.data_loss = true;
            Ok((None, lost()?))
        }
    }
}

type Context = (Arc<Config>, Arc<dyn Disk>, Arc<dyn Clock>);

impl Store {
    fn open(
        purpose: Purpose,
        (config, disk, clock): Context,
        (place, id, mut identity, accepted): (Place, u64, Identity, Arc<[AcceptedLoss]>),
        found: Found,
        locks: Locks,
    ) -> Result<Self, OpenError> {
        if purpose != Purpose::View {
            identity.boot += 1;
            write_identity(&*disk, &place, &identity)?;
        }
        let Found { manifest, content, segments, journal } = found;
        let replay = journal.replay(&*disk, &place)?;
        let status = if identity.data_loss { Status::DataLoss } else { Status::Serving };
        let store = Self {
            blocks: BlockCache::new(config.block_cache),
            incarnation: identity.incarnation,
            accepted,
            shard: Mutex::new(Shard::new(config.clone(), Arc::default(), status)),
            counts: Counts::default(),
            id,
            boot: identity.boot,
            resume_at: replay.resume_at,
            manifest: Mutex::new(manifest),
            next_generation: AtomicU64::new(identity.boot << 32),
            next_segment: AtomicU64::new(content.next_segment),
            segment_dir: place.data_dir.join("segments"),
            ballast: Mutex::new(Ballast::default()),
            tidy: Mutex::default(),
            unlinked: Mutex::default(),
            scrub: Mutex::new(Scrub::at(content.scrub)),
            _locks: locks,
            place,
            config,
            disk,
            clock,
        };
        let mark = content.mark;
        store.load(&content, segments, replay.records);
        if status == Status::Serving {
            store.remove_orphans(&content)?;
            let end = if active(Mutant::ReplayedFileAppended) { replay.end } else { None };
            store.start_journal((mark, replay.stopped), end, replay.files)?;
            if !identity.journaled {
                let identity = Identity { journaled: true, ..identity };
                replace_file(&*store.disk, &store.place.data_dir, "IDENTITY", &identity.encode())?;
            }
            store.adopt_ballast();
            store.look();
        }
        Ok(store)
    }

    /// Puts what the manifest and the journal know into the machine.
    fn load(
        &self,
        content: &Content,
        segments: Vec<Arc<Segment>>,
        records: Vec<crate::format::journal::Record>,
    ) {
        for block in &content.bad {
            let segment = segments.iter().find(|s| s.row.id == block.segment);
            segment.map(|segment| segment.mark_bad(block.offset));
        }
        let now = self.clock.mono();
        let mut shard = self.shard.lock();
        shard.segments = Arc::new(SegmentSet { all: segments });
        (shard.dead_below, shard.dead_below_durable) = (content.dead_below, content.dead_below);
        shard.covered_due = content.dead_below.is_some();
        for (id, row) in &content.ledgers {
            let ledger = Ledger { row: row.clone(), buried: row.tombstone, ..Ledger::default() };
            shard.ledgers.insert(*id, ledger);
            if row.tombstone && row.flushed.is_some() {
                // A crash may have come between the tombstone and the collection.
                shard.buried.push(*id);
            }
        }
        records.into_iter().for_each(|record| shard.replay(record, now));
    }

    /// A replayed file is never appended to: the first batch of a new one says where replay stopped.
    fn start_journal(
        &self,
        (mark, stopped): (u64, u64),
        end: Option<(usize, u64)>,
        mut files: Vec<(JournalFile, u64)>,
    ) -> io::Result<()> {
        if let Some((at, end)) = end {
            let (file, _) = files.remove(at);
            self.shard.lock().append(stopped, end, file, files);
            return Ok(());
        }
        let size = self.config.journal_file_size_first;
        let spent = files.extract_if(.., |(_, last)| *last < mark).map(|(file, _)| file);
        let mut free: Vec<_> = spent.collect();
        let first = self.prepare(free.pop(), size)?;
        let needed = files.iter().map(|(file, _)| file).chain([&first]).map(JournalRow::from).collect();
        self.change(&Change { journal: needed, files_of: Some(self.boot), ..Change::default() })?;
        self.shard.lock().begin(stopped, first, files, free);
        let mut buf = AlignedBuf::zeroed(4096);
        while let Some(batch) = { self.shard.lock().next_batch() } {
            let good = self.write(&batch, &mut buf).is_ok();
            let answers = self.shard.lock().written(batch.head.seq, good);
            answers.into_iter().for_each(crate::shard::answer);
            if !good {
                return Err(io::Error::other("the first journal write failed"));
            }
        }
        Ok(())
    }

    /// Removes files that are known to be of no use: those that the manifest has let go of, and those of flushes and merges that were
    /// never committed (their entries are in the journal or in the inputs). Any other file stays, whatever a listing lacks.
    fn remove_orphans(&self, content: &Content) -> io::Result<()> {
        let next = self.next_segment.load(Ordering::Relaxed);
        let listed = |id: u64| content.segments.iter().any(|row| row.id == id);
        let mut useless = content.forgotten.clone();
        for name in self.disk.list(&self.segment_dir)? {
            match segments::id_of(&name) {
                Some(id) if listed(id) || useless.contains(&id) => {}
                Some(id) if id >= next || active(Mutant::UnlistedRemoved) => useless.push(id),
                _ => {
                    tracing::warn!(name, "a file in the segment directory that nothing speaks of stays there")
                }
            }
        }
        self.unlink(&useless)
    }
}
