//! The schema registry: what shapes a topic's messages have, version by version.
//!
//! | file | what it holds |
//! |---|---|
//! | `registry` | [`SchemaRegistry`]: stored versions, get-or-create by compare-and-set |
//! | `types` | [`SchemaData`], [`SchemaType`], [`SchemaVersion`] and their spellings on the wire and in REST |
//! | `rules` | pure: which change a strategy accepts |
//!
//! Decisions: compatibility of differing Avro and JSON schemas is not judged yet; a strategy that would have to judge refuses
//! with a coded error, because accepting unread would break consumers later. Head and versions are separate records, so that a
//! topic with many large schemas stays within the metadata store's record size.

mod registry;
mod rules;
#[cfg(test)]
mod tests;
mod types;

pub use registry::{SchemaError, SchemaRegistry, StoredSchema};
pub use rules::{Refusal, Source, check_change};
pub use types::{SchemaData, SchemaType, SchemaVersion};
