//! What the disk can do: synced writes of one size, one after the other or a few at a time, into a file that is there already. The same
//! calls as the journal's.

use anyhow::Result;
use geminga_common::disk::{AlignedBuf, Disk as _, DiskFile, OpenMode, RealDisk};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The file's size; writes go round in it.
const FILE: u64 = 128 << 20;

/// Bytes a second with `in_flight` writers of `size` bytes a write.
pub(crate) fn synced_writes(dir: &Path, size: usize, in_flight: usize, secs: u64) -> Result<f64> {
    let path = dir.join("probe");
    let _absent = RealDisk.remove(&path);
    let plain = RealDisk.open(&path, OpenMode::CreateNew)?;
    let zeroes = vec![0; 4 << 20];
    for at in (0..FILE).step_by(zeroes.len()) {
        plain.write_all_at(&zeroes, at)?;
    }
    plain.sync_data()?;
    let file = RealDisk.open(&path, OpenMode::JournalDirect)?;
    let (next, written) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(secs);
    let threads: Vec<_> = (0..in_flight)
        .map(|_| {
            let (file, next, written) = (file.clone(), next.clone(), written.clone());
            std::thread::spawn(move || writer(&*file, size, until, &next, &written))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    let rate = written.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    RealDisk.remove(&path)?;
    Ok(rate)
}

fn writer(
    file: &dyn DiskFile,
    size: usize,
    until: Instant,
    next: &AtomicU64,
    written: &AtomicU64,
) -> Result<()> {
    let mut buf = AlignedBuf::zeroed(size);
    buf.as_mut_slice().fill(7);
    let (len, places) = (buf.len() as u64, FILE / buf.len() as u64);
    while Instant::now() < until {
        let at = next.fetch_add(1, Ordering::Relaxed) % places * len;
        file.write_all_at(buf.as_slice(), at)?;
        written.fetch_add(len, Ordering::Relaxed);
    }
    Ok(())
}
