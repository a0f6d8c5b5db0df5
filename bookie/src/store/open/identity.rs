//! Whose a store is: `FORMAT`, and the identity that stands in both directories of each shard.
//!
//! Invariants: `FORMAT` is written last, so that a store that has one has its identities. Of the two of a shard the data directory's is
//! written first, and a start is counted in one shard after the other: a crash leaves none further behind than one start, and whatever is
//! further behind went back in time. All but formatting, raising the format and catching up reads only.

use super::{OpenError, Opening, Place};
use crate::format::identity::{Format, FormatError, Identity};
use crate::mutant::{Mutant, active};
use crate::store::files::{read_file, replace_file};
use geminga_common::disk::Disk;
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use std::io;
use std::path::Path;

impl Opening<'_> {
    pub(super) fn refuse_newer(&self) -> Result<(), OpenError> {
        match read_file(self.disk, &self.config.data_dir.join("FORMAT"))?.map(|bytes| Format::decode(&bytes))
        {
            Some(Err(FormatError::Newer(version))) => Err(OpenError::Newer(version)),
            _ => Ok(()),
        }
    }

    pub(super) fn format(&self) -> Result<Format, OpenError> {
        let config = self.config;
        let layout =
            (config.shards, 1 + config.more_data_dirs.len() as u16, config.journal_dirs.len() as u16);
        let Some(bytes) = read_file(self.disk, &config.data_dir.join("FORMAT"))? else {
            // Formatting that was cut short made none of these.
            for place in &self.places {
                for dir in [&place.data_dir, &place.data_dir.join("segments"), &place.journal_dir] {
                    let data = |name: &String| {
                        name == "manifest.redb" || name.ends_with(".seg") || name.ends_with(".jnl")
                    };
                    if self.disk.list(dir)?.iter().any(data) {
                        return Err(OpenError::Format);
                    }
                }
            }
            return self.fresh(layout);
        };
        let format = match Format::decode(&bytes) {
            Err(FormatError::Newer(version)) => return Err(OpenError::Newer(version)),
            Err(FormatError::Damaged) => return Err(OpenError::Format),
            Ok(format) if format.cluster != config.cluster => {
                return Err(OpenError::OtherCluster(format.cluster));
            }
            Ok(format) => format,
        };
        if (format.shards, format.data_dirs, format.journal_dirs) != layout {
            let Format { shards, data_dirs, journal_dirs, .. } = format;
            return Err(OpenError::Layout { shards, data_dirs, journal_dirs });
        }
        if format.encode() != bytes {
            // The first version. Raised before anything is written that it does not know.
            replace_file(self.disk, &config.data_dir, "FORMAT", &format.encode())?;
        }
        Ok(format)
    }

    /// Formats a store: identities first, `FORMAT` last, so that a store with a `FORMAT` has its identities.
    fn fresh(&self, (shards, data_dirs, journal_dirs): (u16, u16, u16)) -> Result<Format, OpenError> {
        let mut rng = self.config.seed.map_or_else(Rng::from_system, Rng::seeded);
        let (store, cluster) = (rng.next_u64(), self.config.cluster.clone());
        let format = Format { store, cluster, shards, data_dirs, journal_dirs };
        let incarnation = Incarnation(rng.next_u64() >> 1 | 1);
        for place in &self.places {
            let identity = Identity {
                store,
                incarnation,
                boot: 0,
                data_loss: false,
                journaled: false,
                shard: place.shard,
            };
            write_identity(self.disk, place, &identity)?;
        }
        replace_file(self.disk, &self.config.data_dir, "FORMAT", &format.encode())?;
        Ok(format)
    }

    /// The identities of all shards, marked as having lost data unless all directories tell the same story.
    pub(super) fn identities(&self, format: &Format) -> io::Result<Vec<Identity>> {
        let found: Vec<Option<Identity>> =
            self.places.iter().map(|place| self.identity(place, format)).collect::<io::Result<_>>()?;
        let incarnation = found
            .iter()
            .flatten()
            .map(|identity| identity.incarnation)
            .next()
            // Lost here: the one that others count on, so that they know it again as what it is, a store that lost data.
            .or(self.config.known)
            .unwrap_or_else(|| {
                // Nobody can say which incarnation this was: it gets one that nobody relies on.
                let mut rng = self.config.seed.map_or_else(Rng::from_system, |s| Rng::seeded(s ^ 1));
                Incarnation(rng.next_u64() >> 1 | 1)
            });
        // One that is further behind than a crash leaves it went back in time.
        let latest = found.iter().flatten().map(|identity| identity.boot).max().unwrap_or(0);
        let all = self.places.iter().zip(found).map(|(place, identity)| match identity {
            Some(identity) => {
                let back = identity.boot + 1 < latest;
                let lost = identity.data_loss || identity.incarnation != incarnation || back;
                Identity { data_loss: lost, incarnation, ..identity }
            }
            None => Identity {
                store: format.store,
                incarnation,
                boot: self.config.known_boot.max(1 << 20),
                data_loss: true,
                journaled: true,
                shard: place.shard,
            },
        });
        Ok(all.collect())
    }

    /// A start is counted in one shard after the other, and all are caught up before the next one is, so that a crash leaves none further
    /// behind than one. All have a manifest by now: one that has none although it was started has lost it.
    pub(super) fn catch_up(&self, identities: &mut [Identity]) -> io::Result<()> {
        let latest = identities.iter().map(|identity| identity.boot).max().unwrap_or(0);
        for (place, identity) in self.places.iter().zip(identities) {
            if identity.boot < latest {
                identity.boot = latest;
                write_identity(self.disk, place, identity)?;
            }
        }
        Ok(())
    }

    fn identity(&self, place: &Place, format: &Format) -> io::Result<Option<Identity>> {
        let read = |dir: &Path| -> io::Result<Option<Identity>> {
            let bytes = read_file(self.disk, &dir.join("IDENTITY"))?;
            let identity = bytes.and_then(|bytes| Identity::decode(&bytes));
            Ok(identity.filter(|identity| (identity.store, identity.shard) == (format.store, place.shard)))
        };
        Ok(match (read(&place.data_dir)?, read(&place.journal_dir)?) {
            (Some(a), Some(b)) => {
                // The data directory is written first: a crash leaves it one start ahead.
                let torn = a.boot == b.boot || a.boot == b.boot + 1;
                let sound = a.incarnation == b.incarnation && torn;
                let data_loss = a.data_loss || b.data_loss || !sound;
                if sound && a.boot > b.boot {
                    // Caught up first, so that they are never two apart.
                    replace_file(self.disk, &place.journal_dir, "IDENTITY", &a.encode())?;
                }
                let journaled = a.journaled || b.journaled;
                Some(Identity { boot: a.boot.max(b.boot), data_loss, journaled, ..a })
            }
            (Some(one), None) | (None, Some(one)) => {
                let excused = active(Mutant::IdentityMissingOk);
                Some(Identity { data_loss: !excused, journaled: one.journaled && !excused, ..one })
            }
            (None, None) => None,
        })
    }
}

pub(in crate::store) fn write_identity(
    disk: &dyn Disk,
    place: &Place,
    identity: &Identity,
) -> io::Result<()> {
    replace_file(disk, &place.data_dir, "IDENTITY", &identity.encode())?;
    replace_file(disk, &place.journal_dir, "IDENTITY", &identity.encode())
}
