//! Schemas.

use super::Rest;
use super::request::{Req, namespace_of, number, topic_of};
use super::response::{Answer, RestError, ok, status_json};
use crate::namespace::SchemaCompatibility;
use crate::schema::{Refusal, SchemaData, SchemaError, SchemaType, SchemaVersion, Source, StoredSchema};
use axum::http::{Method, StatusCode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use geminga_common::names::{Domain, TopicName};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const METHOD: &str = "Method Not Allowed";

pub(super) async fn route(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    let [tenant, namespace, topic, path @ ..] = path else {
        return Err(RestError::not_found("Not Found"));
    };
    let topic = topic_of(Domain::Persistent, namespace_of(tenant, namespace)?, topic)?;
    match (&req.method, path) {
        (&Method::GET, ["schema"]) => show(&rest.schemas.latest(&topic).await?.ok_or(SchemaError::NotFound)?),
        (&Method::GET, ["schema", version]) => {
            let version: i64 = number(version)?;
            let version = u64::try_from(version).map_err(|_| SchemaError::NotFound)?;
            show(&rest.schemas.get(&topic, SchemaVersion(version)).await?.ok_or(SchemaError::NotFound)?)
        }
        (&Method::GET, ["schemas"]) => {
            let all = rest.schemas.all(&topic).await?;
            let shown: Result<Vec<Value>, RestError> = all.iter().map(shape).collect();
            ok(&json!({ "getSchemaResponses": shown? }))
        }
        (&Method::DELETE, ["schema"]) => ok(&json!({ "version": rest.schemas.delete(&topic).await?.0 })),
        (&Method::POST, ["schema"]) => post(rest, req, &topic).await,
        (&Method::POST, ["compatibility"]) => compatibility(rest, req, &topic).await,
        (&Method::POST, ["version"]) => {
            let found = rest.schemas.version_of(&topic, &given(rest, req)?).await?;
            ok(&json!({ "version": found.map_or(-1, |version| version.0 as i64) }))
        }
        (&Method::GET, ["metadata"]) => Err(RestError::not_implemented("schema storage metadata")),
        (_, ["schema" | "schemas" | "compatibility" | "version" | "metadata", ..]) => {
            Err(RestError::not_allowed(METHOD))
        }
        _ => Err(RestError::not_found("Not Found")),
    }
}

/// The strategy that holds for a topic: its own, its namespace's, else FULL.
fn strategy(rest: &Rest, topic: &TopicName) -> SchemaCompatibility {
    let own = rest.namespaces.topic_record(topic).and_then(|record| record.policies.schema_compatibility);
    let inherited = || rest.namespaces.policies(topic.namespace()).map(|p| p.schema_compatibility_strategy);
    match own.or_else(inherited) {
        Some(SchemaCompatibility::Undefined) | None => SchemaCompatibility::Full,
        Some(set) => set,
    }
}

async fn post(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    rest.namespaces.live_policies(topic.namespace())?;
    let schema = given(rest, req)?;
    let version = rest.schemas.get_or_create(topic, &schema, strategy(rest, topic), Source::Admin).await?;
    ok(&json!({ "version": { "version": version.0 } }))
}

/// Pulsar answers 500 when the test fails; here the test's outcome is the answer.
async fn compatibility(rest: &Rest, req: &Req, topic: &TopicName) -> Answer {
    let (schema, strategy) = (given(rest, req)?, strategy(rest, topic));
    let fits = match rest.schemas.check_consumer(topic, &schema, strategy).await {
        Ok(_) | Err(SchemaError::NotFound) => true,
        // Whether they agree is not known: saying no would be as wrong as saying yes.
        Err(SchemaError::Incompatible(refusal @ Refusal::NotJudged)) => {
            return Err(RestError::not_implemented(format!("this check ({refusal})")));
        }
        Err(SchemaError::Incompatible(_)) => false,
        Err(error) => return Err(error.into()),
    };
    status_json(
        StatusCode::ACCEPTED,
        &json!({ "schemaCompatibilityStrategy": strategy, "compatibility": fits }),
    )
}

#[derive(Deserialize)]
struct Posted {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    schema: Option<String>,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
}

fn given(rest: &Rest, req: &Req) -> Result<SchemaData, RestError> {
    let unprocessable = |text: String| RestError::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    let posted: Option<Posted> = req.body_as()?;
    let posted = posted.ok_or_else(|| RestError::bad("The request entity cannot be empty."))?;
    // Plain bytes are no schema, as Pulsar stores them.
    let kind = if posted.kind == "BYTES" { "NONE" } else { posted.kind.as_str() };
    let schema_type = SchemaType::of_name(kind)
        .ok_or_else(|| unprocessable(format!("'{}' is no schema type", posted.kind)))?;
    let text = posted.schema.unwrap_or_default();
    let described = matches!(schema_type, SchemaType::JSON | SchemaType::AVRO);
    if described && serde_json::from_str::<Value>(&text).is_err() {
        return Err(unprocessable("Invalid schema definition data: it is not JSON".to_owned()));
    }
    let data = match schema_type {
        SchemaType::KEY_VALUE => key_value_bytes(&text).ok_or_else(|| {
            unprocessable("a KEY_VALUE schema is a JSON object with the members key and value".to_owned())
        })?,
        t if t.is_primitive() => Bytes::new(),
        _ => Bytes::from(text),
    };
    Ok(SchemaData {
        schema_type,
        name: String::new(),
        data,
        properties: posted.properties.unwrap_or_default(),
        timestamp_ms: rest.clock.wall_ms(),
        user: String::new(),
    })
}

/// The two parts of a key-value schema. Kept raw: reading and printing them again would reorder their members, and a
/// definition with other bytes is another schema.
#[derive(Deserialize)]
struct KeyValue<'a> {
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// Stored form of a key-value schema: each part behind its length, 4 bytes big-endian. A quoted part is unquoted.
fn key_value_bytes(text: &str) -> Option<Bytes> {
    let parts: KeyValue = serde_json::from_str(text).ok()?;
    let mut out = BytesMut::new();
    for raw in [parts.key, parts.value] {
        let part = serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
        out.put_u32(u32::try_from(part.len()).ok()?);
        out.put_slice(part.as_bytes());
    }
    Some(out.freeze())
}

fn key_value_text(mut data: Bytes) -> Option<String> {
    let mut part = || -> Option<String> {
        let size = data.try_get_u32().ok()?;
        // −1 is the length of a part without definition.
        let size = if size == u32::MAX { 0 } else { size as usize };
        if size > data.len() {
            return None;
        }
        let text = String::from_utf8(data.split_to(size).to_vec()).ok()?;
        let is_json = serde_json::from_str::<&RawValue>(&text).is_ok();
        Some(if is_json { text } else { Value::String(text).to_string() })
    };
    let (key, value) = (part()?, part()?);
    Some(format!("{{\"key\":{key},\"value\":{value}}}"))
}

fn show(stored: &StoredSchema) -> Answer {
    ok(&shape(stored)?)
}

fn shape(stored: &StoredSchema) -> Result<Value, RestError> {
    let schema = &stored.schema;
    let text = match schema.schema_type {
        SchemaType::KEY_VALUE => key_value_text(schema.data.clone()),
        _ => None,
    };
    Ok(json!({
        "version": stored.version,
        "type": schema.schema_type.name(),
        "timestamp": schema.timestamp_ms,
        "data": text.unwrap_or_else(|| String::from_utf8_lossy(&schema.data).into_owned()),
        "properties": schema.properties,
    }))
}
