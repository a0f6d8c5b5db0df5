//! Promotion: a store that lost something starts again under a new incarnation, with what it has.
//!
//! To be called once the controller has proven that nothing relies on the old incarnation: every fragment it was in has enough copies
//! elsewhere, or a repair that counts it as lost. Until the last step the store stays in data loss, so a crash only means doing it again:
//! all that is readable goes to segments and a sound manifest; journals go; the new identity comes last.

use super::open::write_identity;
use super::{OpenError, Store, open_all};
use crate::Config;
use crate::format::identity::Identity;
use crate::manifest::{Change, Manifest};
use crate::mutant::{Mutant, active};
use crate::segments::{self, SegmentRow};
use crate::shard::{FlushPlan, Status};
use geminga_common::clock::Clock;
use geminga_common::disk::Disk;
use geminga_common::ids::{Incarnation, LedgerId};
use geminga_common::rng::Rng;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Gives a store that lost data a new incarnation. The store must not be open; it can be opened afterwards and serves.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost, and those of opening.
pub(crate) fn promote(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
) -> Result<Incarnation, OpenError> {
    let mut rng = config.seed.map_or_else(Rng::from_system, |seed| Rng::seeded(seed ^ 2));
    let stores = open_all(config, disk, clock)?;
    if stores.iter().all(|store| store.shard.lock().status == Status::Serving) {
        return Err(OpenError::NotLost);
    }
    for store in &stores {
        store.settle(Change::default())?;
    }
    Ok(rename(&stores, &mut rng)?)
}

/// The last step: all shards are sound again, under an incarnation that they never had.
pub(super) fn rename(stores: &[Store], rng: &mut Rng) -> io::Result<Incarnation> {
    let old = stores.iter().map(|store| store.incarnation).max().unwrap_or(Incarnation(0));
    let mut incarnation = old;
    let kept = active(Mutant::IncarnationKept);
    let had = |incarnation: Incarnation| {
        incarnation == old || stores.iter().any(|s| s.accepted.iter().any(|l| l.incarnation == incarnation))
    };
    while had(incarnation) && !kept {
        incarnation = Incarnation(rng.next_u64() >> 1 | 1);
    }
    let boot = stores.iter().map(Store::boot).max().unwrap_or(1);
    for store in stores {
        let (id, shard) = (store.id, store.place.shard);
        let identity = Identity { store: id, incarnation, boot, data_loss: false, journaled: false, shard };
        write_identity(&*store.disk, &store.place, &identity)?;
    }
    Ok(incarnation)
}

impl Store {
    /// A manifest of what the segments tell. It gets its name once all of it is in: half of one, found after a crash, would be believed,
    /// and segments that it lists without their ledgers' rows hold entries that reads deny.
    fn make_manifest(&self, path: &Path) -> io::Result<Manifest> {
        let new = path.with_extension("new");
        match self.disk.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let made = Manifest::open(&*self.disk, &new);
        let (manifest, _) = made.map_err(|_| io::Error::other("no manifest can be made"))?;
        let (put, plan) = {
            let shard = self.shard.lock();
            let put: Vec<SegmentRow> = shard.segments.all.iter().map(|s| s.row()).collect();
            let rows = shard.ledgers.iter().map(|(id, ledger)| (*id, ledger.row.clone(), None));
            let mut ledgers: Vec<_> = rows.collect();
            ledgers.sort_by_key(|(id, ..)| *id);
            // The journal is replayed from its beginning until the flush that follows is in.
            (put, FlushPlan { mark: 1, durable: 0, dead_below: shard.dead_below, ledgers, spent: Vec::new() })
        };
        let next_segment = self.next_segment.load(Ordering::Relaxed);
        manifest.commit(&plan, &put, next_segment, (self.boot, 0))?;
        self.disk.rename(&new, path)?;
        self.disk.sync_dir(&self.place.data_dir)?;
        Ok(manifest)
    }

    /// Makes what can be read of a damaged store sound, without its journal; `besides` goes into the manifest with that.
    pub(super) fn settle(&self, besides: Change) -> io::Result<()> {
        let dir = &self.place.data_dir;
        // What a promotion before this one left unfinished, or a manifest that went back in time does not know, keeps its id and stays.
        let taken = self.disk.list(&self.segment_dir)?.iter().filter_map(|name| segments::id_of(name)).max();
        self.next_segment.fetch_max(taken.map_or(1, |id| id + 1), Ordering::Relaxed);
        let rebuilt = self.manifest.lock().is_none();
        if rebuilt {
            let path = dir.join("manifest.redb");
            match self.disk.rename(&path, &dir.join("manifest.damaged")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.disk.sync_dir(dir)?,
            }
            *self.manifest.lock() = Some(self.make_manifest(&path)?);
        }
        let plan = {
            let mut shard = self.shard.lock();
            let now = self.clock.mono();
            let all: Vec<LedgerId> = shard.ledgers.keys().copied().collect();
            all.into_iter().for_each(|id| shard.touch(id, now));
            let mark = self.resume_at.max(shard.resume_at());
            let mut plan = shard.plan(mark);
            plan.durable = mark - 1;
            plan
        };
        self.flush(&plan)?;
        // A shard that was sound had begun a journal at this start; none of it is needed any more. No start has the number 0.
        self.change(&Change { files_of: Some(0), ..besides })?;
        for name in self.disk.list(&self.place.journal_dir)? {
            if name.ends_with(".jnl") {
                self.disk.remove(&self.place.journal_dir.join(name))?;
            }
        }
        self.disk.sync_dir(&self.place.journal_dir)
    }
}
