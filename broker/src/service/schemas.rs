//! GET_SCHEMA, GET_OR_CREATE_SCHEMA, and the schema checks of PRODUCER and SUBSCRIBE (`pulsar-map` 3.8).

use super::connection::Connection;
use super::respond;
use super::wire_error::server_error;
use crate::broker::Broker;
use crate::schema::{SchemaData, SchemaError, SchemaType, SchemaVersion, Source};
use crate::topic::TopicError;
use bytes::Bytes;
use geminga_common::error::Code;
use geminga_common::names::TopicName;
use geminga_common::tasks::OnFailure;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, ServerError};

/// The registry's form of a schema; `None` when there is nothing to register or check. Type 0, plain bytes, is a schema like any
/// other to Pulsar.
fn data(broker: &Broker, schema: &wire::Schema) -> Option<SchemaData> {
    let schema_type = SchemaType(schema.r#type);
    if schema_type == SchemaType::AUTO_CONSUME {
        return None;
    }
    Some(SchemaData {
        schema_type,
        name: schema.name.clone(),
        data: schema.schema_data.clone(),
        properties: schema.properties.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect(),
        timestamp_ms: broker.clock.wall_ms(),
        user: String::new(),
    })
}

fn refusal(error: SchemaError) -> TopicError {
    match error {
        SchemaError::NotFound => TopicError::IncompatibleSchema("the topic has no schema".to_owned()),
        SchemaError::Incompatible(_) => TopicError::IncompatibleSchema(error.to_string()),
        SchemaError::TooLarge(_) | SchemaError::UnknownType(_) | SchemaError::TooManyVersions => {
            TopicError::IncompatibleSchema(error.to_string())
        }
        SchemaError::Metadata(error) => TopicError::metadata(&error),
        SchemaError::Decode(_) => TopicError::Metadata(Code::RECORD_UNREADABLE, error.to_string()),
        SchemaError::Conflict => TopicError::Metadata(Code::CONFLICT, error.to_string()),
    }
}

/// Registers a producer's schema; its version's bytes.
pub(super) async fn add(
    broker: &Broker,
    topic: &TopicName,
    schema: &wire::Schema,
) -> Result<Bytes, TopicError> {
    let Some(data) = data(broker, schema) else {
        return check_schemaless(broker, topic).await.map(|()| Bytes::new());
    };
    let (strategy, may_add) = broker.schema_rules(topic);
    let base = topic.base();
    let source = Source::Producer { may_add };
    let version = broker.schemas.get_or_create(&base, &data, strategy, source).await.map_err(refusal)?;
    Ok(version.to_bytes())
}

/// A producer without a schema on a topic that has one: refused where validation is enforced.
pub(super) async fn check_schemaless(broker: &Broker, topic: &TopicName) -> Result<(), TopicError> {
    if !broker.schema_validation_enforced(topic) {
        return Ok(());
    }
    match broker.schemas.latest(&topic.base()).await.map_err(refusal)? {
        None => Ok(()),
        Some(_) => Err(TopicError::IncompatibleSchema(
            "the topic has a schema and schema validation is enforced: a producer needs a schema".to_owned(),
        )),
    }
}

/// Checks a consumer's schema against the topic's, or registers it on a topic that has none and has not been used.
pub(super) async fn check_consumer(
    broker: &Broker,
    topic: &TopicName,
    schema: &wire::Schema,
    idle: bool,
) -> Result<(), TopicError> {
    let Some(data) = data(broker, schema) else { return Ok(()) };
    let (strategy, _) = broker.schema_rules(topic);
    let base = topic.base();
    let outcome = match broker.schemas.check_consumer(&base, &data, strategy).await {
        Err(SchemaError::NotFound) if idle => {
            broker.schemas.get_or_create(&base, &data, strategy, Source::Consumer).await
        }
        outcome => outcome,
    };
    outcome.map(|_version| ()).map_err(refusal)
}

/// GET_SCHEMA: the latest, or the one of a version.
pub(super) fn get(c: &Connection, command: wire::CommandGetSchema) {
    let (broker, peer) = (c.broker.clone(), c.peer.asks());
    c.broker.tasks.spawn("get schema", OnFailure::Log, async move {
        let found = find(&broker, &command).await;
        let mut response =
            wire::CommandGetSchemaResponse { request_id: command.request_id, ..Default::default() };
        match found {
            Ok((version, schema)) => {
                response.schema_version = Some(version.to_bytes());
                response.schema = Some(schema);
            }
            Err((code, text)) => {
                response.error_code = Some(code as i32);
                response.error_message = Some(text);
            }
        }
        respond::command(&peer, Type::GetSchemaResponse, |c| {
            c.get_schema_response = Some(Box::new(response));
        });
    });
}

async fn find(
    broker: &Broker,
    command: &wire::CommandGetSchema,
) -> Result<(SchemaVersion, wire::Schema), (ServerError, String)> {
    let name = TopicName::parse(&command.topic)
        .map_err(|error| (ServerError::InvalidTopicName, error.to_string()))?
        .base();
    let stored = match &command.schema_version {
        None => broker.schemas.latest(&name).await,
        Some(bytes) => {
            let version = SchemaVersion::from_bytes(bytes)
                .ok_or((ServerError::IncompatibleSchema, "a schema version has 8 bytes".to_owned()))?;
            broker.schemas.get(&name, version).await
        }
    };
    match stored {
        Ok(Some(stored)) => {
            let schema = wire::Schema {
                // Pulsar names a schema after its topic, whatever the client called it.
                name: name.as_str().split_once("://").map_or("", |(_, path)| path).to_owned(),
                schema_data: stored.schema.data,
                r#type: stored.schema.schema_type.0,
                properties: stored
                    .schema
                    .properties
                    .into_iter()
                    .map(|(key, value)| wire::KeyValue { key, value })
                    .collect(),
            };
            Ok((stored.version, schema))
        }
        // Clients read this code as "no schema".
        Ok(None) | Err(SchemaError::NotFound) => {
            Err((ServerError::TopicNotFound, format!("topic {name} has no such schema")))
        }
        Err(error) => Err((ServerError::MetadataError, error.to_string())),
    }
}

/// GET_OR_CREATE_SCHEMA.
pub(super) fn get_or_create(c: &Connection, command: wire::CommandGetOrCreateSchema) {
    let (broker, peer) = (c.broker.clone(), c.peer.asks());
    c.broker.tasks.spawn("get or create schema", OnFailure::Log, async move {
        let outcome = match TopicName::parse(&command.topic) {
            Ok(name) => match broker.topic(&name, false).await {
                // Plain bytes need no version here; a producer that names them gets one.
                Ok(_) if command.schema.r#type == SchemaType::NONE.0 => Ok(Bytes::new()),
                Ok(_) => add(&broker, &name, &command.schema).await,
                Err(refused) => Err(refused),
            },
            Err(error) => Err(TopicError::InvalidName(error.to_string())),
        };
        let mut response =
            wire::CommandGetOrCreateSchemaResponse { request_id: command.request_id, ..Default::default() };
        match outcome {
            Ok(version) => response.schema_version = Some(version),
            Err(refused) => {
                response.error_code = Some(server_error(&refused) as i32);
                response.error_message = Some(refused.to_string());
            }
        }
        respond::command(&peer, Type::GetOrCreateSchemaResponse, |c| {
            c.get_or_create_schema_response = Some(Box::new(response));
        });
    });
}
