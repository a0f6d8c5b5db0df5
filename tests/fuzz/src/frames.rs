//! The frame splitter and the command decoders.
//!
//! Held to: the differential promises of [`geminga_proto::test_support::fuzz_frames`]; what a stream is cut into does not
//! depend on how it arrived; a command made of legal values is decoded by hand to what the generated decoder gives, never
//! refused; allocations stay in proportion to the bytes.

use crate::alloc::bounded;
use arbitrary::Unstructured;
use bytes::{Bytes, BytesMut};
use geminga_proto::decode::{DecodeError, decode_ack, decode_connect, decode_flow, decode_send};
use geminga_proto::frame::{Frame, FrameLimits, next_frame};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand};
use geminga_proto::test_support::fuzz_frames;
use prost::Message as _;

/// Most bytes allocated at once per byte of input: an empty member of a repeated field takes two bytes on the wire.
const GROWTH: usize = 256;

/// Runs the target.
pub fn run(data: &[u8]) {
    bounded((64 << 10) + GROWTH * data.len(), || {
        fuzz_frames(data);
        arrival(data);
        known_commands(data);
    });
    legal_commands(data);
}

fn cut(buffer: &mut BytesMut, limits: FrameLimits, out: &mut Vec<Frame>) -> bool {
    loop {
        match next_frame(buffer, limits) {
            Ok(Some(frame)) => out.push(frame),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The same bytes, whole and in pieces, under the limits before and after CONNECT.
fn arrival(data: &[u8]) {
    let piece = data.first().map_or(1, |byte| usize::from(*byte) % 37 + 1);
    for max_frame in [64 << 10, FrameLimits::default().max_frame] {
        let limits = FrameLimits { max_frame };
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        let good = cut(&mut BytesMut::from(data), limits, &mut whole);
        let mut buffer = BytesMut::new();
        let still_good = data.chunks(piece).all(|chunk| {
            buffer.extend_from_slice(chunk);
            cut(&mut buffer, limits, &mut pieces)
        });
        assert_eq!((whole, good), (pieces, still_good), "frames depend on how they arrive");
    }
}

/// Wherever the generated decoder takes one of the hot commands, the hand-written one may miss a required field, no more.
fn known_commands(data: &[u8]) {
    let Ok(full) = BaseCommand::decode(data) else { return };
    let fair = |refused: Option<&DecodeError>| {
        assert!(matches!(refused, None | Some(DecodeError::Missing(_))), "{refused:?} for {full:?}");
    };
    match Type::try_from(full.r#type) {
        Ok(Type::Send) if full.send.is_some() => fair(decode_send(data).as_ref().err()),
        Ok(Type::Flow) if full.flow.is_some() => fair(decode_flow(data).as_ref().err()),
        Ok(Type::Ack) if full.ack.is_some() => fair(decode_ack(data).as_ref().err()),
        Ok(Type::Connect) if full.connect.is_some() => match decode_connect(data) {
            Ok(connect) => assert_eq!(Some(connect), full.connect.map(|c| *c)),
            Err(refused) => fair(Some(&refused)),
        },
        _ => {}
    }
}

/// Legal commands with values taken from the input: accepted, and equal.
fn legal_commands(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok((send, flow, ack)) = legal(&mut u) else { return };
    let bytes = |r#type, fill: &dyn Fn(&mut BaseCommand)| {
        let mut command = BaseCommand { r#type: r#type as i32, ..BaseCommand::default() };
        fill(&mut command);
        Bytes::from(command.encode_to_vec())
    };
    let ours =
        decode_send(&bytes(Type::Send, &|c| c.send = Some(Box::new(send.clone())))).expect("a legal SEND");
    assert_eq!((ours.producer_id, ours.sequence_id), (send.producer_id, send.sequence_id));
    assert_eq!(
        (ours.num_messages, ours.highest_sequence_id),
        (send.num_messages(), send.highest_sequence_id)
    );
    assert_eq!((ours.is_chunk, ours.marker), (send.is_chunk(), send.marker()));
    let ours = decode_flow(&bytes(Type::Flow, &|c| c.flow = Some(Box::new(flow)))).expect("a legal FLOW");
    assert_eq!((ours.consumer_id, ours.message_permits), (flow.consumer_id, flow.message_permits));
    let ours = decode_ack(&bytes(Type::Ack, &|c| c.ack = Some(Box::new(ack.clone())))).expect("a legal ACK");
    assert_eq!(ours, ack);
}

fn legal(
    u: &mut Unstructured<'_>,
) -> arbitrary::Result<(wire::CommandSend, wire::CommandFlow, wire::CommandAck)> {
    let send = wire::CommandSend {
        producer_id: u.arbitrary()?,
        sequence_id: u.arbitrary()?,
        num_messages: u.arbitrary()?,
        txnid_least_bits: u.arbitrary()?,
        txnid_most_bits: u.arbitrary()?,
        highest_sequence_id: u.arbitrary()?,
        is_chunk: u.arbitrary()?,
        marker: u.arbitrary()?,
        message_id: None,
    };
    let flow = wire::CommandFlow { consumer_id: u.arbitrary()?, message_permits: u.arbitrary()? };
    let mut ids = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        ids.push(wire::MessageIdData {
            ledger_id: u.arbitrary()?,
            entry_id: u.arbitrary()?,
            partition: u.arbitrary()?,
            batch_index: u.arbitrary()?,
            ack_set: u.arbitrary()?,
            batch_size: u.arbitrary()?,
            first_chunk_message_id: None,
        });
    }
    let ack = wire::CommandAck {
        consumer_id: u.arbitrary()?,
        ack_type: u.int_in_range(0..=1)?,
        message_id: ids,
        validation_error: None,
        properties: vec![wire::KeyLongValue { key: u.arbitrary()?, value: u.arbitrary()? }],
        txnid_least_bits: u.arbitrary()?,
        txnid_most_bits: u.arbitrary()?,
        request_id: u.arbitrary()?,
    };
    Ok((send, flow, ack))
}
