//! Stored schemas. Per topic one head record (which versions there are) and one record per version (the definition).
//!
//! Record of a version: its description in the stored form of [`crate::namespace::encode`], a line feed, the definition's
//! bytes as they came. The description holds no line feed, because JSON text escapes it.

use super::rules::{Refusal, Source, check_change};
use super::types::{SchemaData, SchemaType, SchemaVersion};
use crate::namespace::{DecodeError, SchemaCompatibility, decode, encode};
use bytes::{Bytes, BytesMut};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Revision, Txn, TxnOutcome};
use geminga_common::names::TopicName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most versions of a topic's schema, deleted ones counted: bounds the head record.
const VERSIONS_MAX: u64 = 20_000;
/// Largest definition in bytes: must fit a metadata record with room to spare.
const DATA_BYTES_MAX: usize = 1 << 20;
const ATTEMPTS: usize = 32;

/// Why a schema operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The topic has no schema, or not this version.
    #[error("Schema not found")]
    NotFound,
    /// The schema is not taken.
    #[error("Incompatible schema: {0}")]
    Incompatible(#[from] Refusal),
    /// The definition is too large.
    #[error("a schema definition of {0} bytes is larger than the {DATA_BYTES_MAX} bytes allowed")]
    TooLarge(usize),
    /// The type is none that can be stored.
    #[error("schema type {0} cannot be registered")]
    UnknownType(i32),
    /// The topic has used up its versions.
    #[error("the topic has reached the {VERSIONS_MAX} schema versions allowed")]
    TooManyVersions,
    /// Others kept changing the record; nothing was written.
    #[error("Concurrent modification")]
    Conflict,
    /// A stored record is damaged or of a later release.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The metadata store did not answer.
    #[error(transparent)]
    Metadata(#[from] MetaError),
}

/// A schema with its version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredSchema {
    /// Its version.
    pub version: SchemaVersion,
    /// The schema.
    pub schema: SchemaData,
}

/// Which versions a topic has.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Head {
    next: u64,
    /// Versions since the last deletion, oldest first: version and sum.
    live: Vec<(u64, u32)>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    schema_type: SchemaType,
    name: String,
    properties: BTreeMap<String, String>,
    timestamp_ms: u64,
    user: String,
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct SchemaRegistry {
    store: Arc<dyn MetadataStore>,
    keys: Keys,
}

impl SchemaRegistry {
    /// A registry over a cluster's metadata.
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>, cluster: &str) -> Self {
        Self { store, keys: Keys::new(cluster) }
    }

    /// The newest schema of a topic.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn latest(&self, topic: &TopicName) -> Result<Option<StoredSchema>, SchemaError> {
        // The head may move between the two reads; then it is read again.
        for _ in 0..ATTEMPTS {
            let (head, _) = self.head(topic).await?;
            let Some((version, _)) = head.live.last() else {
                return Ok(None);
            };
            if let Some(stored) = self.read(topic, SchemaVersion(*version)).await? {
                return Ok(Some(stored));
            }
        }
        Err(SchemaError::Conflict)
    }

    /// One version of a topic's schema; deleted ones are gone.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn get(
        &self,
        topic: &TopicName,
        version: SchemaVersion,
    ) -> Result<Option<StoredSchema>, SchemaError> {
        self.read(topic, version).await
    }

    /// All schemas of a topic, oldest first.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn all(&self, topic: &TopicName) -> Result<Vec<StoredSchema>, SchemaError> {
        let (head, _) = self.head(topic).await?;
        let mut all = Vec::with_capacity(head.live.len());
        for (version, _) in head.live {
            all.extend(self.read(topic, SchemaVersion(version)).await?);
        }
        Ok(all)
    }

    /// The version of exactly this schema, if it is stored.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn version_of(
        &self,
        topic: &TopicName,
        schema: &SchemaData,
    ) -> Result<Option<SchemaVersion>, SchemaError> {
        let (head, _) = self.head(topic).await?;
        self.find_same(topic, &head, schema).await
    }

    /// Registers a schema unless it is stored already; answers its version either way.
    ///
    /// # Errors
    /// When the strategy refuses it, it is too large or of no storable type; metadata errors.
    pub async fn get_or_create(
        &self,
        topic: &TopicName,
        schema: &SchemaData,
        strategy: SchemaCompatibility,
        source: Source,
    ) -> Result<SchemaVersion, SchemaError> {
        check_form(schema)?;
        for _ in 0..ATTEMPTS {
            let (head, revision) = self.head(topic).await?;
            if let Some(version) = self.find_same(topic, &head, schema).await? {
                return Ok(version);
            }
            let latest = match head.live.last() {
                Some((version, _)) => self.read(topic, SchemaVersion(*version)).await?,
                None => None,
            };
            check_change(latest.as_ref().map(|stored| &stored.schema), schema, strategy, source)?;
            if head.next >= VERSIONS_MAX {
                return Err(SchemaError::TooManyVersions);
            }
            let version = SchemaVersion(head.next);
            let mut after = head;
            after.next += 1;
            after.live.push((version.0, schema.sum()));
            let put = Op::put(self.version_key(topic, version), stored_form(schema));
            if self.write_head(topic, revision, &after, vec![put]).await? {
                return Ok(version);
            }
        }
        Err(SchemaError::Conflict)
    }

    /// Whether a consumer that brings this schema may read a topic that has one: an identical schema may, unless the strategy
    /// is `ALWAYS_INCOMPATIBLE`; a differing one by the rules of [`check_change`].
    ///
    /// # Errors
    /// When it may not, or the topic has no schema; metadata errors.
    pub async fn check_consumer(
        &self,
        topic: &TopicName,
        schema: &SchemaData,
        strategy: SchemaCompatibility,
    ) -> Result<SchemaVersion, SchemaError> {
        let latest = self.latest(topic).await?.ok_or(SchemaError::NotFound)?;
        if strategy == SchemaCompatibility::AlwaysIncompatible {
            return Err(Refusal::AlwaysIncompatible.into());
        }
        if let Some(version) = self.version_of(topic, schema).await? {
            return Ok(version);
        }
        check_change(Some(&latest.schema), schema, strategy, Source::Consumer)?;
        Ok(latest.version)
    }

    /// Deletes a topic's schemas; the deletion takes a version number itself, so that no number ever means two schemas.
    /// A topic without schema is no exception, as in Pulsar.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn delete(&self, topic: &TopicName) -> Result<SchemaVersion, SchemaError> {
        for _ in 0..ATTEMPTS {
            let (head, revision) = self.head(topic).await?;
            let version = SchemaVersion(head.next);
            let after = Head { next: head.next + 1, live: Vec::new() };
            if self.write_head(topic, revision, &after, Vec::new()).await? {
                self.drop_versions(topic, &head.live).await?;
                return Ok(version);
            }
        }
        Err(SchemaError::Conflict)
    }

    /// The head no longer names these records; one left behind by a crash here is never read.
    async fn drop_versions(&self, topic: &TopicName, live: &[(u64, u32)]) -> Result<(), SchemaError> {
        for chunk in live.chunks(geminga_common::metadata::TXN_OPS_MAX) {
            let ops =
                chunk.iter().map(|(v, _)| Op::delete(self.version_key(topic, SchemaVersion(*v)))).collect();
            self.store.txn(Txn { compares: Vec::new(), ops }).await?;
        }
        Ok(())
    }

    async fn find_same(
        &self,
        topic: &TopicName,
        head: &Head,
        schema: &SchemaData,
    ) -> Result<Option<SchemaVersion>, SchemaError> {
        let sum = schema.sum();
        for (version, _) in head.live.iter().rev().filter(|(_, s)| *s == sum) {
            let stored = self.read(topic, SchemaVersion(*version)).await?;
            if stored.is_some_and(|stored| stored.schema.same_as(schema)) {
                return Ok(Some(SchemaVersion(*version)));
            }
        }
        Ok(None)
    }

    async fn head(&self, topic: &TopicName) -> Result<(Head, Option<Revision>), SchemaError> {
        match self.store.get(&self.keys.schema(topic)).await? {
            Some(record) => Ok((decode(&record.value)?, Some(record.mod_revision))),
            None => Ok((Head::default(), None)),
        }
    }

    async fn write_head(
        &self,
        topic: &TopicName,
        revision: Option<Revision>,
        head: &Head,
        mut ops: Vec<Op>,
    ) -> Result<bool, SchemaError> {
        let key = self.keys.schema(topic);
        let compare = match revision {
            Some(revision) => Compare::ModRevision(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        ops.push(Op::put(key, encode(head)));
        match self.store.txn(Txn { compares: vec![compare], ops }).await {
            Ok(TxnOutcome::Committed(_)) => Ok(true),
            // With an unknown outcome the next round finds the schema as its own, or tries again.
            Ok(TxnOutcome::CompareFailed) | Err(MetaError::Unknown(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn version_key(&self, topic: &TopicName, version: SchemaVersion) -> String {
        format!("{}/{:020}", self.keys.schema(topic), version.0)
    }

    async fn read(
        &self,
        topic: &TopicName,
        version: SchemaVersion,
    ) -> Result<Option<StoredSchema>, SchemaError> {
        let Some(record) = self.store.get(&self.version_key(topic, version)).await? else {
            return Ok(None);
        };
        Ok(Some(StoredSchema { version, schema: from_stored_form(&record.value)? }))
    }
}

fn check_form(schema: &SchemaData) -> Result<(), SchemaError> {
    if schema.data.len() > DATA_BYTES_MAX {
        return Err(SchemaError::TooLarge(schema.data.len()));
    }
    match schema.schema_type.name() {
        Some(_) => Ok(()),
        None => Err(SchemaError::UnknownType(schema.schema_type.0)),
    }
}

fn stored_form(schema: &SchemaData) -> Bytes {
    let description = Description {
        schema_type: schema.schema_type,
        name: schema.name.clone(),
        properties: schema.properties.clone(),
        timestamp_ms: schema.timestamp_ms,
        user: schema.user.clone(),
    };
    let head = encode(&description);
    let mut out = BytesMut::with_capacity(head.len() + 1 + schema.data.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(b"\n");
    out.extend_from_slice(&schema.data);
    out.freeze()
}

fn from_stored_form(value: &Bytes) -> Result<SchemaData, DecodeError> {
    let at = value.iter().position(|byte| *byte == b'\n').unwrap_or(value.len());
    let description: Description = decode(&value[..at])?;
    let data = if at < value.len() { value.slice(at + 1..) } else { Bytes::new() };
    Ok(SchemaData {
        schema_type: description.schema_type,
        name: description.name,
        data,
        properties: description.properties,
        timestamp_ms: description.timestamp_ms,
        user: description.user,
    })
}
