//! The catalogue of coded errors. A code names what went wrong for good: it is in logs, answers and manuals, so a number is
//! never given a second meaning and never reused; one that is no longer needed stays as a gap.
//!
//! Owner: this file alone maps a code to what each protocol calls it: Pulsar's `ServerError` number, the HTTP status and the
//! gRPC status number. Services look the mapping up; they never choose a status of their own.
//!
//! Numbers by hundreds: 1 names and requests, 2 topics and clients on them, 3 limits, 4 storage, 5 metadata and cluster,
//! 6 start-up and configuration, 7 access, 9 defects.

use std::fmt;

/// A coded error, printed as `GM-nnnn`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

/// What a code means to each protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meaning {
    /// The code.
    pub code: Code,
    /// Its name in this file.
    pub name: &'static str,
    /// What it tells a person.
    pub text: &'static str,
    /// Pulsar's `ServerError` as on the wire, 0 to 25.
    pub server_error: i32,
    /// HTTP status, 400 to 599.
    pub http_status: u16,
    /// gRPC status number, 1 to 16.
    pub grpc_status: i32,
    /// Whether the same request may succeed later without anybody changing it.
    pub retryable: bool,
}

/// An error that has a code.
pub trait Coded: std::error::Error {
    /// Its code.
    fn code(&self) -> Code;

    /// Whether the same request may succeed later without anybody changing it.
    fn is_retryable(&self) -> bool {
        self.code().meaning().retryable
    }
}

macro_rules! codes {
    ($($number:literal $name:ident: $text:literal, pulsar $pulsar:literal, http $http:literal, grpc $grpc:literal, retry $retry:literal;)*) => {
        impl Code {
            $(#[doc = $text]
            pub const $name: Code = Code($number);)*
        }

        /// All codes with their meanings, ascending.
        pub const CATALOGUE: &[Meaning] = &[$(Meaning {
            code: Code($number),
            name: stringify!($name),
            text: $text,
            server_error: $pulsar,
            http_status: $http,
            grpc_status: $grpc,
            retryable: $retry,
        }),*];
    };
}

// gRPC: 3 invalid argument, 5 not found, 6 already exists, 7 permission denied, 8 resource exhausted, 9 failed precondition,
// 10 aborted, 11 out of range, 12 unimplemented, 13 internal, 14 unavailable, 15 data loss, 16 unauthenticated.
codes! {
    1001 INVALID_TOPIC_NAME: "the topic name is not valid", pulsar 17, http 412, grpc 3, retry false;
    1002 INVALID_NAME: "a tenant, namespace or subscription name is not valid", pulsar 22, http 412, grpc 3, retry false;
    1003 BAD_REQUEST: "the request is malformed", pulsar 22, http 400, grpc 3, retry false;
    1004 PRECONDITION_FAILED: "the state of the resource does not allow this", pulsar 22, http 412, grpc 9, retry false;
    1005 CONFLICT: "the resource exists already, or was changed at the same time", pulsar 1, http 409, grpc 6, retry false;
    1006 UNSUPPORTED: "this feature is not supported", pulsar 22, http 501, grpc 12, retry false;
    1007 UNSUPPORTED_VERSION: "the client's protocol version is not supported", pulsar 10, http 400, grpc 12, retry false;
    1008 NOT_ALLOWED: "this operation is not allowed here", pulsar 22, http 405, grpc 9, retry false;
    1009 NOT_FOUND: "the resource does not exist", pulsar 1, http 404, grpc 5, retry false;
    1010 UNPROCESSABLE: "the values in the request cannot be accepted", pulsar 22, http 422, grpc 3, retry false;
    1011 NOT_ACCEPTABLE: "the number of partitions cannot be accepted", pulsar 22, http 406, grpc 3, retry false;
    1012 UNSUPPORTED_MEDIA_TYPE: "the content type of the request is not supported", pulsar 22, http 415, grpc 3, retry false;
    2001 TOPIC_NOT_FOUND: "the topic does not exist", pulsar 11, http 404, grpc 5, retry false;
    2002 NAMESPACE_NOT_FOUND: "the namespace does not exist", pulsar 11, http 404, grpc 5, retry false;
    2003 TENANT_NOT_FOUND: "the tenant does not exist", pulsar 11, http 404, grpc 5, retry false;
    2004 SUBSCRIPTION_NOT_FOUND: "the subscription does not exist", pulsar 12, http 404, grpc 5, retry false;
    2005 CONSUMER_NOT_FOUND: "the consumer does not exist", pulsar 13, http 404, grpc 5, retry false;
    2006 PRODUCER_BUSY: "a producer of this name, or an exclusive one, is connected", pulsar 16, http 409, grpc 9, retry false;
    2007 CONSUMER_BUSY: "the subscription has a consumer that excludes this one", pulsar 5, http 409, grpc 9, retry false;
    2008 PRODUCER_FENCED: "another producer has taken the exclusive right to publish", pulsar 25, http 409, grpc 9, retry false;
    2009 CONSUMER_ASSIGN: "the consumer's hash ranges overlap with another's", pulsar 19, http 409, grpc 9, retry false;
    2010 TOPIC_TERMINATED: "the topic was terminated and takes no more messages", pulsar 15, http 409, grpc 9, retry false;
    2011 INCOMPATIBLE_SCHEMA: "the schema is not compatible with the topic's", pulsar 18, http 409, grpc 9, retry false;
    2012 INVALID_SCHEMA: "the schema is not valid", pulsar 18, http 422, grpc 3, retry false;
    2013 CHECKSUM: "the message does not match its checksum", pulsar 9, http 400, grpc 3, retry true;
    2014 TOPIC_FENCED: "the topic is closing or moving; try again", pulsar 6, http 503, grpc 14, retry true;
    2015 SUBSCRIPTION_FENCED: "the subscription is closing or being reset; try again", pulsar 6, http 503, grpc 14, retry true;
    2016 SUBSCRIPTION_HAS_CONSUMERS: "the subscription has connected consumers", pulsar 1, http 412, grpc 9, retry false;
    2017 TOPIC_IN_USE: "the topic has connected producers or consumers", pulsar 1, http 412, grpc 9, retry false;
    2018 INVALID_POSITION: "the position does not exist in the topic", pulsar 22, http 404, grpc 11, retry false;
    2019 TRANSACTION_COORDINATOR_NOT_FOUND: "no transaction coordinator serves this id", pulsar 20, http 404, grpc 5, retry true;
    2020 INVALID_TRANSACTION_STATUS: "the transaction is not in a state that allows this", pulsar 21, http 409, grpc 9, retry false;
    2021 TRANSACTION_CONFLICT: "another transaction has touched the same message", pulsar 23, http 409, grpc 10, retry false;
    2022 TRANSACTION_NOT_FOUND: "the transaction does not exist", pulsar 24, http 404, grpc 5, retry false;
    2023 SCHEMA_NOT_FOUND: "the schema does not exist", pulsar 11, http 404, grpc 5, retry false;
    3001 TOO_MANY_REQUESTS: "too many requests are waiting", pulsar 14, http 429, grpc 8, retry true;
    3002 QUOTA_EXCEEDED_HOLD: "the backlog quota is exceeded; the producer is held", pulsar 7, http 507, grpc 8, retry true;
    3003 QUOTA_EXCEEDED_EXCEPTION: "the backlog quota is exceeded", pulsar 8, http 507, grpc 8, retry false;
    3004 MESSAGE_TOO_LARGE: "the message is larger than allowed", pulsar 22, http 413, grpc 3, retry false;
    3005 TOO_MANY_TOPICS: "the namespace has as many topics as allowed", pulsar 22, http 409, grpc 8, retry false;
    3006 TOO_MANY_PRODUCERS: "the topic has as many producers as allowed", pulsar 16, http 409, grpc 8, retry false;
    3007 TOO_MANY_CONSUMERS: "the topic or subscription has as many consumers as allowed", pulsar 5, http 409, grpc 8, retry false;
    3008 TOO_MANY_SUBSCRIPTIONS: "the topic has as many subscriptions as allowed", pulsar 22, http 409, grpc 8, retry false;
    3009 OUT_OF_MEMORY_BUDGET: "the memory budget is used up; try again", pulsar 14, http 503, grpc 8, retry true;
    3020 BOOKIE_SLOW: "a bookie answers adds much slower than the others", pulsar 1, http 503, grpc 14, retry true;
    4001 PERSISTENCE: "the message could not be stored", pulsar 2, http 500, grpc 14, retry true;
    4002 DISK_FULL: "the disk is full", pulsar 2, http 507, grpc 8, retry true;
    4003 READ_ONLY_DISK: "the disk takes no writes", pulsar 2, http 503, grpc 14, retry true;
    4004 DISK_FAILED: "the disk failed; the volume is out of service until a person looks at it", pulsar 2, http 500, grpc 13, retry false;
    4005 DATA_LOSS: "stored data is missing or damaged", pulsar 2, http 500, grpc 15, retry false;
    4006 LEDGER_FENCED: "another broker has taken the ledger over", pulsar 6, http 503, grpc 9, retry true;
    4007 NOT_ENOUGH_BOOKIES: "there are not enough bookies to store the message", pulsar 2, http 503, grpc 14, retry true;
    4008 LEDGER_NOT_FOUND: "the ledger does not exist", pulsar 1, http 404, grpc 5, retry false;
    4009 OBJECT_STORE_UNAVAILABLE: "the object store cannot be reached", pulsar 2, http 503, grpc 14, retry true;
    4010 OBJECT_STORE_REFUSED: "the object store refuses its credentials, bucket or permissions", pulsar 2, http 500, grpc 9, retry false;
    4011 OBJECT_MISSING: "an offloaded ledger's object is not in the object store", pulsar 2, http 500, grpc 15, retry false;
    4012 OBJECT_DAMAGED: "an offloaded ledger's object is not what the metadata says", pulsar 2, http 500, grpc 15, retry false;
    4013 OBJECT_CONDEMNED: "an object that is referenced is listed for removal", pulsar 2, http 500, grpc 15, retry false;
    4014 OBJECT_UNKNOWN: "an object in the object store is named by no metadata", pulsar 0, http 500, grpc 9, retry false;
    4015 UPLOAD_UNKNOWN: "an unfinished upload in the object store is named by no metadata", pulsar 0, http 500, grpc 9, retry false;
    4016 RECORD_UNREADABLE: "a metadata record cannot be read", pulsar 2, http 500, grpc 15, retry false;
    4017 LEDGERS_MISSING: "messages between offloaded ledgers of a topic are in no object", pulsar 0, http 500, grpc 15, retry false;
    4018 TOPIC_NOT_REBUILT: "a topic of the object store was not attached again", pulsar 0, http 500, grpc 9, retry false;
    4019 LOST_FOR_GOOD: "messages were lost, and the loss was accepted", pulsar 2, http 410, grpc 15, retry false;
    4020 ONLY_COPY_DAMAGED: "stored data of which there is no other copy is damaged", pulsar 2, http 500, grpc 15, retry false;
    4025 OBJECT_STORE_SLOW_DOWN: "the object store asks for fewer requests", pulsar 2, http 503, grpc 14, retry true;
    4026 OBJECT_READS_WAIT: "readers wait because as much as may be was asked of the object store", pulsar 2, http 503, grpc 14, retry true;
    4027 TOO_MANY_CONNECTIONS: "as many clients are connected as the port has places", pulsar 14, http 503, grpc 8, retry true;
    4028 TOO_LARGE_TO_STORE: "what is to be stored is larger than one record may be", pulsar 22, http 413, grpc 3, retry false;
    4029 DISK_CACHE_FAILED: "the disk cache of the object store is damaged or cannot be used", pulsar 0, http 500, grpc 13, retry true;
    5001 METADATA_UNAVAILABLE: "the metadata store cannot be reached", pulsar 1, http 503, grpc 14, retry true;
    5002 METADATA_UNKNOWN: "whether the metadata change happened is not known", pulsar 1, http 503, grpc 14, retry true;
    5003 SERVICE_NOT_READY: "the service is not ready; try again", pulsar 6, http 503, grpc 14, retry true;
    5004 NOT_OWNER: "this broker does not serve the topic; look it up again", pulsar 6, http 503, grpc 9, retry true;
    5005 SHUTTING_DOWN: "the service is shutting down", pulsar 6, http 503, grpc 14, retry true;
    5006 TIMED_OUT: "the request took too long", pulsar 6, http 503, grpc 4, retry true;
    5021 WRONG_CLUSTER: "the peer belongs to another cluster", pulsar 0, http 409, grpc 9, retry false;
    5022 WRONG_BOOKIE: "another bookie answers at this address", pulsar 0, http 409, grpc 9, retry false;
    5023 WRONG_PROTOCOL: "the peers have no protocol version in common", pulsar 0, http 409, grpc 9, retry false;
    5024 BOOKIE_NAME_TAKEN: "another live bookie has this name", pulsar 0, http 409, grpc 6, retry false;
    5025 BOOKIE_RETIRED: "the cluster has given this bookie up", pulsar 0, http 409, grpc 9, retry false;
    6001 DATA_DIRECTORY_LOCKED: "another process uses the data directory", pulsar 0, http 500, grpc 9, retry false;
    6002 FORMAT_TOO_NEW: "the data was written by a newer version", pulsar 0, http 500, grpc 9, retry false;
    6003 CONFIG_UNKNOWN_KEY: "the configuration holds an unknown key", pulsar 0, http 500, grpc 3, retry false;
    6004 CONFIG_INVALID: "the configuration holds a value that cannot be used", pulsar 0, http 500, grpc 3, retry false;
    6005 CONFIG_UNREADABLE: "the configuration is not readable", pulsar 0, http 500, grpc 3, retry false;
    6006 PORT_IN_USE: "the port is in use", pulsar 0, http 500, grpc 9, retry false;
    6007 INSECURE_BIND: "listening beyond loopback needs TLS and authentication, or --insecure", pulsar 0, http 500, grpc 9, retry false;
    6008 DATA_DIRECTORY_FOREIGN: "the data directory belongs to another cluster or store", pulsar 0, http 500, grpc 9, retry false;
    6009 DATA_DIRECTORY_UNUSABLE: "the data directory cannot be read or written", pulsar 0, http 500, grpc 9, retry false;
    6010 OBJECT_STORE_FOREIGN: "the object store belongs to another cluster", pulsar 0, http 500, grpc 9, retry false;
    6011 OBJECT_STORE_EMPTY: "the object store is not the one that holds the cluster's offloaded ledgers", pulsar 0, http 500, grpc 9, retry false;
    6012 OBJECT_STORE_NOT_CONFIGURED: "ledgers are offloaded and no object store is configured", pulsar 2, http 500, grpc 9, retry false;
    6013 CLUSTER_RUNNING: "brokers of the cluster run", pulsar 0, http 500, grpc 9, retry false;
    6014 LOSS_NOT_ACCEPTED: "the loss of this store cannot be accepted", pulsar 0, http 500, grpc 9, retry false;
    7001 AUTHENTICATION: "the credentials were not accepted", pulsar 3, http 401, grpc 16, retry false;
    7002 AUTHORIZATION: "the role may not do this", pulsar 4, http 403, grpc 7, retry false;
    9001 INTERNAL: "a defect in the server; please report it", pulsar 0, http 500, grpc 13, retry false;
}

impl Code {
    /// The number, as in `GM-nnnn`.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// The code of a number, if the catalogue has it.
    #[must_use]
    pub fn of_number(number: u16) -> Option<Self> {
        CATALOGUE.binary_search_by_key(&number, |m| m.code.0).ok().map(|at| CATALOGUE[at].code)
    }

    /// What it means to each protocol.
    #[must_use]
    pub fn meaning(self) -> &'static Meaning {
        let at = CATALOGUE.binary_search_by_key(&self, |m| m.code);
        &CATALOGUE[at.expect("a code is made from the catalogue only, which ascends")]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GM-{:04}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {}", self.meaning().name)
    }
}

impl Coded for crate::names::NameError {
    fn code(&self) -> Code {
        use crate::names::NameError as E;
        match self {
            E::TopicShape(_)
            | E::UnknownDomain(_)
            | E::V1Name(_)
            | E::EmptyTopic
            | E::TrailingSlash(_)
            | E::SlashInTopic(_)
            | E::Nul(..)
            | E::TopicTooLong(_) => Code::INVALID_TOPIC_NAME,
            E::EmptyTenant
            | E::EmptyNamespace
            | E::ForbiddenCharacter(..)
            | E::PathStep(_)
            | E::EntityTooLong(_)
            | E::NamespaceShape(_)
            | E::EmptySubscription
            | E::SubscriptionTooLong(_) => Code::INVALID_NAME,
        }
    }
}

impl Coded for crate::metadata::MetaError {
    fn code(&self) -> Code {
        use crate::metadata::MetaError as E;
        match self {
            E::Unavailable(_) => Code::METADATA_UNAVAILABLE,
            E::Unknown(_) => Code::METADATA_UNKNOWN,
            E::Invalid(_) => Code::INTERNAL,
            E::TooLarge(_) => Code::TOO_LARGE_TO_STORE,
            E::LeaseGone(_) => Code::SERVICE_NOT_READY,
        }
    }
}

impl Coded for crate::metadata::redb::OpenError {
    fn code(&self) -> Code {
        use crate::metadata::redb::OpenError as E;
        match self {
            E::Disk(error) if error.kind() == std::io::ErrorKind::StorageFull => Code::DISK_FULL,
            E::Disk(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Code::READ_ONLY_DISK,
            E::Disk(_) => Code::DATA_DIRECTORY_UNUSABLE,
            E::Database(_) => Code::DATA_LOSS,
            E::FormatTooNew(_) => Code::FORMAT_TOO_NEW,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_so_each_is_given_once() {
        assert!(CATALOGUE.windows(2).all(|pair| pair[0].code < pair[1].code));
    }

    #[test]
    fn every_mapping_is_in_range() {
        for m in CATALOGUE {
            assert!((1000..=9999).contains(&m.code.number()), "{m:?}");
            assert!((0..=25).contains(&m.server_error), "{m:?}");
            assert!((400..=599).contains(&m.http_status), "{m:?}");
            assert!((1..=16).contains(&m.grpc_status), "{m:?}");
            assert!(!m.text.is_empty() && !m.text.ends_with('.'), "{m:?}");
            assert_eq!(Code::of_number(m.code.number()), Some(m.code));
            assert_eq!(m.code.meaning(), m);
            // What the server may try again must not be called a caller's error that clients give up on.
            assert!(!(m.retryable && matches!(m.http_status, 401 | 403 | 405 | 412)), "{m:?}");
        }
        assert_eq!(Code::of_number(1), None);
    }

    #[test]
    fn every_pulsar_error_can_be_said() {
        for error in 0..=25 {
            assert!(CATALOGUE.iter().any(|m| m.server_error == error), "no code for ServerError {error}");
        }
    }

    #[test]
    fn codes_print_for_people() {
        assert_eq!(Code::TOPIC_NOT_FOUND.to_string(), "GM-2001");
        assert_eq!(format!("{:?}", Code::TOPIC_NOT_FOUND), "GM-2001 TOPIC_NOT_FOUND");
    }
}
