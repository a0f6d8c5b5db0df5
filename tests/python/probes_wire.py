"""Probes with hand-made frames: bad input, handshake, and answers that clients hide."""
import struct
import time

from probe_context import probe
from wire import MAX_U64, batch, command, message, metadata, parse, payload_of, send, signed

PINGED = ("PONG", "closed")


def after_connect(context, data, wait=3.0):
    with context.raw() as raw:
        return str(raw.ask(data, wait))


def neighbour_lives(context, data):
    """Sends rubbish on one connection while another publishes."""
    topic = context.topic()
    with context.raw() as good, context.raw() as bad:
        good.producer(topic)
        bad.ask(data, 2)
        return f"neighbour {good.publish()}"


# ---- frames

def _size_probe(name, data):
    probe(f"frame/{name}")(lambda context: after_connect(context, data))
    probe(f"frame/{name}/before-connect")(lambda context: _first(context, data))


def _first(context, data, wait=3.0):
    with context.raw(handshake=False) as raw:
        return str(raw.ask(data, wait))


_size_probe("total-0", struct.pack(">I", 0))
_size_probe("total-1", struct.pack(">IB", 1, 0))
_size_probe("total-2^31-1", struct.pack(">II", 2**31 - 1, 10))
_size_probe("total-2^32-1", struct.pack(">II", 2**32 - 1, 10))
_size_probe("command-over-frame", struct.pack(">II", 20, 100) + bytes(16))


@probe("frame/rubbish-disturbs-nobody")
def _(context):
    return neighbour_lives(context, struct.pack(">II", 2**32 - 1, 2**32 - 1) + b"\xff" * 64)


@probe("frame/unparsable-command")
def _(context):
    return after_connect(context, struct.pack(">II", 12, 8) + b"\xff" * 8)


@probe("frame/unknown-command-type")
def _(context):
    body = message((1, 250))
    with context.raw() as raw:
        raw.write(struct.pack(">II", len(body) + 4, len(body)) + body)
        return f"then {raw.ask(command('PING'))}"


@probe("frame/one-byte-at-a-time")
def _(context):
    with context.raw() as raw:
        for byte in command("PING"):
            raw.write(bytes([byte]))
            time.sleep(0.005)
        return raw.answer()


@probe("frame/two-commands-in-one-packet")
def _(context):
    with context.raw() as raw:
        first = raw.ask(command("PING") + command("PING"))
        return f"{first} {raw.answer()}"


@probe("frame/over-max-message-size")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        size = 5 * 1024 * 1024 + 11 * 1024
        raw.write(struct.pack(">II", size, 20) + bytes(1000))
        return raw.answer()


# ---- handshake

@probe("handshake/connected")
def _(context):
    with context.raw() as raw:
        answer = raw.connected
        return f"{answer} version {answer.get(2)} max {answer.get(3)} server-version {'set' if answer.text(1) else 'empty'}"


@probe("handshake/old-client-version")
def _(context):
    with context.raw(handshake=False) as raw:
        return raw.ask(command("CONNECT", (1, "old"), (4, 12))).get(2)


@probe("handshake/newer-client-version")
def _(context):
    with context.raw(handshake=False) as raw:
        return raw.ask(command("CONNECT", (1, "new"), (4, 99))).get(2)


@probe("handshake/feature-flags")
def _(context):
    with context.raw() as raw:
        return sorted(number for number, value in parse(raw.connected.get(4, b"")).items() if value[0])


@probe("handshake/any-auth-method-while-off")
def _(context):
    with context.raw(handshake=False) as raw:
        return raw.ask(command("CONNECT", (1, "a"), (3, b"secret"), (4, 20), (5, "token")))


@probe("handshake/ping-first")
def _(context):
    with context.raw(handshake=False) as raw:
        return f"{raw.ask(command('PING'))} then {raw.ask(command('CONNECT', (1, 'c'), (4, 20)))}"


@probe("handshake/second-connect")
def _(context):
    return after_connect(context, command("CONNECT", (1, "c"), (4, 20)))


@probe("handshake/stray-pong")
def _(context):
    with context.raw() as raw:
        raw.write(command("PONG"))
        return raw.ask(command("PING"))


@probe("handshake/proxy-to-broker-url-ignored")
def _(context):
    with context.raw(handshake=False) as raw:
        return raw.ask(command("CONNECT", (1, "c"), (4, 20), (6, "localhost:1")))


def _before_connect(name, *fields):
    probe(f"before-connect/{name.lower()}")(lambda context: _first(context, command(name, *fields)))


_before_connect("PRODUCER", (1, "persistent://public/default/early"), (2, 1), (3, 1))
_before_connect("SUBSCRIBE", (1, "persistent://public/default/early"), (2, "s"), (3, 0), (4, 1), (5, 1))
_before_connect("LOOKUP", (1, "persistent://public/default/early"), (2, 1))
_before_connect("FLOW", (1, 1), (2, 1))
_before_connect("SEND", (1, 1), (2, 1))
_before_connect("GET_TOPICS_OF_NAMESPACE", (1, 1), (2, "public/default"))


# ---- lookup and names

def _metadata_request(name, topic):
    @probe(f"lookup/partitions/{name}")
    def _(context):
        with context.raw() as raw:
            answer = raw.ask(command("PARTITIONED_METADATA", (1, topic or context.topic()), (2, 5)))
            return f"{answer} partitions {answer.get(1)}"


def _lookup(name, topic):
    @probe(f"lookup/topic/{name}")
    def _(context):
        with context.raw() as raw:
            answer = raw.ask(command("LOOKUP", (1, topic or context.topic()), (2, 5)))
            return f"{answer} type {answer.get(3)}"


for _make in (_metadata_request, _lookup):
    _make("new", None)
    _make("missing-namespace", "persistent://public/nowhere/t")
    _make("missing-tenant", "persistent://nobody/nowhere/t")
    _make("v1-name", "persistent://public/standalone/ns/t")
    _make("bad-domain", "weird://public/default/t")
    _make("bad-name", "persistent://public/default")


@probe("lookup/answer-names-a-url-with-port")
def _(context):
    with context.raw() as raw:
        answer = raw.ask(command("LOOKUP", (1, context.topic()), (2, 5)))
        url = answer.text(1)
        return f"{url.split(':')[0]} port {'yes' if url.rsplit(':', 1)[-1].isdigit() else 'no'} tls {2 in answer.fields}"


@probe("lookup/partition-without-parent")
def _(context):
    with context.raw() as raw:
        return raw.producer(context.topic() + "-partition-3")


@probe("lookup/topic-of-70000-characters")
def _(context):
    with context.raw() as raw:
        return raw.producer(context.topic() + "x" * 70_000)


# ---- producers

@probe("producer/generated-name")
def _(context):
    with context.raw() as raw:
        answer = raw.producer(context.topic())
        return f"{answer} name {'set' if answer.text(2) else 'empty'} last-sequence {signed(answer.get(3))}"


@probe("producer/missing-namespace")
def _(context):
    with context.raw() as raw:
        return raw.producer("persistent://public/nowhere/t")


@probe("producer/same-name-other-connection-alive")
def _(context):
    topic = context.topic()
    with context.client() as client, context.raw() as other:
        client.create_producer(topic, producer_name="me")
        return other.producer(topic, name="me")


@probe("producer/same-name-silent-holder-is-replaced")
def _(context):
    topic = context.topic()
    with context.raw(pong=False) as holder, context.raw() as other:
        holder.producer(topic, name="me")
        frame = command("PRODUCER", (1, topic), (2, 1), (3, 7), (4, "me"))
        return other.ask(frame, 15)


@probe("producer/same-id-twice")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        return raw.producer(topic)


@probe("producer/exclusive-on-shared")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic, 1)
        return raw.producer(topic, 2, mode=1)


@probe("producer/shared-on-exclusive")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic, 1, mode=1)
        return raw.producer(topic, 2)


@probe("producer/wait-for-exclusive")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic, 1, mode=1)
        waiting = raw.producer(topic, 2, mode=2)
        raw.write(command("CLOSE_PRODUCER", (1, 1), (2, 90)))
        later = raw.until("PRODUCER_SUCCESS")
        return f"ready {waiting.get(6)} then ready {later.get(6, 1)} epoch {'set' if later.get(5) is not None else 'none'}"


@probe("producer/exclusive-with-fencing")
def _(context):
    topic = context.topic()
    with context.raw() as old, context.raw() as new:
        old.producer(topic, 1, mode=1)
        answer = new.producer(topic, 2, mode=3)
        return f"{answer}, fenced sends: {old.publish()}"


@probe("producer/close-unknown")
def _(context):
    return after_connect(context, command("CLOSE_PRODUCER", (1, 77), (2, 5)))


@probe("producer/initial-subscription")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic, extra=((13, "first"),))
        return sorted(context.rest("GET", context.path(topic) + "/subscriptions")[1])


# ---- send

@probe("send/receipt-echoes-ids")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        body, extra = batch([b"a", b"b", b"c"])
        answer = raw.publish(body, 40, extra=extra, fields=((3, 3), (6, 42)))
        return f"{answer} producer {answer.get(1)} sequence {answer.get(2)} highest {answer.get(4)} entry {answer.message_id[1]}"


@probe("send/receipts-in-order")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        frames = [send(1, n, metadata(n), b"x" * (1 + n * 37 % 5000)) for n in range(200)]
        raw.write(b"".join(frames))
        answers = [raw.answer() for _ in frames]
        ids = [answer.message_id for answer in answers]
        return f"sequences {'in order' if [a.get(2) for a in answers] == list(range(200)) else 'mixed'}, ids " \
               f"{'rise' if ids == sorted(set(ids)) else 'do not rise'}"


@probe("send/unknown-producer")
def _(context):
    with context.raw() as raw:
        return raw.publish(ident=9)


@probe("send/closed-producer")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        raw.ask(command("CLOSE_PRODUCER", (1, 1), (2, 5)))
        return raw.publish()


@probe("send/wrong-checksum")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        return f"{raw.publish(checksum='wrong')} then {raw.publish(sequence=1)}"


@probe("send/no-checksum")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        return raw.publish(checksum="none")


@probe("send/payload-comes-back-byte-for-byte")
def _(context):
    topic, payload = context.topic(), bytes(range(256)) * 17
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        raw.write(send(1, 0, metadata(0), payload))
        raw.flow(10, 5)
        got = raw.until("MESSAGE")
        return payload_of(got) == payload


@probe("send/wrong-magic")
def _(context):
    with context.raw() as raw:
        raw.producer(context.topic())
        return raw.publish(checksum="wrong-magic")


@probe("send/unparsable-metadata")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        first = raw.ask(send(1, 0, b"\xff\xff\xff", b"bad"))
        second = raw.publish(b"good", 1)
        raw.flow(10, 5)
        return f"{first} then {second}, delivered {[payload_of(m).decode() for m in raw.messages()]}"


@probe("send/flags-pass-through")
def _(context):
    topic = context.topic()
    key = message((1, "k"), (2, b"wrapped"))
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        raw.publish(b"opaque", extra=((8, 3), (9, 999), (13, key), (14, "AES"), (15, b"iv"), (16, b"v"), (18, b"o")))
        raw.flow(1, 5)
        rest = raw.until("MESSAGE").rest[6:]
        fields = parse(rest[4:4 + struct.unpack(">I", rest[:4])[0]])
        return {n: fields[n][0] for n in (8, 9, 14, 15, 16, 18)} | {"keys": fields[13][0] == key}


@probe("send/after-terminate")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        raw.publish()
        context.rest("POST", context.path(topic) + "/terminate")
        seen = raw.publish(sequence=1)
        with context.raw() as other:
            return f"{seen}, new producer {other.producer(topic)}"


# ---- subscribe and flow

@probe("subscribe/missing-namespace")
def _(context):
    with context.raw() as raw:
        return raw.subscribe("persistent://public/nowhere/t")


@probe("subscribe/empty-name")
def _(context):
    with context.raw() as raw:
        return raw.subscribe(context.topic(), sub="")


@probe("subscribe/same-consumer-id-again")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic)
        return raw.subscribe(topic)


@probe("subscribe/no-force-creation-of-missing-topic")
def _(context):
    with context.raw() as raw:
        return raw.subscribe(context.topic(), extra=((15, 0),))


@probe("subscribe/second-exclusive-alive")
def _(context):
    topic = context.topic()
    with context.client() as client, context.raw() as other:
        consumer = client.subscribe(topic, "s")
        return f"{other.subscribe(topic)} {consumer.is_connected()}"


@probe("subscribe/second-exclusive-replaces-silent-holder")
def _(context):
    topic = context.topic()
    with context.raw(pong=False) as holder, context.raw() as other:
        holder.subscribe(topic)
        other.write(command("SUBSCRIBE", (1, topic), (2, "s"), (3, 0), (4, 1), (5, 7)))
        return other.until("SUCCESS", "ERROR", wait=15)


@probe("subscribe/other-type")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, kind=1)
        return raw.subscribe(topic, kind=3, ident=2)


@probe("subscribe/failover-tells-the-newcomer")
def _(context):
    topic = context.topic()
    with context.raw() as first, context.raw() as second:
        frame = command("SUBSCRIBE", (1, topic), (2, "s"), (3, 2), (4, 1), (5, 9), (6, "a"))
        first.write(frame)
        seen = [first.answer(3) for _ in range(2)]
        return sorted(f"{answer.name}{' active' if answer.get(2) else ''}" for answer in seen)


@probe("subscribe/sticky-overlap")
def _(context):
    topic = context.topic()
    ranges = message((1, 1), (3, message((1, 0), (2, 100))))
    with context.raw() as raw:
        raw.subscribe(topic, kind=3, extra=((17, ranges),))
        overlap = message((1, 1), (3, message((1, 50), (2, 200))))
        return raw.subscribe(topic, kind=3, ident=2, extra=((17, overlap),))


@probe("subscribe/sticky-joins-auto-split")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, kind=3)
        return raw.subscribe(topic, kind=3, ident=2, extra=((17, message((1, 1), (3, message((1, 0), (2, 9))))),))


@probe("subscribe/close-unknown-consumer")
def _(context):
    return after_connect(context, command("CLOSE_CONSUMER", (1, 77), (2, 5)))


@probe("subscribe/unsubscribe-with-others-connected")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, kind=1, ident=1)
        raw.subscribe(topic, kind=1, ident=2)
        raw.write(command("UNSUBSCRIBE", (1, 1), (2, 55)))
        return raw.until("SUCCESS", "ERROR")


@probe("subscribe/forced-unsubscribe-closes-others")
def _(context):
    topic = context.topic()
    with context.raw() as one, context.raw() as two:
        one.subscribe(topic, kind=1)
        two.subscribe(topic, kind=1)
        one.write(command("UNSUBSCRIBE", (1, 1), (2, 55), (3, 1)))
        return f"{one.until('SUCCESS', 'ERROR')}, other hears {two.until('CLOSE_CONSUMER', wait=3)}"


@probe("flow/zero")
def _(context):
    with context.raw() as raw:
        raw.subscribe(context.topic())
        raw.flow(0)
        return raw.answer(3)


@probe("flow/2^31")
def _(context):
    with context.raw() as raw:
        raw.subscribe(context.topic())
        raw.flow(2**31)
        return raw.answer(3)


@probe("flow/unknown-consumer")
def _(context):
    with context.raw() as raw:
        raw.flow(5, 99)
        return f"then {raw.ask(command('PING'))}"


@probe("flow/nothing-without-permits")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        raw.publish()
        return f"{len(raw.messages(1.0))} messages"


@probe("flow/permits-count-messages")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, kind=1, ident=5)
        raw.producer(topic)
        for n in range(4):
            body, extra = batch([b"a", b"b", b"c", b"d"])
            raw.publish(body, n * 4, extra=extra, fields=((3, 4), (6, n * 4 + 3)))
        seen = []
        for permits in (1, 1, 3, 1):
            raw.flow(permits, 5)
            seen.append(len(raw.messages(0.7)))
        return seen


# ---- acks, redelivery, seek

def _two_entries(raw, topic, kind=1):
    raw.subscribe(topic, kind=kind, ident=5)
    raw.producer(topic)
    ids = [raw.publish(b"%d" % n, n).message_id for n in range(2)]
    raw.flow(100, 5)
    raw.messages()
    return ids


def ack(raw, ids, request=None, kind=0, ident=5, ack_set=()):
    fields = [(3, message((1, ledger), (2, entry), *((5, word) for word in ack_set))) for ledger, entry in ids]
    raw.write(command("ACK", (1, ident), (2, kind), *fields, (8, request)))


@probe("ack/receipt-when-asked")
def _(context):
    with context.raw() as raw:
        ids = _two_entries(raw, context.topic())
        ack(raw, ids[:1], 66)
        answer = raw.until("ACK_RESPONSE")
        return f"{answer} consumer {answer.get(1)} request {answer.get(6)}"


@probe("ack/silent-when-not-asked")
def _(context):
    with context.raw() as raw:
        ids = _two_entries(raw, context.topic())
        ack(raw, ids[:1])
        return raw.answer(1)


@probe("ack/unknown-consumer")
def _(context):
    with context.raw() as raw:
        ack(raw, [(0, 0)], 66, ident=99)
        return raw.answer(2)


@probe("ack/cumulative-on-shared")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        ids = _two_entries(raw, topic)
        ack(raw, ids[1:], 66, kind=1)
        raw.until("ACK_RESPONSE", wait=2)
    with context.raw() as raw:
        raw.subscribe(topic, kind=1)
        raw.flow(10)
        return f"{len(raw.messages())} messages left"


@probe("ack/list-of-ids")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        ack(raw, _two_entries(raw, topic), 66)
        raw.until("ACK_RESPONSE")
    with context.raw() as raw:
        raw.subscribe(topic, kind=1)
        raw.flow(10)
        return f"{len(raw.messages())} messages left"


@probe("ack/batch-index-is-echoed")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, kind=1, ident=5)
        raw.producer(topic)
        body, extra = batch([b"a", b"b", b"c"])
        ident = raw.publish(body, 0, extra=extra, fields=((3, 3), (6, 2))).message_id
        raw.flow(10, 5)
        raw.messages()
        ack(raw, [ident], 66, ack_set=[0b101])
        raw.until("ACK_RESPONSE")
    with context.raw() as raw:
        raw.subscribe(topic, kind=1)
        raw.flow(10)
        return [[bin(word) for word in got.fields.get(4, [])] for got in raw.messages()]


@probe("redeliver/count-on-shared")
def _(context):
    with context.raw() as raw:
        ids = _two_entries(raw, context.topic())
        raw.write(command("REDELIVER", (1, 5), (2, message((1, ids[0][0]), (2, ids[0][1])))))
        return [(payload_of(got).decode(), got.get(3)) for got in raw.messages()]


@probe("redeliver/count-on-exclusive")
def _(context):
    with context.raw() as raw:
        _two_entries(raw, context.topic(), kind=0)
        raw.write(command("REDELIVER", (1, 5)))
        return [(payload_of(got).decode(), got.get(3)) for got in raw.messages()]


@probe("redeliver/disconnect-does-not-count")
def _(context):
    topic = context.topic()
    with context.raw() as other:
        other.subscribe(topic, kind=1, ident=8)
        with context.raw() as raw:
            _two_entries(raw, topic)
        other.flow(10, 8)
        return [(payload_of(got).decode(), got.get(3)) for got in other.messages(1.5)]


@probe("redeliver/unknown-consumer")
def _(context):
    with context.raw() as raw:
        raw.write(command("REDELIVER", (1, 99)))
        return f"then {raw.ask(command('PING'))}"


@probe("seek/order-of-answers")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        ids = _two_entries(raw, topic, kind=0)
        raw.write(command("SEEK", (1, 5), (2, 44), (3, message((1, ids[0][0]), (2, ids[0][1])))))
        return [str(raw.answer(3)) for _ in range(2)]


@probe("seek/without-target")
def _(context):
    with context.raw() as raw:
        raw.subscribe(context.topic())
        raw.write(command("SEEK", (1, 1), (2, 44)))
        return raw.until("ERROR", "SUCCESS")


@probe("seek/unknown-consumer")
def _(context):
    return after_connect(context, command("SEEK", (1, 77), (2, 5), (4, 1)))


@probe("last-message-id/empty-topic")
def _(context):
    with context.raw() as raw:
        raw.subscribe(context.topic())
        return raw.ask(command("GET_LAST_MESSAGE_ID", (1, 1), (2, 5))).message_id


@probe("last-message-id/batch-index")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        body, extra = batch([b"a", b"b", b"c"])
        ident = raw.publish(body, 0, extra=extra, fields=((3, 3), (6, 2))).message_id
        answer = raw.ask(command("GET_LAST_MESSAGE_ID", (1, 5), (2, 5)))
        return f"same entry {answer.message_id == ident} index {parse(answer.get(1)).get(4)}"


@probe("last-message-id/unknown-consumer")
def _(context):
    return after_connect(context, command("GET_LAST_MESSAGE_ID", (1, 77), (2, 5)))


# ---- the rest of the requests

@probe("topics/hash-repeats")
def _(context):
    with context.raw() as raw:
        raw.producer("persistent://public/default/" + context.name("hash"))
        namespace = "public/default"
        pattern = f"public/default/{context.name('none')}.*"
        first = raw.ask(command("GET_TOPICS_OF_NAMESPACE", (1, 1), (2, namespace), (4, pattern)))
        again = raw.ask(command("GET_TOPICS_OF_NAMESPACE", (1, 2), (2, namespace), (4, pattern), (5, first.get(4))))
        return f"filtered {first.get(3)} topics {len(first.fields.get(2, []))} changed {again.get(5)}"


@probe("topics/missing-namespace")
def _(context):
    with context.raw() as raw:
        answer = raw.ask(command("GET_TOPICS_OF_NAMESPACE", (1, 1), (2, "public/nowhere")))
        return f"{answer} topics {len(answer.fields.get(2, [])) if answer.kind == 33 else 'none'}"


@probe("watch/updates-name-new-topics")
def _(context):
    stem = context.name("w")
    with context.raw() as raw, context.raw() as other:
        pattern = f"persistent://public/default/{stem}.*"
        answer = raw.ask(command("WATCH_TOPIC_LIST", (1, 1), (2, 2), (3, "public/default"), (4, pattern)))
        other.producer(f"persistent://public/default/{stem}-a")
        update = raw.until("WATCH_TOPIC_UPDATE", wait=5)
        return f"{answer} topics {len(answer.fields.get(3, []))} then {update} new {len(update.fields.get(2, [])) if update.kind else 0}"


@probe("schema/get-none")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        return raw.ask(command("GET_SCHEMA", (1, 5), (2, topic)))


STRING_SCHEMA = message((1, "String"), (3, b""), (4, 1))


@probe("schema/get-or-create")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        ask = [command("GET_OR_CREATE_SCHEMA", (1, n), (2, topic), (3, STRING_SCHEMA)) for n in (5, 6)]
        answers = [raw.ask(frame) for frame in ask]
        got = raw.ask(command("GET_SCHEMA", (1, 7), (2, topic)))
        version = [answer.get(4, b"").hex() for answer in answers]
        return f"{[str(answer) for answer in answers]} versions {version} then {got} type {parse(got.get(4, b'')).get(4)}"


@probe("schema/empty-version")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic, extra=((7, STRING_SCHEMA),))
        return raw.ask(command("GET_SCHEMA", (1, 5), (2, topic), (3, b"")))


@probe("schema/plain-bytes-are-a-schema")
def _(context):
    none, seen = message((1, "Bytes"), (3, b""), (4, 0)), []
    with context.raw() as raw:
        topic = context.topic()
        raw.producer(topic)
        seen.append(str(raw.ask(command("SUBSCRIBE", (1, topic), (2, "s"), (3, 0), (4, 1), (5, 9), (12, none)))))
        answer = raw.ask(command("PRODUCER", (1, topic), (2, 2), (3, 10), (7, none)))
        seen.append(f"{answer} version {answer.get(4, b'').hex()}")
        seen.append(str(raw.ask(command("PRODUCER", (1, topic), (2, 3), (3, 11), (7, STRING_SCHEMA)))))
        got = raw.ask(command("GET_SCHEMA", (1, 12), (2, topic)))
        stored = parse(got.get(4, b""))
        named = stored.get(1, [b""])[0].decode() == topic.removeprefix("persistent://")
        seen.append(f"{got} type {stored.get(4)} named after the topic {named}")
        created = raw.ask(command("GET_OR_CREATE_SCHEMA", (1, 13), (2, topic), (3, none)))
        seen.append(f"{created} version {created.get(4, b'').hex()}")
    return seen


@probe("transactions/off")
def _(context):
    with context.raw() as raw:
        return raw.ask(command("NEW_TXN", (1, 5), (2, 1000), (3, 0)))


@probe("consumer-stats/known-consumer")
def _(context):
    with context.raw() as raw:
        raw.subscribe(context.topic(), name="me")
        answer = raw.ask(command("CONSUMER_STATS", (1, 5), (4, 1)))
        return f"{answer} name {answer.text(7)} type {answer.text(13)}"


@probe("consumer-stats/unknown-consumer")
def _(context):
    return after_connect(context, command("CONSUMER_STATS", (1, 5), (4, 77)), 2.0)


@probe("unload/closes-with-request-id-minus-1")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        context.rest("PUT", context.path(topic) + "/unload")
        answer = raw.until("CLOSE_PRODUCER", wait=5)
        return f"{answer} {'-1' if answer.get(2) == MAX_U64 else answer.get(2)}"
