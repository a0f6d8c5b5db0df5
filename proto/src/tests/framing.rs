//! Framing, by hand-written bytes.

use bytes::BytesMut;

use super::buf;
use crate::frame::{Frame, FrameError, FrameLimits, needed, next_frame};

const LIMITS: FrameLimits = FrameLimits { max_frame: 64 };

fn next(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    next_frame(input, LIMITS)
}

#[test]
fn the_default_limit_is_five_mebibytes_and_ten_kibibytes() {
    assert_eq!(FrameLimits::default().max_frame, 5_242_880 + 10_240);
    assert_eq!(FrameLimits::for_message_size(usize::MAX).max_frame, usize::MAX);
}

#[test]
fn a_simple_frame_has_an_empty_rest() {
    let mut input = buf(&[&[0, 0, 0, 6, 0, 0, 0, 2, 0x08, 18]]);
    let frame = next(&mut input).unwrap().unwrap();
    assert_eq!(&frame.command[..], [0x08, 18]);
    assert!(frame.rest.is_empty());
    assert!(input.is_empty());
}

#[test]
fn two_frames_in_one_buffer_come_one_by_one_and_the_tail_stays() {
    let mut input = buf(&[&[0, 0, 0, 9, 0, 0, 0, 2, 1, 2, 3, 4, 5], &[0, 0, 0, 5, 0, 0, 0, 1, 9], &[0, 0]]);
    let first = next(&mut input).unwrap().unwrap();
    assert_eq!((&first.command[..], &first.rest[..]), (&[1u8, 2][..], &[3u8, 4, 5][..]));
    let second = next(&mut input).unwrap().unwrap();
    assert_eq!((&second.command[..], &second.rest[..]), (&[9u8][..], &[][..]));
    assert_eq!(next(&mut input), Ok(None));
    assert_eq!(&input[..], [0, 0]);
}

#[test]
fn a_frame_shares_the_memory_of_the_read_buffer() {
    let mut input = buf(&[&[0, 0, 0, 7, 0, 0, 0, 2, 1, 2, 3]]);
    let start = input.as_ptr() as usize;
    let frame = next(&mut input).unwrap().unwrap();
    assert_eq!(frame.command.as_ptr() as usize, start + 8);
    assert_eq!(frame.rest.as_ptr() as usize, start + 10);
}

#[test]
fn every_proper_prefix_waits_and_leaves_the_buffer_alone() {
    let whole = [0, 0, 0, 9, 0, 0, 0, 2, 1, 2, 3, 4, 5];
    for cut in 0..whole.len() {
        let mut input = buf(&[&whole[..cut]]);
        let capacity = input.capacity();
        assert_eq!(next(&mut input), Ok(None), "cut at {cut}");
        assert_eq!(&input[..], &whole[..cut]);
        assert_eq!(input.capacity(), capacity, "reading must not size the buffer");
        assert_eq!(needed(&input), if cut < 4 { 4 } else { 13 });
    }
}

#[test]
fn a_total_without_room_for_a_command_size_is_refused() {
    for total in 0..4u8 {
        let mut input = buf(&[&[0, 0, 0, total, 0, 0, 0, 0]]);
        assert_eq!(next(&mut input), Err(FrameError::TooShort { total: total.into() }));
        assert_eq!(input.len(), 8);
    }
}

#[test]
fn a_command_that_is_empty_or_overruns_its_frame_is_refused_at_once() {
    // Only the head is there: the peer must not make us wait for the rest.
    let mut input = buf(&[&[0, 0, 0, 10, 0, 0, 0, 7]]);
    assert_eq!(next(&mut input), Err(FrameError::BadCommandSize { command: 7, room: 6 }));
    let mut input = buf(&[&[0, 0, 0, 10, 0, 0, 0, 0]]);
    assert_eq!(next(&mut input), Err(FrameError::BadCommandSize { command: 0, room: 6 }));
    let mut input = buf(&[&[0, 0, 0, 10, 0xff, 0xff, 0xff, 0xff]]);
    assert_eq!(next(&mut input), Err(FrameError::BadCommandSize { command: 0xffff_ffff, room: 6 }));
}

#[test]
fn the_limit_counts_the_whole_frame_and_is_checked_on_the_length_alone() {
    let mut fits = buf(&[&[0, 0, 0, 60, 0, 0, 0, 1], &[7; 56]]);
    assert_eq!(next(&mut fits).unwrap().unwrap().rest.len(), 55);
    let mut over = buf(&[&[0, 0, 0, 61]]);
    assert_eq!(next(&mut over), Err(FrameError::TooLarge { frame: 65, limit: 64 }));
    let mut huge = buf(&[&[0xff; 4]]);
    assert_eq!(next(&mut huge), Err(FrameError::TooLarge { frame: 0x1_0000_0003, limit: 64 }));
}

#[test]
fn error_codes_are_stable() {
    assert_eq!(FrameError::TooShort { total: 0 }.code(), "frame-too-short");
    assert_eq!(FrameError::TooLarge { frame: 2, limit: 1 }.code(), "frame-too-large");
    assert_eq!(FrameError::BadCommandSize { command: 2, room: 1 }.code(), "bad-command-size");
    let cut = FrameError::PayloadTruncated { field: "metadata", needed: 2, found: 1 };
    assert_eq!(cut.code(), "payload-truncated");
    assert_eq!(FrameError::ChecksumMismatch { stored: 1, computed: 2 }.code(), "checksum-mismatch");
}
