//! Words of the wire to words of the room and back: refusals, doubts, ranges. The one mapping, used by both ends.
//!
//! A word that this build does not know is `Unknown`: never an assent, never an absence.

use crate::quorum::QuorumSpec;
use crate::rpc::{AddError, BookieRef, ControlError, Doubt, IdRange, ReadClass, Replicate};
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use geminga_proto::bookie as wire;
use geminga_proto::bookie::Reason;

/// An id as it travels: id + 1, 0 for none.
#[must_use]
pub fn plus_one(id: Option<EntryId>) -> u64 {
    id.map_or(0, |id| id.0.saturating_add(1))
}

/// The way back.
#[must_use]
pub fn minus_one(id: u64) -> Option<EntryId> {
    id.checked_sub(1).map(EntryId)
}

fn refusal(reason: Reason, value: u64) -> wire::Refusal {
    wire::Refusal { reason: reason.into(), value, size: 0, limit: 0 }
}

/// A refused add.
#[must_use]
pub fn add_refusal(error: &AddError) -> wire::Refusal {
    match error {
        AddError::StaleTerm(term) => refusal(Reason::StaleTerm, term.0),
        AddError::WrongIncarnation => refusal(Reason::WrongIncarnation, 0),
        AddError::Sealed(last) => refusal(Reason::Sealed, plus_one(*last)),
        AddError::Tombstoned => refusal(Reason::Tombstoned, 0),
        AddError::Conflict(id) => refusal(Reason::Conflict, id.0),
        AddError::Corrupt(id) => refusal(Reason::Corrupt, id.0),
        AddError::TooLarge { id, size, limit } => wire::Refusal {
            reason: Reason::TooLarge.into(),
            value: id.0,
            size: *size as u64,
            limit: *limit as u64,
        },
        AddError::DiskFull => refusal(Reason::DiskFull, 0),
        AddError::Failed => refusal(Reason::Failed, 0),
        AddError::Unknown(_) => refusal(Reason::Unknown, 0),
    }
}

/// The way back.
#[must_use]
pub fn add_error(refusal: &wire::Refusal) -> AddError {
    match refusal.reason() {
        Reason::StaleTerm => AddError::StaleTerm(Term(refusal.value)),
        Reason::WrongIncarnation => AddError::WrongIncarnation,
        Reason::Sealed => AddError::Sealed(minus_one(refusal.value)),
        Reason::Tombstoned => AddError::Tombstoned,
        Reason::Conflict => AddError::Conflict(EntryId(refusal.value)),
        Reason::Corrupt => AddError::Corrupt(EntryId(refusal.value)),
        Reason::TooLarge => AddError::TooLarge {
            id: EntryId(refusal.value),
            size: refusal.size as usize,
            limit: refusal.limit as usize,
        },
        Reason::DiskFull => AddError::DiskFull,
        Reason::Failed => AddError::Failed,
        Reason::Unknown => AddError::Unknown("the bookie does not know"),
        Reason::Unspecified => AddError::Unknown("the bookie answered a word of a newer version"),
    }
}

/// A control call that did not succeed.
#[must_use]
pub fn control_refusal(error: &ControlError) -> wire::Refusal {
    match error {
        ControlError::StaleTerm(term) => refusal(Reason::StaleTerm, term.0),
        ControlError::WrongIncarnation => refusal(Reason::WrongIncarnation, 0),
        ControlError::Tombstoned => refusal(Reason::Tombstoned, 0),
        ControlError::Failed => refusal(Reason::Failed, 0),
        ControlError::Unknown(_) => refusal(Reason::Unknown, 0),
    }
}

/// The way back.
#[must_use]
pub fn control_error(refusal: &wire::Refusal) -> ControlError {
    match refusal.reason() {
        Reason::StaleTerm => ControlError::StaleTerm(Term(refusal.value)),
        Reason::WrongIncarnation => ControlError::WrongIncarnation,
        Reason::Tombstoned => ControlError::Tombstoned,
        Reason::Failed => ControlError::Failed,
        _ => ControlError::Unknown("the bookie does not know"),
    }
}

/// A doubt.
#[must_use]
pub fn doubt_out(doubt: Doubt) -> wire::Doubt {
    match doubt {
        Doubt::Damaged => wire::Doubt::Damaged,
        Doubt::DataLoss => wire::Doubt::DataLoss,
        Doubt::WrongIncarnation => wire::Doubt::WrongIncarnation,
        Doubt::Unreachable => wire::Doubt::Unreachable,
    }
}

/// The way back.
#[must_use]
pub fn doubt_in(doubt: i32) -> Doubt {
    match wire::Doubt::try_from(doubt) {
        Ok(wire::Doubt::Damaged) => Doubt::Damaged,
        Ok(wire::Doubt::DataLoss) => Doubt::DataLoss,
        Ok(wire::Doubt::WrongIncarnation) => Doubt::WrongIncarnation,
        Ok(wire::Doubt::Unreachable | wire::Doubt::Unspecified) | Err(_) => Doubt::Unreachable,
    }
}

/// A class of readers.
#[must_use]
pub fn class_out(class: ReadClass) -> wire::ReadClass {
    match class {
        ReadClass::Tail => wire::ReadClass::Tail,
        ReadClass::CatchUp => wire::ReadClass::CatchUp,
        ReadClass::Repair => wire::ReadClass::Repair,
    }
}

/// The way back; what is not known waits behind everybody.
#[must_use]
pub fn class_in(class: wire::ReadClass) -> ReadClass {
    match class {
        wire::ReadClass::Tail => ReadClass::Tail,
        wire::ReadClass::CatchUp => ReadClass::CatchUp,
        wire::ReadClass::Repair | wire::ReadClass::Unspecified => ReadClass::Repair,
    }
}

/// Runs of ids.
#[must_use]
pub fn ranges_out(ranges: &[IdRange]) -> Vec<wire::IdRange> {
    ranges.iter().map(|r| wire::IdRange { first: r.first.0, last: r.last.0 }).collect()
}

/// The way back; `None` when a run ends before it begins, or they do not rise.
#[must_use]
pub fn ranges_in(ranges: &[wire::IdRange]) -> Option<Vec<IdRange>> {
    let good = ranges.iter().all(|r| r.first <= r.last) && ranges.is_sorted_by(|a, b| a.last < b.first);
    let one = |r: &wire::IdRange| IdRange { first: EntryId(r.first), last: EntryId(r.last) };
    good.then(|| ranges.iter().map(one).collect())
}

/// One run of ids; `None` when it ends before it begins.
#[must_use]
pub fn range_in(range: Option<&wire::IdRange>) -> Option<IdRange> {
    let range = range.filter(|range| range.first <= range.last)?;
    Some(IdRange { first: EntryId(range.first), last: EntryId(range.last) })
}

/// What a bookie is to fetch.
#[must_use]
pub fn replicate_out(target: wire::Target, request: &Replicate) -> wire::ReplicateRequest {
    let member = |member: &Option<BookieRef>| match member {
        Some(member) => {
            wire::Member { bookie: member.id.as_str().to_owned(), incarnation: member.incarnation.0 }
        }
        None => wire::Member::default(),
    };
    wire::ReplicateRequest {
        target: Some(target),
        ensemble: request.quorum.ensemble(),
        write_quorum: request.quorum.write(),
        ack_quorum: request.quorum.ack(),
        slot: request.slot,
        members: request.ensemble.iter().map(member).collect(),
        ids: ranges_out(&[request.ids]).pop(),
        bytes_max: request.bytes_max,
    }
}

/// The way back; `None` when it cannot be meant so.
#[must_use]
pub fn replicate_in(ledger: LedgerId, request: &wire::ReplicateRequest) -> Option<Replicate> {
    let quorum = QuorumSpec::new(request.ensemble, request.write_quorum, request.ack_quorum).ok()?;
    let member = |member: &wire::Member| {
        if member.bookie.is_empty() {
            return Some(None);
        }
        let id = BookieId::new(&member.bookie)?;
        Some(Some(BookieRef { id, incarnation: Incarnation(member.incarnation) }))
    };
    let ensemble = request.members.iter().map(member).collect::<Option<Vec<_>>>()?;
    let sound = ensemble.len() == quorum.ensemble() as usize && quorum.all().contains(request.slot);
    let ids = range_in(request.ids.as_ref())?;
    let (slot, bytes_max) = (request.slot, request.bytes_max);
    sound.then_some(Replicate { ledger, quorum, slot, ensemble, ids, bytes_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_comes_back_and_a_newer_word_is_unknown() {
        let id = EntryId(7);
        let errors = [
            AddError::StaleTerm(Term(3)),
            AddError::WrongIncarnation,
            AddError::Sealed(None),
            AddError::Sealed(Some(EntryId(0))),
            AddError::Tombstoned,
            AddError::Conflict(id),
            AddError::Corrupt(id),
            AddError::TooLarge { id, size: 5, limit: 4 },
            AddError::DiskFull,
            AddError::Failed,
        ];
        for error in errors {
            assert_eq!(add_error(&add_refusal(&error)), error);
        }
        assert!(matches!(add_error(&add_refusal(&AddError::Unknown("x"))), AddError::Unknown(_)));
        for reason in [0, 99, -1] {
            let newer = wire::Refusal { reason, value: 1, size: 0, limit: 0 };
            assert!(matches!(add_error(&newer), AddError::Unknown(_)));
            assert!(matches!(control_error(&newer), ControlError::Unknown(_)));
        }
        for error in [
            ControlError::StaleTerm(Term(3)),
            ControlError::WrongIncarnation,
            ControlError::Tombstoned,
            ControlError::Failed,
        ] {
            assert_eq!(control_error(&control_refusal(&error)), error);
        }
    }

    #[test]
    fn doubts_come_back_and_runs_must_rise() {
        for doubt in [Doubt::Damaged, Doubt::DataLoss, Doubt::WrongIncarnation, Doubt::Unreachable] {
            assert_eq!(doubt_in(doubt_out(doubt).into()), doubt);
        }
        assert_eq!(doubt_in(99), Doubt::Unreachable);
        let run = |first, last| wire::IdRange { first, last };
        assert!(ranges_in(&[run(0, 3), run(4, 4)]).is_some());
        assert!(ranges_in(&[run(3, 0)]).is_none());
        assert!(ranges_in(&[run(0, 3), run(3, 4)]).is_none());
    }

    #[test]
    fn a_replication_comes_back_and_one_that_makes_no_sense_does_not() {
        let member = BookieRef { id: BookieId::new("b1").unwrap(), incarnation: Incarnation(9) };
        let request = Replicate {
            ledger: LedgerId(4),
            quorum: QuorumSpec::new(3, 2, 2).unwrap(),
            slot: 2,
            ensemble: vec![Some(member), None, None],
            ids: IdRange { first: EntryId(3), last: EntryId(8) },
            bytes_max: 77,
        };
        let sent = replicate_out(wire::Target::default(), &request);
        assert_eq!(replicate_in(LedgerId(4), &sent), Some(request));
        let broken: [fn(&mut wire::ReplicateRequest); 6] = [
            |r| r.slot = 3,
            |r| r.slot = 34,
            |r| r.members.truncate(2),
            |r| r.ids = Some(wire::IdRange { first: 2, last: 1 }),
            |r| r.ids = None,
            |r| r.ack_quorum = 3,
        ];
        for change in broken {
            let mut other = sent.clone();
            change(&mut other);
            assert_eq!(replicate_in(LedgerId(4), &other), None);
        }
    }
}
