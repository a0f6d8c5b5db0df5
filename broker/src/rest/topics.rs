//! Topics: creation, deletion, stats, single messages, and what one topic is asked to do. Partitions as a whole are in
//! `partitions`, subscriptions in `subscriptions`, policies in `policies`.

use super::api::{ApiError, Place, StatsOptions, Target};
use super::namespaces::{actions, checked_quota, fits_retention, quota_type};
use super::request::{Req, namespace_of, number, topic_of};
use super::response::{Answer, RestError, done, empty, message_id, ok};
use super::stats::{InternalStats, TopicStats};
use super::{Rest, message, namespaces, offload, partitions, policies, subscriptions};
use crate::namespace::{DomainMode, NamespaceError, Policies, TopicRecord};
use axum::http::{Method, StatusCode};
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::names::{BundleRange, Domain, TopicName, topic_hash};
use serde_json::json;

const METHOD: &str = "Method Not Allowed";

pub(super) async fn route(rest: &Rest, req: &Req, domain: Domain, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, [tenant, local]) => {
            let namespace = namespace_of(tenant, local)?;
            let mode =
                if domain == Domain::Persistent { DomainMode::Persistent } else { DomainMode::NonPersistent };
            ok(&namespaces::all_topics(rest, &namespace, mode).await?)
        }
        (&Method::GET, [tenant, local, "partitioned"]) => {
            partitions::list(rest, domain, &namespace_of(tenant, local)?)
        }
        (&Method::GET, [tenant, local, bundle])
            if domain == Domain::NonPersistent && bundle.starts_with("0x") =>
        {
            let namespace = namespace_of(tenant, local)?;
            let range = BundleRange::parse(bundle)
                .map_err(|_| RestError::precondition(format!("Invalid bundle range: {bundle}")))?;
            let mut topics = rest.broker.loaded_topics(&namespace);
            topics.retain(|topic| !topic.is_persistent() && range.contains(topic_hash(topic)));
            ok(&topics)
        }
        (_, [tenant, local, topic, path @ ..]) => {
            let topic = topic_of(domain, namespace_of(tenant, local)?, topic)?;
            one(rest, req, &topic, path).await
        }
        _ => Err(RestError::not_found("Not Found")),
    }
}

async fn one(rest: &Rest, req: &Req, topic: &TopicName, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::PUT, []) => create(rest, req, topic).await,
        (&Method::DELETE, []) => delete(rest, req, topic).await,
        (_, []) => Err(RestError::not_allowed(METHOD)),
        (_, ["partitions"]) => partitions::route(rest, req, topic).await,
        (&Method::POST, ["createMissedPartitions"]) => partitions::create_missed(rest, topic),
        (&Method::GET, ["partitioned-stats"]) => partitions::stats(rest, req, topic).await,
        (&Method::GET, ["partitioned-internalStats"]) => partitions::internal_stats(rest, topic).await,
        (&Method::POST, ["terminate", "partitions"]) => partitions::terminate(rest, topic).await,
        (_, ["properties"]) => properties(rest, req, topic).await,
        (_, ["permissions", role @ ..]) => permissions(rest, req, topic, role).await,
        (_, ["subscriptions"] | ["subscription", ..] | ["all_subscription", ..]) => {
            subscriptions::route(rest, req, topic, path).await
        }
        (&Method::PUT, ["unload"]) => on_each(rest, topic, Each::Unload).await,
        (&Method::DELETE, ["truncate"]) => on_each(rest, topic, Each::Truncate).await,
        (&Method::POST, ["trim"]) => on_each(rest, topic, Each::Trim).await,
        (&Method::GET, ["compaction"]) => {
            known_plain(rest, topic, "Compaction status of").await?;
            ok(&json!({ "status": "NOT_RUN", "lastError": "" }))
        }
        (&Method::PUT, ["compaction"]) => Err(RestError::not_implemented("compaction")),
        (_, ["offload"]) => offload::route(rest, req, topic).await,
        (&Method::GET, ["backlog"]) => Err(RestError::not_implemented("the offline backlog estimate")),
        (&Method::DELETE, ["policies"]) => {
            let clear = |record: &mut TopicRecord| {
                record.policies = Default::default();
                Ok(())
            };
            rest.namespaces.update_topic_record(topic, clear).await?;
            done()
        }
        (_, ["backlogQuota" | "backlogQuotaMap"]) => backlog_quota(rest, req, topic).await,
        (_, [policy]) => match policies::topic(rest, req, topic, policy).await {
            Some(answer) => answer,
            None => single(rest, req, topic, path).await,
        },
        _ => single(rest, req, topic, path).await,
    }
}

/// What is asked of one topic, not of a partitioned one.
async fn single(rest: &Rest, req: &Req, topic: &TopicName, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["stats"]) => {
            not_partitioned_found(rest, topic)?;
            let stats = rest.broker.topic_stats(topic, options(req)).await;
            ok(&or_unused(rest, topic, stats, TopicStats::unused)?)
        }
        (&Method::GET, ["internalStats"]) => {
            not_partitioned_found(rest, topic)?;
            ok(&or_unused(rest, topic, rest.broker.internal_stats(topic).await, InternalStats::default)?)
        }
        (&Method::GET, ["internal-info"]) => {
            not_partitioned_found(rest, topic)?;
            internal_info(&or_unused(
                rest,
                topic,
                rest.broker.internal_stats(topic).await,
                InternalStats::default,
            )?)
        }
        (&Method::POST, ["terminate"]) => {
            plain_only(rest, topic, "Termination of a partitioned topic is not allowed")?;
            ok(&message_id(rest.broker.terminate_topic(topic).await?))
        }
        (&Method::GET, ["lastMessageId"]) => {
            not_partitioned_found(rest, topic)?;
            ok(&message_id(or_unused(rest, topic, rest.broker.last_message_id(topic).await, Place::default)?))
        }
        (&Method::GET, ["messageid", at]) => {
            let since: i64 = number(at)?;
            plain_only(
                rest,
                topic,
                "Get message ID by timestamp on a partitioned topic is not allowed, please try do it on specific topic partition",
            )?;
            ok(&message_id(rest.broker.find_by_time(topic, u64::try_from(since).unwrap_or(0)).await?))
        }
        (&Method::GET, ["getMessageIdByIndex"]) => {
            Err(RestError::not_implemented("message ids by index over REST"))
        }
        (&Method::PUT, ["backlogSize"]) => {
            plain_only(rest, topic, "Get backlog size on a partitioned topic is not allowed")?;
            let from = match req.target()? {
                Some((Target::At { position, .. }, _)) => Place::from(position),
                Some((Target::Earliest, _)) => Place::default(),
                _ => return Err(RestError::bad("the body is not a message id")),
            };
            ok(&rest.broker.backlog_bytes_from(topic, from).await?)
        }
        (&Method::GET, ["examinemessage"]) => {
            plain_only(rest, topic, "Examine messages on a partitioned topic is not allowed")?;
            let from_start = req.query("initialPosition") == Some("earliest");
            let nth = req.query("messagePosition").map_or(Ok(1), number::<i64>)?;
            match rest.broker.examine(topic, from_start, u64::try_from(nth).unwrap_or(1).max(1)).await? {
                Some(entry) => message::show(&entry),
                None => Err(RestError::precondition(
                    "Could not examine messages due to the total message is zero",
                )),
            }
        }
        (&Method::GET, ["ledger", ledger, "entry", entry]) => {
            plain_only(rest, topic, "GetMessageById is not allowed on partitioned-topic")?;
            let at = Position::new(LedgerId(number(ledger)?), EntryId(number(entry)?));
            message::show(&rest.broker.read_entry(topic, at).await?)
        }
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// A stored topic that has never been used has no figures yet; a partition is one as soon as its parent counts it.
pub(super) fn or_unused<T>(
    rest: &Rest,
    topic: &TopicName,
    answer: Result<T, ApiError>,
    unused: impl FnOnce() -> T,
) -> Result<T, RestError> {
    match answer {
        Err(ApiError::TopicNotFound(_)) if is_partition(rest, topic) => Ok(unused()),
        other => Ok(other?),
    }
}

/// Whether the name is that of a partition its parent counts.
pub(super) fn is_partition(rest: &Rest, topic: &TopicName) -> bool {
    let count = rest.namespaces.partition_count(topic);
    topic.partition_index().zip(count).is_some_and(|(index, count)| index < count)
}

/// The partition count of a partitioned topic's own name.
pub(super) fn partitions_of(rest: &Rest, topic: &TopicName) -> Option<u32> {
    rest.namespaces.partitioned(topic).map(|record| record.partitions)
}

/// Refuses a partitioned topic with 405, as Pulsar does for these operations.
pub(super) fn plain_only(rest: &Rest, topic: &TopicName, refusal: &str) -> Result<(), RestError> {
    match partitions_of(rest, topic) {
        Some(_) => Err(RestError::not_allowed(refusal)),
        None => Ok(()),
    }
}

/// A partitioned topic's own name is no topic: 404, as Pulsar says.
fn not_partitioned_found(rest: &Rest, topic: &TopicName) -> Result<(), RestError> {
    match partitions_of(rest, topic) {
        Some(_) => Err(not_found(topic)),
        None => Ok(()),
    }
}

pub(super) fn not_found(topic: &TopicName) -> RestError {
    RestError::not_found(format!("Topic {topic} not found"))
}

async fn known_plain(rest: &Rest, topic: &TopicName, what: &str) -> Result<(), RestError> {
    plain_only(rest, topic, &format!("{what} a partitioned topic is not allowed"))?;
    Ok(rest.namespaces.check_known(topic).await?)
}

pub(super) fn options(req: &Req) -> StatsOptions {
    StatsOptions {
        precise_backlog: req.flag("getPreciseBacklog"),
        subscription_backlog_size: req.flag_or("subscriptionBacklogSize", true),
        earliest_time_in_backlog: req.flag("getEarliestTimeInBacklog"),
    }
}

async fn create(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    let properties = req.properties()?;
    let local = topic.local();
    match (topic.partition_index(), rest.namespaces.partition_count(topic)) {
        (None, Some(_)) => return Err(NamespaceError::TopicExists(topic.clone()).into()),
        (Some(_), None) => {
            return Err(RestError::precondition(format!(
                "Can't create topic {local} with \"-partition-\" followed by numeric value if there isn't a partitioned \
                 topic {} created.",
                topic.base_local()
            )));
        }
        (Some(index), Some(count)) if index >= count => {
            return Err(RestError::precondition(format!(
                "Can't create topic {local} with \"-partition-\" followed by a number smaller than number of partition of \
                 partitioned topic {}",
                topic.base_local()
            )));
        }
        (Some(_), Some(_)) => return Err(NamespaceError::TopicExists(topic.clone()).into()),
        (None, None) => {}
    }
    match rest.namespaces.room_for(topic.namespace(), 1).await {
        // A plain topic too many is 409, a partitioned one 412. The room is looked for again where it is taken.
        Err(error @ NamespaceError::TooManyTopics(_)) => return Err(RestError::conflict(error.to_string())),
        other => drop(other?),
    }
    match rest.broker.create_topic(topic).await {
        Err(ApiError::Exists(_)) => return Err(NamespaceError::TopicExists(topic.clone()).into()),
        other => other?,
    }
    if !properties.is_empty() {
        let set = |record: &mut TopicRecord| {
            record.properties = properties.clone();
            Ok(())
        };
        rest.namespaces.update_topic_record(topic, set).await?;
    }
    done()
}

async fn delete(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    if partitions_of(rest, topic).is_some() {
        return Err(RestError::conflict(format!(
            "{topic} is a partitioned topic, instead of calling delete topic, please call delete-partitioned-topic."
        )));
    }
    let deleted = rest.broker.delete_topic(topic, req.flag("force")).await;
    or_unused(rest, topic, deleted, || ())?;
    if topic.partition_index().is_none() {
        forget(rest, req, topic).await?;
    }
    done()
}

/// What a topic leaves behind goes with it: its policies and properties, and its schemas when asked.
pub(super) async fn forget(rest: &Rest, req: &Req, topic: &TopicName) -> Result<(), RestError> {
    rest.namespaces.delete_topic_record(topic).await?;
    if req.flag("deleteSchema") {
        rest.schemas.delete(topic).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Each {
    Unload,
    Truncate,
    Trim,
}

/// Does something on a topic, or on every partition of a partitioned one.
async fn on_each(rest: &Rest, topic: &TopicName, what: Each) -> Answer {
    let targets = match partitions_of(rest, topic) {
        Some(count) => (0..count).map(|index| topic.partition(index)).collect(),
        None => vec![topic.clone()],
    };
    for target in &targets {
        let outcome = match what {
            Each::Unload => rest.broker.unload_topic(target).await,
            Each::Truncate => rest.broker.truncate_topic(target).await,
            Each::Trim => rest.broker.trim_topic(target).await,
        };
        or_unused(rest, target, outcome, || ())?;
    }
    if matches!(what, Each::Trim) { empty(StatusCode::OK) } else { done() }
}

fn internal_info(stats: &InternalStats) -> Answer {
    let ledgers: Vec<_> = stats
        .ledgers
        .iter()
        .map(|l| json!({ "ledgerId": l.ledger_id, "entries": l.entries, "size": l.size, "isOffloaded": l.offloaded }))
        .collect();
    let cursor = |text: &str| {
        let (ledger, entry) = text.split_once(':').unwrap_or(("-1", "-1"));
        json!({ "ledgerId": ledger.parse::<i64>().unwrap_or(-1), "entryId": entry.parse::<i64>().unwrap_or(-1) })
    };
    let cursors: serde_json::Map<String, serde_json::Value> = stats
        .cursors
        .iter()
        .map(|(name, c)| {
            let shown =
                json!({ "cursorsLedgerId": c.cursor_ledger, "markDelete": cursor(&c.mark_delete_position) });
            (name.clone(), shown)
        })
        .collect();
    ok(&json!({ "version": 1, "ledgers": ledgers, "cursors": cursors }))
}

async fn properties(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    let partitioned = rest.namespaces.partitioned(topic);
    if partitioned.is_none() {
        rest.namespaces.check_known(topic).await?;
    }
    let key = req.query("key").unwrap_or("").to_owned();
    let more = if req.method == Method::PUT { req.properties()? } else { Default::default() };
    match req.method {
        Method::GET => match &partitioned {
            Some(record) => ok(&record.properties),
            None => {
                ok(&rest.namespaces.topic_record(topic).map(|r| r.properties.clone()).unwrap_or_default())
            }
        },
        Method::PUT | Method::DELETE => {
            let change = |map: &mut std::collections::BTreeMap<String, String>| {
                map.extend(more.clone());
                map.remove(&key).filter(|_| !key.is_empty());
            };
            if partitioned.is_some() {
                rest.namespaces.change_partitioned_properties(topic, change).await?;
            } else {
                let change = |record: &mut TopicRecord| {
                    change(&mut record.properties);
                    Ok(())
                };
                rest.namespaces.update_topic_record(topic, change).await?;
            }
            done()
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

async fn permissions(rest: &Rest, req: &Req, topic: &TopicName, path: &[&str]) -> Answer {
    let policies = rest.namespaces.live_policies(topic.namespace())?;
    let name = topic.to_string();
    match (&req.method, path) {
        (&Method::GET, []) => {
            let mut grants = policies.auth_policies.namespace_auth.clone();
            for (role, actions) in policies.auth_policies.destination_auth.get(&name).into_iter().flatten() {
                grants.entry(role.clone()).or_default().extend(actions);
            }
            ok(&grants)
        }
        (&Method::POST | &Method::DELETE, [role]) => {
            let actions = if req.method == Method::POST { Some(actions(req)?) } else { None };
            let change = |policies: &mut Policies| {
                let topics = &mut policies.auth_policies.destination_auth;
                let roles = topics.entry(name.clone()).or_default();
                match &actions {
                    Some(actions) => drop(roles.insert((*role).to_owned(), actions.clone())),
                    None => drop(roles.remove(*role)),
                }
                if roles.is_empty() {
                    topics.remove(&name);
                }
                Ok(())
            };
            rest.namespaces.update_policies(topic.namespace(), change).await?;
            done()
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

async fn backlog_quota(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    if topic.partition_index().is_some() {
        return Err(RestError::precondition("Not allowed to set/get topic policy for a partition"));
    }
    let policies = rest.namespaces.live_policies(topic.namespace())?;
    rest.namespaces.check_known(topic).await?;
    if req.method == Method::GET {
        let own = rest
            .namespaces
            .topic_record(topic)
            .map(|r| r.policies.backlog_quotas.clone())
            .unwrap_or_default();
        let inherit = own.is_empty() && req.flag("applied");
        return ok(if inherit { &policies.backlog_quota_map } else { &own });
    }
    let kind = quota_type(req)?;
    let quota = match req.method {
        Method::POST => checked_quota(req, &format!("topic[{topic}]"))?,
        Method::DELETE => None,
        _ => return Err(RestError::not_allowed(METHOD)),
    };
    let change = |record: &mut TopicRecord| {
        match &quota {
            Some(quota) => {
                fits_retention(quota, record.policies.retention.or(policies.retention_policies))?;
                record.policies.backlog_quotas.insert(kind, quota.clone());
            }
            None => drop(record.policies.backlog_quotas.remove(&kind)),
        }
        Ok(())
    };
    rest.namespaces.update_topic_record(topic, change).await?;
    done()
}
