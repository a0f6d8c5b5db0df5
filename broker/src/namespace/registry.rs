//! [`Namespaces`]: tenants and namespaces over the metadata store. Look-ups are answered from memory without waiting; every
//! write is a compare-and-set against the store, never against the cache.
//!
//! Two races are closed by what transactions compare. A namespace is deleted only after its record says `deleted`, and
//! whoever creates a topic compares the record's revision ([`Namespaces::creation_guard`]): so no topic can appear in a
//! namespace that is going. A tenant's record is rewritten by every creation of a namespace, so its deletion, which compares
//! that revision, cannot miss one.

use super::cache::{Applied, Table};
use super::policies::{Policies, Tenant};
use super::topic_policies::TopicRecord;
use super::turns::{Turn, Turns};
use super::{AutoCreation, DomainMode, NamespaceError, Partitioned, decode, encode};
use bytes::Bytes;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Record, Txn, TxnOutcome};
use geminga_common::names::{NamespaceName, TenantName, TopicName};
use geminga_common::tasks::{OnFailure, TaskGroup};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a compare-and-set is tried against others before it is given up.
pub(super) const ATTEMPTS: usize = 32;
/// Pause before a failed watch is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The broker's own rules where a namespace is silent.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The cluster's name.
    pub cluster: String,
    /// Bundles of a new namespace.
    pub bundles: u32,
    /// What first use creates.
    pub auto_topic_creation: AutoCreation,
    /// Whether first use creates subscriptions.
    pub auto_subscription_creation: bool,
}

impl Defaults {
    /// Pulsar's defaults for a cluster.
    #[must_use]
    pub fn of_cluster(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            bundles: 4,
            auto_topic_creation: AutoCreation { allowed: true, partitions: None },
            auto_subscription_creation: true,
        }
    }
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Namespaces {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    store: Arc<dyn MetadataStore>,
    keys: Keys,
    defaults: Defaults,
    tenants: Table<Tenant>,
    namespaces: Table<Policies>,
    pub(super) partitioned: Table<Partitioned>,
    pub(super) topics: Table<TopicRecord>,
    changes: watch::Sender<u64>,
    /// Of namespaces that bound how many topics they have.
    pub(super) creating: Turns,
    /// Of topics that people create by name.
    topic_turns: Turns,
}

/// What an attempt at a change decided.
pub(super) enum Step {
    /// Write this; the record's value afterwards (`None`: removed).
    Write(Txn, Option<Bytes>),
    /// Nothing to do.
    Unchanged,
}

impl Namespaces {
    /// Reads everything and follows it from then on.
    ///
    /// # Errors
    /// When the metadata store does not answer.
    pub async fn start(
        store: Arc<dyn MetadataStore>,
        defaults: Defaults,
        tasks: &TaskGroup,
    ) -> Result<Self, NamespaceError> {
        let keys = Keys::new(&defaults.cluster);
        let inner = Arc::new(Inner {
            tenants: Table::new(keys.tenants_prefix()),
            namespaces: Table::new(keys.all_namespaces_prefix()),
            partitioned: Table::new(keys.all_partitioned_prefix()),
            topics: Table::new(keys.all_topic_settings_prefix()),
            changes: watch::Sender::new(0),
            creating: Turns::default(),
            topic_turns: Turns::default(),
            store,
            keys,
            defaults,
        });
        follow(&inner, tasks, "tenants", |i| &i.tenants).await?;
        follow(&inner, tasks, "namespaces", |i| &i.namespaces).await?;
        follow(&inner, tasks, "partitioned", |i| &i.partitioned).await?;
        follow(&inner, tasks, "topic-settings", |i| &i.topics).await?;
        Ok(Self { inner })
    }

    /// Creates `public/default` and `pulsar/system` if they are not there, in one transaction.
    ///
    /// # Errors
    /// Metadata errors.
    pub async fn bootstrap(&self) -> Result<(), NamespaceError> {
        let (public, pulsar) = (known_tenant("public"), known_tenant("pulsar"));
        let mut txn = Txn::default();
        let mut written = Vec::new();
        let cluster = self.defaults().cluster.clone();
        for tenant in [&public, &pulsar] {
            let key = self.keys().tenant(tenant);
            let record = Tenant { allowed_clusters: [cluster.clone()].into(), ..Tenant::default() };
            written.push((key, encode(&record), true));
        }
        for (tenant, local) in [(&public, "default"), (&pulsar, "system")] {
            let name = NamespaceName::new(tenant.clone(), local).expect("the literals are namespace names");
            written.push((self.keys().namespace(&name), encode(&self.fresh_policies()), false));
        }
        for _ in 0..ATTEMPTS {
            txn.compares.clear();
            txn.ops.clear();
            for (key, value, _) in &written {
                match self.store().get(key).await? {
                    Some(found) => txn.compares.push(Compare::ModRevision(key.clone(), found.mod_revision)),
                    None => {
                        txn.compares.push(Compare::Absent(key.clone()));
                        txn.ops.push(Op::put(key.clone(), value.clone()));
                    }
                }
            }
            if txn.ops.is_empty() {
                return Ok(());
            }
            match self.store().txn(txn.clone()).await {
                Ok(TxnOutcome::Committed(revision)) => {
                    for (key, value, is_tenant) in &written {
                        if !txn.compares.contains(&Compare::Absent(key.clone())) {
                            continue;
                        }
                        let applied = Applied::Written(revision, Some(value.clone()));
                        if *is_tenant {
                            self.inner.tenants.applied(key, applied);
                        } else {
                            self.inner.namespaces.applied(key, applied);
                        }
                    }
                    return Ok(());
                }
                // Read again: either it is there now, or it is tried once more.
                Ok(TxnOutcome::CompareFailed) | Err(MetaError::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(NamespaceError::Conflict)
    }

    /// The broker's own rules.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.inner.defaults
    }

    /// Moves with every change this broker hears of: topics look their policies up again.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    pub(super) fn store(&self) -> &dyn MetadataStore {
        &*self.inner.store
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// The policies a new namespace starts with.
    #[must_use]
    pub fn fresh_policies(&self) -> Policies {
        Policies {
            replication_clusters: [self.defaults().cluster.clone()].into(),
            bundles: super::BundlesData::equal(self.defaults().bundles),
            ..Policies::default()
        }
    }

    /// All tenants, in name order.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantName> {
        self.inner.tenants.below(&self.keys().tenants_prefix(), |key, _| self.keys().tenant_of_key(key))
    }

    /// A tenant's record.
    #[must_use]
    pub fn tenant(&self, tenant: &TenantName) -> Option<Arc<Tenant>> {
        self.inner.tenants.get(&self.keys().tenant(tenant))
    }

    /// Creates a tenant.
    ///
    /// # Errors
    /// When it is there already; metadata errors.
    pub async fn create_tenant(&self, tenant: &TenantName, record: &Tenant) -> Result<(), NamespaceError> {
        let (key, value) = (self.keys().tenant(tenant), encode(record));
        let applied = self
            .retrying(&key, &mut |found| match found {
                Some(_) => Err(NamespaceError::TenantExists(tenant.clone())),
                None => {
                    let compares = vec![Compare::Absent(key.clone())];
                    Ok(Step::Write(
                        Txn { compares, ops: vec![Op::put(key.clone(), value.clone())] },
                        Some(value.clone()),
                    ))
                }
            })
            .await?;
        self.inner.tenants.applied(&key, applied);
        self.touched();
        Ok(())
    }

    /// Replaces a tenant's record.
    ///
    /// # Errors
    /// When it is not there; metadata errors.
    pub async fn update_tenant(&self, tenant: &TenantName, record: &Tenant) -> Result<(), NamespaceError> {
        let (key, value) = (self.keys().tenant(tenant), encode(record));
        let applied = self
            .retrying(&key, &mut |found| {
                let found = found.ok_or_else(|| NamespaceError::TenantNotFound(tenant.clone()))?;
                let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
                Ok(Step::Write(
                    Txn { compares, ops: vec![Op::put(key.clone(), value.clone())] },
                    Some(value.clone()),
                ))
            })
            .await?;
        self.inner.tenants.applied(&key, applied);
        self.touched();
        Ok(())
    }

    /// Deletes a tenant without namespaces.
    ///
    /// # Errors
    /// When it is not there or has namespaces; metadata errors.
    pub async fn delete_tenant(&self, tenant: &TenantName) -> Result<(), NamespaceError> {
        let key = self.keys().tenant(tenant);
        for _ in 0..ATTEMPTS {
            let found = self.store().get(&key).await?;
            let found = found.ok_or_else(|| NamespaceError::TenantNotFound(tenant.clone()))?;
            // After the read above: whoever creates a namespace from here on moves the revision.
            if !self.store().list(&self.keys().namespaces_prefix(tenant), None, 1).await?.is_empty() {
                return Err(NamespaceError::TenantNotEmpty(tenant.clone()));
            }
            let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
            let txn = Txn { compares, ops: vec![Op::delete(key.clone())] };
            if let Some(applied) = self.attempt(&key, txn, None).await? {
                self.inner.tenants.applied(&key, applied);
                self.touched();
                return Ok(());
            }
        }
        Err(NamespaceError::Conflict)
    }

    /// The namespaces of a tenant, in name order.
    #[must_use]
    pub fn namespaces_of(&self, tenant: &TenantName) -> Vec<NamespaceName> {
        let prefix = self.keys().namespaces_prefix(tenant);
        self.inner.namespaces.below(&prefix, |key, _| self.keys().namespace_of_key(key))
    }

    /// All namespaces, in name order.
    #[must_use]
    pub fn all_namespaces(&self) -> Vec<NamespaceName> {
        let prefix = self.keys().all_namespaces_prefix();
        self.inner.namespaces.below(&prefix, |key, _| self.keys().namespace_of_key(key))
    }

    /// A namespace's policies.
    #[must_use]
    pub fn policies(&self, namespace: &NamespaceName) -> Option<Arc<Policies>> {
        self.inner.namespaces.get(&self.keys().namespace(namespace))
    }

    /// A namespace's policies, unless it is not there or going.
    ///
    /// # Errors
    /// When it is not there or being deleted.
    pub fn live_policies(&self, namespace: &NamespaceName) -> Result<Arc<Policies>, NamespaceError> {
        match self.policies(namespace) {
            None => Err(NamespaceError::NamespaceNotFound(namespace.clone())),
            Some(policies) if policies.deleted => Err(NamespaceError::NamespaceDeleting(namespace.clone())),
            Some(policies) => Ok(policies),
        }
    }

    /// What a transaction that creates a topic must compare, so that the topic cannot appear in a namespace that is being
    /// deleted. When the comparison fails the policies have changed meanwhile: ask again.
    ///
    /// # Errors
    /// When the namespace is not there or being deleted; metadata errors.
    pub async fn creation_guard(&self, namespace: &NamespaceName) -> Result<Compare, NamespaceError> {
        let key = self.keys().namespace(namespace);
        let found = self.store().get(&key).await?;
        let found = found.ok_or_else(|| NamespaceError::NamespaceNotFound(namespace.clone()))?;
        if decode::<Policies>(&found.value)?.deleted {
            return Err(NamespaceError::NamespaceDeleting(namespace.clone()));
        }
        Ok(Compare::ModRevision(key, found.mod_revision))
    }

    /// The turn of whoever finds that a topic is not there and creates it then.
    pub(crate) async fn turn_of(&self, topic: &TopicName) -> Turn {
        self.inner.topic_turns.take(topic).await
    }

    /// All that a transaction which creates this very topic must compare: its namespace as in [`Self::creation_guard`]; that a
    /// plain topic's name is not that of a partitioned one; that a partition's parent is as it was read here.
    ///
    /// # Errors
    /// When the namespace is not there or being deleted, or a partition has no parent that counts it; metadata errors.
    pub async fn topic_creation_guard(&self, topic: &TopicName) -> Result<Vec<Compare>, NamespaceError> {
        let namespace = self.creation_guard(topic.namespace()).await?;
        let key = self.keys().partitioned(&topic.base());
        let parent = self.store().get(&key).await?;
        let count = match &parent {
            Some(record) => Some(decode::<Partitioned>(&record.value)?),
            None => None,
        };
        let count = count.filter(|record| !record.deleted).map(|record| record.partitions);
        super::check_load(topic, count)?;
        let parent = match parent {
            Some(record) => Compare::ModRevision(key, record.mod_revision),
            None => Compare::Absent(key),
        };
        Ok(vec![namespace, parent])
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// When its tenant is missing or it is there already; metadata errors.
    pub async fn create_namespace(
        &self,
        name: &NamespaceName,
        policies: &Policies,
    ) -> Result<(), NamespaceError> {
        let (key, tenant_key) = (self.keys().namespace(name), self.keys().tenant(name.tenant()));
        let value = encode(policies);
        for _ in 0..ATTEMPTS {
            let tenant = self.store().get(&tenant_key).await?;
            let tenant = tenant.ok_or_else(|| NamespaceError::TenantNotFound(name.tenant().clone()))?;
            let compares = vec![
                Compare::ModRevision(tenant_key.clone(), tenant.mod_revision),
                Compare::Absent(key.clone()),
            ];
            let ops =
                vec![Op::put(tenant_key.clone(), tenant.value.clone()), Op::put(key.clone(), value.clone())];
            if let Some(applied) = self.attempt(&key, Txn { compares, ops }, Some(value.clone())).await? {
                self.inner.namespaces.applied(&key, applied);
                self.touched();
                return Ok(());
            }
            if self.store().get(&key).await?.is_some() {
                return Err(NamespaceError::NamespaceExists(name.clone()));
            }
        }
        Err(NamespaceError::Conflict)
    }

    /// Changes a namespace's policies by compare-and-set; `change` may run several times.
    ///
    /// # Errors
    /// What `change` answers; when the namespace is not there; metadata errors.
    pub async fn update_policies(
        &self,
        name: &NamespaceName,
        mut change: impl FnMut(&mut Policies) -> Result<(), NamespaceError> + Send,
    ) -> Result<(), NamespaceError> {
        let key = self.keys().namespace(name);
        let applied = self
            .retrying(&key, &mut |found| {
                let found = found.ok_or_else(|| NamespaceError::NamespaceNotFound(name.clone()))?;
                let before: Policies = decode(&found.value)?;
                let mut after = before.clone();
                change(&mut after)?;
                if after == before {
                    return Ok(Step::Unchanged);
                }
                let value = encode(&after);
                let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
                Ok(Step::Write(Txn { compares, ops: vec![Op::put(key.clone(), value.clone())] }, Some(value)))
            })
            .await?;
        self.inner.namespaces.applied(&key, applied);
        self.touched();
        Ok(())
    }

    /// Deletes a namespace without topics: marks it, looks for topics, and removes it or takes the mark back.
    ///
    /// # Errors
    /// When it is not there or has topics; metadata errors (a namespace left marked is deleted by asking again).
    pub async fn delete_namespace(&self, name: &NamespaceName) -> Result<(), NamespaceError> {
        self.update_policies(name, |policies| {
            policies.deleted = true;
            Ok(())
        })
        .await?;
        if !self.topics(name, DomainMode::All).await?.is_empty() {
            self.update_policies(name, |policies| {
                policies.deleted = false;
                Ok(())
            })
            .await?;
            return Err(NamespaceError::NamespaceNotEmpty(name.clone()));
        }
        let key = self.keys().namespace(name);
        let applied = self
            .retrying(&key, &mut |found| {
                let found = found.ok_or_else(|| NamespaceError::NamespaceNotFound(name.clone()))?;
                if !decode::<Policies>(&found.value)?.deleted {
                    // Another deletion found a topic and took the mark back.
                    return Err(NamespaceError::NamespaceNotEmpty(name.clone()));
                }
                let compares = vec![Compare::ModRevision(key.clone(), found.mod_revision)];
                Ok(Step::Write(Txn { compares, ops: vec![Op::delete(key.clone())] }, None))
            })
            .await?;
        self.inner.namespaces.applied(&key, applied);
        self.touched();
        Ok(())
    }

    /// Runs a compare-and-set until it holds: reads the record, lets `decide` choose, writes.
    pub(super) async fn retrying(
        &self,
        key: &str,
        decide: &mut (dyn FnMut(Option<Record>) -> Result<Step, NamespaceError> + Send),
    ) -> Result<Applied, NamespaceError> {
        for _ in 0..ATTEMPTS {
            let found = self.store().get(key).await?;
            match decide(found)? {
                Step::Unchanged => return Ok(Applied::Unchanged),
                Step::Write(txn, value) => {
                    if let Some(applied) = self.attempt(key, txn, value).await? {
                        return Ok(applied);
                    }
                }
            }
        }
        Err(NamespaceError::Conflict)
    }

    /// One transaction on `key`; `None` when its comparison failed. An unknown outcome is settled by reading back: the record
    /// states what it should be, so finding exactly that is success, whoever wrote it.
    pub(super) async fn attempt(
        &self,
        key: &str,
        txn: Txn,
        value: Option<Bytes>,
    ) -> Result<Option<Applied>, NamespaceError> {
        match self.store().txn(txn).await {
            Ok(TxnOutcome::Committed(revision)) => Ok(Some(Applied::Written(revision, value))),
            Ok(TxnOutcome::CompareFailed) => Ok(None),
            Err(MetaError::Unknown(what)) => {
                let found = self.store().get(key).await?;
                match (found, value) {
                    (Some(found), Some(value)) if found.value == value => {
                        Ok(Some(Applied::Written(found.mod_revision, Some(value))))
                    }
                    (None, None) => {
                        tracing::debug!(key, what, "a removal with unknown outcome has happened");
                        Ok(Some(Applied::Unchanged))
                    }
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn touched(&self) {
        self.inner.touched();
    }

    /// The keys of the cluster, for transactions that also touch this registry's records.
    #[must_use]
    pub fn cluster_keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// The store behind, for the schema registry and listings that share it.
    #[must_use]
    pub fn metadata(&self) -> Arc<dyn MetadataStore> {
        self.inner.store.clone()
    }
}

impl Inner {
    fn touched(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

fn known_tenant(name: &str) -> TenantName {
    TenantName::parse(name).expect("the literal is a tenant name")
}

/// Fills a table and keeps it filled.
async fn follow<V: DeserializeOwned + Send + Sync + 'static>(
    inner: &Arc<Inner>,
    tasks: &TaskGroup,
    what: &'static str,
    table: fn(&Inner) -> &Table<V>,
) -> Result<(), NamespaceError> {
    let mut stream = table(inner).open(&*inner.store).await?;
    let (inner, stop) = (inner.clone(), tasks.token());
    tasks.spawn(format!("namespace-watch-{what}"), OnFailure::StopProcess, async move {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = table(&inner).follow(&mut stream, || inner.touched()) => {}
            }
            loop {
                match table(&inner).open(&*inner.store).await {
                    Ok(fresh) => {
                        stream = fresh;
                        inner.touched();
                        break;
                    }
                    Err(error) => tracing::warn!(what, %error, "watch could not be opened, trying again"),
                }
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(REOPEN_PAUSE) => {}
                }
            }
        }
    });
    Ok(())
}
