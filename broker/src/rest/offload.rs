//! Offloading by hand: `PUT` asks for everything before a message, `GET` tells how that goes.

use super::Rest;
use super::api::{OffloadState, Place, Target};
use super::request::Req;
use super::response::{Answer, RestError, done, message_id, ok};
use super::topics::{or_unused, plain_only};
use axum::http::Method;
use geminga_common::names::TopicName;
use serde_json::{Value, json};

/// What a policy or request that needs an object store is told where there is none.
pub(super) const NO_STORE: &str =
    "no object store is configured (offload.url in the broker's configuration), so offloading";

pub(super) async fn route(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    plain_only(
        rest,
        topic,
        "Offload of a partitioned topic is not allowed, please try do it on specific topic partition",
    )?;
    match req.method {
        Method::PUT => {
            if rest.broker.offload_driver().is_none() {
                return Err(RestError::not_implemented(NO_STORE));
            }
            let Some((Target::At { position, .. }, _)) = req.target()? else {
                return Err(RestError::bad("the body is not a message id"));
            };
            rest.broker.offload_topic(topic, position).await?;
            done()
        }
        Method::GET => {
            let state = rest.broker.offload_status(topic).await;
            ok(&shown(&or_unused(rest, topic, state, OffloadState::default)?))
        }
        _ => Err(RestError::not_allowed("Method Not Allowed")),
    }
}

fn shown(state: &OffloadState) -> Value {
    let (status, error, first) = match state {
        OffloadState::NotRun => ("NOT_RUN", "", None),
        OffloadState::Running => ("RUNNING", "", None),
        OffloadState::Success(first) => ("SUCCESS", "", Some(*first)),
        OffloadState::Error(error) => ("ERROR", error.as_str(), None),
    };
    let first = first
        .map(|ledger| message_id(Place { ledger, entry: ledger.map(|_| geminga_common::ids::EntryId(0)) }));
    json!({ "status": status, "lastError": error, "firstUnoffloadedMessage": first })
}
