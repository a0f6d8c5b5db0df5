"""What every probe gets: addresses, fresh names, a client, plain HTTP; and the registry of probes."""
import itertools
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import pulsar

from wire import Raw

PROBES = {}
_numbers = itertools.count()
_run = os.urandom(3).hex()


def probe(name):
    """Registers a probe: a function that takes the context and answers what it saw."""
    def register(function):
        assert name not in PROBES, name
        PROBES[name] = function
        return function
    return register


class Context:
    def __init__(self, url, http, debug=False):
        self.url, self.http, self.debug = url, http.rstrip("/"), debug
        self.host, port = url.removeprefix("pulsar://").rstrip("/").rsplit(":", 1)
        self.port = int(port)

    def name(self, stem="p"):
        """A name no other probe or run uses."""
        return f"{stem}-{_run}-{next(_numbers)}"

    def topic(self):
        return f"persistent://public/default/{self.name()}"

    def raw(self, **options):
        return Raw(self.host, self.port, **options)

    def client(self, **options):
        quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
        options.setdefault("operation_timeout_seconds", 10)
        return Client(pulsar.Client(self.url, logger=quiet, **options))

    def rest(self, method, path, body=None, kind="application/json", raw=False):
        """Status and decoded body of a request; redirects are not followed."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.http + path, data=data, method=method)
        if data is not None and kind:
            request.add_header("Content-Type", kind)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=20) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, text = refused.code, refused.read()
        if raw:
            return status, text
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode(errors="replace")

    def status(self, *args, **options):
        return self.rest(*args, **options)[0]

    def path(self, topic):
        """REST path of a topic."""
        domain, rest = topic.split("://")
        tenant, namespace, local = rest.split("/", 2)
        return f"/admin/v2/{domain}/{tenant}/{namespace}/{urllib.parse.quote(local, safe='')}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class Client:
    """A client that closes itself."""

    def __init__(self, client):
        self.client = client

    def __enter__(self):
        return self.client

    def __exit__(self, *_):
        try:
            self.client.close()
        except Exception:
            pass  # a probe may have closed it, or broken it on purpose


def receive(consumer, count, wait_ms=8000, quiet_ms=600, ack=False):
    """Up to `count` messages, then a short look for more: answers payload texts in order."""
    seen = []
    while True:
        try:
            message = consumer.receive(timeout_millis=wait_ms if len(seen) < count else quiet_ms)
        except pulsar.Timeout:
            return seen
        seen.append(message.data().decode())
        if ack:
            consumer.acknowledge(message)


def error(call):
    """`ok`, or the name of the error a call raises."""
    try:
        call()
        return "ok"
    except Exception as why:
        return type(why).__name__
