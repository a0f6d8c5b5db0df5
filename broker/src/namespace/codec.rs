//! The stored form of control-plane records: `{"v":1,"r":{...}}`. The version comes first so that a reader of a later
//! release can tell what it reads; an unknown version is refused, never guessed at.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const VERSION: u16 = 1;

#[derive(Serialize)]
struct Out<'a, T> {
    v: u16,
    r: &'a T,
}

#[derive(Deserialize)]
struct In<T> {
    r: T,
}

#[derive(Deserialize)]
struct Head {
    v: u16,
}

/// Why a stored record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not of the stored form.
    #[error("metadata record is not readable: {0}")]
    Form(#[from] serde_json::Error),
    /// A later release wrote it.
    #[error("metadata record has version {0}, this release knows {VERSION}")]
    Version(u16),
}

/// Encodes a record.
///
/// # Panics
/// Never for the records of this room: maps with text keys always have a JSON form.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    serde_json::to_vec(&Out { v: VERSION, r: record }).expect("records have text keys only").into()
}

/// Decodes a record.
///
/// # Errors
/// When the bytes are no record or of an unknown version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let head: Head = serde_json::from_slice(bytes)?;
    if head.v != VERSION {
        return Err(DecodeError::Version(head.v));
    }
    let body: In<T> = serde_json::from_slice(bytes)?;
    Ok(body.r)
}
