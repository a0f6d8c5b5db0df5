//! Partitioned topics: a count and free properties under `pt/`. A partition is a topic of its own; its ledgers come with the
//! first message, so that creating thousands of partitions is one small write.

use super::cache::Table;
use super::creation::{Metadata, ResolveError, check_load, resolve_metadata};
use super::listing::DomainMode;
use super::registry::{Namespaces, Step};
use super::turns::Turn;
use super::{AutoCreation, NamespaceError, decode, encode, lenient};
use geminga_common::metadata::{Compare, Op, Txn, list_all};
use geminga_common::names::{NamespaceName, TopicName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most partitions of a topic. Ours: Pulsar sets no bound by default, and one request must not make 2^31 topics.
pub const PARTITIONS_MAX: u32 = 20_000;

/// A partitioned topic's record, which is also what Pulsar's REST shows of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Partitioned {
    /// How many partitions.
    pub partitions: u32,
    /// Kept for Pulsar's shape; a deleted topic has no record here.
    #[serde(default)]
    pub deleted: bool,
    /// Free properties given at creation.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

impl Namespaces {
    fn counts(&self) -> &Table<Partitioned> {
        &self.inner.partitioned
    }

    /// The record of the partitioned topic with exactly this name.
    #[must_use]
    pub fn partitioned(&self, topic: &TopicName) -> Option<Arc<Partitioned>> {
        self.counts().get(&self.keys().partitioned(topic))
    }

    /// How many partitions the topic (for a partition: its parent) has; `None` when it is not partitioned.
    #[must_use]
    pub fn partition_count(&self, topic: &TopicName) -> Option<u32> {
        self.partitioned(&topic.base()).map(|record| record.partitions)
    }

    /// Whether a topic may be loaded under its name: its namespace is there and its name agrees with the partition counts.
    ///
    /// # Errors
    /// When not.
    pub fn check_load(&self, topic: &TopicName) -> Result<(), NamespaceError> {
        self.live_policies(topic.namespace())?;
        Ok(check_load(topic, self.partition_count(topic))?)
    }

    /// What first use creates in a namespace.
    ///
    /// # Errors
    /// When the namespace is not there.
    pub fn auto_creation(&self, namespace: &NamespaceName) -> Result<AutoCreation, NamespaceError> {
        let policies = self.live_policies(namespace)?;
        Ok(AutoCreation::of(&policies, self.defaults()))
    }

    /// Whether the topic with exactly this name has a stored record.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn topic_stored(&self, topic: &TopicName) -> Result<bool, NamespaceError> {
        Ok(self.store().get(&self.keys().topic(topic)).await?.is_some())
    }

    /// Answers a request for partition metadata: 0 for a plain topic. With `may_create` and a partitioned rule the request
    /// itself creates the metadata.
    ///
    /// # Errors
    /// When the namespace or the topic is not there and may not be created; metadata errors.
    pub async fn partition_metadata(
        &self,
        topic: &TopicName,
        may_create: bool,
    ) -> Result<u32, NamespaceError> {
        let rule = self.auto_creation(topic.namespace())?;
        let count = self.partition_count(topic);
        // The store is asked only where the answer depends on it: a known count, or a plain topic that first use makes, does not.
        let depends = count.is_none() && (!may_create || !rule.allowed || rule.partitions.is_some());
        let exists = if !topic.is_persistent() {
            // Unstored topics are nowhere recorded: they are there as soon as somebody asks, as in Pulsar.
            rule.partitions.is_none() || !rule.allowed
        } else {
            depends && self.topic_stored(topic).await?
        };
        match resolve_metadata(topic, count, exists, may_create, rule)? {
            Metadata::Partitioned(count) => Ok(if topic.partition_index().is_some() { 0 } else { count }),
            Metadata::Plain => Ok(0),
            Metadata::Create(count) => match self.create_partitioned(topic, count, BTreeMap::new()).await {
                Ok(()) => Ok(count),
                // Somebody else was faster: what they made is the answer.
                Err(NamespaceError::TopicExists(_)) => self.read_partition_count(topic).await,
                Err(error) => Err(error),
            },
        }
    }

    async fn read_partition_count(&self, topic: &TopicName) -> Result<u32, NamespaceError> {
        match self.store().get(&self.keys().partitioned(topic)).await? {
            Some(record) => Ok(decode::<Partitioned>(&record.value)?.partitions),
            None => Ok(0),
        }
    }

    /// Creates a partitioned topic.
    ///
    /// # Errors
    /// When the namespace is missing or has no room for its partitions, the name is taken (as a plain topic too) or is a partition's, or
    /// the count is out of bounds; metadata errors.
    pub async fn create_partitioned(
        &self,
        topic: &TopicName,
        partitions: u32,
        properties: BTreeMap<String, String>,
    ) -> Result<(), NamespaceError> {
        if topic.partition_index().is_some() {
            return Err(NamespaceError::PartitionOfPartition(topic.clone()));
        }
        if partitions == 0 || partitions > PARTITIONS_MAX {
            return Err(NamespaceError::PartitionCount(partitions));
        }
        let _room = self.room_for(topic.namespace(), partitions).await?;
        let (key, plain) = (self.keys().partitioned(topic), self.keys().topic(topic));
        for _ in 0..super::registry::ATTEMPTS {
            let guard = self.creation_guard(topic.namespace()).await?;
            let value = encode(&Partitioned { partitions, deleted: false, properties: properties.clone() });
            let compares = vec![guard, Compare::Absent(key.clone()), Compare::Absent(plain.clone())];
            let txn = Txn { compares, ops: vec![Op::put(key.clone(), value.clone())] };
            if let Some(applied) = self.attempt(&key, txn, Some(value)).await? {
                self.counts().applied(&key, applied);
                return Ok(());
            }
            let taken = self.store().get(&key).await?.is_some() || self.store().get(&plain).await?.is_some();
            if taken {
                return Err(NamespaceError::TopicExists(topic.clone()));
            }
        }
        Err(NamespaceError::Conflict)
    }

    /// Raises a partition count; the same count is fine.
    ///
    /// # Errors
    /// When the topic is not partitioned, the count would fall or is out of bounds, or the namespace has no room for more; metadata
    /// errors.
    pub async fn grow_partitioned(&self, topic: &TopicName, wanted: u32) -> Result<(), NamespaceError> {
        if topic.partition_index().is_some() {
            return Err(NamespaceError::PartitionOfPartition(topic.clone()));
        }
        let current = self.partition_count(topic).unwrap_or(wanted);
        let _room = match wanted.checked_sub(current) {
            None | Some(0) => None,
            Some(more) => self.room_for(topic.namespace(), more).await?,
        };
        self.change_partitioned(topic, |record| {
            if wanted < record.partitions {
                return Err(NamespaceError::PartitionsFewer { current: record.partitions, wanted });
            }
            if wanted > PARTITIONS_MAX {
                return Err(NamespaceError::PartitionCount(wanted));
            }
            record.partitions = wanted;
            Ok(())
        })
        .await
    }

    /// Changes a partitioned topic's properties.
    ///
    /// # Errors
    /// When the topic is not partitioned; metadata errors.
    pub async fn change_partitioned_properties(
        &self,
        topic: &TopicName,
        mut change: impl FnMut(&mut BTreeMap<String, String>) + Send,
    ) -> Result<(), NamespaceError> {
        self.change_partitioned(topic, |record| {
            change(&mut record.properties);
            Ok(())
        })
        .await
    }

    async fn change_partitioned(
        &self,
        topic: &TopicName,
        mut change: impl FnMut(&mut Partitioned) -> Result<(), NamespaceError> + Send,
    ) -> Result<(), NamespaceError> {
        let key = self.keys().partitioned(topic);
        let applied = self
            .retrying(&key, &mut |found| {
                let found = found.ok_or_else(|| NamespaceError::NotPartitioned(topic.clone()))?;
                let before: Partitioned = decode(&found.value)?;
                let mut after = before.clone();
                change(&mut after)?;
                if after == before {
                    return Ok(Step::Unchanged);
                }
                let value = encode(&after);
                let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
                let txn = Txn { compares, ops: vec![Op::put(key.clone(), value.clone())] };
                Ok(Step::Write(txn, Some(value)))
            })
            .await?;
        self.counts().applied(&key, applied);
        Ok(())
    }

    /// Removes a partition count. The caller has deleted the partitions before.
    ///
    /// # Errors
    /// When the topic is not partitioned; metadata errors.
    pub async fn delete_partitioned(&self, topic: &TopicName) -> Result<(), NamespaceError> {
        let key = self.keys().partitioned(topic);
        let applied = self
            .retrying(&key, &mut |found| {
                let found = found.ok_or_else(|| NamespaceError::NotPartitioned(topic.clone()))?;
                let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
                Ok(Step::Write(Txn { compares, ops: vec![Op::delete(key.clone())] }, None))
            })
            .await?;
        self.counts().applied(&key, applied);
        Ok(())
    }

    /// The partitioned topics of a namespace, in name order.
    #[must_use]
    pub fn partitioned_topics(&self, namespace: &NamespaceName) -> Vec<(TopicName, u32)> {
        let prefix = self.keys().partitioned_prefix(namespace);
        let read = |key: &str, record: &Arc<Partitioned>| {
            Some((self.keys().partitioned_of_key(key)?, record.partitions))
        };
        let mut topics = self.counts().below(&prefix, read);
        topics.sort_unstable();
        topics
    }

    /// The topics of a namespace in name order: stored ones, and each partition of partitioned ones whether loaded or not.
    /// Unstored plain topics are known to their brokers only.
    ///
    /// # Errors
    /// When the namespace is not there; metadata errors.
    pub async fn topics(
        &self,
        namespace: &NamespaceName,
        mode: DomainMode,
    ) -> Result<Vec<TopicName>, NamespaceError> {
        self.policies(namespace).ok_or_else(|| NamespaceError::NamespaceNotFound(namespace.clone()))?;
        let mut topics = BTreeSet::new();
        if mode != DomainMode::NonPersistent {
            let stored = list_all(self.store(), &self.keys().topics_prefix(namespace)).await?;
            topics.extend(stored.iter().filter_map(|record| self.keys().topic_of_key(&record.key)));
        }
        for (topic, count) in self.partitioned_topics(namespace) {
            topics.extend((0..count).map(|index| topic.partition(index)));
        }
        Ok(topics.into_iter().filter(|topic| mode.takes(topic)).collect())
    }

    /// Whether the namespace's bound on topics leaves room for `more`. 0 is unbounded. Partitions count one by one. The room is kept
    /// until the answer is dropped: whoever creates them holds it so long.
    ///
    /// # Errors
    /// When the bound would be passed, or the namespace is not there; metadata errors.
    pub(crate) async fn room_for(
        &self,
        namespace: &NamespaceName,
        more: u32,
    ) -> Result<Option<Turn>, NamespaceError> {
        let bound = self.live_policies(namespace)?.max_topics_per_namespace.unwrap_or(0);
        if bound <= 0 {
            return Ok(None);
        }
        let turn = self.inner.creating.take(namespace).await;
        let there = self.topics(namespace, DomainMode::All).await?.len();
        let room = usize::try_from(bound).is_ok_and(|bound| there + more as usize <= bound);
        if room { Ok(Some(turn)) } else { Err(NamespaceError::TooManyTopics(namespace.clone())) }
    }

    /// Refuses with "not found" a name whose topic is nowhere: neither stored, nor a partition of a partitioned topic, nor
    /// partitioned itself.
    ///
    /// # Errors
    /// When it is nowhere; metadata errors.
    pub async fn check_known(&self, topic: &TopicName) -> Result<(), NamespaceError> {
        let count = self.partition_count(topic);
        let by_count = match (topic.partition_index(), count) {
            (Some(index), Some(count)) => index < count,
            (None, Some(_)) => true,
            _ => false,
        };
        if by_count || self.topic_stored(topic).await? {
            return Ok(());
        }
        Err(ResolveError::NotFound(topic.clone()).into())
    }
}
