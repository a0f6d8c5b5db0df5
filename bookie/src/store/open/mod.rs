//! Opening a store: whose it is, whether it is whole, and what of it the journal must bring back.
//!
//! A store of several shards has one `FORMAT`, in its first data directory, and per shard a directory with identity, manifest and
//! segments and one with identity and journal.
//!
//! Owner: whoever opens, on one thread, under the locks of all directories. All shards are looked at before the start of any is counted:
//! a store that is refused has all that it had, and nothing new but what mends a crash (an identity that lags behind, the manifest's own).
//!
//! | file | what it holds |
//! |---|---|
//! | `error` | why a store does not open |
//! | `place` | where shards lie, whose store lies there |
//! | `identity` | `FORMAT` and identities: written, read, caught up |
//! | `found` | what lies in the place of one shard, and what is missing there |
//! | `begin` | a shard begins to work: replay, a new journal, what is of no use |

mod begin;
mod error;
mod found;
mod identity;
mod place;

use crate::Config;
use crate::format::losses::AcceptedLoss;
use crate::shard::Status;
use crate::store::files::read_file;
use crate::store::loss::{self, Losses, Lost};
use crate::store::room::cut_ballast;
use crate::store::{Locks, Store, accept, is_full};
pub use error::OpenError;
use found::Found;
use geminga_common::clock::Clock;
use geminga_common::disk::Disk;
use geminga_common::error::Code;
pub(super) use identity::write_identity;
pub(crate) use place::{Place, places};
pub use place::{Whose, whose};
use std::io;
use std::sync::Arc;

/// What a store is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// To serve.
    Serve,
    /// To see what is left of it: nothing is written, nothing can be.
    View,
    /// To accept its loss: that it lost something is durable in every shard before anything else is changed. `damaged`: something of it does
    /// not check, so that there is a loss even if nothing is missing.
    Accept { damaged: bool },
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
        Err(OpenError::Disk(error)) if is_full(&error) && cut_ballast(&*disk, &places(&config)) => {
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
        Purpose::Accept { damaged: false } if lost.is_empty() => return Err(OpenError::NotLost),
        Purpose::View | Purpose::Accept { .. } => {
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
}
