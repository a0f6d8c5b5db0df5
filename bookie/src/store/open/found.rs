//! What lies in the place of one shard: manifest, segments and journal, looked at and not touched. What is missing is told here, and marks
//! the shard's identity where it leaves the store as a whole in doubt.

use super::{OpenError, Opening, Place};
use crate::format::identity::Identity;
use crate::journal::{self, Looked};
use crate::manifest::{Content, Manifest, ManifestError};
use crate::mutant::{Mutant, active};
use crate::segments::{Segment, SegmentRow, rebuild};
use crate::store::loss::{self, Lost};
use geminga_common::disk::{Disk, OpenMode};
use std::sync::Arc;

/// What lies in one place, looked at and not touched.
pub(super) struct Found {
    pub(super) manifest: Option<Manifest>,
    pub(super) content: Content,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) journal: Looked,
}

impl Opening<'_> {
    /// Looks at what lies in a place. Losses that leave the store as a whole in doubt are marked in its identity; missing segments are
    /// damage.
    pub(super) fn look(
        &self,
        (place, store): (&Place, u64),
        identity: &mut Identity,
        lost: &mut Vec<Lost>,
    ) -> Result<Found, OpenError> {
        if identity.data_loss {
            lost.push(loss::identity(self.disk, place)?);
        }
        let (manifest, content) = manifest(self.disk, place, identity, lost)?;
        let dir = place.data_dir.join("segments");
        let open = |row: &SegmentRow| Arc::new(Segment::open(self.disk, &dir, row.clone()));
        let segments: Vec<_> = content.segments.iter().map(open).collect();
        lost.extend(loss::segments(&segments));
        let marks = (content.mark, content.durable);
        let looked = journal::look(self.disk, place, store, marks)?;
        // Who takes a missing identity back takes the directory for a new one.
        let taken_back = active(Mutant::IdentityMissingOk) && !identity.journaled;
        let unnoticed = active(Mutant::JournalLossUnnoticed) || taken_back;
        let mut missing = if unnoticed {
            Vec::new()
        } else {
            loss::journal(place, (&content, manifest.is_some()), &looked, identity.boot)
        };
        if identity.journaled && looked.is_empty() && !unnoticed {
            missing = vec![loss::no_journal(place)];
        }
        identity.data_loss |= looked.damaged() || !missing.is_empty();
        lost.extend(missing);
        Ok(Found { manifest, content, segments, journal: looked })
    }
}

/// The manifest, or what of it can be told from the segments themselves.
fn manifest(
    disk: &dyn Disk,
    place: &Place,
    identity: &mut Identity,
    losses: &mut Vec<Lost>,
) -> Result<(Option<Manifest>, Content), OpenError> {
    let dir = &place.data_dir;
    let path = dir.join("manifest.redb");
    let mut known = disk.list(dir)?.iter().any(|name| name == "manifest.redb");
    if known && identity.boot > 0 {
        // redb would make a new database of an empty file.
        known = disk.open(&path, OpenMode::Read)?.len()? > 0;
    }
    if identity.boot > 0 && !known {
        losses.push(loss::manifest(place, "is missing or empty"));
        identity.data_loss = true;
    }
    let lost = || rebuild(disk, &dir.join("segments"));
    if identity.data_loss && !known {
        return Ok((None, lost()?));
    }
    match Manifest::open(disk, &path) {
        Ok((manifest, content)) => {
            // A directory that went back in time.
            if content.boot > identity.boot {
                losses.push(loss::manifest(place, "is newer than the identity beside it"));
                identity.data_loss = true;
            }
            Ok((Some(manifest), content))
        }
        Err(ManifestError::Io(error)) => Err(error.into()),
        Err(ManifestError::Damaged) => {
            losses.push(loss::manifest(place, "is damaged"));
            identity.data_loss = true;
            Ok((None, lost()?))
        }
    }
}
