//! One look at what may need repair, ledger by ledger, each repaired and published before the next.

use super::Deps;
use super::holders::{self, Published};
use geminga_bookie_client::record::{ClosedLedger, LedgerRecord, LedgerState, OpId};
use geminga_bookie_client::repair::drive::{self, Outcome};
use geminga_bookie_client::repair::plan::{self, Standing};
use geminga_bookie_client::repair::release::Releases;
use geminga_bookie_client::repair::standing::Standings;
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::error::Code;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::{MetaError, Record};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Owners looked at again because something of theirs was stuck; the others wait for the next look at all.
const STUCK_OWNERS_MAX: usize = 1000;
/// Records read at a time.
const PAGE: usize = 256;

/// Ledgers that are open over a store that is lost: when they close, their owners' records say so, and nothing else does.
pub(super) type Open = BTreeSet<LedgerId>;

/// What a round found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Something needs repair and could not get it.
    pub(super) stuck: bool,
    /// See [`Open`].
    pub(super) open_on_lost: Open,
    /// Something counts on a store that lost data: it is looked at everything again.
    pub(super) counted_on: bool,
    /// Owners' records with something stuck: only a look at them finds it again.
    pub(super) stuck_owners: BTreeSet<String>,
    due: u64,
}

pub(super) struct Round<'r> {
    deps: &'r Deps,
    rng: &'r Mutex<Rng>,
    standings: Standings,
    releases: Mutex<Releases>,
}

impl<'r> Round<'r> {
    pub(super) fn new(deps: &'r Deps, rng: &'r Mutex<Rng>, standings: Standings) -> Self {
        let releases = Mutex::new(Releases::of(&standings));
        Self { deps, rng, standings, releases }
    }

    /// Looks at ledgers with repair recorded and at those of the owners in `again`, and with `all` at every closed ledger there is.
    pub(super) async fn run(&self, all: bool, again: &BTreeSet<String>) -> Result<Found, MetaError> {
        let mut found = Found::default();
        let keys = &self.deps.keys;
        self.pages(&keys.ledgers_prefix(), &mut found, Look::Own).await?;
        if all {
            tracing::info!(bookies = self.standings.in_service(), "looking at every ledger for lost copies");
            self.pages(&keys.all_topics_prefix(), &mut found, Look::Owners).await?;
            self.pages(&keys.all_cursor_logs_prefix(), &mut found, Look::Owners).await?;
            let releases = self.releases.lock().clone();
            found.counted_on = releases.counted();
            releases.publish(&*self.deps.metadata, keys).await?;
        } else {
            for key in again {
                if let Some(record) = self.deps.metadata.get(key).await? {
                    self.owner(&record, &mut found).await?;
                }
            }
        }
        if let Some(due) = self.deps.status.round(found.due) {
            tracing::warn!(
                due,
                "ledgers are below their write quorum; `geminga_repair_ledgers_due` tells how many"
            );
        }
        Ok(found)
    }

    async fn pages(&self, prefix: &str, found: &mut Found, look: Look) -> Result<(), MetaError> {
        let mut after = None::<String>;
        loop {
            let page = self.deps.metadata.list(prefix, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for record in &page {
                match look {
                    Look::Own => self.own(record, found).await?,
                    Look::Owners => self.owner(record, found).await?,
                }
            }
        }
    }

    /// A ledger's own record.
    async fn own(&self, stored: &Record, found: &mut Found) -> Result<(), MetaError> {
        let Ok(record) = LedgerRecord::decode(&stored.value) else {
            tracing::error!(code = %Code::RECORD_UNREADABLE, key = %stored.key, "ledger record cannot be read");
            self.releases.lock().clear();
            return Ok(());
        };
        let LedgerState::Closed { .. } = record.state else {
            let mut members = record.fragments.iter().flat_map(|f| f.ensemble.iter().flatten());
            if members.any(|member| self.lost(member)) {
                found.open_on_lost.insert(record.id);
            }
            self.releases.lock().look_at_open(&record, |member| self.standings.of(member));
            return Ok(());
        };
        let (Some(key), Some(ledger)) = (holders::key_of(&self.deps.keys, &record), record.closed()) else {
            tracing::error!(code = %Code::RECORD_UNREADABLE, key = %stored.key, owner = %record.attributes.owner, "owner of a ledger has no name");
            self.releases.lock().clear();
            return Ok(());
        };
        self.repair(&key, ledger, found).await
    }

    /// An owner's record, with all its closed ledgers.
    async fn owner(&self, stored: &Record, found: &mut Found) -> Result<(), MetaError> {
        let Some(ledgers) = holders::closed_ledgers(&self.deps.keys, stored) else {
            tracing::error!(code = %Code::RECORD_UNREADABLE, key = %stored.key, "record cannot be read");
            self.releases.lock().clear();
            return Ok(());
        };
        for ledger in ledgers {
            self.repair(&stored.key, ledger, found).await?;
        }
        Ok(())
    }

    fn lost(&self, member: &BookieRef) -> bool {
        matches!(self.standings.of(member), Standing::Gone | Standing::Damaged)
    }

    async fn repair(&self, key: &str, ledger: ClosedLedger, found: &mut Found) -> Result<(), MetaError> {
        let d = self.deps;
        d.status.change(|f| f.looked_at += 1);
        let damaged = |member: &BookieRef| self.standings.has_damage(member);
        if plan::needs(&ledger, |member| self.standings.of(member)).none() && !members(&ledger).any(damaged) {
            return Ok(());
        }
        let copied = |entries, bytes| {
            d.status.change(|f| {
                f.entries += entries;
                f.bytes += bytes;
            });
        };
        let means = drive::Means {
            rpc: &*d.means.rpc,
            placement: &*d.means.placement,
            standing: &|member| self.standings.of(member),
            copied: &copied,
        };
        let Outcome { ledger: next, mut stuck } = drive::repair(&means, ledger.clone()).await;
        match drive::make_good(&means, &next, damaged).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(ledger = %ledger.id, key, "copies that were damaged have been made good");
                d.status.change(|f| f.repaired += 1);
            }
            Err(missing) => stuck = stuck.or(Some(missing)),
        }
        // The old one as well: it is the one that stands if the new one cannot be published.
        let damaged_stores = self.releases.lock().open();
        for store in damaged_stores {
            let on = |ledger: &ClosedLedger| members(ledger).any(|member| *member == store);
            if (on(&next) || on(&ledger)) && !drive::held_elsewhere(&means, &ledger, &store).await {
                self.releases.lock().counted_on(&store, ledger.id);
            }
        }
        let mut why = stuck.map(|stuck| stuck.to_string());
        if next != ledger {
            let op_id = OpId(self.rng.lock().next_u64());
            let published = holders::publish(&*d.metadata, &d.keys, key, (&ledger, &next), op_id).await?;
            match published {
                Published::Done if why.is_none() => {
                    tracing::info!(ledger = %ledger.id, key, "ledger is on all of its write quorum again");
                    d.status.change(|f| f.repaired += 1);
                }
                Published::Done => {}
                Published::Absent => self.take_back(key, &ledger, &next).await?,
                Published::Moved => why = Some("its record changes at the same time".to_owned()),
            }
        }
        match why {
            None => d.status.free(ledger.id),
            Some(why) => {
                found.stuck = true;
                if found.stuck_owners.len() < STUCK_OWNERS_MAX {
                    found.stuck_owners.insert(key.to_owned());
                }
                found.due += 1;
                if d.status.stuck(ledger.id, &why) {
                    tracing::warn!(ledger = %ledger.id, key, why, "ledger is below its write quorum");
                }
            }
        }
        Ok(())
    }

    /// The ledger left its owner while it was copied: copies that its deletion did not know of go too. A ledger that is
    /// about to enter its owner's record is open there, and stays.
    async fn take_back(&self, key: &str, old: &ClosedLedger, new: &ClosedLedger) -> Result<(), MetaError> {
        let d = self.deps;
        let owner = d.metadata.get(key).await?;
        if owner.is_some_and(|owner| holders::may_take(&d.keys, &owner, old.id)) {
            return Ok(());
        }
        let before: BTreeSet<&BookieRef> = members(old).collect();
        for member in members(new).filter(|member| !before.contains(member)) {
            if let Err(error) = d.means.rpc.delete(member, old.id).await {
                tracing::warn!(ledger = %old.id, bookie = %member, %error, "copies of a deleted ledger stay");
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Look {
    Own,
    Owners,
}

fn members(ledger: &ClosedLedger) -> impl Iterator<Item = &BookieRef> {
    ledger.fragments.iter().flat_map(|fragment| fragment.ensemble.iter().flatten())
}
