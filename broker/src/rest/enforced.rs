//! Which policies this release enforces. Setting any other is refused with 501 instead of being stored and ignored; reading or
//! deleting one is fine, because unset is the truth. **Whoever makes the broker obey a policy adds its path here.**

/// Namespace policies by path.
pub(super) const NAMESPACE: &[&str] = &[
    "autoSubscriptionCreation",
    "autoTopicCreation",
    "backlogQuota",
    "isAllowAutoUpdateSchema",
    "maxConsumersPerSubscription",
    "maxConsumersPerTopic",
    "maxProducersPerTopic",
    "maxSubscriptionsPerTopic",
    "maxTopicsPerNamespace",
    "maxUnackedMessagesPerConsumer",
    "maxUnackedMessagesPerSubscription",
    "messageTTL",
    "offloadDeletionLagMs",
    "offloadPolicies",
    "offloadThreshold",
    "offloadThresholdInSeconds",
    "properties",
    "publishRate",
    "replication",
    "retention",
    "schemaCompatibilityStrategy",
    "schemaValidationEnforced",
];

/// Topic policies by path.
pub(super) const TOPIC: &[&str] = &[
    "backlogQuota",
    "maxConsumers",
    "maxConsumersPerSubscription",
    "maxProducers",
    "maxSubscriptionsPerTopic",
    "maxUnackedMessagesOnConsumer",
    "maxUnackedMessagesOnSubscription",
    "messageTTL",
    "offloadPolicies",
    "publishRate",
    "retention",
    "schemaCompatibilityStrategy",
    "schemaValidationEnforced",
];
