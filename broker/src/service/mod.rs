//! The binary protocol's edge: accepts connections, frames, decodes, and hands on. Protobuf structs stop here.
//!
//! | file | thought |
//! |---|---|
//! | [`mod@self`] | the listener |
//! | `connection` | one task per peer: handshake, keep-alive, the read loop |
//! | `read_ahead` | how much to read next, so that payloads are not moved (pure) |
//! | `produce` | PRODUCER, SEND, CLOSE_PRODUCER |
//! | `consume` | SUBSCRIBE, FLOW, ACK, REDELIVER, SEEK and their kin |
//! | `lookup` | LOOKUP, partition metadata, topic lists |
//! | `schemas` | GET_SCHEMA, GET_OR_CREATE_SCHEMA |
//! | `wire_error` | the one mapping of refusals to ServerError |
//! | `respond` | responses as frames |

mod connection;
mod consume;
mod lookup;
mod produce;
mod read_ahead;
mod respond;
mod schemas;
#[cfg(test)]
mod tests;
mod wire_error;

pub(crate) use respond::{close_consumer, close_producer, command, refusal, send_error};

use crate::broker::Broker;
use crate::doors::Door;
use geminga_common::tasks::OnFailure;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Accepts clients until the broker stops.
pub(crate) async fn accept(broker: Arc<Broker>, listener: TcpListener, door: Arc<Door>) {
    let stop = broker.tasks.token();
    loop {
        let (socket, address, place) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = door.accept(&listener, &*broker.clock) => accepted,
        };
        let serve = connection::serve(broker.clone(), socket, address);
        broker.tasks.spawn(format!("connection {address}"), OnFailure::Log, async move {
            let _until_it_ends = place;
            serve.await;
        });
    }
}
