//! Subscriptions of a topic, and of all partitions of a partitioned one.

use super::api::{ApiError, Target};
use super::request::{Req, number, subscription_of};
use super::response::{Answer, RestError, done, ok};
use super::topics::{is_partition, or_unused, partitions_of, plain_only};
use super::{Rest, message};
use crate::namespace::NamespaceError;
use axum::http::Method;
use geminga_common::names::{SubscriptionName, TopicName};
use serde_json::json;
use std::collections::BTreeSet;

const METHOD: &str = "Method Not Allowed";

pub(super) async fn route(rest: &Rest, req: &Req, topic: &TopicName, path: &[&str]) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    match (&req.method, path) {
        (&Method::GET, ["subscriptions"]) => list(rest, topic).await,
        (&Method::POST, ["all_subscription", "expireMessages", seconds]) => {
            expire_all(rest, topic, number(seconds)?).await
        }
        (_, ["subscription", name, path @ ..]) => one(rest, req, topic, &subscription_of(name)?, path).await,
        (_, ["subscriptions"]) => Err(RestError::not_allowed(METHOD)),
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// The topic, or the partitions of a partitioned one.
fn targets(rest: &Rest, topic: &TopicName) -> Vec<TopicName> {
    match partitions_of(rest, topic) {
        Some(count) => (0..count).map(|index| topic.partition(index)).collect(),
        None => vec![topic.clone()],
    }
}

async fn list(rest: &Rest, topic: &TopicName) -> Answer {
    let mut names = BTreeSet::new();
    for target in targets(rest, topic) {
        let answer = rest.broker.subscriptions(&target).await;
        names.extend(or_unused(rest, &target, answer, Vec::new)?);
    }
    ok(&names)
}

async fn one(rest: &Rest, req: &Req, topic: &TopicName, name: &SubscriptionName, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::PUT, []) => create(rest, req, topic, name).await,
        (&Method::DELETE, []) => delete(rest, req, topic, name).await,
        (&Method::POST, ["skip_all"]) => {
            let mut found = Found::new(topic, name);
            for target in targets(rest, topic) {
                found.take(rest, &target, rest.broker.skip_all(&target, name).await)?;
            }
            found.done()
        }
        (&Method::POST, ["skip", count]) => {
            plain_only(rest, topic, "Skip messages on a partitioned topic is not allowed")?;
            // Below 0 nothing is skipped, beyond 32 bits is another path: both as Pulsar has it.
            let count: i32 = number(count)?;
            found(rest, topic, name, rest.broker.skip(topic, name, u64::try_from(count).unwrap_or(0)).await)?;
            done()
        }
        (&Method::POST, ["expireMessages", seconds]) => expire(rest, topic, name, number(seconds)?).await,
        (&Method::POST, ["expireMessages"]) => {
            plain_only(rest, topic, "Expire message at position is not supported for partitioned-topic")?;
            let Some((Target::At { position, exclusive, .. }, _)) = req.target()? else {
                return Err(RestError::bad("the body is not a message id"));
            };
            found(rest, topic, name, rest.broker.expire_to(topic, name, position, exclusive).await)?;
            done()
        }
        (&Method::POST, ["resetcursor", at]) => {
            let since: i64 = number(at)?;
            let since = Target::Time(u64::try_from(since).unwrap_or(0));
            let mut found = Found::new(topic, name);
            for target in targets(rest, topic) {
                found.take(rest, &target, rest.broker.reset_cursor(&target, name, since.clone()).await)?;
            }
            found.done()
        }
        (&Method::POST, ["resetcursor"]) => {
            plain_only(rest, topic, "Reset-cursor at position is not allowed for partitioned-topic")?;
            let (to, _) =
                req.target()?.ok_or_else(|| RestError::bad("The request entity cannot be empty."))?;
            found(rest, topic, name, rest.broker.reset_cursor(topic, name, to).await)?;
            done()
        }
        (&Method::GET, ["position", nth]) => {
            plain_only(rest, topic, "Peek messages on a partitioned topic is not allowed")?;
            let nth: i64 = number(nth)?;
            let nth = u64::try_from(nth).ok().filter(|n| *n > 0);
            let nth = nth.ok_or_else(|| RestError::precondition("Message positions count from 1"))?;
            match rest.broker.peek(topic, name, nth).await {
                Err(ApiError::MessageNotFound(_)) => Err(RestError::not_found("Message not found")),
                other => message::show(&found(rest, topic, name, other)?),
            }
        }
        (&Method::POST, ["analyzeBacklog"]) => analyze(rest, topic, name).await,
        (&Method::GET | &Method::PUT, ["properties"]) => properties(rest, req, topic, name).await,
        (_, ["replicatedSubscriptionStatus"]) => Err(RestError::not_implemented("replicated subscriptions")),
        (_, []) => Err(RestError::not_allowed(METHOD)),
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// Whether an operation over several partitions found the subscription on any.
struct Found<'a> {
    topic: &'a TopicName,
    name: &'a SubscriptionName,
    any: bool,
}

impl<'a> Found<'a> {
    fn new(topic: &'a TopicName, name: &'a SubscriptionName) -> Self {
        Self { topic, name, any: false }
    }

    fn take(
        &mut self,
        rest: &Rest,
        target: &TopicName,
        answer: Result<(), ApiError>,
    ) -> Result<(), RestError> {
        match answer {
            Ok(()) => self.any = true,
            Err(ApiError::SubscriptionNotFound { .. }) => {}
            Err(ApiError::TopicNotFound(_)) if is_partition(rest, target) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn done(self) -> Answer {
        if self.any { done() } else { Err(missing(self.topic, self.name)) }
    }
}

fn missing(topic: &TopicName, name: &SubscriptionName) -> RestError {
    ApiError::SubscriptionNotFound { topic: topic.clone(), subscription: name.clone() }.into()
}

/// On a partition that was never used no subscription is found, rather than no topic.
fn found<T>(
    rest: &Rest,
    topic: &TopicName,
    name: &SubscriptionName,
    answer: Result<T, ApiError>,
) -> Result<T, RestError> {
    match answer {
        Err(ApiError::TopicNotFound(_)) if is_partition(rest, topic) => Err(missing(topic, name)),
        other => Ok(other?),
    }
}

/// Creates the subscription, and the topic with it where first use may; there on some partitions already, it is completed.
async fn create(rest: &Rest, req: &Req, topic: &TopicName, name: &SubscriptionName) -> Answer {
    let (at, properties) = req.target()?.unwrap_or((Target::Latest, Default::default()));
    if req.flag("replicated") {
        return Err(RestError::not_implemented("replicated subscriptions"));
    }
    let partitioned = partitions_of(rest, topic).is_some();
    if !partitioned {
        match rest.namespaces.check_load(topic) {
            Err(NamespaceError::Resolve(_)) => {
                return Err(RestError::precondition("Topic does not exist and cannot be auto-created"));
            }
            other => other?,
        }
        let rule = rest.namespaces.auto_creation(topic.namespace())?;
        if !rule.allowed {
            rest.namespaces.check_known(topic).await?;
        }
    }
    let (mut made, mut there) = (false, false);
    for target in targets(rest, topic) {
        match rest.broker.create_subscription(&target, name, at.clone(), properties.clone()).await {
            Ok(()) => made = true,
            Err(ApiError::Exists(_)) => there = true,
            Err(error) => return Err(error.into()),
        }
    }
    if there && !made {
        return Err(RestError::conflict("Subscription already exists for topic"));
    }
    done()
}

async fn delete(rest: &Rest, req: &Req, topic: &TopicName, name: &SubscriptionName) -> Answer {
    let mut found = Found::new(topic, name);
    for target in targets(rest, topic) {
        let answer = rest.broker.delete_subscription(&target, name, req.flag("force")).await;
        found.take(rest, &target, answer)?;
    }
    found.done()
}

async fn expire(rest: &Rest, topic: &TopicName, name: &SubscriptionName, seconds: i64) -> Answer {
    let seconds =
        u64::try_from(seconds).map_err(|_| RestError::precondition("Expire time must not be negative"))?;
    let mut found = Found::new(topic, name);
    let mut idle = None;
    for target in targets(rest, topic) {
        match rest.broker.expire_by_age(&target, name, seconds).await {
            Err(ApiError::NothingToDo(_)) => {
                found.any = true;
                idle = Some(target);
            }
            other => found.take(rest, &target, other)?,
        }
    }
    match idle {
        Some(target) => Err(not_issued(&target, name)),
        None => found.done(),
    }
}

fn not_issued(topic: &TopicName, name: &SubscriptionName) -> RestError {
    RestError::conflict(format!(
        "Expire message by timestamp not issued on topic {topic} for subscription {name} due to ongoing message expiration not \
         finished or subscription almost catch  up. If it's performed on a partitioned topic operation might succeeded on \
         other partitions, please check stats of individual partition."
    ))
}

async fn expire_all(rest: &Rest, topic: &TopicName, seconds: i64) -> Answer {
    let seconds =
        u64::try_from(seconds).map_err(|_| RestError::precondition("Expire time must not be negative"))?;
    let mut idle = None;
    for target in targets(rest, topic) {
        let names = or_unused(rest, &target, rest.broker.subscriptions(&target).await, Vec::new)?;
        for name in names.iter().filter_map(|text| SubscriptionName::parse(text).ok()) {
            match rest.broker.expire_by_age(&target, &name, seconds).await {
                Err(ApiError::NothingToDo(_)) => idle = Some(not_issued(&target, &name)),
                other => other?,
            }
        }
    }
    match idle {
        Some(error) => Err(error),
        None => done(),
    }
}

async fn analyze(rest: &Rest, topic: &TopicName, name: &SubscriptionName) -> Answer {
    plain_only(rest, topic, "Analyze backlog on a partitioned topic is not allowed")?;
    let scan = found(rest, topic, name, rest.broker.analyze_backlog(topic, name).await)?;
    let mut shown = json!({
        "entries": scan.entries,
        "messages": scan.messages,
        "markerMessages": scan.markers,
        "filterRejectedEntries": 0,
        "filterAcceptedEntries": scan.entries,
        "filterRescheduledEntries": 0,
        "filterRejectedMessages": 0,
        "filterAcceptedMessages": scan.messages,
        "filterRescheduledMessages": 0,
        "aborted": scan.aborted,
    });
    if let Some((first, last)) = scan.span {
        shown["firstMessageId"] = json!(first.to_string());
        shown["lastMessageId"] = json!(last.to_string());
    }
    ok(&shown)
}

async fn properties(rest: &Rest, req: &Req, topic: &TopicName, name: &SubscriptionName) -> Answer {
    if req.method == Method::GET {
        let mut merged = std::collections::BTreeMap::new();
        let mut found = Found::new(topic, name);
        for target in targets(rest, topic) {
            let answer = rest.broker.subscription_properties(&target, name).await;
            found.take(rest, &target, answer.map(|properties| merged.extend(properties)))?;
        }
        found.done()?;
        return ok(&merged);
    }
    if !req.has_body() {
        return Err(RestError::bad("The request entity cannot be empty."));
    }
    let new = req.properties()?;
    let mut found = Found::new(topic, name);
    for target in targets(rest, topic) {
        let answer = rest.broker.set_subscription_properties(&target, name, new.clone()).await;
        found.take(rest, &target, answer)?;
    }
    found.done()
}
