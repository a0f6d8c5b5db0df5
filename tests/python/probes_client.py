"""Probes through the official Python client: what an application sees."""
import json
import re
import threading
import time
import zlib

import pulsar
from pulsar import ConsumerType, InitialPosition, MessageId

from probe_context import error, probe, receive

EARLIEST = InitialPosition.Earliest


def publish(client, topic, texts, **options):
    producer = client.create_producer(topic, **options)
    ids = [None] * len(texts)
    for n, text in enumerate(texts):
        key = text.split(":")[0] if ":" in text else None

        def done(result, ident, n=n):
            ids[n] = ident if result == pulsar.Result.Ok else result

        producer.send_async(text.encode(), done, partition_key=key)
    producer.flush()
    until = time.monotonic() + 10
    while any(ident is None for ident in ids) and time.monotonic() < until:
        time.sleep(0.002)
    producer.close()
    return ids


def numbers(count):
    return [str(n) for n in range(count)]


# ---- order, batches, chunks, compression

@probe("order/unbatched")
def _(context):
    topic, texts = context.topic(), numbers(300)
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, texts)
        return receive(consumer, 300) == texts


@probe("order/batched")
def _(context):
    topic, texts = context.topic(), numbers(3000)
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, texts, batching_enabled=True, block_if_queue_full=True)
        return receive(consumer, 3000) == texts


@probe("batch/index-in-message-id")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        ids = publish(client, topic, numbers(5), batching_enabled=True, batching_max_publish_delay_ms=200)
        receive(consumer, 5)
        same = len({(ident.ledger_id(), ident.entry_id()) for ident in ids}) == 1
        return f"one entry {same}, indexes {[ident.batch_index() for ident in ids]}"


@probe("batch/key-based")
def _(context):
    topic = context.topic()
    texts = [f"{'abc'[n % 3]}:{n}" for n in range(30)]
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, texts, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased)
        got = receive(consumer, 30)
        return all([t for t in got if t[0] == k] == [t for t in texts if t[0] == k] for k in "abc")


def _compression(name):
    @probe(f"compression/{name.lower()}")
    def _(context):
        topic, texts = context.topic(), [f"{n}" * 500 for n in range(50)]
        with context.client() as client:
            consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
            kind = getattr(pulsar.CompressionType, name)
            publish(client, topic, texts, batching_enabled=True, compression_type=kind)
            return receive(consumer, 50) == texts


for _name in ("LZ4", "ZLib", "ZSTD", "SNAPPY"):
    _compression(_name)


@probe("chunks/12-mb-message")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        producer = client.create_producer(topic, chunking_enabled=True)
        data = bytes(range(256)) * 49_152
        producer.send(data)
        message = consumer.receive(timeout_millis=20_000)
        consumer.acknowledge(message)
        return f"crc equal {zlib.crc32(message.data()) == zlib.crc32(data)}"


@probe("send/too-big-without-chunks")
def _(context):
    with context.client() as client:
        producer = client.create_producer(context.topic())
        first = error(lambda: producer.send(b"x" * (5 * 1024 * 1024 + 1)))
        return f"{first} then {error(lambda: producer.send(b'small'))}"


@probe("send/5-mib-exactly-less-headers")
def _(context):
    topic, data = context.topic(), b"y" * (5 * 1024 * 1024 - 200)
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        client.create_producer(topic).send(data)
        return consumer.receive(timeout_millis=10_000).data() == data


@probe("send/empty-payload")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        client.create_producer(topic).send(b"")
        return len(consumer.receive(timeout_millis=5000).data())


@probe("send/properties-keys-event-time")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        producer = client.create_producer(topic, producer_name=context.name("me"))
        producer.send(b"x", properties={"a": "1", "b": "ü"}, partition_key="k", ordering_key="o", event_timestamp=12345,
                      sequence_id=77)
        got = consumer.receive(timeout_millis=5000)
        return got.properties(), got.partition_key(), got.ordering_key(), got.event_timestamp()


@probe("producer/name-busy")
def _(context):
    topic = context.topic()
    with context.client() as one, context.client() as two:
        one.create_producer(topic, producer_name="me")
        return error(lambda: two.create_producer(topic, producer_name="me"))


@probe("producer/last-sequence-id")
def _(context):
    topic = context.topic()
    with context.client() as client:
        producer = client.create_producer(topic, producer_name="me")
        before = producer.last_sequence_id()
        producer.send(b"x", sequence_id=41)
        return before, producer.last_sequence_id()


# ---- subscription types

@probe("exclusive/second-is-busy")
def _(context):
    topic = context.topic()
    with context.client() as one, context.client() as two:
        held = one.subscribe(topic, "s")
        return error(lambda: two.subscribe(topic, "s")), held.is_connected()


@probe("subscription/other-type-is-busy")
def _(context):
    topic = context.topic()
    with context.client() as client:
        held = client.subscribe(topic, "s", ConsumerType.Shared)
        return error(lambda: client.subscribe(topic, "s", ConsumerType.Failover)), held.is_connected()


@probe("subscription/latest-skips-what-was-there")
def _(context):
    topic = context.topic()
    with context.client() as client:
        publish(client, topic, ["before"])
        consumer = client.subscribe(topic, "s")
        publish(client, topic, ["after"])
        return receive(consumer, 1)


@probe("subscription/keeps-its-place")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, numbers(4))
        for _ in range(2):
            consumer.acknowledge(consumer.receive(timeout_millis=5000))
        consumer.close()
        return receive(client.subscribe(topic, "s"), 2)


@probe("shared/spreads-and-loses-nothing")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumers = [client.subscribe(topic, "s", ConsumerType.Shared, receiver_queue_size=10) for _ in range(2)]
        publish(client, topic, numbers(100))
        got = _collect(consumers, 100)
        return f"all {sorted(map(int, got[0] + got[1])) == list(range(100))} both {bool(got[0]) and bool(got[1])}"


def _collect(consumers, total):
    got = [[] for _ in consumers]
    quiet = 0
    while sum(map(len, got)) < total and quiet < 100:
        quiet += 1
        for n, consumer in enumerate(consumers):
            try:
                message = consumer.receive(timeout_millis=50)
            except pulsar.Timeout:
                continue
            consumer.acknowledge(message)
            got[n].append(message.data().decode())
            quiet = 0
    return got


@probe("key-shared/a-key-stays-on-one-consumer-in-order")
def _(context):
    topic = context.topic()
    texts = [f"k{n % 20}:{n}" for n in range(200)]
    with context.client() as client:
        consumers = [client.subscribe(topic, "s", ConsumerType.KeyShared, consumer_name=f"c{n}") for n in range(2)]
        publish(client, topic, texts)
        got = _collect(consumers, 200)
        keys = [{text.split(":")[0] for text in part} for part in got]
        order = all([t for t in part if t.split(":")[0] == key] == [t for t in texts if t.split(":")[0] == key]
                    for part, names in zip(got, keys) for key in names)
        return f"disjoint {not keys[0] & keys[1]} both {bool(keys[0]) and bool(keys[1])} order {order} all {sum(map(len, got))}"


@probe("key-shared/which-consumer-has-which-key")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumers = [client.subscribe(topic, "s", ConsumerType.KeyShared, consumer_name=f"c{n}") for n in range(2)]
        publish(client, topic, [f"k{n}:x" for n in range(12)])
        got = _collect(consumers, 12)
        return ["".join(sorted(text.split(":")[0] + " " for text in part)) for part in got]


@probe("failover/second-takes-over")
def _(context):
    topic = context.topic()
    with context.client() as client:
        one = client.subscribe(topic, "s", ConsumerType.Failover, consumer_name="a")
        two = client.subscribe(topic, "s", ConsumerType.Failover, consumer_name="b")
        publish(client, topic, numbers(10))
        first, second = receive(one, 10, 3000, ack=False), receive(two, 10, 1500, ack=False)
        (one if first else two).close()
        rest = receive(two if first else one, 10, 8000)
        return f"one active {bool(first) != bool(second)}, taken over in order {rest == numbers(10)}"


@probe("failover/priority-and-names-on-partitions")
def _(context):
    topic = context.topic()
    context.rest("PUT", context.path(topic) + "/partitions", 4)
    with context.client() as client:
        consumers = [client.subscribe(topic, "s", ConsumerType.Failover, consumer_name=name) for name in "ab"]
        time.sleep(2)
        texts = numbers(40)
        publish(client, topic, texts)
        got = _collect(consumers, 40)
        return sorted(map(len, got)), sorted(map(int, got[0] + got[1])) == list(range(40))


# ---- acks and redelivery

@probe("ack/cumulative")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, numbers(6))
        messages = [consumer.receive(timeout_millis=5000) for _ in range(4)]
        consumer.acknowledge_cumulative(messages[3])
        consumer.close()
        return receive(client.subscribe(topic, "s"), 2)


@probe("ack/cumulative-on-shared-refused")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", ConsumerType.Shared, initial_position=EARLIEST)
        publish(client, topic, ["x"])
        return error(lambda: consumer.acknowledge_cumulative(consumer.receive(timeout_millis=5000)))


def _batch_index(kind):
    @probe(f"ack/batch-index/{kind.name.lower()}")
    def _(context):
        topic = context.topic()
        options = dict(consumer_type=kind, batch_index_ack_enabled=True, initial_position=EARLIEST)
        with context.client() as client:
            consumer = client.subscribe(topic, "s", **options)
            publish(client, topic, numbers(6), batching_enabled=True, batching_max_publish_delay_ms=200)
            messages = [consumer.receive(timeout_millis=5000) for _ in range(6)]
            for n in (1, 3, 4):
                consumer.acknowledge(messages[n])
            consumer.close()
            return receive(client.subscribe(topic, "s", **options), 3)


for _kind in (ConsumerType.Exclusive, ConsumerType.Shared, ConsumerType.Failover, ConsumerType.KeyShared):
    _batch_index(_kind)


@probe("nack/shared-counts")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", ConsumerType.Shared, initial_position=EARLIEST,
                                    negative_ack_redelivery_delay_ms=100)
        publish(client, topic, ["x"])
        counts = []
        for _ in range(3):
            message = consumer.receive(timeout_millis=8000)
            counts.append(message.redelivery_count())
            consumer.negative_acknowledge(message)
        return counts


@probe("nack/exclusive-redelivers-all")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST, negative_ack_redelivery_delay_ms=100)
        publish(client, topic, numbers(3))
        messages = [consumer.receive(timeout_millis=5000) for _ in range(3)]
        consumer.negative_acknowledge(messages[1])
        return receive(consumer, 3)


@probe("redeliver/dead-letter-topic")
def _(context):
    topic = context.topic()
    with context.client() as client:
        policy = pulsar.ConsumerDeadLetterPolicy(2, topic + "-dead", "keep")
        consumer = client.subscribe(topic, "s", ConsumerType.Shared, initial_position=EARLIEST,
                                    negative_ack_redelivery_delay_ms=100, dead_letter_policy=policy)
        dead = client.subscribe(topic + "-dead", "d", initial_position=EARLIEST)
        publish(client, topic, ["x"])
        deliveries = 0
        for _ in range(6):
            try:
                consumer.negative_acknowledge(consumer.receive(timeout_millis=3000))
                deliveries += 1
            except pulsar.Timeout:
                break
        return deliveries, receive(dead, 1)


@probe("unsubscribe/then-nothing-is-kept")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        consumer.unsubscribe()
        return context.rest("GET", context.path(topic) + "/subscriptions")


# ---- delay

@probe("delay/shared-waits")
def _(context):
    return _delay(context, ConsumerType.Shared)


@probe("delay/exclusive-does-not")
def _(context):
    return _delay(context, ConsumerType.Exclusive)


def _delay(context, kind):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", kind, initial_position=EARLIEST)
        producer = client.create_producer(topic)
        begun = time.monotonic()
        import datetime
        producer.send(b"late", deliver_after=datetime.timedelta(seconds=2))
        producer.send(b"now")
        got = []
        for _ in range(2):
            message = consumer.receive(timeout_millis=8000)
            late = time.monotonic() - begun > 1.8
            got.append(f"{message.data().decode()} {'after' if late else 'at once'}")
        return got


# ---- seek, readers, last id

@probe("seek/by-id")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        ids = publish(client, topic, numbers(10))
        receive(consumer, 10, ack=True)
        consumer.seek(ids[6])
        return receive(consumer, 4)


@probe("seek/by-id-inclusive")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST, start_message_id_inclusive=True)
        ids = publish(client, topic, numbers(10))
        receive(consumer, 10, ack=True)
        consumer.seek(ids[6])
        return receive(consumer, 4)


@probe("seek/earliest-and-latest")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, numbers(3))
        receive(consumer, 3, ack=True)
        consumer.seek(MessageId.earliest)
        again = receive(consumer, 3)
        consumer.seek(MessageId.latest)
        return again, receive(consumer, 0)


@probe("seek/by-time")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, numbers(3))
        time.sleep(0.1)
        middle = int(time.time() * 1000)
        time.sleep(0.1)
        publish(client, topic, ["a", "b"])
        receive(consumer, 5, ack=True)
        consumer.seek(middle)
        return receive(consumer, 2)


@probe("seek/into-a-batch")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST, start_message_id_inclusive=True)
        ids = publish(client, topic, numbers(6), batching_enabled=True, batching_max_publish_delay_ms=200)
        receive(consumer, 6, ack=True)
        consumer.seek(ids[3])
        return receive(consumer, 3)


@probe("reader/earliest")
def _(context):
    topic = context.topic()
    with context.client() as client:
        publish(client, topic, numbers(5))
        return _read(client.create_reader(topic, MessageId.earliest))


@probe("reader/latest")
def _(context):
    topic = context.topic()
    with context.client() as client:
        publish(client, topic, numbers(5))
        reader = client.create_reader(topic, MessageId.latest)
        publish(client, topic, ["new"])
        return _read(reader)


@probe("reader/after-an-id")
def _(context):
    topic = context.topic()
    with context.client() as client:
        ids = publish(client, topic, numbers(5))
        return _read(client.create_reader(topic, ids[2])), \
            _read(client.create_reader(topic, ids[2], start_message_id_inclusive=True))


@probe("reader/has-message-available")
def _(context):
    topic = context.topic()
    with context.client() as client:
        reader = client.create_reader(topic, MessageId.earliest)
        empty = reader.has_message_available()
        publish(client, topic, ["x"])
        filled = reader.has_message_available()
        reader.read_next(5000)
        return empty, filled, reader.has_message_available()


def _read(reader):
    seen = []
    while True:
        try:
            seen.append(reader.read_next(timeout_millis=1500 if not seen else 600).data().decode())
        except pulsar.Timeout:
            return seen


@probe("reader/leaves-no-subscription")
def _(context):
    topic = context.topic()
    with context.client() as client:
        reader = client.create_reader(topic, MessageId.earliest)
        reader.close()
    time.sleep(0.5)
    return context.rest("GET", context.path(topic) + "/subscriptions")


@probe("last-message-id/after-publish")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s")
        ids = publish(client, topic, numbers(3))
        return consumer.get_last_message_id().entry_id() == ids[-1].entry_id()


# ---- partitions, lists, patterns

@probe("partitions/created-over-rest-are-used")
def _(context):
    topic = context.topic()
    status = context.status("PUT", context.path(topic) + "/partitions", 4)
    with context.client() as client:
        names = client.get_topic_partitions(topic)
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        publish(client, topic, numbers(40))
        return status, [n.rsplit("-", 1)[1] for n in names], sorted(map(int, receive(consumer, 40))) == list(range(40))


@probe("partitions/keys-keep-their-partition")
def _(context):
    topic = context.topic()
    context.rest("PUT", context.path(topic) + "/partitions", 4)
    with context.client() as client:
        ids = publish(client, topic, [f"k{n % 8}:{n}" for n in range(16)])
        return [ident.partition() for ident in ids[:8]], [i.partition() for i in ids[:8]] == [i.partition() for i in ids[8:]]


@probe("topics/list-subscription")
def _(context):
    topics = [context.topic() for _ in range(3)]
    with context.client() as client:
        consumer = client.subscribe(topics, "s", initial_position=EARLIEST)
        for topic in topics:
            publish(client, topic, [topic[-1]])
        return len(receive(consumer, 3))


@probe("topics/pattern-subscription")
def _(context):
    stem = context.name("pat")
    with context.client() as client:
        for n in range(3):
            publish(client, f"persistent://public/default/{stem}-{n}", [str(n)])
        pattern = re.compile(f"persistent://public/default/{stem}-.*")
        consumer = client.subscribe(pattern, "s", initial_position=EARLIEST)
        return sorted(receive(consumer, 3))


@probe("topics/pattern-finds-new-ones")
def _(context):
    stem = context.name("pat")
    with context.client() as client:
        pattern = re.compile(f"persistent://public/default/{stem}-.*")
        publish(client, f"persistent://public/default/{stem}-0", ["0"])
        consumer = client.subscribe(pattern, "s", initial_position=EARLIEST, pattern_auto_discovery_period=1)
        first = receive(consumer, 1)
        publish(client, f"persistent://public/default/{stem}-1", ["1"])
        return first, receive(consumer, 1)


# ---- end of topic, unload, non-persistent

@probe("terminate/producer-and-consumer")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        producer = client.create_producer(topic, send_timeout_millis=3000)
        producer.send(b"last")
        status = context.status("POST", context.path(topic) + "/terminate")
        return status, error(lambda: client.create_producer(topic)), receive(consumer, 1)


@probe("unload/everything-goes-on")
def _(context):
    topic = context.topic()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
        producer = client.create_producer(topic)
        producer.send(b"before")
        status = context.status("PUT", context.path(topic) + "/unload")
        producer.send(b"after")
        got = receive(consumer, 2, ack=True)
        return status, sorted(set(got))


@probe("unload/batch-index-acks")
def _(context):
    topic = context.topic()
    options = dict(consumer_type=ConsumerType.Shared, batch_index_ack_enabled=True, initial_position=EARLIEST)
    with context.client() as client:
        consumer = client.subscribe(topic, "s", **options)
        publish(client, topic, numbers(4), batching_enabled=True, batching_max_publish_delay_ms=200)
        messages = [consumer.receive(timeout_millis=5000) for _ in range(4)]
        for message in messages[:3]:
            consumer.acknowledge(message)
        consumer.close()
        context.rest("PUT", context.path(topic) + "/unload")
        return receive(client.subscribe(topic, "s", **options), 1)


@probe("non-persistent/delivers-to-who-is-there")
def _(context):
    topic = context.topic().replace("persistent", "non-persistent")
    with context.client() as client:
        consumer = client.subscribe(topic, "s")
        publish(client, topic, ["x"])
        return receive(consumer, 1)


# ---- names and schemas

@probe("names/unicode-and-blanks")
def _(context):
    with context.client() as client:
        seen = []
        for tail in ("ü ß", "a b", "%zz", "q?x", "a..b"):
            topic = context.topic() + tail
            consumer = client.subscribe(topic, "s", initial_position=EARLIEST)
            publish(client, topic, ["x"])
            seen.append(receive(consumer, 1) == ["x"])
        return seen


@probe("names/bad-ones-are-refused")
def _(context):
    with context.client() as client:
        names = ("weird://public/default/x", "persistent://public/nowhere/x", "persistent://public/default/")
        return [error(lambda name=name: client.create_producer(name)) for name in names]


@probe("schema/string-round-trip")
def _(context):
    topic = context.topic()
    schema = pulsar.schema.StringSchema()
    with context.client() as client:
        consumer = client.subscribe(topic, "s", schema=schema, initial_position=EARLIEST)
        client.create_producer(topic, schema=schema).send("grüß")
        return consumer.receive(timeout_millis=5000).value(), context.rest("GET", _schema_path(topic))[1].get("type")


class Animal(pulsar.schema.Record):
    name = pulsar.schema.String()
    legs = pulsar.schema.Integer()


class Planet(pulsar.schema.Record):
    radius = pulsar.schema.Double(required=True)


def _schema_path(topic):
    return "/admin/v2/schemas/" + topic.split("://")[1] + "/schema"


@probe("schema/json-and-versions")
def _(context):
    topic = context.topic()
    schema = pulsar.schema.JsonSchema(Animal)
    with context.client() as client:
        consumer = client.subscribe(topic, "s", schema=schema, initial_position=EARLIEST)
        producers = [client.create_producer(topic, schema=schema) for _ in range(2)]
        producers[1].send(Animal(name="cat", legs=4))
        message = consumer.receive(timeout_millis=5000)
        stored = context.rest("GET", _schema_path(topic))[1]
        return message.value().name, stored.get("version"), json.loads(stored.get("data", "{}")).get("name")


@probe("schema/incompatible-is-refused")
def _(context):
    topic = context.topic()
    with context.client() as client:
        client.create_producer(topic, schema=pulsar.schema.StringSchema())
        wrong = pulsar.schema.JsonSchema(Planet)
        return error(lambda: client.create_producer(topic, schema=wrong)), error(lambda: client.subscribe(topic, "s", schema=wrong))


@probe("client/many-producers-at-once")
def _(context):
    topic = context.topic()
    with context.client() as client:
        results = []
        threads = [threading.Thread(target=lambda: results.append(error(lambda: client.create_producer(topic).send(b"x"))))
                   for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return {result: results.count(result) for result in sorted(set(results))}
