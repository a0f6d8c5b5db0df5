//! Pure: the hash of a topic list, and the pattern filter, as Pulsar's clients compute them too.

use geminga_common::names::{Domain, TopicName};
use regex::Regex;

/// Which domains a listing holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainMode {
    /// Stored topics only.
    Persistent,
    /// Unstored topics only.
    NonPersistent,
    /// Both.
    All,
}

impl DomainMode {
    /// Whether a topic belongs to the listing.
    #[must_use]
    pub fn takes(self, topic: &TopicName) -> bool {
        match self {
            DomainMode::All => true,
            DomainMode::Persistent => topic.domain() == Domain::Persistent,
            DomainMode::NonPersistent => topic.domain() == Domain::NonPersistent,
        }
    }
}

/// The hash by which clients tell that a list has not changed: CRC32C of the sorted names joined by commas, as the eight hex
/// digits of its little-endian bytes.
#[must_use]
pub fn topics_hash<'a>(topics: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = topics.into_iter().collect();
    names.sort_unstable();
    let sum = geminga_common::checksum::crc32c(names.join(",").as_bytes());
    sum.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Most bytes of a compiled pattern: a client must not be able to take memory with one.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// A pattern over topic names, matched as a whole against `tenant/namespace/name` without domain and partition suffix.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// A pattern that this engine cannot evaluate (look-around, back-references, too large): the client filters instead.
#[derive(Debug, thiserror::Error)]
#[error("the topic pattern cannot be evaluated here: {0}")]
pub struct PatternError(#[from] regex::Error);

impl Pattern {
    /// Compiles a client's pattern; a domain in front of it is dropped.
    ///
    /// # Errors
    /// When the engine does not know the syntax or the pattern is too large.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let bare = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
        let regex =
            regex::RegexBuilder::new(&format!("^(?:{bare})$")).size_limit(COMPILED_BYTES_MAX).build()?;
        Ok(Self(regex))
    }

    /// Whether a topic's name matches.
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.0.is_match(&format!("{}/{}", topic.namespace(), topic.base_local()))
    }
}

/// The topics of a list that match; order is kept.
#[must_use]
pub fn filter_topics(topics: Vec<TopicName>, pattern: &Pattern) -> Vec<TopicName> {
    topics.into_iter().filter(|topic| pattern.matches(topic)).collect()
}
