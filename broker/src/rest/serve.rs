//! The HTTP port: connections with places of their own, requests that have to arrive in time.
//!
//! Places are few. A client that opens a connection and does not go on would keep one as long as it likes, and with all of them
//! health checks and metrics out: so a request's head has [`HEAD_TIMEOUT`], and its body as long (`request`).

use crate::doors::{Door, Place};
use axum::Router;
use geminga_common::clock::Clock;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a client may take for the head of a request, from the connection's begin or the last answer on.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until told to stop; requests under way are finished.
pub(super) async fn serve(
    listener: TcpListener,
    door: Arc<Door>,
    clock: Arc<dyn Clock>,
    router: Router,
    head_timeout: Duration,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (stream, _, place) = door.accept(&listener, &*clock) => {
                connections.spawn(connection(stream, place, router.clone(), head_timeout, stop.clone()));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    _place: Place,
    router: Router,
    head_timeout: Duration,
    stop: CancellationToken,
) {
    let _latency_over_packets = stream.set_nodelay(true);
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::{Bounds, Doors};
    use axum::routing::get;
    use geminga_common::clock::SystemClock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// With every place taken by a head that does not end, others are let in once its time is up.
    #[tokio::test]
    async fn a_request_that_never_arrives_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let doors = Doors::new(Bounds { pulsar: 1, http: 2 });
        let router = Router::new().route("/here", get(async || "yes"));
        let stop = CancellationToken::new();
        let patience = Duration::from_millis(300);
        let serving =
            serve(listener, doors.http.clone(), SystemClock::shared(), router, patience, stop.clone());
        let clients = async {
            let mut held = Vec::new();
            for head in ["GET /here HTTP/1.1\r\nHost: a\r\n", ""] {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(head.as_bytes()).await.unwrap();
                held.push(client);
            }
            let asked = async || {
                let mut client = TcpStream::connect(address).await?;
                client.write_all(b"GET /here HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
                let mut answer = String::new();
                client.read_to_string(&mut answer).await?;
                std::io::Result::Ok(answer)
            };
            for _ in 0..100 {
                if asked().await.is_ok_and(|answer| answer.ends_with("yes")) {
                    stop.cancel();
                    return doors.http.figures().3;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("nobody is let in");
        };
        let ((), refused) = tokio::join!(serving, clients);
        assert!(refused > 0, "there was a place from the beginning");
    }
}
