//! What every [`Disk`] must do, tried from outside. Run on the real and the simulated disk; crash behaviour, which only the
//! simulation can show, is tried there.

use super::{ALIGN, AlignedBuf, Disk, OpenMode};
use std::io::ErrorKind;
use std::path::Path;

/// Runs all cases in `root`, which exists and is empty.
///
/// # Panics
/// When a rule is broken.
pub fn run(disk: &dyn Disk, root: &Path) {
    names(disk, root);
    contents(disk, root);
    direct(disk, root);
    room(disk, root);
    locks(disk, root);
    let space = disk.space(root).expect("space of an existing directory");
    assert!(space.available <= space.total && space.total > 0, "{space:?}");
}

fn names(disk: &dyn Disk, root: &Path) {
    let dir = root.join("names").join("deep");
    disk.create_dir_all(&dir).expect("create");
    disk.create_dir_all(&dir).expect("existing directories are fine");
    let (a, b) = (dir.join("a"), dir.join("b"));
    let missing = |result: std::io::Result<_>| result.map(drop).map_err(|e| e.kind());
    for mode in [OpenMode::Read, OpenMode::ReadWrite, OpenMode::JournalDirect, OpenMode::ReadDirect] {
        assert_eq!(
            missing(disk.open(&a, mode)),
            Err(ErrorKind::NotFound),
            "{mode:?} opens existing files only"
        );
    }
    disk.open(&b, OpenMode::CreateNew).expect("create").write_all_at(b"b", 0).expect("write");
    disk.open(&a, OpenMode::CreateNew).expect("create").write_all_at(b"a", 0).expect("write");
    assert_eq!(missing(disk.open(&a, OpenMode::CreateNew)), Err(ErrorKind::AlreadyExists));
    assert_eq!(disk.list(&dir).expect("list"), ["a", "b"], "sorted");
    disk.rename(&a, &b).expect("rename replaces");
    disk.sync_dir(&dir).expect("sync");
    assert_eq!(disk.list(&dir).expect("list"), ["b"]);
    let mut byte = [0];
    disk.open(&b, OpenMode::Read).expect("open").read_exact_at(&mut byte, 0).expect("read");
    assert_eq!(&byte, b"a");
    let still_open = disk.open(&b, OpenMode::Read).expect("open");
    disk.remove(&b).expect("remove");
    disk.sync_dir(&dir).expect("sync");
    still_open.read_exact_at(&mut byte, 0).expect("an open file outlives its name");
    assert_eq!(disk.remove(&b).map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    assert!(disk.list(&dir).expect("list").is_empty());
    assert_eq!(disk.list(&root.join("nowhere")).map_err(|e| e.kind()), Err(ErrorKind::NotFound));
}

fn contents(disk: &dyn Disk, root: &Path) {
    let path = root.join("contents");
    let file = disk.open(&path, OpenMode::CreateNew).expect("create");
    assert!(file.is_empty().expect("len"));
    file.write_all_at(b"world", 6).expect("write beyond the end");
    file.write_all_at(b"hello", 0).expect("write");
    file.sync_data().expect("sync");
    let mut buf = [7; 11];
    file.read_exact_at(&mut buf, 0).expect("read");
    assert_eq!(&buf, b"hello\0world", "a gap reads as zero");
    assert_eq!(file.read_exact_at(&mut buf, 1).map_err(|e| e.kind()), Err(ErrorKind::UnexpectedEof));
    file.set_len(3).expect("shrink");
    file.set_len(8).expect("grow");
    assert_eq!(file.len().expect("len"), 8);
    file.read_exact_at(&mut buf[..8], 0).expect("read");
    assert_eq!(&buf[..8], b"hel\0\0\0\0\0", "cut bytes do not come back");
    let reader = disk.open(&path, OpenMode::Read).expect("open");
    assert!(reader.write_all_at(b"x", 0).is_err(), "a file opened for reading takes no writes");
    let writer = disk.open(&path, OpenMode::ReadWrite).expect("open");
    writer.write_all_at(b"J", 0).expect("write");
    reader.read_exact_at(&mut buf[..3], 0).expect("read");
    assert_eq!(&buf[..3], b"Jel", "handles see each other's writes");
}

fn direct(disk: &dyn Disk, root: &Path) {
    let path = root.join("direct");
    let plain = disk.open(&path, OpenMode::CreateNew).expect("create");
    plain.write_all_at(&vec![0; 4 * ALIGN], 0).expect("fill");
    plain.sync_data().expect("sync");
    let journal = disk.open(&path, OpenMode::JournalDirect).expect("open");
    let mut buf = AlignedBuf::zeroed(2 * ALIGN);
    buf.as_mut_slice().fill(0xA5);
    journal.write_all_at(buf.as_slice(), ALIGN as u64).expect("aligned write");
    let refused = |result: std::io::Result<()>| result.map_err(|e| e.kind()) == Err(ErrorKind::InvalidInput);
    assert!(refused(journal.write_all_at(&buf.as_slice()[..100], 0)), "length that is not aligned");
    assert!(refused(journal.write_all_at(buf.as_slice(), 512)), "offset that is not aligned");
    let reader = disk.open(&path, OpenMode::ReadDirect).expect("open");
    let mut whole = AlignedBuf::zeroed(4 * ALIGN);
    reader.read_exact_at(whole.as_mut_slice(), 0).expect("aligned read");
    let (zeros, rest) = whole.as_slice().split_at(ALIGN);
    let (written, tail) = rest.split_at(2 * ALIGN);
    assert!(
        zeros.iter().all(|b| *b == 0) && written.iter().all(|b| *b == 0xA5) && tail.iter().all(|b| *b == 0)
    );
    assert!(
        refused(reader.read_exact_at(&mut whole.as_mut_slice()[..ALIGN], 1)),
        "offset that is not aligned"
    );
    let beyond = reader.read_exact_at(whole.as_mut_slice(), ALIGN as u64).map_err(|e| e.kind());
    assert_eq!(beyond, Err(ErrorKind::UnexpectedEof));
}

fn room(disk: &dyn Disk, root: &Path) {
    let path = root.join("room");
    let file = disk.open(&path, OpenMode::CreateNew).expect("create");
    let supported = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::Unsupported => false,
        other => other.map(|()| true).expect("it works, or says that it cannot"),
    };
    if supported(file.allocate(3 * ALIGN as u64)) {
        assert_eq!(file.len().expect("len"), 3 * ALIGN as u64);
        file.allocate(ALIGN as u64).expect("never shrinks");
        assert_eq!(file.len().expect("len"), 3 * ALIGN as u64);
    }
    file.write_all_at(&vec![9; 3 * ALIGN], 0).expect("write");
    if supported(file.punch(ALIGN as u64, ALIGN as u64)) {
        let mut whole = vec![7; 3 * ALIGN];
        file.read_exact_at(&mut whole, 0).expect("the length stays");
        let (a, rest) = whole.split_at(ALIGN);
        let (hole, b) = rest.split_at(ALIGN);
        assert!(a.iter().chain(b).all(|byte| *byte == 9) && hole.iter().all(|byte| *byte == 0));
    }
    let reader = disk.open(&path, OpenMode::Read).expect("open");
    assert!(reader.punch(0, 1).is_err(), "a file opened for reading is not changed");
    disk.remove(&path).expect("remove");
}

fn locks(disk: &dyn Disk, root: &Path) {
    let path = root.join("lock");
    let held = disk.lock(&path).expect("free");
    assert_eq!(disk.lock(&path).map(drop).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    drop(held);
    drop(disk.lock(&path).expect("free again"));
}
