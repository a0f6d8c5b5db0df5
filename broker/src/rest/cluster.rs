//! Clusters, brokers, bookies, broker-stats, resource groups and HTTP lookup. One cluster is known: this one.

use super::request::{Req, domain_of, namespace_of, topic_of};
use super::response::{Answer, RestError, ok, ok_text};
use super::stats::TopicStats;
use super::{Rest, metrics};
use axum::http::{Method, StatusCode};
use geminga_common::names::{Bundles, TopicName};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const METHOD: &str = "Method Not Allowed";

pub(super) async fn clusters(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    let own = &rest.namespaces.defaults().cluster;
    if req.method != Method::GET {
        return Err(RestError::not_implemented("changing clusters (there is no geo-replication)"));
    }
    match path {
        [] => ok(&[own]),
        [cluster, ..] if cluster != own => Err(RestError::not_found("Cluster does not exist")),
        [_] => {
            let this = rest.broker.this_broker();
            let mut data = Map::new();
            data.insert("serviceUrl".into(), this.http_url.into());
            data.extend(this.http_url_tls.map(|url| ("serviceUrlTls".to_owned(), Value::from(url))));
            data.insert("brokerServiceUrl".into(), this.broker_url.into());
            data.extend(this.broker_url_tls.map(|url| ("brokerServiceUrlTls".to_owned(), Value::from(url))));
            data.insert("brokerClientTlsEnabled".into(), false.into());
            data.insert("tlsAllowInsecureConnection".into(), false.into());
            ok(&data)
        }
        [_, "peers"] => super::response::unset(),
        [_, "failureDomains"] => ok(&json!({})),
        [_, "namespaceIsolationPolicies"] => {
            let reason = format!("NamespaceIsolationPolicies for cluster {own} does not exist");
            Err(RestError::not_found(reason))
        }
        _ => Err(RestError::not_found("Not Found")),
    }
}

pub(super) async fn brokers(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["health"]) => {
            rest.broker.health().await?;
            ok_text("ok")
        }
        (&Method::GET, ["ready"]) => ok_text("ok"),
        (&Method::GET, ["version"]) => ok_text(&*rest.version),
        (&Method::GET, ["leaderBroker"]) => {
            let leader = rest.broker.leader().await?;
            ok(&json!({ "serviceUrl": leader.http_url, "brokerId": leader.broker_id }))
        }
        // Nothing can be changed at run time, so there are neither names nor values of dynamic settings.
        (&Method::GET, ["configuration"]) => ok(&json!([])),
        (&Method::GET, ["configuration", "values"]) => ok(&json!({})),
        (&Method::GET, ["configuration", "runtime"]) => {
            let defaults = rest.namespaces.defaults();
            let rule = defaults.auto_topic_creation;
            ok(&json!({
                "clusterName": defaults.cluster,
                "defaultNumberOfNamespaceBundles": defaults.bundles.to_string(),
                "allowAutoTopicCreation": rule.allowed.to_string(),
                "allowAutoTopicCreationType": if rule.partitions.is_some() { "partitioned" } else { "non-partitioned" },
                "defaultNumPartitions": rule.partitions.unwrap_or(1).to_string(),
                "allowAutoSubscriptionCreation": defaults.auto_subscription_creation.to_string(),
            }))
        }
        (&Method::GET, ["internal-configuration"]) => {
            let url = &*rest.metadata_url;
            ok(&json!({
                "zookeeperServers": url,
                "configurationStoreServers": url,
                "metadataStoreUrl": url,
                "configurationMetadataStoreUrl": url,
                "ledgersRootPath": rest.namespaces.cluster_keys().root(),
            }))
        }
        (&Method::GET, ["backlog-quota-check"]) => {
            Err(RestError::not_implemented("an immediate backlog quota check"))
        }
        (_, ["configuration", ..]) => {
            Err(RestError::not_implemented("changing settings of a running broker"))
        }
        (_, ["shutdown"]) => Err(RestError::not_implemented("shutting a broker down over REST")),
        // As in Pulsar, any cluster's name answers with all brokers.
        (&Method::GET, [] | [_]) => ok(&rest.broker.brokers().await?),
        (&Method::GET, [_, broker, "ownedNamespaces"]) => owned(rest, broker).await,
        (_, [] | [_]) => Err(RestError::not_allowed(METHOD)),
        _ => Err(RestError::not_found("Not Found")),
    }
}

async fn owned(rest: &Rest, broker: &str) -> Answer {
    if broker != rest.broker.this_broker().broker_id {
        return Err(RestError::not_implemented("listing the bundles of another broker"));
    }
    let mut owned = BTreeMap::new();
    for (topic, _) in rest.broker.snapshot().await {
        let bundle = bundle_of(rest, &topic);
        owned.insert(
            bundle,
            json!({ "broker_assignment": "shared", "is_controlled": false, "is_active": true }),
        );
    }
    ok(&owned)
}

/// `tenant/namespace/0x…_0x…` of a topic.
fn bundle_of(rest: &Rest, topic: &TopicName) -> String {
    format!("{}/{}", topic.namespace(), range_of(rest, topic))
}

fn range_of(rest: &Rest, topic: &TopicName) -> String {
    let stored = rest.namespaces.policies(topic.namespace()).and_then(|policies| policies.bundles.bounds());
    let bundles = stored.and_then(|bounds| Bundles::from_bounds(bounds).ok());
    bundles.unwrap_or_else(|| Bundles::default_of(1)).bundle_of(topic).range.to_string()
}

pub(super) async fn broker_stats(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["topics" | "destinations"]) => {
            let mut all: BTreeMap<String, BTreeMap<String, BTreeMap<&str, BTreeMap<String, Value>>>> =
                BTreeMap::new();
            for (topic, stats) in rest.broker.snapshot().await {
                let bundles = all.entry(topic.namespace().to_string()).or_default();
                let domains = bundles.entry(range_of(rest, &topic)).or_default();
                domains
                    .entry(topic.domain().as_str())
                    .or_default()
                    .insert(topic.to_string(), short_stats(&stats));
            }
            ok(&all)
        }
        (&Method::GET, ["metrics" | "mbeans" | "load-report" | "bookieops" | "allocator-stats", ..]) => {
            Err(RestError::not_implemented(format!("broker-stats/{} (see /metrics)", path[0])))
        }
        (&Method::GET, _) => Err(RestError::not_found("Not Found")),
        _ => Err(RestError::not_allowed(METHOD)),
    }
}

fn short_stats(stats: &TopicStats) -> Value {
    json!({
        "publishers": stats.publishers,
        "replication": {},
        "subscriptions": stats.subscriptions,
        "producerCount": stats.publishers.len(),
        "averageMsgSize": stats.average_msg_size,
        "msgRateIn": stats.msg_rate_in,
        "msgRateOut": stats.msg_rate_out,
        "msgInCount": stats.msg_in_counter,
        "bytesInCount": stats.bytes_in_counter,
        "msgOutCount": stats.msg_out_counter,
        "bytesOutCount": stats.bytes_out_counter,
        "msgThroughputIn": stats.msg_throughput_in,
        "msgThroughputOut": stats.msg_throughput_out,
        "storageSize": stats.storage_size,
        "backlogSize": stats.backlog_size,
    })
}

pub(super) async fn bookies(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, ["all"]) => {
            let list: Vec<Value> =
                rest.broker.bookies().await?.into_iter().map(|id| json!({ "bookieId": id })).collect();
            ok(&json!({ "bookies": list }))
        }
        // Ours: Pulsar's brokers know nothing of repairs.
        (&Method::GET, ["repair"]) => {
            let missing = || RestError::not_implemented("repair of ledgers where there is one bookie");
            let figures = rest.broker.repairs().ok_or_else(missing)?;
            let stuck: Vec<Value> = figures
                .stuck
                .iter()
                .map(|(ledger, why)| json!({ "ledgerId": ledger.0, "reason": why }))
                .collect();
            ok(&json!({
                "leader": figures.leader,
                "ledgersDue": figures.due,
                "ledgersRepaired": figures.repaired,
                "ledgersLookedAt": figures.looked_at,
                "entriesCopied": figures.entries,
                "bytesCopied": figures.bytes,
                "stuck": stuck,
            }))
        }
        (&Method::GET, ["racks-info"]) => ok(&json!({})),
        (_, ["racks-info", ..]) => Err(RestError::not_implemented("rack information over REST")),
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// `/lookup/v2/topic/{domain}/{tenant}/{namespace}/{topic}[/bundle]`.
pub(super) async fn lookup(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    if req.method != Method::GET {
        return Err(RestError::not_allowed(METHOD));
    }
    let (domain, tenant, namespace, topic, bundle) = match path {
        [domain, tenant, namespace, topic] => (domain, tenant, namespace, topic, false),
        [domain, tenant, namespace, topic, "bundle"] => (domain, tenant, namespace, topic, true),
        _ => return Err(RestError::not_found("Not Found")),
    };
    let domain = domain_of(domain)
        .ok_or_else(|| RestError::precondition(format!("unknown topic domain '{domain}'")))?;
    let topic = topic_of(domain, namespace_of(tenant, namespace)?, topic)?;
    if bundle {
        return ok_text(range_of(rest, &topic));
    }
    let rule = rest.namespaces.auto_creation(topic.namespace())?;
    if !rule.allowed && topic.is_persistent() {
        rest.namespaces.check_known(&topic).await?;
    }
    let listener =
        req.query("listenerName").or_else(|| req.headers.get("X-Pulsar-ListenerName")?.to_str().ok());
    let served = rest.broker.lookup(&topic, listener).await?;
    let mut body = Map::new();
    body.insert("brokerUrl".into(), served.broker_url.clone().into());
    body.extend(served.broker_url_tls.clone().map(|url| ("brokerUrlTls".to_owned(), Value::from(url))));
    body.insert("httpUrl".into(), served.http_url.into());
    body.extend(served.http_url_tls.map(|url| ("httpUrlTls".to_owned(), Value::from(url))));
    body.insert("nativeUrl".into(), served.broker_url.into());
    // Old C++ clients fail without it.
    body.insert("brokerUrlSsl".into(), served.broker_url_tls.unwrap_or_default().into());
    ok(&body)
}

/// What exists in Pulsar but is switched off by default answers as it does there.
pub(super) fn switched_off(path: &[&str]) -> Option<RestError> {
    let unavailable = |text: &str| Some(RestError::new(StatusCode::SERVICE_UNAVAILABLE, text));
    match path {
        ["admin", "v2", "worker" | "worker-stats" | "functions", ..]
        | ["admin", "v3", "functions" | "function" | "sinks" | "sink" | "sources" | "source", ..] => {
            Some(RestError::conflict(
                "Pulsar Function Worker is not enabled, probably functionsWorkerEnabled is set to false",
            ))
        }
        ["admin", "v3", "packages", ..] => {
            unavailable("Package Management Service is not enabled in the broker.")
        }
        ["admin", "v3", "transactions", ..] => {
            unavailable("This Broker is not configured with transactionCoordinatorEnabled=true.")
        }
        ["admin", "v2", "resource-quotas", ..] => Some(RestError::not_implemented("resource quotas")),
        ["topics", ..] => Some(RestError::not_implemented("producing over HTTP")),
        ["ws", ..] => Some(RestError::not_implemented("the WebSocket proxy")),
        _ => None,
    }
}

/// Resource groups: there are none.
pub(super) fn resource_groups(req: &Req, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, []) => ok(&json!([])),
        (&Method::GET, [_]) => Err(RestError::not_found("ResourceGroup does not exist")),
        _ => Err(RestError::not_implemented("resource groups")),
    }
}

pub(super) async fn metrics(rest: &Rest) -> Answer {
    let text = metrics::render(rest, &rest.broker.snapshot().await);
    super::response::ok_typed("text/plain; version=0.0.4; charset=utf-8", text)
}
