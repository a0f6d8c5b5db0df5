//! Pure: may this schema be added behind that one? Kept apart from storage so that the compatibility checks of Avro and JSON
//! have their place when they arrive.

use super::types::SchemaData;
use crate::namespace::SchemaCompatibility;

/// Who brings a schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A producer; `may_add` is the policy `is_allow_auto_update_schema`.
    Producer {
        /// Whether it may add a version.
        may_add: bool,
    },
    /// A consumer on a topic that is idle enough to take its schema.
    Consumer,
    /// An administrator through REST.
    Admin,
}

/// Why a schema is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The strategy takes no second schema.
    #[error("the compatibility strategy ALWAYS_INCOMPATIBLE takes no further schema")]
    AlwaysIncompatible,
    /// The types differ.
    #[error("the topic's schema has another type")]
    OtherType,
    /// The definitions differ and no check tells whether they agree.
    #[error(
        "the definition differs from the topic's schema; compatibility of differing definitions is not judged by this release, \
             only the strategy ALWAYS_COMPATIBLE takes them"
    )]
    NotJudged,
    /// Producers may not add versions here.
    #[error("Schema not found and schema auto updating is disabled.")]
    AutoUpdateOff,
}

/// Decides on a schema that is none of the stored ones. `latest` is the newest stored, if there is one.
///
/// # Errors
/// When it is refused.
pub fn check_change(
    latest: Option<&SchemaData>,
    new: &SchemaData,
    strategy: SchemaCompatibility,
    source: Source,
) -> Result<(), Refusal> {
    if source == (Source::Producer { may_add: false }) {
        return Err(Refusal::AutoUpdateOff);
    }
    let Some(latest) = latest else {
        return Ok(());
    };
    match strategy {
        SchemaCompatibility::AlwaysCompatible => Ok(()),
        SchemaCompatibility::AlwaysIncompatible => Err(Refusal::AlwaysIncompatible),
        _ if latest.schema_type != new.schema_type => Err(Refusal::OtherType),
        _ if latest.schema_type.is_primitive() => Ok(()),
        _ => Err(Refusal::NotJudged),
    }
}
