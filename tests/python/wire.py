"""The Pulsar wire by hand: protobuf primitives, frames, and a connection that says what it sees.

Owner: the conformance probe. Nothing here is generated or borrowed from a client, so that a frame can be as wrong as a probe
wants it. Numbers are those of the public schema: a sub-command's field number equals its command type.
"""
import socket
import struct
import time

TYPES = {
    2: "CONNECT", 3: "CONNECTED", 4: "SUBSCRIBE", 5: "PRODUCER", 6: "SEND", 7: "SEND_RECEIPT", 8: "SEND_ERROR",
    9: "MESSAGE", 10: "ACK", 11: "FLOW", 12: "UNSUBSCRIBE", 13: "SUCCESS", 14: "ERROR", 15: "CLOSE_PRODUCER",
    16: "CLOSE_CONSUMER", 17: "PRODUCER_SUCCESS", 18: "PING", 19: "PONG", 20: "REDELIVER", 21: "PARTITIONED_METADATA",
    22: "PARTITIONED_METADATA_RESPONSE", 23: "LOOKUP", 24: "LOOKUP_RESPONSE", 25: "CONSUMER_STATS",
    26: "CONSUMER_STATS_RESPONSE", 27: "REACHED_END_OF_TOPIC", 28: "SEEK", 29: "GET_LAST_MESSAGE_ID",
    30: "GET_LAST_MESSAGE_ID_RESPONSE", 31: "ACTIVE_CONSUMER_CHANGE", 32: "GET_TOPICS_OF_NAMESPACE",
    33: "GET_TOPICS_OF_NAMESPACE_RESPONSE", 34: "GET_SCHEMA", 35: "GET_SCHEMA_RESPONSE", 36: "AUTH_CHALLENGE",
    37: "AUTH_RESPONSE", 38: "ACK_RESPONSE", 39: "GET_OR_CREATE_SCHEMA", 40: "GET_OR_CREATE_SCHEMA_RESPONSE",
    50: "NEW_TXN", 51: "NEW_TXN_RESPONSE", 62: "TC_CLIENT_CONNECT_REQUEST", 63: "TC_CLIENT_CONNECT_RESPONSE",
    64: "WATCH_TOPIC_LIST", 65: "WATCH_TOPIC_LIST_SUCCESS", 66: "WATCH_TOPIC_UPDATE", 67: "WATCH_TOPIC_LIST_CLOSE",
}
NUMBERS = {name: number for number, name in TYPES.items()}
ERRORS = [
    "UnknownError", "MetadataError", "PersistenceError", "AuthenticationError", "AuthorizationError", "ConsumerBusy",
    "ServiceNotReady", "ProducerBlockedQuotaExceededError", "ProducerBlockedQuotaExceededException", "ChecksumError",
    "UnsupportedVersionError", "TopicNotFound", "SubscriptionNotFound", "ConsumerNotFound", "TooManyRequests",
    "TopicTerminatedError", "ProducerBusy", "InvalidTopicName", "IncompatibleSchema", "ConsumerAssignError",
    "TransactionCoordinatorNotFound", "InvalidTxnStatus", "NotAllowedError", "TransactionConflict",
    "TransactionNotFound", "ProducerFenced",
]
# Where a command carries its error code.
ERROR_FIELD = {14: 2, 8: 3, 22: 4, 24: 6, 35: 2, 38: 4, 40: 2, 26: 2, 51: 4, 63: 2}
MAX_U64 = 2**64 - 1


def varint(value):
    value &= MAX_U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(*fields):
    """Encodes (number, value) pairs: ints as varints, text and bytes with their length. A value of None is left out."""
    out = b""
    for number, value in fields:
        if value is None:
            continue
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, (bytes, bytearray)):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(int(value))
    return out


def parse(data):
    """Decodes to {number: [values]}."""
    fields, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            value = number()
        elif kind == 1:
            value, at = data[at:at + 8], at + 8
        elif kind == 2:
            size = number()
            value, at = data[at:at + size], at + size
        elif kind == 5:
            value, at = data[at:at + 4], at + 4
        else:
            raise ValueError(f"wire type {kind}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def signed(value):
    return value - 2**64 if value >= 2**63 else value


CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    CRC_TABLE.append(_byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def command(name, *fields):
    """A frame of one command."""
    number = NUMBERS[name] if isinstance(name, str) else name
    body = message((1, number), (number, message(*fields)))
    return struct.pack(">II", len(body) + 4, len(body)) + body


def metadata(sequence=0, name="raw", extra=()):
    return message((1, name), (2, sequence), (3, int(time.time() * 1000)), *extra)


def send(producer, sequence, meta, payload, checksum="right", fields=()):
    """A SEND frame. `checksum`: right, wrong, none, or wrong-magic."""
    body = message((1, 6), (6, message((1, producer), (2, sequence), *fields)))
    covered = struct.pack(">I", len(meta)) + meta + payload
    crc = crc32c(covered)
    if checksum == "none":
        rest = covered
    else:
        magic = 0x0E09 if checksum == "wrong-magic" else 0x0E01
        rest = struct.pack(">HI", magic, crc ^ (checksum == "wrong")) + covered
    return struct.pack(">II", len(body) + len(rest) + 4, len(body)) + body + rest


class Answer:
    """A command from the server."""

    def __init__(self, kind, fields, rest=b""):
        self.kind, self.fields, self.rest = kind, fields, rest

    @property
    def name(self):
        return TYPES.get(self.kind, str(self.kind))

    def get(self, number, default=None):
        return self.fields.get(number, [default])[0]

    def text(self, number):
        return self.get(number, b"").decode()

    @property
    def error(self):
        number = ERROR_FIELD.get(self.kind)
        code = self.get(number) if number else None
        return None if code is None else ERRORS[code]

    @property
    def message_id(self):
        field = {9: 2, 7: 3, 30: 1}.get(self.kind)
        inner = parse(self.get(field, b""))
        return signed(inner.get(1, [0])[0]), signed(inner.get(2, [0])[0])

    def __str__(self):
        return f"{self.name}({self.error})" if self.error else self.name


class Closed:
    """The server closed the connection."""
    kind, name, error, rest = None, "closed", None, b""

    def get(self, *_):
        return None

    def __str__(self):
        return "closed"


class Silence(Closed):
    """Nothing came in the time allowed."""
    name = "silence"

    def __str__(self):
        return "silence"


class Raw:
    """One connection. PINGs are answered unseen unless `pong` is off."""

    def __init__(self, host, port, handshake=True, pong=True):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.buffer, self.requests, self.pong = b"", 100, pong
        if handshake:
            self.connected = self.ask(command("CONNECT", (1, "probe"), (4, 21)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def write(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # what the server did shows in the answer

    def answer(self, wait=5.0):
        """The next command, Closed or Silence."""
        until = time.monotonic() + wait
        while True:
            if len(self.buffer) >= 4:
                total = struct.unpack(">I", self.buffer[:4])[0]
                if len(self.buffer) >= total + 4:
                    frame, self.buffer = self.buffer[4:total + 4], self.buffer[total + 4:]
                    size = struct.unpack(">I", frame[:4])[0]
                    base = parse(frame[4:4 + size])
                    kind = base[1][0]
                    if kind == 18 and self.pong:
                        self.write(command("PONG"))
                        continue
                    return Answer(kind, parse(base.get(kind, [b""])[0]), frame[4 + size:])
            left = until - time.monotonic()
            if left <= 0:
                return Silence()
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return Silence()
            except OSError:
                return Closed()
            if not data:
                return Closed()
            self.buffer += data

    def ask(self, frame, wait=10.0):
        self.write(frame)
        return self.answer(wait)

    def until(self, *names, wait=10.0):
        """The next command of one of these kinds (or Closed or Silence), passing over others."""
        until = time.monotonic() + wait
        while True:
            answer = self.answer(max(0.0, until - time.monotonic()))
            if answer.kind is None or answer.name in names:
                return answer

    def request(self):
        self.requests += 1
        return self.requests

    def producer(self, topic, ident=1, name=None, mode=None, extra=()):
        frame = command("PRODUCER", (1, topic), (2, ident), (3, self.request()), (4, name), (10, mode), *extra)
        return self.ask(frame)

    def subscribe(self, topic, sub="s", kind=0, ident=1, name=None, position=1, extra=()):
        frame = command("SUBSCRIBE", (1, topic), (2, sub), (3, kind), (4, ident), (5, self.request()), (6, name),
                        (13, position), *extra)
        self.write(frame)
        return self.until("SUCCESS", "ERROR")

    def flow(self, permits, ident=1):
        self.write(command("FLOW", (1, ident), (2, permits)))

    def publish(self, payload=b"x", sequence=0, ident=1, extra=(), fields=(), checksum="right"):
        return self.ask(send(ident, sequence, metadata(sequence, extra=extra), payload, checksum, fields))

    def messages(self, wait=0.7):
        """All MESSAGE commands that come until nothing has come for `wait` seconds."""
        seen = []
        while True:
            answer = self.until("MESSAGE", wait=wait)
            if answer.kind is None:
                return seen
            seen.append(answer)


def batch(payloads):
    """An uncompressed batch: payload, and metadata fields that announce it."""
    body = b""
    for index, payload in enumerate(payloads):
        single = message((3, len(payload)), (8, index))
        body += struct.pack(">I", len(single)) + single + payload
    return body, ((11, len(payloads)),)


def payload_of(answer):
    """Payload of a MESSAGE."""
    rest = answer.rest
    if rest[:2] == b"\x0e\x02":
        rest = rest[6 + struct.unpack(">I", rest[2:6])[0]:]
    if rest[:2] == b"\x0e\x01":
        rest = rest[6:]
    return rest[4 + struct.unpack(">I", rest[:4])[0]:]
