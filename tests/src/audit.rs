//! An auditor of a cluster: what metadata says of closed ledgers, asked of the bookies themselves, entry by entry. It believes no
//! broker. Used by the cluster tests and by `examples/audit`.
#![allow(clippy::disallowed_methods)] // real processes and clocks

use anyhow::{Context as _, Result, ensure};
use geminga_bookie_client::grpc::{self, GrpcBookies};
use geminga_bookie_client::record::{ClosedLedger, LedgerRecord};
use geminga_bookie_client::registry::record::NodeState;
use geminga_bookie_client::registry::{Known, Registry};
use geminga_bookie_client::repair::plan::{Job, Standing, first_missing, ids_of, needs};
use geminga_bookie_client::rpc::{BookieRef, BookieRpc, IdRange, Read, ReadAnswer, ReadClass};
use geminga_broker::cursor::chain::Chain;
use geminga_broker::managed_ledger::record as topic_record;
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId};
use geminga_common::metadata::etcd::{Config, EtcdStore};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::list_all;
use geminga_common::tasks::TaskGroup;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;

/// Metadata and bookies, seen from outside.
pub struct Auditor {
    store: Arc<EtcdStore>,
    registry: Registry,
    bookies: GrpcBookies,
    keys: Keys,
    _tasks: TaskGroup,
}

/// What an audit of all bytes saw.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Bytes {
    /// Closed ledgers.
    pub ledgers: u64,
    /// Copies of entries that were read and compared.
    pub copies: u64,
    /// Copies that could not be read: nothing is said of them, which is no lie.
    pub unreadable: Vec<String>,
    /// Copies whose checksum does not hold, or that differ from another.
    pub wrong: Vec<String>,
}

impl Auditor {
    /// Looks at the cluster `local` whose metadata is at this etcd.
    ///
    /// # Errors
    /// No etcd there.
    pub async fn new(etcd: String) -> Result<Self> {
        let (tasks, keys) = (TaskGroup::new(), Keys::new("local"));
        let store = Arc::new(EtcdStore::connect(Config::plain(vec![etcd]), &tasks).await?);
        let registry = Registry::start(store.clone(), keys.clone(), &tasks).await?;
        let bookies =
            GrpcBookies::new(grpc::Config::new("local", "audit"), registry.resolve(), tasks.clone());
        Ok(Self { store, registry, bookies, keys, _tasks: tasks })
    }

    /// The incarnation and state that each bookie is registered with.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, (Incarnation, NodeState)> {
        let view = self.registry.view();
        let one = |(id, known): (&BookieId, &Known)| {
            let record = known.record.as_ref()?;
            Some((id.to_string(), (record.incarnation, record.state)))
        };
        view.bookies.iter().filter_map(one).collect()
    }

    /// Every closed ledger of a topic or a cursor log.
    ///
    /// # Errors
    /// Metadata cannot be read.
    pub async fn ledgers(&self) -> Result<Vec<ClosedLedger>> {
        let mut all = Vec::new();
        for record in list_all(&*self.store, &self.keys.all_topics_prefix()).await? {
            all.extend(topic_record::closed_ledgers(&record.value)?);
        }
        for record in list_all(&*self.store, &self.keys.all_cursor_logs_prefix()).await? {
            all.extend(Chain::decode(&record.value)?.closed);
        }
        Ok(all)
    }

    /// What is not whole; `None` when every closed ledger is on all of its write quorum and no open one lacks a copy.
    ///
    /// # Errors
    /// Metadata cannot be read.
    pub async fn wrong(&self) -> Result<Option<String>> {
        for record in list_all(&*self.store, &self.keys.ledgers_prefix()).await? {
            let record = LedgerRecord::decode(&record.value)?;
            if !record.repair.is_empty() {
                return Ok(Some(format!("ledger {} has repair recorded: {:?}", record.id, record.state)));
            }
        }
        let view = self.registry.view();
        let standing = |member: &BookieRef| {
            let record = view.bookies.get(&member.id).and_then(|known| known.record.as_ref());
            match record {
                Some(record) if record.incarnation != member.incarnation => Standing::Gone,
                Some(record) if record.state == NodeState::ReadWrite => Standing::Sound,
                Some(_) => Standing::Damaged,
                None => Standing::Gone,
            }
        };
        for ledger in self.ledgers().await? {
            if !needs(&ledger, standing).none() {
                return Ok(Some(format!("ledger {} needs {:?}", ledger.id, needs(&ledger, standing))));
            }
            if let Some(wrong) = self.copies_lack(&ledger).await? {
                return Ok(Some(wrong));
            }
        }
        Ok(None)
    }

    /// Asks every member for what its slot is to hold.
    async fn copies_lack(&self, ledger: &ClosedLedger) -> Result<Option<String>> {
        for (at, fragment) in ledger.fragments.iter().enumerate() {
            let Some(ids) = ids_of(ledger, at) else { continue };
            for (slot, member) in fragment.ensemble.iter().enumerate() {
                let member = member.as_ref().context("a vacancy")?;
                let held = self.bookies.presence(member, ledger.id, ids).await;
                let Ok(held) = held else { return Ok(Some(format!("{member} cannot be asked"))) };
                let job = Job { fragment: at, slot: slot as u32, ids, keep: None, copies: 0 };
                if let Some(id) = first_missing(ledger.quorum, &job, &held.present) {
                    return Ok(Some(format!("{member} lacks entry {id} of ledger {}", ledger.id)));
                }
            }
        }
        Ok(None)
    }

    /// Waits until nothing is wrong; answers how long that took.
    ///
    /// # Errors
    /// Something is still wrong after `limit`.
    pub async fn whole(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            match self.wrong().await? {
                None => return Ok(begun.elapsed()),
                Some(wrong) => ensure!(begun.elapsed() < limit, "still not whole: {wrong}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Reads every copy of every closed ledger from its holder and compares them, byte for byte by checksum over ids and payload.
    ///
    /// # Errors
    /// Metadata cannot be read.
    pub async fn bytes(&self) -> Result<Bytes> {
        let mut seen = Bytes::default();
        for ledger in self.ledgers().await? {
            seen.ledgers += 1;
            let mut known = BTreeMap::new();
            for (at, fragment) in ledger.fragments.iter().enumerate() {
                let Some(ids) = ids_of(&ledger, at) else { continue };
                for (slot, member) in fragment.ensemble.iter().enumerate() {
                    let Some(member) = member else { continue };
                    self.copies(&ledger, (ids, slot as u32, member), &mut known, &mut seen).await;
                }
            }
        }
        Ok(seen)
    }

    /// What one member holds of a fragment.
    async fn copies(
        &self,
        ledger: &ClosedLedger,
        (ids, slot, member): (IdRange, u32, &BookieRef),
        known: &mut BTreeMap<EntryId, (u32, usize)>,
        seen: &mut Bytes,
    ) {
        let mut id = ids.first;
        while id <= ids.last {
            if !ledger.quorum.write_set(id).contains(slot) {
                id = id.next();
                continue;
            }
            let read = Read {
                ledger: ledger.id,
                first: id,
                last: ids.last,
                bytes_max: READ_BYTES,
                class: ReadClass::Repair,
            };
            let entries = match self.bookies.read(member, read).await {
                ReadAnswer::Found(entries) => entries,
                other => {
                    seen.unreadable.push(format!("{member}: entry {id} of ledger {}: {other:?}", ledger.id));
                    id = id.next();
                    continue;
                }
            };
            for entry in entries {
                seen.copies += 1;
                let this = (entry.crc, entry.payload.len());
                let other = *known.entry(entry.id).or_insert(this);
                if entry.id != id || !entry.verify(ledger.id) || other != this {
                    seen.wrong.push(told(member, entry.id, ledger.id));
                }
                id = entry.id.next();
            }
        }
    }
}

fn told(member: &BookieRef, id: EntryId, ledger: LedgerId) -> String {
    format!("{member}: entry {id} of ledger {ledger} is not what was written")
}
