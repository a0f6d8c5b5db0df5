//! What broker and bookie say to each other: packed tables both ways, and the words of control calls.
//!
//! Held to: no panic, allocation in proportion to the bytes; a table that is read whole is written again to the same bytes; a word that
//! is understood means the same on its way back. With the checksums made to hold, since behind them nothing else would be reached.

use crate::alloc::bounded;
use bytes::Bytes;
use geminga_bookie_client::grpc::convert;
use geminga_bookie_client::grpc::table::{pack_adds, pack_entries, unpack_adds, unpack_entries};
use geminga_common::checksum::crc32c;
use geminga_common::ids::LedgerId;
use geminga_proto::bookie as wire;
use geminga_proto::packed::Packed;
use prost::Message as _;

/// Kinds of message; the first byte of the input chooses one.
pub const KINDS: u8 = 6;

const HEAD: usize = 24;
const ROW: usize = 48;

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    bounded((64 << 10) + 128 * data.len(), || match kind % KINDS {
        0 => message(bytes, adds),
        1 => message(bytes, entries),
        2 => mended(bytes, *b"GMAD", adds),
        3 => mended(bytes, *b"GMEN", entries),
        4 => refusal(bytes),
        _ => replicate(bytes),
    });
}

fn message(bytes: &[u8], then: fn(Packed)) {
    if let Ok(packed) = Packed::decode(Bytes::copy_from_slice(bytes)) {
        then(packed);
    }
}

fn adds(packed: Packed) {
    let Ok((incarnation, adds)) = unpack_adds(packed.clone()) else { return };
    let sound: Option<Vec<_>> = adds.into_iter().map(Result::ok).collect();
    let Some(sound) = sound else { return };
    // Attributes may have been written with fields in another order, so what is compared is what they say.
    let again = unpack_adds(pack_adds(incarnation, &sound)).expect("what was packed is a table");
    assert_eq!(again, (incarnation, sound.into_iter().map(Ok).collect()));
}

fn entries(packed: Packed) {
    let Ok((ledger, entries)) = unpack_entries(packed.clone()) else { return };
    assert_eq!(pack_entries(ledger, &entries).into_blob(), packed.into_blob());
}

/// Two bytes of length, that much of a table, and data: head and checksums are put right.
fn mended(bytes: &[u8], magic: [u8; 4], then: fn(Packed)) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (table, data) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    if table.len() < HEAD {
        return;
    }
    let mut table = table.to_vec();
    table[..8].copy_from_slice(&[magic[0], magic[1], magic[2], magic[3], 1, 0, 0, 0]);
    table[12..16].copy_from_slice(&(data.len() as u32).to_le_bytes());
    if magic == *b"GMAD" {
        mend_attributes(&mut table[HEAD..], data);
    }
    let crc = crc32c(&table);
    table.extend(crc.to_le_bytes());
    then(Packed { table: table.into(), data: vec![Bytes::copy_from_slice(data)] });
}

/// Checksums of the attributes, add by add, as far as the rows make sense.
fn mend_attributes(rows: &mut [u8], mut data: &[u8]) {
    let half = |row: &[u8], at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    let mut entries_left = 0;
    for row in rows.chunks_exact_mut(ROW) {
        let len = if entries_left == 0 { half(row, 36) } else { half(row, 40) } as usize;
        let Some((bytes, rest)) = data.split_at_checked(len) else { return };
        data = rest;
        if entries_left > 0 {
            entries_left -= 1;
            continue;
        }
        entries_left = half(row, 32);
        let crc = if bytes.is_empty() { 0 } else { crc32c(bytes) };
        row[40..44].copy_from_slice(&crc.to_le_bytes());
    }
}

fn refusal(bytes: &[u8]) {
    let Ok(refusal) = wire::Refusal::decode(bytes) else { return };
    let add = convert::add_error(&refusal);
    assert_eq!(convert::add_error(&convert::add_refusal(&add)).to_string(), settled(&add.to_string()));
    let control = convert::control_error(&refusal);
    assert_eq!(convert::control_error(&convert::control_refusal(&control)), control);
}

/// A word of a newer version comes back as one that is not known.
fn settled(text: &str) -> String {
    text.replace("the bookie answered a word of a newer version", "the bookie does not know")
}

fn replicate(bytes: &[u8]) {
    let Ok(request) = wire::ReplicateRequest::decode(bytes) else { return };
    let Some(asked) = convert::replicate_in(LedgerId(7), &request) else { return };
    let again = convert::replicate_out(request.target.unwrap_or_default(), &asked);
    assert_eq!(convert::replicate_in(LedgerId(7), &again), Some(asked));
}
