//! Framing: a connection's byte stream cut into frames, `[total u32be][command size u32be][command][rest]`.
//!
//! Owner: the connection reader. Invariants: no byte is copied (a [`Frame`] shares the read buffer's memory); no
//! allocation is ever sized by a number the peer sent before that number has been checked against [`FrameLimits`]; an error
//! leaves the stream unusable, since there is no mark to resynchronise on, so the connection is closed.

use bytes::{Bytes, BytesMut};

/// `max_message_size` announced to clients unless configured otherwise, in bytes.
pub const DEFAULT_MAX_MESSAGE_SIZE: usize = 5 * 1024 * 1024;

/// What a frame may hold beyond the largest message: command, metadata, sizes; in bytes.
pub const FRAME_PADDING: usize = 10 * 1024;

/// Bytes of the length field that opens a frame.
const TOTAL_FIELD: usize = 4;
/// Bytes of the total size and the command size together.
const HEAD: usize = 8;

/// Bounds on what a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Largest whole frame in bytes, its length field included.
    pub max_frame: usize,
}

impl FrameLimits {
    /// Limits that let through messages of `max_message_size` bytes.
    #[must_use]
    pub const fn for_message_size(max_message_size: usize) -> Self {
        Self { max_frame: max_message_size.saturating_add(FRAME_PADDING) }
    }
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self::for_message_size(DEFAULT_MAX_MESSAGE_SIZE)
    }
}

/// One frame, sharing the memory of the buffer it was cut from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The encoded `BaseCommand`; never empty.
    pub command: Bytes,
    /// What follows the command: empty, or for SEND and MESSAGE the part [`crate::payload::parse_payload`] reads.
    pub rest: Bytes,
}

/// Why a frame, or the part after its command, cannot be read. [`FrameError::code`] is stable for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The total size leaves no room for a command.
    #[error("frame of {total} bytes is too short to hold a command")]
    TooShort {
        /// Total size as sent.
        total: usize,
    },
    /// The frame is larger than the limit.
    #[error("frame of {frame} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Size of the whole frame in bytes.
        frame: usize,
        /// The limit in force.
        limit: usize,
    },
    /// The command is empty or reaches past the end of its frame.
    #[error("command of {command} bytes does not fit a frame that has room for {room}")]
    BadCommandSize {
        /// Command size as sent.
        command: usize,
        /// Bytes there are for it.
        room: usize,
    },
    /// The part after the command ends inside one of its own fields.
    #[error("message ends inside its {field}: {needed} bytes needed, {found} there")]
    PayloadTruncated {
        /// The field that is cut off.
        field: &'static str,
        /// Bytes the field takes.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The checksum does not match the bytes it covers.
    #[error("checksum is {stored:#010x} but the message has {computed:#010x}")]
    ChecksumMismatch {
        /// Checksum carried by the message.
        stored: u32,
        /// Checksum of its bytes.
        computed: u32,
    },
}

impl FrameError {
    /// A short stable name of the error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "frame-too-short",
            Self::TooLarge { .. } => "frame-too-large",
            Self::BadCommandSize { .. } => "bad-command-size",
            Self::PayloadTruncated { .. } => "payload-truncated",
            Self::ChecksumMismatch { .. } => "checksum-mismatch",
        }
    }
}

/// Reads a big-endian `u32` at `at` as a size.
fn size_at(buf: &[u8], at: usize) -> Option<usize> {
    let field = buf.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*field) as usize)
}

/// Length of the whole frame at the head of `buf`, or of the length field itself while that is incomplete, in bytes
/// counted from the start of `buf`.
///
/// The number is the peer's claim: size a buffer by it only after [`next_frame`] answered `Ok(None)` for the same bytes,
/// which means that it is within the limits.
#[must_use]
pub fn needed(buf: &[u8]) -> usize {
    size_at(buf, 0).map_or(TOTAL_FIELD, |total| total.saturating_add(TOTAL_FIELD))
}

/// Cuts the next whole frame off `buf`, or answers `None` when more bytes must be read first.
///
/// Sizes are checked as soon as they are there, before the frame has arrived.
///
/// # Errors
/// [`FrameError::TooShort`], [`FrameError::TooLarge`] and [`FrameError::BadCommandSize`]; `buf` is then left as it was and
/// the connection must be closed.
pub fn next_frame(buf: &mut BytesMut, limits: FrameLimits) -> Result<Option<Frame>, FrameError> {
    let Some(total) = size_at(buf, 0) else { return Ok(None) };
    // The smallest command is one key and one value, but its size field alone decides here.
    let Some(room) = total.checked_sub(HEAD - TOTAL_FIELD) else {
        return Err(FrameError::TooShort { total });
    };
    let frame = total.saturating_add(TOTAL_FIELD);
    if frame > limits.max_frame {
        return Err(FrameError::TooLarge { frame, limit: limits.max_frame });
    }
    let Some(command) = size_at(buf, TOTAL_FIELD) else { return Ok(None) };
    if command == 0 || command > room {
        return Err(FrameError::BadCommandSize { command, room });
    }
    if buf.len() < frame {
        return Ok(None);
    }
    let mut command_and_rest = buf.split_to(frame).freeze().split_off(HEAD);
    let rest = command_and_rest.split_off(command);
    Ok(Some(Frame { command: command_and_rest, rest }))
}
