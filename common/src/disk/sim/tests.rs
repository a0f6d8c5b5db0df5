//! Crashes, faults and room of the simulated disk.

use super::*;

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    disk
}

#[test]
fn keeps_the_rules_of_a_disk() {
    let disk = disk();
    crate::disk::conformance::run(&disk, Path::new("/d"));
}

#[test]
fn a_crash_keeps_what_was_synced_and_any_part_of_the_rest() {
    let disk = disk();
    let file = disk.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 2048], 0).unwrap();
    file.sync_data().unwrap();
    assert!(disk.crash(&Crash::Lost).files().is_empty(), "the name is not durable");
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(&[2; 2048], 0).unwrap();
    assert_eq!(disk.crash(&Crash::Lost).bytes(&path("a")).unwrap(), [1; 2048]);
    assert_eq!(disk.crash(&Crash::Kept).bytes(&path("a")).unwrap(), [2; 2048]);
    let torn = disk.crash(&Crash::TornAfter(1)).bytes(&path("a")).unwrap();
    assert_eq!((torn[511], torn[512]), (2, 1));
    disk.rename(&path("a"), &path("b")).unwrap();
    assert!(disk.crash(&Crash::Lost).bytes(&path("a")).is_ok());
    assert!(disk.crash(&Crash::Kept).bytes(&path("b")).is_ok());
}

#[test]
fn a_failed_sync_loses_its_pages_and_a_second_one_does_not_bring_them_back() {
    let disk = disk();
    let file = disk.open(&path("a"), OpenMode::CreateNew).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(&[1; 100], 0).unwrap();
    disk.fail_sync_in(0);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    let mut seen = [0; 100];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [1; 100], "the cache still shows it");
    assert!(disk.crash(&Crash::Kept).bytes(&path("a")).unwrap().is_empty());
}

#[test]
fn a_full_disk_and_a_lying_sync() {
    let disk = disk();
    let file = disk.open(&path("a"), OpenMode::CreateNew).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.limit(Some(10));
    let full = file.write_all_at(&[1; 11], 0).map_err(|e| e.kind());
    assert_eq!(full, Err(io::ErrorKind::StorageFull));
    disk.lie(true);
    file.write_all_at(&[1; 10], 0).unwrap();
    file.sync_data().unwrap();
    assert!(disk.crash(&Crash::Lost).bytes(&path("a")).unwrap().is_empty());
}

#[test]
fn punched_and_removed_bytes_make_room_again_and_a_punch_may_be_lost() {
    let disk = disk();
    let file = disk.open(&path("a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 5 * 4096], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.capacity(Some(6 * 4096));
    assert_eq!(disk.space(Path::new("/d")).unwrap(), Space { total: 6 * 4096, available: 4096 });
    let other = disk.open(&path("b"), OpenMode::CreateNew).unwrap();
    let full = other.write_all_at(&[2; 2 * 4096], 0).map_err(|e| e.kind());
    assert_eq!(full, Err(io::ErrorKind::StorageFull));
    file.punch(4000, 3 * 4096).unwrap();
    assert_eq!(disk.used(), 3 * 4096, "only whole pages are given back");
    let seen = disk.bytes(&path("a")).unwrap();
    assert!(seen[..4000].iter().all(|b| *b == 1) && seen[4000..4000 + 3 * 4096].iter().all(|b| *b == 0));
    assert_eq!(seen[4000 + 3 * 4096], 1);
    assert_eq!(disk.crash(&Crash::Lost).bytes(&path("a")).unwrap(), [1; 5 * 4096]);
    assert_eq!(disk.crash(&Crash::Kept).bytes(&path("a")).unwrap(), seen);
    other.write_all_at(&[2; 2 * 4096], 0).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.used(), 2 * 4096);
    disk.read_only(true);
    let refused = other.write_all_at(&[2], 0).map_err(|e| e.kind());
    assert_eq!(refused, Err(io::ErrorKind::ReadOnlyFilesystem));
}
