//! From topic names to connections: partition counts, then the broker of each topic or partition.

use super::connection::{Connection, Pool};
use anyhow::{Context as _, Result, bail};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{
    BaseCommand, CommandLookupTopic, CommandPartitionedTopicMetadata,
    command_lookup_topic_response::LookupType, command_partitioned_topic_metadata_response,
};
use std::sync::Arc;

/// Redirects followed before giving up.
const REDIRECTS_MAX: usize = 20;

/// The topics to use for `topic`: itself, or its partitions.
pub(crate) async fn expand_partitions(pool: &mut Pool, topic: &str) -> Result<Vec<String>> {
    let connection = pool.service().await?;
    let request_id = connection.next_id();
    let ask = CommandPartitionedTopicMetadata { topic: topic.to_owned(), request_id, ..Default::default() };
    let command = BaseCommand {
        r#type: Type::PartitionedMetadata as i32,
        partition_metadata: Some(Box::new(ask)),
        ..Default::default()
    };
    let answer = connection.request(request_id, &command).await?;
    let answer = answer.partition_metadata_response.context("no partition count in the answer")?;
    if answer.response() == command_partitioned_topic_metadata_response::LookupType::Failed {
        bail!("{topic}: {}: {}", answer.error().as_str_name(), answer.message());
    }
    Ok(match answer.partitions() {
        0 => vec![topic.to_owned()],
        n => (0..n).map(|i| format!("{topic}-partition-{i}")).collect(),
    })
}

/// A connection to the broker that serves `topic`.
pub(super) async fn connect(pool: &mut Pool, topic: &str) -> Result<Arc<Connection>> {
    let mut connection = pool.service().await?;
    let mut authoritative = false;
    for _ in 0..REDIRECTS_MAX {
        let request_id = connection.next_id();
        let ask = CommandLookupTopic {
            topic: topic.to_owned(),
            request_id,
            authoritative: Some(authoritative),
            ..Default::default()
        };
        let command = BaseCommand {
            r#type: Type::Lookup as i32,
            lookup_topic: Some(Box::new(ask)),
            ..Default::default()
        };
        let answer = connection.request(request_id, &command).await?;
        let answer = answer.lookup_topic_response.context("no lookup answer")?;
        match answer.response() {
            LookupType::Failed => bail!("{topic}: {}: {}", answer.error().as_str_name(), answer.message()),
            LookupType::Connect => {
                return pool.broker(answer.broker_service_url(), answer.proxy_through_service_url()).await;
            }
            LookupType::Redirect => {
                authoritative = answer.authoritative();
                connection = pool.redirected(answer.broker_service_url()).await?;
            }
        }
    }
    bail!("{topic}: more than {REDIRECTS_MAX} redirects")
}
