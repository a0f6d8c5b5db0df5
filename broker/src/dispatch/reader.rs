//! Which read is under way and where the next one starts: the part all subscription types share.
//!
//! Owned by each machine. Invariant: at most one read is under way; finishing or cancelling it makes its id stale for good, so
//! a slow answer from storage can neither move the read position back nor hand out an entry twice.

use geminga_common::ids::Position;

use super::types::{Decision, DispatchConfig, ReadId};

/// What a read was for.
pub(super) enum ReadKind {
    /// Forward from the read position.
    Forward,
    /// These positions, ascending.
    Replay(Vec<Position>),
}

pub(super) struct Reader {
    position: Position,
    in_flight: Option<(ReadId, ReadKind)>,
    last_id: u64,
    /// Entries per read: 1 after a failed read, doubled by each good one up to the limit.
    batch: u32,
    batch_max: u32,
    bytes_max: u32,
    /// Running average of messages in an entry.
    messages_per_entry: f64,
}

impl Reader {
    pub(super) fn new(position: Position, config: &DispatchConfig) -> Self {
        let batch_max = config.read_entries_max.max(1);
        Self {
            position,
            in_flight: None,
            last_id: 0,
            batch: batch_max,
            batch_max,
            bytes_max: config.read_bytes_max,
            messages_per_entry: 1.0,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The positions of the replay under way; empty when there is none.
    pub(super) fn replaying(&self) -> &[Position] {
        match &self.in_flight {
            Some((_, ReadKind::Replay(positions))) => positions,
            _ => &[],
        }
    }

    /// How many entries to ask for so that about `credit` messages come.
    pub(super) fn entries_for(&self, credit: u64) -> u32 {
        let wanted = (credit as f64 / self.messages_per_entry).ceil();
        // Float to integer saturates, so a huge credit is the batch.
        (wanted as u32).clamp(1, self.batch)
    }

    /// Starts a forward read of at most `room` entries.
    pub(super) fn forward(&mut self, credit: u64, room: u32) -> Decision {
        let read = self.start(ReadKind::Forward);
        Decision::Read {
            read,
            from: self.position,
            entries: self.entries_for(credit).min(room.max(1)),
            messages: u32::try_from(credit).unwrap_or(u32::MAX),
            bytes: self.bytes_max,
        }
    }

    /// Starts a replay.
    pub(super) fn replay(&mut self, positions: Vec<Position>) -> Decision {
        let read = self.start(ReadKind::Replay(positions.clone()));
        Decision::Replay { read, positions }
    }

    fn start(&mut self, kind: ReadKind) -> ReadId {
        debug_assert!(self.in_flight.is_none(), "one read at a time");
        self.last_id += 1;
        let id = ReadId(self.last_id);
        self.in_flight = Some((id, kind));
        id
    }

    /// Ends the read; `None` when it is stale.
    pub(super) fn finish(&mut self, read: ReadId) -> Option<ReadKind> {
        let (_, kind) = self.in_flight.take_if(|(id, _)| *id == read)?;
        self.batch = self.batch.saturating_mul(2).min(self.batch_max);
        Some(kind)
    }

    /// The read failed: the next one is of one entry.
    pub(super) fn fail(&mut self, read: ReadId) {
        if self.in_flight.take_if(|(id, _)| *id == read).is_some() {
            self.batch = 1;
        }
    }

    /// Forgets the read under way.
    pub(super) fn cancel(&mut self) {
        self.in_flight = None;
    }

    /// Forgets the replay under way; a forward read goes on.
    pub(super) fn cancel_replay(&mut self) {
        self.in_flight.take_if(|(_, kind)| matches!(kind, ReadKind::Replay(_)));
    }

    /// Goes to `position`, in either direction.
    pub(super) fn go_to(&mut self, position: Position) {
        self.cancel();
        self.position = position;
    }

    /// A finished forward read got as far as `position`.
    pub(super) fn advance(&mut self, position: Position) {
        debug_assert!(position >= self.position, "a read goes forward");
        self.position = self.position.max(position);
    }

    /// Everything below `floor` is acknowledged: a forward read below it is pointless.
    pub(super) fn skip_to(&mut self, floor: Position) {
        if floor > self.position {
            self.in_flight.take_if(|(_, kind)| matches!(kind, ReadKind::Forward));
            self.position = floor;
        }
    }

    pub(super) fn saw_entry(&mut self, messages: u32) {
        self.messages_per_entry = (self.messages_per_entry * 0.95 + f64::from(messages) * 0.05).max(1.0);
    }
}
