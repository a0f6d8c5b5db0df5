//! `FORMAT` and `IDENTITY`: whose store this is.
//!
//! `FORMAT`, written once: magic `GMBOOKIE` 8, version u32 = 1, store id u64, cluster id: length u32 + UTF-8, CRC32C u32 over all
//! before. Magic and version are read before the rest, so that any later layout is recognised as newer.
//!
//! `IDENTITY`, replaced at each start, in every directory: magic `GMIDENT1` 8, store id u64, incarnation u64, boot counter u64,
//! state u8 (0 sound, 1 data loss), CRC32C u32 over all before.

use super::Fields;
use geminga_common::checksum::crc32c;
use geminga_common::ids::Incarnation;

const FORMAT_MAGIC: &[u8; 8] = b"GMBOOKIE";
const IDENTITY_MAGIC: &[u8; 8] = b"GMIDENT1";

/// Version of the formats that this build writes.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub(crate) store: u64,
    pub(crate) cluster: String,
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
            Some(VERSION) => Self::rest(f, bytes).ok_or(FormatError::Damaged),
            Some(version) => Err(FormatError::Newer(version)),
            None => Err(FormatError::Damaged),
        }
    }

    fn rest(mut f: Fields<'_>, bytes: &[u8]) -> Option<Self> {
        let (store, cluster, crc) = (f.u64()?, f.text()?, f.u32()?);
        f.end()?;
        (crc == crc32c(&bytes[..bytes.len() - 4])).then_some(Self { store, cluster })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) store: u64,
    pub(crate) incarnation: Incarnation,
    /// Starts so far.
    pub(crate) boot: u64,
    pub(crate) data_loss: bool,
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = IDENTITY_MAGIC.to_vec();
        for word in [self.store, self.incarnation.0, self.boot] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(u8::from(self.data_loss));
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields(bytes);
        if f.take(8)? != IDENTITY_MAGIC {
            return None;
        }
        let (store, incarnation, boot, state, crc) =
            (f.u64()?, Incarnation(f.u64()?), f.u64()?, f.u8()?, f.u32()?);
        f.end()?;
        // The counter is the upper half of journal generations.
        let sound = crc == crc32c(&bytes[..bytes.len() - 4]) && state <= 1 && boot < u64::from(u32::MAX);
        sound.then_some(Self { store, incarnation, boot, data_loss: state == 1 })
    }
}
