//! Bundles without an owner whose topics or cursor log still have a ledger open: a tail on a bare ack quorum must not wait until
//! somebody asks for the topic.
//!
//! Only an owner opens ledgers, so a bundle without owner that was found closed stays so while its epoch stands: it is looked at
//! once per epoch. Of the live brokers one is first in line for a bundle; the others would only lose the race.

use super::record::decode_epoch;
use crate::cursor::chain::Chain;
use crate::managed_ledger::record as topic_record;
use geminga_common::checksum::crc32c;
use geminga_common::ids::OwnerEpoch;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{MetaError, MetadataStore, Record, list_all};
use geminga_common::names::{Bundle, TopicName};
use std::collections::{HashMap, HashSet};

/// Records of topics asked for at once.
const PAGE: usize = 256;

/// A bundle to be taken, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Orphan {
    /// The bundle.
    pub(crate) bundle: Bundle,
    /// Topics whose last ledger is open.
    pub(crate) topics: Vec<TopicName>,
}

/// What earlier looks have shown.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    closed_at: HashMap<Bundle, OwnerEpoch>,
}

impl Sweep {
    /// Looks for orphans that `member` is to take.
    pub(crate) async fn look(
        &mut self,
        store: &dyn MetadataStore,
        keys: &Keys,
        member: &str,
    ) -> Result<Vec<Orphan>, MetaError> {
        let owned: HashSet<Bundle> = list_all(store, &keys.all_owners_prefix())
            .await?
            .iter()
            .filter_map(|record| keys.bundle_of_owner_key(&record.key))
            .collect();
        let live = list_all(store, &keys.live_brokers_prefix()).await?;
        let live: Vec<String> =
            live.iter().filter_map(|record| keys.live_broker_of_key(&record.key)).collect();
        let mut orphans = Vec::new();
        for record in list_all(store, &keys.all_bundles_prefix()).await? {
            let Some(bundle) = keys.bundle_of_key(&record.key) else { continue };
            let Ok(epoch) = decode_epoch(&record.value) else { continue };
            let known = self.closed_at.get(&bundle) == Some(&epoch);
            if owned.contains(&bundle) || known || !first_in_line(&bundle, member, &live) {
                continue;
            }
            let topics = open_topics(store, keys, &bundle).await?;
            if topics.is_empty() && !cursor_log_is_open(store, keys, &bundle).await? {
                self.closed_at.insert(bundle, epoch);
            } else {
                orphans.push(Orphan { bundle, topics });
            }
        }
        Ok(orphans)
    }
}

/// Rendezvous: the live broker with the highest hash for the bundle. A broker that is not listed itself, as in a process of its
/// own, stands first.
fn first_in_line(bundle: &Bundle, member: &str, live: &[String]) -> bool {
    let rank = |broker: &str| crc32c(format!("{bundle} {broker}").as_bytes());
    let own = (rank(member), member);
    live.iter().all(|other| (rank(other), other.as_str()) <= own)
}

fn open_topic(keys: &Keys, record: &Record) -> Option<TopicName> {
    let (state, _) = topic_record::decode(&record.value).ok()?;
    state.open()?;
    keys.topic_of_key(&record.key)
}

async fn open_topics(
    store: &dyn MetadataStore,
    keys: &Keys,
    bundle: &Bundle,
) -> Result<Vec<TopicName>, MetaError> {
    let range = keys.topics_of_bundle(bundle);
    let (mut after, mut open) = (range.after.clone(), Vec::new());
    loop {
        let page = store.list(&range.prefix, Some(&after), PAGE).await?;
        let inside = page.iter().take_while(|record| range.contains(record));
        open.extend(inside.filter_map(|record| open_topic(keys, record)));
        match page.last() {
            Some(last) if page.len() == PAGE && range.contains(last) => after.clone_from(&last.key),
            _ => return Ok(open),
        }
    }
}

async fn cursor_log_is_open(
    store: &dyn MetadataStore,
    keys: &Keys,
    bundle: &Bundle,
) -> Result<bool, MetaError> {
    let record = store.get(&keys.cursor_log(bundle)).await?;
    Ok(record.is_some_and(|record| Chain::decode(&record.value).is_ok_and(|chain| chain.open.is_some())))
}
