//! Names from the wire, from REST paths and from metadata keys.
//!
//! Held to: a name that exists prints as a text that gives the same name; partitions lead back to their topic; percent-encoding
//! is undone exactly; a key gives the name it was made of, and keys of different names differ.

use crate::alloc::bounded;
use geminga_broker::rest::fuzz::path_names;
use geminga_common::metadata::keys::Keys;
use geminga_common::names::{
    Bundle, BundleRange, Bundles, Domain, NamespaceName, SubscriptionName, TenantName, TopicName,
    percent_decode, percent_encode,
};

/// Runs the target.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    bounded((64 << 10) + 32 * data.len(), || {
        encoding(&text);
        small_names(&text);
        path_names(&text);
        if let Ok(topic) = TopicName::parse(&text) {
            topic_name(&topic);
        }
        let namespace = NamespaceName::public_default();
        if let Ok(topic) = TopicName::new(Domain::NonPersistent, namespace, &text) {
            topic_name(&topic);
        }
        foreign_key(&text);
    });
}

fn encoding(text: &str) {
    let encoded = percent_encode(text);
    assert_eq!(percent_decode(&encoded).as_deref(), Some(text));
    assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'~'));
    if let Some(decoded) = percent_decode(text) {
        assert!(decoded.len() <= text.len());
        assert_eq!(percent_decode(&percent_encode(&decoded)), Some(decoded));
    }
}

fn small_names(text: &str) {
    let keys = Keys::new("c");
    if let Ok(tenant) = TenantName::parse(text) {
        assert_eq!(keys.tenant_of_key(&keys.tenant(&tenant)), Some(tenant));
    }
    if let Ok(namespace) = NamespaceName::parse(text) {
        assert_eq!(NamespaceName::parse(&namespace.to_string()), Ok(namespace.clone()));
        assert_eq!(format!("{}/{}", namespace.tenant(), namespace.local()), namespace.as_str());
        assert_eq!(keys.namespace_of_key(&keys.namespace(&namespace)), Some(namespace));
    }
    if let Ok(subscription) = SubscriptionName::parse(text) {
        assert_eq!(subscription.as_str(), text);
    }
    if let Ok(range) = BundleRange::parse(text) {
        assert!(range.lower() < range.upper());
        assert_eq!(BundleRange::parse(&range.to_string()), Ok(range));
    }
    if let Ok(bundle) = Bundle::parse(text) {
        assert_eq!(Bundle::parse(&bundle.to_string()), Ok(bundle.clone()));
        assert_eq!(keys.bundle_of_owner_key(&keys.owner(&bundle)), Some(bundle.clone()));
        assert_eq!(keys.bundle_of_cursor_log_key(&keys.cursor_log(&bundle)), Some(bundle));
    }
}

fn topic_name(topic: &TopicName) {
    assert_eq!(TopicName::parse(topic.as_str()).as_ref(), Ok(topic));
    assert_eq!(format!("{}://{}/{}", topic.domain(), topic.namespace(), topic.local()), topic.as_str());
    assert_eq!(percent_decode(&topic.local_encoded()).as_deref(), Some(topic.local()));
    let base = topic.base();
    match topic.partition_index() {
        // The base of `x-partition-1-partition-2` is itself a name like a partition's.
        Some(index) if base.partition_index().is_none() => assert_eq!(&base.partition(index), topic),
        Some(_) => assert!(topic.as_str().starts_with(base.as_str())),
        None => assert_eq!(&base, topic),
    }
    let sibling = topic.partition(7);
    assert_eq!(sibling.partition_index(), Some(7));
    let keys = Keys::new("c");
    assert_eq!(keys.partitioned_of_key(&keys.partitioned(topic)).as_ref(), Some(topic));
    let key = keys.topic(topic);
    assert_eq!(keys.topic_of_key(&key).as_ref(), Some(topic));
    assert_eq!(key == keys.topic(&sibling), *topic == sibling, "one key for two topics");
    let bundles = Bundles::default_of(4);
    let bundle = bundles.bundle_of(topic);
    assert!(bundle.contains(topic));
}

/// Any text as a key, bare and behind the root of the keys.
fn foreign_key(text: &str) {
    let keys = Keys::new("c");
    for key in [text.to_owned(), format!("{}{text}", keys.root())] {
        if let Some(topic) = keys.topic_of_key(&key) {
            assert_eq!(TopicName::parse(topic.as_str()), Ok(topic));
        }
        let _tenant = keys.tenant_of_key(&key);
        let _namespace = keys.namespace_of_key(&key);
        let _partitioned = keys.partitioned_of_key(&key);
        let _owner = keys.bundle_of_owner_key(&key);
        let _log = keys.bundle_of_cursor_log_key(&key);
        let _bookies =
            (keys.bookie_of_key(&key), keys.live_bookie_of_key(&key), keys.live_broker_of_key(&key));
        let _ledgers = (keys.ledger_of_key(&key), keys.tombstone_of_key(&key), keys.repair_of_key(&key));
        let _setting = keys.cfg_of_key(&key);
    }
}
