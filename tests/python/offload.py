#!/usr/bin/env python3
"""Offloading against a real S3 server: publish, offload, drop bookie copies, read all back with the official client.

    offload.py BINARY [--mb 64]
    offload.py BINARY --etcd ETCD [--mb 64]     the same story, in short, over a cluster of processes with three bookies

`GEMINGA_TEST_S3_SERVER=minio` in the environment takes MinIO for it.

The proof that bookies have nothing left: while the S3 server is down nothing is read, and when it is back everything is.
"""
import argparse
import collections
import hashlib
import os
import pathlib
import re
import sys
import tempfile
import time

import pulsar

from cluster import Cluster
from probe_context import Context
from s3 import BUCKET, KEYS, S3, Proxy, check, until
from server import Server

SIZE = 16 * 1024
# So many messages are published, then offloaded: bookies never have more than half a GB, whatever is published in all.
PIECE = 32 * 1024
# What requests are billed as, by their names at the seam for stores.
BILLED = {"part": "multipart", "begin": "multipart", "complete": "multipart", "abort": "delete", "remove": "delete",
          "uploads": "list", "list": "list", "size": "head", "range": "get", "put": "put"}
CONFIG = """
[%s.offload]
url = "s3://%s/history"
endpoint = "http://127.0.0.1:%d"
deletion_lag_s = 0
removal_grace_s = 0
settle_s = 2
sweep_interval_s = 1

[%s]
ledger_size = "12 MiB"
cache = "1 MiB"
"""


def payload(n):
    """Bytes that tell their number and do not compress."""
    seed = hashlib.sha256(n.to_bytes(8, "big")).digest()
    return n.to_bytes(8, "big") + hashlib.shake_256(seed).digest(SIZE - 8)


def ledgers(context, topic):
    return context.rest("GET", context.path(topic) + "/internalStats")[1]["ledgers"]


def publish(client, topic, first, count):
    producer = client.create_producer(topic, block_if_queue_full=True, batching_enabled=False, max_pending_messages=200)
    failed = []
    for n in range(first, first + count):
        producer.send_async(payload(n), lambda result, _: failed.append(result) if result != pulsar.Result.Ok else None)
    producer.flush()
    producer.close()
    check(not failed, f"{count} messages published")


def read_all(client, topic, count, wait_ms=60_000):
    """Reads from earliest; order and bytes are those that were published."""
    reader = client.create_reader(topic, pulsar.MessageId.earliest, receiver_queue_size=200)
    begun = time.monotonic()
    for n in range(count):
        if reader.read_next(wait_ms).data() != payload(n):
            sys.exit(f"FAILED: message {n} is not what was published")
    seconds = time.monotonic() - begun
    reader.close()
    check(True, f"{count} messages read back, bytes equal, in order ({count * SIZE / seconds / 1e6:.0f} MB/s)")


def metric(context, topic, name, **labels):
    """The value of a topic's line in /metrics; None without one."""
    wanted = {"topic": topic, "namespace": topic.split("//")[1].rsplit("/", 1)[0], **labels}
    for line in context.rest("GET", "/metrics/", raw=True)[1].decode().splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in wanted.items()):
            return float(line.rsplit(" ", 1)[1])
    return None


def metrics_of_uploads(context, topic, objects):
    rate = metric(context, topic, "brk_ledgeroffloader_offload_rate")
    check(rate and rate > 0, f"offload rate: {rate} bytes/s")
    for name in ("offload_error_total", "write_storage_error_total", "read_offload_error_total"):
        check(metric(context, topic, "brk_ledgeroffloader_" + name) == 0, f"{name} is 0")
    count = metric(context, topic, "brk_ledgeroffloader_read_ledger_latency_count")
    spent = metric(context, topic, "brk_ledgeroffloader_read_ledger_latency_sum")
    check(count >= objects and spent > 0, f"ledgers were read for it {count:.0f} times in {spent:.0f} us")


def metrics_of_reads(context, topic):
    rate = metric(context, topic, "brk_ledgeroffloader_read_offload_rate")
    errors = metric(context, topic, "brk_ledgeroffloader_read_offload_error_total")
    check(rate and rate > 0, f"read rate: {rate} bytes/s")
    check(errors and errors > 0, f"{errors:.0f} reads failed while the bucket was away")
    for name in ("index", "data"):
        count = metric(context, topic, f"brk_ledgeroffloader_read_offload_{name}_latency_count")
        spent = metric(context, topic, f"brk_ledgeroffloader_read_offload_{name}_latency_sum")
        check(count > 0 and spent > 0, f"{name} was read {count:.0f} times in {spent:.0f} us")


def costs(context, name="geminga_offload_requests_total"):
    """What the object store was asked for, or the bytes to or from it, by tenant and kind."""
    found = {}
    for line in context.rest("GET", "/metrics/", raw=True)[1].decode().splitlines():
        if line.startswith(name + "{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            key = (labels["tenant"], labels.get("kind"))
            if key in found:
                sys.exit(f"FAILED: {name} has two lines for {key}")
            found[key] = float(line.rsplit(" ", 1)[1])
    return found


def costs_are_those_of_the_bucket(context, proxy, s3):
    """Every request that has reached the store is counted, those that it refused and that were repeated as well."""
    def counted():
        by_kind = collections.Counter(BILLED[what] for what in proxy.seen)
        told = collections.Counter()
        for (_, kind), count in costs(context).items():
            told[kind] += int(count)
        return by_kind if by_kind == +told else None

    seen = until("the requests that are told are those that the store has seen", counted, 30)
    check(proxy.hit == 3, f"{sum(seen.values())} requests are counted, 3 of them refused and repeated: {dict(seen)}")
    told, sent = costs(context), costs(context, "geminga_offload_sent_bytes_total")
    received = costs(context, "geminga_offload_received_bytes_total")[("public", None)]
    objects = s3.objects()
    stored = s3.size()
    check(told[("public", "multipart")] >= 3 * len(objects), "uploads are charged to the topic's tenant")
    check(told[("unknown", "get")] > 0 and told[("unknown", "multipart")] == 0, "the store's identity is charged to nobody")
    # One part was sent twice; each object was read back whole.
    part = max(sent[("public", None)] - stored, 0)
    check(0 < part <= 9 << 20, f"{sent[('public', None)]:.0f} bytes sent for {stored} stored: one part twice")
    check(stored <= received <= stored * 1.05, f"{received:.0f} bytes received: each object was read back once")
    requests = sum(count for (tenant, _), count in told.items() if tenant == "public")
    print(f"figure: {requests / (stored / 1e9):.0f} requests per GB in objects of {stored / len(objects) / 1e6:.1f} MB", flush=True)


def wait_offloaded(context, topic):
    def status():
        answer = context.rest("GET", context.path(topic) + "/offload")[1]
        if answer["status"] == "ERROR":
            sys.exit(f"FAILED: offload: {answer['lastError']}")
        return answer if answer["status"] == "SUCCESS" else None

    return until("the offload ends", status, 120)


def by_hand(context, client, s3, topic, count):
    check(context.status("PUT", f"/admin/v2/namespaces/public/default/offloadDeletionLagMs", 0) == 204, "deletion lag set")
    client.subscribe(topic, "keeps").close()
    check(context.rest("GET", context.path(topic) + "/offload")[1]["status"] == "NOT_RUN", "nothing was offloaded yet")
    for first in range(0, count, PIECE):
        publish(client, topic, first, min(PIECE, count - first))
        closed = ledgers(context, topic)
        last = closed[-1]["ledgerId"]
        check(context.status("PUT", context.path(topic) + "/offload", {"ledgerId": last, "entryId": 0}) == 204, "offload asked for")
        answer = wait_offloaded(context, topic)
    check(len(closed) >= 4, f"{len(closed)} ledgers")
    check(answer["firstUnoffloadedMessage"]["ledgerId"] == last, "the open ledger is the first that is not offloaded")
    offloaded = [ledger["offloaded"] for ledger in ledgers(context, topic)]
    check(offloaded == [True] * (len(closed) - 1) + [False], "every closed ledger is offloaded")
    check(len(s3.objects()) == len(closed) - 1, f"{len(closed) - 1} objects in the bucket")
    metrics_of_uploads(context, topic, len(closed) - 1)
    stats = context.rest("GET", context.path(topic) + "/stats")[1]
    check(stats["offloadedStorageSize"] == sum(l["size"] for l in closed[:-1]), "stats tell the offloaded bytes")


def reads_depend_on_the_bucket(server, s3, topic, count):
    """A fresh process has nothing in memory; with the store away it must wait, not fail and not skip."""
    server.kill()
    s3.stop()
    server.start()
    context = Context(server.url, server.http)
    with context.client() as client:
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        try:
            reader.read_next(4_000)
            sys.exit("FAILED: a message came although neither bookies nor the bucket should have it")
        except pulsar.Timeout:
            check(True, "bookies have no copy: without the bucket nothing is read")
        s3.start()
        check(reader.read_next(60_000).data() == payload(0), "the same reader goes on when the bucket is back")
        reader.close()
        read_all(client, topic, count)
        middle = count // 3
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        for _ in range(middle):
            stamp = reader.read_next(10_000).publish_timestamp()
        metrics_of_reads(context, topic)
        reader.seek(stamp)
        found = int.from_bytes(reader.read_next(10_000).data()[:8], "big")
        check(found <= middle, f"seek by time finds an offloaded message ({found} of {middle})")
        reader.close()
    return context


def by_threshold(context, client, s3):
    path = "/admin/v2/namespaces/public/default/offloadThreshold"
    check(context.status("PUT", path, 0) == 204, "threshold set")
    topic, count = context.topic(), 2000
    client.subscribe(topic, "keeps").close()
    publish(client, topic, 0, count)
    until("closed ledgers are offloaded by policy", lambda: all(l["offloaded"] for l in ledgers(context, topic)[:-1]), 60)
    check(True, "closed ledgers are offloaded by policy")
    read_all(client, topic, count)
    check(context.status("PUT", path, -1) == 204, "threshold off")
    return topic


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--mb", type=int, default=64)
    arguments.add_argument("--etcd")
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    story = over_a_cluster if arguments.etcd else alone
    with tempfile.TemporaryDirectory(prefix="geminga-offload-") as root:
        story(arguments, root)


def alone(arguments, root):
    s3 = S3(f"{root}/s3").start()
    config = pathlib.Path(root) / "server.toml"
    proxy = Proxy(s3.port)
    config.write_text(CONFIG % ("standalone", BUCKET, proxy.port, "standalone.broker"))
    proxy.set(lambda what, number: "503" if (what, number) in (("part", 1), ("size", 0), ("uploads", 0)) else None)
    server = Server(arguments.binary, f"{root}/data", str(config)).start()
    try:
        context = Context(server.url, server.http)
        topic, count = context.topic(), arguments.mb * (1 << 20) // SIZE
        with context.client() as client:
            by_hand(context, client, s3, topic, count)
            costs_are_those_of_the_bucket(context, proxy, s3)
            read_all(client, topic, count)
        # Without the proxy from here on: the server is started anew, and figures are not to be the proxy's.
        config.write_text(config.read_text().replace(str(proxy.port), str(s3.port)))
        proxy.stop()
        context = reads_depend_on_the_bucket(server, s3, topic, count)
        with context.client() as client:
            other = by_threshold(context, client, s3)
        for gone in (topic, other):
            check(context.status("DELETE", context.path(gone) + "?force=true") == 204, "topic deleted")
        until("the bucket is empty", lambda: not s3.objects(), 30)
        check(True, "deleting the topics has emptied the bucket")
        removed = context.rest("GET", "/metrics/", raw=True)[1].decode()
        check('delete_offload_ops_total{cluster="standalone",namespace="unknown",topic="unknown",status="succeed"}' in removed,
              "removals of deleted topics are counted")
    except BaseException:
        print(open(server.log.name).read()[-4000:], file=sys.stderr)
        raise
    finally:
        if server.process and server.process.poll() is None:
            server.kill()
        s3.stop()


def over_a_cluster(arguments, root):
    """Three bookies, one broker. The broker is killed while bookies have nothing left, and once all of them are down."""
    s3 = S3(f"{root}/s3").start()
    config = pathlib.Path(root) / "cluster.toml"
    config.write_text(CONFIG % ("broker", BUCKET, s3.port, "broker.service"))
    cluster = Cluster(arguments.binary, f"{root}/cluster", arguments.etcd, settings={}, config=str(config))
    try:
        cluster.up()
        context = Context(cluster.url, cluster.http)
        topic, count = context.topic(), arguments.mb * (1 << 20) // SIZE
        with context.client() as client:
            by_hand(context, client, s3, topic, count)
            offloaded = sum(l["entries"] for l in ledgers(context, topic) if l["offloaded"])
        # A broker that is killed leaves an open ledger to its bookies: this one closes it first.
        check(context.status("PUT", context.path(topic) + "/unload") == 204, "topic unloaded")
        cluster.kill("broker")
        cluster.up()
        with context.client() as client:
            read_all(client, topic, count)
            for bookie in range(3):
                cluster.kill(f"bookie-{bookie}")
            read_all(client, topic, offloaded)
            check(True, f"{offloaded} messages are read without any bookie")
            cluster.up()
            check(context.status("DELETE", context.path(topic) + "?force=true") == 204, "topic deleted")
        until("the bucket is empty", lambda: not s3.objects(), 30)
        check(True, "deleting the topic has emptied the bucket")
        config.write_text(config.read_text().replace("/history", "/other"))
        cluster.kill("broker")
        said = cluster.run("up", "--etcd", arguments.etcd)[1]
        check("GM-6011" in said and "/history" in said and "/other" in said, "another prefix is refused in a cluster too")
    except BaseException:
        print(cluster.log("broker")[-4000:], file=sys.stderr)
        raise
    finally:
        cluster.run("down")
        s3.stop()


if __name__ == "__main__":
    main()
