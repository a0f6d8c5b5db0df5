//! Takers race over one store, lose answers and leases: at most one ever owns, and epochs rise.

use super::record::{Member, Owner};
use super::state::{BundleKeys, Outcome, Step, Take, Taker};
use futures::FutureExt as _;
use geminga_common::clock::ManualClock;
use geminga_common::ids::OwnerEpoch;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{LeaseId, MetaError, MetadataStore, Op, Txn, TxnOutcome};
use geminga_common::rng::Rng;
use std::sync::Arc;
use std::time::Duration;

fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the store in memory answers at once")
}

fn keys() -> BundleKeys {
    BundleKeys { owner: "owner/b".into(), counter: "bd/b".into() }
}

fn member(n: u64) -> Member {
    Member { id: format!("broker-{n}:1"), pulsar_url: String::new(), http_url: String::new() }
}

struct Player {
    broker: u64,
    lease: LeaseId,
    take: Take,
    /// A transaction that was sent, whose fate is still open.
    late: Option<Txn>,
}

struct World {
    store: MemoryStore,
    rng: Rng,
    next: u64,
    epochs: Vec<OwnerEpoch>,
}

impl World {
    fn grant(&self) -> LeaseId {
        now(self.store.lease_grant(Duration::from_secs(1000))).unwrap()
    }

    fn player(&mut self, broker: u64) -> Player {
        let lease = self.grant();
        let take = self.begin(broker, lease);
        Player { broker, lease, take, late: None }
    }

    fn begin(&mut self, broker: u64, lease: LeaseId) -> Take {
        self.next += 1;
        let taker = Taker { member: member(broker), process: broker + 100, lease, take: self.next };
        Take::new(keys(), taker)
    }

    fn stored(&self) -> Option<Owner> {
        now(self.store.get("owner/b")).unwrap().map(|r| Owner::decode(&r.value).unwrap())
    }

    /// Runs a transaction and notes the epoch of every taking that happens, in the order in which they happen.
    fn run(&mut self, txn: Txn) -> Result<TxnOutcome, MetaError> {
        let outcome = now(self.store.txn(txn));
        if let Ok(TxnOutcome::Committed(_)) = outcome {
            self.epochs.push(self.stored().unwrap().epoch);
        }
        outcome
    }

    fn step(&mut self, p: &mut Player) {
        match p.take.step() {
            Step::ReadOwner => p.take.owner(now(self.store.get("owner/b"))),
            Step::ReadCounter => p.take.counter(now(self.store.get("bd/b"))),
            Step::Commit(txn) => {
                let answer = match self.rng.below(4) {
                    0 => {
                        let _lost = self.run(txn);
                        Err(MetaError::Unknown("answer lost".into()))
                    }
                    1 => {
                        p.late = Some(txn);
                        Err(MetaError::Unknown("request on its way".into()))
                    }
                    _ => self.run(txn),
                };
                p.take.committed(answer);
            }
            Step::Done(Outcome::Mine(owner)) => {
                if let Some(stored) = self.stored()
                    && stored.take == owner.take
                {
                    assert_eq!(stored, owner, "the value to compare is the one that is stored");
                }
                p.take = self.begin(p.broker, p.lease);
            }
            Step::Done(Outcome::LeaseGone) => {
                p.lease = self.grant();
                p.take = self.begin(p.broker, p.lease);
            }
            Step::Done(_) => p.take = self.begin(p.broker, p.lease),
        }
    }
}

#[test]
fn races_losses_and_lapses_leave_one_owner_with_rising_epochs() {
    let mut takings = 0;
    for seed in 0..3000 {
        let store = MemoryStore::new(Arc::new(ManualClock::default()));
        let mut w = World { store, rng: Rng::seeded(seed), next: 0, epochs: Vec::new() };
        let mut players: Vec<Player> = (0..3).map(|broker| w.player(broker)).collect();
        for _ in 0..120 {
            let n = w.rng.below(3) as usize;
            let p = &mut players[n];
            match w.rng.below(12) {
                0 => drop(now(w.store.lease_revoke(p.lease))),
                1 => {
                    if let Some(txn) = p.late.take() {
                        drop(w.run(txn));
                    }
                }
                _ => w.step(p),
            }
        }
        assert!(w.epochs.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}: {:?}", w.epochs);
        takings += w.epochs.len();
    }
    assert!(takings > 5_000, "only {takings} takings: the world is too hostile to show anything");
}

#[test]
fn another_brokers_bundle_is_left_alone_and_a_former_selfs_is_taken_at_once() {
    let store = MemoryStore::new(Arc::new(ManualClock::default()));
    let mut w = World { store, rng: Rng::seeded(1), next: 0, epochs: Vec::new() };
    let former = Owner { epoch: OwnerEpoch(4), process: 1, take: 1, member: member(0) };
    let lease = w.grant();
    let put = Op::Put { key: "owner/b".into(), value: former.encode(), lease: Some(lease) };
    let counter = Op::put("bd/b", super::record::encode_epoch(OwnerEpoch(4)));
    now(w.store.txn(Txn { compares: vec![], ops: vec![put, counter] })).unwrap();
    let mut other = w.player(1);
    w.step(&mut other);
    assert_eq!(other.take.step(), Step::Done(Outcome::Other(former)));
    let mut same = w.player(0);
    same.take.owner(now(w.store.get("owner/b")));
    same.take.counter(now(w.store.get("bd/b")));
    let Step::Commit(txn) = same.take.step() else { panic!() };
    same.take.committed(w.run(txn));
    let Step::Done(Outcome::Mine(owner)) = same.take.step() else { panic!() };
    assert_eq!((owner.epoch, w.stored()), (OwnerEpoch(5), Some(owner.clone())));
}
