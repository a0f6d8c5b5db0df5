//! Stored forms of ownership.
//!
//! `owner/{bundle}`, leased:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | epoch, big-endian |
//! | 8 | process id, minted at start |
//! | 8 | take id, minted for each taking |
//! | 2 + n | broker id, `host:port`: length big-endian, UTF-8 |
//! | 2 + n | Pulsar service URL |
//! | 2 + n | HTTP service URL |
//!
//! `live/r/{broker}`, leased: version 1 in one byte, then the same three texts.
//!
//! `bd/{bundle}`, not leased: version 1 in one byte, then the last epoch that was taken, 8 bytes big-endian.
//!
//! The *value* is what transactions compare, so that it must never repeat: the epoch rises with each taking, and the two random
//! ids keep it unique even when etcd was restored from a snapshot and the counter went back. Neither record carries a checksum
//! of its own: both stores check their pages.

use bytes::{BufMut as _, Bytes, BytesMut};
use geminga_common::ids::OwnerEpoch;

const VERSION: u8 = 1;

/// A record that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ownership record cannot be read; was it written by a newer version?")]
pub struct Unreadable;

/// Where a broker is reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Its name in the cluster, `host:port`.
    pub id: String,
    /// Pulsar service URL.
    pub pulsar_url: String,
    /// HTTP service URL.
    pub http_url: String,
}

/// Who owns a bundle.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// Epoch of this ownership.
    pub epoch: OwnerEpoch,
    /// Which start of the broker.
    pub process: u64,
    /// Which taking.
    pub take: u64,
    /// The broker.
    pub member: Member,
}

impl Owner {
    /// Stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(VERSION);
        for word in [self.epoch.0, self.process, self.take] {
            out.put_u64(word);
        }
        self.member.put(&mut out);
        out.freeze()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Anything but what [`Self::encode`] writes.
    pub fn decode(value: &[u8]) -> Result<Self, Unreadable> {
        let mut fields = Fields(value);
        let mut read = || {
            fields.version()?;
            let (epoch, process, take) = (OwnerEpoch(fields.u64()?), fields.u64()?, fields.u64()?);
            Some(Owner { epoch, process, take, member: fields.member()? })
        };
        read().filter(|_| fields.0.is_empty()).ok_or(Unreadable)
    }
}

impl Member {
    fn put(&self, out: &mut BytesMut) {
        for text in [&self.id, &self.pulsar_url, &self.http_url] {
            // Addresses are short; what is longer than this names no host.
            let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
            out.put_u16(text.len() as u16);
            out.put_slice(text);
        }
    }

    /// Stored form under `live/r/`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(96);
        out.put_u8(VERSION);
        self.put(&mut out);
        out.freeze()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Anything but what [`Self::encode`] writes.
    pub fn decode(value: &[u8]) -> Result<Self, Unreadable> {
        let mut fields = Fields(value);
        let mut read = || {
            fields.version()?;
            fields.member()
        };
        read().filter(|_| fields.0.is_empty()).ok_or(Unreadable)
    }
}

/// What is left of a value.
struct Fields<'v>(&'v [u8]);

impl<'v> Fields<'v> {
    fn take(&mut self, n: usize) -> Option<&'v [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn version(&mut self) -> Option<()> {
        (self.take(1)? == [VERSION]).then_some(())
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let len = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        String::from_utf8(self.take(usize::from(len))?.to_vec()).ok()
    }

    fn member(&mut self) -> Option<Member> {
        Some(Member { id: self.text()?, pulsar_url: self.text()?, http_url: self.text()? })
    }
}

/// Stored form of the epoch counter.
#[must_use]
pub(super) fn encode_epoch(epoch: OwnerEpoch) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(VERSION);
    out.put_u64(epoch.0);
    out.freeze()
}

/// Reads the epoch counter.
///
/// # Errors
/// Anything but what [`encode_epoch`] writes.
pub(super) fn decode_epoch(value: &[u8]) -> Result<OwnerEpoch, Unreadable> {
    match value.split_first() {
        Some((&VERSION, epoch)) => {
            epoch.try_into().map(|bytes| OwnerEpoch(u64::from_be_bytes(bytes))).map_err(|_| Unreadable)
        }
        _ => Err(Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        let member =
            Member { id: "a:1".into(), pulsar_url: "pulsar://a:1".into(), http_url: "http://a:2".into() };
        Owner { epoch: OwnerEpoch(3), process: 0x0102, take: 0xff, member }
    }

    #[test]
    fn golden() {
        let mut expected = vec![1];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0xff]);
        expected.extend(b"\x00\x03a:1\x00\x0cpulsar://a:1\x00\x0ahttp://a:2");
        assert_eq!(owner().encode(), expected);
        assert_eq!(encode_epoch(OwnerEpoch(258)), [1, 0, 0, 0, 0, 0, 0, 1, 2][..]);
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let value = owner().encode();
        assert_eq!(Owner::decode(&value), Ok(owner()));
        assert_eq!(Member::decode(&owner().member.encode()), Ok(owner().member));
        for cut in 0..value.len() {
            assert_eq!(Owner::decode(&value[..cut]), Err(Unreadable), "cut at {cut}");
        }
        assert_eq!(Owner::decode(&[&value[..], b"x"].concat()), Err(Unreadable));
        assert_eq!(Owner::decode(&[&[2], &value[1..]].concat()), Err(Unreadable), "a newer version");
        assert_eq!(decode_epoch(&encode_epoch(OwnerEpoch(7))), Ok(OwnerEpoch(7)));
        assert_eq!(decode_epoch(&[1, 2]), Err(Unreadable));
    }
}
