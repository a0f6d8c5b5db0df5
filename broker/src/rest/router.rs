//! Method and path → handler.

use super::request::{Req, domain_of};
use super::response::{Answer, RestError, empty};
use super::{Rest, cluster, namespaces, schemas, tenants, topics};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};

pub(super) fn router(rest: Rest) -> Router {
    Router::new().fallback(handle).with_state(rest)
}

async fn handle(State(rest): State<Rest>, request: Request) -> Response<Body> {
    let uri = request.uri().clone();
    let answer = match Req::read(request).await {
        Ok(req) => route(&rest, &req).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| {
        let location = error.elsewhere.as_ref().map(|url| format!("{url}{uri}"));
        if error.is_failure()
            && let Some(others) = rest.failures.again(rest.clock.mono())
        {
            tracing::warn!(status = error.status.as_u16(), reason = %error.reason, others, "rest request failed");
        }
        let mut response = error.into_response();
        if let Some(location) = location.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    })
}

async fn route(rest: &Rest, req: &Req) -> Answer {
    let path: Vec<&str> = req.segments.iter().map(String::as_str).collect();
    if let Some(error) = cluster::switched_off(&path) {
        return Err(error);
    }
    match path.as_slice() {
        ["metrics"] => metrics(rest, req).await,
        ["lookup", "v2", "topic", path @ ..] => cluster::lookup(rest, req, path).await,
        ["admin", "v2", "clusters", path @ ..] => cluster::clusters(rest, req, path).await,
        ["admin", "v2", "brokers", path @ ..] => cluster::brokers(rest, req, path).await,
        ["admin", "v2", "broker-stats", path @ ..] => cluster::broker_stats(rest, req, path).await,
        ["admin", "v2", "bookies", path @ ..] => cluster::bookies(rest, req, path).await,
        ["admin", "v2", "resourcegroups", path @ ..] => cluster::resource_groups(req, path),
        ["admin", "v2", "tenants", path @ ..] => tenants::route(rest, req, path).await,
        ["admin", "v2", "namespaces", path @ ..] => namespaces::route(rest, req, path).await,
        ["admin", "v2", "schemas", path @ ..] => schemas::route(rest, req, path).await,
        ["admin", "v2", domain, path @ ..] => match domain_of(domain) {
            Some(domain) => topics::route(rest, req, domain, path).await,
            None => Err(RestError::not_found("Not Found")),
        },
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// `/metrics` redirects to `/metrics/`, which scrapers follow; segments alone cannot tell the two apart.
async fn metrics(rest: &Rest, req: &Req) -> Answer {
    if req.method != Method::GET {
        return Err(RestError::not_allowed("Method Not Allowed"));
    }
    if !req.trailing_slash {
        let mut response = empty(StatusCode::MOVED_PERMANENTLY)?;
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/metrics/"));
        return Ok(response);
    }
    cluster::metrics(rest).await
}
