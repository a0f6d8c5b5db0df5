//! LOOKUP, PARTITIONED_METADATA, GET_TOPICS_OF_NAMESPACE.

use super::connection::Connection;
use super::respond;
use super::wire_error::lookup_error;
use crate::namespace::ownership::Place;
use crate::namespace::{DomainMode, NamespaceError, Pattern, filter_topics, topics_hash};
use crate::topic::TopicError;

use crate::topic::peer::Peer;
use geminga_common::ids::RequestId;
use geminga_common::names::{NamespaceName, TopicName};
use geminga_common::tasks::OnFailure;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, ServerError};

/// Longest topic pattern that is applied here; longer ones are the client's to apply, as on Pulsar.
const PATTERN_MAX: usize = 50;

/// PARTITIONED_METADATA: how many partitions; creates the metadata where auto-creation says so.
pub(super) fn partitions(c: &Connection, command: wire::CommandPartitionedTopicMetadata) {
    let (broker, peer) = (c.broker.clone(), c.peer.asks());
    c.broker.tasks.spawn("partition metadata", OnFailure::Log, async move {
        let may_create = command.metadata_auto_creation_enabled();
        let partitions = match parse(&command.topic) {
            Ok(name) => broker.partitions(&name, may_create).await,
            Err(refused) => Err(refused),
        };
        use wire::command_partitioned_topic_metadata_response::LookupType;
        let response = match partitions {
            Ok(partitions) => wire::CommandPartitionedTopicMetadataResponse {
                partitions: Some(partitions),
                request_id: command.request_id,
                response: Some(LookupType::Success as i32),
                ..Default::default()
            },
            Err(refused) => wire::CommandPartitionedTopicMetadataResponse {
                request_id: command.request_id,
                response: Some(LookupType::Failed as i32),
                error: Some(lookup_error(&refused) as i32),
                message: Some(refused.to_string()),
                ..Default::default()
            },
        };
        respond::command(&peer, Type::PartitionedMetadataResponse, |c| {
            c.partition_metadata_response = Some(Box::new(response));
        });
    });
}

/// LOOKUP: the broker that owns the topic's bundle, which is this one if nobody does.
pub(super) fn lookup(c: &Connection, command: wire::CommandLookupTopic) {
    let (broker, peer) = (c.broker.clone(), c.peer.asks());
    c.broker.tasks.spawn("lookup", OnFailure::Log, async move {
        let checked = match parse(&command.topic) {
            Ok(name) => match broker.check_namespace(&name).await {
                Ok(()) => broker.place(&name).await,
                Err(refused) => Err(refused),
            },
            Err(refused) => Err(refused),
        };
        let listener = command.advertised_listener_name.as_deref().filter(|name| !name.is_empty());
        match (checked, listener) {
            (Err(refused), _) => {
                lookup_failed(&peer, command.request_id, lookup_error(&refused), refused.to_string());
            }
            // C++ clients recognise this wording as "no such listener".
            (Ok(_), Some(name)) => lookup_failed(
                &peer,
                command.request_id,
                ServerError::ServiceNotReady,
                format!("the broker do not have {name} listener"),
            ),
            (Ok(place), None) => {
                let (url, here) = match place {
                    Place::Mine(_) => (broker.service_url(), true),
                    Place::Other(member) => (member.pulsar_url, false),
                };
                respond::command(&peer, Type::LookupResponse, |c| {
                    c.lookup_topic_response = Some(Box::new(wire::CommandLookupTopicResponse {
                        broker_service_url: Some(url),
                        response: Some(wire::command_lookup_topic_response::LookupType::Connect as i32),
                        request_id: command.request_id,
                        authoritative: Some(true),
                        // An address on the loopback may be forwarded to: let clients keep the one they know.
                        proxy_through_service_url: Some(here && broker.is_loopback()),
                        ..Default::default()
                    }));
                });
            }
        }
    });
}

fn lookup_failed(peer: &Peer, request_id: u64, code: ServerError, message: String) {
    respond::command(peer, Type::LookupResponse, |c| {
        c.lookup_topic_response = Some(Box::new(wire::CommandLookupTopicResponse {
            response: Some(wire::command_lookup_topic_response::LookupType::Failed as i32),
            request_id,
            error: Some(code as i32),
            message: Some(message),
            ..Default::default()
        }));
    });
}

/// GET_TOPICS_OF_NAMESPACE.
pub(super) fn topics(c: &Connection, command: wire::CommandGetTopicsOfNamespace) {
    use wire::command_get_topics_of_namespace::Mode;
    let (broker, peer) = (c.broker.clone(), c.peer.asks());
    c.broker.tasks.spawn("topics of namespace", OnFailure::Log, async move {
        let request = RequestId(command.request_id);
        let namespace = match NamespaceName::parse(&command.namespace) {
            Ok(namespace) => namespace,
            Err(error) => {
                return respond::error(&peer, request, ServerError::InvalidTopicName, error.to_string());
            }
        };
        let mode = match command.mode() {
            Mode::Persistent => DomainMode::Persistent,
            Mode::NonPersistent => DomainMode::NonPersistent,
            Mode::All => DomainMode::All,
        };
        let names = match broker.topics_of(&namespace, mode).await {
            Ok(names) => names,
            // Clients that watch a pattern poll: a namespace that is yet to come is an empty one.
            Err(NamespaceError::NamespaceNotFound(_)) => Vec::new(),
            Err(error) => {
                return respond::error(&peer, request, ServerError::MetadataError, error.to_string());
            }
        };
        // Patterns that are long or that this engine does not know are the client's to apply.
        let pattern = command.topics_pattern.as_deref().filter(|text| text.len() <= PATTERN_MAX);
        let pattern = pattern.and_then(|text| Pattern::new(text).ok());
        let filtered = pattern.is_some();
        let names = match &pattern {
            Some(pattern) => filter_topics(names, pattern),
            None => names,
        };
        let hash = topics_hash(names.iter().map(|name| name.as_str()));
        let unchanged = command.topics_hash.as_deref() == Some(hash.as_str());
        let topics = if unchanged { Vec::new() } else { names.iter().map(ToString::to_string).collect() };
        respond::command(&peer, Type::GetTopicsOfNamespaceResponse, |c| {
            c.get_topics_of_namespace_response = Some(Box::new(wire::CommandGetTopicsOfNamespaceResponse {
                request_id: request.0,
                topics,
                filtered: Some(filtered),
                topics_hash: Some(hash),
                changed: Some(!unchanged),
            }));
        });
    });
}

fn parse(topic: &str) -> Result<TopicName, TopicError> {
    TopicName::parse(topic).map_err(|error| TopicError::InvalidName(error.to_string()))
}
