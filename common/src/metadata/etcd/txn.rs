//! Transactions in etcd's terms.
//!
//! Two conditions have no counterpart there. "At revision 0" never holds and becomes "version below 0". "Below this value, or
//! absent" is an *or*, and etcd joins conditions with *and* only: each such key is compared in one of the two ways, and the
//! branch that runs when conditions fail reads it at the same revision. If that shows that a key was compared in the wrong way,
//! the transaction is sent again with the other one; nothing has happened until then. The way that was right is remembered.

use super::super::{Compare, LeaseId, MetaError, Op, Revision, Txn, TxnOutcome};
use super::EtcdStore;
use super::call::Failure;
use etcd_client as etcd;
use etcd_client::{CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse};
use std::collections::BTreeMap;

/// Changes of mind about one transaction's `ValueBelow` keys. Each needs somebody to create or remove such a key meanwhile.
const TURNS: usize = 16;

/// How a `ValueBelow` key is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Absent,
    Below,
}

type Ways = BTreeMap<String, Way>;

fn compare(compare: &Compare, ways: &Ways) -> etcd::Compare {
    match compare {
        Compare::Absent(key) => etcd::Compare::version(key.as_str(), CompareOp::Equal, 0),
        Compare::Exists(key) => etcd::Compare::version(key.as_str(), CompareOp::Greater, 0),
        // An absent key has revision 0 in etcd's eyes; here none does.
        Compare::ModRevision(key, Revision(0)) => etcd::Compare::version(key.as_str(), CompareOp::Less, 0),
        Compare::ModRevision(key, revision) => {
            etcd::Compare::mod_revision(key.as_str(), CompareOp::Equal, revision.0 as i64)
        }
        Compare::ValueIs(key, value) => etcd::Compare::value(key.as_str(), CompareOp::Equal, value.to_vec()),
        Compare::ValueBelow(key, _) if ways.get(key) == Some(&Way::Absent) => {
            etcd::Compare::version(key.as_str(), CompareOp::Equal, 0)
        }
        Compare::ValueBelow(key, bound) => {
            etcd::Compare::value(key.as_str(), CompareOp::Less, bound.to_vec())
        }
    }
}

fn op(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0 as i64));
            TxnOp::put(key.as_str(), value.to_vec(), options)
        }
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

fn request(txn: &Txn, ways: &Ways) -> etcd::Txn {
    let look = |key: &str| TxnOp::get(key, Some(GetOptions::new().with_keys_only()));
    let mut ops: Vec<TxnOp> = txn.ops.iter().map(op).collect();
    let mut otherwise: Vec<TxnOp> = ways.keys().map(|key| look(key)).collect();
    if ops.is_empty() {
        // etcd takes a transaction without any read or write for one that may be answered from old data.
        ops.push(look("\0"));
        otherwise.push(look("\0"));
    }
    let compares: Vec<_> = txn.compares.iter().map(|c| compare(c, ways)).collect();
    etcd::Txn::new().when(compares).and_then(ops).or_else(otherwise)
}

/// Which keys, as the failed transaction saw them, were compared in the wrong way.
fn turn(ways: &mut Ways, seen: &[TxnOpResponse]) -> bool {
    let mut turned = false;
    for (way, answer) in ways.values_mut().zip(seen) {
        let TxnOpResponse::Get(answer) = answer else { continue };
        let right = if answer.kvs().is_empty() { Way::Absent } else { Way::Below };
        turned |= *way != right;
        *way = right;
    }
    turned
}

impl EtcdStore {
    fn first_ways(&self, txn: &Txn) -> Ways {
        let absent = self.absent_bounds.lock();
        let below = txn.compares.iter().filter_map(|compare| match compare {
            Compare::ValueBelow(key, _) => Some(key),
            _ => None,
        });
        below.map(|key| (key.clone(), if absent.contains(key) { Way::Absent } else { Way::Below })).collect()
    }

    fn remember(&self, ways: &Ways) {
        let mut absent = self.absent_bounds.lock();
        for (key, way) in ways {
            match way {
                Way::Absent => absent.insert(key.clone()),
                Way::Below => absent.remove(key),
            };
        }
    }

    pub(super) async fn run(&self, txn: Txn) -> Result<TxnOutcome, MetaError> {
        let mut ways = self.first_ways(&txn);
        for _ in 0..TURNS {
            let call = || {
                let (mut kv, request) = (self.client.kv_client(), request(&txn, &ways));
                async move { kv.txn(request).await }
            };
            let answer = self.calls.at_most_once(call).await.map_err(|f| failure(f, &txn))?;
            if answer.succeeded() {
                let header = answer.header().ok_or_else(no_header)?;
                return Ok(TxnOutcome::Committed(Revision(header.revision() as u64)));
            }
            if ways.is_empty() || !turn(&mut ways, &answer.op_responses()) {
                return Ok(TxnOutcome::CompareFailed);
            }
            self.remember(&ways);
        }
        Err(MetaError::Unavailable("a bound appears and vanishes all the time".to_owned()))
    }
}

fn no_header() -> MetaError {
    MetaError::Unknown("etcd answered without a header".to_owned())
}

fn failure(failure: Failure, txn: &Txn) -> MetaError {
    match failure {
        Failure::Doubt(why) => MetaError::Unknown(why),
        Failure::LeaseGone => MetaError::LeaseGone(txn.leases().next().unwrap_or(LeaseId(0))),
        Failure::TooFar => MetaError::Unknown("the answer to a transaction is too large".to_owned()),
        Failure::NotSent(why) | Failure::Refused(why) => MetaError::Unavailable(why),
    }
}
