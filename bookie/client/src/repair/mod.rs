//! Bringing closed ledgers back to their write quorum.
//!
//! | file | what it holds |
//! |---|---|
//! | [`plan`] | what a ledger lacks, and what it is afterwards (pure) |
//! | [`pull`] | the destination's side: fetching and storing |
//! | [`drive`] | the driver's side: choosing destinations, calling, proving |
//! | [`standing`] | how far each bookie can be counted on (pure) |
//! | [`release`] | letting go of stores that lost data, once nothing counts on them |
//!
//! A repair moves nothing of what an owner decides: ids, terms, the end of the ledger stay. It works on *closed* ledgers alone, so it
//! never meets a writer, never fences, and needs no lock: two drivers at once copy the same bytes twice, and the record's revision lets
//! one of them publish. A member enters an ensemble only after the destination has told, entry by entry as runs, that it durably holds
//! all that its slot is to have (I15).

pub mod drive;
pub mod plan;
pub mod pull;
pub mod release;
pub mod standing;
