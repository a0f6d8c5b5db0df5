//! How connections to bookies are made: over TCP, or over what a simulation puts in its place.

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;
use tonic::transport::Uri;

/// A connection: bytes both ways, in order, until it breaks.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Pipe for T {}

type Connected = BoxFuture<'static, io::Result<Box<dyn Pipe>>>;

/// Makes connections to `host:port`.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(String) -> Connected + Send + Sync>);

impl Connector {
    /// A connector that calls `connect` for each connection, within the runtime of the transport.
    pub fn new(connect: impl Fn(String) -> Connected + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Pipe>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connected = (self.0)(address);
        async move { Ok(TokioIo::new(connected.await?)) }.boxed()
    }
}
