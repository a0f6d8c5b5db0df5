//! A tenant's and a namespace's record, in the JSON shape that Pulsar's admin API shows (and that pulsarctl's tests compare
//! key by key): the stored form and the answer are one struct.
//!
//! "Unset" is `None`, and an unset policy means the broker's default.

use super::lenient;
use super::parts::{
    AutoSubscriptionCreation, AutoTopicCreation, BacklogQuota, BacklogQuotaType, BundlesData,
    DelayedDelivery, DispatchRate, InactiveTopicPolicies, OffloadPolicies, Persistence, PublishRate,
    Retention, SchemaCompatibility, SubscribeRate,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A tenant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Roles that may administer it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub admin_roles: BTreeSet<String>,
    /// Clusters its namespaces may live in.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub allowed_clusters: BTreeSet<String>,
}

/// What a role may do. Kept in Pulsar's spelling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthAction {
    /// Consume and everything readers need.
    Consume,
    /// Run functions.
    Functions,
    /// Manage packages.
    Packages,
    /// Produce.
    Produce,
    /// Run sinks.
    Sinks,
    /// Run sources.
    Sources,
}

/// Roles' grants.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthPolicies {
    /// Role → actions, for the whole namespace.
    #[serde(deserialize_with = "lenient::or_default")]
    pub namespace_auth: BTreeMap<String, BTreeSet<AuthAction>>,
    /// Topic → role → actions.
    #[serde(deserialize_with = "lenient::or_default")]
    pub destination_auth: BTreeMap<String, BTreeMap<String, BTreeSet<AuthAction>>>,
    /// Subscription → roles.
    #[serde(deserialize_with = "lenient::or_default")]
    pub subscription_auth_roles: BTreeMap<String, BTreeSet<String>>,
}

macro_rules! policies {
    ($($(#[$meta:meta])* $name:ident : $type:ty = $with:literal,)*; $($plain:tt)*) => {
        /// A namespace's policies.
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Policies {
            $($plain)*
            $(
                $(#[$meta])*
                #[serde(skip_serializing_if = "Option::is_none", deserialize_with = $with)]
                pub $name: Option<$type>,
            )*
        }
    };
}

policies! {
    /// Broker-side deduplication.
    #[serde(rename = "deduplicationEnabled")]
    deduplication_enabled: bool = "Option::deserialize",
    /// Replication of ledgers.
    persistence: Persistence = "Option::deserialize",
    /// Topics on first use.
    #[serde(rename = "autoTopicCreationOverride")]
    auto_topic_creation: AutoTopicCreation = "Option::deserialize",
    /// Subscriptions on first use.
    #[serde(rename = "autoSubscriptionCreationOverride")]
    auto_subscription_creation: AutoSubscriptionCreation = "Option::deserialize",
    /// Seconds after which unacknowledged messages expire; 0 is off.
    message_ttl_in_seconds: i32 = "lenient::opt_int",
    /// Minutes after which an unused subscription is deleted; 0 is off.
    subscription_expiration_time_minutes: i32 = "lenient::opt_int",
    /// How long acknowledged messages stay.
    retention_policies: Retention = "Option::deserialize",
    /// Delayed delivery.
    delayed_delivery_policies: DelayedDelivery = "Option::deserialize",
    /// Deletion of unused topics.
    inactive_topic_policies: InactiveTopicPolicies = "Option::deserialize",
    /// Most producers of a topic; 0 is unbounded.
    max_producers_per_topic: i32 = "lenient::opt_int",
    /// Most consumers of a topic; 0 is unbounded.
    max_consumers_per_topic: i32 = "lenient::opt_int",
    /// Most consumers of a subscription; 0 is unbounded.
    max_consumers_per_subscription: i32 = "lenient::opt_int",
    /// Most unacknowledged messages of a consumer; 0 is unbounded.
    max_unacked_messages_per_consumer: i32 = "lenient::opt_int",
    /// Most unacknowledged messages of a subscription; 0 is unbounded.
    max_unacked_messages_per_subscription: i32 = "lenient::opt_int",
    /// Most subscriptions of a topic; 0 is unbounded.
    max_subscriptions_per_topic: i32 = "lenient::opt_int",
    /// Bytes of backlog that start a compaction; 0 is off.
    compaction_threshold: i64 = "lenient::opt_int",
    /// When closed ledgers go to the object store; goes before the three fields of its own.
    offload_policies: OffloadPolicies = "Option::deserialize",
    /// How long offloaded ledgers also stay on bookies, ms.
    offload_deletion_lag_ms: i64 = "lenient::opt_int",
    /// Most topics of the namespace; 0 is unbounded.
    max_topics_per_namespace: i32 = "lenient::opt_int",
    /// Whether producers may add schemas.
    is_allow_auto_update_schema: bool = "Option::deserialize",
    /// Entries between deduplication snapshots.
    #[serde(rename = "deduplicationSnapshotIntervalSeconds")]
    deduplication_snapshot_interval_seconds: i32 = "lenient::opt_int",
    /// Resource group.
    resource_group_name: String = "Option::deserialize",
    /// Anti-affinity group.
    #[serde(rename = "namespaceAntiAffinityGroup")]
    namespace_anti_affinity_group: String = "Option::deserialize",
    /// Whether dispatch waits when acknowledgement state cannot be stored.
    #[serde(rename = "dispatcherPauseOnAckStatePersistentEnabled")]
    dispatcher_pause_on_ack_state_persistent: bool = "Option::deserialize",
    ;
    /// Grants.
    #[serde(deserialize_with = "lenient::or_default")]
    pub auth_policies: AuthPolicies,
    /// Clusters the namespace lives in.
    #[serde(deserialize_with = "lenient::or_default")]
    pub replication_clusters: BTreeSet<String>,
    /// Clusters it may live in.
    #[serde(deserialize_with = "lenient::or_default")]
    pub allowed_clusters: BTreeSet<String>,
    /// Bundles.
    #[serde(deserialize_with = "lenient::or_default")]
    pub bundles: BundlesData,
    /// Backlog quotas.
    #[serde(deserialize_with = "lenient::or_default")]
    pub backlog_quota_map: BTreeMap<BacklogQuotaType, BacklogQuota>,
    /// Delivery bound per cluster (old name; written with the next).
    #[serde(rename = "clusterDispatchRate", deserialize_with = "lenient::or_default")]
    pub cluster_dispatch_rate: BTreeMap<String, DispatchRate>,
    /// Delivery bound of a topic, per cluster.
    #[serde(rename = "topicDispatchRate", deserialize_with = "lenient::or_default")]
    pub topic_dispatch_rate: BTreeMap<String, DispatchRate>,
    /// Delivery bound of a subscription, per cluster.
    #[serde(rename = "subscriptionDispatchRate", deserialize_with = "lenient::or_default")]
    pub subscription_dispatch_rate: BTreeMap<String, DispatchRate>,
    /// Bound of a replicator, per cluster.
    #[serde(rename = "replicatorDispatchRate", deserialize_with = "lenient::or_default")]
    pub replicator_dispatch_rate: BTreeMap<String, DispatchRate>,
    /// Bound on subscribing, per cluster.
    #[serde(rename = "clusterSubscribeRate", deserialize_with = "lenient::or_default")]
    pub cluster_subscribe_rate: BTreeMap<String, SubscribeRate>,
    /// Bound on publishing, per cluster.
    #[serde(rename = "publishMaxMessageRate", deserialize_with = "lenient::or_default")]
    pub publish_max_message_rate: BTreeMap<String, PublishRate>,
    /// Unused since long; shown because clients' structs hold it.
    #[serde(deserialize_with = "lenient::or_default")]
    pub latency_stats_sample_rate: BTreeMap<String, i32>,
    /// Set while the namespace is being deleted: nothing new may appear in it.
    pub deleted: bool,
    /// Whether unencrypted messages are refused.
    pub encryption_required: bool,
    /// `None` or `Prefix`.
    pub subscription_auth_mode: SubscriptionAuthMode,
    /// Bytes beyond which ledgers are offloaded; −1 is off.
    #[serde(deserialize_with = "lenient::int")]
    pub offload_threshold: i64,
    /// Seconds after which ledgers are offloaded; −1 is off.
    #[serde(deserialize_with = "lenient::int")]
    pub offload_threshold_in_seconds: i64,
    /// Which schema changes are accepted.
    pub schema_compatibility_strategy: SchemaCompatibility,
    /// Whether producers without schema are refused on topics with one.
    pub schema_validation_enforced: bool,
    /// Subscription types allowed; empty means all.
    #[serde(deserialize_with = "lenient::or_default")]
    pub subscription_types_enabled: BTreeSet<SubscriptionTypeName>,
    /// Free properties.
    #[serde(deserialize_with = "lenient::or_default")]
    pub properties: BTreeMap<String, String>,
    /// Whether the namespace has moved to another cluster.
    pub migrated: bool,
}

/// Whether subscription names must begin with the role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum SubscriptionAuthMode {
    /// Any name.
    #[default]
    None,
    /// The role is the prefix.
    Prefix,
}

/// A subscription type by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum SubscriptionTypeName {
    /// One consumer.
    Exclusive,
    /// One active consumer.
    Failover,
    /// By key.
    #[serde(rename = "Key_Shared")]
    KeyShared,
    /// Round robin.
    Shared,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            deduplication_enabled: None,
            persistence: None,
            auto_topic_creation: None,
            auto_subscription_creation: None,
            message_ttl_in_seconds: None,
            subscription_expiration_time_minutes: None,
            retention_policies: None,
            delayed_delivery_policies: None,
            inactive_topic_policies: None,
            max_producers_per_topic: None,
            max_consumers_per_topic: None,
            max_consumers_per_subscription: None,
            max_unacked_messages_per_consumer: None,
            max_unacked_messages_per_subscription: None,
            max_subscriptions_per_topic: None,
            compaction_threshold: None,
            offload_policies: None,
            offload_deletion_lag_ms: None,
            max_topics_per_namespace: None,
            is_allow_auto_update_schema: None,
            deduplication_snapshot_interval_seconds: None,
            resource_group_name: None,
            namespace_anti_affinity_group: None,
            dispatcher_pause_on_ack_state_persistent: None,
            auth_policies: AuthPolicies::default(),
            replication_clusters: BTreeSet::new(),
            allowed_clusters: BTreeSet::new(),
            bundles: BundlesData::default(),
            backlog_quota_map: BTreeMap::new(),
            cluster_dispatch_rate: BTreeMap::new(),
            topic_dispatch_rate: BTreeMap::new(),
            subscription_dispatch_rate: BTreeMap::new(),
            replicator_dispatch_rate: BTreeMap::new(),
            cluster_subscribe_rate: BTreeMap::new(),
            publish_max_message_rate: BTreeMap::new(),
            latency_stats_sample_rate: BTreeMap::new(),
            deleted: false,
            encryption_required: false,
            subscription_auth_mode: SubscriptionAuthMode::None,
            offload_threshold: -1,
            offload_threshold_in_seconds: -1,
            schema_compatibility_strategy: SchemaCompatibility::Undefined,
            schema_validation_enforced: false,
            subscription_types_enabled: BTreeSet::new(),
            properties: BTreeMap::new(),
            migrated: false,
        }
    }
}
