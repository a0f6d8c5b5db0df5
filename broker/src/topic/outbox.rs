//! What waits to be written to one client: a byte queue that any task may fill and one writer task drains.
//!
//! Small frames are encoded straight into one growing buffer; a payload of 4 KiB or more is queued as the slice it already is,
//! so that it reaches the socket without a copy. The queue is bounded by its users: dispatchers stop at
//! [`Outbox::WRITABLE_BYTES`] and are told when it has drained; for receipts and responses the connection's reader stops
//! ([`Outbox::drained_to`]).

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::IoSlice;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

/// Payloads from this size on are queued as slices; smaller ones are cheaper to copy than to scatter.
const SLICE_MIN: usize = 4096;

/// Most slices handed to one vectored write.
const SLICES_MAX: usize = 64;

/// Most bytes handed to one write, behind which everybody else has a turn. A consumer of old messages has megabytes queued, its
/// socket takes them at once, and the copying into it is done by the thread that serves publishers: so much takes some 50 us.
const TURN_BYTES: usize = 256 << 10;

/// Told, once, that an outbox has drained.
pub(crate) type Drained = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    slices: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    closed: bool,
    waiters: Vec<Drained>,
}

/// The queue. Shared by the connection, the topics it talks to, and its writer task.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

/// The locked queue, for pushing several frames at once.
pub(crate) struct Push<'a> {
    queue: parking_lot::MutexGuard<'a, Queue>,
    was_empty: bool,
    outbox: &'a Outbox,
}

impl Outbox {
    /// A consumer's connection counts as writable below this many queued bytes.
    pub(crate) const WRITABLE_BYTES: usize = 1024 * 1024;

    /// Locks the queue for pushing. Drop the answer soon.
    pub(crate) fn push(&self) -> Push<'_> {
        let queue = self.queue.lock();
        let was_empty = queue.bytes == 0;
        Push { queue, was_empty, outbox: self }
    }

    /// Pushes one small frame.
    pub(crate) fn frame(&self, encode: impl FnOnce(&mut BytesMut)) {
        self.push().frame(encode);
    }

    /// Whether more messages may be queued. If not, `waiter` is told when they may, or when the connection closes.
    pub(crate) fn writable_or(&self, waiter: impl FnOnce() -> Drained) -> bool {
        let mut queue = self.queue.lock();
        let full = queue.bytes >= Self::WRITABLE_BYTES && !queue.closed;
        if full {
            let waiter = waiter();
            queue.waiters.push(waiter);
        }
        !full
    }

    /// Bytes waiting to be written.
    pub(crate) fn queued(&self) -> usize {
        self.queue.lock().bytes
    }

    /// With more than `bytes` waiting: something that is told when the writer has taken them, or the connection closes.
    pub(crate) fn drained_below(&self, bytes: usize) -> Option<tokio::sync::oneshot::Receiver<()>> {
        let mut queue = self.queue.lock();
        if queue.bytes <= bytes || queue.closed {
            return None;
        }
        let (told, wait) = tokio::sync::oneshot::channel();
        queue.waiters.push(Box::new(move || {
            let _whoever_waited_may_be_gone = told.send(());
        }));
        Some(wait)
    }

    /// Takes no more; what is queued is still written, then the connection's sending side ends.
    pub(crate) fn finish(&self) {
        let waiters = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.waiters)
        };
        waiters.into_iter().for_each(|waiter| waiter());
        self.filled.notify_one();
    }

    /// Drops what is queued and wakes the writer for the last time.
    pub(crate) fn close(&self) {
        let waiters = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.slices.clear();
            queue.tail = BytesMut::new();
            queue.bytes = 0;
            std::mem::take(&mut queue.waiters)
        };
        waiters.into_iter().for_each(|waiter| waiter());
        self.filled.notify_one();
    }

    /// Writes until the connection closes or fails.
    pub(crate) async fn drain_into(&self, mut socket: OwnedWriteHalf) {
        let mut batch = VecDeque::new();
        while self.take(&mut batch).await {
            if write_all(&mut socket, &mut batch).await.is_err() {
                self.close();
                return;
            }
        }
        // An orderly end: what was queued before the close is on its way; tell the peer that no more will come.
        let _peer_may_be_gone = socket.shutdown().await;
    }

    /// Waits for bytes and takes all of them. False once closed and empty.
    async fn take(&self, batch: &mut VecDeque<Bytes>) -> bool {
        loop {
            let waiters = {
                let mut queue = self.queue.lock();
                if queue.bytes > 0 {
                    std::mem::swap(&mut queue.slices, batch);
                    if !queue.tail.is_empty() {
                        batch.push_back(queue.tail.split().freeze());
                    }
                    queue.bytes = 0;
                    Some(std::mem::take(&mut queue.waiters))
                } else if queue.closed {
                    return false;
                } else {
                    None
                }
            };
            match waiters {
                Some(waiters) => {
                    waiters.into_iter().for_each(|waiter| waiter());
                    return true;
                }
                None => self.filled.notified().await,
            }
        }
    }
}

impl Push<'_> {
    /// Queues one small frame.
    pub(crate) fn frame(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        if self.queue.closed {
            return;
        }
        let before = self.queue.tail.len();
        encode(&mut self.queue.tail);
        self.queue.bytes += self.queue.tail.len() - before;
    }

    /// Queues a frame whose head is encoded and whose body is a stored payload.
    pub(crate) fn frame_with_body(&mut self, encode_head: impl FnOnce(&mut BytesMut), body: &Bytes) {
        if self.queue.closed {
            return;
        }
        self.frame(encode_head);
        if body.len() < SLICE_MIN {
            geminga_common::copies::note(body.len());
            self.queue.tail.extend_from_slice(body);
        } else {
            let head = self.queue.tail.split().freeze();
            self.queue.slices.push_back(head);
            self.queue.slices.push_back(body.clone());
        }
        self.queue.bytes += body.len();
    }
}

impl Drop for Push<'_> {
    fn drop(&mut self) {
        if self.was_empty && self.queue.bytes > 0 {
            self.outbox.filled.notify_one();
        }
    }
}

async fn write_all(socket: &mut OwnedWriteHalf, batch: &mut VecDeque<Bytes>) -> std::io::Result<()> {
    while !batch.is_empty() {
        let mut written = {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut count, mut left) = (0, TURN_BYTES);
            for (slot, bytes) in slices.iter_mut().zip(batch.iter()) {
                *slot = IoSlice::new(&bytes[..bytes.len().min(left)]);
                left -= slot.len();
                count += 1;
                if left == 0 {
                    break;
                }
            }
            socket.write_vectored(&slices[..count]).await?
        };
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(front) = batch.front_mut() {
            if written < front.len() {
                let _sent = front.split_to(written);
                break;
            }
            written -= front.len();
            batch.pop_front();
        }
        if !batch.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn waiting_for_room_ends_when_the_writer_takes_or_the_connection_closes() {
        let outbox = Outbox::default();
        assert!(outbox.drained_below(0).is_none());
        outbox.frame(|out| out.extend_from_slice(&[0; 100]));
        assert!(outbox.drained_below(100).is_none());
        let mut waiting = outbox.drained_below(99).unwrap();
        assert!((&mut waiting).now_or_never().is_none());
        assert!(outbox.take(&mut VecDeque::new()).await);
        assert!(waiting.now_or_never().is_some());
        outbox.frame(|out| out.extend_from_slice(&[0; 100]));
        let mut waiting = outbox.drained_below(99).unwrap();
        assert!((&mut waiting).now_or_never().is_none());
        outbox.finish();
        assert!(waiting.now_or_never().is_some());
    }

    /// Bytes that the peer gets without anything more being written.
    fn arrived(peer: &TcpStream, into: &mut Vec<u8>) -> usize {
        let before = into.len();
        while matches!(peer.try_read_buf(into), Ok(1..)) {}
        into.len() - before
    }

    #[tokio::test]
    async fn megabytes_are_written_in_turns_and_arrive_as_they_were_queued() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, peer) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (ours, (peer, _)) = (ours.unwrap(), peer.unwrap());
        ours.writable().await.unwrap();
        // One entry is larger than a turn.
        let bodies: Vec<Bytes> = [16 << 10; 100]
            .into_iter()
            .chain([1 << 20])
            .zip(0..)
            .map(|(len, n)| vec![n; len].into())
            .collect();
        let outbox = Outbox::default();
        let mut wanted = Vec::new();
        for body in &bodies {
            outbox.push().frame_with_body(|out| out.extend_from_slice(b"head"), body);
            wanted.extend_from_slice(b"head");
            wanted.extend_from_slice(body);
        }
        outbox.finish();
        let (mut writing, mut got) = (std::pin::pin!(outbox.drain_into(ours.into_split().1)), Vec::new());
        loop {
            let done = futures::poll!(writing.as_mut()).is_ready();
            tokio::task::yield_now().await;
            let turn = arrived(&peer, &mut got);
            assert!(turn <= TURN_BYTES, "{turn} bytes without a turn for others");
            if done {
                break;
            }
        }
        assert!(got == wanted, "{} of {} bytes", got.len(), wanted.len());
    }
}
