//! Tenants, namespaces, policies and partition counts: the control plane's records, cached for the hot control path.
//!
//! | file | what it holds |
//! |---|---|
//! | `registry` | [`Namespaces`]: the handle; tenants and namespaces; compare-and-set on every write |
//! | `partitions` | partitioned topics: counts and properties (`pt/`), the listing of a namespace's topics |
//! | `topic_policies` | policies and properties of single topics (`tp/`) |
//! | `policies`, `parts` | the records in Pulsar's JSON shape |
//! | `creation` | pure rules: may this name be loaded, may it be created, with how many partitions |
//! | `listing` | pure: topics hash and pattern filter |
//! | [`ownership`] | which broker serves which bundle: epochs, guards, lost leases, orphans |
//! | `cache` | records in memory, kept fresh by watches and by own writes |
//! | `turns` | one at a time, for what looks first and creates then |
//! | `codec`, `lenient` | stored form with its version; number forms that Pulsar's JSON reader accepts |
//!
//! Decisions: records are JSON, because they are small, rare, and read by people during incidents. Every cache holds whole
//! prefixes; a cluster with very many partitioned topics wants this bounded by owned bundles later.

mod cache;
mod codec;
mod creation;
mod error;
pub mod lenient;
mod listing;
pub mod ownership;
mod partitions;
mod parts;
mod policies;
mod registry;
mod topic_policies;
mod turns;

#[cfg(test)]
mod tests;

pub use codec::{DecodeError, decode, encode};
pub use creation::{AutoCreation, Metadata, ResolveError, check_load, resolve_metadata};
pub use error::NamespaceError;
pub use listing::{DomainMode, Pattern, PatternError, filter_topics, topics_hash};
pub use partitions::{PARTITIONS_MAX, Partitioned};
pub use parts::{
    AutoSubscriptionCreation, AutoTopicCreation, BacklogQuota, BacklogQuotaType, BundlesData,
    DelayedDelivery, DispatchRate, InactiveDeleteMode, InactiveTopicPolicies, OffloadPolicies, Persistence,
    PublishRate, QuotaPolicy, Retention, SchemaCompatibility, SubscribeRate, TopicType,
};
pub use policies::{AuthAction, AuthPolicies, Policies, SubscriptionAuthMode, SubscriptionTypeName, Tenant};
pub use registry::{Defaults, Namespaces};
pub use topic_policies::{TopicPolicies, TopicRecord};
