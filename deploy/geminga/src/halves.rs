//! The two halves of a standalone's data directory, metadata and store, belong together: an acknowledged message is a name in the one
//! and bytes in the other. Started with a half that is missing, or from elsewhere, a server would look well and have lost everything.
//!
//! Metadata keep the store's record under `b/{id}`, as those of a cluster do: its incarnation, and how often it was started. It is
//! written at each start, once the store is open and before anything is served. Metadata are made before the store is.
//!
//! | metadata | store | what follows |
//! |---|---|---|
//! | no file, or one of 0 bytes | nothing | the first start |
//! | no file, or one of 0 bytes | a store | refused: metadata are gone |
//! | empty | nothing | the first start again: it was cut short between the halves |
//! | empty | a store without a ledger | the same, cut short before the record |
//! | empty | a store with ledgers | refused: the metadata are others |
//! | ledgers, no record | nothing | refused: the store is gone |
//! | ledgers, no record | a store | taken: a directory from before there was a record |
//! | a record | nothing | refused: the store is gone |
//! | a record | of another incarnation | refused: another store |
//! | a record | the same, started less often | refused: an older copy of the store |
//! | a record | the same | the usual start |
//! | a record | one that was this incarnation, and accepted what that one lost | the first start after an acceptance |
//! | a record | one whose identities are all gone | opened as one that lost data, of the incarnation that the record names |
//! | a record of another name | | refused: the bookie's name was changed |
//!
//! Metadata that went back in time together with nothing else are not noticed: a start that was cut short before the record leaves the
//! same picture. Before the store is opened nothing in it is changed.

use crate::failure;
use anyhow::Result;
use geminga_bookie::{Bookie, Health, Whose};
use geminga_bookie_client::registry::record::{BookieRecord, Labels, NodeState};
use geminga_common::error::{Code, Coded as _};
use geminga_common::ids::{BookieId, Incarnation};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetadataStore, Op, Revision, Txn, TxnOutcome};
use std::path::PathBuf;

/// What metadata know of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Known {
    /// There is no file.
    Missing,
    /// No ledger was ever made.
    Empty,
    /// Ledgers were made, and nobody wrote down on which store.
    Unregistered,
    /// The store's record.
    Record(BookieRecord),
    /// A store of another name.
    Renamed(String),
}

/// Why the halves do not belong together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum Mismatch {
    #[error("the metadata file is missing beside a store")]
    MetadataMissing,
    #[error("the metadata are empty, the store holds ledgers")]
    MetadataEmpty,
    #[error("the store is missing, the metadata count on its ledgers")]
    StoreMissing,
    #[error("the metadata count on the store's incarnation {known}, this store is {found}")]
    OtherStore { known: String, found: String },
    #[error(
        "the metadata know of {known} starts of this store, its own files of {found}: it is an older copy"
    )]
    OlderCopy { known: u64, found: u64 },
    #[error("the metadata count on a bookie named {0}; set bookie.id to that")]
    Renamed(String),
}

/// What can be told before the store is opened.
fn before_opening(known: &Known, store: &Whose) -> Result<(), Mismatch> {
    match (known, store) {
        (Known::Renamed(name), _) => Err(Mismatch::Renamed(name.clone())),
        (Known::Missing | Known::Empty, Whose::Nothing) => Ok(()),
        (Known::Missing, _) => Err(Mismatch::MetadataMissing),
        (Known::Unregistered | Known::Record(_), Whose::Nothing) => Err(Mismatch::StoreMissing),
        (Known::Record(record), Whose::Store { incarnation, boot, former }) => {
            let boot = *boot;
            if record.incarnation != *incarnation && !former.contains(&record.incarnation) {
                let (known, found) = (record.incarnation.to_string(), incarnation.to_string());
                Err(Mismatch::OtherStore { known, found })
            } else if record.boot > boot {
                Err(Mismatch::OlderCopy { known: record.boot, found: boot })
            } else {
                Ok(())
            }
        }
        // Opening the store says more.
        (Known::Empty | Known::Unregistered, _) | (Known::Record(_), Whose::Damaged) => Ok(()),
    }
}

/// The halves of one data directory, and where they lie.
pub(crate) struct Halves {
    pub(crate) metadata_path: PathBuf,
    pub(crate) store_path: PathBuf,
    pub(crate) keys: Keys,
    pub(crate) id: BookieId,
}

/// What the first look found, for [`Halves::register`].
pub(crate) struct Checked {
    known: Known,
    revision: Option<Revision>,
}

impl Halves {
    fn refused(&self, why: &Mismatch) -> anyhow::Error {
        let (metadata, store) = (self.metadata_path.display(), self.store_path.display());
        failure::coded(
            Code::DATA_DIRECTORY_FOREIGN,
            format_args!(
                "the metadata in {metadata} and the store in {store} do not belong together: {why}. Put back \
                 the two that were together when the server last ran, or start with an empty --data-dir"
            ),
        )
    }

    /// Before metadata are opened, which would make them: whether they are there as far as the store wants them.
    pub(crate) fn check_files(&self, has_metadata: bool, store: &Whose) -> Result<()> {
        let known = if has_metadata { Known::Empty } else { Known::Missing };
        before_opening(&known, store).map_err(|why| self.refused(&why))
    }

    /// The incarnation that metadata count on, if they name one.
    pub(crate) fn counted_on(checked: &Checked) -> Option<Incarnation> {
        match &checked.known {
            Known::Record(record) => Some(record.incarnation),
            _ => None,
        }
    }

    /// Starts of the store that metadata know of.
    pub(crate) fn starts_known(checked: &Checked) -> u64 {
        match &checked.known {
            Known::Record(record) => record.boot,
            _ => 0,
        }
    }

    /// Before the store is opened: whether it is the one that metadata count on.
    pub(crate) async fn check(&self, metadata: &dyn MetadataStore, store: &Whose) -> Result<Checked> {
        let checked = self.look(metadata).await?;
        before_opening(&checked.known, store).map_err(|why| self.refused(&why))?;
        Ok(checked)
    }

    async fn look(&self, metadata: &dyn MetadataStore) -> Result<Checked> {
        let failed = |error: geminga_common::metadata::MetaError| {
            failure::about(&error, "reading the metadata in", &self.metadata_path)
        };
        let all = metadata.list(&self.keys.bookies_prefix(), None, 16).await.map_err(failed)?;
        let mine = self.keys.bookie(&self.id);
        if let Some(stored) = all.iter().find(|stored| stored.key == mine) {
            let record = BookieRecord::decode(&stored.value).map_err(|error| {
                let path = self.metadata_path.display();
                let text = format!(
                    "the record of bookie {} in {path}: {error}; it may be of a newer version",
                    self.id
                );
                failure::coded(Code::FORMAT_TOO_NEW, text)
            })?;
            return Ok(Checked { known: Known::Record(record), revision: Some(stored.mod_revision) });
        }
        let other = all.iter().find_map(|stored| self.keys.bookie_of_key(&stored.key));
        let known = match other {
            Some(other) => Known::Renamed(other.to_string()),
            None if metadata.get(&self.keys.ids()).await.map_err(failed)?.is_some() => Known::Unregistered,
            None => Known::Empty,
        };
        Ok(Checked { known, revision: None })
    }

    /// Once the store is open: what only it can tell, and then its record is brought up to date.
    pub(crate) async fn register(
        &self,
        metadata: &dyn MetadataStore,
        checked: Checked,
        bookie: &Bookie,
    ) -> Result<()> {
        let former = bookie.accepted_losses().iter().map(|loss| loss.incarnation).collect();
        let opened = Whose::Store { incarnation: bookie.incarnation(), boot: bookie.boot(), former };
        before_opening(&checked.known, &opened).map_err(|why| self.refused(&why))?;
        if checked.known == Known::Empty && bookie.figures().ledgers > 0 {
            return Err(self.refused(&Mismatch::MetadataEmpty));
        }
        let lost = *bookie.health().borrow() == Health::DataLoss;
        if lost {
            tracing::error!(
                code = %Code::DATA_LOSS,
                store = %self.store_path.display(),
                "the store has lost data: it serves what it has and takes nothing; `geminga bookie inspect` shows what is missing"
            );
        }
        for loss in bookie.accepted_losses() {
            tracing::warn!(
                code = %Code::LOST_FOR_GOOD, store = %self.store_path.display(), incarnation = %loss.incarnation,
                at_ms = loss.at_ms, lost = %loss.lines.join("; "),
                "this store has lost something, and that was accepted: entries that were in it read as lost"
            );
        }
        let record = BookieRecord {
            incarnation: bookie.incarnation(),
            boot: bookie.boot(),
            // Nobody reaches it but this process.
            address: String::new(),
            labels: Labels::default(),
            state: if lost { NodeState::DataLoss } else { NodeState::ReadWrite },
            capacity_bytes: 0,
            damage: *bookie.damage().borrow(),
            // Not kept up to date: there is no other store to choose.
            room: *bookie.room().borrow(),
        };
        let key = self.keys.bookie(&self.id);
        let compare = match checked.revision {
            Some(revision) => Compare::ModRevision(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        let txn = Txn { compares: vec![compare], ops: vec![Op::put(key, record.encode())] };
        match metadata.txn(txn).await {
            Ok(TxnOutcome::Committed(_)) => Ok(()),
            Ok(TxnOutcome::CompareFailed) => Err(failure::coded(
                Code::INTERNAL,
                "the store's record changed while this process alone had it",
            )),
            Err(error) => Err(failure::coded(
                error.code(),
                format_args!("writing the store's record to {}: {error}", self.metadata_path.display()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(incarnation: u64, boot: u64) -> Known {
        Known::Record(BookieRecord {
            incarnation: Incarnation(incarnation),
            boot,
            address: String::new(),
            labels: Labels::default(),
            state: NodeState::ReadWrite,
            capacity_bytes: 0,
            damage: 0,
            room: Default::default(),
        })
    }

    fn store(incarnation: u64, boot: u64) -> Whose {
        Whose::Store { incarnation: Incarnation(incarnation), boot, former: Vec::new() }
    }

    #[test]
    fn the_first_start_may_be_cut_short_anywhere_and_goes_on() {
        assert_eq!(before_opening(&Known::Missing, &Whose::Nothing), Ok(()));
        assert_eq!(before_opening(&Known::Empty, &Whose::Nothing), Ok(()));
        for boot in [0, 1, 7] {
            assert_eq!(before_opening(&Known::Empty, &store(1, boot)), Ok(()));
        }
        assert_eq!(before_opening(&known(1, 1), &store(1, 1)), Ok(()));
        assert_eq!(before_opening(&known(1, 1), &store(1, 9)), Ok(()), "starts that were cut short");
        assert_eq!(before_opening(&Known::Unregistered, &store(1, 3)), Ok(()), "a directory from before");
    }

    #[test]
    fn a_half_that_is_missing_or_another_is_refused() {
        let refused = |known: Known, store| before_opening(&known, &store).unwrap_err();
        for there in [store(1, 1), Whose::Damaged] {
            assert_eq!(refused(Known::Missing, there), Mismatch::MetadataMissing);
        }
        assert_eq!(refused(known(1, 1), Whose::Nothing), Mismatch::StoreMissing);
        assert_eq!(refused(Known::Unregistered, Whose::Nothing), Mismatch::StoreMissing);
        assert!(matches!(refused(known(1, 1), store(2, 5)), Mismatch::OtherStore { .. }));
        assert_eq!(refused(known(1, 9), store(1, 8)), Mismatch::OlderCopy { known: 9, found: 8 });
        assert_eq!(refused(Known::Renamed("a".into()), store(1, 8)), Mismatch::Renamed("a".into()));
    }
    #[test]
    fn a_store_whose_loss_was_accepted_is_the_one_that_metadata_count_on() {
        let former = vec![Incarnation(1), Incarnation(2)];
        let accepted = |boot| Whose::Store { incarnation: Incarnation(3), boot, former: former.clone() };
        for before in [1, 2, 3] {
            assert_eq!(before_opening(&known(before, 5), &accepted(6)), Ok(()));
        }
        assert!(matches!(before_opening(&known(4, 5), &accepted(6)), Err(Mismatch::OtherStore { .. })));
        assert!(matches!(before_opening(&known(2, 9), &accepted(6)), Err(Mismatch::OlderCopy { .. })));
    }
}
