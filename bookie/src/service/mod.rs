//! The gRPC edge of a bookie: decode, call, encode. Nothing is decided here.
//!
//! | file | what it holds |
//! |---|---|
//! | `hello` | who may open a stream, and what it is told |
//! | `adds` | streams of adds: credits, range answers |
//! | `reads` | streams of reads, bounded in bytes |
//! | `control` | unary calls |
//! | `serves` | what is asked of the store behind it |
//!
//! No file is touched by a thread of the runtime: the store has its own. Memory is bounded: streams by their number; adds by credits,
//! which all streams take from one budget; reads by a budget for each stream; control calls by their number.

mod adds;
mod control;
mod hello;
mod reads;
mod serves;

pub use serves::Serves;

use futures::Stream;
use geminga_bookie_client::grpc::{CONNECTION_WINDOW, STREAM_WINDOW};
use geminga_bookie_client::rpc::{BookieRef, BookieRpc};
use geminga_common::budget::Budget;
use geminga_common::tasks::TaskGroup;
use geminga_proto::bookie as wire;
use geminga_proto::bookie::bookie_server::{self, BookieServer};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// Settings of the edge.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of adds that all streams together may leave unanswered. Default 256 MiB. Each stream gets a fixed share when it opens;
    /// when shares have run out, further streams are refused.
    pub add_bytes: u64,
    /// Share of one stream of adds, in bytes. Default 16 MiB; when less is left, what is left, down to 1 MiB.
    pub add_stream_bytes: u64,
    /// Bytes of answers that one stream of reads may have under way. Default 16 MiB.
    pub read_stream_bytes: u64,
    /// Bytes of one read's answer, but for an entry that alone is larger. Default 1 MiB.
    pub read_bytes_max: usize,
    /// Streams of adds and reads open at once. Default 1024; a caller has up to four.
    pub streams: usize,
    /// Control calls at work at once. Default 256.
    pub control_calls: usize,
    /// Largest message, in bytes: the largest entry and 1 MiB more.
    pub message_bytes_max: usize,
}

impl Config {
    /// Defaults for a store of this configuration.
    #[must_use]
    pub fn new(store: &crate::Config) -> Self {
        Self {
            add_bytes: 256 << 20,
            add_stream_bytes: 16 << 20,
            read_stream_bytes: 16 << 20,
            read_bytes_max: 1 << 20,
            streams: 1024,
            control_calls: 256,
            message_bytes_max: store.entry_bytes_max + (1 << 20),
        }
    }
}

/// A store as others reach it.
pub struct Service<S: Serves> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    bookie: S,
    /// What the store said it is when its service was made.
    me: BookieRef,
    cluster: String,
    config: Config,
    adds: Budget,
    streams: Arc<tokio::sync::Semaphore>,
    control: tokio::sync::Semaphore,
    tasks: TaskGroup,
    /// Where copies come from.
    peers: Arc<dyn BookieRpc>,
}

impl<S: Serves> Service<S> {
    /// A service over a store; its streams run in `tasks` and end with it. Copies for repair come from `peers`.
    #[must_use]
    pub fn new(
        bookie: S,
        cluster: &str,
        config: Config,
        peers: Arc<dyn BookieRpc>,
        tasks: TaskGroup,
    ) -> Self {
        let adds = Budget::new(config.add_bytes);
        let control = tokio::sync::Semaphore::new(config.control_calls);
        let streams = Arc::new(tokio::sync::Semaphore::new(config.streams));
        let cluster = cluster.to_owned();
        let me = bookie.me();
        Self {
            shared: Arc::new(Shared { bookie, me, cluster, config, adds, streams, control, tasks, peers }),
        }
    }

    /// Serves until the task group stops, then until open calls have ended.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        self.serve_on(TcpIncoming::from(listener).with_nodelay(Some(true))).await
    }

    /// The same over connections that come from elsewhere than a TCP listener.
    ///
    /// # Errors
    /// What brings the connections fails.
    pub async fn serve_on<C>(
        self,
        incoming: impl Stream<Item = io::Result<C>>,
    ) -> Result<(), tonic::transport::Error>
    where
        C: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static,
    {
        let stop = self.shared.tasks.token();
        let message_max = self.shared.config.message_bytes_max;
        let service = BookieServer::new(self)
            .max_decoding_message_size(message_max)
            .max_encoding_message_size(usize::MAX);
        tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(1 << 20)
            .max_concurrent_streams(CONCURRENT)
            // A peer that says nothing for this long is asked whether it is there.
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }
}

/// Calls at once on one connection.
const CONCURRENT: u32 = 256;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<S: Serves> bookie_server::Bookie for Service<S> {
    type AddStreamStream = Answers<wire::AddAnswers>;
    type ReadStreamStream = Answers<wire::ReadAnswers>;

    async fn add_stream(
        &self,
        request: Request<Streaming<wire::AddRequest>>,
    ) -> Answered<Self::AddStreamStream> {
        adds::open(self.shared.clone(), request.into_inner()).await
    }

    async fn read_stream(
        &self,
        request: Request<Streaming<wire::ReadRequest>>,
    ) -> Answered<Self::ReadStreamStream> {
        reads::open(self.shared.clone(), request.into_inner()).await
    }

    async fn fence_tail(&self, request: Request<wire::FenceTailRequest>) -> Answered<wire::FenceTailAnswer> {
        control::fence_tail(self.shared.clone(), request.into_inner()).await
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Answered<wire::ControlAnswer> {
        control::seal(self.shared.clone(), request.into_inner()).await
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Answered<wire::ControlAnswer> {
        control::delete(self.shared.clone(), request.into_inner()).await
    }

    async fn stat(&self, request: Request<wire::StatRequest>) -> Answered<wire::StatAnswer> {
        control::stat(self.shared.clone(), request.into_inner()).await
    }

    async fn replicate(&self, request: Request<wire::ReplicateRequest>) -> Answered<wire::ReplicateAnswer> {
        control::replicate(self.shared.clone(), request.into_inner()).await
    }

    async fn presence(&self, request: Request<wire::PresenceRequest>) -> Answered<wire::PresenceAnswer> {
        control::presence(self.shared.clone(), request.into_inner()).await
    }
}
