//! A whole store: written well, damaged as the input says, opened, read, written to, and opened again.
//!
//! Held to: no panic, no large allocation; damage that no checksum hides never changes what an entry says: each read gives the
//! bytes that were stored or `Unknown`, never other bytes, never a proof that a stored entry is not there. Damage to the
//! manifest, and damage whose checksums were made to hold, excuses what is said, not a panic.

use crate::alloc::bounded;
use arbitrary::Unstructured;
use bytes::Bytes;
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, fuzz};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_bookie_client::rpc::{Add, Read, ReadAnswer, ReadClass};
use geminga_common::clock::{Clock, ManualClock};
use geminga_common::disk::sim::SimDisk;
use geminga_common::disk::{Disk as _, OpenMode};
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const LEDGERS: u64 = 3;
const ENTRIES: u64 = 12;
/// The manifest's page cache, read at once, is the largest thing an opening allocates.
const ALLOCATION_MAX: usize = 8 << 20;

fn config() -> Config {
    let id = BookieId::new("b").expect("a plain name");
    let mut config = Config::new(id, PathBuf::from("/data/b"), "test");
    config.entry_bytes_max = 3000;
    config.control_reserve = 8192;
    config.journal_file_size = 36 << 10;
    config.journal_file_size_first = 32 << 10;
    config.batch_bytes = 1000;
    config.write_cache = 6000;
    config.block_bytes = 700;
    config.block_cache = 4096;
    config.ballast = 0;
    config.seed = Some(42);
    config
}

fn open(disk: &SimDisk) -> Option<Steps> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at_wall_ms(0));
    Steps::open(config(), Arc::new(disk.clone()), clock).ok()
}

fn entry(ledger: u64, id: u64) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: ledger,
        bytes_before: 0,
    };
    let size = 20 + (ledger * 37 + id * 131) % 300;
    let payload: Vec<u8> = (0..size).map(|at| (at * 31 + id * 7 + ledger) as u8).collect();
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

fn add(steps: &mut Steps, ledger: u64, id: u64) {
    let attributes = (id == 0).then(|| {
        Arc::new(LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: "p/n/t".to_owned(),
            topic: TopicId(1),
            ordinal: ledger,
            predecessor: None,
            owner_epoch: OwnerEpoch(1),
            first_index: MessageIndex(0),
        })
    });
    let lac = id.checked_sub(1).map(EntryId);
    let entries = vec![entry(ledger, id)];
    let add = Add { ledger: LedgerId(ledger), term: Term(1), lac, lafr: None, attributes, entries };
    steps.prepare();
    steps.add(add, Box::new(|_| ()));
    steps.write_all();
}

/// A store with entries in two segments and in the journal, a fence and a seal. Made once.
fn base() -> &'static SimDisk {
    static BASE: OnceLock<SimDisk> = OnceLock::new();
    BASE.get_or_init(|| {
        let disk = SimDisk::new();
        let mut steps = open(&disk).expect("a fresh store opens");
        for id in 0..ENTRIES {
            (1..=LEDGERS).for_each(|ledger| add(&mut steps, ledger, id));
            if id % 4 == 3 && id < 8 {
                steps.prepare();
                assert!(steps.flush(), "a sound store flushes");
            }
        }
        steps.fence(LedgerId(1), Term(4), Box::new(|_| ()));
        steps.seal(LedgerId(2), Some(EntryId(ENTRIES - 1)), Box::new(|_| ()));
        steps.write_all();
        steps.idle();
        assert_eq!(steps.segments(), 2);
        drop(steps);
        disk
    })
}

/// How far damage excuses what is said afterwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    Unknown,
    Anything,
}

/// Runs the target. The input is a list of changes.
pub fn run(data: &[u8]) {
    let disk = base().fork();
    let mut files = disk.files();
    files.retain(|(path, _)| !path.ends_with("LOCK"));
    let mut damage = Damage { excuse: Excuse::Unknown, journal: false };
    let mut u = Unstructured::new(data);
    for _ in 0..8 {
        if change(&mut u, &disk, &files, &mut damage).is_err() {
            break;
        }
    }
    let excuse = damage.excuse;
    bounded(ALLOCATION_MAX, || {
        let Some(mut steps) = open(&disk) else { return };
        check(&steps, excuse);
        // It goes on working, or says that it does not.
        add(&mut steps, 7, 0);
        steps.prepare();
        let _either = steps.flush();
        check(&steps, excuse);
        drop(steps);
        if let Some(steps) = open(&disk) {
            check(&steps, excuse);
        }
    });
}

/// What was done so far.
struct Damage {
    excuse: Excuse,
    /// A journal file was damaged. Twice may hit a batch and the marker behind it that vouches for it, which nothing can tell
    /// from a torn tail.
    journal: bool,
}

fn change(
    u: &mut Unstructured<'_>,
    disk: &SimDisk,
    files: &[(PathBuf, u64)],
    damage: &mut Damage,
) -> arbitrary::Result<()> {
    if u.is_empty() {
        return Err(arbitrary::Error::NotEnoughData);
    }
    let (path, len) = u.choose(files)?;
    let Ok(file) = disk.open(path, OpenMode::ReadWrite) else { return Ok(()) };
    let journal = path.extension().is_some_and(|extension| extension == "jnl");
    let kind = u.int_in_range(0..=9)?;
    if path.ends_with("manifest.redb") || kind > 5 || journal && (damage.journal || kind < 2) {
        damage.excuse = Excuse::Anything;
    }
    damage.journal |= journal;
    match kind {
        0 => file.set_len(u64::from(u.arbitrary::<u32>()?) % (len + 1)).expect("the disk is sound"),
        1 => disk.remove(path).expect("the disk is sound"),
        2..=5 => {
            let at = u64::from(u.arbitrary::<u32>()?) % len.max(&1);
            let len = u.arbitrary_len::<u8>()?.min(64);
            let bytes = u.bytes(len)?;
            file.write_all_at(bytes, at).expect("the disk is sound");
        }
        _ => sealed(u, disk, path)?,
    }
    Ok(())
}

/// Changes bytes within a batch, block, footer or identity, and makes its checksum hold.
fn sealed(u: &mut Unstructured<'_>, disk: &SimDisk, path: &Path) -> arbitrary::Result<()> {
    let mut bytes = disk.bytes(path).expect("the disk lists it");
    if bytes.len() < 200 {
        return Ok(());
    }
    let starts = starts(&bytes);
    let footer = u.ratio(1, 3)?;
    let start = if footer { bytes.len().saturating_sub(200) } else { *u.choose(&starts)? };
    let at = start + usize::from(u.arbitrary::<u16>()?) % (bytes.len() - start).min(200);
    let len = u.arbitrary_len::<u8>()?.min(16);
    for (place, byte) in bytes[at..].iter_mut().zip(u.bytes(len)?) {
        *place = *byte;
    }
    let store = disk.bytes(Path::new("/data/b/FORMAT")).ok();
    let store = store.and_then(|b| Some(u64::from_le_bytes(b.get(12..20)?.try_into().ok()?))).unwrap_or(0);
    let segment = path.file_stem().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok()).unwrap_or(0);
    if footer {
        fuzz::reseal_footer(&mut bytes);
    }
    // A block ends where the next begins; the last one where the footer does, which its own length says.
    fuzz::reseal(&mut bytes[start..], store, segment, start as u64);
    let file = disk.open(path, OpenMode::ReadWrite).expect("the disk lists it");
    file.write_all_at(&bytes, 0).expect("the disk is sound");
    Ok(())
}

/// Where sealed things begin.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"GMBT") || bytes[*at..].starts_with(b"GMBK")),
    );
    starts
}

fn check(steps: &Steps, excuse: Excuse) {
    for ledger in 1..=LEDGERS {
        for id in 0..ENTRIES {
            let (first, last) = (EntryId(id), EntryId(ENTRIES));
            let class = ReadClass::Tail;
            let read = Read { ledger: LedgerId(ledger), first, last, bytes_max: 400, class };
            match steps.read(read) {
                ReadAnswer::Found(found) => {
                    let right = found.iter().zip(id..).all(|(found, id)| *found == entry(ledger, id));
                    assert!(right || excuse == Excuse::Anything, "wrong bytes for {ledger}:{id}");
                }
                ReadAnswer::NotFound(_) => {
                    assert!(excuse == Excuse::Anything, "{ledger}:{id} was stored and is said to be absent");
                }
                ReadAnswer::Unknown(_) => {}
                ReadAnswer::Lost { .. } => panic!("{ledger}:{id}: nobody has accepted a loss"),
            }
        }
        let _either = (steps.stat(LedgerId(ledger)), steps.tail(LedgerId(ledger), EntryId(0)));
    }
}
