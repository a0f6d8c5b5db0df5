//! Pure rules about names and partitions: whether a topic's name agrees with what is known of partitions (PIP-414), and what
//! first use creates.
//!
//! Why a check at all: `t-partition-3` loaded without a partitioned `t`, or plain `t` beside its partitions, would be a second
//! stream of messages that no client of the partitioned topic ever sees.

use super::parts::TopicType;
use super::policies::Policies;
use super::registry::Defaults;
use geminga_common::names::TopicName;

/// Why a topic may not be loaded or created under its name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResolveError {
    /// `x-partition-N` without a partitioned `x`.
    #[error("Topic {0} is a partition, but there is no partitioned topic {base}", base = .0.base())]
    NoPartitionedParent(TopicName),
    /// `x-partition-N` with N beyond the count of `x`.
    #[error("Topic {topic} is out of range: the partitioned topic has {count} partitions")]
    PartitionOutOfRange {
        /// The partition asked for.
        topic: TopicName,
        /// What its parent has.
        count: u32,
    },
    /// The plain name of a partitioned topic.
    #[error("Topic {0} is a partitioned topic; its partitions are used one by one")]
    IsPartitioned(TopicName),
    /// The topic is not there and first use does not create it.
    #[error("Topic {0} not found")]
    NotFound(TopicName),
}

/// What first use creates in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AutoCreation {
    /// Whether anything is created.
    pub allowed: bool,
    /// `Some(n)`: a partitioned topic with n partitions; `None`: a plain topic.
    pub partitions: Option<u32>,
}

impl AutoCreation {
    /// The rule of a namespace: its own, else the broker's.
    #[must_use]
    pub fn of(policies: &Policies, defaults: &Defaults) -> Self {
        let Some(own) = &policies.auto_topic_creation else {
            return defaults.auto_topic_creation;
        };
        let partitioned = own.topic_type == Some(TopicType::Partitioned);
        let count = own.default_num_partitions.and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
        Self { allowed: own.allow_auto_topic_creation, partitions: partitioned.then_some(count) }
    }
}

/// Checks a topic's name against the partition count of its base name (`None`: the base is no partitioned topic). To be asked
/// before every load of a topic.
///
/// # Errors
/// When the name contradicts the count.
pub fn check_load(topic: &TopicName, count: Option<u32>) -> Result<(), ResolveError> {
    match (topic.partition_index(), count) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(ResolveError::IsPartitioned(topic.clone())),
        (Some(_), None) => Err(ResolveError::NoPartitionedParent(topic.clone())),
        (Some(index), Some(count)) if index < count => Ok(()),
        (Some(_), Some(count)) => Err(ResolveError::PartitionOutOfRange { topic: topic.clone(), count }),
    }
}

/// What a request for partition metadata answers, and creates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metadata {
    /// A partitioned topic that is there.
    Partitioned(u32),
    /// A plain topic, there or yet to be made by first use.
    Plain,
    /// A partitioned topic that the request itself creates.
    Create(u32),
}

/// Resolves a request for partition metadata. `exists` tells whether the plain topic is there; `may_create` is the request's
/// own wish.
///
/// # Errors
/// When the topic is not there and nothing may create it, or its name contradicts the count of its base.
pub fn resolve_metadata(
    topic: &TopicName,
    count_of_base: Option<u32>,
    exists: bool,
    may_create: bool,
    rule: AutoCreation,
) -> Result<Metadata, ResolveError> {
    if topic.partition_index().is_some() {
        // Clients ask for a partition's metadata too; a partition is a plain topic.
        return match check_load(topic, count_of_base) {
            Ok(()) => Ok(Metadata::Plain),
            Err(_) if exists => Ok(Metadata::Plain),
            Err(error) => Err(error),
        };
    }
    if let Some(count) = count_of_base {
        return Ok(Metadata::Partitioned(count));
    }
    if exists {
        return Ok(Metadata::Plain);
    }
    if !may_create || !rule.allowed {
        return Err(ResolveError::NotFound(topic.clone()));
    }
    Ok(rule.partitions.map_or(Metadata::Plain, Metadata::Create))
}
