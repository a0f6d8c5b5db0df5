//! Random lives: whatever consumers do, nothing is lost, doubled or out of order, and nothing waits without a true reason.

use proptest::prelude::*;

use super::model::{World, spec};
use crate::dispatch::*;

#[derive(Clone, Debug)]
enum Op {
    Publish { count: u64, hash: u32, messages: u32, delay_ms: Option<u64> },
    Chunked { uuid: u64, total: u32 },
    Join(u64, i32),
    Leave(u64),
    Flow(u64, u32),
    Writable(u64, bool),
    Ack(u64, usize),
    AckAll,
    Nack(u64, usize),
    NackAll(u64),
    Rewind,
    Tick(u64),
    Decide,
    Finish(usize),
    FailRead,
}

fn op() -> impl Strategy<Value = Op> {
    let who = || 0u64..5;
    prop_oneof![
        8 => (1u64..12, 1u32..9, 1u32..5, proptest::option::weighted(0.15, 1u64..3000)).prop_map(
            |(count, key, messages, delay_ms)| Op::Publish { count, hash: key * 7001, messages, delay_ms }),
        2 => (0u64..1000, 2u32..5).prop_map(|(uuid, total)| Op::Chunked { uuid, total }),
        4 => (who(), 0i32..2).prop_map(|(key, priority)| Op::Join(key, priority)),
        2 => who().prop_map(Op::Leave),
        8 => (who(), 1u32..20).prop_map(|(key, permits)| Op::Flow(key, permits)),
        2 => (who(), any::<bool>()).prop_map(|(key, on)| Op::Writable(key, on)),
        6 => (who(), 0usize..30).prop_map(|(key, at)| Op::Ack(key, at)),
        1 => Just(Op::AckAll),
        4 => (who(), 0usize..30).prop_map(|(key, at)| Op::Nack(key, at)),
        1 => who().prop_map(Op::NackAll),
        1 => Just(Op::Rewind),
        2 => (1u64..1500).prop_map(Op::Tick),
        14 => Just(Op::Decide),
        14 => (1usize..40).prop_map(Op::Finish),
        1 => Just(Op::FailRead),
    ]
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Publish { count, hash, messages, delay_ms } => {
            let due = delay_ms.map(|ms| world.now_ms + ms);
            let mut turn = 0;
            world.publish_with(count, |meta| {
                turn += 1;
                meta.sticky_hash = if turn % 3 == 0 { hash / 2 + 1 } else { hash };
                meta.messages = messages;
                meta.deliver_at_ms = due;
            });
        }
        Op::Chunked { uuid, total } => {
            let mut chunk_id = 0;
            world.publish_with(u64::from(total), |meta| {
                meta.sticky_hash = uuid as u32 + 1;
                meta.chunk = Some(ChunkRef { uuid_hash: uuid, chunk_id, total });
                chunk_id += 1;
            });
        }
        Op::Join(key, priority) => {
            if !world.clients.contains_key(&ConsumerKey(key)) {
                let _busy_on_exclusive = world.join(ConsumerSpec { priority, ..spec(key) });
            }
        }
        Op::Leave(key) => world.leave(key),
        Op::Flow(key, permits) => world.flow(key, permits),
        Op::Writable(key, on) => world.set_writable(key, on),
        Op::Ack(key, at) => {
            if let Some(&position) = world.held_by(key).get(at) {
                world.ack(position);
            }
        }
        Op::AckAll => world.ack_all(),
        Op::Nack(key, at) => {
            if let Some(&position) = world.held_by(key).get(at) {
                world.nack(key, Some(&[position]));
            }
        }
        Op::NackAll(key) => world.nack(key, None),
        Op::Rewind => {
            let floor = world.floor();
            world.rewind(floor);
        }
        Op::Tick(ms) => world.now_ms += ms,
        Op::Decide => drop(world.decide()),
        Op::Finish(most) => drop(world.finish(most)),
        Op::FailRead => world.fail_read(),
    }
}

fn small() -> DispatchConfig {
    DispatchConfig {
        read_entries_max: 16,
        round_robin_entries_max: 3,
        unacked_messages_per_consumer_max: 24,
        unacked_messages_per_subscription_max: 60,
        look_ahead_per_consumer: 20,
        look_ahead_total: 40,
        delayed_entries_max: 12,
        ..DispatchConfig::default()
    }
}

fn live(kind: SubscriptionType, ops: Vec<Op>) {
    let mut world = World::new(kind, small());
    for op in ops {
        apply(&mut world, op);
    }
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn exclusive_lives(ops in proptest::collection::vec(op(), 1..200)) {
        live(SubscriptionType::Exclusive, ops);
    }

    #[test]
    fn failover_lives(ops in proptest::collection::vec(op(), 1..200)) {
        live(SubscriptionType::Failover, ops);
    }

    #[test]
    fn shared_lives(ops in proptest::collection::vec(op(), 1..200)) {
        live(SubscriptionType::Shared, ops);
    }

    #[test]
    fn key_shared_lives(ops in proptest::collection::vec(op(), 1..200)) {
        live(SubscriptionType::KeyShared, ops);
    }
}
