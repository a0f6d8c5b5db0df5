//! The only place where metadata key paths are spelled.
//!
//! Owner: this file. Everything lies under `/geminga/{cluster}/v1/`:
//!
//! | Key | Holds |
//! |---|---|
//! | `b/{id}` | a bookie's record, not leased |
//! | `live/b/{id}`, `live/r/{id}` | liveness of a bookie, of a broker; leased |
//! | `owner/{tenant}/{ns}/{range}` | who owns a bundle; leased |
//! | `bd/{tenant}/{ns}/{range}` | a bundle's epoch counter |
//! | `tn/{tenant}`, `ns/{tenant}/{ns}` | tenant; namespace |
//! | `pt/{tenant}/{ns}/{topic}` | partition count |
//! | `tp/{tenant}/{ns}/{topic}` | policies and properties of one topic, shared by its partitions |
//! | `cl/{tenant}/{ns}/{range}` | ledgers of a bundle's cursor log |
//! | `t/{tenant}/{ns}/{hash}/{topic}` | a topic; ordered by hash, so a bundle is a key range and a split moves nothing |
//! | `ts/{topic id}/{chunk}` | further segments of a topic with very many |
//! | `l/{id}` | a ledger, while open, recovering or under-replicated |
//! | `del/{id}`, `rep/{id}` | tombstone; repair task |
//! | `leader/repair` | which broker repairs; leased |
//! | `dob/{attempt}` | an object that is to be removed from the object store |
//! | `store` | which object store the cluster's closed ledgers go to |
//! | `ids`, `tids` | next block of ledger ids; of topic ids |
//! | `wm_create`, `wm` | dead-id watermarks: obeyed by creators; obeyed by bookies |
//! | `cfg/{name}` | cluster-wide settings |
//! | `sch/{tenant}/{ns}/{topic}` | schemas, shared by the partitions and domains of a topic, as in Pulsar |
//!
//! Numbers are decimal of fixed width (20 digits), so that key order is number order; hashes are 8 hex digits. `{topic}` is the
//! local name percent-encoded; a non-persistent topic's ends with `~np`, which no encoded name does.

use super::Record;
use crate::ids::{BookieId, LedgerId, TopicId};
use crate::names::{Bundle, Domain, NamespaceName, TenantName, TopicName};
use crate::names::{percent_decode, percent_encode, topic_hash};
use std::sync::Arc;

const NON_PERSISTENT_MARK: &str = "~np";

/// Spells and reads the keys of one cluster. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    root: Arc<str>,
}

/// The topics of one bundle as a stretch of keys: list `prefix` from `after` on and stop where [`TopicRange::contains`] ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicRange {
    /// To list by.
    pub prefix: String,
    /// Where to begin, exclusive.
    pub after: String,
    /// First key beyond; `None` when the prefix ends the range.
    end: Option<String>,
}

impl TopicRange {
    /// Whether a key of the listing is still inside.
    #[must_use]
    pub fn contains(&self, record: &Record) -> bool {
        self.end.as_ref().is_none_or(|end| record.key < *end)
    }
}

fn topic_segment(domain: Domain, local: &str) -> String {
    let mut segment = percent_encode(local);
    if domain == Domain::NonPersistent {
        segment.push_str(NON_PERSISTENT_MARK);
    }
    segment
}

fn topic_of_segments(tenant: &str, namespace: &str, segment: &str) -> Option<TopicName> {
    let (domain, encoded) = match segment.strip_suffix(NON_PERSISTENT_MARK) {
        Some(encoded) => (Domain::NonPersistent, encoded),
        None => (Domain::Persistent, segment),
    };
    let namespace = NamespaceName::new(TenantName::parse(tenant).ok()?, namespace).ok()?;
    TopicName::new(domain, namespace, &percent_decode(encoded)?).ok()
}

fn number_of(digits: &str) -> Option<u64> {
    let fixed = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    if fixed { digits.parse().ok() } else { None }
}

impl Keys {
    /// The keys of a cluster.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        Self { root: format!("/geminga/{}/v1/", percent_encode(cluster)).into() }
    }

    /// What every key of the cluster starts with.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    fn at(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}{rest}", self.root)
    }

    fn segments<'k, const N: usize>(&self, kind: &str, key: &'k str) -> Option<[&'k str; N]> {
        let rest = key.strip_prefix(&*self.root)?.strip_prefix(kind)?.strip_prefix('/')?;
        rest.split('/').collect::<Vec<_>>().try_into().ok()
    }

    /// A bookie's record.
    #[must_use]
    pub fn bookie(&self, id: &BookieId) -> String {
        self.at(format_args!("b/{id}"))
    }

    /// All bookies' records.
    #[must_use]
    pub fn bookies_prefix(&self) -> String {
        self.at(format_args!("b/"))
    }

    /// The bookie of a [`Self::bookie`] key.
    #[must_use]
    pub fn bookie_of_key(&self, key: &str) -> Option<BookieId> {
        let [id] = self.segments("b", key)?;
        BookieId::new(id)
    }

    /// Liveness of a bookie.
    #[must_use]
    pub fn live_bookie(&self, id: &BookieId) -> String {
        self.at(format_args!("live/b/{id}"))
    }

    /// Liveness of all bookies.
    #[must_use]
    pub fn live_bookies_prefix(&self) -> String {
        self.at(format_args!("live/b/"))
    }

    /// The bookie of a [`Self::live_bookie`] key.
    #[must_use]
    pub fn live_bookie_of_key(&self, key: &str) -> Option<BookieId> {
        let [id] = self.segments("live/b", key)?;
        BookieId::new(id)
    }

    /// Liveness of a broker, by its `host:port`.
    #[must_use]
    pub fn live_broker(&self, broker: &str) -> String {
        self.at(format_args!("live/r/{}", percent_encode(broker)))
    }

    /// Liveness of all brokers.
    #[must_use]
    pub fn live_brokers_prefix(&self) -> String {
        self.at(format_args!("live/r/"))
    }

    /// The broker of a [`Self::live_broker`] key.
    #[must_use]
    pub fn live_broker_of_key(&self, key: &str) -> Option<String> {
        let [broker] = self.segments("live/r", key)?;
        percent_decode(broker)
    }

    /// Who owns a bundle.
    #[must_use]
    pub fn owner(&self, bundle: &Bundle) -> String {
        self.at(format_args!("owner/{bundle}"))
    }

    /// Who owns the bundles of a namespace.
    #[must_use]
    pub fn owners_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("owner/{namespace}/"))
    }

    /// Who owns what, in the whole cluster.
    #[must_use]
    pub fn all_owners_prefix(&self) -> String {
        self.at(format_args!("owner/"))
    }

    /// The bundle of an [`Self::owner`] key.
    #[must_use]
    pub fn bundle_of_owner_key(&self, key: &str) -> Option<Bundle> {
        Bundle::parse(key.strip_prefix(&*self.root)?.strip_prefix("owner/")?).ok()
    }

    /// A bundle's epoch counter.
    #[must_use]
    pub fn bundle(&self, bundle: &Bundle) -> String {
        self.at(format_args!("bd/{bundle}"))
    }

    /// The epoch counters of all bundles that ever had an owner.
    #[must_use]
    pub fn all_bundles_prefix(&self) -> String {
        self.at(format_args!("bd/"))
    }

    /// The bundle of a [`Self::bundle`] key.
    #[must_use]
    pub fn bundle_of_key(&self, key: &str) -> Option<Bundle> {
        Bundle::parse(key.strip_prefix(&*self.root)?.strip_prefix("bd/")?).ok()
    }

    /// The epoch counters of a namespace's bundles.
    #[must_use]
    pub fn bundles_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("bd/{namespace}/"))
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, tenant: &TenantName) -> String {
        self.at(format_args!("tn/{tenant}"))
    }

    /// All tenants.
    #[must_use]
    pub fn tenants_prefix(&self) -> String {
        self.at(format_args!("tn/"))
    }

    /// The tenant of a [`Self::tenant`] key.
    #[must_use]
    pub fn tenant_of_key(&self, key: &str) -> Option<TenantName> {
        let [tenant] = self.segments("tn", key)?;
        TenantName::parse(tenant).ok()
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("ns/{namespace}"))
    }

    /// The namespaces of a tenant.
    #[must_use]
    pub fn namespaces_prefix(&self, tenant: &TenantName) -> String {
        self.at(format_args!("ns/{tenant}/"))
    }

    /// The namespaces of all tenants.
    #[must_use]
    pub fn all_namespaces_prefix(&self) -> String {
        self.at(format_args!("ns/"))
    }

    /// The namespace of a [`Self::namespace`] key.
    #[must_use]
    pub fn namespace_of_key(&self, key: &str) -> Option<NamespaceName> {
        let [tenant, local] = self.segments("ns", key)?;
        NamespaceName::new(TenantName::parse(tenant).ok()?, local).ok()
    }

    /// The partition count of the partitioned topic with exactly this name.
    #[must_use]
    pub fn partitioned(&self, topic: &TopicName) -> String {
        self.at(format_args!("pt/{}/{}", topic.namespace(), topic_segment(topic.domain(), topic.local())))
    }

    /// The partitioned topics of a namespace.
    #[must_use]
    pub fn partitioned_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("pt/{namespace}/"))
    }

    /// The topic of a [`Self::partitioned`] key.
    #[must_use]
    pub fn partitioned_of_key(&self, key: &str) -> Option<TopicName> {
        let [tenant, namespace, topic] = self.segments("pt", key)?;
        topic_of_segments(tenant, namespace, topic)
    }

    /// The policies and properties of a topic; its partitions share them.
    #[must_use]
    pub fn topic_settings(&self, topic: &TopicName) -> String {
        self.at(format_args!(
            "tp/{}/{}",
            topic.namespace(),
            topic_segment(topic.domain(), topic.base_local())
        ))
    }

    /// The policies and properties of all topics that have any.
    #[must_use]
    pub fn all_topic_settings_prefix(&self) -> String {
        self.at(format_args!("tp/"))
    }

    /// The partitioned topics of all namespaces.
    #[must_use]
    pub fn all_partitioned_prefix(&self) -> String {
        self.at(format_args!("pt/"))
    }

    /// The cursor log of a bundle.
    #[must_use]
    pub fn cursor_log(&self, bundle: &Bundle) -> String {
        self.at(format_args!("cl/{bundle}"))
    }

    /// The cursor logs of a namespace's bundles.
    #[must_use]
    pub fn cursor_logs_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("cl/{namespace}/"))
    }

    /// The bundle of a [`Self::cursor_log`] key.
    #[must_use]
    pub fn bundle_of_cursor_log_key(&self, key: &str) -> Option<Bundle> {
        Bundle::parse(key.strip_prefix(&*self.root)?.strip_prefix("cl/")?).ok()
    }

    /// A topic; a partition has its own record.
    #[must_use]
    pub fn topic(&self, topic: &TopicName) -> String {
        let segment = topic_segment(topic.domain(), topic.local());
        self.at(format_args!("t/{}/{:08x}/{segment}", topic.namespace(), topic_hash(topic)))
    }

    /// The topics of a namespace, in the order of their hashes.
    #[must_use]
    pub fn topics_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("t/{namespace}/"))
    }

    /// The topics of one bundle.
    #[must_use]
    pub fn topics_of_bundle(&self, bundle: &Bundle) -> TopicRange {
        let prefix = self.topics_prefix(&bundle.namespace);
        let after = format!("{prefix}{:08x}", bundle.range.lower());
        let end = (bundle.range.upper() != u32::MAX).then(|| format!("{prefix}{:08x}", bundle.range.upper()));
        TopicRange { prefix, after, end }
    }

    /// The topic of a [`Self::topic`] key.
    #[must_use]
    pub fn topic_of_key(&self, key: &str) -> Option<TopicName> {
        let [tenant, namespace, hash, topic] = self.segments("t", key)?;
        let topic = topic_of_segments(tenant, namespace, topic)?;
        (format!("{:08x}", topic_hash(&topic)) == hash).then_some(topic)
    }

    /// A further chunk of a topic's segments.
    #[must_use]
    pub fn topic_segments(&self, topic: TopicId, chunk: u64) -> String {
        self.at(format_args!("ts/{:020}/{chunk:020}", topic.0))
    }

    /// All further chunks of a topic's segments, in order.
    #[must_use]
    pub fn topic_segments_prefix(&self, topic: TopicId) -> String {
        self.at(format_args!("ts/{:020}/", topic.0))
    }

    /// A ledger.
    #[must_use]
    pub fn ledger(&self, ledger: LedgerId) -> String {
        self.at(format_args!("l/{:020}", ledger.0))
    }

    /// All ledgers that have a record, by id.
    #[must_use]
    pub fn ledgers_prefix(&self) -> String {
        self.at(format_args!("l/"))
    }

    /// The ledger of a [`Self::ledger`] key.
    #[must_use]
    pub fn ledger_of_key(&self, key: &str) -> Option<LedgerId> {
        let [id] = self.segments("l", key)?;
        number_of(id).map(LedgerId)
    }

    /// The tombstone of a ledger.
    #[must_use]
    pub fn tombstone(&self, ledger: LedgerId) -> String {
        self.at(format_args!("del/{:020}", ledger.0))
    }

    /// All tombstones, by ledger id.
    #[must_use]
    pub fn tombstones_prefix(&self) -> String {
        self.at(format_args!("del/"))
    }

    /// The ledger of a [`Self::tombstone`] key.
    #[must_use]
    pub fn tombstone_of_key(&self, key: &str) -> Option<LedgerId> {
        let [id] = self.segments("del", key)?;
        number_of(id).map(LedgerId)
    }

    /// Every cursor log there is.
    #[must_use]
    pub fn all_cursor_logs_prefix(&self) -> String {
        self.at(format_args!("cl/"))
    }

    /// Every topic there is.
    #[must_use]
    pub fn all_topics_prefix(&self) -> String {
        self.at(format_args!("t/"))
    }

    /// Which broker repairs; leased.
    #[must_use]
    pub fn repair_leader(&self) -> String {
        self.at(format_args!("leader/repair"))
    }

    /// What an attempt at an offload left in the object store.
    #[must_use]
    pub fn object_garbage(&self, attempt: u64) -> String {
        self.at(format_args!("dob/{attempt:020}"))
    }

    /// Which object store closed ledgers go to.
    #[must_use]
    pub fn object_store(&self) -> String {
        self.at(format_args!("store"))
    }

    /// All that is to be removed from the object store.
    #[must_use]
    pub fn object_garbage_prefix(&self) -> String {
        self.at(format_args!("dob/"))
    }

    /// The repair task of a ledger.
    #[must_use]
    pub fn repair(&self, ledger: LedgerId) -> String {
        self.at(format_args!("rep/{:020}", ledger.0))
    }

    /// All repair tasks, by ledger id.
    #[must_use]
    pub fn repairs_prefix(&self) -> String {
        self.at(format_args!("rep/"))
    }

    /// The ledger of a [`Self::repair`] key.
    #[must_use]
    pub fn repair_of_key(&self, key: &str) -> Option<LedgerId> {
        let [id] = self.segments("rep", key)?;
        number_of(id).map(LedgerId)
    }

    /// The counter that blocks of ledger ids are leased from.
    #[must_use]
    pub fn ids(&self) -> String {
        self.at(format_args!("ids"))
    }

    /// The counter that blocks of topic ids are leased from.
    #[must_use]
    pub fn topic_ids(&self) -> String {
        self.at(format_args!("tids"))
    }

    /// The dead-id watermark that creators of ledgers compare.
    #[must_use]
    pub fn wm_create(&self) -> String {
        self.at(format_args!("wm_create"))
    }

    /// The dead-id watermark that bookies obey.
    #[must_use]
    pub fn wm(&self) -> String {
        self.at(format_args!("wm"))
    }

    /// A cluster-wide setting.
    #[must_use]
    pub fn cfg(&self, name: &str) -> String {
        self.at(format_args!("cfg/{}", percent_encode(name)))
    }

    /// All cluster-wide settings.
    #[must_use]
    pub fn cfg_prefix(&self) -> String {
        self.at(format_args!("cfg/"))
    }

    /// The setting of a [`Self::cfg`] key.
    #[must_use]
    pub fn cfg_of_key(&self, key: &str) -> Option<String> {
        let [name] = self.segments("cfg", key)?;
        percent_decode(name)
    }

    /// The schemas of a topic; its partitions share them.
    #[must_use]
    pub fn schema(&self, topic: &TopicName) -> String {
        self.at(format_args!("sch/{}/{}", topic.namespace(), percent_encode(topic.base_local())))
    }

    /// The schemas of a namespace's topics.
    #[must_use]
    pub fn schemas_prefix(&self, namespace: &NamespaceName) -> String {
        self.at(format_args!("sch/{namespace}/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Bundles;

    fn topic(text: &str) -> TopicName {
        TopicName::parse(text).unwrap()
    }

    #[test]
    fn the_layout_is_spelt_as_designed() {
        let keys = Keys::new("c1");
        let name = topic("a/b/x y");
        let hash = format!("{:08x}", topic_hash(&name));
        assert_eq!(keys.topic(&name), format!("/geminga/c1/v1/t/a/b/{hash}/x%20y"));
        assert_eq!(keys.partitioned(&topic("non-persistent://a/b/x")), "/geminga/c1/v1/pt/a/b/x~np");
        assert_eq!(keys.ledger(LedgerId(7)), "/geminga/c1/v1/l/00000000000000000007");
        assert_eq!(keys.object_store(), "/geminga/c1/v1/store");
        assert_eq!(keys.object_garbage(7), "/geminga/c1/v1/dob/00000000000000000007");
        let bundle = Bundles::default_of(4).bundle_of(&name);
        assert_eq!(keys.owner(&bundle), format!("/geminga/c1/v1/owner/a/b/{}", bundle.range));
        assert_eq!(keys.schema(&name.partition(2)), keys.schema(&name));
        assert_eq!(Keys::new("a/b").root(), "/geminga/a%2Fb/v1/");
    }

    #[test]
    fn what_is_spelt_is_read_back() {
        let keys = Keys::new("c1");
        for text in ["a/b/c", "non-persistent://a/b/c~np", "a/b/c~np", "a/b/.. %zz", "x-partition-3"] {
            let name = topic(text);
            assert_eq!(keys.topic_of_key(&keys.topic(&name)), Some(name.clone()));
            assert_eq!(keys.partitioned_of_key(&keys.partitioned(&name)), Some(name.clone()));
            let bundle = Bundles::default_of(3).bundle_of(&name);
            assert_eq!(keys.bundle_of_owner_key(&keys.owner(&bundle)), Some(bundle.clone()));
            assert_eq!(keys.bundle_of_cursor_log_key(&keys.cursor_log(&bundle)), Some(bundle));
            assert_eq!(
                keys.namespace_of_key(&keys.namespace(name.namespace())).as_ref(),
                Some(name.namespace())
            );
            assert_eq!(keys.tenant_of_key(&keys.tenant(name.tenant())).as_ref(), Some(name.tenant()));
        }
        let bookie = BookieId::new("host:3181").unwrap();
        assert_eq!(keys.bookie_of_key(&keys.bookie(&bookie)), Some(bookie.clone()));
        assert_eq!(keys.live_bookie_of_key(&keys.live_bookie(&bookie)), Some(bookie));
        assert_eq!(keys.live_broker_of_key(&keys.live_broker("h:1/x")).as_deref(), Some("h:1/x"));
        assert_eq!(keys.cfg_of_key(&keys.cfg("a/b")).as_deref(), Some("a/b"));
        let ledger = LedgerId(u64::MAX >> 1);
        assert_eq!(keys.ledger_of_key(&keys.ledger(ledger)), Some(ledger));
        assert_eq!(keys.tombstone_of_key(&keys.tombstone(ledger)), Some(ledger));
        assert_eq!(keys.repair_of_key(&keys.repair(ledger)), Some(ledger));
        assert_eq!(keys.ledger_of_key(&keys.tombstone(ledger)), None);
        assert_eq!(keys.ledger_of_key("/geminga/c1/v1/l/7"), None);
        assert_eq!(Keys::new("c2").ledger_of_key(&keys.ledger(ledger)), None);
    }

    #[test]
    fn a_bundle_is_a_key_range() {
        let keys = Keys::new("c1");
        let namespace = NamespaceName::public_default();
        for bundles in [Bundles::default_of(1), Bundles::default_of(4), Bundles::default_of(7)] {
            for i in 0..200 {
                let name = TopicName::new(Domain::Persistent, namespace.clone(), &format!("t{i}")).unwrap();
                let key = keys.topic(&name);
                for range in bundles.ranges() {
                    let stretch = keys.topics_of_bundle(&Bundle { namespace: namespace.clone(), range });
                    let record = Record {
                        key: key.clone(),
                        value: Default::default(),
                        mod_revision: Default::default(),
                    };
                    let inside =
                        key.starts_with(&stretch.prefix) && key > stretch.after && stretch.contains(&record);
                    assert_eq!(inside, range.contains(topic_hash(&name)), "{key} in {range}");
                }
            }
        }
    }

    #[test]
    fn fixed_width_keeps_number_order() {
        let keys = Keys::new("c1");
        assert!(keys.ledger(LedgerId(9)) < keys.ledger(LedgerId(10)));
        assert!(keys.topic_segments(TopicId(1), 2) < keys.topic_segments(TopicId(1), 10));
    }
}
