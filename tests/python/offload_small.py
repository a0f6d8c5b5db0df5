#!/usr/bin/env python3
"""What many small ledgers cost at an object store, each as an object of its own and several as one: objects written and requests per GB,
by the cost meter, beside a real S3 server whose bucket is looked at as files.

    offload_small.py BINARY [--ledgers 10000] [--topics 10] [--kib 10]

Every topic has as many ledgers, of ten messages and so many KiB each. They are published first and offloaded then, all at once. What is
offloaded is read back by the official client, bytes equal, in order, by a process that has nothing in memory.
"""
import argparse
import collections
import os
import pathlib
import sys
import tempfile
import time

import pulsar

from offload import costs, ledgers
from offload_together import NAMESPACE, Topic
from probe_context import Context
from s3 import KEYS, S3, check, tiering, until
from server import Server

ENTRIES = 10
CONFIG = """
compound_below = "%d KiB"
compound_age_s = 0

[standalone.broker]
ledger_entries = %d
"""
PUTS, GETS = ("put", "multipart", "list"), ("get", "head")


def asked(context):
    """Requests so far, by kind."""
    told = collections.Counter()
    for (_, kind), count in costs(context).items():
        told[kind] += int(count)
    return told


def quiet(context):
    """Requests, once there have been no more for a while: all is uploaded, and bookies have let go of it."""
    told, since = asked(context), time.monotonic()
    while time.monotonic() < since + 5:
        time.sleep(0.5)
        now = asked(context)
        if now != told:
            told, since = now, time.monotonic()
    return told, since


def line(what, told, stored):
    puts, gets = (sum(told[kind] for kind in kinds) for kinds in (PUTS, GETS))
    gb = stored / 1e9
    print(f"figure: {what}: {puts} at the price of PUT ({puts / gb:.0f} per GB), {gets} at that of GET ({gets / gb:.0f} per GB): {dict(+told)}",
          flush=True)


def publish(client, topics, count):
    """To all topics in turn, so that none is idle for long."""
    for at in range(0, count, 500):
        for topic in topics:
            topic.publish(client, min(500, count - at))


def offload(context, topics, count):
    """All of the closed ledgers, and how long it took."""
    begun = time.monotonic()
    check(context.status("PUT", f"/admin/v2/namespaces/{NAMESPACE}/offloadThreshold", 0) == 204, "all closed ledgers are due")
    for topic in topics:
        until(f"{topic.name} is offloaded", lambda: sum(l["entries"] for l in ledgers(context, topic.name) if l["offloaded"]) == count, 3600)
    told, ended = quiet(context)
    return told, ended - begun


def run(binary, root, arguments, below_kib):
    name = f"ledgers below {below_kib} KiB together" if below_kib else "each by itself"
    s3 = S3(f"{root}/s3").start()
    config = pathlib.Path(root) / "server.toml"
    config.write_text(tiering(s3.port) + CONFIG % (below_kib, ENTRIES))
    server = Server(binary, f"{root}/data", str(config)).start()
    size = arguments.kib * 1024 // ENTRIES - 100
    topics = [Topic(f"small-{n}", 0, size, size) for n in range(arguments.topics)]
    count = arguments.ledgers // arguments.topics * ENTRIES
    try:
        context = Context(server.url, server.http)
        with context.client() as client:
            for topic in topics:
                client.subscribe(topic.name, "keeps").close()
            publish(client, topics, count)
            for topic in topics:
                topic.publish(client, 1)  # opens a ledger behind the last
        closed = sum(len(ledgers(context, topic.name)) - 1 for topic in topics)
        check(closed == arguments.ledgers // arguments.topics * arguments.topics, f"{closed} closed ledgers")
        told, seconds = offload(context, topics, count)
        stored = s3.size()
        check(len(s3.objects()) == closed if not below_kib else len(s3.objects()) * 50 < closed, f"{name}: {len(s3.objects())} objects")
        print(f"figure: {name}: {closed} ledgers, {len(s3.objects())} objects of {stored / len(s3.objects()) / 1e3:.0f} kB, {seconds:.0f} s", flush=True)
        line(f"{name}, offloading and release", told, stored)
        server.kill()
        context = Context(server.start().url, server.http)
        begun = time.monotonic()
        with context.client() as client:
            for topic in topics:
                topic.read(client)
        seconds = time.monotonic() - begun
        check(True, f"{sum(topic.count for topic in topics)} messages read back, bytes equal, in order, 0 lost ({seconds:.0f} s)")
        line(f"{name}, read back", asked(context), stored)
    except BaseException:
        print(open(server.log.name).read()[-4000:], file=sys.stderr)
        raise
    finally:
        if server.process and server.process.poll() is None:
            server.kill()
        s3.stop()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--ledgers", type=int, default=10_000)
    arguments.add_argument("--topics", type=int, default=10)
    arguments.add_argument("--kib", type=int, default=10)
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    for below_kib in (0, 2 * arguments.kib):
        with tempfile.TemporaryDirectory(prefix="geminga-small-") as root:
            run(arguments.binary, root, arguments, below_kib)


if __name__ == "__main__":
    main()
