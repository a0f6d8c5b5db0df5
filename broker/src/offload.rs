//! What a broker has to do with the object store beside its topics: policies, the sweep of what left them, and looking after it by hand.

pub mod fsck;
pub mod rebuild;
pub(crate) mod unconfigured;

use crate::broker::Broker;
use crate::managed_ledger::offload::Rules;
use geminga_common::names::TopicName;
use geminga_offload::Tier;
use geminga_offload::config::Together;
use std::sync::Arc;

impl Broker {
    /// What policies ask about offloading: the topic's first, field by field, then the namespace's.
    pub(crate) fn offload_rules(&self, name: &TopicName) -> Rules {
        let topic =
            self.namespaces.topic_record(&name.base()).and_then(|record| record.policies.offload.clone());
        let namespace = self.namespaces.policies(name.namespace());
        let shared = namespace.as_ref().and_then(|n| n.offload_policies.clone());
        let (topic, shared) = (topic.unwrap_or_default(), shared.unwrap_or_default());
        let old = namespace.as_ref();
        let bytes = (topic.managed_ledger_offload_threshold_in_bytes)
            .or(shared.managed_ledger_offload_threshold_in_bytes)
            .or(old.map(|n| n.offload_threshold));
        let seconds = (topic.managed_ledger_offload_threshold_in_seconds)
            .or(shared.managed_ledger_offload_threshold_in_seconds)
            .or(old.map(|n| n.offload_threshold_in_seconds));
        let lag = (topic.managed_ledger_offload_deletion_lag_in_millis)
            .or(shared.managed_ledger_offload_deletion_lag_in_millis)
            .or(old.and_then(|n| n.offload_deletion_lag_ms));
        // Below zero is off.
        let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        Rules {
            bytes_max: positive(bytes),
            age_max_ms: positive(seconds).map(|seconds| seconds.saturating_mul(1000)),
            lag_ms: positive(lag)
                .unwrap_or(self.tier.as_ref().map_or(0, |tier| tier.config.deletion_lag_s * 1000)),
            before: None,
            again: None,
            uploading: None,
            together: self.tier.as_ref().map_or(Together::default(), |tier| tier.config.together()),
        }
    }
}

/// Removes from the object store what left its topic, now and then.
pub(crate) async fn sweep(broker: Arc<Broker>, tier: Arc<Tier>) {
    let stop = broker.tasks.token();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(tier.config.sweep_interval()) => {}
        }
        match tier.sweep(&*broker.gated, &broker.keys).await {
            Ok(swept) if swept.removed + swept.failed > 0 => {
                tracing::info!(swept.removed, swept.failed, swept.waiting, "object store swept");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "what is to be removed from the object store cannot be listed")
            }
        }
    }
}
