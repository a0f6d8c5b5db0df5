//! The policy tables: path → field of the stored record, check, answer when unset. Values are set by writing the JSON field
//! and reading the record back, so that every number form Pulsar accepts is accepted here by one rule.

use super::offload::NO_STORE;
use super::request::Req;
use super::response::{Answer, RestError, done, ok, unset};
use super::{Rest, enforced};
use crate::namespace::{NamespaceError, Policies, TopicPolicies, TopicType, lenient};
use axum::http::Method;
use geminga_common::names::{NamespaceName, TopicName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// What a new value must satisfy.
#[derive(Clone, Copy)]
enum Check {
    Any,
    /// A number not below 0; the name as Pulsar's message spells it.
    NotNegative(&'static str),
    /// A number, -1 (off) or above. Pulsar takes everything below 0 for off.
    OffOrMore(&'static str),
    /// Fields that are each a threshold or a time.
    Offload,
    Ttl,
    Retention,
    Persistence,
    AutoTopicCreation,
}

struct Row {
    path: &'static str,
    field: &'static str,
    check: Check,
    /// The value is kept per cluster.
    per_cluster: bool,
    /// Set by PUT instead of POST.
    put: bool,
    deletable: bool,
}

const fn row(path: &'static str, field: &'static str, check: Check) -> Row {
    Row { path, field, check, per_cluster: false, put: false, deletable: true }
}

const fn rate(path: &'static str, field: &'static str) -> Row {
    Row { path, field, check: Check::Any, per_cluster: true, put: false, deletable: true }
}

const fn fixed(path: &'static str, field: &'static str, put: bool) -> Row {
    Row { path, field, check: Check::Any, per_cluster: false, put, deletable: false }
}

const NAMESPACE: &[Row] = &[
    row("messageTTL", "message_ttl_in_seconds", Check::Ttl),
    row("retention", "retention_policies", Check::Retention),
    row("persistence", "persistence", Check::Persistence),
    row("deduplication", "deduplicationEnabled", Check::Any),
    fixed("deduplicationSnapshotInterval", "deduplicationSnapshotIntervalSeconds", false),
    row("autoTopicCreation", "autoTopicCreationOverride", Check::AutoTopicCreation),
    row("autoSubscriptionCreation", "autoSubscriptionCreationOverride", Check::Any),
    rate("publishRate", "publishMaxMessageRate"),
    rate("dispatchRate", "topicDispatchRate"),
    rate("subscriptionDispatchRate", "subscriptionDispatchRate"),
    rate("replicatorDispatchRate", "replicatorDispatchRate"),
    rate("subscribeRate", "clusterSubscribeRate"),
    row("delayedDelivery", "delayed_delivery_policies", Check::Any),
    row("inactiveTopicPolicies", "inactive_topic_policies", Check::Any),
    row("maxProducersPerTopic", "max_producers_per_topic", Check::NotNegative("maxProducersPerTopic")),
    row("maxConsumersPerTopic", "max_consumers_per_topic", Check::NotNegative("maxConsumersPerTopic")),
    row(
        "maxSubscriptionsPerTopic",
        "max_subscriptions_per_topic",
        Check::NotNegative("maxSubscriptionsPerTopic"),
    ),
    row(
        "maxConsumersPerSubscription",
        "max_consumers_per_subscription",
        Check::NotNegative("maxConsumersPerSubscription"),
    ),
    row(
        "maxUnackedMessagesPerConsumer",
        "max_unacked_messages_per_consumer",
        Check::NotNegative("maxUnackedMessagesPerConsumer"),
    ),
    row(
        "maxUnackedMessagesPerSubscription",
        "max_unacked_messages_per_subscription",
        Check::NotNegative("maxUnackedMessagesPerSubscription"),
    ),
    row("maxTopicsPerNamespace", "max_topics_per_namespace", Check::NotNegative("maxTopicsPerNamespace")),
    row(
        "subscriptionExpirationTime",
        "subscription_expiration_time_minutes",
        Check::NotNegative("subscriptionExpirationTime"),
    ),
    Row {
        put: true,
        ..row("compactionThreshold", "compaction_threshold", Check::NotNegative("compactionThreshold"))
    },
    Row {
        check: Check::OffOrMore("offloadThreshold"),
        ..fixed("offloadThreshold", "offload_threshold", true)
    },
    Row {
        check: Check::OffOrMore("offloadThresholdInSeconds"),
        ..fixed("offloadThresholdInSeconds", "offload_threshold_in_seconds", true)
    },
    fixed("schemaCompatibilityStrategy", "schema_compatibility_strategy", true),
    fixed("schemaValidationEnforced", "schema_validation_enforced", false),
    fixed("isAllowAutoUpdateSchema", "is_allow_auto_update_schema", false),
    row("subscriptionTypesEnabled", "subscription_types_enabled", Check::Any),
    fixed("subscriptionAuthMode", "subscription_auth_mode", false),
    fixed("encryptionRequired", "encryption_required", false),
    row("antiAffinity", "namespaceAntiAffinityGroup", Check::Any),
    row("resourcegroup", "resource_group_name", Check::Any),
    row("dispatcherPauseOnAckStatePersistent", "dispatcherPauseOnAckStatePersistentEnabled", Check::Any),
    fixed("allowedClusters", "allowed_clusters", false),
    row("offloadPolicies", "offload_policies", Check::Offload),
    row("entryFilters", "entryFilters", Check::Any),
    Row {
        put: true,
        ..row("offloadDeletionLagMs", "offload_deletion_lag_ms", Check::NotNegative("offloadDeletionLagMs"))
    },
    row("allowedTopicPropertyKeysForMetrics", "allowed_topic_property_keys_for_metrics", Check::Any),
];

const TOPIC: &[Row] = &[
    row("messageTTL", "message_ttl_seconds", Check::Ttl),
    row("retention", "retention", Check::Retention),
    row("persistence", "persistence", Check::Persistence),
    row("deduplicationEnabled", "deduplication", Check::Any),
    row("delayedDelivery", "delayed_delivery", Check::Any),
    row("inactiveTopicPolicies", "inactive", Check::Any),
    row("maxProducers", "max_producers", Check::NotNegative("maxProducers")),
    row("maxConsumers", "max_consumers", Check::NotNegative("maxConsumers")),
    row("maxMessageSize", "max_message_size", Check::NotNegative("maxMessageSize")),
    row(
        "maxConsumersPerSubscription",
        "max_consumers_per_subscription",
        Check::NotNegative("maxConsumersPerSubscription"),
    ),
    row("maxSubscriptionsPerTopic", "max_subscriptions", Check::NotNegative("maxSubscriptionsPerTopic")),
    row("maxUnackedMessagesOnConsumer", "max_unacked_on_consumer", Check::NotNegative("maxUnackedNum")),
    row(
        "maxUnackedMessagesOnSubscription",
        "max_unacked_on_subscription",
        Check::NotNegative("maxUnackedNum"),
    ),
    row("publishRate", "publish_rate", Check::Any),
    row("dispatchRate", "dispatch_rate", Check::Any),
    row("subscriptionDispatchRate", "subscription_dispatch_rate", Check::Any),
    row("subscribeRate", "subscribe_rate", Check::Any),
    row("compactionThreshold", "compaction_threshold", Check::NotNegative("compactionThreshold")),
    row("subscriptionTypesEnabled", "subscription_types", Check::Any),
    Row { put: true, ..row("schemaCompatibilityStrategy", "schema_compatibility", Check::Any) },
    row("schemaValidationEnforced", "schema_validation_enforced", Check::Any),
    row("autoSubscriptionCreation", "auto_subscription_creation", Check::Any),
    // Known paths without anything behind them yet: unset to read, refused to set.
    row("deduplicationSnapshotInterval", "", Check::Any),
    row("replicatorDispatchRate", "", Check::Any),
    row("replication", "", Check::Any),
    row("offloadPolicies", "offload", Check::Offload),
    row("subscriptionExpirationTime", "", Check::Any),
    row("entryFilters", "", Check::Any),
    row("shadowTopics", "", Check::Any),
    row("dispatcherPauseOnAckStatePersistent", "", Check::Any),
];

fn find(table: &'static [Row], path: &str) -> Option<&'static Row> {
    table.iter().find(|row| row.path == path)
}

fn object(record: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Writes a field and reads the record back.
fn with_field<T: Serialize + DeserializeOwned>(
    record: &T,
    field: &str,
    value: Option<Value>,
) -> Result<T, serde_json::Error> {
    let mut map = object(record);
    match value {
        Some(value) => map.insert(field.to_owned(), value),
        None => map.remove(field),
    };
    serde_json::from_value(Value::Object(map))
}

fn check(rule: Check, value: &Value) -> Result<(), RestError> {
    let number = |value: &Value| {
        lenient::integer(value).ok_or_else(|| RestError::bad(format!("{value} is not a whole number")))
    };
    let field = |name: &str| value.get(name).map_or(Ok(0), number);
    match rule {
        Check::Any => Ok(()),
        Check::NotNegative(name) if number(value)? < 0 => {
            Err(RestError::precondition(format!("{name} must be 0 or more")))
        }
        Check::Ttl if number(value)? < 0 => {
            Err(RestError::precondition("Invalid value for message TTL, message TTL must >= 0"))
        }
        Check::OffOrMore(name) if number(value)? < -1 => {
            Err(RestError::precondition(format!("{name} must be -1 (off), 0 or more")))
        }
        Check::NotNegative(_) | Check::OffOrMore(_) | Check::Ttl => Ok(()),
        Check::Offload => check_offload(value),
        Check::Retention => {
            let (time, size) = (field("retentionTimeInMinutes")?, field("retentionSizeInMB")?);
            if time < -1 || size < -1 {
                let what = if time < -1 { "time" } else { "size" };
                return Err(RestError::bad(format!("Invalid retention policy: {what} limit must be >= -1")));
            }
            if (time == 0) != (size == 0) {
                return Err(RestError::bad(
                    "Invalid retention policy: Setting a single time or size limit to 0 is invalid when one of the limits \
                     has a non-zero value. Use the value of -1 instead of 0 to ignore a specific limit. To disable \
                     retention both limits must be set to 0.",
                ));
            }
            Ok(())
        }
        Check::Persistence => {
            let (e, w, a) = (
                field("bookkeeperEnsemble")?,
                field("bookkeeperWriteQuorum")?,
                field("bookkeeperAckQuorum")?,
            );
            if e >= w && w >= a && a > 0 {
                return Ok(());
            }
            Err(RestError::bad(format!("Bookkeeper Ensemble ({e}) >= WriteQuorum ({w}) >= AckQuorum ({a})")))
        }
        Check::AutoTopicCreation => check_auto_topic_creation(value),
    }
}

/// The fields of offload policies that are numbers; what else there is, is looked at by [`needs_store`].
fn check_offload(value: &Value) -> Result<(), RestError> {
    let rules = [
        ("managedLedgerOffloadThresholdInBytes", Check::OffOrMore("managedLedgerOffloadThresholdInBytes")),
        (
            "managedLedgerOffloadThresholdInSeconds",
            Check::OffOrMore("managedLedgerOffloadThresholdInSeconds"),
        ),
        (
            "managedLedgerOffloadDeletionLagInMillis",
            Check::NotNegative("managedLedgerOffloadDeletionLagInMillis"),
        ),
    ];
    let given = |name: &str| value.get(name).filter(|value| !value.is_null());
    rules.iter().try_for_each(|(name, rule)| given(name).map_or(Ok(()), |value| check(*rule, value)))
}

fn check_auto_topic_creation(value: &Value) -> Result<(), RestError> {
    let wrong = |detail: String| {
        RestError::precondition(format!(
            "Invalid configuration for autoTopicCreationOverride. the detail is {detail}"
        ))
    };
    let allowed = value.get("allowAutoTopicCreation").and_then(lenient::boolean).unwrap_or(false);
    let kind = value.get("topicType").filter(|kind| !kind.is_null());
    let count =
        value.get("defaultNumPartitions").and_then(|n| if n.is_null() { None } else { lenient::integer(n) });
    let parsed = match kind {
        None if allowed => {
            return Err(wrong("[topicType] cannot be null when auto topic creation is enabled.".into()));
        }
        None => None,
        Some(kind) => {
            let text = kind.as_str().unwrap_or_default();
            let parsed: Result<TopicType, _> = serde_json::from_value(kind.clone());
            Some(parsed.map_err(|_| wrong(format!("Unknown topic type [{text}]")))?)
        }
    };
    match (parsed, count) {
        (Some(TopicType::Partitioned), None) => {
            Err(wrong("[defaultNumPartitions] cannot be null when the type is partitioned.".into()))
        }
        (Some(TopicType::Partitioned), Some(n)) if n <= 0 => {
            Err(wrong("[defaultNumPartitions] cannot be less than 1 for partition type.".into()))
        }
        (Some(TopicType::NonPartitioned), Some(_)) => Err(wrong(
            "[defaultNumPartitions] is not allowed to be set when the type is non-partition.".into(),
        )),
        _ => Ok(()),
    }
}

/// Refuses a value whose form the policy does not have.
fn fits(policies: &Policies, row: &Row, value: &Value) -> Result<(), RestError> {
    if row.per_cluster {
        return Ok(());
    }
    let changed = with_field::<Policies>(policies, row.field, Some(value.clone()));
    changed.map(drop).map_err(|error| RestError::bad(error.to_string()))
}

/// Whether a value says what holds anyway for a policy that is not enforced: off.
fn is_off(row: &Row, value: &Value) -> bool {
    match row.check {
        Check::NotNegative(_) => lenient::integer(value) == Some(0),
        _ => match value {
            Value::Bool(on) => !on,
            Value::Number(n) => n.as_f64().is_some_and(|n| n < 0.0),
            _ => false,
        },
    }
}

fn refuse_unenforced(list: &[&str], row: &Row, value: &Value) -> Result<(), RestError> {
    if list.contains(&row.path) || is_off(row, value) {
        return Ok(());
    }
    Err(RestError::not_implemented(format!(
        "policy {} is not enforced, so it is not stored either; setting it",
        row.path
    )))
}

/// Offloading is enforced where there is an object store.
fn needs_store(rest: &Rest, row: &Row, value: &Value) -> Result<(), RestError> {
    if !row.path.starts_with("offload") || is_off(row, value) {
        return Ok(());
    }
    let driver = rest.broker.offload_driver().ok_or_else(|| RestError::not_implemented(NO_STORE))?;
    let Value::Object(fields) = value else { return Ok(()) };
    let obeyed = |name: &str, value: &Value| match name {
        "managedLedgerOffloadDriver" => {
            value.as_str().is_some_and(|asked| asked.eq_ignore_ascii_case(driver))
        }
        "managedLedgerOffloadThresholdInBytes"
        | "managedLedgerOffloadThresholdInSeconds"
        | "managedLedgerOffloadDeletionLagInMillis" => true,
        _ => false,
    };
    match fields.iter().find(|(name, value)| !value.is_null() && !obeyed(name, value)) {
        Some((name, _)) => Err(RestError::not_implemented(format!(
            "{name} is the broker's configuration here (driver {driver}); setting it"
        ))),
        None => Ok(()),
    }
}

/// A policy of a namespace. `None` when the path is no policy.
pub(super) async fn namespace(rest: &Rest, req: &Req, name: &NamespaceName, path: &str) -> Option<Answer> {
    let row = find(NAMESPACE, path)?;
    Some(namespace_row(rest, req, name, row).await)
}

async fn namespace_row(rest: &Rest, req: &Req, name: &NamespaceName, row: &'static Row) -> Answer {
    let policies =
        rest.namespaces.policies(name).ok_or_else(|| RestError::not_found("Namespace does not exist"))?;
    let cluster = rest.namespaces.defaults().cluster.clone();
    let value = match req.method {
        Method::GET => {
            let field = object(&*policies).remove(row.field);
            let field =
                if row.per_cluster { field.and_then(|map| map.get(&cluster).cloned()) } else { field };
            return match (field, row.path) {
                (Some(value), _) => ok(&value),
                (None, "maxTopicsPerNamespace") => ok(&0),
                (None, "isAllowAutoUpdateSchema") => ok(&true),
                (None, "dispatcherPauseOnAckStatePersistent") => ok(&false),
                (None, _) => unset(),
            };
        }
        Method::DELETE if row.deletable => None,
        Method::POST if !row.put => Some(req.json_required()?),
        Method::PUT if row.put => Some(req.json_required()?),
        _ => return Err(RestError::not_allowed("Method Not Allowed")),
    };
    // Setting null removes, as in Pulsar.
    let value = value.filter(|value| !value.is_null());
    if let Some(value) = &value {
        needs_store(rest, row, value)?;
        if !enforced::NAMESPACE.contains(&row.path) {
            fits(&policies, row, value)?;
            refuse_unenforced(enforced::NAMESPACE, row, value)?;
        }
        check(row.check, value)?;
    }
    set_field(
        rest,
        name,
        row,
        value.map(|value| if row.per_cluster { json!({ cluster: value }) } else { value }),
    )
    .await
}

async fn set_field(rest: &Rest, name: &NamespaceName, row: &'static Row, value: Option<Value>) -> Answer {
    let mut wrong = None;
    let outcome = rest.namespaces.update_policies(name, |policies| {
        match with_field(policies, row.field, value.clone()) {
            Ok(changed) => *policies = changed,
            Err(error) => {
                wrong = Some(error.to_string());
                return Err(NamespaceError::Refused("the value does not fit the policy"));
            }
        }
        Ok(())
    });
    let outcome = outcome.await;
    if let Some(wrong) = wrong {
        return Err(RestError::bad(wrong));
    }
    outcome?;
    done()
}

/// A policy of a topic. `None` when the path is no policy.
pub(super) async fn topic(rest: &Rest, req: &Req, topic: &TopicName, path: &str) -> Option<Answer> {
    let row = find(TOPIC, path)?;
    Some(topic_row(rest, req, topic, row).await)
}

async fn topic_row(rest: &Rest, req: &Req, topic: &TopicName, row: &'static Row) -> Answer {
    if topic.partition_index().is_some() {
        return Err(RestError::precondition("Not allowed to set/get topic policy for a partition"));
    }
    rest.namespaces.live_policies(topic.namespace())?;
    rest.namespaces.check_known(topic).await?;
    let record = rest.namespaces.topic_record(topic);
    let value = match req.method {
        Method::GET => {
            let own = record.and_then(|record| object(&record.policies).remove(row.field));
            let inherited = || if req.flag("applied") { applied(rest, topic, row) } else { None };
            return match own.or_else(inherited) {
                Some(Value::Bool(flag)) if row.path == "autoSubscriptionCreation" => {
                    ok(&json!({ "allowAutoSubscriptionCreation": flag }))
                }
                Some(value) => ok(&value),
                None => unset(),
            };
        }
        Method::DELETE => None,
        Method::POST if !row.put => Some(topic_value(req, row)?),
        Method::PUT if row.put => Some(req.json_required()?),
        _ => return Err(RestError::not_allowed("Method Not Allowed")),
    };
    let value = value.filter(|value| !value.is_null());
    if let Some(value) = &value {
        needs_store(rest, row, value)?;
        refuse_unenforced(enforced::TOPIC, row, value)?;
        check(row.check, value)?;
    }
    if req.flag("isGlobal") {
        return Err(RestError::not_implemented(
            "global topic policies (there is no geo-replication); setting one",
        ));
    }
    let mut wrong = None;
    let outcome = rest.namespaces.update_topic_record(topic, |record| {
        match with_field::<TopicPolicies>(&record.policies, row.field, value.clone()) {
            Ok(changed) => record.policies = changed,
            Err(error) => {
                wrong = Some(error.to_string());
                return Err(NamespaceError::Refused("the value does not fit the policy"));
            }
        }
        Ok(())
    });
    let outcome = outcome.await;
    if let Some(wrong) = wrong {
        return Err(RestError::bad(wrong));
    }
    outcome?;
    done()
}

/// The TTL of a topic comes in the query, everything else in the body.
fn topic_value(req: &Req, row: &Row) -> Result<Value, RestError> {
    match req.query("messageTTL") {
        Some(text) if row.path == "messageTTL" => Ok(Value::from(text)),
        _ => req.json_required(),
    }
}

/// What holds for a topic without a policy of its own: the namespace's, else the broker's.
fn applied(rest: &Rest, topic: &TopicName, row: &Row) -> Option<Value> {
    let policies = rest.namespaces.policies(topic.namespace())?;
    let cluster = &rest.namespaces.defaults().cluster;
    let field = |name: &str| object(&*policies).remove(name);
    match row.path {
        "messageTTL" => field("message_ttl_in_seconds").or(Some(json!(0))),
        "retention" => field("retention_policies")
            .or(Some(json!({ "retentionTimeInMinutes": 0, "retentionSizeInMB": 0 }))),
        "maxProducers" => field("max_producers_per_topic").or(Some(json!(0))),
        "maxConsumers" => field("max_consumers_per_topic").or(Some(json!(0))),
        "maxConsumersPerSubscription" => field("max_consumers_per_subscription"),
        "maxSubscriptionsPerTopic" => field("max_subscriptions_per_topic"),
        "maxUnackedMessagesOnConsumer" => field("max_unacked_messages_per_consumer").or(Some(json!(50_000))),
        "maxUnackedMessagesOnSubscription" => {
            field("max_unacked_messages_per_subscription").or(Some(json!(200_000)))
        }
        "publishRate" => field("publishMaxMessageRate")?.get(cluster).cloned(),
        "deduplicationEnabled" => field("deduplicationEnabled").or(Some(json!(false))),
        "schemaCompatibilityStrategy" => {
            field("schema_compatibility_strategy").filter(|s| s != "UNDEFINED").or(Some(json!("FULL")))
        }
        "schemaValidationEnforced" => field("schema_validation_enforced"),
        "autoSubscriptionCreation" => {
            let own =
                policies.auto_subscription_creation.as_ref().map(|own| own.allow_auto_subscription_creation);
            Some(json!(own.unwrap_or(rest.namespaces.defaults().auto_subscription_creation)))
        }
        "replication" => field("replication_clusters"),
        "offloadPolicies" => field("offload_policies"),
        _ => None,
    }
}

/// Fields of a namespace's record that are no policies of the table, and what keeps them from being ignored.
const OTHERS: &[&str] = &[
    "auth_policies", // grants: kept until authorization comes, as Pulsar keeps them while it is off
    "backlog_quota_map", // enforced
    "bundles",       // checked by the caller
    "deleted",       // cleared by the caller
    "properties",    // shown
    "replication_clusters", // checked by the caller
];

/// Refuses a whole set of policies, as given when a namespace is created, if one in it is not enforced.
pub(super) fn check_all(rest: &Rest, policies: &Policies) -> Result<(), RestError> {
    let (given, empty) = (object(policies), object(&Policies::default()));
    for (field, value) in given.iter().filter(|(field, value)| empty.get(*field) != Some(value)) {
        match NAMESPACE.iter().find(|row| row.field == field) {
            Some(row) => {
                needs_store(rest, row, value)?;
                refuse_unenforced(enforced::NAMESPACE, row, value)?;
                if !row.per_cluster {
                    check(row.check, value)?;
                }
            }
            None if OTHERS.contains(&field.as_str()) => {}
            None => {
                return Err(RestError::not_implemented(format!(
                    "{field} is not enforced, so it is not stored either; setting it"
                )));
            }
        }
    }
    Ok(())
}
