//! The room's list of known bugs that tests bring back, to show that the exploration would catch them.

use geminga_common::museum::Exhibit;
pub use geminga_common::museum::active;

/// A bug that can be brought back. Numbers are those of the reliability brief.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// 24: after a commit whose outcome is not known the uploader removes its object, which may be referenced (Pulsar #17512).
    RemoveAfterDoubt,
    /// 25: a commit that is told twice replaces the object by itself, and what was replaced counts as garbage (Redpanda #9597).
    CommitTwice,
    /// 25: bookie copies go as soon as an upload was begun, verified or not (Redpanda #29674).
    ReleaseUnverified,
    /// An upload in parts is begun before the record names its key: what a crash in between leaves is named by nobody.
    BeginUnnamed,
    /// Writes do not expire: what a paused broker had on its way lands after the sweep.
    WriteForever,
    /// The sweep comes as soon as the author stops, while its requests may be on their way.
    SweepUnsettled,
    /// An upload whose begin was answered by nobody is not looked for.
    ForgetUploads,
    /// A store that was the cluster's once is taken for it for ever, whatever answers in its place.
    TrustFirstLook,
    /// 25: bookie copies go by what was verified when the ledger was uploaded, whatever has become of the object since.
    ReleaseUnseen,
    /// 32: what metadata, read at an old revision, does not name is taken for garbage (NATS #7556).
    RemoveUnlisted,
    /// An object that is gone is given up although bookies have let go of its ledger.
    ReturnReleased,
    /// An object of several ledgers is removed as soon as one of them has left the topic.
    RemoveNamed,
}

impl Exhibit for Mutant {}
