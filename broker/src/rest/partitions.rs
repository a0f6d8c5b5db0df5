//! Partitioned topics as a whole.

use super::Rest;
use super::api::{ApiError, Target};
use super::request::{Req, typed};
use super::response::{Answer, RestError, done, message_id, ok};
use super::stats::{InternalStats, TopicStats};
use super::topics::{forget, options, or_unused, partitions_of};
use crate::namespace::{NamespaceError, Partitioned, lenient};
use axum::http::Method;
use geminga_common::names::{Domain, NamespaceName, SubscriptionName, TopicName};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

const MORE_THAN_0: &str = "Number of partitions should be more than 0";

pub(super) fn list(rest: &Rest, domain: Domain, namespace: &NamespaceName) -> Answer {
    rest.namespaces.policies(namespace).ok_or_else(|| RestError::not_found("Namespace does not exist"))?;
    let all = rest.namespaces.partitioned_topics(namespace);
    let of_domain: Vec<TopicName> =
        all.into_iter().map(|(topic, _)| topic).filter(|t| t.domain() == domain).collect();
    ok(&of_domain)
}

pub(super) async fn route(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    match req.method {
        Method::GET => metadata(rest, req, topic).await,
        Method::PUT => create(rest, req, topic).await,
        Method::POST => grow(rest, req, topic).await,
        Method::DELETE => delete(rest, req, topic).await,
        _ => Err(RestError::not_allowed("Method Not Allowed")),
    }
}

/// New partitions get the subscriptions that the others have, as in Pulsar: what is published there before a subscriber looks for
/// new partitions is for it too. A growth that was cut short is completed by asking for the same count again.
async fn grow(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    let wanted = req.integer()?;
    let no_topic = || RestError::conflict(format!("Topic {topic} is not the partitioned topic."));
    rest.namespaces.live_policies(topic.namespace())?;
    let current = partitions_of(rest, topic).ok_or_else(no_topic)?;
    let wanted = u32::try_from(wanted).unwrap_or(0);
    rest.namespaces.grow_partitioned(topic, wanted).await?;
    if topic.is_persistent() {
        // Asked for only now: who subscribed before the count rose is found, who does after it finds the new partitions.
        let subscriptions = subscriptions(rest, topic, current).await.map_err(not_completed)?;
        let lacking = if wanted > current { current..wanted } else { 0..wanted };
        for partition in lacking.map(|index| topic.partition(index)) {
            for (name, properties) in &subscriptions {
                // From the begin: somebody may have published there already.
                let made =
                    rest.broker.create_subscription(&partition, name, Target::Earliest, properties.clone());
                match made.await {
                    Ok(()) | Err(ApiError::Exists(_)) => {}
                    Err(error) => return Err(not_completed(error.into())),
                }
            }
        }
    }
    done()
}

/// The count has risen: sent on to the broker of one partition, the request would come back from there for the next.
fn not_completed(error: RestError) -> RestError {
    if error.elsewhere.is_none() {
        return error;
    }
    RestError::new(
        axum::http::StatusCode::NOT_IMPLEMENTED,
        "this release does not make subscriptions on new partitions of a topic that several brokers serve: the partitions are there; create each subscription on \
         each of them at 'earliest'",
    )
}

/// Durable subscriptions of the first `count` partitions, with their properties.
async fn subscriptions(
    rest: &Rest,
    topic: &TopicName,
    count: u32,
) -> Result<BTreeMap<SubscriptionName, BTreeMap<String, String>>, RestError> {
    let mut all = BTreeMap::new();
    for partition in (0..count).map(|index| topic.partition(index)) {
        let names = rest.broker.subscriptions(&partition).await;
        for name in or_unused(rest, &partition, names, Vec::new)? {
            let wrong = |error: geminga_common::names::NameError| {
                RestError::from(ApiError::Internal(error.to_string()))
            };
            let Entry::Vacant(new) = all.entry(SubscriptionName::parse(&name).map_err(wrong)?) else {
                continue;
            };
            match rest.broker.subscription_properties(&partition, new.key()).await {
                Ok(properties) => drop(new.insert(properties)),
                // Unsubscribed meanwhile.
                Err(ApiError::SubscriptionNotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(all)
}

async fn metadata(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    if let Some(record) = rest.namespaces.partitioned(topic) {
        return ok(&*record);
    }
    let partitions = if req.flag("checkAllowAutoCreation") {
        rest.namespaces.partition_metadata(topic, true).await?
    } else {
        let loaded = !topic.is_persistent() && rest.broker.loaded_topics(topic.namespace()).contains(topic);
        if !loaded {
            rest.namespaces.check_known(topic).await?;
        }
        0
    };
    ok(&Partitioned { partitions, deleted: false, properties: Default::default() })
}

/// The count is a bare number, a quoted one, or, with its own content type, an object with properties.
async fn create(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    let value = req.json_even_as_text()?;
    let (count, properties) = if req.is_partitioned_metadata() && value.is_object() {
        let count = value.get("partitions").and_then(lenient::integer).unwrap_or(0);
        let properties = value.get("properties").filter(|p| !p.is_null()).cloned();
        (count, properties.map(typed).transpose()?.unwrap_or_default())
    } else {
        let wrong = || RestError::bad(format!("{value} is not a whole number"));
        (lenient::integer(&value).ok_or_else(wrong)?, Default::default())
    };
    if topic.partition_index().is_some() {
        return Err(NamespaceError::PartitionOfPartition(topic.clone()).into());
    }
    if count <= 0 {
        return Err(RestError::new(axum::http::StatusCode::NOT_ACCEPTABLE, MORE_THAN_0));
    }
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    if !topic.is_persistent() && rest.broker.loaded_topics(topic.namespace()).contains(topic) {
        return Err(NamespaceError::TopicExists(topic.clone()).into());
    }
    rest.namespaces.create_partitioned(topic, count, properties).await?;
    done()
}

/// Deletes the partitions first and their count last, so that a deletion that was cut short can be asked for again.
async fn delete(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    let Some(count) = partitions_of(rest, topic) else {
        rest.namespaces.live_policies(topic.namespace())?;
        if rest.namespaces.topic_stored(topic).await? {
            return Err(RestError::conflict(format!(
                "{topic} is a non-partitioned topic. Instead of calling delete-partitioned-topic please call delete."
            )));
        }
        return Err(RestError::not_found(format!("Topic {topic} not found.")));
    };
    let force = req.flag("force");
    for index in 0..count {
        let partition = topic.partition(index);
        let deleted = rest.broker.delete_topic(&partition, force).await;
        or_unused(rest, &partition, deleted, || ())?;
    }
    match rest.namespaces.delete_partitioned(topic).await {
        // Somebody else finished the same deletion.
        Err(NamespaceError::NotPartitioned(_)) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    forget(rest, req, topic).await?;
    done()
}

/// Partitions exist by their count alone and come to life with first use, so none is ever missed.
pub(super) fn create_missed(rest: &Rest, topic: &TopicName) -> Answer {
    match partitions_of(rest, topic) {
        Some(_) => done(),
        None => Err(RestError::not_found(format!("Topic {topic} does not exist"))),
    }
}

fn count_of(rest: &Rest, topic: &TopicName) -> Result<u32, RestError> {
    partitions_of(rest, topic)
        .ok_or_else(|| RestError::not_found(format!("Partitioned Topic {topic} not found")))
}

pub(super) async fn stats(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    let count = count_of(rest, topic)?;
    let mut whole = TopicStats { oldest_backlog_message_age_seconds: 0, ..TopicStats::unused() };
    let mut parts = Map::new();
    for index in 0..count {
        let partition = topic.partition(index);
        let answer = rest.broker.topic_stats(&partition, options(req)).await;
        let stats = or_unused(rest, &partition, answer, TopicStats::unused)?;
        whole.add(&stats);
        if req.flag_or("perPartition", true) {
            parts.insert(partition.to_string(), json!(stats));
        }
    }
    let Value::Object(mut shown) = json!(whole) else {
        return Err(RestError::not_found("Not Found"));
    };
    shown.insert("metadata".into(), json!(rest.namespaces.partitioned(topic).as_deref()));
    shown.insert("partitions".into(), Value::Object(parts));
    ok(&shown)
}

pub(super) async fn internal_stats(rest: &Rest, topic: &TopicName) -> Answer {
    let count = count_of(rest, topic)?;
    let mut parts = Map::new();
    for index in 0..count {
        let partition = topic.partition(index);
        let answer = rest.broker.internal_stats(&partition).await;
        let stats = or_unused(rest, &partition, answer, InternalStats::default)?;
        parts.insert(partition.to_string(), json!(stats));
    }
    ok(&json!({ "metadata": rest.namespaces.partitioned(topic).as_deref(), "partitions": parts }))
}

pub(super) async fn terminate(rest: &Rest, topic: &TopicName) -> Answer {
    let Some(count) = partitions_of(rest, topic) else {
        rest.namespaces.check_known(topic).await?;
        return Err(RestError::not_allowed(
            "Termination of a non-partitioned topic is not allowed using partitioned-terminate, please use terminate commands",
        ));
    };
    let mut ends = Map::new();
    for index in 0..count {
        let partition = topic.partition(index);
        ends.insert(index.to_string(), message_id(rest.broker.terminate_topic(&partition).await?));
    }
    ok(&ends)
}
