//! Why an operation on the control plane's records failed, split by what the caller does next. The mapping to HTTP status and
//! wire codes happens at the two edges, not here.

use super::codec::DecodeError;
use super::creation::ResolveError;
use geminga_common::metadata::MetaError;
use geminga_common::names::{NamespaceName, TenantName, TopicName};

/// Why an operation on tenants, namespaces, policies or partition counts failed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The tenant is not there.
    #[error("Tenant {0} not found")]
    TenantNotFound(TenantName),
    /// The tenant is there already.
    #[error("Tenant already exist")]
    TenantExists(TenantName),
    /// The tenant still has namespaces.
    #[error("The tenant still has active namespaces")]
    TenantNotEmpty(TenantName),
    /// The namespace is not there.
    #[error("Namespace not found")]
    NamespaceNotFound(NamespaceName),
    /// The namespace is there already.
    #[error("Namespace already exists")]
    NamespaceExists(NamespaceName),
    /// The namespace still has topics.
    #[error("Cannot delete non empty namespace")]
    NamespaceNotEmpty(NamespaceName),
    /// The namespace is being deleted: nothing new may appear in it.
    #[error("Namespace {0} is being deleted")]
    NamespaceDeleting(NamespaceName),
    /// The topic is there already.
    #[error("This topic already exists")]
    TopicExists(TopicName),
    /// There is no such partitioned topic.
    #[error("Topic {0} is not the partitioned topic.")]
    NotPartitioned(TopicName),
    /// Partitions are never taken away: their messages would be lost.
    #[error("Desired partitions {wanted} can't be less than the current partitions {current}.")]
    PartitionsFewer {
        /// What the topic has.
        current: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// A partition count outside 1 to the most allowed.
    #[error("Number of partitions should be more than 0 and at most {}", super::PARTITIONS_MAX)]
    PartitionCount(u32),
    /// A partition's own name cannot be partitioned again.
    #[error("Partitioned Topic Name should not contain '-partition-'")]
    PartitionOfPartition(TopicName),
    /// The namespace has as many topics as its policy allows.
    #[error("Exceed maximum number of topics in namespace.")]
    TooManyTopics(NamespaceName),
    /// The topic's name contradicts what is known about partitions, or it may not be created.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The change itself was refused.
    #[error("{0}")]
    Refused(&'static str),
    /// Others kept changing the record; nothing was written.
    #[error("Concurrent modification")]
    Conflict,
    /// A stored record is damaged or of a later release.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The metadata store did not answer.
    #[error(transparent)]
    Metadata(#[from] MetaError),
}
