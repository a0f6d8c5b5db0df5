//! Tests of the registry beside them.
use super::*;
use crate::namespace::SchemaCompatibility::{self, AlwaysCompatible, AlwaysIncompatible, Full};
use bytes::Bytes;
use geminga_common::clock::ManualClock;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::names::TopicName;
use std::sync::Arc;

const PRODUCER: Source = Source::Producer { may_add: true };

fn registry() -> SchemaRegistry {
    let clock = Arc::new(ManualClock::default());
    SchemaRegistry::new(Arc::new(MemoryStore::new(clock)), "c1")
}

fn topic() -> TopicName {
    TopicName::parse("public/default/t").unwrap()
}

fn json(definition: &'static str) -> SchemaData {
    SchemaData {
        schema_type: SchemaType::JSON,
        name: "n".into(),
        data: Bytes::from_static(definition.as_bytes()),
        properties: [("a".to_owned(), "line\nfeed".to_owned())].into(),
        timestamp_ms: 7,
        user: String::new(),
    }
}

async fn put(r: &SchemaRegistry, s: &SchemaData, how: SchemaCompatibility) -> Result<u64, SchemaError> {
    r.get_or_create(&topic(), s, how, PRODUCER).await.map(|v| v.0)
}

#[tokio::test]
async fn an_identical_schema_keeps_its_version_and_partitions_share_it() {
    let r = registry();
    assert_eq!(put(&r, &json("a\nb"), Full).await.unwrap(), 0);
    assert_eq!(put(&r, &json("a\nb"), AlwaysIncompatible).await.unwrap(), 0);
    let partition = topic().partition(3);
    assert_eq!(r.latest(&partition).await.unwrap().unwrap().schema, json("a\nb"));
}

#[tokio::test]
async fn a_differing_schema_is_refused_unless_everything_is_compatible() {
    let r = registry();
    put(&r, &json("a"), Full).await.unwrap();
    let not_judged = put(&r, &json("b"), Full).await;
    assert!(matches!(not_judged, Err(SchemaError::Incompatible(Refusal::NotJudged))));
    let never = put(&r, &json("b"), AlwaysIncompatible).await;
    assert!(matches!(never, Err(SchemaError::Incompatible(Refusal::AlwaysIncompatible))));
    let mut other = json("a");
    other.schema_type = SchemaType::AVRO;
    let other_type = put(&r, &other, Full).await;
    assert!(matches!(other_type, Err(SchemaError::Incompatible(Refusal::OtherType))));
    assert_eq!(put(&r, &json("b"), AlwaysCompatible).await.unwrap(), 1);
    assert_eq!(put(&r, &json("a"), Full).await.unwrap(), 0, "an old schema is found again");
    let all: Vec<u64> = r.all(&topic()).await.unwrap().iter().map(|s| s.version.0).collect();
    assert_eq!(all, [0, 1]);
}

#[tokio::test]
async fn a_producer_that_may_not_add_finds_only_what_is_there() {
    let r = registry();
    let bound = Source::Producer { may_add: false };
    let refused = r.get_or_create(&topic(), &json("a"), AlwaysCompatible, bound).await;
    assert!(matches!(refused, Err(SchemaError::Incompatible(Refusal::AutoUpdateOff))));
    put(&r, &json("a"), Full).await.unwrap();
    assert_eq!(r.get_or_create(&topic(), &json("a"), Full, bound).await.unwrap(), SchemaVersion(0));
}

#[tokio::test]
async fn deletion_takes_a_version_number() {
    let r = registry();
    put(&r, &json("a"), Full).await.unwrap();
    put(&r, &json("b"), AlwaysCompatible).await.unwrap();
    assert_eq!(r.delete(&topic()).await.unwrap(), SchemaVersion(2));
    assert!(r.latest(&topic()).await.unwrap().is_none());
    assert!(r.get(&topic(), SchemaVersion(0)).await.unwrap().is_none());
    assert_eq!(
        r.delete(&topic()).await.unwrap(),
        SchemaVersion(3),
        "a repeated deletion takes a number too, as in Pulsar"
    );
    assert_eq!(put(&r, &json("a"), Full).await.unwrap(), 4);
    let never = TopicName::parse("public/default/never").unwrap();
    assert_eq!(r.delete(&never).await.unwrap(), SchemaVersion(0));
}

#[tokio::test]
async fn a_consumer_is_held_against_the_topics_schema() {
    let r = registry();
    assert!(matches!(r.check_consumer(&topic(), &json("a"), Full).await, Err(SchemaError::NotFound)));
    put(&r, &json("a"), Full).await.unwrap();
    assert_eq!(r.check_consumer(&topic(), &json("a"), Full).await.unwrap(), SchemaVersion(0));
    assert!(r.check_consumer(&topic(), &json("a"), AlwaysIncompatible).await.is_err());
    assert!(r.check_consumer(&topic(), &json("b"), Full).await.is_err());
    assert!(r.check_consumer(&topic(), &json("b"), AlwaysCompatible).await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused() {
    let r = registry();
    let mut odd = json("a");
    odd.schema_type = SchemaType::AUTO_CONSUME;
    assert!(matches!(put(&r, &odd, Full).await, Err(SchemaError::UnknownType(21))));
    let mut large = json("");
    large.data = vec![b'x'; (1 << 20) + 1].into();
    assert!(matches!(put(&r, &large, Full).await, Err(SchemaError::TooLarge(_))));
}

#[test]
fn versions_travel_as_eight_big_endian_bytes() {
    assert_eq!(&SchemaVersion(258).to_bytes()[..], [0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(SchemaVersion::from_bytes(&[0, 0, 0, 0, 0, 0, 1, 2]), Some(SchemaVersion(258)));
    assert_eq!(SchemaVersion::from_bytes(&[1]), None);
}
