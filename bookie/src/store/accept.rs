//! Accepting a loss for good: a store that has the only copy goes on with what is left of it, once, because somebody said so.
//!
//! | state | on the disk | what it does |
//! |---|---|---|
//! | sound | identity without `lost data` | serves, proves absence |
//! | lost | something is missing, or the identity says `lost data` | refused, or serves what it has and takes nothing |
//! | damaged | something is there and does not check | serves all else, and proves no absence of what lay there |
//! | accepting | identity says `lost data`, `LOSSES` may name its incarnation | as lost |
//! | accepted | a new incarnation, `LOSSES` names the former ones | serves, proves absence of what it stores from now on |
//!
//! lost or damaged → accepting → accepted, by [`accept`] alone; a crash in between leaves it lost or accepting, and the same command goes on. Steps,
//! each durable before the next: every identity says `lost data`; `LOSSES` names the incarnation, the files and the ledgers that may lack
//! something; what can be read goes to segments, the manifest lets go of lost ones, journals go; what is intact in damaged parts is written
//! anew and the manifest lets go of these (`damage`); the new identity comes last.
//!
//! Invariants:
//! - Nothing is proven absent, and nothing is taken, under an incarnation that lost something (I7). Whoever still counts on a former one
//!   gets what is left; of ledgers that the loss may have touched, what is not there is answered as lost.
//! - No incarnation comes back: a new one is none of those that `LOSSES` names.
//! - Nothing is removed but journals whose content is in segments by then. Of lost segments the rows go, and what there is of files stays,
//!   as do the bytes of damaged blocks until all ledgers of their segment are deleted.
//! - What checks stays as it is; what was not told as damaged is not let go of.
//! - What was lost stays told in `LOSSES`, and the manifest knows how many acceptances it must tell.
//! - Who has other copies must not accept: nothing here can know, so the caller answers for it.

use super::damage::{Damage, Progress};
use super::files::{read_file, replace_file};
use super::open::{Place, Purpose, open_for};
use super::promote::rename;
use super::{Lost, OpenError, Store};
use crate::Config;
use crate::format::losses::{self, AcceptedLoss};
use crate::manifest::Change;
use crate::mutant::{Mutant, active};
use crate::shard::cache::{join, without};
use geminga_bookie_client::rpc::{IdRange, LedgerStat, Presence};
use geminga_common::clock::Clock;
use geminga_common::disk::Disk;
use geminga_common::ids::{EntryId, Incarnation, LedgerId};
use geminga_common::rng::Rng;
use std::io;
use std::sync::Arc;

/// A loss that is accepted now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// What the store is called from now on.
    pub incarnation: Incarnation,
    /// What was lost.
    pub lost: Vec<Lost>,
}

/// What is left of a store that lost something, looked at and not changed.
pub struct View {
    /// What it cannot give back, whatever the reason: files that are gone, and what is there and does not check.
    pub lost: Vec<Lost>,
    damage: Vec<Damage>,
    stores: Vec<Store>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl View {
    fn of(&self, ledger: LedgerId) -> &Store {
        &self.stores[(ledger.0 % self.stores.len() as u64) as usize]
    }

    /// What is there and does not check, for [`accept`].
    #[must_use]
    pub fn into_damage(self) -> Vec<Damage> {
        self.damage
    }

    /// Ids of a ledger that are intact in damaged parts.
    fn intact(&self, ledger: LedgerId) -> Vec<IdRange> {
        let all = self.damage.iter().flat_map(|damage| &damage.kept);
        join(all.filter(|(owner, _)| *owner == ledger).map(|(_, ids)| *ids).collect())
    }

    /// Which of these entries are left; all others are lost. Blocks on the disk.
    #[must_use]
    pub fn presence(&self, ledger: LedgerId, ids: IdRange) -> Presence {
        let Ok(found) = self.of(ledger).presence(ledger, ids) else { return Presence::default() };
        let intact = self.intact(ledger);
        let within = without(&[ids], &without(&[ids], &intact));
        Presence { present: join(found.present.into_iter().chain(within).collect()), ..found }
    }

    /// The last entry of a ledger that lay in what is damaged and is lost: it was there once.
    #[must_use]
    pub fn last_lost(&self, ledger: LedgerId) -> Option<EntryId> {
        let all = self.damage.iter().flat_map(|damage| &damage.gone);
        all.filter(|(owner, _)| *owner == ledger).map(|(_, ids)| ids.last).max()
    }

    /// What is left of a ledger, and how far it was acknowledged as far as that was kept; `None` for a deleted one.
    #[must_use]
    pub fn stat(&self, ledger: LedgerId) -> Option<LedgerStat> {
        let stat = self.of(ledger).stat(ledger).ok()?;
        let end = stat.sealed.map_or(u64::MAX, |last| last.map_or(0, |last| last.0 + 1));
        let intact = self.intact(ledger).into_iter().filter(|ids| ids.first.0 < end);
        let intact = intact.map(|ids| IdRange { last: EntryId(ids.last.0.min(end - 1)), ..ids });
        Some(LedgerStat { present: join(stat.present.iter().copied().chain(intact).collect()), ..stat })
    }
}

/// Looks at what is left: every byte of every segment is read.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost and all checks, [`OpenError::Lost`] when so much was lost that nothing can be looked at, and
/// those of opening.
pub(crate) fn view(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    progress: Progress<'_>,
) -> Result<View, OpenError> {
    let (stores, mut lost) = open_for(Purpose::View, config, disk, clock)?;
    let all = stores.iter().map(Store::readable_bytes).sum();
    let (mut done, mut damage) = (0, Vec::new());
    for (shard, store) in stores.iter().enumerate() {
        damage.extend(store.find_damage(shard, &mut |bytes| {
            done += bytes;
            progress(done, all);
        }));
    }
    lost.extend(damage.iter().map(|damage| damage.lost.clone()));
    if lost.is_empty() { Err(OpenError::NotLost) } else { Ok(View { lost, damage, stores }) }
}

/// Losses that were accepted, by the copy that tells most of them.
pub(crate) fn read(disk: &dyn Disk, places: &[Place], store: u64) -> io::Result<Vec<AcceptedLoss>> {
    let mut best = Vec::new();
    for place in places {
        for dir in [&place.data_dir, &place.journal_dir] {
            let found = read_file(disk, &dir.join("LOSSES"))?;
            let told = found.and_then(|bytes| losses::decode(&bytes, store)).unwrap_or_default();
            if told.len() > best.len() {
                best = told;
            }
        }
    }
    Ok(best)
}

/// Accepts the loss of a store that is not open; it can be opened afterwards and serves. `known`: incarnations that others count
/// on, where the store may not know them any more. `damage`: what a look has found; without one the store is looked at now.
///
/// # Errors
/// [`OpenError::NotLost`] when nothing was lost, and those of opening.
pub(crate) fn accept(
    config: Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    known: &[Incarnation],
    damage: Option<Vec<Damage>>,
) -> Result<Accepted, OpenError> {
    let mut rng = config.seed.map_or_else(Rng::from_system, |seed| Rng::seeded(seed ^ 3));
    let damage = match damage {
        Some(damage) => damage,
        None => match view(config.clone(), disk.clone(), clock.clone(), &mut |_, _| {}) {
            Ok(view) => view.into_damage(),
            Err(OpenError::Lost(_)) => Vec::new(),
            Err(error) => return Err(error),
        },
    };
    let purpose = Purpose::Accept { damaged: !damage.is_empty() };
    let (stores, mut lost) = open_for(purpose, config, disk, clock)?;
    lost.extend(damage.iter().map(|damage| damage.lost.clone()));
    let all = record(&stores, &lost, known);
    for store in &stores {
        store.write_losses(&all)?;
    }
    for (shard, store) in stores.iter().enumerate() {
        let wanting = store.wanting();
        store.settle(Change { lost: wanting, losses: Some(all.len() as u64), ..Change::default() })?;
        let here: Vec<&Damage> = damage.iter().filter(|damage| damage.shard == shard).collect();
        store.let_go(&here)?;
    }
    let incarnation = rename(&stores, &mut rng)?;
    Ok(Accepted { incarnation, lost })
}

/// All acceptances with this one. One that was cut short has named its incarnation already, and may have seen more than is to be seen now.
fn record(stores: &[Store], lost: &[Lost], known: &[Incarnation]) -> Vec<AcceptedLoss> {
    let Some(first) = stores.first() else { return Vec::new() };
    let mut all = first.accepted.to_vec();
    let at_ms = first.clock.wall_ms();
    for incarnation in known.iter().copied().chain([first.incarnation]) {
        if !all.iter().any(|loss| loss.incarnation == incarnation) {
            all.push(AcceptedLoss { incarnation, at_ms, ledgers: Vec::new(), lines: Vec::new() });
        }
    }
    if let Some(last) = all.last_mut() {
        last.add(
            lost.iter().flat_map(|lost| lost.ledgers.iter().copied()),
            lost.iter().map(Lost::line).collect(),
        );
    }
    all
}

impl Store {
    fn write_losses(&self, all: &[AcceptedLoss]) -> io::Result<()> {
        if active(Mutant::LossForgotten) {
            return Ok(());
        }
        let bytes = losses::encode(self.id, all);
        replace_file(&*self.disk, &self.place.data_dir, "LOSSES", &bytes)?;
        replace_file(&*self.disk, &self.place.journal_dir, "LOSSES", &bytes)
    }

    /// Segments of which the file is missing or another than it was.
    fn wanting(&self) -> Vec<u64> {
        let shard = self.shard.lock();
        shard.segments.all.iter().filter(|s| s.wanting().is_some()).map(|s| s.row.id).collect()
    }
}
