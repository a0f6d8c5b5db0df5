#!/usr/bin/env python3
"""Hundreds of small ledgers of one topic go to a bucket in a directory as few objects, and are read back byte for byte while bookies have
none of them. Ledgers that leave the topic leave the objects that others are in alone; with the last of its ledgers each object goes.
After the loss of everything but the bucket all of them are attached again, and a build or setting that sends ledgers alone reads them.

    offload_together.py BINARY
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pulsar

from offload import ledgers, metric, payload, publish, read_all
from probe_context import Context
from s3 import check, until
from server import Server

CONFIG = """
[standalone.offload]
url = "file://%s"
deletion_lag_s = 0
removal_grace_s = 0
settle_s = 1
attempt_timeout_s = 10
sweep_interval_s = 1
compound_below = "1 MiB"
compound_size = "4 MiB"
compound_age_s = 2

[standalone.broker]
ledger_size = "64 KiB"
cache = "1 MiB"
"""
COUNT = 1200
SUBSCRIPTION = "keeps"


class Drill:
    def __init__(self, binary, root):
        self.binary, self.root = binary, pathlib.Path(root)
        self.bucket, self.config = self.root / "bucket", self.root / "server.toml"
        self.config.write_text(CONFIG % self.bucket)
        self.data, self.server = str(self.root / "data"), None

    def start(self):
        if self.server is None:
            self.server = Server(self.binary, self.data, str(self.config))
        self.server.start()
        return Context(self.server.url, self.server.http)

    def objects(self):
        return sorted(path.name for path in self.bucket.rglob("*-*") if path.is_file() and "#" not in path.name)

    def admin(self, verb, exit_code, *arguments):
        run = subprocess.run([self.binary, "admin", "storage", verb, "--role", "standalone", "--config", str(self.config), "--data-dir",
                              self.data, *arguments], capture_output=True, text=True, timeout=300)
        said = run.stdout + run.stderr
        if run.returncode != exit_code:
            sys.exit(f"FAILED: {verb}: exit {run.returncode}: {said}")
        check(True, f"{verb} {' '.join(arguments)}: {said.strip().splitlines()[-1]}")
        return said


def few_objects(drill, context, client, topic):
    client.subscribe(topic, SUBSCRIPTION, initial_position=pulsar.InitialPosition.Earliest).close()
    publish(client, topic, 0, COUNT)
    check(context.status("PUT", context.path(topic) + "/unload") == 204, "topic unloaded: its last ledger closes")
    client.subscribe(topic, SUBSCRIPTION).close()
    until("everything is in the bucket", lambda: sum(l["entries"] for l in ledgers(context, topic) if l["offloaded"]) == COUNT)
    sent = [l for l in ledgers(context, topic) if l["offloaded"]]
    # An attempt that the unloading cut short goes when it has settled.
    count = until("objects are few", lambda: len(drill.objects()) if len(drill.objects()) <= len(sent) // 20 else None, 90)
    written = metric(context, topic, "geminga_offload_objects_written_total")
    gathered = metric(context, topic, "geminga_offload_ledgers_written_total")
    check(gathered >= 20 * written > 0, f"this broker wrote {written:.0f} objects of {gathered:.0f} ledgers")
    size = sum(path.stat().st_size for path in drill.bucket.rglob("*-*") if path.is_file())
    print(f"figure: {len(sent)} ledgers of {size / len(sent) / 1e3:.0f} kB are {count} objects: {count / (size / 1e9):.0f} PUTs per GB, "
          f"{len(sent) / (size / 1e9):.0f} if each went alone", flush=True)
    return len(sent)


def from_the_bucket_alone(drill, topic, count):
    """While the bucket is away nothing is read, so that what is read when it is back came from there."""
    drill.server.kill()
    context = drill.start()
    with context.client() as client:
        away = drill.root / "away"
        drill.bucket.rename(away)
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        try:
            reader.read_next(4_000)
            sys.exit("FAILED: a message came although neither bookies nor the bucket should have it")
        except pulsar.Timeout:
            check(True, "bookies have no copy: without the bucket nothing is read")
        away.rename(drill.bucket)
        check(reader.read_next(60_000).data() == payload(COUNT - count), "the same reader goes on when the bucket is back")
        reader.close()
    return context


def some_leave(drill, context, client, topic):
    """What a subscription has no need of any more is trimmed: whole objects go, one that others are in stays."""
    before = drill.objects()
    consumer = client.subscribe(topic, SUBSCRIPTION)
    for n in range(COUNT // 2):
        message = consumer.receive(20_000)
        if message.data() != payload(n):
            sys.exit(f"FAILED: message {n} is not what was published")
    consumer.acknowledge_cumulative(message)
    consumer.close()
    left = until("ledgers are trimmed", lambda: sum(l["entries"] for l in ledgers(context, topic) if l["offloaded"])
                 if len(ledgers(context, topic)) <= COUNT // 8 + 3 else None)
    until("objects that nobody names are gone", lambda: len(drill.objects()) < len(before))
    time.sleep(4)
    now = drill.objects()
    first = next(l["ledgerId"] for l in ledgers(context, topic) if l["offloaded"])
    begins = sorted(int(name.split("-")[0]) for name in now)
    check(set(now) < set(before) and begins[0] < first <= (begins + [first])[1],
          f"{len(before)} objects, now {len(now)}: the first begins with ledger {begins[0]}, the topic with ledger {first}")
    return left


def read_rest(client, topic, count):
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    for n in range(COUNT - count, COUNT):
        if reader.read_next(30_000).data() != payload(n):
            sys.exit(f"FAILED: message {n} is not what was published")
    reader.close()
    check(True, f"the {count} messages that are left are read back, bytes equal, in order")


def all_leave(drill, context, topic):
    check(context.status("DELETE", context.path(topic) + "?force=true") == 204, "topic deleted")
    until("the bucket is empty", lambda: not drill.objects(), 30)
    check(True, "with the last ledgers the last objects have gone")


def attached_again(drill, topic, count):
    """Everything but the bucket is lost."""
    drill.server.kill()
    shutil.rmtree(drill.data)
    server = Server(drill.binary, drill.data, str(drill.config), log=str(drill.root / "refused.log"))
    try:
        server.start()
        sys.exit("FAILED: an empty server took the bucket")
    except RuntimeError:
        server.process.wait()
    said = drill.admin("rebuild", 0, "--dry-run", "--verify")
    identity = re.search(r"[0-9a-f]{32}", said)
    identity = identity or re.search(r"--adopt ([0-9a-f]{32})", drill.admin("rebuild", 1))
    drill.admin("rebuild", 0, "--adopt", identity.group(0).split()[-1])
    context = drill.start()
    with context.client() as client:
        told = [l for l in ledgers(context, topic) if l["offloaded"]]
        check(sum(l["entries"] for l in told) == count, f"{len(told)} ledgers are attached again")
        read_all(client, topic, count)
    return context


def main():
    with tempfile.TemporaryDirectory(prefix="geminga-together-") as root:
        drill = Drill(sys.argv[1], root)
        try:
            context = drill.start()
            topic = context.topic()
            check(context.status("PUT", "/admin/v2/namespaces/public/default/offloadThreshold", 0) == 204, "threshold set")
            with context.client() as client:
                few_objects(drill, context, client, topic)
                time.sleep(4)
            context = from_the_bucket_alone(drill, topic, COUNT)
            with context.client() as client:
                read_all(client, topic, COUNT)
            drill.server.kill()
            drill.admin("fsck", 0, "--verify")
            context = attached_again(drill, topic, COUNT)
            with context.client() as client:
                client.subscribe(topic, SUBSCRIPTION, initial_position=pulsar.InitialPosition.Earliest).close()
            check(context.status("DELETE", context.path(topic) + "/retention") in (204, 200), "retention is as it was")
            with context.client() as client:
                left = some_leave(drill, context, client, topic)
            # Whoever does not send ledgers together any more has what is there all the same.
            drill.server.kill()
            drill.config.write_text(drill.config.read_text().replace('compound_below = "1 MiB"\n', ""))
            drill.admin("fsck", 0, "--verify")
            context = drill.start()
            with context.client() as client:
                read_rest(client, topic, left)
            all_leave(drill, context, topic)
        except BaseException:
            print(open(drill.server.log.name).read()[-4000:], file=sys.stderr)
            raise
        finally:
            if drill.server.process and drill.server.process.poll() is None:
                drill.server.kill()


if __name__ == "__main__":
    main()
