#!/usr/bin/env python3
"""Small ledgers that go to a real S3 server several as one object: published, offloaded while the server is killed at random moments,
read back by the official client when bookies have nothing left, attached again from the bucket alone, trimmed, deleted.

    offload_together.py BINARY [--seed N] [--kills 7]

A run is random by its seed, which is printed. What holds at each point is looked at from outside: the bucket as files, `geminga admin
storage fsck` while nothing runs, and every message by bytes, order, message id and time stamp.
"""
import argparse
import collections
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pulsar

from offload import costs, ledgers
from probe_context import Context
from s3 import KEYS, S3, Proxy, check, tiering, until
from server import Server

CONFIG = """
attempt_timeout_s = 10
block_size = "16 KiB"
part_size = "5 MiB"
compound_below = "%d KiB"
compound_size = "6 MiB"
compound_age_s = 1

[standalone.broker]
ledger_entries = %d
cache = "1 MiB"
"""
SMALL_KIB, ENTRIES = 256, 20
NAMESPACE = "public/default"
WHAT = re.compile(r"(\d+) objects of topics \(\d+ bytes\) .*, (\d+) uploads under way, (\d+) removals wait, 0 findings$")
# Requests of an upload at which the server is killed, besides moments of time.
STEPS = [("put", "size", "range", "uploads", "begin", "part", "complete"), ("before", "after", "soon")]


class Topic:
    """A topic, what its messages are, and how many there are so far."""

    def __init__(self, name, chunk, smallest, largest, every=0):
        self.name, self.chunk, self.sizes, self.every = f"persistent://{NAMESPACE}/{name}", chunk, (smallest, largest), every
        self.count = self.bytes = 0

    def payload(self, n):
        """Bytes that tell topic and number and do not compress. Every so many make their ledger too large to go with others."""
        seed = hashlib.sha256(f"{self.name} {n}".encode()).digest()
        size = (SMALL_KIB << 10) + 1 if self.every and n % self.every == self.every - 1 else random.Random(seed).randint(*self.sizes)
        return n.to_bytes(8, "big") + hashlib.shake_256(seed).digest(size)

    def publish(self, client, count):
        producer = client.create_producer(self.name, block_if_queue_full=True, batching_enabled=False, max_pending_messages=500)
        failed = []
        for n in range(self.count, self.count + count):
            producer.send_async(self.payload(n), lambda result, _: failed.append(result) if result != pulsar.Result.Ok else None)
        producer.flush()
        producer.close()
        if failed:
            sys.exit(f"FAILED: {len(failed)} messages were not published, first {failed[0]}")
        self.count += count
        self.bytes += sum(len(self.payload(n)) for n in range(self.count - count, self.count))

    def read(self, client, first=0, wait_ms=60_000):
        """Reads everything from the earliest; answers a hash of what the client tells of every message."""
        reader = client.create_reader(self.name, pulsar.MessageId.earliest, receiver_queue_size=500)
        told = hashlib.sha256()
        for n in range(first, self.count):
            message = reader.read_next(wait_ms)
            if message.data() != self.payload(n):
                got = int.from_bytes(message.data()[:8], "big")
                sys.exit(f"FAILED: {self.name}: message {n} is not what was published, it says {got} in {len(message.data())} bytes")
            of = message.message_id()
            told.update(f"{of.ledger_id()} {of.entry_id()} {message.publish_timestamp()} ".encode() + message.data())
        reader.close()
        return told.hexdigest()


def topics():
    """Tiny ledgers; ledgers among which some are too large; ledgers that make an object of more than one part together."""
    return [Topic("tiny", 200, 20, 400), Topic("mixed", 200, 500, 2000, every=211), Topic("wide", 60, 9000, 11_000)]


class Drill:
    def __init__(self, binary, root):
        self.binary, self.root = binary, pathlib.Path(root)
        self.s3 = S3(f"{root}/s3").start()
        self.proxy = Proxy(self.s3.port)
        self.config = self.root / "server.toml"
        self.config.write_text(tiering(self.proxy.port) + CONFIG % (SMALL_KIB, ENTRIES))
        self.server = Server(binary, f"{root}/data", str(self.config))
        self.topics, self.kills = topics(), collections.Counter()

    def start(self):
        self.server.start()
        self.proxy.kill = lambda: os.kill(self.server.process.pid, signal.SIGKILL)
        self.context = Context(self.server.url, self.server.http)
        return self.context

    def down(self):
        if self.server.process.poll() is None:
            self.server.process.kill()
        self.server.process.wait()
        self.server.process.stdout.close()

    def command(self, verb, *words):
        command = [self.binary, "admin", "storage", verb, "--role", "standalone", "--config", str(self.config), "--data-dir",
                   self.server.data_dir, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def fsck(self, *flags):
        """Objects that are referenced, uploads under way, removals that wait; no finding. The server is down."""
        self.proxy.set()
        run = self.command("fsck", *flags)
        told = WHAT.match((run.stdout.strip().splitlines() or [""])[-1])
        if run.returncode or not told:
            sys.exit(f"FAILED: fsck: exit {run.returncode}\n{run.stdout}{run.stderr}")
        return tuple(map(int, told.groups()))

    def settled(self):
        """Down, once everything that waits is swept: what is left in the bucket is what topics reference. Answers how much."""
        for _ in range(15):
            self.down()
            referenced, under_way, waiting = self.fsck("--verify")
            if not under_way and not waiting:
                files = len(self.s3.objects())
                check(files == referenced, f"{referenced} objects are referenced, {files} are in the bucket, parts of uploads included")
                return referenced
            self.start()
            time.sleep(3)
        sys.exit(f"FAILED: the sweeper does not get through: {under_way} uploads under way, {waiting} removals wait")

    def threshold(self, value):
        check(self.context.status("PUT", f"/admin/v2/namespaces/{NAMESPACE}/offloadThreshold", value) == 204, f"threshold {value}")

    def closed(self):
        return [ledger for topic in self.topics for ledger in ledgers(self.context, topic.name)[:-1]]

    def everything_offloaded(self, seconds=120):
        """The last ledger is closed by unloading its topic; all are in the store, and then in the store alone."""
        for topic in self.topics:
            if self.context.status("PUT", self.context.path(topic.name) + "/unload") != 204:
                sys.exit("FAILED: a topic is not unloaded")
        with self.context.client() as client:
            for topic in self.topics:
                client.subscribe(topic.name, "keeps", initial_position=pulsar.InitialPosition.Earliest).close()
                until(f"all of {topic.name} is in the store", lambda: sum(
                    ledger["entries"] for ledger in ledgers(self.context, topic.name) if ledger["offloaded"]) == topic.count, seconds)

    def quiet(self, seconds=2):
        """Nothing more is asked of the store: bookies have let go of what is there."""
        def seen():
            before = costs(self.context)
            time.sleep(seconds)
            return costs(self.context) == before

        until("the store is left alone", seen)

    def without_proxy(self):
        """From the next start on: what is to come is asked of the store itself, which is faster."""
        self.config.write_text(self.config.read_text().replace(str(self.proxy.port), str(self.s3.port)))

    def stop(self):
        if self.server.process and self.server.process.poll() is None:
            self.down()
        self.proxy.stop()
        self.s3.stop()


def kill_at_random(drill, dice):
    """More is published, and the server killed at some request of what is offloaded then, or at some moment."""
    context = drill.start()
    with context.client() as client:
        for topic in drill.topics:
            topic.publish(client, topic.chunk)
    what, when = (dice.choice(of) for of in STEPS)
    nth, ms = dice.randrange(3), dice.randrange(2500)
    if dice.random() < 0.7:
        fate = ("kill", when, dice.choice((0, 1, 3, 9, 27)))[:3 if when == "soon" else 2]
        drill.proxy.set(lambda kind, number: fate if kind == what and number >= nth else None)
    end = time.monotonic() + ms / 1000
    while drill.server.process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    by = f"{when} {what} {nth}" if drill.server.process.poll() is not None else f"after {ms} ms"
    drill.down()
    drill.kills["request" if "ms" not in by else "moment"] += 1
    print(f"ok killed {by}: {drill.fsck()} objects, uploads under way, removals", flush=True)


def published(drill, kills, dice):
    context = drill.start()
    with context.client() as client:
        for topic in drill.topics:
            client.subscribe(topic.name, "keeps").close()
            topic.publish(client, topic.chunk * (12 if topic.name.endswith("wide") else 2))
    check(not drill.s3.objects(), f"{len(drill.closed())} closed ledgers, none of them offloaded")
    drill.threshold(0)
    until("the first go", lambda: "complete" in drill.proxy.seen, 30)
    drill.down()
    for _ in range(kills):
        kill_at_random(drill, dice)
    drill.without_proxy()
    drill.start()
    drill.everything_offloaded()
    drill.quiet()
    ledgers_in_all = sum(len(ledgers(drill.context, topic.name)) for topic in drill.topics)
    objects = drill.settled()
    check(objects * 3 < ledgers_in_all, f"{ledgers_in_all} ledgers lie in {objects} objects")
    print(f"figure: {sum(drill.kills.values())} kills ({dict(drill.kills)}), {sum(topic.count for topic in drill.topics)} messages in "
          f"{ledgers_in_all} ledgers and {objects} objects", flush=True)


def read_from_the_bucket_alone(drill):
    """While the store is away nothing comes; then everything does. Answers what was told of each topic."""
    drill.s3.stop()
    context = drill.start()
    with context.client() as client:
        readers = [client.create_reader(topic.name, pulsar.MessageId.earliest) for topic in drill.topics]
        if any(came(reader) for reader in readers):
            sys.exit("FAILED: a message came although neither bookies nor the bucket should have it")
        check(True, "bookies have no copy: without the bucket nothing is read")
        drill.s3.start()
        told = {topic.name: topic.read(client) for topic in drill.topics}
    payloads, received = sum(topic.bytes for topic in drill.topics), costs(context, "geminga_offload_received_bytes_total")[("public", None)]
    check(received >= payloads, f"every message is read back from the bucket, bytes equal, in order, 0 lost: {payloads} bytes by {received:.0f}")
    return told


def came(reader):
    try:
        return reader.read_next(1000)
    except pulsar.Timeout:
        return None


def rebuilt(drill, told):
    """All metadata and all bookies are lost."""
    drill.down()
    before = {name: (drill.s3.root / "objects" / name).read_bytes() for name in drill.s3.files()}
    shutil.rmtree(drill.server.data_dir)
    try:
        drill.start()
        sys.exit("FAILED: an empty server took the bucket")
    except RuntimeError:
        drill.server.process.wait()
    dry = drill.command("rebuild", "--dry-run", "--verify")
    store = re.search(r"--adopt ([0-9a-f]{32})", dry.stdout)
    if dry.returncode or not store:
        sys.exit(f"FAILED: rebuild, a dry run: exit {dry.returncode}\n{dry.stdout}{dry.stderr}")
    run = drill.command("rebuild", "--adopt", store.group(1), "--verify")
    last = (run.stdout.strip().splitlines() or [run.stderr])[-1]
    check(run.returncode == 0 and last == "3 topics, 3 of them attached, 0 findings", f"rebuild: {last}")
    context = drill.start()
    with context.client() as client:
        for topic in drill.topics:
            check(topic.read(client) == told[topic.name], f"{topic.name}: {topic.count} messages as before, by hash of bytes, ids and times")
    check({name: (drill.s3.root / "objects" / name).read_bytes() for name in drill.s3.files()} == before, "the bucket is as it was")


def trimmed(drill, topic):
    """Retention reaches into the middle of objects: they stay for the ledgers that are left in them."""
    context = drill.context
    path = context.path(topic.name)
    before = len(drill.s3.objects())
    with context.client() as client:
        client.subscribe(topic.name, "keeps", initial_position=pulsar.InitialPosition.Earliest).close()
        check(context.status("DELETE", path + "/retention") == 204, "the topic keeps no longer what is consumed")
        all_of_it = [ledger["entries"] for ledger in ledgers(context, topic.name)]
        # Into the middle of the ledgers, and of one of them.
        floor = sum(all_of_it[:len(all_of_it) // 2])
        check(context.status("POST", f"{path}/subscription/keeps/skip/{floor + 7}") in (200, 204), f"{floor + 7} messages are consumed")
        until("half of the ledgers are trimmed", lambda: sum(l["entries"] for l in ledgers(context, topic.name)) == sum(all_of_it) - floor, 30)
        time.sleep(3)
        topic.read(client, floor)
        left = len(drill.s3.objects())
        check(left < before, f"{left} of {before} objects are left; what is left of the topic is read back out of the middle of one")
        check(context.status("POST", f"{path}/subscription/keeps/skip_all") in (200, 204), "everything is consumed")
        until("all of them are trimmed", lambda: not any(l["entries"] > 0 for l in ledgers(context, topic.name)), 30)


def emptied(drill):
    for topic in drill.topics[1:]:
        check(drill.context.status("DELETE", drill.context.path(topic.name) + "?force=true") == 204, "topic deleted")
    until("the bucket is empty", lambda: not drill.s3.objects(), 30)
    check(drill.settled() == 0, "one topic trimmed, the others deleted: 0 objects in the bucket")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments.add_argument("--kills", type=int, default=7)
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="geminga-together-") as root:
        drill = Drill(arguments.binary, root)
        try:
            published(drill, arguments.kills, random.Random(arguments.seed))
            told = read_from_the_bucket_alone(drill)
            rebuilt(drill, told)
            trimmed(drill, drill.topics[0])
            emptied(drill)
        except BaseException:
            print(open(drill.server.log.name).read()[-4000:], file=sys.stderr)
            raise
        finally:
            drill.stop()


if __name__ == "__main__":
    main()
