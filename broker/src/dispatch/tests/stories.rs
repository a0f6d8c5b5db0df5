//! One story per rule, in the words of the subscription types.

use SubscriptionType::{Exclusive, Failover, KeyShared, Shared};

use super::model::{World, position, spec};
use crate::dispatch::*;

fn world(kind: SubscriptionType) -> World {
    World::new(kind, DispatchConfig::default())
}

fn named(key: u64, name: &str) -> ConsumerSpec {
    ConsumerSpec { name: name.into(), ..spec(key) }
}

fn sticky(key: u64, start: u16, end: u16) -> ConsumerSpec {
    ConsumerSpec { key_shared: KeySharedMode::Sticky(vec![HashRange { start, end }]), ..spec(key) }
}

fn numbers(sent: &[(u64, u64)], to: u64) -> Vec<u64> {
    sent.iter().filter(|(key, _)| *key == to).map(|(_, number)| *number).collect()
}

#[test]
fn permits_count_messages_not_entries() {
    let mut w = world(Exclusive);
    w.join(spec(1)).unwrap();
    w.publish_with(4, |meta| meta.messages = 4);
    let sent: Vec<_> = [1, 1, 3, 1]
        .map(|permits| {
            w.flow(1, permits);
            w.pump().0.len()
        })
        .into();
    assert_eq!(sent, [1, 0, 1, 0]);
    assert_eq!(w.d.wait_reason(), Some(WaitReason::NoPermits));
    assert_eq!(w.d.stats().consumers[0].permits, -2);
}

#[test]
fn exclusive_refuses_a_second_and_gives_back_everything_on_redeliver() {
    let mut w = world(Exclusive);
    w.join(spec(1)).unwrap();
    assert_eq!(w.join(spec(2)), Err(AddError::ExclusiveTaken { holder: ConsumerKey(1) }));
    assert_eq!(w.join(spec(1)), Err(AddError::AlreadyAttached { key: ConsumerKey(1) }));
    w.publish(4);
    w.flow(1, 100);
    assert_eq!(numbers(&w.pump().0, 1), [0, 1, 2, 3]);
    w.ack(position(0));
    w.ack(position(2));
    // One nack is a rewind to the floor; what was acknowledged stays away, counts stay 0 (the model checks).
    w.nack(1, Some(&[position(3)]));
    assert_eq!(numbers(&w.pump().0, 1), [1, 3]);
}

#[test]
fn a_key_range_reader_sees_its_hashes_only() {
    let mut w = world(Exclusive);
    w.join(sticky(1, 100, 199)).unwrap();
    w.flow(1, 10);
    let mut hash = 50;
    w.publish_with(6, |meta| {
        meta.sticky_hash = hash;
        hash += 50;
    });
    assert!(matches!(w.decide(), Decision::Read { .. }));
    let indexes: Vec<_> = w.finish(usize::MAX).iter().map(|delivery| delivery.index).collect();
    assert_eq!(indexes, [1, 2]);
    assert_eq!(w.d.read_position(), position(6), "the others are passed over, not waited for");
}

#[test]
fn failover_settles_before_the_new_active_consumer_reads() {
    let mut w = World::new(Failover, DispatchConfig::default());
    w.join(ConsumerSpec { priority: 1, ..spec(2) }).unwrap();
    assert_eq!(w.effects, [], "the active one hears of it when it is settled");
    w.publish(3);
    w.flow(2, 10);
    w.flow(9, 10);
    assert_eq!(w.pump().1, WaitReason::PausedForFailover(2_000));
    assert_eq!(w.d.next_wakeup_ms(), Some(2_000));
    w.now_ms = 2_000;
    assert_eq!(numbers(&w.pump().0, 2), [0, 1, 2]);
    let told =
        |consumer: u64, active| Effect::ActiveConsumerChange { consumer: ConsumerKey(consumer), active };
    assert_eq!(std::mem::take(&mut w.effects), [told(2, true)]);

    // A worse one is told at once that it is not active; a better one takes over after the delay.
    w.join(ConsumerSpec { priority: 2, ..spec(3) }).unwrap();
    assert_eq!(std::mem::take(&mut w.effects), [told(3, false)]);
    w.join(ConsumerSpec { priority: 0, ..spec(1) }).unwrap();
    assert_eq!(w.effects, []);
    w.flow(1, 10);
    assert_eq!(w.pump().1, WaitReason::PausedForFailover(3_000));
    // The old one's acknowledgement still counts; its redeliver no longer does.
    w.ack(position(0));
    w.nack(2, None);
    w.now_ms = 3_000;
    w.holder.clear();
    assert_eq!(numbers(&w.pump().0, 1), [1, 2]);
    assert_eq!(w.effects, [told(1, true), told(2, false), told(3, false)]);
}

#[test]
fn a_read_begun_for_the_old_active_consumer_is_stale() {
    let mut w = World::new(Failover, DispatchConfig { failover_delay_ms: 0, ..DispatchConfig::default() });
    w.join(ConsumerSpec { priority: 1, ..spec(2) }).unwrap();
    w.publish(3);
    w.flow(2, 10);
    assert!(matches!(w.decide(), Decision::Read { .. }));
    w.join(spec(1)).unwrap();
    w.flow(1, 10);
    assert_eq!(w.finish(usize::MAX), []);
    assert_eq!(numbers(&w.pump().0, 1), [0, 1, 2]);
}

#[test]
fn failover_of_partition_i_is_consumer_i_modulo_n_by_name() {
    for (partition, expected) in [(0, 3), (1, 1), (2, 2), (3, 3)] {
        let shape = TopicShape { name: "t".into(), partition: Some(partition) };
        let mut d = Dispatcher::new(Failover, &shape, DispatchConfig::default(), position(0));
        for (key, name) in [(1, "b"), (2, "c"), (3, "a")] {
            d.add_consumer(named(key, name), 0).unwrap();
        }
        d.add_consumer(ConsumerSpec { priority: 1, ..named(4, "0") }, 0).unwrap();
        assert_eq!(d.active_consumer(), Some(ConsumerKey(expected)), "partition {partition}");
    }
}

#[test]
fn shared_takes_turns_within_the_best_priority() {
    let mut w =
        World::new(Shared, DispatchConfig { round_robin_entries_max: 2, ..DispatchConfig::default() });
    w.join(spec(1)).unwrap();
    w.join(spec(2)).unwrap();
    w.join(ConsumerSpec { priority: 1, ..spec(3) }).unwrap();
    w.publish(12);
    for key in 1..=3 {
        w.flow(key, 4);
    }
    let (sent, reason) = w.pump();
    assert_eq!(numbers(&sent, 1), [0, 1, 4, 5]);
    assert_eq!(numbers(&sent, 2), [2, 3, 6, 7]);
    assert_eq!(numbers(&sent, 3), [8, 9, 10, 11], "only when the better ones have no permits");
    assert_eq!(reason, WaitReason::CaughtUp);
}

#[test]
fn shared_counts_redeliveries_but_not_disconnects() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    w.join(spec(2)).unwrap();
    w.publish(3);
    w.flow(1, 10);
    w.pump();
    w.nack(1, Some(&[position(2), position(0)]));
    w.nack(2, Some(&[position(1)]));
    assert_eq!(w.d.stats().replay_entries, 2, "consumer 2 cannot give back what it does not hold");
    // The model checks the count of each delivery.
    assert_eq!(numbers(&w.pump().0, 1), [0, 2], "replayed in order");
    w.flow(2, 10);
    w.leave(1);
    assert_eq!(numbers(&w.pump().0, 2), [0, 1, 2]);
    w.leave(2);
    w.join(spec(3)).unwrap();
    w.flow(3, 10);
    assert_eq!(numbers(&w.pump().0, 3), [0, 1, 2], "counts were forgotten with the last consumer");
}

#[test]
fn delayed_messages_wait_on_shared_only() {
    for (kind, early) in [(Shared, vec![1]), (Exclusive, vec![0, 1])] {
        let mut w = world(kind);
        w.join(spec(1)).unwrap();
        w.flow(1, 10);
        let mut due = Some(5_000);
        w.publish_with(2, |meta| meta.deliver_at_ms = due.take());
        assert_eq!(numbers(&w.pump().0, 1), early);
        if kind == Shared {
            assert_eq!(w.d.wait_reason(), Some(WaitReason::DelayedUntil(5_000)));
            assert_eq!(w.d.next_wakeup_ms(), Some(5_000));
            w.now_ms = 5_000;
            assert_eq!(numbers(&w.pump().0, 1), [0]);
        }
    }
}

#[test]
fn chunks_of_a_message_stay_with_one_consumer_in_order() {
    let mut w =
        World::new(Shared, DispatchConfig { round_robin_entries_max: 1, ..DispatchConfig::default() });
    w.join(spec(1)).unwrap();
    w.join(spec(2)).unwrap();
    // Messages 5 and 6 of three chunks each, interleaved: entries 0, 2, 4 and 1, 3, 5.
    let mut number = 0;
    w.publish_with(6, |meta| {
        meta.chunk = Some(ChunkRef { uuid_hash: 5 + number % 2, chunk_id: (number / 2) as u32, total: 3 });
        number += 1;
    });
    w.flow(1, 10);
    w.flow(2, 1);
    let (sent, reason) = w.pump();
    assert_eq!((numbers(&sent, 1), numbers(&sent, 2)), (vec![0, 2, 4], vec![1]));
    assert_eq!(reason, WaitReason::KeysBlocked, "consumer 1 may not have the rest of message 6");
    w.flow(2, 10);
    assert_eq!(w.pump().0, [(2, 3), (2, 5)]);
    // Consumer 2 goes: the whole message goes to another one, from its first chunk on.
    w.leave(2);
    assert_eq!(w.pump().0, [(1, 1), (1, 3), (1, 5)]);
}

#[test]
fn chunks_waiting_for_a_consumer_that_leaves_are_served_by_another() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    let mut chunk_id = 0;
    w.publish_with(3, |meta| {
        meta.chunk = Some(ChunkRef { uuid_hash: 5, chunk_id, total: 3 });
        chunk_id += 1;
    });
    w.flow(1, 1);
    assert_eq!(w.pump().0, [(1, 0)]);
    w.join(spec(2)).unwrap();
    w.flow(2, 10);
    assert_eq!(w.pump(), (vec![], WaitReason::KeysBlocked));
    w.leave(1);
    assert_eq!(w.pump().0, [(2, 0), (2, 1), (2, 2)]);
}

#[test]
fn unacked_limit_blocks_parks_permits_and_unblocks_at_half() {
    let config = DispatchConfig { unacked_messages_per_consumer_max: 4, ..DispatchConfig::default() };
    let mut w = World::new(Shared, config);
    w.join(spec(1)).unwrap();
    w.publish(20);
    w.flow(1, 4);
    assert_eq!(w.pump(), (vec![(1, 0), (1, 1), (1, 2), (1, 3)], WaitReason::ConsumerUnackedLimit));
    w.flow(1, 3);
    let stats = w.d.stats().consumers.remove(0);
    assert_eq!((stats.permits, stats.parked_permits, stats.blocked_on_unacked), (0, 3, true));
    w.ack(position(0));
    assert_eq!(w.pump().0, []);
    w.ack(position(1));
    assert_eq!(w.pump().0, [(1, 4), (1, 5)]);
    assert_eq!(w.d.stats().consumers[0].permits, 1);
}

#[test]
fn subscription_unacked_limit_unblocks_at_half() {
    let config = DispatchConfig { unacked_messages_per_subscription_max: 4, ..DispatchConfig::default() };
    let mut w = World::new(Shared, config);
    w.join(spec(1)).unwrap();
    w.flow(1, 100);
    w.publish(20);
    assert_eq!(w.pump().1, WaitReason::SubscriptionUnackedLimit);
    assert_eq!(w.d.stats().unacked_messages, 4);
    w.ack(position(0));
    assert_eq!(w.pump().0, []);
    w.ack(position(1));
    assert_eq!(w.pump().0, [(1, 4), (1, 5)]);
}

#[test]
fn batch_acks_and_moves_of_mark_delete_release_the_holder() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    w.flow(1, 100);
    w.publish_with(3, |meta| meta.messages = 5);
    w.pump();
    let released = |messages| Released { consumer: ConsumerKey(1), messages };
    assert_eq!(w.d.acked_partly(position(0), 2), Some(released(3)));
    assert_eq!(w.d.acked_partly(position(0), 2), None, "nothing new");
    assert_eq!(w.d.stats().unacked_messages, 12);
    assert_eq!(w.d.acked_below(position(2)), [released(7)]);
    assert_eq!(w.d.acked(position(2)), Some(released(5)));
    assert_eq!(w.d.acked(position(2)), None);
    assert_eq!(w.d.stats().unacked_messages, 0);
}

#[test]
fn skipping_the_backlog_moves_the_read_position_and_forgets_what_waited() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    w.publish(100);
    w.flow(1, 3);
    w.pump();
    w.nack(1, None);
    assert_eq!(w.d.stats().replay_entries, 3);
    w.d.acked_below(position(90));
    assert_eq!(w.d.read_position(), position(90));
    assert_eq!(w.d.stats().replay_entries, 0);
}

#[test]
fn seek_forgets_holders_and_fences_meanwhile() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    w.publish(5);
    w.flow(1, 5);
    w.pump();
    w.publish(1);
    w.flow(1, 10);
    assert!(matches!(w.decide(), Decision::Read { .. }));
    w.d.set_fenced(true);
    assert_eq!(w.finish(usize::MAX), [], "the read is stale");
    assert_eq!(w.pump().1, WaitReason::Fenced);
    w.d.reset(position(3));
    w.holder.clear();
    // The sought cursor has no use for what is before.
    w.acked.extend((0..3).map(position));
    w.d.set_fenced(false);
    assert_eq!(w.pump().0, [(1, 3), (1, 4), (1, 5)]);
    assert_eq!(w.d.stats().unacked_messages, 3);
}

#[test]
fn a_failed_read_is_followed_by_small_ones() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    w.flow(1, 1000);
    w.publish(500);
    let asked = |decision| match decision {
        Decision::Read { entries, .. } => entries,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(w.decide()), 100);
    assert_eq!(w.decide(), Decision::Wait(WaitReason::ReadPending));
    w.fail_read();
    assert_eq!(asked(w.decide()), 1);
    w.finish(usize::MAX);
    assert_eq!(asked(w.decide()), 2);
}

#[test]
fn key_shared_modes_and_ranges_are_checked() {
    let mut w = world(KeyShared);
    w.join(sticky(1, 0, 99)).unwrap();
    assert_eq!(w.join(spec(2)), Err(AddError::KeySharedModeMismatch));
    let wild = ConsumerSpec { allow_out_of_order: true, ..sticky(2, 100, 200) };
    assert_eq!(w.join(wild), Err(AddError::OutOfOrderMismatch));
    let range = HashRange { start: 99, end: 120 };
    assert_eq!(w.join(sticky(2, 99, 120)), Err(AddError::RangeTaken { range, holder: ConsumerKey(1) }));
    let none = ConsumerSpec { key_shared: KeySharedMode::Sticky(vec![]), ..spec(2) };
    assert_eq!(w.join(none), Err(AddError::NoRanges));
    let range = HashRange { start: 9, end: 3 };
    assert_eq!(w.join(sticky(2, 9, 3)), Err(AddError::BadRange { range }));
    w.join(sticky(2, 100, 65_535)).unwrap();
    w.leave(1);
    w.leave(2);
    w.join(spec(3)).unwrap();
}

#[test]
fn a_hash_that_nobody_declared_waits_for_somebody_who_does() {
    let mut w = world(KeyShared);
    w.join(sticky(1, 0, 99)).unwrap();
    w.flow(1, 10);
    let mut hash = 50;
    w.publish_with(4, |meta| {
        meta.sticky_hash = hash;
        hash = 200 - hash;
    });
    assert_eq!(w.pump(), (vec![(1, 0), (1, 2)], WaitReason::KeysBlocked));
    w.join(sticky(2, 100, 199)).unwrap();
    w.flow(2, 10);
    assert_eq!(w.pump().0, [(2, 1), (2, 3)]);
}

#[test]
fn a_moved_key_drains_at_its_old_owner_first() {
    let mut w = world(KeyShared);
    w.join(spec(1)).unwrap();
    w.flow(1, 1000);
    let mut key = 0u32;
    let mut publish = |w: &mut World| {
        w.publish_with(50, |meta| {
            meta.sticky_hash = hashing::sticky_hash(&(key % 50).to_le_bytes());
            key += 1;
        });
    };
    publish(&mut w);
    assert_eq!(w.pump().0.len(), 50);
    w.join(spec(2)).unwrap();
    w.flow(2, 1000);
    publish(&mut w);
    let (sent, reason) = w.pump();
    assert!(numbers(&sent, 2).is_empty(), "its keys are all outstanding at consumer 1");
    assert_eq!(reason, WaitReason::KeysBlocked);
    let draining = w.d.stats().draining;
    assert!(!draining.is_empty() && draining.iter().all(|hash| hash.holder == ConsumerKey(1)));
    assert!(draining.iter().all(|hash| hash.unacked_entries == 1 && hash.blocked_attempts == 1));

    let first =
        w.log.iter().position(|meta| hashing::auto_split_slot(meta.sticky_hash) == draining[0].hash).unwrap()
            as u64;
    w.ack(position(first));
    assert_eq!(w.pump().0, [(2, first + 50)], "one key is free");
    assert_eq!(w.d.stats().draining_cleared_total, 1);
    // The newcomer leaves again: the other keys return to their old owner at once.
    w.leave(2);
    let (sent, reason) = w.pump();
    assert_eq!((sent.len(), reason), (draining.len(), WaitReason::CaughtUp));
    assert_eq!(w.d.stats().draining, []);
}

#[test]
fn a_key_with_a_held_entry_holds_the_later_ones_and_other_keys_pass() {
    let mut w = world(KeyShared);
    w.join(sticky(1, 0, 99)).unwrap();
    w.join(sticky(2, 100, 199)).unwrap();
    let mut hash = 150;
    w.publish_with(6, |meta| {
        meta.sticky_hash = hash;
        hash = 200 - hash;
    });
    w.flow(2, 1);
    w.flow(1, 10);
    assert_eq!(w.pump(), (vec![(2, 0), (1, 1), (1, 3), (1, 5)], WaitReason::KeysBlocked));
    w.flow(2, 10);
    assert_eq!(w.pump().0, [(2, 2), (2, 4)]);
}

#[test]
fn the_look_ahead_is_bounded() {
    let mut w =
        World::new(KeyShared, DispatchConfig { look_ahead_per_consumer: 10, ..DispatchConfig::default() });
    w.join(sticky(1, 0, 99)).unwrap();
    w.join(sticky(2, 100, 199)).unwrap();
    w.publish_with(500, |meta| meta.sticky_hash = 150);
    w.flow(1, 100);
    assert_eq!(w.pump().1, WaitReason::KeysBlocked);
    assert_eq!((w.d.stats().replay_entries, w.d.read_position()), (20, position(20)));
    w.flow(2, 1000);
    assert_eq!(w.pump().0.len(), 500);
}

#[test]
fn out_of_order_keys_do_not_drain() {
    let mut w = world(KeyShared);
    let wild = |key| ConsumerSpec { allow_out_of_order: true, ..spec(key) };
    let mut d = Dispatcher::new(KeyShared, &super::model::shape(), DispatchConfig::default(), position(0));
    d.add_consumer(wild(1), 0).unwrap();
    w.publish_with(200, |meta| {
        meta.sticky_hash = hashing::sticky_hash(&(meta.position.entry.0 % 50).to_le_bytes())
    });
    let serve = |d: &mut Dispatcher, from: usize, to: usize| {
        let view = LogView { floor: position(0), end: position(to as u64) };
        let Decision::Read { read, .. } = d.decide(0, view, &mut Vec::new()) else { panic!("reads") };
        let mut out = Vec::new();
        d.offer(read, &w.log[from..to], position(to as u64), 0, &mut out);
        out
    };
    d.flow(ConsumerKey(1), 1000);
    serve(&mut d, 0, 50);
    d.add_consumer(wild(2), 0).unwrap();
    d.flow(ConsumerKey(2), 1000);
    let out = serve(&mut d, 50, 100);
    assert_eq!(out.len(), 50);
    assert!(out.iter().any(|delivery| delivery.consumer == ConsumerKey(2)));
    assert_eq!(d.stats().draining, []);
}

#[test]
fn the_ring_spreads_hashes_and_moves_few() {
    let owners = |d: &Dispatcher| -> Vec<(ConsumerKey, u32)> {
        let share = |c: &ConsumerStats| c.hash_ranges.iter().map(|r| u32::from(r.end - r.start) + 1).sum();
        d.stats().consumers.iter().map(|c| (c.key, share(c))).collect()
    };
    let mut d = Dispatcher::new(KeyShared, &super::model::shape(), DispatchConfig::default(), position(0));
    for key in 1..=4 {
        // All of one name: the name index tells them apart.
        d.add_consumer(named(key, "same"), 0).unwrap();
    }
    let before = owners(&d);
    assert_eq!(before.iter().map(|(_, share)| share).sum::<u32>(), 65_535);
    assert!(before.iter().all(|(_, share)| (8_000..28_000).contains(share)), "{before:?}");
    d.remove_consumer(ConsumerKey(2), 0);
    for (key, share) in owners(&d) {
        let old = before.iter().find(|(k, _)| *k == key).unwrap().1;
        assert!(share >= old, "nobody loses hashes when another leaves");
    }
}

#[test]
fn a_sticky_key_given_back_is_not_overtaken_by_a_replay_under_way() {
    let mut w = world(KeyShared);
    w.join(spec(1)).unwrap();
    w.publish(3);
    w.flow(1, 1);
    assert_eq!(w.pump().0, [(1, 0)]);
    w.flow(1, 1);
    w.pump();
    w.nack(1, Some(&[position(1)]));
    w.flow(1, 10);
    assert!(matches!(w.decide(), Decision::Replay { .. }));
    w.nack(1, Some(&[position(0)]));
    assert_eq!(w.finish(usize::MAX), []);
    assert_eq!(w.pump().0, [(1, 0), (1, 1), (1, 2)]);
}

/// Seen on Apache Pulsar 4.2.4 with these names.
#[test]
fn failover_on_a_plain_topic_chooses_as_pulsar_does() {
    for (topic, expected) in [("ring-a", "gamma"), ("ring-b", "beta"), ("ring-c", "gamma")] {
        let shape = TopicShape { name: format!("persistent://public/default/{topic}"), partition: None };
        let mut d = Dispatcher::new(Failover, &shape, DispatchConfig::default(), position(0));
        for (key, name) in [(1, "alpha"), (2, "beta"), (3, "gamma")] {
            d.add_consumer(named(key, name), 0).unwrap();
        }
        let stats = d.stats();
        let active: Vec<_> = stats.consumers.iter().filter(|c| c.active).map(|c| c.name.as_str()).collect();
        assert_eq!(active, [expected], "{topic}");
    }
}

/// Seen on Apache Pulsar 4.2.4: the first ranges of each consumer, and which keys of `key-0`.. each received.
#[test]
fn key_shared_places_hashes_as_pulsar_does() {
    let mut d = Dispatcher::new(KeyShared, &super::model::shape(), DispatchConfig::default(), position(0));
    for (key, name) in [(0, "consumer-1"), (1, "consumer-2"), (2, "consumer-1")] {
        d.add_consumer(named(key, name), 0).unwrap();
    }
    let stats = d.stats();
    let first = |index: usize| -> Vec<_> {
        stats.consumers[index].hash_ranges.iter().take(4).map(|r| (r.start, r.end)).collect()
    };
    assert_eq!(first(0), [(1, 34), (1315, 1435), (2341, 3241), (3788, 4442)]);
    assert_eq!(first(1), [(35, 935), (1436, 1761), (2082, 2340), (4443, 5157)]);
    assert_eq!(first(2), [(936, 1314), (1762, 2081), (3242, 3787), (5785, 6368)]);
    let keys = |index: usize| -> Vec<u32> {
        let mine = |hash: u16| stats.consumers[index].hash_ranges.iter().any(|range| range.contains(hash));
        (0..40)
            .filter(|n| mine(hashing::auto_split_slot(hashing::sticky_hash(format!("key-{n}").as_bytes()))))
            .collect()
    };
    assert_eq!(keys(0), [2, 7, 8, 11, 13, 19, 21, 22, 24, 30, 32, 39]);
    assert_eq!(keys(1), [0, 3, 4, 5, 9, 12, 14, 15, 17, 18, 20, 31, 33, 37, 38]);
    assert_eq!(keys(2), [1, 6, 10, 16, 23, 25, 26, 27, 28, 29, 34, 35, 36]);
}

#[test]
fn the_next_consumers_may_share_keys_in_another_way() {
    let mut w = world(KeyShared);
    w.join(spec(1)).unwrap();
    w.flow(1, 10);
    w.publish_with(4, |meta| meta.sticky_hash = 65_535 + 40 * meta.position.entry.0 as u32);
    w.pump();
    w.leave(1);
    // 65535 and 65575, 65615, 65655 modulo 65536.
    w.join(sticky(2, 30, 100)).unwrap();
    w.join(sticky(3, 101, 65_535)).unwrap();
    w.flow(2, 10);
    w.flow(3, 10);
    let (sent, reason) = w.pump();
    assert_eq!((numbers(&sent, 2), numbers(&sent, 3)), (vec![1, 2], vec![0, 3]));
    assert_eq!(reason, WaitReason::CaughtUp);
    w.drain();
}

#[test]
fn a_later_chunk_read_meanwhile_does_not_overtake_a_waiting_one() {
    let mut w = world(Shared);
    w.join(spec(1)).unwrap();
    let mut chunk_id = 0;
    let mut chunk = |meta: &mut EntryMeta| {
        meta.chunk = Some(ChunkRef { uuid_hash: 5, chunk_id, total: 3 });
        chunk_id += 1;
    };
    w.publish_with(2, &mut chunk);
    w.flow(1, 1);
    w.pump();
    w.join(spec(2)).unwrap();
    w.flow(2, 10);
    assert_eq!(w.pump(), (vec![], WaitReason::KeysBlocked));
    w.publish_with(1, &mut chunk);
    assert!(matches!(w.decide(), Decision::Read { .. }));
    w.flow(1, 10);
    assert_eq!(w.finish(usize::MAX), []);
    assert_eq!(w.pump().0, [(1, 1), (1, 2)]);
}
