//! Names of tenants, namespaces, topics and subscriptions: parsed once at the edge, valid by construction from there on.
//!
//! Owner: whoever parses a request. Invariants: a name that exists obeys Pulsar 4.2's rules, prints as clients spell it, and
//! reading back what it prints gives an equal name. A topic or namespace name is one `Arc`, so that handing one around costs
//! a counter and looking its text up costs nothing; the obvious other (three strings, joined for each log line and map
//! lookup) allocates on hot paths.
//!
//! Two bounds are ours, because Pulsar has none and a name travels in every record and path: see [`LOCAL_BYTES_MAX`] and
//! [`SUBSCRIPTION_BYTES_MAX`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

mod bundle;
#[cfg(test)]
mod tests;

pub use bundle::{Bundle, BundleError, BundleRange, Bundles, topic_hash};

/// Most bytes of a topic's local name, not counting a partition suffix.
pub const LOCAL_BYTES_MAX: usize = 2048;
/// Most bytes of a subscription name.
pub const SUBSCRIPTION_BYTES_MAX: usize = 1024;
/// Most bytes of a tenant's name, and of a namespace's local name.
pub const ENTITY_BYTES_MAX: usize = 255;

const PARTITION_SUFFIX: &str = "-partition-";

/// Why a text is not a name. The message is meant for the person who typed it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No tenant was given.
    #[error("the tenant name is empty")]
    EmptyTenant,
    /// No namespace was given.
    #[error("the namespace name is empty")]
    EmptyNamespace,
    /// A tenant or namespace name holds a character outside Pulsar's rule.
    #[error(
        "'{0}' holds the character {1:?}; tenant and namespace names may hold letters, digits and _ - = : . only"
    )]
    ForbiddenCharacter(String, char),
    /// A tenant or namespace name is too long.
    #[error("a tenant or namespace name of {0} bytes is longer than the {ENTITY_BYTES_MAX} bytes allowed")]
    EntityTooLong(usize),
    /// Not `tenant/namespace`.
    #[error("'{0}' is not a namespace name; it should look like tenant/namespace")]
    NamespaceShape(String),
    /// Neither `[domain://]tenant/namespace/topic` nor a bare topic name.
    #[error("'{0}' is not a topic name; it should look like [persistent://]tenant/namespace/topic or topic")]
    TopicShape(String),
    /// A domain other than the two.
    #[error("unknown topic domain '{0}'; it is persistent or non-persistent")]
    UnknownDomain(String),
    /// `tenant/cluster/namespace/topic`, which Pulsar dropped in 4.2; also a topic name with a `/` in it.
    #[error(
        "'{0}' has more than three parts; names of the form tenant/cluster/namespace/topic are no longer supported"
    )]
    V1Name(String),
    /// No topic was given.
    #[error("the topic name is empty")]
    EmptyTopic,
    /// A tenant or namespace that URLs cannot name.
    #[error("'{0}' is a step of a path, not a name")]
    PathStep(String),
    /// A topic name holds NUL, which no URL can name. Other control characters are taken, as Pulsar takes them.
    #[error("the topic name {0:?} holds NUL")]
    Nul(String),
    /// The topic name ends with a slash.
    #[error("the topic name '{0}' ends with '/'")]
    TrailingSlash(String),
    /// A topic name holds a slash.
    #[error("the topic name '{0}' holds a '/'")]
    SlashInTopic(String),
    /// The topic's local name is too long.
    #[error("a topic name of {0} bytes is longer than the {LOCAL_BYTES_MAX} bytes allowed")]
    TopicTooLong(usize),
    /// No subscription was given.
    #[error("the subscription name is empty")]
    EmptySubscription,
    /// The subscription name is too long.
    #[error("a subscription name of {0} bytes is longer than the {SUBSCRIPTION_BYTES_MAX} bytes allowed")]
    SubscriptionTooLong(usize),
}

/// Reads the name of a cluster, for `#[serde(deserialize_with)]`: as a tenant's, because it is a step of metadata keys and of the keys
/// in a bucket.
///
/// # Errors
/// A text that says what such a name may hold.
pub fn deserialize_cluster<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    let allowed = format!("letters, digits and _ - = : . only, 1 to {ENTITY_BYTES_MAX} of them");
    match check_entity(&text, NameError::EmptyNamespace) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(serde::de::Error::custom(format!("'{text}' is no name of a cluster: it may hold {allowed}")))
        }
    }
}

/// Pulsar's rule for named entities, `[-=:.\w]+`.
fn check_entity(text: &str, empty: NameError) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(empty);
    }
    if text.len() > ENTITY_BYTES_MAX {
        return Err(NameError::EntityTooLong(text.len()));
    }
    // No URL can name these: clients and proxies resolve them as steps of the path.
    if matches!(text, "." | "..") {
        return Err(NameError::PathStep(text.to_owned()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '=' | ':' | '.');
    match text.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(NameError::ForbiddenCharacter(text.to_owned(), c)),
        None => Ok(()),
    }
}

macro_rules! text_impls {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.as_str() == other.as_str()
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.as_str().cmp(other.as_str())
            }
        }

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }

        /// Lets maps keyed by the name be searched by text.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A tenant's name.
#[derive(Clone)]
pub struct TenantName(Arc<str>);

text_impls!(TenantName);

impl TenantName {
    /// A tenant's name.
    ///
    /// # Errors
    /// When empty, too long, or with a character outside Pulsar's rule.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_entity(text, NameError::EmptyTenant)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

struct NamespaceInner {
    tenant: TenantName,
    full: String,
}

/// A namespace's name, `tenant/local`.
#[derive(Clone)]
pub struct NamespaceName(Arc<NamespaceInner>);

text_impls!(NamespaceName);

impl NamespaceName {
    /// Parses `tenant/local`.
    ///
    /// # Errors
    /// When it has another shape, or a part is not a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((tenant, local)) if !local.contains('/') => Self::new(TenantName::parse(tenant)?, local),
            _ => Err(NameError::NamespaceShape(text.to_owned())),
        }
    }

    /// The namespace `local` of a tenant.
    ///
    /// # Errors
    /// When `local` is empty, too long, or with a character outside Pulsar's rule.
    pub fn new(tenant: TenantName, local: &str) -> Result<Self, NameError> {
        check_entity(local, NameError::EmptyNamespace)?;
        let full = format!("{tenant}/{local}");
        Ok(Self(Arc::new(NamespaceInner { tenant, full })))
    }

    /// The namespace of bare topic names, `public/default`.
    #[must_use]
    pub fn public_default() -> Self {
        Self::parse("public/default").expect("the literal is a namespace name")
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantName {
        &self.0.tenant
    }

    /// The part after the tenant.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.0.full[self.0.tenant.as_str().len() + 1..]
    }

    /// `tenant/local`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.full
    }
}

/// Whether a topic's messages are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Domain {
    /// Stored on bookies before they are acknowledged.
    Persistent,
    /// Passed on to whoever is connected.
    NonPersistent,
}

impl Domain {
    /// Parses `persistent` or `non-persistent`.
    ///
    /// # Errors
    /// On anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text {
            "persistent" => Ok(Domain::Persistent),
            "non-persistent" => Ok(Domain::NonPersistent),
            other => Err(NameError::UnknownDomain(other.to_owned())),
        }
    }

    /// The domain as names spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Domain::Persistent => "persistent",
            Domain::NonPersistent => "non-persistent",
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

struct TopicInner {
    domain: Domain,
    namespace: NamespaceName,
    full: String,
    local_at: usize,
    partition: Option<u32>,
}

/// A topic's name, `domain://tenant/namespace/local`; a partition of a partitioned topic is a topic of its own.
#[derive(Clone)]
pub struct TopicName(Arc<TopicInner>);

text_impls!(TopicName);

impl TopicName {
    /// Parses `[domain://]tenant/namespace/local`, or a bare `local`, which means `persistent://public/default/local`.
    ///
    /// # Errors
    /// When the shape is another, a part is not a name, or the local part is too long.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (domain, path) = match text.split_once("://") {
            Some((domain, path)) => (Domain::parse(domain)?, path),
            None if text.is_empty() => return Err(NameError::EmptyTopic),
            None if !text.contains('/') => {
                return Self::new(Domain::Persistent, NamespaceName::public_default(), text);
            }
            None => (Domain::Persistent, text),
        };
        let mut parts = path.splitn(4, '/');
        let (Some(tenant), Some(namespace), Some(local)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NameError::TopicShape(text.to_owned()));
        };
        match parts.next() {
            Some("") => return Err(NameError::TrailingSlash(text.to_owned())),
            Some(_) => return Err(NameError::V1Name(text.to_owned())),
            None => {}
        }
        Self::new(domain, NamespaceName::new(TenantName::parse(tenant)?, namespace)?, local)
    }

    /// The topic `local` (not percent-encoded) of a namespace.
    ///
    /// # Errors
    /// When `local` is empty, too long or holds a `/` or NUL.
    pub fn new(domain: Domain, namespace: NamespaceName, local: &str) -> Result<Self, NameError> {
        if local.is_empty() {
            return Err(NameError::EmptyTopic);
        }
        if local.ends_with('/') {
            return Err(NameError::TrailingSlash(local.to_owned()));
        }
        if local.contains('/') {
            return Err(NameError::SlashInTopic(local.to_owned()));
        }
        if local.contains('\0') {
            return Err(NameError::Nul(local.to_owned()));
        }
        let split = split_partition(local);
        let base_bytes = split.map_or(local.len(), |(base, _)| base.len());
        if base_bytes > LOCAL_BYTES_MAX {
            return Err(NameError::TopicTooLong(base_bytes));
        }
        let full = format!("{domain}://{namespace}/{local}");
        let local_at = full.len() - local.len();
        let partition = split.map(|(_, n)| n);
        Ok(Self(Arc::new(TopicInner { domain, namespace, full, local_at, partition })))
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> Domain {
        self.0.domain
    }

    /// Whether its messages are stored.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.0.domain == Domain::Persistent
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceName {
        &self.0.namespace
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantName {
        self.0.namespace.tenant()
    }

    /// The part after the namespace, not percent-encoded, with the partition suffix if there is one.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.0.full[self.0.local_at..]
    }

    /// `domain://tenant/namespace/local`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.full
    }

    /// The local part percent-encoded for REST paths and keys: letters, digits and `- _ .` stay, all else becomes `%XX`.
    #[must_use]
    pub fn local_encoded(&self) -> String {
        percent_encode(self.local())
    }

    /// The index N of a name that ends with `-partition-N`. A number with leading zeros or above 2^31 − 1 is no index, as in
    /// Pulsar: such a name is an ordinary one.
    #[must_use]
    pub fn partition_index(&self) -> Option<u32> {
        self.0.partition
    }

    /// Partition `index` of this topic; of a partition, its sibling.
    ///
    /// # Panics
    /// When `index` is above 2^31 − 1, which no partition count reaches.
    #[must_use]
    pub fn partition(&self, index: u32) -> Self {
        assert!(i32::try_from(index).is_ok(), "a partition index fits 31 bits");
        let local = format!("{}{PARTITION_SUFFIX}{index}", self.base_local());
        Self::new(self.domain(), self.namespace().clone(), &local).expect("a suffix keeps a valid name valid")
    }

    /// The partitioned topic that a partition belongs to; of any other topic, itself.
    #[must_use]
    pub fn base(&self) -> Self {
        if self.partition_index().is_none() {
            return self.clone();
        }
        Self::new(self.domain(), self.namespace().clone(), self.base_local())
            .expect("a valid name without its suffix is valid")
    }

    /// The local part without a partition suffix.
    #[must_use]
    pub fn base_local(&self) -> &str {
        split_partition(self.local()).map_or(self.local(), |(base, _)| base)
    }
}

/// `x-partition-7` → `(x, 7)`.
fn split_partition(local: &str) -> Option<(&str, u32)> {
    let (base, digits) = local.rsplit_once(PARTITION_SUFFIX)?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = plain && (digits == "0" || !digits.starts_with('0'));
    if base.is_empty() || !canonical {
        return None;
    }
    let index: u32 = digits.parse().ok()?;
    i32::try_from(index).is_ok().then_some((base, index))
}

/// A subscription's name: nearly any text, as in Pulsar.
#[derive(Clone)]
pub struct SubscriptionName(Arc<str>);

text_impls!(SubscriptionName);

impl SubscriptionName {
    /// A subscription's name.
    ///
    /// # Errors
    /// When empty or too long.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::EmptySubscription);
        }
        if text.len() > SUBSCRIPTION_BYTES_MAX {
            return Err(NameError::SubscriptionTooLong(text.len()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Percent-encodes UTF-8 text: ASCII letters, digits and `- _ .` stay, every other byte becomes `%XX`. The outcome holds
/// neither `/` nor `~` nor white space.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            out.push(byte as char);
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
    }
    out
}

/// Undoes [`percent_encode`], taking unencoded characters as they are (`+` too). `None` on a broken escape or bytes that
/// are not UTF-8.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = (bytes.next()? as char).to_digit(16)?;
            let low = (bytes.next()? as char).to_digit(16)?;
            out.push((high * 16 + low) as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}
