//! Admin REST, HTTP lookup and `/metrics`: the paths, bodies and status codes of Pulsar 4.2's admin API.
//!
//! | file | what it holds |
//! |---|---|
//! | `api`, `stats` | what REST asks of the broker ([`BrokerApi`]), and stats in Pulsar's JSON shape |
//! | `serve` | connections: places, and requests that have to arrive in time |
//! | `request`, `response` | one request taken apart; the answers and error bodies |
//! | `router` | method and path → handler, by matching on path segments |
//! | `cluster`, `tenants`, `namespaces`, `topics`, `partitions`, `subscriptions`, `schemas` | handlers |
//! | `policies`, `enforced` | policy tables of namespaces and topics; which policies this release enforces |
//! | `message` | a stored entry as headers and body |
//! | `fuzz` | entry points of fuzz runs |
//! | `metrics`, `time` | the Prometheus text; ISO times |
//!
//! Why one `match` instead of a route tree: Pulsar's paths overlap (a topic may be called `partitioned`), names are decoded
//! in their own ways, and unknown paths answer 404 here and 405 there; a match says all this in one place and order.

pub mod api;
mod cluster;
mod enforced;
#[cfg(feature = "test-util")]
pub mod fuzz;
mod message;
mod metrics;
mod namespaces;
mod offload;
mod partitions;
mod policies;
mod request;
mod response;
mod router;
mod schemas;
mod serve;
pub mod stats;
mod subscriptions;
mod tenants;
#[cfg(test)]
mod tests;
pub mod time;
mod topics;

pub use api::{ApiError, BrokerApi};
pub use response::RestError;

use crate::namespace::Namespaces;
use crate::schema::SchemaRegistry;
use geminga_common::clock::Clock;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    /// Tenants, namespaces, policies, partition counts.
    pub namespaces: Namespaces,
    /// Schemas.
    pub schemas: SchemaRegistry,
    /// The broker.
    pub broker: Arc<dyn BrokerApi>,
    /// For time stamps.
    pub clock: Arc<dyn Clock>,
    /// What `/admin/v2/brokers/version` and `pulsar_version_info` say.
    pub version: Arc<str>,
    /// Where metadata is kept, as `/admin/v2/brokers/internal-configuration` shows it.
    pub metadata_url: Arc<str>,
    /// When the log last spoke of requests that failed.
    pub(crate) failures: Arc<crate::seldom::Seldom>,
    /// How many clients are connected, and may be.
    pub(crate) doors: crate::doors::Doors,
}

impl Rest {
    /// Serves on a bound listener until told to stop; requests under way are finished.
    pub async fn serve(self, listener: tokio::net::TcpListener, stop: CancellationToken) {
        let (door, clock) = (self.doors.http.clone(), self.clock.clone());
        serve::serve(listener, door, clock, router::router(self), serve::HEAD_TIMEOUT, stop).await;
    }
}
