//! How full the disk is, in steps with hysteresis. Pure: free space goes in, what may still be taken comes out.
//!
//! Invariant: a level is entered at its own mark and left only below a lower one, so that a store at a mark does not flap.

pub use geminga_bookie_client::registry::record::Room;
use geminga_common::disk::Space;

/// At which share of the file system each level begins and ends, in percent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// [`Room::NoNewLedgers`] from here on. Default 85.
    pub no_new_ledgers: u8,
    /// [`Room::RecoveryOnly`] from here on. Default 92.
    pub recovery_only: u8,
    /// [`Room::Nothing`] from here on. Default 97.
    pub nothing: u8,
    /// New ledgers again below. Default 80.
    pub reopen_new_ledgers: u8,
    /// Adds again below. Default 90.
    pub reopen_adds: u8,
    /// Recoveries again below. Default 95.
    pub reopen_recovery: u8,
    /// With this many free bytes nothing is restricted, whatever the shares say. Default 0: shares alone decide.
    pub enough_free: u64,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            no_new_ledgers: 85,
            recovery_only: 92,
            nothing: 97,
            reopen_new_ledgers: 80,
            reopen_adds: 90,
            reopen_recovery: 95,
            enough_free: 0,
        }
    }
}

impl Watermarks {
    /// Whether marks rise and every level is left below its own mark.
    pub(crate) fn sound(&self) -> bool {
        let enter = [self.no_new_ledgers, self.recovery_only, self.nothing];
        let leave = [self.reopen_new_ledgers, self.reopen_adds, self.reopen_recovery];
        enter.is_sorted()
            && leave.is_sorted()
            && self.nothing <= 100
            && enter.iter().zip(leave).all(|(e, l)| l < *e)
    }

    /// The level after `now`, with this much space.
    pub(crate) fn next(&self, now: Room, space: Space) -> Room {
        if self.enough_free > 0 && space.available >= self.enough_free {
            return Room::Open;
        }
        let used = u128::from(space.total.saturating_sub(space.available)) * 100;
        let reaches = |percent: u8| used >= u128::from(percent) * u128::from(space.total);
        let entered = if reaches(self.nothing) {
            Room::Nothing
        } else if reaches(self.recovery_only) {
            Room::RecoveryOnly
        } else if reaches(self.no_new_ledgers) {
            Room::NoNewLedgers
        } else {
            Room::Open
        };
        let mut level = now;
        while level > entered {
            level = match level {
                Room::Nothing if !reaches(self.reopen_recovery) => Room::RecoveryOnly,
                Room::RecoveryOnly if !reaches(self.reopen_adds) => Room::NoNewLedgers,
                Room::NoNewLedgers if !reaches(self.reopen_new_ledgers) => Room::Open,
                _ => return level,
            };
        }
        level.max(entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_entered_at_their_mark_and_left_below_a_lower_one() {
        let marks = Watermarks::default();
        let mut now = Room::Open;
        let mut story = |percents: &[u64]| -> Vec<Room> {
            let step = |percent: &u64| {
                now = marks.next(now, Space { total: 1000, available: 1000 - percent * 10 });
                now
            };
            percents.iter().map(step).collect()
        };
        use Room::{NoNewLedgers, Nothing, Open, RecoveryOnly};
        assert_eq!(
            story(&[84, 85, 91, 92, 96, 97, 100]),
            [Open, NoNewLedgers, NoNewLedgers, RecoveryOnly, RecoveryOnly, Nothing, Nothing]
        );
        assert_eq!(
            story(&[96, 95, 94, 91, 90, 89, 85, 80, 79]),
            [
                Nothing,
                Nothing,
                RecoveryOnly,
                RecoveryOnly,
                RecoveryOnly,
                NoNewLedgers,
                NoNewLedgers,
                NoNewLedgers,
                Open
            ]
        );
        assert_eq!(story(&[99, 10]), [Nothing, Open], "a great deletion needs no steps between");
    }

    #[test]
    fn enough_free_bytes_outweigh_shares() {
        let marks = Watermarks { enough_free: 100, ..Watermarks::default() };
        assert_eq!(marks.next(Room::Nothing, Space { total: 10_000, available: 100 }), Room::Open);
        assert_eq!(marks.next(Room::Open, Space { total: 10_000, available: 99 }), Room::Nothing);
        assert!(marks.sound());
        assert!(!Watermarks { reopen_adds: 92, ..marks }.sound());
    }
}
