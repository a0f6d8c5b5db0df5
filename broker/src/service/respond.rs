//! Responses as frames. Each is one function, so that the handlers read as decisions.

use super::wire_error::server_error;
use crate::topic::TopicError;
use crate::topic::peer::Peer;
use bytes::BytesMut;
use geminga_common::ids::{ConsumerId, ProducerId, RequestId};
use geminga_proto::encode::encode_command;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand};

/// Queues a command; `set` fills the sub-message that belongs to `kind`.
pub(crate) fn command(peer: &Peer, kind: Type, set: impl FnOnce(&mut BaseCommand)) {
    peer.outbox.frame(|out| encode(out, kind, set));
}

fn encode(out: &mut BytesMut, kind: Type, set: impl FnOnce(&mut BaseCommand)) {
    let mut command = BaseCommand { r#type: kind as i32, ..Default::default() };
    set(&mut command);
    encode_command(&command, out);
}

/// SUCCESS.
pub(super) fn success(peer: &Peer, request: RequestId) {
    command(peer, Type::Success, |c| {
        c.success = Some(Box::new(wire::CommandSuccess { request_id: request.0, schema: None }));
    });
}

/// ERROR with a code and a text for people.
pub(super) fn error(peer: &Peer, request: RequestId, code: wire::ServerError, message: impl Into<String>) {
    let message = message.into();
    command(peer, Type::Error, |c| {
        c.error = Some(Box::new(wire::CommandError { request_id: request.0, error: code as i32, message }));
    });
}

/// ERROR for a topic's refusal.
pub(crate) fn refusal(peer: &Peer, request: RequestId, refused: &TopicError) {
    error(peer, request, server_error(refused), refused.to_string());
}

/// SUCCESS or ERROR.
pub(super) fn outcome(peer: &Peer, request: RequestId, result: &Result<(), TopicError>) {
    match result {
        Ok(()) => success(peer, request),
        Err(refused) => refusal(peer, request, refused),
    }
}

/// SEND_ERROR.
pub(crate) fn send_error(
    peer: &Peer,
    producer: ProducerId,
    sequence_id: u64,
    code: wire::ServerError,
    message: impl Into<String>,
) {
    let message = message.into();
    command(peer, Type::SendError, |c| {
        c.send_error = Some(Box::new(wire::CommandSendError {
            producer_id: producer.0,
            sequence_id,
            error: code as i32,
            message,
        }));
    });
}

/// CLOSE_PRODUCER from the broker's side.
pub(crate) fn close_producer(peer: &Peer, producer: ProducerId) {
    command(peer, Type::CloseProducer, |c| {
        c.close_producer = Some(Box::new(wire::CommandCloseProducer {
            producer_id: producer.0,
            request_id: RequestId::NONE.0,
            ..Default::default()
        }));
    });
}

/// CLOSE_CONSUMER from the broker's side.
pub(crate) fn close_consumer(peer: &Peer, consumer: ConsumerId) {
    command(peer, Type::CloseConsumer, |c| {
        c.close_consumer = Some(Box::new(wire::CommandCloseConsumer {
            consumer_id: consumer.0,
            request_id: RequestId::NONE.0,
            ..Default::default()
        }));
    });
}
