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
use geminga_common::tasks::OnFailure;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Accepts clients until the broker stops.
pub(crate) async fn accept(broker: Arc<Broker>, listener: TcpListener) {
    let stop = broker.tasks.token();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                let broker = broker.clone();
                let serve = connection::serve(broker.clone(), socket, address);
                broker.tasks.spawn(format!("connection {address}"), OnFailure::Log, serve);
            }
            Err(error) => {
                // Out of file descriptors or a peer that vanished: neither ends the listener.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}
