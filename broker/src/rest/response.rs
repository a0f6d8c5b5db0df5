//! Answers and error bodies, and the one place where errors of the rooms below become status codes.

use super::api::{ApiError, Place};
use crate::namespace::{NamespaceError, ResolveError};
use crate::schema::{Refusal, SchemaError};
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use geminga_common::error::Coded as _;
use geminga_common::metadata::MetaError;
use geminga_common::names::NameError;
use serde::Serialize;
use serde_json::json;

/// What a handler answers.
pub(super) type Answer = Result<Response<Body>, RestError>;

/// An error answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestError {
    /// Status code.
    pub status: StatusCode,
    /// Why, for people.
    pub reason: String,
    /// HTTP service URL of the broker to ask instead; the path stays the same.
    pub elsewhere: Option<String>,
}

impl RestError {
    /// An error with the body `{"reason":…}`.
    #[must_use]
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), elsewhere: None }
    }

    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    pub(super) fn not_allowed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, reason)
    }

    pub(super) fn conflict(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, reason)
    }

    pub(super) fn precondition(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, reason)
    }

    pub(super) fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not part of this release"))
    }

    /// Metadata that cannot be had now, or a change too large for them, with the code: their text says what to do.
    fn metadata(error: &MetaError) -> Self {
        let status = match error {
            MetaError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, format!("{}: {error}", error.code()))
    }

    /// Whether people should know: something here failed, the request is not to blame.
    pub(super) fn is_failure(&self) -> bool {
        self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED
    }

    pub(super) fn into_response(self) -> Response<Body> {
        with_type(self.status, "application/json", json!({ "reason": self.reason }).to_string())
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 200 with JSON.
pub(super) fn ok(value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value)
        .map_err(|error| RestError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(with_type(StatusCode::OK, "application/json", body))
}

/// Any status with JSON.
pub(super) fn status_json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut response = ok(value)?;
    *response.status_mut() = status;
    Ok(response)
}

/// 200 with bare text, which Pulsar labels as JSON.
pub(super) fn ok_text(text: impl Into<String>) -> Answer {
    Ok(with_type(StatusCode::OK, "application/json", text.into()))
}

/// 200 with a body of a named type.
pub(super) fn ok_typed(content_type: &'static str, body: impl Into<Body>) -> Answer {
    Ok(with_type(StatusCode::OK, content_type, body))
}

/// 204.
pub(super) fn done() -> Answer {
    empty(StatusCode::NO_CONTENT)
}

/// A status without body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    Ok(response)
}

/// An unset policy: 200 without body or content type.
pub(super) fn unset() -> Answer {
    empty(StatusCode::OK)
}

/// A message id as REST prints it.
pub(super) fn message_id(place: Place) -> serde_json::Value {
    let number = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
    json!({
        "ledgerId": number(place.ledger.map(|l| l.0)),
        "entryId": number(place.entry.map(|e| e.0)),
        "partitionIndex": -1,
        "batchSize": 0,
        "batchIndex": -1,
    })
}

impl From<ApiError> for RestError {
    fn from(error: ApiError) -> Self {
        let status = match &error {
            ApiError::TopicNotFound(_)
            | ApiError::SubscriptionNotFound { .. }
            | ApiError::MessageNotFound(_) => StatusCode::NOT_FOUND,
            ApiError::Exists(_) | ApiError::NothingToDo(_) => StatusCode::CONFLICT,
            ApiError::Busy(_) | ApiError::Precondition(_) => StatusCode::PRECONDITION_FAILED,
            ApiError::NotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::NotSupported(_) => StatusCode::NOT_IMPLEMENTED,
            ApiError::Elsewhere(_) => StatusCode::TEMPORARY_REDIRECT,
            ApiError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let reason = error.to_string();
        let elsewhere = match error {
            ApiError::Elsewhere(url) => Some(url),
            _ => None,
        };
        Self { elsewhere, ..Self::new(status, reason) }
    }
}

impl From<NamespaceError> for RestError {
    fn from(error: NamespaceError) -> Self {
        use NamespaceError as E;
        let status = match &error {
            E::TenantNotFound(_) | E::NamespaceNotFound(_) | E::Resolve(ResolveError::NotFound(_)) => {
                StatusCode::NOT_FOUND
            }
            E::TenantExists(_)
            | E::TenantNotEmpty(_)
            | E::NamespaceExists(_)
            | E::NamespaceNotEmpty(_)
            | E::NamespaceDeleting(_)
            | E::TopicExists(_)
            | E::NotPartitioned(_)
            | E::Conflict => StatusCode::CONFLICT,
            E::PartitionsFewer { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            E::PartitionCount(_) => StatusCode::NOT_ACCEPTABLE,
            E::PartitionOfPartition(_) | E::TooManyTopics(_) | E::Resolve(_) => {
                StatusCode::PRECONDITION_FAILED
            }
            E::Refused(_) => StatusCode::PRECONDITION_FAILED,
            E::Decode(_) => StatusCode::INTERNAL_SERVER_ERROR,
            E::Metadata(error) => return Self::metadata(error),
        };
        Self::new(status, error.to_string())
    }
}

impl From<SchemaError> for RestError {
    fn from(error: SchemaError) -> Self {
        let status = match &error {
            SchemaError::NotFound => StatusCode::NOT_FOUND,
            // Pulsar answers these two as a page of its web container; the status is kept.
            SchemaError::Incompatible(Refusal::AutoUpdateOff | Refusal::AlwaysIncompatible)
            | SchemaError::Incompatible(Refusal::OtherType | Refusal::NotJudged)
            | SchemaError::Conflict => StatusCode::CONFLICT,
            SchemaError::TooLarge(_) | SchemaError::UnknownType(_) => StatusCode::UNPROCESSABLE_ENTITY,
            SchemaError::TooManyVersions => StatusCode::PRECONDITION_FAILED,
            SchemaError::Decode(_) => StatusCode::INTERNAL_SERVER_ERROR,
            SchemaError::Metadata(error) => return Self::metadata(error),
        };
        Self::new(status, error.to_string())
    }
}

impl From<NameError> for RestError {
    fn from(error: NameError) -> Self {
        Self::precondition(match error {
            NameError::EmptyTenant => "Tenant name is not valid".to_owned(),
            NameError::ForbiddenCharacter(..)
            | NameError::PathStep(_)
            | NameError::EmptyNamespace
            | NameError::EntityTooLong(_) => format!("Namespace name is not valid: {error}"),
            other => format!("Topic name is not valid: {other}"),
        })
    }
}
