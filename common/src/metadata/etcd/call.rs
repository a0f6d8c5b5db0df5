//! One call to etcd: its time limit, what its failure means for the caller, and whether it may be made again.
//!
//! A status code alone does not tell whether a transaction happened: a leader that steps down and a connection that breaks both
//! answer `Unavailable`. Only refusals that etcd makes before or instead of applying, and connections that were never made,
//! count as "not done".

use super::super::{LeaseId, MetaError};
use etcd_client::Error;
use std::future::Future;
use std::time::Duration;

/// gRPC status numbers that are told apart. etcd-client shows tonic's status, but not tonic.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
pub(super) const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;

/// Attempts at a call that may be made again.
const ATTEMPTS: u32 = 3;
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection was never made: nothing was sent.
    NotSent(String),
    /// etcd refused it; nothing was done, and asking again is of no use.
    Refused(String),
    /// The lease of the call does not exist.
    LeaseGone,
    /// The answer was too large to take, or the revision asked for is compacted.
    TooFar,
    /// No answer, or one that does not tell.
    Doubt(String),
}

impl Failure {
    /// For a call that changes nothing.
    pub(super) fn of_read(self) -> MetaError {
        match self {
            Failure::NotSent(why) | Failure::Refused(why) | Failure::Doubt(why) => {
                MetaError::Unavailable(why)
            }
            Failure::LeaseGone => MetaError::Unavailable("etcd does not know what was asked for".to_owned()),
            Failure::TooFar => MetaError::Unavailable("an answer of etcd is too large".to_owned()),
        }
    }

    /// For a call about one lease. In doubt it says so: the lease may live.
    pub(super) fn of_lease(self, lease: LeaseId) -> MetaError {
        match self {
            Failure::LeaseGone => MetaError::LeaseGone(lease),
            Failure::Doubt(why) => MetaError::Unknown(why),
            other => other.of_read(),
        }
    }
}

fn classify(error: Error) -> Failure {
    let status = match error {
        Error::GRpcStatus(status) => status,
        // The crate's only use of this one for a keep-alive: etcd answered a time to live of 0.
        Error::LeaseKeepAliveError(_) => return Failure::LeaseGone,
        Error::InvalidArgs(why) => return Failure::Refused(why),
        other => return Failure::Doubt(other.to_string()),
    };
    let text = status.message().to_owned();
    match status.code() as i32 {
        NOT_FOUND => Failure::LeaseGone,
        OUT_OF_RANGE => Failure::TooFar,
        INVALID_ARGUMENT | PERMISSION_DENIED | RESOURCE_EXHAUSTED | FAILED_PRECONDITION | UNIMPLEMENTED
        | UNAUTHENTICATED => Failure::Refused(text),
        _ if never_connected(&status) => Failure::NotSent(text),
        _ => Failure::Doubt(text),
    }
}

/// Whether the system said that there is nobody to connect to; errors of a connection that once stood are of other kinds.
fn never_connected(status: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && matches!(
                error.kind(),
                ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable
            )
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls {
    timeout: Duration,
}

impl Calls {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout }
    }

    /// One attempt.
    pub(super) async fn once<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map_err(classify),
            Err(_) => Err(Failure::Doubt(format!("no answer within {} ms", self.timeout.as_millis()))),
        }
    }

    /// Attempts while `again` allows another after a failure.
    async fn attempts<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
        again: impl Fn(&Failure) -> bool,
    ) -> Result<T, Failure> {
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.once(call()).await {
                Err(failure) if again(&failure) => tokio::time::sleep(pause).await,
                settled => return settled,
            }
            pause *= 2;
        }
        self.once(call()).await
    }

    /// A call that does no harm when it happens twice.
    pub(super) async fn idempotent<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, Failure> {
        self.attempts(call, |failure| matches!(failure, Failure::NotSent(_) | Failure::Doubt(_))).await
    }

    /// A call that must not happen twice: made again only when the attempt before never left this process.
    pub(super) async fn at_most_once<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, Failure> {
        self.attempts(call, |failure| matches!(failure, Failure::NotSent(_))).await
    }

    /// An idempotent call whose failure is a read's.
    pub(super) async fn read<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, MetaError> {
        self.idempotent(call).await.map_err(Failure::of_read)
    }
}
