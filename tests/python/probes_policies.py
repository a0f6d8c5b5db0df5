"""Probes of policies that act on clients: quotas, schema validation, flags of PRODUCER and SUBSCRIBE."""
import time

from probe_context import probe
from wire import command, metadata, send

NAMESPACE = "/admin/v2/namespaces/public/"


def _namespace(context, policy=None, body=None):
    """A namespace of its own, with one policy set; answers its name and the status of setting it."""
    name = context.name("ns")
    context.status("PUT", NAMESPACE + name)
    # A lookup makes the broker take the topic's bundle.
    context.status("GET", f"/lookup/v2/topic/persistent/public/{name}/t")
    return name, context.status("POST", NAMESPACE + name + "/" + policy, body) if policy else None


def _ready(ask):
    """Asks until the broker has taken the namespace over."""
    for _ in range(20):
        answer = ask()
        if "ServiceNotReady" not in str(answer):
            break
        time.sleep(0.5)
    return answer


def _quota(policy):
    @probe(f"policy/backlog-quota/{policy}")
    def _(context):
        quota = {"limitSize": 10_000, "limitTime": -1, "policy": policy}
        namespace, status = _namespace(context, "backlogQuota", quota)
        topic = f"persistent://public/{namespace}/t"
        with context.raw() as raw:
            _ready(lambda: raw.subscribe(topic))
            first = _ready(lambda: raw.producer(topic))
            for n in range(12):
                raw.write(send(1, n, metadata(n), b"x" * 1000))
                raw.until("SEND_RECEIPT", "CLOSE_PRODUCER")
            with context.raw() as other:
                again = _ready(lambda: other.producer(topic, name="late"))
        return f"{status}, {first} then {again}"


_quota("producer_request_hold")
_quota("producer_exception")


@probe("policy/schema-validation-enforced")
def _(context):
    namespace, status = _namespace(context, "schemaValidationEnforced", True)
    topic = f"persistent://public/{namespace}/t"
    schema = {"type": "STRING", "schema": "", "properties": {}}
    with context.raw() as raw:
        before = _ready(lambda: raw.producer(topic))
        uploaded = context.status("POST", "/admin/v2/schemas/" + topic.split("://")[1] + "/schema", schema)
        after = _ready(lambda: raw.producer(topic, ident=2, name="schemaless"))
    return f"{status}, {before}, schema {uploaded}, then {after}"


@probe("policy/schema-validation-not-enforced")
def _(context):
    topic = context.topic()
    schema = {"type": "STRING", "schema": "", "properties": {}}
    with context.raw() as raw:
        raw.producer(topic)
        context.status("POST", "/admin/v2/schemas/" + topic.split("://")[1] + "/schema", schema)
        return raw.producer(topic, ident=2, name="schemaless")


@probe("policy/max-unacked-messages-per-consumer")
def _(context):
    namespace, status = _namespace(context, "maxUnackedMessagesPerConsumer", 5)
    topic = f"persistent://public/{namespace}/t"
    with context.raw() as raw:
        _ready(lambda: raw.producer(topic))
        _ready(lambda: raw.subscribe(topic, kind=1))
        raw.write(command("FLOW", (1, 1), (2, 100)))
        for n in range(20):
            raw.write(send(1, n, metadata(n), b"x"))
        got, end = 0, time.monotonic() + 3
        while time.monotonic() < end:
            got += raw.answer(wait=0.5).name == "MESSAGE"
        return f"{status}, {got} messages"


@probe("producer/txn-enabled-while-off")
def _(context):
    with context.raw() as raw:
        return raw.producer(context.topic(), extra=((12, 1),))


@probe("subscribe/replicated-state-is-shown")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        answer = raw.subscribe(topic, extra=((14, 1),))
        if "ERROR" in str(answer):
            return answer
        stats = context.rest("GET", context.path(topic) + "/stats")[1]["subscriptions"]["s"]
        return stats["isReplicated"], stats["replicated"]
