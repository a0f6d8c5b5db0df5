//! Tests of the registry beside them.
use super::*;
use geminga_common::clock::ManualClock;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{Compare, MetadataStore, Op, Txn, TxnOutcome};
use geminga_common::names::{NamespaceName, TenantName, TopicName};
use geminga_common::tasks::TaskGroup;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn store() -> Arc<dyn MetadataStore> {
    Arc::new(MemoryStore::new(Arc::new(ManualClock::default())))
}

async fn open(store: &Arc<dyn MetadataStore>, tasks: &TaskGroup) -> Namespaces {
    let names = Namespaces::start(store.clone(), Defaults::of_cluster("c1"), tasks).await.unwrap();
    names.bootstrap().await.unwrap();
    names
}

fn ns(text: &str) -> NamespaceName {
    NamespaceName::parse(text).unwrap()
}

fn topic(text: &str) -> TopicName {
    TopicName::parse(text).unwrap()
}

/// Stands in for the managed ledger's creation of a topic record.
async fn store_topic(names: &Namespaces, name: &TopicName) -> TxnOutcome {
    let guard = names.creation_guard(name.namespace()).await.unwrap();
    let txn = Txn { compares: vec![guard], ops: vec![Op::put(names.cluster_keys().topic(name), &b"x"[..])] };
    names.metadata().txn(txn).await.unwrap()
}

#[tokio::test]
async fn bootstrap_makes_the_two_namespaces_once() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    names.bootstrap().await.unwrap();
    let all: Vec<String> = names.all_namespaces().iter().map(ToString::to_string).collect();
    assert_eq!(all, ["public/default", "pulsar/system"]);
    let policies = names.policies(&ns("public/default")).unwrap();
    let shown = serde_json::to_value(&*policies).unwrap();
    assert_eq!(shown["bundles"]["boundaries"][1], "0x40000000");
    assert_eq!(shown["replication_clusters"], serde_json::json!(["c1"]));
    assert_eq!(shown["offload_threshold"], -1);
    assert!(shown.get("retention_policies").is_none());
}

#[tokio::test]
async fn one_broker_sees_what_another_writes() {
    let (store, tasks) = (store(), TaskGroup::new());
    let (one, two) = (open(&store, &tasks).await, open(&store, &tasks).await);
    let mut changes = two.changes();
    changes.mark_unchanged();
    one.update_policies(&ns("public/default"), |p| {
        p.message_ttl_in_seconds = Some(7);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(
        one.policies(&ns("public/default")).unwrap().message_ttl_in_seconds,
        Some(7),
        "own writes show at once"
    );
    let seen = async {
        while two.policies(&ns("public/default")).unwrap().message_ttl_in_seconds != Some(7) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.expect("the watch brings the change");
}

#[tokio::test]
async fn tenants_go_only_when_empty() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    let tenant = TenantName::parse("t").unwrap();
    names.create_tenant(&tenant, &Tenant::default()).await.unwrap();
    assert!(matches!(
        names.create_tenant(&tenant, &Tenant::default()).await,
        Err(NamespaceError::TenantExists(_))
    ));
    names.create_namespace(&ns("t/a"), &names.fresh_policies()).await.unwrap();
    assert!(matches!(names.delete_tenant(&tenant).await, Err(NamespaceError::TenantNotEmpty(_))));
    let again = names.create_namespace(&ns("t/a"), &names.fresh_policies()).await;
    assert!(matches!(again, Err(NamespaceError::NamespaceExists(_))));
    names.delete_namespace(&ns("t/a")).await.unwrap();
    names.delete_tenant(&tenant).await.unwrap();
    assert!(names.tenant(&tenant).is_none());
    let orphan = names.create_namespace(&ns("t/a"), &names.fresh_policies()).await;
    assert!(matches!(orphan, Err(NamespaceError::TenantNotFound(_))));
}

#[tokio::test]
async fn a_topic_cannot_appear_in_a_namespace_that_is_going() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    let guard = names.creation_guard(&ns("public/default")).await.unwrap();
    let made = store_topic(&names, &topic("t")).await;
    assert!(matches!(made, TxnOutcome::Committed(_)));
    assert!(matches!(
        names.delete_namespace(&ns("public/default")).await,
        Err(NamespaceError::NamespaceNotEmpty(_))
    ));
    assert!(names.check_load(&topic("t")).is_ok(), "the mark is taken back");
    // A creator that asked before the deletion began loses against it.
    let late =
        Txn { compares: vec![guard], ops: vec![Op::put(names.cluster_keys().topic(&topic("u")), &b"x"[..])] };
    assert_eq!(names.metadata().txn(late).await.unwrap(), TxnOutcome::CompareFailed);
}

#[tokio::test]
async fn partitions_only_grow_and_share_one_name_space_with_plain_topics() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    let p = topic("p");
    names.create_partitioned(&p, 2, BTreeMap::new()).await.unwrap();
    assert_eq!(names.partition_count(&p.partition(1)), Some(2));
    assert!(matches!(
        names.create_partitioned(&p, 2, BTreeMap::new()).await,
        Err(NamespaceError::TopicExists(_))
    ));
    assert!(matches!(
        names.create_partitioned(&p.partition(0), 2, BTreeMap::new()).await,
        Err(NamespaceError::PartitionOfPartition(_))
    ));
    assert!(matches!(
        names.create_partitioned(&topic("q"), 0, BTreeMap::new()).await,
        Err(NamespaceError::PartitionCount(0))
    ));
    names.grow_partitioned(&p, 3).await.unwrap();
    names.grow_partitioned(&p, 3).await.unwrap();
    let fewer = names.grow_partitioned(&p, 1).await;
    assert!(matches!(fewer, Err(NamespaceError::PartitionsFewer { current: 3, wanted: 1 })));
    store_topic(&names, &topic("plain")).await;
    assert!(matches!(
        names.create_partitioned(&topic("plain"), 2, BTreeMap::new()).await,
        Err(NamespaceError::TopicExists(_))
    ));
    names.create_partitioned(&topic("non-persistent://public/default/n"), 1, BTreeMap::new()).await.unwrap();
    let list = |mode| names.topics(p.namespace(), mode);
    let persistent: Vec<String> =
        list(DomainMode::Persistent).await.unwrap().iter().map(|t| t.local().to_owned()).collect();
    assert_eq!(persistent, ["p-partition-0", "p-partition-1", "p-partition-2", "plain"]);
    assert_eq!(list(DomainMode::All).await.unwrap().len(), 5);
    assert_eq!(list(DomainMode::NonPersistent).await.unwrap().len(), 1);
    names.delete_partitioned(&p).await.unwrap();
    assert_eq!(names.partition_count(&p), None);
    assert!(matches!(names.grow_partitioned(&p, 4).await, Err(NamespaceError::NotPartitioned(_))));
}

#[test]
fn names_must_agree_with_partition_counts() {
    let (t, p) = (topic("t"), topic("t-partition-3"));
    let table = [
        (&t, None, None),
        (&t, Some(4), Some(ResolveError::IsPartitioned(t.clone()))),
        (&p, None, Some(ResolveError::NoPartitionedParent(p.clone()))),
        (&p, Some(3), Some(ResolveError::PartitionOutOfRange { topic: p.clone(), count: 3 })),
        (&p, Some(4), None),
    ];
    for (name, count, error) in table {
        assert_eq!(check_load(name, count).err(), error, "{name} with {count:?}");
    }
}

#[test]
fn a_metadata_request_finds_creates_or_refuses() {
    let t = topic("t");
    let off = AutoCreation { allowed: false, partitions: None };
    let plain = AutoCreation { allowed: true, partitions: None };
    let parts = AutoCreation { allowed: true, partitions: Some(3) };
    let not_found = || Err(ResolveError::NotFound(t.clone()));
    let table = [
        (Some(5), false, true, off, Ok(Metadata::Partitioned(5))),
        (None, true, false, off, Ok(Metadata::Plain)),
        (None, false, true, off, not_found()),
        (None, false, false, parts, not_found()),
        (None, false, true, plain, Ok(Metadata::Plain)),
        (None, false, true, parts, Ok(Metadata::Create(3))),
        (None, true, true, parts, Ok(Metadata::Plain)),
    ];
    for (count, exists, may, rule, wanted) in table {
        assert_eq!(
            resolve_metadata(&t, count, exists, may, rule),
            wanted,
            "{count:?} {exists} {may} {rule:?}"
        );
    }
}

#[tokio::test]
async fn the_metadata_request_creates_by_the_namespaces_rule() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    assert_eq!(names.partition_metadata(&topic("a"), true).await.unwrap(), 0);
    let rule = |count| AutoTopicCreation {
        allow_auto_topic_creation: true,
        topic_type: Some(TopicType::Partitioned),
        default_num_partitions: Some(count),
    };
    names
        .update_policies(&ns("public/default"), |p| {
            p.auto_topic_creation = Some(rule(3));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(names.partition_metadata(&topic("b"), true).await.unwrap(), 3);
    assert_eq!(names.partition_metadata(&topic("b").partition(1), true).await.unwrap(), 0);
    assert!(names.partition_metadata(&topic("c"), false).await.is_err());
    let unstored = topic("non-persistent://public/default/n");
    assert_eq!(names.partition_metadata(&unstored, true).await.unwrap(), 3);
    let elsewhere = names.partition_metadata(&topic("public/none/x"), true).await;
    assert!(matches!(elsewhere, Err(NamespaceError::NamespaceNotFound(_))));
}

#[tokio::test]
async fn topic_records_are_shared_by_partitions_and_vanish_when_empty() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    let set = |n| {
        move |r: &mut TopicRecord| {
            r.policies.max_producers = n;
            Ok(())
        }
    };
    names.update_topic_record(&topic("t").partition(2), set(Some(4))).await.unwrap();
    assert_eq!(names.topic_record(&topic("t")).unwrap().policies.max_producers, Some(4));
    names.update_topic_record(&topic("t"), set(None)).await.unwrap();
    assert!(names.topic_record(&topic("t")).is_none());
    let key = names.cluster_keys().topic_settings(&topic("t"));
    assert!(names.metadata().get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn records_of_a_later_release_are_refused_and_never_overwritten() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    let key = names.cluster_keys().namespace(&ns("public/default"));
    let txn = Txn {
        compares: vec![Compare::Exists(key.clone())],
        ops: vec![Op::put(key, &br#"{"v":9,"r":{}}"#[..])],
    };
    store.txn(txn).await.unwrap();
    let answer = names.update_policies(&ns("public/default"), |_| Ok(())).await;
    assert!(matches!(answer, Err(NamespaceError::Decode(DecodeError::Version(9)))));
}

#[test]
fn policies_are_read_as_leniently_as_pulsar_reads_them() {
    let text = r#"{"message_ttl_in_seconds":"60","max_producers_per_topic":2.9,"properties":null,"no_such":1,
        "backlog_quota_map":{"destination_storage":{"limit":"10240","policy":"producer_request_hold"}},
        "auth_policies":{"namespace_auth":{"anonymous":["produce","consume"]}}}"#;
    let policies: Policies = serde_json::from_str(text).unwrap();
    assert_eq!(policies.message_ttl_in_seconds, Some(60));
    assert_eq!(policies.max_producers_per_topic, Some(2));
    let quota = &policies.backlog_quota_map[&BacklogQuotaType::DestinationStorage];
    assert_eq!(
        (quota.limit_size, quota.limit_time, quota.policy),
        (10240, -1, Some(QuotaPolicy::ProducerRequestHold))
    );
    let again: Policies = decode(&encode(&policies)).unwrap();
    assert_eq!(again, policies);
    let odd = r#"{"auth_policies":{"namespace_auth":{"a":["fly"]}}}"#;
    assert!(
        serde_json::from_str::<Policies>(odd).is_err(),
        "an unknown action is refused, not stored as null"
    );
}

#[test]
fn the_topics_hash_is_that_of_pulsar() {
    // crc32c("") and crc32c("123456789") = e3069283, shown byte-reversed.
    assert_eq!(topics_hash([]), "00000000");
    assert_eq!(topics_hash(["123456789"]), "839206e3");
    assert_eq!(topics_hash(["b", "a"]), topics_hash(["a", "b"]));
}

#[test]
fn patterns_match_whole_names_without_domain_and_partition() {
    let topics: Vec<TopicName> =
        ["foo-1", "foo-2-partition-7", "xfoo-1", "non-persistent://public/default/foo-3"].map(topic).into();
    let pattern = Pattern::new("persistent://public/default/foo-\\d").unwrap();
    let left: Vec<String> = filter_topics(topics, &pattern).iter().map(|t| t.local().to_owned()).collect();
    assert_eq!(left, ["foo-1", "foo-2-partition-7", "foo-3"]);
    assert!(Pattern::new("(?=look)").is_err());
    assert!(Pattern::new("((a{1000}){1000}){1000}").is_err());
}

#[tokio::test]
async fn a_topics_creation_depends_on_its_namespace_and_its_partitioned_parent() {
    let (store, tasks) = (store(), TaskGroup::new());
    let names = open(&store, &tasks).await;
    names.bootstrap().await.unwrap();
    let plain = topic("persistent://public/default/both");
    let create = async |name: &TopicName, guard: Vec<Compare>| {
        let ops = vec![Op::put(names.cluster_keys().topic(name), &b"x"[..])];
        names.metadata().txn(Txn { compares: guard, ops }).await.unwrap()
    };
    let guard = names.topic_creation_guard(&plain).await.unwrap();
    names.create_partitioned(&plain, 2, Default::default()).await.unwrap();
    assert_eq!(create(&plain, guard).await, TxnOutcome::CompareFailed, "it became a partitioned topic");
    assert!(names.topic_creation_guard(&plain).await.is_err());
    assert!(names.topic_creation_guard(&plain.partition(2)).await.is_err(), "beyond the count");
    let guard = names.topic_creation_guard(&plain.partition(1)).await.unwrap();
    names.grow_partitioned(&plain, 3).await.unwrap();
    assert_eq!(create(&plain.partition(1), guard).await, TxnOutcome::CompareFailed, "its parent has changed");
    let guard = names.topic_creation_guard(&plain.partition(1)).await.unwrap();
    assert!(matches!(create(&plain.partition(1), guard).await, TxnOutcome::Committed(_)));
}
