//! Table-driven: method, path, body → status, body. The server is the real one on a loopback port; the broker is a fake that
//! keeps topics and subscriptions in memory.

mod fake;

use super::{message, metrics, time};
use fake::server;

const T: &str = "/persistent/public/default";

#[tokio::test]
async fn names_bodies_and_values_that_cannot_be_get_a_status_and_a_reason() {
    let s = server().await;
    s.table(&[
        (
            "PUT",
            "/tenants/..",
            r#"{"allowedClusters":["c1"]}"#,
            412,
            r#"{"reason":"Tenant name is not valid"#,
        ),
        (
            "PUT",
            "/tenants/%2E",
            r#"{"allowedClusters":["c1"]}"#,
            412,
            r#"{"reason":"Tenant name is not valid"#,
        ),
        ("PUT", "/tenants/t", "{not json", 400, r#"{"reason":"the body is no JSON"#),
        ("PUT", "/tenants/t", "5", 400, r#"{"reason":"the body does not fit"#),
        (
            "GET",
            "/namespaces/public/default/topics?mode=FOO",
            "",
            404,
            "there are PERSISTENT, NON_PERSISTENT and ALL",
        ),
        ("PUT", "/namespaces/public/zero", r#"{"bundles":{"numBundles":0}}"#, 204, "="),
        ("GET", "/namespaces/public/zero/bundles", "", 200, r#""numBundles":4"#),
        ("DELETE", "/namespaces/public/zero", "", 204, "="),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn tenants_and_namespaces_answer_as_pulsar_does() {
    let s = server().await;
    let ns = "/namespaces/public/n1";
    s.table(&[
        ("GET", "/clusters", "", 200, r#"=["c1"]"#),
        ("GET", "/clusters/nope", "", 404, r#"={"reason":"Cluster does not exist"}"#),
        ("GET", "/brokers/health", "", 200, "=ok"),
        ("GET", "/brokers/any", "", 200, r#"=["h:8080"]"#),
        ("GET", "/bookies/all", "", 200, r#"={"bookies":[{"bookieId":"b1"}]}"#),
        ("GET", "/tenants", "", 200, r#"=["public","pulsar"]"#),
        ("GET", "/tenants/public", "", 200, r#"={"adminRoles":[],"allowedClusters":["c1"]}"#),
        ("PUT", "/tenants/t2", "", 412, "TenantInfo is null"),
        ("PUT", "/tenants/t2", "{}", 412, "Clusters cannot be null"),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["x"]}"#, 412, "Clusters do not exist"),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["c1"]}"#, 204, "="),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["c1"]}"#, 409, "Tenant already exist"),
        ("POST", "/tenants/t9", r#"{"allowedClusters":["c1"]}"#, 404, "Tenant t9 not found"),
        ("DELETE", "/tenants/public", "", 409, "active namespaces"),
        ("DELETE", "/tenants/public?force=true", "", 405, "forced"),
        ("DELETE", "/tenants/t2", "", 204, "="),
        ("DELETE", "/tenants/t2", "", 404, "Tenant doesn't exist"),
        ("PUT", "/tenants/t+2", r#"{"allowedClusters":["c1"]}"#, 412, "Tenant name is not valid"),
        ("PUT", "/tenants/t4", "{bad", 400, "key must be a string"),
        ("PUT", ns, "", 204, "="),
        ("PUT", ns, "null", 409, "Namespace already exists"),
        ("GET", ns, "", 200, r#""offload_threshold":-1"#),
        ("GET", ns, "", 200, r#""is_allow_auto_update_schema":true"#),
        ("GET", "/namespaces/nope", "", 404, "Tenant not found"),
        ("GET", "/namespaces/public/nope", "", 404, "Namespace does not exist"),
        ("PUT", "/namespaces/nope/n", "", 404, "Tenant does not exist"),
        ("PUT", "/namespaces/public/b2", r#"{"bundles":{"numBundles":2}}"#, 204, "="),
        (
            "GET",
            "/namespaces/public/b2/bundles",
            "",
            200,
            r#"={"boundaries":["0x00000000","0x80000000","0xffffffff"],"numBundles":2}"#,
        ),
        ("PUT", "/namespaces/public/b3", r#"{"bundles":{"numBundles":1000}}"#, 412, "128"),
        ("PUT", "/namespaces/public/c", r#"{"replication_clusters":["x"]}"#, 403, "Cluster [x]"),
        ("PUT", "/namespaces/public/c", r#"{"encryption_required":true}"#, 501, "encryptionRequired"),
        (
            "PUT",
            "/namespaces/public/c",
            r#"{"max_producers_per_topic":"2","auth_policies":{"namespace_auth":{"a":["produce"]}}}"#,
            204,
            "=",
        ),
        ("GET", "/namespaces/public/c/permissions", "", 200, r#"={"a":["produce"]}"#),
        ("POST", "/namespaces/public/c/permissions/r", r#"["fly"]"#, 400, "fly"),
        ("GET", "/namespaces/public/c/maxProducersPerTopic", "", 200, "=2"),
        ("PUT", &format!("{ns}/unload"), "", 204, "="),
        ("PUT", &format!("{ns}/0x00000000_0x40000000/unload"), "", 204, "="),
        ("PUT", &format!("{ns}/0x00000000_0x30000000/unload"), "", 412, "Invalid bundle range"),
        ("PUT", "/namespaces/public/zz/unload", "", 404, "Namespace not found"),
        ("DELETE", ns, "", 204, "="),
        ("DELETE", ns, "", 404, "does not exist"),
    ])
    .await;
    let calls = s.fake.calls.lock().clone();
    assert_eq!(calls, ["unload public/n1 all", "unload public/n1 0x00000000_0x40000000"]);
    s.tasks.stop();
}

#[tokio::test]
async fn what_is_not_enforced_is_refused_and_off_is_fine() {
    let s = server().await;
    let at = |p: &str| format!("/namespaces/public/default/{p}");
    let new = "/namespaces/public/c";
    s.table(&[
        ("POST", &at("deduplication"), "true", 501, "deduplication"),
        ("POST", &at("deduplication"), "false", 204, "="),
        ("POST", &at("subscriptionExpirationTime"), "0", 204, "="),
        ("POST", &at("subscriptionExpirationTime"), "5", 501, "subscriptionExpirationTime"),
        ("PUT", new, r#"{"clusterDispatchRate":{"standalone":{}}}"#, 501, "clusterDispatchRate"),
        ("PUT", new, r#"{"migrated":true}"#, 501, "migrated"),
        ("PUT", new, r#"{"deduplicationEnabled":true}"#, 501, "deduplication"),
        ("PUT", new, r#"{"deduplicationEnabled":false,"compaction_threshold":0}"#, 204, "="),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn policies_are_set_read_and_refused_as_pulsar_does() {
    let s = server().await;
    let n = "/namespaces/public/default";
    let at = |p: &str| format!("{n}/{p}");
    let quota = r#"{"limit":"10240","policy":"producer_request_hold"}"#;
    s.table(&[
        ("GET", &at("retention"), "", 200, "="),
        ("GET", &at("maxTopicsPerNamespace"), "", 200, "=0"),
        ("GET", &at("subscriptionTypesEnabled"), "", 200, "=[]"),
        ("GET", &at("schemaCompatibilityStrategy"), "", 200, r#"="UNDEFINED""#),
        ("GET", &at("fooBar"), "", 405, "reason"),
        ("GET", &at("foo/bar"), "", 404, "reason"),
        ("DELETE", &at("fooBar"), "", 412, "Invalid bundle range: fooBar"),
        ("POST", &at("messageTTL"), r#""7""#, 204, "="),
        ("GET", &at("messageTTL"), "", 200, "=7"),
        ("POST", &at("messageTTL"), "-5", 412, "must >= 0"),
        ("POST", &at("messageTTL"), "abc", 400, "expected value"),
        ("DELETE", &at("messageTTL"), "", 204, "="),
        ("GET", &at("messageTTL"), "", 200, "="),
        (
            "POST",
            &at("retention"),
            r#"{"retentionTimeInMinutes":0,"retentionSizeInMB":20}"#,
            400,
            "single time or size",
        ),
        ("POST", &at("backlogQuota"), quota, 204, "="),
        (
            "GET",
            &at("backlogQuotaMap"),
            "",
            200,
            r#"{"destination_storage":{"limit":10240,"limitSize":10240,"#,
        ),
        ("POST", &at("retention"), r#"{"retentionTimeInMinutes":10,"retentionSizeInMB":20}"#, 204, "="),
        (
            "POST",
            &at("backlogQuota"),
            r#"{"limitSize":1073741824,"policy":"producer_exception"}"#,
            412,
            "retention",
        ),
        ("POST", &at("backlogQuota"), r#"{"limitSize":1,"policy":"fly"}"#, 400, "policy cannot be null"),
        ("DELETE", &at("backlogQuota"), "", 204, "="),
        ("POST", &at("publishRate"), r#"{"publishThrottlingRateInMsg":10}"#, 204, "="),
        (
            "GET",
            &at("publishRate"),
            "",
            200,
            r#"={"publishThrottlingRateInByte":-1,"publishThrottlingRateInMsg":10}"#,
        ),
        ("POST", &at("maxProducersPerTopic"), "-1", 412, "maxProducersPerTopic must be 0 or more"),
        (
            "POST",
            &at("autoTopicCreation"),
            r#"{"allowAutoTopicCreation":true,"topicType":"x"}"#,
            412,
            "Unknown topic type [x]",
        ),
        ("POST", &at("deduplication"), r#""x""#, 400, "boolean"),
        ("POST", &at("dispatchRate"), "{}", 501, "dispatchRate"),
        ("GET", &at("dispatchRate"), "", 200, "="),
        ("POST", &at("replication"), r#"["nope"]"#, 403, "Invalid cluster id: nope"),
        ("POST", &at("replication"), "[]", 412, "ClusterIds"),
        ("PUT", &at("property/a/b%20c"), "", 204, "="),
        ("GET", &at("property/a"), "", 200, "=b c"),
        ("PUT", &format!("{T}/t"), "", 204, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 200, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer?applied=true"), "", 200, "=50000"),
        ("POST", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "5", 204, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 200, "=5"),
        ("DELETE", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 204, "="),
        ("GET", &format!("{T}/nope/maxUnackedMessagesOnConsumer"), "", 404, "not found"),
        ("POST", &format!("{T}/t/messageTTL?messageTTL=30"), "", 204, "="),
        ("GET", &format!("{T}/t/messageTTL"), "", 200, "=30"),
        ("GET", &format!("{T}/t/fooBar"), "", 404, "reason"),
        ("POST", &format!("{T}/t-partition-0/maxConsumers"), "5", 412, "partition"),
    ])
    .await;
    let (status, _, _) = s.ask("POST", &format!("/admin/v2{n}/messageTTL"), "text/plain", "5").await;
    assert_eq!(status, 415);
    s.tasks.stop();
}

#[tokio::test]
async fn new_partitions_get_the_subscriptions_of_the_others() {
    let s = server().await;
    let p = |path: &str| format!("{T}/{path}");
    s.table(&[
        ("PUT", &p("g/partitions"), "2", 204, "="),
        ("PUT", &p("g-partition-0/subscription/a"), "", 204, "="),
        ("PUT", &p("g-partition-1/subscription/b"), "", 204, "="),
        ("PUT", &p("g-partition-1/subscription/b/properties"), r#"{"k":"v"}"#, 204, "="),
        ("POST", &p("g/partitions"), "4", 204, "="),
        ("GET", &p("g-partition-0/subscriptions"), "", 200, r#"=["a"]"#),
        ("GET", &p("g-partition-2/subscriptions"), "", 200, r#"=["a","b"]"#),
        ("GET", &p("g-partition-3/subscriptions"), "", 200, r#"=["a","b"]"#),
        ("GET", &p("g-partition-3/subscription/b/properties"), "", 200, r#"={"k":"v"}"#),
    ])
    .await;
    let made = s.fake.calls.lock().iter().filter(|call| *call == "create a Earliest").count();
    assert_eq!(made, 2, "what was published to new partitions already is for them too");
    // The growth was cut short: the same count again completes it.
    s.table(&[
        ("DELETE", &p("g-partition-3/subscription/a"), "", 204, "="),
        ("POST", &p("g/partitions"), "4", 204, "="),
        ("GET", &p("g-partition-3/subscriptions"), "", 200, r#"=["a","b"]"#),
    ])
    .await;
    // Sent on, the request would go from broker to broker without end.
    *s.fake.away.lock() =
        Some(geminga_common::names::TopicName::parse("persistent://public/default/g-partition-4").unwrap());
    s.table(&[
        ("POST", &p("g/partitions"), "5", 501, "several brokers"),
        ("GET", &p("g/partitions"), "", 200, r#"={"partitions":5,"deleted":false}"#),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn topics_and_partitions_answer_as_pulsar_does() {
    let s = server().await;
    let p = |path: &str| format!("{T}/{path}");
    s.table(&[
        ("PUT", &p("t"), "null", 204, "="),
        ("PUT", &p("t"), "", 409, "This topic already exists"),
        ("PUT", "/persistent/public/zz/t", "", 404, "Namespace not found"),
        ("PUT", &p("x-partition-3"), "", 412, "there isn't a partitioned topic"),
        ("PUT", &p("pp/partitions"), r#""3""#, 204, "="),
        ("PUT", &p("pp/partitions"), "3", 409, "already exists"),
        ("PUT", &p("t/partitions"), "3", 409, "already exists"),
        ("PUT", &p("q/partitions"), "0", 406, "more than 0"),
        ("PUT", &p("q/partitions"), "abc", 400, ""),
        ("PUT", &p("q/partitions"), "", 400, "cannot be empty"),
        ("PUT", &p("x-partition-3/partitions"), "3", 412, "-partition-"),
        ("GET", &p("pp/partitions"), "", 200, r#"={"partitions":3,"deleted":false}"#),
        ("GET", &p("t/partitions"), "", 200, r#"={"partitions":0,"deleted":false}"#),
        ("GET", &p("nope/partitions"), "", 404, "Topic persistent://public/default/nope not found"),
        ("GET", &p("nope/partitions?checkAllowAutoCreation=true"), "", 200, r#"{"partitions":0"#),
        ("POST", &p("pp/partitions"), "5", 204, "="),
        (
            "POST",
            &p("pp/partitions"),
            "4",
            422,
            "Desired partitions 4 can't be less than the current partitions 5.",
        ),
        ("POST", &p("nope/partitions"), "4", 409, "is not the partitioned topic."),
        ("DELETE", &p("pp"), "", 409, "delete-partitioned-topic"),
        ("GET", &p("pp/stats"), "", 404, "not found"),
        ("GET", &p("pp-partition-4/stats"), "", 200, r#""msgInCounter":0"#),
        ("GET", &p("pp/partitioned-stats"), "", 200, r#""metadata":{"deleted":false,"partitions":5}"#),
        ("GET", &p("t/partitioned-stats"), "", 404, "Partitioned Topic"),
        ("GET", &format!("{T}//t/stats"), "", 200, r#""msgInCounter":5"#),
        ("GET", T, "", 200, r#""persistent://public/default/pp-partition-4""#),
        ("GET", &format!("{T}/partitioned"), "", 200, r#"=["persistent://public/default/pp"]"#),
        ("PUT", &p("pp/unload"), "", 204, "="),
        ("PUT", &p("nope/unload"), "", 404, "not found"),
        ("POST", &p("t/terminate"), "", 200, r#""ledgerId":3"#),
        ("POST", &p("pp/terminate"), "", 405, "partitioned"),
        (
            "GET",
            &p("t/lastMessageId"),
            "",
            200,
            r#"={"batchIndex":-1,"batchSize":0,"entryId":-1,"ledgerId":3,"partitionIndex":-1}"#,
        ),
        ("GET", &p("t/messageid/abc"), "", 404, ""),
        ("GET", &p("t/ledger/3/entry/9"), "", 404, "Message not found"),
        ("GET", &p("pp/ledger/3/entry/0"), "", 405, "partitioned-topic"),
        ("GET", &p("t/examinemessage"), "", 412, "total message is zero"),
        ("PUT", &p("t/properties"), r#"{"a":"b","c":"d"}"#, 204, "="),
        ("DELETE", &p("t/properties?key=a"), "", 204, "="),
        ("GET", &p("t/properties"), "", 200, r#"={"c":"d"}"#),
        ("PUT", &p("nope/properties"), "{}", 404, "not found"),
        ("PUT", &p("busy"), "", 204, "="),
        ("DELETE", &p("busy"), "", 412, "active"),
        ("DELETE", &p("busy?force=true"), "", 204, "="),
        ("DELETE", &p("t/partitions"), "", 409, "please call delete"),
        ("DELETE", &p("pp/partitions"), "", 204, "="),
        ("DELETE", &p("pp/partitions"), "", 404, "not found."),
        ("DELETE", &p("t"), "", 204, "="),
        ("DELETE", &p("t"), "", 404, "not found"),
        ("GET", &p("a%2Fb/stats"), "", 412, "Topic name is not valid"),
        ("PUT", &p("t/compaction"), "", 501, "compaction"),
        ("GET", "/lookup/v2/topic/persistent/public/default/t", "", 200, r#""brokerUrlSsl":"""#),
        ("GET", "/lookup/v2/topic/persistent/public/zz/t", "", 404, "Namespace not found"),
        ("PUT", "/non-persistent/public/default/n", "", 204, "="),
        ("GET", "/non-persistent/public/default", "", 200, r#"=["non-persistent://public/default/n"]"#),
        ("GET", "/namespaces/public/default/topics?mode=ALL", "", 200, "non-persistent://public/default/n"),
        ("GET", "/namespaces/public/default/topics?mode=BAD", "", 404, "mode"),
        ("GET", "/worker/cluster", "", 409, "Function Worker"),
        ("GET", "/nothing", "", 404, "reason"),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn subscriptions_answer_as_pulsar_does() {
    let s = server().await;
    let p = |path: &str| format!("{T}/{path}");
    s.table(&[
        ("PUT", &p("t/subscription/s1"), "", 204, "="),
        ("PUT", &p("t/subscription/s1"), "", 409, "Subscription already exists for topic"),
        ("PUT", &p("t/subscription/s2"), r#""earliest""#, 204, "="),
        ("PUT", &p("t/subscription/s3"), r#""fly""#, 400, "fly"),
        ("PUT", &p("t/subscription/s4"), r#"{"ledgerId":3,"entryId":"1","properties":{"a":"b"}}"#, 204, "="),
        ("GET", &p("t/subscription/s4/properties"), "", 200, r#"={"a":"b"}"#),
        ("PUT", &p("t/subscription/s4/properties"), r#"{"x":"y"}"#, 204, "="),
        ("GET", &p("t/subscription/s4/properties"), "", 200, r#"={"x":"y"}"#),
        ("PUT", &p("t/subscription/a%2520b"), "", 204, "="),
        ("GET", &p("t/subscriptions"), "", 200, r#"=["a b","s1","s2","s4"]"#),
        ("GET", &p("nope/subscriptions"), "", 404, "Topic persistent://public/default/nope not found"),
        ("PUT", &p("x-partition-9/subscription/s"), "", 412, "cannot be auto-created"),
        ("POST", &p("t/subscription/s1/skip/2"), "", 204, "="),
        (
            "POST",
            &p("t/subscription/none/skip/2"),
            "",
            404,
            "Subscription none not found for topic persistent://public/default/t",
        ),
        ("POST", &p("t/subscription/s1/expireMessages/100"), "", 409, "not issued"),
        ("POST", &p("t/subscription/s1/expireMessages/0"), "", 204, "="),
        ("POST", &p("t/subscription/s1/resetcursor/5"), "", 204, "="),
        (
            "POST",
            &p("t/subscription/s1/resetcursor"),
            r#"{"ledgerId":3,"entryId":1,"isExcluded":true}"#,
            204,
            "=",
        ),
        ("POST", &p("t/subscription/none/skip_all"), "", 404, "none"),
        ("GET", &p("t/subscription/s1/position/2"), "", 404, "Message not found"),
        ("POST", &p("t/subscription/s1/analyzeBacklog"), "", 200, r#""messages":3"#),
        ("PUT", &p("pp/partitions"), "2", 204, "="),
        ("GET", &p("pp/subscriptions"), "", 200, "=[]"),
        ("POST", &p("pp/subscription/s/skip_all"), "", 404, "Subscription s not found"),
        ("PUT", &p("pp/subscription/s"), "", 204, "="),
        ("POST", &p("pp/subscription/s/skip_all"), "", 204, "="),
        ("POST", &p("pp/subscription/s/skip/1"), "", 405, "partitioned"),
        ("DELETE", &p("pp/subscription/s"), "", 204, "="),
        ("DELETE", &p("pp/subscription/s"), "", 404, "s not found"),
    ])
    .await;
    let calls = s.fake.calls.lock().clone();
    let said =
        |text: &str| assert!(calls.iter().any(|call| call.contains(text)), "{text} is not in {calls:?}");
    said("create s1 Latest");
    said("create s2 Earliest");
    said("skip 2 t s1");
    said("reset Time(5) t s1");
    said("exclusive: true");
    said("skip_all pp-partition-1 s");
    s.tasks.stop();
}

#[tokio::test]
async fn schemas_answer_as_pulsar_does() {
    let s = server().await;
    let a = r#"{"type":"JSON","schema":"{\"type\":\"record\"}","properties":{"a":"b"}}"#;
    let b = r#"{"type":"JSON","schema":"{\"type\":\"other\"}","properties":{}}"#;
    let kv = r#"{"type":"KEY_VALUE","schema":"{\"key\":{\"z\":1,\"a\":2},\"value\":\"\"}","properties":{}}"#;
    let at = |p: &str| format!("/schemas/public/default/{p}");
    s.table(&[
        ("GET", &at("t/schema"), "", 404, "Schema not found"),
        ("GET", &at("t/schemas"), "", 200, r#"={"getSchemaResponses":[]}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":0}}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":0}}"#),
        ("POST", &at("t/schema"), b, 409, "reason"),
        ("GET", &at("t/schema/0"), "", 200, r#""timestamp":1000"#),
        ("GET", &at("t/schema/7"), "", 404, "Schema not found"),
        ("POST", &at("t/version"), b, 200, r#"={"version":-1}"#),
        ("POST", &at("t/compatibility"), a, 202, r#""compatibility":true"#),
        ("POST", &at("t/compatibility"), b, 501, "not judged"),
        ("DELETE", &at("t/schema"), "", 200, r#"={"version":1}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":2}}"#),
        ("POST", &at("u/schema"), r#"{"type":"FLY","schema":""}"#, 422, "FLY"),
        ("POST", &at("u/schema"), r#"{"type":"AVRO","schema":"bad"}"#, 422, "JSON"),
        ("POST", &at("kv/schema"), kv, 200, r#"={"version":{"version":0}}"#),
        ("GET", &at("kv/schema"), "", 200, r#"{\"key\":{\"z\":1,\"a\":2},\"value\":\"\"}"#),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn a_message_is_shown_unfolded_with_its_metadata() {
    let s = server().await;
    s.table(&[("PUT", &format!("{T}/t"), "", 204, "=")]).await;
    let (status, head, body) = s.ask("GET", &format!("/admin/v2{T}/t/ledger/3/entry/0"), "", "").await;
    assert_eq!((status, body.as_str()), (200, "hello hello hello"));
    for line in [
        "x-pulsar-message-id: 3:0",
        r#"x-pulsar-property: {"a":"b"}"#,
        "x-pulsar-publish-time: 2026-11-24t11:48:46.783z",
        "x-pulsar-producer-name: p?1",
        "x-pulsar-compression: lz4",
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    s.tasks.stop();
}

#[tokio::test]
async fn offload_policies_out_of_range_are_refused() {
    let s = server().await;
    *s.fake.driver.lock() = Some("aws-s3");
    let n = |path: &str| format!("/namespaces/public/default/{path}");
    let field = |name: &str, value: &str| format!(r#"{{"managedLedgerOffload{name}":{value}}}"#);
    let (bytes, seconds) = (field("ThresholdInBytes", "-7"), field("ThresholdInSeconds", "-2"));
    let (lag, text) = (field("DeletionLagInMillis", "-1"), field("DeletionLagInMillis", "\"x\""));
    let topic = format!("{T}/t/offloadPolicies");
    s.table(&[
        ("PUT", &format!("{T}/t"), "null", 204, "="),
        ("PUT", &n("offloadThreshold"), "100", 204, "="),
        ("PUT", &n("offloadThreshold"), "-7", 412, "offloadThreshold must be -1 (off), 0 or more"),
        ("PUT", &n("offloadThresholdInSeconds"), "-2", 412, "-1 (off)"),
        ("PUT", &n("offloadThreshold"), "9223372036854775808", 400, "whole number"),
        ("GET", &n("offloadThreshold"), "", 200, "=100"),
        ("PUT", &n("offloadDeletionLagMs"), "-1", 412, "offloadDeletionLagMs must be 0 or more"),
        ("POST", &n("offloadPolicies"), &bytes, 412, "InBytes must be -1"),
        ("POST", &topic, &seconds, 412, "InSeconds must be -1"),
        ("POST", &n("offloadPolicies"), &lag, 412, "InMillis must be 0"),
        ("POST", &n("offloadPolicies"), &text, 400, "whole number"),
        ("PUT", "/namespaces/public/low", r#"{"offload_threshold":-7}"#, 412, "offloadThreshold"),
    ])
    .await;
}

#[tokio::test]
async fn offloading_needs_a_store_and_obeys_what_it_takes() {
    let s = server().await;
    let n = |path: &str| format!("/namespaces/public/default/{path}");
    let p = |path: &str| format!("{T}/{path}");
    let own = r#"{"managedLedgerOffloadThresholdInBytes":5,"managedLedgerOffloadDriver":"AWS-S3"}"#;
    s.table(&[
        ("PUT", &p("t"), "null", 204, "="),
        ("PUT", &p("pt/partitions"), "2", 204, "="),
        ("GET", &p("t/offload"), "", 200, r#""status":"NOT_RUN""#),
        ("PUT", &p("t/offload"), r#"{"ledgerId":1,"entryId":0}"#, 501, "no object store"),
        ("PUT", &n("offloadThreshold"), "100", 501, "no object store"),
        ("PUT", &n("offloadThreshold"), "-1", 204, "="),
        ("POST", &p("t/offloadPolicies"), own, 501, "no object store"),
        ("PUT", "/namespaces/public/o", r#"{"offload_threshold":5}"#, 501, "no object store"),
    ])
    .await;
    *s.fake.driver.lock() = Some("aws-s3");
    let bucket = r#"{"s3ManagedLedgerOffloadBucket":"b"}"#;
    let lag = r#"{"managedLedgerOffloadDeletionLagInMillis":7,"managedLedgerOffloadBucket":null}"#;
    s.table(&[
        ("PUT", &p("t/offload"), r#"{"ledgerId":1,"entryId":0}"#, 204, "="),
        ("PUT", &p("t/offload"), r#""latest""#, 400, "message id"),
        ("PUT", &p("pt/offload"), r#"{"ledgerId":1,"entryId":0}"#, 405, "partitioned"),
        ("PUT", &n("offloadThreshold"), "100", 204, "="),
        ("GET", &n("offloadThreshold"), "", 200, "=100"),
        ("PUT", &n("offloadDeletionLagMs"), "9", 204, "="),
        ("GET", &n("offloadDeletionLagMs"), "", 200, "=9"),
        ("POST", &n("offloadPolicies"), bucket, 501, "s3ManagedLedgerOffloadBucket"),
        ("POST", &n("offloadPolicies"), r#"{"managedLedgerOffloadDriver":"azureblob"}"#, 501, "Driver"),
        ("POST", &n("offloadPolicies"), lag, 204, "="),
        ("GET", &n("offloadPolicies"), "", 200, r#"={"managedLedgerOffloadDeletionLagInMillis":7}"#),
        ("GET", &p("t/offloadPolicies?applied=true"), "", 200, "InMillis"),
        ("POST", &p("t/offloadPolicies"), own, 204, "="),
        ("GET", &p("t/offloadPolicies"), "", 200, r#""managedLedgerOffloadThresholdInBytes":5"#),
        ("DELETE", &n("removeOffloadPolicies"), "", 204, "="),
        ("GET", &n("offloadPolicies"), "", 200, "="),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn metrics_redirect_and_carry_topic_labels() {
    let s = server().await;
    s.table(&[("PUT", &format!("{T}/t/subscription/s"), "", 204, "=")]).await;
    let (status, head, _) = s.ask("GET", "/metrics", "", "").await;
    assert!(status == 301 && head.contains("location: /metrics/"));
    let (status, _, body) = s.ask("GET", "/metrics/", "", "").await;
    assert_eq!(status, 200);
    let labels = r#"cluster="c1",namespace="public/default",topic="persistent://public/default/t""#;
    assert!(body.contains(&format!("pulsar_msg_backlog{{{labels}}} 3.0\n")), "{body}");
    assert!(body.contains(&format!("pulsar_subscription_back_log{{{labels},subscription=\"s\"}} 3.0\n")));
    assert!(body.contains("pulsar_topics_count{cluster=\"c1\",namespace=\"public/default\"} 1.0\n"));
    assert!(body.contains("process_cpu_seconds_total{"));
    assert_eq!(body.matches("# TYPE pulsar_msg_backlog gauge").count(), 1);
    assert!(!metrics::render(&s.rest, &[]).contains("pulsar_msg_backlog"));
    s.tasks.stop();
}

#[test]
fn small_forms() {
    assert_eq!(time::iso_utc(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(time::iso_utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
    assert_eq!(message::base64(&[0; 8]), "AAAAAAAAAAA=");
    assert_eq!(message::base64(b"ab"), "YWI=");
    assert_eq!(metrics::cpu_ticks("1 (a ) b) S 2 3 4 5 6 7 8 9 10 11 30 12 13"), Some(42));
}

/// What metadata can never hold is refused for good, with the code and the limit, whichever record it was for.
#[tokio::test]
async fn a_change_too_large_for_metadata_is_not_to_be_tried_again() {
    let s = server().await;
    let huge = format!(r#"{{"a":"{}"}}"#, "x".repeat(3_000_000));
    let p = |topic: &str| format!("{T}/{topic}/properties");
    s.table(&[
        ("PUT", &format!("{T}/t"), "", 204, "="),
        ("PUT", &format!("{T}/pp/partitions"), "2", 204, "="),
        ("PUT", &p("t"), &huge, 413, "GM-4028: 3000"),
        ("PUT", &p("pp"), &huge, 413, "may hold (1400000)"),
        ("PUT", "/namespaces/public/default/properties", &huge, 413, "GM-4028"),
        ("PUT", &p("t"), r#"{"a":"b"}"#, 204, "="),
    ])
    .await;
    let refused = super::RestError::from(super::api::ApiError::TooLarge("GM-4028".to_owned()));
    assert_eq!(refused.status.as_u16(), 413, "properties of a subscription");
    s.tasks.stop();
}
