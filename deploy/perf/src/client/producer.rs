//! One producer: a window of entries without receipt, batches, and the matching of receipts to send times.
//!
//! Owner: the pacing thread calls the sending half; the connection's reader calls [`Shared`]. Invariant: receipts come in
//! the order of the sends, so the head of the pending queue is always the one answered; anything else ends the run.

use super::connection::{Connection, Pool, ReceiptSink};
use super::lookup;
use crate::report::Recorder;
use crate::schedule::Pace;
use crate::stamp::WallClock;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, BytesMut};
use geminga_common::clock::Mono;
use geminga_proto::encode::encode_with_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{
    BaseCommand, CommandCloseProducer, CommandProducer, CommandSend, CommandSendError, CommandSendReceipt,
    MessageMetadata, SingleMessageMetadata,
};
use prost::Message as _;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProducerOptions {
    /// Gather messages into batches.
    pub(crate) batching: bool,
    /// Most messages in a batch.
    pub(crate) batch_messages: u32,
    /// Most payload bytes in a batch.
    pub(crate) batch_bytes: usize,
    /// Longest wait of a batch's first message.
    pub(crate) batch_delay: Duration,
    /// Messages without receipt at most.
    pub(crate) max_pending: usize,
    /// Payload bytes of a message.
    pub(crate) size: usize,
}

/// Wakes the pacing thread for producers whose window has room again.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    ready: Mutex<Vec<usize>>,
    thread: OnceLock<Thread>,
}

impl Waker {
    /// Makes the calling thread the one to wake.
    pub(crate) fn attach(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Takes the producers that are ready.
    pub(crate) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.ready.lock().expect("no holder of this lock panics"))
    }

    fn ready(&self, index: usize) {
        self.ready.lock().expect("no holder of this lock panics").push(index);
        self.wake();
    }
}

/// An entry without receipt.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Number of its first message, which is its sequence id.
    sequence: u64,
    count: u32,
    bytes: u64,
    /// When its first message was handed over; the send time where there is no schedule.
    at: Mono,
}

struct Shared {
    index: usize,
    pace: Pace,
    clock: WallClock,
    pending: Mutex<VecDeque<Pending>>,
    in_flight: AtomicUsize,
    stalled: AtomicBool,
    recorder: Arc<Recorder>,
    waker: Arc<Waker>,
}

impl Shared {
    fn pop(&self, sequence: u64) -> Result<Pending> {
        let head = self.pending.lock().expect("no holder of this lock panics").pop_front();
        match head {
            Some(head) if head.sequence == sequence => Ok(head),
            Some(head) => bail!("answer for sequence {sequence} while {} is first in line", head.sequence),
            None => bail!("answer for sequence {sequence} while none is outstanding"),
        }
    }

    fn settle(&self, entry: Pending) {
        self.in_flight.fetch_sub(entry.count as usize, Ordering::AcqRel);
        if self.stalled.swap(false, Ordering::AcqRel) {
            self.waker.ready(self.index);
        }
    }
}

impl ReceiptSink for Shared {
    fn receipt(&self, receipt: &CommandSendReceipt) -> Result<()> {
        let entry = self.pop(receipt.sequence_id)?;
        let now = self.clock.mono();
        let sequences = entry.sequence..entry.sequence + u64::from(entry.count);
        let latencies = sequences.map(|n| now.saturating_sub(self.pace.due(n, entry.at)).as_micros() as u64);
        self.recorder.entry(latencies, entry.bytes, now);
        self.settle(entry);
        Ok(())
    }

    fn refused(&self, error: &CommandSendError) -> Result<()> {
        let head = self.pending.lock().expect("no holder of this lock panics").pop_front();
        let entry = head.context("SEND_ERROR while nothing is outstanding")?;
        let why = format!("{}: {}", error.error().as_str_name(), error.message);
        self.recorder.failed(u64::from(entry.count), &why);
        self.settle(entry);
        Ok(())
    }
}

/// The sending half of a producer.
pub(crate) struct Producer {
    id: u64,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    options: ProducerOptions,
    command: BaseCommand,
    metadata: MessageMetadata,
    batch: BytesMut,
    batch_count: u32,
    batch_at: Mono,
    batch_payload_bytes: u64,
    next: u64,
}

impl Producer {
    /// Registers a producer with the broker of `topic`.
    pub(crate) async fn open(
        pool: &mut Pool,
        topic: &str,
        index: usize,
        options: ProducerOptions,
        recorder: Arc<Recorder>,
        waker: Arc<Waker>,
        clock: WallClock,
    ) -> Result<Self> {
        let connection = lookup::connect(pool, topic).await?;
        let limit = connection.message_max();
        // A broker closes the connection on a frame that is too large and cannot say why.
        ensure!(
            options.size <= limit,
            "--size {} is above the server's limit of {limit} bytes a message (its max_message_size)",
            options.size
        );
        let id = connection.next_id();
        let request_id = connection.next_id();
        let shared = Arc::new(Shared {
            index,
            pace: Pace::new(Mono::ZERO, 0.0, 0, 1),
            clock,
            pending: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
            recorder,
            waker,
        });
        let register =
            CommandProducer { topic: topic.to_owned(), producer_id: id, request_id, ..Default::default() };
        let command = BaseCommand {
            r#type: Type::Producer as i32,
            producer: Some(Box::new(register)),
            ..Default::default()
        };
        let answer = connection.request(request_id, &command).await.with_context(|| topic.to_owned())?;
        let answer = answer.producer_success.context("no PRODUCER_SUCCESS in the answer")?;
        let send = CommandSend { producer_id: id, ..Default::default() };
        Ok(Self {
            id,
            connection,
            shared,
            options,
            command: BaseCommand {
                r#type: Type::Send as i32,
                send: Some(Box::new(send)),
                ..Default::default()
            },
            metadata: MessageMetadata { producer_name: answer.producer_name, ..Default::default() },
            batch: BytesMut::new(),
            batch_count: 0,
            batch_at: Mono::ZERO,
            batch_payload_bytes: 0,
            next: 0,
        })
    }

    /// Sets the pace before the first message and starts to listen for receipts.
    pub(crate) fn start(&mut self, pace: Pace) {
        let shared = Arc::get_mut(&mut self.shared).expect("nobody shares it before the start");
        shared.pace = pace;
        self.connection.add_producer(self.id, self.shared.clone());
    }

    /// Number of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// When the next message should leave.
    pub(crate) fn due(&self, now: Mono) -> Mono {
        self.shared.pace.due(self.next, now)
    }

    /// Messages without receipt, the open batch included.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Whether the window takes another message. If not, the waker will name this producer once it does.
    pub(crate) fn has_room(&self) -> bool {
        if self.outstanding() < self.options.max_pending {
            return true;
        }
        self.shared.stalled.store(true, Ordering::Release);
        // A receipt may have come between the look and the note: then there is room, unless it saw the note and wakes us.
        self.outstanding() < self.options.max_pending && self.shared.stalled.swap(false, Ordering::AcqRel)
    }

    /// When the open batch must leave.
    pub(crate) fn batch_deadline(&self) -> Option<Mono> {
        (self.batch_count > 0).then(|| self.batch_at + self.options.batch_delay)
    }

    /// Takes one message; sends it or adds it to the open batch.
    pub(crate) fn push(&mut self, payload: &[u8], now: Mono, publish_time_ms: u64) -> Result<()> {
        self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        let sequence = self.next;
        self.next += 1;
        if !self.options.batching {
            self.metadata.num_messages_in_batch = None;
            return self.write_entry(sequence, 1, payload, payload.len() as u64, now, publish_time_ms);
        }
        if self.batch_count == 0 {
            self.batch_at = now;
        }
        let single = SingleMessageMetadata {
            payload_size: i32::try_from(payload.len()).context("the payload is too large")?,
            sequence_id: Some(sequence),
            ..Default::default()
        };
        let size = u32::try_from(single.encoded_len()).context("the header is too large")?;
        let member = 4 + size as usize + payload.len();
        if self.batch_count > 0 && self.batch.len() + member > self.connection.message_max() {
            self.send_batch(publish_time_ms)?;
            self.batch_at = now;
        }
        self.batch.put_u32(size);
        single.encode(&mut self.batch)?;
        self.batch.put_slice(payload);
        self.batch_count += 1;
        self.batch_payload_bytes += payload.len() as u64;
        let full =
            self.batch_count >= self.options.batch_messages || self.batch.len() >= self.options.batch_bytes;
        if full { self.send_batch(publish_time_ms) } else { Ok(()) }
    }

    /// Sends the open batch, if any.
    pub(crate) fn send_batch(&mut self, publish_time_ms: u64) -> Result<()> {
        if self.batch_count == 0 {
            return Ok(());
        }
        let body = self.batch.split();
        let (count, bytes) = (self.batch_count, self.batch_payload_bytes);
        self.batch_count = 0;
        self.batch_payload_bytes = 0;
        self.metadata.num_messages_in_batch = Some(i32::try_from(count).context("the batch is too large")?);
        self.metadata.uncompressed_size = u32::try_from(body.len()).ok();
        let first = self.next - u64::from(count);
        let at = self.batch_at;
        self.write_entry(first, count, &body, bytes, at, publish_time_ms)
    }

    fn write_entry(
        &mut self,
        sequence: u64,
        count: u32,
        body: &[u8],
        bytes: u64,
        at: Mono,
        publish_time_ms: u64,
    ) -> Result<()> {
        let last = sequence + u64::from(count) - 1;
        let send = self.command.send.as_mut().context("a producer's command is SEND")?;
        send.sequence_id = sequence;
        send.num_messages = (count > 1).then_some(i32::try_from(count)?);
        send.highest_sequence_id = (count > 1).then_some(last);
        self.metadata.sequence_id = sequence;
        self.metadata.highest_sequence_id = (count > 1).then_some(last);
        self.metadata.publish_time = publish_time_ms;
        let entry = Pending { sequence, count, bytes, at };
        self.shared.pending.lock().expect("no holder of this lock panics").push_back(entry);
        self.connection.write(|out| encode_with_payload(&self.command, &self.metadata, body, out));
        Ok(())
    }

    /// Has the connection send what was written.
    pub(crate) fn flush(&self) {
        self.connection.flush();
    }

    /// Says good-bye to the broker.
    pub(crate) async fn close(&self) -> Result<()> {
        let request_id = self.connection.next_id();
        let close = CommandCloseProducer { producer_id: self.id, request_id, ..Default::default() };
        let command = BaseCommand {
            r#type: Type::CloseProducer as i32,
            close_producer: Some(Box::new(close)),
            ..Default::default()
        };
        self.connection.request(request_id, &command).await.map(|_| ())
    }
}
