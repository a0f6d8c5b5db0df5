//! What a refusal means on the wire. The only place that knows.

use crate::namespace::QuotaPolicy;
use crate::topic::TopicError;
use geminga_common::error::Code;
use geminga_proto::pulsar::ServerError;

/// The ServerError of a refusal (`pulsar-map` 1.6).
pub(super) fn server_error(error: &TopicError) -> ServerError {
    match error {
        TopicError::NotReady | TopicError::NotOwner(_) => ServerError::ServiceNotReady,
        TopicError::NotFound(_) => ServerError::TopicNotFound,
        // From PRODUCER and SUBSCRIBE; LOOKUP and partition metadata say TopicNotFound.
        TopicError::NamespaceNotFound(_) => ServerError::ServiceNotReady,
        TopicError::SubscriptionNotFound(_) => ServerError::SubscriptionNotFound,
        TopicError::ProducerBusy(_) | TopicError::ProducerExclusive => ServerError::ProducerBusy,
        TopicError::ProducerFenced => ServerError::ProducerFenced,
        TopicError::ConsumerBusy(_) => ServerError::ConsumerBusy,
        TopicError::ConsumerAssign(_) => ServerError::ConsumerAssignError,
        TopicError::Terminated => ServerError::TopicTerminatedError,
        TopicError::NotAllowed(_)
        | TopicError::Persistence(Code::TOO_LARGE_TO_STORE, _)
        | TopicError::Metadata(Code::TOO_LARGE_TO_STORE, _) => ServerError::NotAllowedError,
        TopicError::Precondition(_) | TopicError::Conflict(_) | TopicError::Metadata(..) => {
            ServerError::MetadataError
        }
        TopicError::Persistence(..) | TopicError::Lost(_) | TopicError::DiskFull(_) => {
            ServerError::PersistenceError
        }
        TopicError::IncompatibleSchema(_) => ServerError::IncompatibleSchema,
        TopicError::InvalidName(_) => ServerError::InvalidTopicName,
        TopicError::Limit(_) => ServerError::ProducerBusy,
        TopicError::QuotaExceeded(exceeded) => match exceeded.policy() {
            QuotaPolicy::ProducerException => ServerError::ProducerBlockedQuotaExceededException,
            QuotaPolicy::ProducerRequestHold | QuotaPolicy::ConsumerBacklogEviction => {
                ServerError::ProducerBlockedQuotaExceededError
            }
        },
    }
}

/// The ServerError of a refusal by LOOKUP and PARTITIONED_METADATA, where a missing namespace is a missing topic.
pub(super) fn lookup_error(error: &TopicError) -> ServerError {
    match error {
        TopicError::NamespaceNotFound(_) => ServerError::TopicNotFound,
        other => server_error(other),
    }
}
