//! What a schema is made of, free of protobuf.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A schema type by its number on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SchemaType(pub i32);

const NAMES: [(i32, &str); 22] = [
    (0, "NONE"),
    (1, "STRING"),
    (2, "JSON"),
    (3, "PROTOBUF"),
    (4, "AVRO"),
    (5, "BOOLEAN"),
    (6, "INT8"),
    (7, "INT16"),
    (8, "INT32"),
    (9, "INT64"),
    (10, "FLOAT"),
    (11, "DOUBLE"),
    (12, "DATE"),
    (13, "TIME"),
    (14, "TIMESTAMP"),
    (15, "KEY_VALUE"),
    (16, "INSTANT"),
    (17, "LOCAL_DATE"),
    (18, "LOCAL_TIME"),
    (19, "LOCAL_DATE_TIME"),
    (20, "PROTOBUF_NATIVE"),
    (22, "EXTERNAL"),
];

impl SchemaType {
    /// No schema at all.
    pub const NONE: Self = Self(0);
    /// JSON, described by an Avro definition.
    pub const JSON: Self = Self(2);
    /// Avro.
    pub const AVRO: Self = Self(4);
    /// A key schema and a value schema, each with its length in front.
    pub const KEY_VALUE: Self = Self(15);
    /// A consumer that takes whatever there is; never stored.
    pub const AUTO_CONSUME: Self = Self(21);

    /// The type of a REST name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(number, _)| Self(*number))
    }

    /// The REST name; unknown numbers have none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }

    /// Whether the type needs no definition: two schemas of it are always the same.
    #[must_use]
    pub fn is_primitive(self) -> bool {
        matches!(self.0, 0 | 1 | 5..=14 | 16..=19)
    }
}

/// A version: dense from 0 per topic, never reused, deletion takes one too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SchemaVersion(pub u64);

impl SchemaVersion {
    /// The form that messages and commands carry: 8 bytes, big-endian.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }

    /// Reads the form that messages and commands carry.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u64::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A schema as a client hands it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaData {
    /// Its type, by its number on the wire.
    pub schema_type: SchemaType,
    /// The name the client gave it.
    pub name: String,
    /// The definition.
    pub data: Bytes,
    /// Free properties.
    pub properties: BTreeMap<String, String>,
    /// When it was registered, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Who registered it.
    pub user: String,
}

impl SchemaData {
    /// Whether two schemas are the same: type and definition count, properties and name do not, as in Pulsar.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.schema_type == other.schema_type && self.data == other.data
    }

    /// A short sum over what [`Self::same_as`] compares; equal sums are verified against the bytes.
    #[must_use]
    pub fn sum(&self) -> u32 {
        let sum = geminga_common::checksum::Crc32c::new().update(&self.schema_type.0.to_be_bytes());
        sum.update(&self.data).value()
    }
}
