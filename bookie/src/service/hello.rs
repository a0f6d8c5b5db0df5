//! Who may open a stream. A caller of another cluster, or one that means another bookie, is told so by code; the incarnation is
//! told in the welcome and compared in every batch, because it may change while a stream is open.

use super::{Serves, Shared};
use geminga_bookie_client::grpc::PROTOCOL;
use geminga_common::error::Code;
use geminga_common::ids::Incarnation;
use geminga_proto::bookie as wire;
use std::time::Duration;
use tonic::Status;

/// A stream that has not said hello by then is ended.
pub(super) const HELLO: Duration = Duration::from_secs(10);

/// A gRPC status whose message begins with a code.
pub(super) fn refused(code: Code, what: &str) -> Status {
    Status::new(tonic::Code::from_i32(code.meaning().grpc_status), format!("{code}: {what}"))
}

impl<S: Serves> Shared<S> {
    fn is_me(&self, cluster: &str, bookie: &str) -> Result<(), Status> {
        if cluster != self.cluster {
            let ours = &self.cluster;
            return Err(refused(
                Code::WRONG_CLUSTER,
                &format!("this bookie is of cluster {ours}, not {cluster}"),
            ));
        }
        let me = &self.me.id;
        if bookie != me.as_str() {
            return Err(refused(Code::WRONG_BOOKIE, &format!("this is bookie {me}, not {bookie}")));
        }
        Ok(())
    }

    /// Checks a hello; answers the welcome.
    pub(super) fn welcome(&self, hello: &wire::Hello, credit_bytes: u64) -> Result<wire::Welcome, Status> {
        if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
            let (low, high) = (hello.protocol_min, hello.protocol_max);
            let what = format!("this bookie speaks protocol {PROTOCOL}, the caller {low} to {high}");
            return Err(refused(Code::WRONG_PROTOCOL, &what));
        }
        self.is_me(&hello.cluster, &hello.bookie)?;
        Ok(wire::Welcome {
            protocol: PROTOCOL,
            cluster: self.cluster.clone(),
            bookie: self.me.id.as_str().to_owned(),
            incarnation: self.me.incarnation.0,
            // None so far, so none in common.
            features: Vec::new(),
            credit_bytes,
            message_bytes_max: self.config.message_bytes_max as u64,
        })
    }

    /// A place for another stream; held until it ends.
    pub(super) fn place(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        let place = self.streams.clone().try_acquire_owned();
        place.map_err(|_| refused(Code::TOO_MANY_REQUESTS, "as many streams are open as this bookie allows"))
    }

    /// Checks whom a control call is for; answers false when it is for another incarnation.
    pub(super) fn target(&self, target: Option<&wire::Target>) -> Result<bool, Status> {
        let target = target.ok_or_else(|| refused(Code::BAD_REQUEST, "a control call without a target"))?;
        if target.protocol != PROTOCOL {
            let what = format!("this bookie speaks protocol {PROTOCOL}, the caller {}", target.protocol);
            return Err(refused(Code::WRONG_PROTOCOL, &what));
        }
        self.is_me(&target.cluster, &target.bookie)?;
        Ok(Incarnation(target.incarnation) == self.me.incarnation)
    }
}
