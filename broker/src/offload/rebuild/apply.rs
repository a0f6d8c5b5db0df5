//! Carrying a plan out: counters, then topic after topic, then the adoption of the bucket. Each step finds what was done before.

use super::{Finding, Plan, RebuildError, There, Topic, there};
use crate::managed_ledger::{record, topic_ids};
use crate::namespace::{Defaults, NamespaceError, Namespaces, Retention, Tenant};
use geminga_bookie_client::ledgers::raise_ids;
use geminga_common::ids::{LedgerId, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Txn, TxnOutcome, list_all};
use geminga_common::names::TopicName;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use geminga_offload::identity::{Recorded, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a topic's record is tried to be written against others.
const ATTEMPTS: usize = 8;
/// Keeps everything.
const FOR_EVER: Retention = Retention { time_minutes: -1, size_mb: -1 };

/// Where a plan is carried out.
pub struct Target {
    /// The metadata.
    pub meta: Arc<dyn MetadataStore>,
    /// Name of the cluster.
    pub cluster: String,
    /// What the bucket is called.
    pub place: String,
    /// The identity that a person has named.
    pub adopt: Option<StoreId>,
    /// Nobody else can have these metadata open, so no broker can be alive.
    pub alone: bool,
}

/// Attaches every topic of the plan that is not there, and takes the bucket over. Topics are marked as they are attached; what
/// could not be is told in the plan's findings.
///
/// # Errors
/// See [`RebuildError`]. Running it again goes on.
pub async fn apply(target: &Target, plan: &mut Plan, tasks: &TaskGroup) -> Result<(), RebuildError> {
    let Target { meta, cluster, place, adopt, alone } = target;
    let keys = Keys::new(cluster);
    if let Some((_, tag)) = &plan.identity
        && *adopt != Some(tag.id)
    {
        let (here, owner) = (place.clone(), tag.to_string());
        return Err(RebuildError::NotAdopted { here, owner, id: tag.id });
    }
    if !alone {
        nobody_runs(&**meta, &keys).await?;
    }
    if let Some((ledger, topic)) = plan.highest {
        raise(&**meta, &keys, ledger, topic).await?;
    }
    let namespaces = Namespaces::start(meta.clone(), Defaults::of_cluster(cluster), tasks).await;
    let namespaces = namespaces.map_err(|error| match error {
        NamespaceError::Metadata(error) => error.into(),
        error => RebuildError::Namespace("the tenants and namespaces".to_owned(), error),
    })?;
    let counts = partitions(&plan.topics);
    let mut left = Vec::new();
    for topic in plan.topics.iter_mut().filter(|topic| !topic.attached) {
        match attach(&**meta, &keys, cluster, &namespaces, &counts, topic).await {
            Ok(()) => topic.attached = true,
            Err(Left::Topic(why)) => left.push(Finding::NotAttached { topic: topic.name.clone(), why }),
            Err(Left::All(error)) => return Err(error),
        }
    }
    plan.findings.extend(left);
    take_over(&**meta, &keys, place, plan).await
}

async fn nobody_runs(meta: &dyn MetadataStore, keys: &Keys) -> Result<(), RebuildError> {
    let live = list_all(meta, &keys.live_brokers_prefix()).await?;
    let names: Vec<_> = live.iter().filter_map(|record| keys.live_broker_of_key(&record.key)).collect();
    if live.is_empty() { Ok(()) } else { Err(RebuildError::Running(names.join(", "))) }
}

/// Ids that are leased from now on lie above these.
async fn raise(
    meta: &dyn MetadataStore,
    keys: &Keys,
    ledger: LedgerId,
    topic: TopicId,
) -> Result<(), RebuildError> {
    raise_ids(meta, &keys.ids(), ledger).await?;
    topic_ids::raise(meta, keys, topic).await.map_err(|error| match error {
        topic_ids::RaiseError::Meta(error) => error.into(),
        topic_ids::RaiseError::Record(error) => RebuildError::Counter(keys.topic_ids(), error),
    })
}

/// How many partitions each partitioned topic has at least, by its name.
fn partitions(topics: &[Topic]) -> BTreeMap<TopicName, u32> {
    let mut counts = BTreeMap::new();
    for name in topics.iter().map(|topic| &topic.name) {
        if let Some(index) = name.partition_index() {
            let count = counts.entry(name.base()).or_insert(0);
            *count = (*count).max(index.saturating_add(1));
        }
    }
    counts
}

/// Why a topic is not attached: for itself, or because nothing works.
enum Left {
    Topic(String),
    All(RebuildError),
}

impl From<MetaError> for Left {
    fn from(error: MetaError) -> Self {
        Left::All(error.into())
    }
}

/// What stops everything, of an error about `what`; else it is this topic's own.
fn fatal(what: &str, error: NamespaceError) -> Left {
    match error {
        NamespaceError::Metadata(error) => Left::All(error.into()),
        NamespaceError::Decode(_) => Left::All(RebuildError::Namespace(what.to_owned(), error)),
        error => Left::Topic(format!("{what}: {error}")),
    }
}

async fn attach(
    meta: &dyn MetadataStore,
    keys: &Keys,
    cluster: &str,
    namespaces: &Namespaces,
    counts: &BTreeMap<TopicName, u32>,
    topic: &Topic,
) -> Result<(), Left> {
    surroundings(cluster, namespaces, counts, &topic.name).await?;
    let key = keys.topic(&topic.name);
    for _ in 0..ATTEMPTS {
        let guard = namespaces.topic_creation_guard(&topic.name).await;
        let mut compares = guard.map_err(|error| fatal("it may not be created", error))?;
        compares.push(Compare::Absent(key.clone()));
        let value = record::encode(&topic.state, Rng::from_system().next_u64());
        match meta.txn(Txn { compares, ops: vec![Op::put(key.clone(), value)] }).await {
            Ok(TxnOutcome::Committed(_)) => return Ok(()),
            // Somebody else's doing, or ours: the record says.
            Ok(TxnOutcome::CompareFailed) | Err(MetaError::Unknown(_)) => {
                match there(meta, cluster, topic).await? {
                    There::Nothing => {}
                    There::Same => return Ok(()),
                    There::Other(why) => return Err(Left::Topic(why)),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Left::All(RebuildError::Contended(key)))
}

/// Tenant, namespace and partition count where they are missing, and a retention that keeps the topic.
async fn surroundings(
    cluster: &str,
    namespaces: &Namespaces,
    counts: &BTreeMap<TopicName, u32>,
    name: &TopicName,
) -> Result<(), Left> {
    let (namespace, base) = (name.namespace(), name.base());
    if namespaces.tenant(namespace.tenant()).is_none() {
        let tenant = Tenant { allowed_clusters: [cluster.to_owned()].into(), ..Tenant::default() };
        let made = namespaces.create_tenant(namespace.tenant(), &tenant).await;
        unless(made, |error| matches!(error, NamespaceError::TenantExists(_)), "its tenant")?;
    }
    if namespaces.policies(namespace).is_none() {
        let made = namespaces.create_namespace(namespace, &namespaces.fresh_policies()).await;
        unless(made, |error| matches!(error, NamespaceError::NamespaceExists(_)), "its namespace")?;
    }
    if let Some(wanted) = counts.get(&base).copied().filter(|_| name.partition_index().is_some()) {
        let made = match namespaces.partition_count(&base) {
            None => namespaces.create_partitioned(&base, wanted, BTreeMap::new()).await,
            Some(count) if count < wanted => namespaces.grow_partitioned(&base, wanted).await,
            Some(_) => Ok(()),
        };
        unless(made, |_| false, "its partitioned topic")?;
    }
    let kept = namespaces.update_topic_record(name, |record| {
        record.policies.retention = Some(FOR_EVER);
        Ok(())
    });
    unless(kept.await, |_| false, "its retention")
}

fn unless(
    done: Result<(), NamespaceError>,
    is_fine: impl Fn(&NamespaceError) -> bool,
    what: &str,
) -> Result<(), Left> {
    match done {
        Err(error) if !is_fine(&error) => Err(fatal(what, error)),
        _ => Ok(()),
    }
}

/// The metadata name the bucket's identity from now on.
async fn take_over(
    meta: &dyn MetadataStore,
    keys: &Keys,
    place: &str,
    plan: &mut Plan,
) -> Result<(), RebuildError> {
    let Some((stored, tag)) = plan.identity.take() else { return Ok(()) };
    let key = keys.object_store();
    let named = Recorded { id: tag.id, confirmed: true, place: place.to_owned(), made_ms: tag.made_ms };
    let unchanged = match stored {
        None => Compare::Absent(key.clone()),
        Some(stored) => Compare::ValueIs(key.clone(), stored.value),
    };
    let txn = Txn { compares: vec![unchanged], ops: vec![Op::put(key.clone(), named.encode())] };
    if let (TxnOutcome::CompareFailed, id) = (meta.txn(txn).await?, tag.id) {
        let now = meta.get(&key).await?.and_then(|record| Recorded::decode(&record.value).ok());
        if !now.is_some_and(|now| now.confirmed && now.id == id) {
            return Err(RebuildError::Contended(key));
        }
    }
    plan.to_adopt = None;
    Ok(())
}
