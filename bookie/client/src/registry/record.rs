//! What a bookie says of itself in metadata: its record, `b/{id}`, and its liveness, `live/b/{id}`, which vanishes with its lease.
//! Stored as one version byte, then protobuf; field numbers are never reused.

use bytes::Bytes;
use geminga_common::ids::Incarnation;
use prost::Message;

const VERSION: u8 = 1;

/// State of a node; changed by transactions only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeState {
    /// Not yet in service.
    Provisioning,
    /// Everything.
    ReadWrite,
    /// Takes no new ledgers; reads, fences, seals and deletions go on.
    ReadOnly,
    /// Being emptied: no new slots.
    Draining,
    /// Emptied and given up.
    Gone,
    /// It lost something it had acknowledged: it proves no absence and takes nothing.
    DataLoss,
    /// Given up with what it held.
    Lost,
}

impl NodeState {
    const ALL: [Self; 7] = [
        Self::Provisioning,
        Self::ReadWrite,
        Self::ReadOnly,
        Self::Draining,
        Self::Gone,
        Self::DataLoss,
        Self::Lost,
    ];

    fn number(self) -> u32 {
        Self::ALL.iter().position(|state| *state == self).map_or(0, |at| at as u32 + 1)
    }

    fn of(number: u32) -> Option<Self> {
        Self::ALL.get((number as usize).checked_sub(1)?).copied()
    }
}

/// Where a node stands, for placement. An empty label is none.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Labels {
    /// Availability zone.
    pub zone: String,
    /// Rack within the zone.
    pub rack: String,
}

/// What a bookie's disk has room for. Fences, seals, deletions and reads go on in every state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Room {
    /// Everything.
    #[default]
    Open,
    /// Ledgers that are there: placement should choose other stores for new ones. Nothing is refused.
    NoNewLedgers,
    /// Write-backs of recoveries and cursor logs, as far as their reserves go; other adds are refused with `DiskFull`.
    RecoveryOnly,
    /// No add but those of cursor logs.
    Nothing,
}

impl Room {
    const ALL: [Self; 4] = [Self::Open, Self::NoNewLedgers, Self::RecoveryOnly, Self::Nothing];

    /// A number of a newer version is the least room: such a bookie is chosen last.
    fn of(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Nothing)
    }
}

/// A bookie's record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BookieRecord {
    /// Incarnation of its store.
    pub incarnation: Incarnation,
    /// Starts of the store that the cluster knows of. A store that has started fewer times went back in time.
    pub boot: u64,
    /// `host:port` of its service.
    pub address: String,
    /// Where it stands.
    pub labels: Labels,
    /// Its state.
    pub state: NodeState,
    /// Size of its data volume in bytes, 0 when not known.
    pub capacity_bytes: u64,
    /// Blocks and footers of its segments that do not check. Of what they held it may lack copies; a change of the number is news, the
    /// number does not fall when the copies have been made good.
    pub damage: u64,
    /// What its disk has room for; the node itself keeps it up to date.
    pub room: Room,
}

/// A bookie's liveness.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LiveRecord {
    /// Incarnation of its store.
    pub incarnation: Incarnation,
    /// `host:port` of its service.
    pub address: String,
    /// Drawn by the process at its start.
    pub process: u64,
}

/// Bytes that are no record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version, or empty.
    #[error("bookie record version {0:?} is not known")]
    Version(Option<u8>),
    /// Not protobuf of this shape.
    #[error("bookie record is damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    /// A state of a newer version.
    #[error("bookie state {0} is not known")]
    State(u32),
}

#[derive(Clone, PartialEq, Message)]
struct PbBookie {
    #[prost(fixed64, tag = "1")]
    incarnation: u64,
    #[prost(uint64, tag = "2")]
    boot: u64,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(string, tag = "4")]
    zone: String,
    #[prost(string, tag = "5")]
    rack: String,
    /// 1 provisioning, 2 read-write, 3 read-only, 4 draining, 5 gone, 6 data loss, 7 lost.
    #[prost(uint32, tag = "6")]
    state: u32,
    #[prost(uint64, tag = "7")]
    capacity_bytes: u64,
    #[prost(uint64, tag = "8")]
    damage: u64,
    /// 0 everything, 1 no new ledgers, 2 recovery only, 3 nothing.
    #[prost(uint32, tag = "9")]
    room: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PbLive {
    #[prost(fixed64, tag = "1")]
    incarnation: u64,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(fixed64, tag = "3")]
    process: u64,
}

fn framed(message: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(VERSION);
    message.encode(&mut out).expect("a vector grows as needed");
    out.into()
}

fn unframed<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(M::decode(body)?),
        other => Err(DecodeError::Version(other.map(|(version, _)| *version))),
    }
}

impl BookieRecord {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        framed(&PbBookie {
            incarnation: self.incarnation.0,
            boot: self.boot,
            address: self.address.clone(),
            zone: self.labels.zone.clone(),
            rack: self.labels.rack.clone(),
            state: self.state.number(),
            capacity_bytes: self.capacity_bytes,
            damage: self.damage,
            room: self.room as u32,
        })
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version or state, damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let stored: PbBookie = unframed(bytes)?;
        Ok(Self {
            incarnation: Incarnation(stored.incarnation),
            boot: stored.boot,
            address: stored.address,
            labels: Labels { zone: stored.zone, rack: stored.rack },
            state: NodeState::of(stored.state).ok_or(DecodeError::State(stored.state))?,
            capacity_bytes: stored.capacity_bytes,
            damage: stored.damage,
            room: Room::of(stored.room),
        })
    }
}

impl LiveRecord {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (incarnation, process) = (self.incarnation.0, self.process);
        framed(&PbLive { incarnation, address: self.address.clone(), process })
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Unknown version, damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let PbLive { incarnation, address, process } = unframed(bytes)?;
        Ok(Self { incarnation: Incarnation(incarnation), address, process })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> BookieRecord {
        BookieRecord {
            incarnation: Incarnation(0x11),
            boot: 3,
            address: "h:1".into(),
            labels: Labels { zone: "z".into(), rack: "r".into() },
            state: NodeState::Draining,
            capacity_bytes: 300,
            damage: 0,
            room: Room::Open,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_are_these() {
        assert_eq!(hex(&record().encode()), "0109110000000000000010031a03683a3122017a2a0172300438ac02");
        let damaged = BookieRecord { damage: 3, ..record() };
        assert_eq!(hex(&damaged.encode()), "0109110000000000000010031a03683a3122017a2a0172300438ac024003");
        assert_eq!(BookieRecord::decode(&damaged.encode()), Ok(damaged));
        let full = BookieRecord { room: Room::RecoveryOnly, ..record() };
        assert_eq!(hex(&full.encode()), "0109110000000000000010031a03683a3122017a2a0172300438ac024802");
        assert_eq!(BookieRecord::decode(&full.encode()), Ok(full));
        let live = LiveRecord { incarnation: Incarnation(1), address: "h:1".into(), process: 2 };
        assert_eq!(hex(&live.encode()), "010901000000000000001203683a31190200000000000000");
        assert_eq!(LiveRecord::decode(&live.encode()), Ok(live));
    }

    #[test]
    fn states_come_back_and_newer_ones_are_errors() {
        for state in NodeState::ALL {
            let record = BookieRecord { state, ..record() };
            assert_eq!(BookieRecord::decode(&record.encode()), Ok(record));
        }
        let newer = PbBookie { state: 8, ..PbBookie::default() };
        assert_eq!(BookieRecord::decode(&framed(&newer)), Err(DecodeError::State(8)));
        assert_eq!(BookieRecord::decode(&[2, 0]), Err(DecodeError::Version(Some(2))));
        assert_eq!(LiveRecord::decode(&[]), Err(DecodeError::Version(None)));
    }

    proptest! {
        #[test]
        fn anything_may_be_decoded(bytes: Vec<u8>) {
            let (_record, _live) = (BookieRecord::decode(&bytes), LiveRecord::decode(&bytes));
        }
    }
}
