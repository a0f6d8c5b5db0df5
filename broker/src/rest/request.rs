//! One request taken apart: path segments, query, and a body read by Pulsar's lenient rules.
//!
//! Topic names in paths are encoded once, subscription names twice; in both `+` means a space, because Pulsar decodes them
//! as form values.

use super::api::Target;
use super::response::RestError;
use crate::namespace::lenient;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::names::{Domain, NamespaceName, SubscriptionName, TenantName, TopicName, percent_decode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Largest request body in bytes: a schema definition with room for its escapes.
const BODY_BYTES_MAX: usize = 4 << 20;
/// How long a client may take for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The content type of partition metadata with properties.
const PARTITIONED_METADATA: &str = "application/vnd.partitioned-topic-metadata+json";

type Properties = BTreeMap<String, String>;

pub(super) struct Req {
    pub(super) method: Method,
    pub(super) segments: Vec<String>,
    pub(super) trailing_slash: bool,
    query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

fn form_decode(text: &str) -> Option<String> {
    percent_decode(&text.replace('+', " "))
}

impl Req {
    pub(super) async fn read(request: Request) -> Result<Self, RestError> {
        let (parts, body) = request.into_parts();
        // Doubled slashes are let through: the Go client's tests send them, and Pulsar's container drops them too.
        let segments = parts.uri.path().split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        if parts.uri.path().contains("%00") {
            return Err(RestError::bad("a path must not hold %00"));
        }
        let trailing_slash = parts.uri.path().ends_with('/');
        let mut query = BTreeMap::new();
        for pair in parts.uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = form_decode(key).zip(form_decode(value));
            let (key, value) = decoded.ok_or_else(|| RestError::bad("the query is not properly encoded"))?;
            query.insert(key, value);
        }
        let body = read_body(&parts.headers, body).await?;
        Ok(Self { method: parts.method, segments, trailing_slash, query, headers: parts.headers, body })
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A flag of the query; absent is false, as is anything but `true`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    pub(super) fn flag_or(&self, name: &str, default: bool) -> bool {
        if self.query(name).is_some() { self.flag(name) } else { default }
    }

    pub(super) fn has_body(&self) -> bool {
        !self.body.is_empty()
    }

    fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub(super) fn is_partitioned_metadata(&self) -> bool {
        self.content_type().starts_with(PARTITIONED_METADATA)
    }

    /// The body as JSON; `None` when it is empty or `null`.
    pub(super) fn json(&self) -> Result<Option<Value>, RestError> {
        if self.body.is_empty() {
            return Ok(None);
        }
        let kind = self.content_type();
        let json = kind.starts_with("application/json")
            || (kind.starts_with("application/") && kind.contains("+json"));
        if !json {
            return Err(RestError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be application/json",
            ));
        }
        let value: Value = serde_json::from_slice(&self.body)
            .map_err(|e| RestError::bad(format!("the body is no JSON: {e}")))?;
        Ok(if value.is_null() { None } else { Some(value) })
    }

    /// The body as JSON, where Pulsar insists on one.
    pub(super) fn json_required(&self) -> Result<Value, RestError> {
        if self.body.is_empty() {
            return Err(RestError::bad("The request entity cannot be empty."));
        }
        Ok(self.json()?.unwrap_or(Value::Null))
    }

    /// As [`Self::json_required`], for the one body that clients also send as plain text: a partition count.
    pub(super) fn json_even_as_text(&self) -> Result<Value, RestError> {
        if self.content_type().starts_with("text/plain") && !self.body.is_empty() {
            return serde_json::from_slice(&self.body)
                .map_err(|e| RestError::bad(format!("the body is no JSON: {e}")));
        }
        self.json_required()
    }

    /// The body read into a type.
    pub(super) fn body_as<T: DeserializeOwned>(&self) -> Result<Option<T>, RestError> {
        self.json()?.map(typed).transpose()
    }

    /// The body as an integer.
    pub(super) fn integer(&self) -> Result<i64, RestError> {
        let value = self.json_required()?;
        lenient::integer(&value).ok_or_else(|| RestError::bad(format!("{value} is not a whole number")))
    }

    /// The body as a map of texts; empty when there is none.
    pub(super) fn properties(&self) -> Result<BTreeMap<String, String>, RestError> {
        Ok(self.body_as()?.unwrap_or_default())
    }

    /// The body as the place a subscription is put: a message id, or `"earliest"` or `"latest"`; with the properties a
    /// message id may carry.
    pub(super) fn target(&self) -> Result<Option<(Target, Properties)>, RestError> {
        let Some(value) = self.json()? else {
            return Ok(None);
        };
        match value {
            Value::String(text) => match text.as_str() {
                "earliest" => Ok(Some((Target::Earliest, BTreeMap::new()))),
                "latest" => Ok(Some((Target::Latest, BTreeMap::new()))),
                other => Err(RestError::bad(format!(
                    "Invalid value {other} for the position. Allowed values are [latest, earliest]"
                ))),
            },
            Value::Object(map) => {
                let number = |name: &str| map.get(name).map_or(Some(0), lenient::integer);
                let wrong = || RestError::bad("the body is not a message id");
                let (ledger, entry) =
                    (number("ledgerId").ok_or_else(wrong)?, number("entryId").ok_or_else(wrong)?);
                let properties = match map.get("properties") {
                    Some(value) if !value.is_null() => typed(value.clone())?,
                    _ => BTreeMap::new(),
                };
                let exclusive = map.get("isExcluded").or(map.get("excluded")).and_then(lenient::boolean);
                let batch = map.get("batchIndex").and_then(lenient::integer);
                let target = match (u64::try_from(ledger), u64::try_from(entry)) {
                    _ if ledger == i64::MAX || entry == i64::MAX => Target::Latest,
                    (Ok(ledger), Ok(entry)) => Target::At {
                        position: Position::new(LedgerId(ledger), EntryId(entry)),
                        batch_index: batch.and_then(|b| u32::try_from(b).ok()),
                        exclusive: exclusive.unwrap_or(false),
                    },
                    // Before the first entry of a ledger is its first entry.
                    (Ok(ledger), Err(_)) => Target::At {
                        position: Position::new(LedgerId(ledger), EntryId(0)),
                        batch_index: None,
                        exclusive: false,
                    },
                    _ => Target::Earliest,
                };
                Ok(Some((target, properties)))
            }
            other => Err(RestError::bad(format!("{other} is not a message id"))),
        }
    }
}

/// A JSON value read into a type.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, RestError> {
    serde_json::from_value(value).map_err(|error| RestError::bad(format!("the body does not fit: {error}")))
}

async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, RestError> {
    let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
    if encoded {
        return Err(RestError::bad("encoded request bodies are not accepted"));
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let late = |_| {
        let text = format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        RestError::new(StatusCode::REQUEST_TIMEOUT, text)
    };
    read.map_err(late)?.map_err(|_| {
        RestError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a request body has at most {BODY_BYTES_MAX} bytes"),
        )
    })
}

pub(super) fn tenant_of(text: &str) -> Result<TenantName, RestError> {
    let decoded = percent_decode(text).unwrap_or_default();
    TenantName::parse(&decoded)
        .map_err(|error| RestError::precondition(format!("Tenant name is not valid: {error}")))
}

pub(super) fn namespace_of(tenant: &str, local: &str) -> Result<NamespaceName, RestError> {
    let wrong = |error| RestError::precondition(format!("Namespace name is not valid: {error}"));
    let (tenant, local) =
        (percent_decode(tenant).unwrap_or_default(), percent_decode(local).unwrap_or_default());
    NamespaceName::new(TenantName::parse(&tenant).map_err(wrong)?, &local).map_err(wrong)
}

pub(super) fn domain_of(text: &str) -> Option<Domain> {
    Domain::parse(text).ok()
}

pub(super) fn topic_of(
    domain: Domain,
    namespace: NamespaceName,
    encoded: &str,
) -> Result<TopicName, RestError> {
    let wrong = || RestError::precondition("Topic name is not valid");
    let local = form_decode(encoded).ok_or_else(wrong)?;
    TopicName::new(domain, namespace, &local)
        .map_err(|error| RestError::precondition(format!("Topic name is not valid: {error}")))
}

pub(super) fn subscription_of(encoded: &str) -> Result<SubscriptionName, RestError> {
    let wrong = || RestError::precondition("Subscription name is not valid");
    let once = percent_decode(encoded).ok_or_else(wrong)?;
    // The second decoding may meet a bare `%` that the client never meant as an escape.
    let twice = form_decode(&once).unwrap_or(once);
    SubscriptionName::parse(&twice).map_err(|_| wrong())
}

/// A number in a path; another text there is another path (404).
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, RestError> {
    text.parse().map_err(|_| RestError::not_found(format!("'{text}' is not a number in range")))
}
