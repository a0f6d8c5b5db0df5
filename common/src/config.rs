//! Layered configuration: flags > environment > file > default. One TOML file holds a table per role; each role's crate owns
//! its struct, here is the machinery.
//!
//! Owner: the program's entry, once at start-up. A role's struct derives `Serialize`, `Deserialize` and `Default` with
//! `#[serde(default)]`, nested tables included; what its default serialises to is the list of known keys. An `Option` that is
//! `None` by default would not show there, so an absent value is spelt as an empty string or list instead.
//!
//! Invariant: no setting is silently ignored. An unknown key, in the file or the environment, is an error that names the
//! nearest known one.

use crate::error::{Code, Coded};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use toml::{Table, Value};

#[cfg(test)]
mod tests;

/// Where a setting came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The configuration file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flags,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::File => "the configuration file",
            Source::Environment => "the environment",
            Source::Flags => "the command line",
        })
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML.
    #[error("the configuration file is not valid TOML, line {line}: {reason}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A key that nobody knows.
    #[error("unknown key '{key}' in {source_of}{}", nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    UnknownKey {
        /// The key as it was spelt.
        key: String,
        /// The nearest known key, if one is near.
        nearest: Option<String>,
        /// Where it was.
        source_of: Source,
    },
    /// A value of the wrong kind or out of range.
    #[error("'{key}' in {source_of} cannot be used: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
        /// Where it was.
        source_of: Source,
    },
    /// The values do not make a configuration together.
    #[error("table [{table}] cannot be used: {reason}")]
    Table {
        /// The table.
        table: String,
        /// What is wrong.
        reason: String,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        match self {
            ConfigError::Syntax { .. } => Code::CONFIG_UNREADABLE,
            ConfigError::UnknownKey { .. } => Code::CONFIG_UNKNOWN_KEY,
            ConfigError::Value { .. } | ConfigError::Table { .. } => Code::CONFIG_INVALID,
        }
    }
}

impl ConfigError {
    /// With its key spelt from the top of the file on.
    fn within(self, table: &str) -> Self {
        let from_top = |key: String| format!("{table}.{key}");
        match self {
            Self::UnknownKey { key, nearest, source_of } => {
                Self::UnknownKey { key: from_top(key), nearest: nearest.map(from_top), source_of }
            }
            Self::Value { key, reason, source_of } => Self::Value { key: from_top(key), reason, source_of },
            other => other,
        }
    }

    /// Whether it is the file that has to be changed.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        match self {
            ConfigError::Syntax { .. } => true,
            ConfigError::UnknownKey { source_of, .. } | ConfigError::Value { source_of, .. } => {
                *source_of == Source::File
            }
            ConfigError::Table { .. } => false,
        }
    }
}

fn parse(file: &str) -> Result<Table, ConfigError> {
    file.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| file.get(..span.start)).unwrap_or_default();
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
        ConfigError::Syntax { line, reason: error.message().replace('\n', "; ") }
    })
}

/// Refuses a file with a table that no role owns. [`load`] looks at its own table only.
///
/// # Errors
/// When the file is not TOML or holds another top-level key than the given tables.
pub fn check_tables(file: &str, tables: &[&str]) -> Result<(), ConfigError> {
    match parse(file)?.keys().find(|key| !tables.contains(&key.as_str())) {
        Some(key) => Err(unknown(key, tables.iter().copied(), Source::File)),
        None => Ok(()),
    }
}

/// Refuses a file in which a role's table holds a key that nobody knows or a value that does not fit. For the tables of the other
/// roles: what is misspelt there would show only when that role starts, perhaps on another machine.
///
/// # Errors
/// As [`load`].
pub fn check<T: DeserializeOwned + Serialize + Default>(table: &str, file: &str) -> Result<(), ConfigError> {
    load::<T>(table, Some(file), std::iter::empty(), Table::new()).map(drop)
}

/// Loads a role's configuration from table `table` of the file's text, from variables `GEMINGA_{TABLE}_{KEY}` (nested keys
/// joined by `_`, so `GEMINGA_STANDALONE_PULSAR_PORT`), and from flags, the later layer winning key by key.
///
/// # Errors
/// On an unknown key in any layer, and on a value that does not fit its key.
pub fn load<T: DeserializeOwned + Serialize + Default>(
    table: &str,
    file: Option<&str>,
    env: impl Iterator<Item = (String, String)>,
    flags: Table,
) -> Result<T, ConfigError> {
    let reject = |reason: String| ConfigError::Table { table: table.to_owned(), reason };
    let mut merged = Table::try_from(T::default()).map_err(|e| reject(e.to_string()))?;
    if let Some(file) = file {
        match parse(file)?.remove(table) {
            Some(Value::Table(layer)) => {
                overlay::<T>(&mut merged, layer, Source::File).map_err(|error| error.within(table))?;
            }
            Some(other) => {
                let reason = format!("it is a table, not {}", kind(&other));
                return Err(ConfigError::Value { key: table.to_owned(), reason, source_of: Source::File });
            }
            None => {}
        }
    }
    let known = paths(&merged);
    let prefix = format!("GEMINGA_{}_", table.to_uppercase().replace('-', "_"));
    for (name, text) in env {
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let spelt = |path: &Path| path.join("_").to_uppercase().replace('-', "_");
        let Some(path) = known.iter().find(|path| spelt(path) == rest) else {
            let names: Vec<_> = known.iter().map(|path| format!("{prefix}{}", spelt(path))).collect();
            return Err(unknown(&name, names.iter().map(String::as_str), Source::Environment));
        };
        let now = at(&merged, path).expect("known paths lead to values");
        let invalid =
            |reason| ConfigError::Value { key: name.clone(), reason, source_of: Source::Environment };
        let value = value_like(now, &text).map_err(invalid)?;
        set::<T>(&mut merged, path, value).map_err(invalid)?;
    }
    overlay::<T>(&mut merged, flags, Source::Flags)?;
    merged.try_into().map_err(|e: toml::de::Error| reject(e.message().to_owned()))
}

/// The keys from a table's top to a value.
type Path = Vec<String>;

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
        _ => "a single value",
    }
}

/// The names beside which a key stands: its parent's keys, spelt from the top.
fn siblings(table: &Table, path: &[String]) -> Vec<String> {
    let Some((_, above)) = path.split_last() else { return Vec::new() };
    let inner = above.iter().try_fold(table, |table, key| table.get(key)?.as_table());
    let spelt = |key: &String| [above, std::slice::from_ref(key)].concat().join(".");
    inner.map(|inner| inner.keys().map(spelt).collect()).unwrap_or_default()
}

/// All paths to values that are not tables.
fn paths(table: &Table) -> Vec<Path> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(paths(inner).into_iter().map(|rest| [vec![key.clone()], rest].concat()));
            }
            _ => found.push(vec![key.clone()]),
        }
    }
    found
}

fn at<'t>(table: &'t Table, path: &[String]) -> Option<&'t Value> {
    let (last, tables) = path.split_last()?;
    let inner = tables.iter().try_fold(table, |table, key| table.get(key)?.as_table())?;
    inner.get(last)
}

/// Puts a value in its place, if the configuration would still be one. Layers are tried value by value, so that an error can
/// name its key.
fn set<T: DeserializeOwned>(merged: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let mut tried = merged.clone();
    let (last, tables) = path.split_last().expect("a path has a key");
    let mut inner = &mut tried;
    for key in tables {
        inner = inner.get_mut(key).and_then(Value::as_table_mut).expect("known paths lead through tables");
    }
    inner.insert(last.clone(), value);
    T::deserialize(tried.clone()).map_err(|e: toml::de::Error| e.message().to_owned())?;
    *merged = tried;
    Ok(())
}

fn overlay<T: DeserializeOwned>(
    merged: &mut Table,
    layer: Table,
    source_of: Source,
) -> Result<(), ConfigError> {
    let known = paths(merged);
    let mut waiting: Vec<(Path, Value)> = layer.into_iter().map(|(key, value)| (vec![key], value)).collect();
    while let Some((path, value)) = waiting.pop() {
        let dotted = path.join(".");
        match (at(merged, &path), value) {
            (None, _) => {
                let mut names: Vec<_> = known.iter().map(|path| path.join(".")).collect();
                // Tables too: a misspelt one is nearer to its own name than to those of the keys in it.
                names.extend(siblings(merged, &path));
                return Err(unknown(&dotted, names.iter().map(String::as_str), source_of));
            }
            (Some(Value::Table(_)), Value::Table(inner)) => {
                waiting.extend(
                    inner.into_iter().map(|(key, value)| ([path.clone(), vec![key]].concat(), value)),
                );
            }
            (Some(_), value) => set::<T>(merged, &path, value).map_err(|reason| ConfigError::Value {
                key: dotted,
                reason,
                source_of,
            })?,
        }
    }
    Ok(())
}

/// Reads an environment variable as the kind of value that the key has now. A list is separated by commas.
fn value_like(now: &Value, text: &str) -> Result<Value, String> {
    let text = text.trim();
    let bad = |kind: &str| format!("'{text}' is not {kind}");
    match now {
        Value::Integer(_) => text.parse().map(Value::Integer).map_err(|_| bad("a whole number")),
        Value::Float(_) => text.parse().map(Value::Float).map_err(|_| bad("a number")),
        Value::Boolean(_) => text.parse().map(Value::Boolean).map_err(|_| bad("true or false")),
        Value::Array(_) if text.is_empty() => Ok(Value::Array(Vec::new())),
        Value::Array(items) => {
            let kind = items.first().cloned().unwrap_or(Value::String(String::new()));
            text.split(',').map(|item| value_like(&kind, item)).collect::<Result<_, _>>().map(Value::Array)
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn unknown<'k>(key: &str, known: impl Iterator<Item = &'k str>, source_of: Source) -> ConfigError {
    let nearest = known.map(|known| (distance(key, known), known)).min();
    // Further away than a third of its letters, a name is no help.
    let nearest = nearest.filter(|(far, known)| *far <= known.len().max(key.len()).div_ceil(3));
    ConfigError::UnknownKey {
        key: key.to_owned(),
        nearest: nearest.map(|(_, known)| known.to_owned()),
        source_of,
    }
}

/// Edit distance: insertions, deletions and replacements, over bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Splits `8MiB` into 8 and `MiB`.
/// A number with more digits than any that is allowed is the largest there is.
fn number_and_unit(text: &str) -> Option<(u128, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = match text[..digits].parse::<u128>() {
        Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => u128::MAX,
        other => other.ok()?,
    };
    Some((number, text[digits..].trim()))
}

/// The number in the unit's smallest, if it is one at all; an error if it is too large.
fn scaled(text: &str, unit: impl Fn(&str) -> Option<u64>) -> Option<Result<u64, UnitError>> {
    let (number, name) = number_and_unit(text)?;
    let small = number.checked_mul(u128::from(unit(name)?)).and_then(|n| u64::try_from(n).ok());
    Some(small.ok_or_else(|| UnitError::TooLarge(text.trim().to_owned())))
}

/// A text that is no size or no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("'{0}' is not a size; it should look like 512KiB, 8MiB, 1GiB or 4096 (bytes)")]
    Size(String),
    /// Not a duration.
    #[error("'{0}' is not a duration; it should look like 500ms, 30s, 10m, 12h or 7d")]
    Duration(String),
    /// More than can be counted, whatever the setting.
    #[error("'{0}' is too large; no size is above 16777215TiB and no duration above 213503d")]
    TooLarge(String),
}

/// A number of bytes that reads and prints as `8MiB`. A bare number is bytes; KB, MB and GB are powers of 1000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
    ("", 1),
];

impl ByteSize {
    /// That many KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// That many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// That many GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let unit = |unit: &str| SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|of| of.1);
        scaled(text, unit).ok_or_else(|| UnitError::Size(text.to_owned()))?.map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bytes): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*bytes);
        let (unit, bytes) = SIZES[..4].iter().find(whole).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A length of time that reads and prints as `500ms`. A bare number is refused: its unit would be a guess.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub std::time::Duration);

const TIMES: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1000),
    ("ns", 1),
];

impl Duration {
    /// That many milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(std::time::Duration::from_millis(n))
    }

    /// That many seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(std::time::Duration::from_secs(n))
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let unit = |unit: &str| TIMES.iter().find(|(name, _)| *name == unit).map(|of| of.1);
        let nanos = scaled(text, unit).ok_or_else(|| UnitError::Duration(text.to_owned()))??;
        Ok(Self(std::time::Duration::from_nanos(nanos)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let whole = |(_, unit): &&(&str, u64)| nanos > 0 && nanos.is_multiple_of(u128::from(*unit));
        let (unit, size) = TIMES.iter().find(whole).unwrap_or(&("s", 1_000_000_000));
        write!(f, "{}{unit}", nanos / u128::from(*size))
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

serde_as_text!(ByteSize);
serde_as_text!(Duration);

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size should look like 8MiB or 4096 (bytes)")]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
