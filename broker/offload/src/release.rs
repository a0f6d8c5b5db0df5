//! The last look before bookie copies go: what was verified when a ledger was uploaded may have gone since, or another store may
//! answer by now. Size and index are read again, with the store's identity before and behind them, so that what was seen lies in
//! the cluster's own store. Two requests for the object, two small ones for the identity; no block is read again.

use crate::blob::{BlobError, Blobs};
use crate::mutant::{Mutant, active};
use crate::state::{Gone, ObjectRef, Seen};
use crate::verify::{self, ObjectError};
use crate::writer::Closed;
use geminga_common::error::Coded as _;
use geminga_common::ids::{LedgerId, TopicId};

/// An offloaded ledger that bookies hold as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its topic.
    pub topic: TopicId,
    /// The ledger.
    pub ledger: LedgerId,
    /// What it holds, by its record.
    pub closed: Closed,
    /// Its object, by the topic record.
    pub object: ObjectRef,
}

/// Looks at an object in the cluster's store.
///
/// # Errors
/// It is not there or not what the record says, or it is not known whether this is the cluster's store.
pub async fn look(blobs: &dyn Blobs, cluster: &str, held: &Held) -> Result<Seen, ObjectError> {
    if active(Mutant::ReleaseUnseen) {
        return Ok(Seen::of(&held.object));
    }
    let key = held.object.key(cluster, held.topic, held.ledger);
    blobs.ready().await?;
    verify::ends(blobs, &key, held.ledger, held.closed, &held.object).await?;
    blobs.ready().await?;
    Ok(Seen::of(&held.object))
}

/// Makes sure that the cluster's store has no such object, with the store's identity looked at before and behind.
///
/// # Errors
/// It is there after all, or it is not known whether it is.
pub async fn gone(blobs: &dyn Blobs, cluster: &str, held: &Held) -> Result<Gone, ObjectError> {
    let key = held.object.key(cluster, held.topic, held.ledger);
    blobs.ready().await?;
    match blobs.size(&key).await {
        Err(BlobError::Absent(_)) => {}
        Ok(_) => return Err(ObjectError::Other { key, what: "it is there again" }),
        Err(error) => return Err(error.into()),
    }
    blobs.ready().await?;
    Ok(Gone::of(&held.object))
}

/// Whether it is the object itself that is missing from a store that answers.
#[must_use]
pub fn is_absent(error: &ObjectError) -> bool {
    matches!(error, ObjectError::Blob(BlobError::Absent(_)))
}

/// Whether other objects would be looked at in vain as well: it is the store.
#[must_use]
pub fn by_store(error: &ObjectError) -> bool {
    matches!(error, ObjectError::Blob(error) if !matches!(error, BlobError::Absent(_)))
}

/// An error as stats tell it: with its code, once.
#[must_use]
pub fn reason(error: &ObjectError) -> String {
    let (code, text) = (error.code().to_string(), error.to_string());
    if text.starts_with(&code) { text } else { format!("{code}: {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Refusal;

    #[test]
    fn a_reason_has_its_code_once() {
        let absent = ObjectError::Blob(BlobError::Absent("k".into()));
        assert_eq!(reason(&absent), "GM-4011: no object k in the store");
        let taken = Refusal::Taken { here: "file:///x".into(), owner: "other".into() };
        let wrong = ObjectError::Blob(BlobError::Wrong(Box::new(taken)));
        assert_eq!(reason(&wrong).matches("GM-6010").count(), 1, "{}", reason(&wrong));
        assert!(reason(&wrong).starts_with("GM-6010: "));
        assert_eq!((by_store(&absent), by_store(&wrong)), (false, true));
    }
}
