//! What is written to the disk cache. Whatever is fetched is offered once and written behind everybody's back, by one task that ends
//! when there is nothing left, in direct writes: no sync, and no burst of write-back beside the journal. The size of a block does
//! not matter: small ones share the pages of their extent, and a small ledger that is not kept costs as many requests as a large block.
//!
//! Nobody waits for it. What comes while it is behind by [`QUEUE_MAX`], or while it rests after an error, is left out: the store has it.

use super::format;
use super::{DiskCache, REST, Reason, Shared};
use crate::state::PartId;
use bytes::Bytes;
use geminga_common::clock::Mono;
use geminga_common::disk::{DiskFile, OpenMode};
use geminga_common::tasks::OnFailure;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of answers that may wait in memory to be written: two of the largest.
pub(crate) const QUEUE_MAX: usize = 32 << 20;
/// Blocks of an answer of the store.
pub(super) struct Offer {
    part: PartId,
    blocks: Vec<(u32, Bytes)>,
    /// Bytes that this keeps in memory: the whole answer.
    held: usize,
}

/// What waits to be written.
pub(super) struct Queue {
    offers: VecDeque<Offer>,
    held: usize,
    /// Where the next goes; while it is written, the task that does so has it.
    out: Option<Out>,
    rests_until: Mono,
}

/// The file that grows.
pub(super) struct Out {
    next: u64,
    file: Option<Growing>,
}

struct Growing {
    number: u64,
    handle: Arc<dyn DiskFile>,
    end: u64,
}

impl Queue {
    pub(super) fn new(out: Out) -> Self {
        Self { offers: VecDeque::new(), held: 0, out: Some(out), rests_until: Mono::ZERO }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_some()
    }

    /// Nothing is written until then, what waits included; the blocks of that.
    fn rest(&mut self, until: Mono) -> usize {
        self.rests_until = until;
        self.held -= self.offers.iter().map(|offer| offer.held).sum::<usize>();
        self.offers.drain(..).map(|offer| offer.blocks.len()).sum()
    }
}

impl Out {
    /// Files are never gone on with: what lies at the end of one may be half.
    pub(super) fn new(next: u64) -> Self {
        Self { next, file: None }
    }
}

impl DiskCache {
    /// Offers blocks, which lie in an answer of so many bytes.
    pub(crate) fn offer(&self, part: PartId, blocks: Vec<(u32, Bytes)>, held: usize) {
        if blocks.is_empty() {
            return;
        }
        let mut queue = self.0.queue.lock();
        let behind = queue.held > 0 && queue.held + held > QUEUE_MAX;
        if behind || self.0.clock.mono() < queue.rests_until {
            self.0.counts.left_out.fetch_add(blocks.len() as u64, Ordering::Relaxed);
            return;
        }
        queue.held += held;
        queue.offers.push_back(Offer { part, blocks, held });
        if let Some(out) = queue.out.take() {
            let cache = self.clone();
            self.0.tasks.spawn("disk cache", OnFailure::Log, async move { cache.write_all(out).await });
        }
    }

    async fn write_all(&self, mut out: Out) {
        loop {
            let offer = {
                let mut queue = self.0.queue.lock();
                let Some(offer) = queue.offers.pop_front() else {
                    queue.out = Some(out);
                    return;
                };
                offer
            };
            let (shared, held) = (self.0.clone(), offer.held);
            let work = move || {
                shared.write(&mut out, offer);
                out
            };
            let written = self.0.lane.blocking(work).await;
            self.0.queue.lock().held -= held;
            match written {
                Ok(back) => out = back,
                // The process stops.
                Err(_) => return,
            }
        }
    }
}

impl Shared {
    fn write(&self, out: &mut Out, offer: Offer) {
        let mut blocks = offer.blocks;
        {
            let shelf = self.shelf.lock();
            blocks.retain(|(nth, _)| !shelf.knows((offer.part, *nth)));
        }
        let mut left = &blocks[..];
        while !left.is_empty() {
            let (now, later) = left.split_at(format::taken(left));
            let (buffer, extent) = format::seal(offer.part, now);
            if let Err((reason, error)) = self.append(out, buffer.as_slice(), &extent) {
                // What was written of this file stays; the next is another.
                out.file = None;
                let waiting = self.queue.lock().rest(self.clock.mono() + REST);
                self.counts.left_out.fetch_add((left.len() + waiting) as u64, Ordering::Relaxed);
                return self.tell(reason, &error, "nothing is written for a minute");
            }
            left = later;
        }
    }

    fn append(
        &self,
        out: &mut Out,
        bytes: &[u8],
        extent: &format::Extent,
    ) -> Result<(), (Reason, io::Error)> {
        let length = bytes.len() as u64;
        if out.file.as_ref().is_some_and(|file| file.end + length > self.file_bytes) {
            out.file = None;
        }
        self.make_room(out, length)?;
        let mut file = match out.file.take() {
            Some(file) => file,
            None => self.begin(out)?,
        };
        if let Err(error) = file.handle.write_all_at(bytes, file.end) {
            // What was written of it is of no use; if it stays, it ends what is found in the file.
            let _stays = file.handle.set_len(file.end);
            return Err(fault(error));
        }
        let at = file.end;
        file.end += length;
        let mut shelf = self.shelf.lock();
        shelf.grown(file.number, file.end);
        shelf.holds(file.number, at, extent);
        drop(shelf);
        out.file = Some(file);
        self.counts.written_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn begin(&self, out: &mut Out) -> Result<Growing, (Reason, io::Error)> {
        let number = out.next;
        out.next += 1;
        let path = self.path(number);
        let made = || {
            let handle = self.disk.open(&path, OpenMode::CreateDirect)?;
            handle.write_all_at(format::head().as_slice(), 0)?;
            Ok((handle, self.disk.open(&path, OpenMode::Read)?))
        };
        let (handle, reading) = made().map_err(|error| {
            let _stays = self.disk.remove(&path);
            fault(error)
        })?;
        let end = format::PAGE as u64;
        self.shelf.lock().add(number, reading, end);
        Ok(Growing { number, handle, end })
    }

    /// Removes files until so much more fits the cache's size and what the file system has to spare. A disk that fills up with other
    /// things gets back all of it.
    fn make_room(&self, out: &mut Out, length: u64) -> Result<(), (Reason, io::Error)> {
        loop {
            let length = length + if out.file.is_none() { format::PAGE as u64 } else { 0 };
            let within = self.shelf.lock().bytes() + length <= self.settings.bytes;
            if within && self.is_spare(length) {
                return Ok(());
            }
            let Some(number) = self.shelf.lock().evict() else {
                return Err((Reason::Room, io::Error::new(io::ErrorKind::StorageFull, self.wanting())));
            };
            if out.file.as_ref().is_some_and(|file| file.number == number) {
                out.file = None;
            }
            self.remove(number);
        }
    }

    /// Whether the file system has so many bytes to spare. One that does not tell has them until a write fails.
    fn is_spare(&self, length: u64) -> bool {
        let Ok(space) = self.disk.space(&self.settings.dir) else { return true };
        space.available >= length.saturating_add(space.total / 100 * self.settings.free_percent)
    }

    fn wanting(&self) -> String {
        format!("less than {} % of the file system would be left free", self.settings.free_percent)
    }
}

fn fault(error: io::Error) -> (Reason, io::Error) {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    (if full { Reason::Room } else { Reason::Write }, error)
}
