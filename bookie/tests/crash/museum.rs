//! Known defects brought back: each must be caught, because "0 violations" alone proves nothing.

use crate::config;
use crate::damage::{unlisted_files_stay, unparsed_segments_stay};
use crate::enumerate;
use geminga_bookie::mutant::Mutant;
use geminga_common::museum::bring_back;

fn caught(mutant: Mutant) {
    let _back = bring_back(mutant);
    let (report, seed) = enumerate(&config(), 100_000, 1, None);
    assert!(!report.violations.is_empty(), "{mutant:?} was not caught in {} states", report.states);
    println!(
        "figure: {mutant:?} caught after {} states, seed {seed}: {}",
        report.states, report.violations[0]
    );
}

#[test]
fn unparsed_segment_does_not_stay() {
    let _back = bring_back(Mutant::UnparsedCollected);
    assert!(!unparsed_segments_stay(&config()).is_empty());
}

#[test]
fn unlisted_segments_removed() {
    let _back = bring_back(Mutant::UnlistedRemoved);
    assert!(!unlisted_files_stay(&config()).is_empty());
}

#[test]
fn accepted_loss_is_written_down() {
    let _back = bring_back(Mutant::LossForgotten);
    let mut report = crate::Report::default();
    crate::ceremonies::ceremonies(&config(), 3, &mut report);
    assert!(!report.violations.is_empty(), "not caught in {} states", report.states);
    println!("figure: LossForgotten caught after {} states: {}", report.states, report.violations[0]);
}

macro_rules! caught {
    ($($test:ident: $mutant:ident)*) => {
        $(#[test]
        fn $test() {
            caught(Mutant::$mutant);
        })*
    };
}

caught! {
    amnesiac_answers_not_found: AmnesiacNotFound
    unreadable_segment_is_not_found: UnreadableNotFound
    fence_lost_on_restart: FenceLost
    bad_record_skipped: BadRecordSkipped
    failed_sync_retried: SyncRetried
    checksum_failure_truncates: ChecksumTruncates
    duplicate_acked_early: DuplicateAckedEarly
    replayed_file_appended: ReplayedFileAppended
    unparsed_segment_is_collected: UnparsedCollected
    merge_skips_what_it_cannot_read: MergeSkipsBad
    tombstone_forgotten_early: TombstoneForgotten
    mark_shared_between_shards: MarkShared
    missing_identity_taken_back: IdentityMissingOk
    lost_journal_unnoticed: JournalLossUnnoticed
    incarnation_kept_after_loss: IncarnationKept
}
