//! Entries for tests.

use crate::steps::Steps;
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::rpc::Add;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, Term};

/// An entry of one message, whose index is the entry's id.
pub(crate) fn entry(ledger: u64, id: u64, payload: impl Into<Bytes>) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: 0,
        bytes_before: 0,
    };
    Entry::new(LedgerId(ledger), EntryId(id), header, payload.into())
}

/// Adds entries of one ledger in its first term and makes them durable.
pub(crate) fn add(steps: &mut Steps, ledger: u64, entries: Vec<Entry>) {
    let (ledger, term) = (LedgerId(ledger), Term(1));
    let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries };
    assert!(steps.add(add, Box::new(|result| result.unwrap())));
    steps.write_all();
}
