//! Namespaces: creation, listing, grants, backlog quotas, unloading, backlog operations; policies by their table.

use super::api::ApiError;
use super::request::{Req, namespace_of, subscription_of, tenant_of, typed};
use super::response::{Answer, RestError, done, empty, ok, ok_text, unset};
use super::{Rest, enforced, policies};
use crate::namespace::{
    AuthAction, BacklogQuota, BacklogQuotaType, BundlesData, DomainMode, NamespaceError, Policies, Retention,
};
use axum::http::{Method, StatusCode};
use geminga_common::names::{
    BundleRange, Bundles, NamespaceName, SubscriptionName, TopicName, percent_decode,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Most bundles of a namespace, as in Pulsar.
const BUNDLES_MAX: i32 = 128;
const METHOD: &str = "Method Not Allowed";

pub(super) async fn route(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    match path {
        [tenant] => {
            if req.method != Method::GET {
                return Err(RestError::not_allowed(METHOD));
            }
            let tenant = tenant_of(tenant)?;
            rest.namespaces.tenant(&tenant).ok_or_else(|| RestError::not_found("Tenant not found"))?;
            ok(&rest.namespaces.namespaces_of(&tenant))
        }
        [tenant, local, path @ ..] => {
            let name = namespace_of(tenant, local)?;
            if path.is_empty() { core(rest, req, &name).await } else { below(rest, req, &name, path).await }
        }
        [] => Err(RestError::not_found("Not Found")),
    }
}

async fn core(rest: &Rest, req: &Req, name: &NamespaceName) -> Answer {
    match req.method {
        Method::GET => {
            if rest.namespaces.tenant(name.tenant()).is_none() {
                return Err(RestError::not_found("Tenant not found"));
            }
            let mut shown = Policies::clone(&*there(rest, name)?);
            shown.is_allow_auto_update_schema.get_or_insert(true);
            ok(&shown)
        }
        Method::PUT => create(rest, req, name).await,
        Method::DELETE => {
            if req.flag("force") {
                return Err(RestError::not_allowed("Broker doesn't allow forced deletion of namespaces"));
            }
            let unstored = rest.broker.loaded_topics(name).iter().any(|topic| !topic.is_persistent());
            if unstored {
                return Err(NamespaceError::NamespaceNotEmpty(name.clone()).into());
            }
            match rest.namespaces.delete_namespace(name).await {
                Err(NamespaceError::NamespaceNotFound(_)) => {
                    Err(RestError::not_found(format!("Namespace {name} does not exist.")))
                }
                other => other.map_err(RestError::from).and_then(|()| done()),
            }
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

async fn create(rest: &Rest, req: &Req, name: &NamespaceName) -> Answer {
    let given: Option<Value> = req.json()?;
    let cluster = &rest.namespaces.defaults().cluster;
    let fresh = rest.namespaces.fresh_policies();
    let policies = match given {
        None => fresh,
        Some(value) => {
            let bundles = value.get("bundles").filter(|bundles| !bundles.is_null()).cloned();
            let mut policies: Policies = typed(value)?;
            policies.bundles = match bundles {
                None => fresh.bundles,
                Some(_) => checked_bundles(&policies.bundles, fresh.bundles)?,
            };
            if policies.replication_clusters.is_empty() {
                policies.replication_clusters = fresh.replication_clusters;
            }
            policies.deleted = false;
            policies
        }
    };
    let foreign: Vec<&String> = policies.replication_clusters.iter().filter(|c| *c != cluster).collect();
    if !foreign.is_empty() {
        let text = format!(
            "Cluster [{}] is not in the list of allowed clusters list for tenant [{}]",
            foreign[0],
            name.tenant()
        );
        return Err(RestError::new(StatusCode::FORBIDDEN, text));
    }
    policies::check_all(rest, &policies)?;
    match rest.namespaces.create_namespace(name, &policies).await {
        Err(NamespaceError::TenantNotFound(_)) => Err(RestError::not_found("Tenant does not exist")),
        other => other.map_err(RestError::from).and_then(|()| done()),
    }
}

/// 0 bundles mean the default; more than the most, or boundaries that do not cover the hashes, are refused (Pulsar stores
/// them and fails later).
fn checked_bundles(given: &BundlesData, fresh: BundlesData) -> Result<BundlesData, RestError> {
    if given.boundaries.is_empty() {
        return match given.num_bundles {
            0 => Ok(fresh),
            count @ 1..=BUNDLES_MAX => Ok(BundlesData::equal(count as u32)),
            _ => Err(RestError::precondition(format!("A namespace has 1 to {BUNDLES_MAX} bundles"))),
        };
    }
    match given.bounds() {
        Some(bounds) if bounds.len() - 1 <= BUNDLES_MAX as usize => {
            Ok(BundlesData { boundaries: given.boundaries.clone(), num_bundles: bounds.len() as i32 - 1 })
        }
        _ => Err(RestError::precondition(
            "The bundle boundaries do not cover 0x00000000 to 0xffffffff in order",
        )),
    }
}

fn there(rest: &Rest, name: &NamespaceName) -> Result<std::sync::Arc<Policies>, RestError> {
    rest.namespaces.policies(name).ok_or_else(|| RestError::not_found("Namespace does not exist"))
}

fn live(rest: &Rest, name: &NamespaceName) -> Result<(), RestError> {
    rest.namespaces.live_policies(name)?;
    Ok(())
}

async fn below(rest: &Rest, req: &Req, name: &NamespaceName, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["topics"]) => list_topics(rest, req, name).await,
        (&Method::GET, ["bundles"]) => ok(&there(rest, name)?.bundles),
        (_, ["permissions", rest_of_path @ ..]) => permissions(rest, req, name, rest_of_path).await,
        (&Method::GET, ["backlogQuotaMap"]) => ok(&there(rest, name)?.backlog_quota_map),
        (_, ["backlogQuota"]) => backlog_quota(rest, req, name).await,
        (_, ["properties"]) | (_, ["property", ..]) => properties(rest, req, name, path).await,
        (_, ["replication"]) => replication(rest, req, name).await,
        (&Method::GET, ["schemaAutoUpdateCompatibilityStrategy"]) => done(),
        (&Method::POST, ["migration"]) => Err(RestError::not_implemented("cluster migration")),
        (&Method::PUT, ["unload"]) => {
            live(rest, name)?;
            rest.broker.unload_bundles(name, None).await?;
            done()
        }
        (&Method::PUT, [bundle, "unload"]) => {
            live(rest, name)?;
            rest.broker.unload_bundles(name, Some(range(rest, name, bundle)?)).await?;
            done()
        }
        (&Method::PUT, [_, "split"]) => Err(RestError::not_implemented("splitting bundles")),
        (&Method::GET, [bundle, "topicHashPositions"]) => hash_positions(rest, name, bundle).await,
        (&Method::POST, ["clearBacklog"]) => clear(rest, name, None, None).await,
        (&Method::POST, ["clearBacklog", sub]) => clear(rest, name, None, Some(subscription_of(sub)?)).await,
        (&Method::POST, ["unsubscribe", sub]) => unsubscribe(rest, name, None, subscription_of(sub)?).await,
        (&Method::POST, [bundle, "clearBacklog"]) => {
            clear(rest, name, Some(range(rest, name, bundle)?), None).await
        }
        (&Method::POST, [bundle, "clearBacklog", sub]) => {
            clear(rest, name, Some(range(rest, name, bundle)?), Some(subscription_of(sub)?)).await
        }
        (&Method::POST, [bundle, "unsubscribe", sub]) => {
            unsubscribe(rest, name, Some(range(rest, name, bundle)?), subscription_of(sub)?).await
        }
        (_, ["persistence", "bookieAffinity"]) if req.method == Method::GET => {
            Err(RestError::not_found("Namespace local-policies does not exist"))
        }
        (_, ["persistence", "bookieAffinity"]) => Err(RestError::not_implemented("bookie affinity")),
        (&Method::DELETE, ["removeOffloadPolicies"]) => {
            let removed = policies::namespace(rest, req, name, "offloadPolicies").await;
            removed.unwrap_or_else(|| Err(RestError::not_found("Not Found")))
        }
        (_, [policy]) => match policies::namespace(rest, req, name, policy).await {
            Some(answer) => answer,
            None if req.method == Method::DELETE => {
                range(rest, name, policy)?;
                Err(RestError::not_implemented("deleting a single bundle"))
            }
            None => Err(RestError::not_allowed(METHOD)),
        },
        _ => Err(RestError::not_found("Not Found")),
    }
}

async fn list_topics(rest: &Rest, req: &Req, name: &NamespaceName) -> Answer {
    let mode = match req.query("mode").unwrap_or("PERSISTENT") {
        "PERSISTENT" => DomainMode::Persistent,
        "NON_PERSISTENT" => DomainMode::NonPersistent,
        "ALL" => DomainMode::All,
        other => {
            return Err(RestError::not_found(format!(
                "'{other}' is no value of mode; there are PERSISTENT, NON_PERSISTENT and ALL"
            )));
        }
    };
    ok(&all_topics(rest, name, mode).await?)
}

/// Stored topics, partitions, and the unstored ones this broker has loaded.
pub(super) async fn all_topics(
    rest: &Rest,
    name: &NamespaceName,
    mode: DomainMode,
) -> Result<BTreeSet<TopicName>, RestError> {
    there(rest, name)?;
    let mut topics: BTreeSet<TopicName> = rest.namespaces.topics(name, mode).await?.into_iter().collect();
    let loaded = rest.broker.loaded_topics(name).into_iter();
    topics.extend(loaded.filter(|topic| !topic.is_persistent() && mode.takes(topic)));
    Ok(topics)
}

async fn permissions(rest: &Rest, req: &Req, name: &NamespaceName, path: &[&str]) -> Answer {
    let role = |text: &str| {
        percent_decode(text).ok_or_else(|| RestError::precondition("the role is not properly encoded"))
    };
    match (&req.method, path) {
        (&Method::GET, []) => ok(&there(rest, name)?.auth_policies.namespace_auth),
        (&Method::GET, ["subscription"]) => ok(&there(rest, name)?.auth_policies.subscription_auth_roles),
        (&Method::POST, [grantee]) => {
            let (grantee, actions) = (role(grantee)?, actions(req)?);
            let change = |policies: &mut Policies| {
                policies.auth_policies.namespace_auth.insert(grantee.clone(), actions.clone());
                Ok(())
            };
            rest.namespaces.update_policies(name, change).await?;
            done()
        }
        (&Method::DELETE, [grantee]) => {
            let grantee = role(grantee)?;
            let change = |policies: &mut Policies| {
                policies.auth_policies.namespace_auth.remove(&grantee);
                Ok(())
            };
            rest.namespaces.update_policies(name, change).await?;
            done()
        }
        (&Method::POST | &Method::DELETE, _) => {
            Err(RestError::not_implemented("permissions on subscriptions"))
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

/// The body of a grant: an unknown action is refused (Pulsar stores null for it).
pub(super) fn actions(req: &Req) -> Result<BTreeSet<AuthAction>, RestError> {
    let value = req.json_required()?;
    serde_json::from_value(value).map_err(|error| RestError::bad(format!("not a list of actions: {error}")))
}

async fn backlog_quota(rest: &Rest, req: &Req, name: &NamespaceName) -> Answer {
    let kind = quota_type(req)?;
    match req.method {
        Method::POST => {
            let quota = checked_quota(req, &format!("namespace[{name}]"))?;
            debug_assert!(enforced::NAMESPACE.contains(&"backlogQuota"));
            let change = |policies: &mut Policies| {
                if let Some(quota) = &quota {
                    fits_retention(quota, policies.retention_policies)?;
                    policies.backlog_quota_map.insert(kind, quota.clone());
                } else {
                    policies.backlog_quota_map.remove(&kind);
                }
                Ok(())
            };
            rest.namespaces.update_policies(name, change).await?;
            done()
        }
        Method::DELETE => {
            let change = |policies: &mut Policies| {
                policies.backlog_quota_map.remove(&kind);
                Ok(())
            };
            rest.namespaces.update_policies(name, change).await?;
            done()
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

pub(super) fn quota_type(req: &Req) -> Result<BacklogQuotaType, RestError> {
    match req.query("backlogQuotaType").unwrap_or("destination_storage") {
        "destination_storage" => Ok(BacklogQuotaType::DestinationStorage),
        "message_age" => Ok(BacklogQuotaType::MessageAge),
        other => Err(RestError::not_found(format!(
            "'{other}' is no value of backlogQuotaType; there are destination_storage and message_age"
        ))),
    }
}

pub(super) fn checked_quota(req: &Req, whose: &str) -> Result<Option<BacklogQuota>, RestError> {
    let Some(mut value) = req.json()? else {
        return Ok(None);
    };
    let known =
        |policy: &Value| serde_json::from_value::<crate::namespace::QuotaPolicy>(policy.clone()).is_ok();
    if !value.get("policy").is_some_and(known) {
        // Pulsar drops unknown names and then misses the value: the same answer.
        return Err(RestError::bad(format!(
            "Set {whose} backlog quota failed because the data validation failed. the attribute policy cannot be null"
        )));
    }
    typed(value.take()).map(Some)
}

/// A quota above what retention keeps could never be reached.
pub(super) fn fits_retention(
    quota: &BacklogQuota,
    retention: Option<Retention>,
) -> Result<(), NamespaceError> {
    let Some(retention) = retention else {
        return Ok(());
    };
    let refused = "Backlog Quota exceeds configured retention quota for namespace. Please increase retention quota and retry";
    let size = retention.size_mb > 0 && (quota.limit_size < 0 || quota.limit_size >= retention.size_mb << 20);
    let time = retention.time_minutes > 0 && quota.limit_time >= retention.time_minutes.saturating_mul(60);
    if size || time { Err(NamespaceError::Refused(refused)) } else { Ok(()) }
}

async fn properties(rest: &Rest, req: &Req, name: &NamespaceName, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["properties"]) => ok(&there(rest, name)?.properties),
        (&Method::GET, ["property", key]) => match there(rest, name)?.properties.get(*key) {
            Some(value) => ok_text(value.clone()),
            None => unset(),
        },
        (&Method::PUT, ["properties"]) => {
            let more = req.properties()?;
            change_properties(rest, name, |map| map.extend(more.clone())).await?;
            done()
        }
        (&Method::PUT, ["property", key, value]) => {
            let decode =
                |text: &str| percent_decode(text).ok_or_else(|| RestError::bad("not properly encoded"));
            let (key, value) = (decode(key)?, decode(value)?);
            change_properties(rest, name, |map| drop(map.insert(key.clone(), value.clone()))).await?;
            done()
        }
        (&Method::DELETE, ["properties"]) => {
            change_properties(rest, name, BTreeMap::clear).await?;
            done()
        }
        (&Method::DELETE, ["property", key]) => {
            let old = there(rest, name)?.properties.get(*key).cloned();
            change_properties(rest, name, |map| drop(map.remove(*key))).await?;
            old.map_or_else(|| empty(StatusCode::OK), ok_text)
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

async fn change_properties(
    rest: &Rest,
    name: &NamespaceName,
    mut change: impl FnMut(&mut BTreeMap<String, String>) + Send,
) -> Result<(), RestError> {
    let change = |policies: &mut Policies| {
        change(&mut policies.properties);
        Ok(())
    };
    Ok(rest.namespaces.update_policies(name, change).await?)
}

async fn replication(rest: &Rest, req: &Req, name: &NamespaceName) -> Answer {
    match req.method {
        Method::GET => ok(&there(rest, name)?.replication_clusters),
        Method::POST => {
            let clusters: BTreeSet<String> = req.body_as()?.unwrap_or_default();
            if clusters.is_empty() {
                return Err(RestError::precondition("ClusterIds should not be null or empty"));
            }
            match clusters.iter().find(|c| **c != rest.namespaces.defaults().cluster) {
                Some(other) => {
                    Err(RestError::new(StatusCode::FORBIDDEN, format!("Invalid cluster id: {other}")))
                }
                None => {
                    live(rest, name)?;
                    empty(StatusCode::OK)
                }
            }
        }
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

/// A bundle of the namespace by its range; one that is not among them is refused as Pulsar does.
fn range(rest: &Rest, name: &NamespaceName, text: &str) -> Result<BundleRange, RestError> {
    let wrong = || RestError::precondition(format!("Invalid bundle range: {text}"));
    let range = BundleRange::parse(text).map_err(|_| wrong())?;
    let policies = rest.namespaces.live_policies(name)?;
    let bundles =
        policies.bundles.bounds().and_then(|bounds| Bundles::from_bounds(bounds).ok()).ok_or_else(wrong)?;
    if bundles.ranges().any(|there| there == range) { Ok(range) } else { Err(wrong()) }
}

async fn in_range(
    rest: &Rest,
    name: &NamespaceName,
    range: Option<BundleRange>,
) -> Result<Vec<TopicName>, RestError> {
    live(rest, name)?;
    let topics = all_topics(rest, name, DomainMode::Persistent).await?.into_iter();
    let inside =
        |topic: &TopicName| range.is_none_or(|r| r.contains(geminga_common::names::topic_hash(topic)));
    Ok(topics.filter(inside).collect())
}

async fn hash_positions(rest: &Rest, name: &NamespaceName, bundle: &str) -> Answer {
    let topics = in_range(rest, name, Some(range(rest, name, bundle)?)).await?;
    let positions: BTreeMap<String, u32> =
        topics.iter().map(|topic| (topic.to_string(), geminga_common::names::topic_hash(topic))).collect();
    ok(&json!({ "namespace": name, "bundle": bundle, "topicHashPositions": positions }))
}

/// Clears the backlog of all subscriptions, or of one, on every topic. A topic without that subscription is passed over.
async fn clear(
    rest: &Rest,
    name: &NamespaceName,
    range: Option<BundleRange>,
    only: Option<SubscriptionName>,
) -> Answer {
    for topic in in_range(rest, name, range).await? {
        let subscriptions = match rest.broker.subscriptions(&topic).await {
            Err(ApiError::TopicNotFound(_)) => continue,
            other => other?,
        };
        for subscription in subscriptions.iter().filter_map(|text| SubscriptionName::parse(text).ok()) {
            if only.as_ref().is_some_and(|only| *only != subscription) {
                continue;
            }
            match rest.broker.skip_all(&topic, &subscription).await {
                Err(ApiError::TopicNotFound(_) | ApiError::SubscriptionNotFound { .. }) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    done()
}

async fn unsubscribe(
    rest: &Rest,
    name: &NamespaceName,
    range: Option<BundleRange>,
    subscription: SubscriptionName,
) -> Answer {
    for topic in in_range(rest, name, range).await? {
        match rest.broker.delete_subscription(&topic, &subscription, false).await {
            Err(ApiError::TopicNotFound(_) | ApiError::SubscriptionNotFound { .. }) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    done()
}
