//! `FORMAT` and `IDENTITY`: whose store this is.
//!
//! `FORMAT`, written once: magic `GMBOOKIE` 8, version u32 = 2, store id u64, cluster id: length u32 + UTF-8, shards u16, data directories
//! u16, journal directories of their own u16, CRC32C u32 over all before. Version 1 ends with the cluster id and means one shard in
//! one directory. Magic and version are read before the rest, so that any later layout is recognised as newer.
//!
//! `IDENTITY`, replaced at each start, in every directory: magic `GMIDENT2` 8, store id u64, incarnation u64, boot counter u64,
//! state u8 (1: lost data; 2: its journal has been begun), shard u16, CRC32C u32 over all before. `GMIDENT1` has no shard, and 0 or 1
//! as its state.

use super::Fields;
use geminga_common::checksum::crc32c;
use geminga_common::ids::Incarnation;

const FORMAT_MAGIC: &[u8; 8] = b"GMBOOKIE";
const IDENTITY_MAGIC: &[u8; 8] = b"GMIDENT2";
const IDENTITY_MAGIC_1: &[u8; 8] = b"GMIDENT1";

/// Version of the formats that this build writes.
pub(crate) const VERSION: u32 = 2;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub(crate) store: u64,
    pub(crate) cluster: String,
    pub(crate) shards: u16,
    pub(crate) data_dirs: u16,
    pub(crate) journal_dirs: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FormatError {
    Newer(u32),
    Damaged,
}

impl Format {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = FORMAT_MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.store.to_le_bytes());
        out.extend_from_slice(&(self.cluster.len() as u32).to_le_bytes());
        out.extend_from_slice(self.cluster.as_bytes());
        for count in [self.shards, self.data_dirs, self.journal_dirs] {
            out.extend_from_slice(&count.to_le_bytes());
        }
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut f = Fields(bytes);
        if f.take(8) != Some(FORMAT_MAGIC) {
            return Err(FormatError::Damaged);
        }
        match f.u32() {
            Some(version @ 1..=VERSION) => Self::rest(f, bytes, version).ok_or(FormatError::Damaged),
            Some(version) => Err(FormatError::Newer(version)),
            None => Err(FormatError::Damaged),
        }
    }

    fn rest(mut f: Fields<'_>, bytes: &[u8], version: u32) -> Option<Self> {
        let (store, cluster) = (f.u64()?, f.text()?);
        let (shards, data_dirs, journal_dirs) =
            if version == 1 { (1, 1, 0) } else { (f.u16()?, f.u16()?, f.u16()?) };
        let crc = f.u32()?;
        f.end()?;
        (crc == crc32c(&bytes[..bytes.len() - 4])).then_some(Self {
            store,
            cluster,
            shards,
            data_dirs,
            journal_dirs,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) store: u64,
    pub(crate) incarnation: Incarnation,
    /// Starts so far.
    pub(crate) boot: u64,
    pub(crate) data_loss: bool,
    /// A journal file must be there from now on.
    pub(crate) journaled: bool,
    pub(crate) shard: u16,
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = IDENTITY_MAGIC.to_vec();
        for word in [self.store, self.incarnation.0, self.boot] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(u8::from(self.data_loss) | u8::from(self.journaled) << 1);
        out.extend_from_slice(&self.shard.to_le_bytes());
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields(bytes);
        let states = match f.take(8)? {
            magic if magic == IDENTITY_MAGIC => 3,
            magic if magic == IDENTITY_MAGIC_1 => 1,
            _ => return None,
        };
        let (store, incarnation, boot, state) = (f.u64()?, Incarnation(f.u64()?), f.u64()?, f.u8()?);
        let shard = if states == 3 { f.u16()? } else { 0 };
        let crc = f.u32()?;
        f.end()?;
        // The counter is the upper half of journal generations.
        let sound = crc == crc32c(&bytes[..bytes.len() - 4]) && state <= states && boot < u64::from(u32::MAX);
        let (data_loss, journaled) = (state & 1 != 0, state & 2 != 0);
        sound.then_some(Self { store, incarnation, boot, data_loss, journaled, shard })
    }
}
