#!/usr/bin/env python3
"""A bucket in a directory whose file system is unmounted under a running server while clients publish, and mounted again: a real ext4,
detached at once (`umount -l`). Nothing is written in its place, no bookie copy goes meanwhile and the reason is told, all goes on without
a restart, and every message is read back in the end, from the bucket alone.

    offload_unmount.py BINARY

Needs root, mkfs.ext4 and a loop image that can be mounted.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import pulsar

from offload import ledgers, metric, payload, read_all
from probe_context import Context
from s3 import check, until
from server import Server

CONFIG = """
[standalone.offload]
url = "file://%s"
deletion_lag_s = 3
removal_grace_s = 0
settle_s = 1
sweep_interval_s = 1

[standalone.broker]
ledger_size = "1 MiB"
cache = "1 MiB"
"""
PER_SECOND = 150


class Disk:
    """A file system in a file, at the place of the bucket."""

    def __init__(self, root):
        self.image, self.at = pathlib.Path(root) / "image", pathlib.Path(root) / "bucket"
        with open(self.image, "wb") as image:
            image.truncate(512 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image], check=True)
        self.mounted = False
        self.mount()

    def mount(self):
        self.at.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", self.image, self.at], check=True)
        self.mounted = True

    def unmount(self):
        """Gone at once, whoever has a file of it open; waits until nobody has."""
        subprocess.run(["umount", "-l", self.at], check=True)
        self.mounted = False
        until("the server lets go of the file system", lambda: not subprocess.run(
            ["losetup", "-j", self.image], check=True, capture_output=True).stdout)

    def in_its_place(self):
        """What lies where it was mounted."""
        return sorted(os.listdir(self.at)) if self.at.exists() else None


class Traffic(threading.Thread):
    """Publishes until it is told to stop."""

    def __init__(self, client, topic):
        super().__init__(daemon=True)
        self.producer = client.create_producer(topic, block_if_queue_full=True, batching_enabled=False, max_pending_messages=200)
        self.over, self.count, self.failed = threading.Event(), 0, []
        self.start()

    def run(self):
        while not self.over.wait(1 / PER_SECOND):
            self.producer.send_async(payload(self.count), lambda result, _: self.failed.append(result) if result != pulsar.Result.Ok else None)
            self.count += 1
        self.producer.flush()
        self.producer.close()

    def stop(self):
        self.over.set()
        self.join()
        check(not self.failed, f"{self.count} messages published all the time")
        return self.count


def stats(context, topic):
    return context.rest("GET", context.path(topic) + "/stats")[1]


def waiting(context, topic):
    return metric(context, topic, "geminga_offload_releases_waiting")


def outage(context, disk, topic, log, leave):
    """The file system goes while ledgers are uploaded and released; `leave` the empty directory or nothing in its place."""
    until("a ledger waits for its lag", lambda: [l["offloaded"] for l in ledgers(context, topic)].count(True) > 3)
    failed = metric(context, topic, "brk_ledgeroffloader_write_storage_error_total")
    disk.unmount()
    if not leave:
        disk.at.rmdir()
    empty = [] if leave else None
    until("a release waits", lambda: waiting(context, topic))
    reason = until("the reason is told", lambda: stats(context, topic).get("offloadWaitReason"))
    check("GM-6011: " in reason and "file system is mounted" in reason, f"stats: {reason}")
    said = [line for line in log().splitlines() if "bookie copies" in line and "GM-6011" in line]
    check(said and "WARN" in said[-1], "the log tells it")
    until("uploads fail", lambda: metric(context, topic, "brk_ledgeroffloader_write_storage_error_total") > failed)
    time.sleep(8)
    there = disk.in_its_place()
    check(there == empty, f"in place of the file system: {there}")
    check(waiting(context, topic) > 0, f"{waiting(context, topic):.0f} ledgers keep their bookie copies")
    disk.mount()


def goes_on(context, topic):
    """Without a restart: all that is closed is in the bucket, nothing waits, no reason is left."""
    def settled():
        return all(l["offloaded"] for l in ledgers(context, topic)[:-1]) and waiting(context, topic) == 0 and "offloadWaitReason" not in stats(context, topic)

    until("uploads and releases go on", settled, 150)
    check(True, f"{len(ledgers(context, topic)) - 1} ledgers are in the bucket, nothing waits")


def from_the_bucket_alone(server, disk, topic, count):
    """A fresh process has nothing in memory: what it reads while bookies have no copy is in the bucket."""
    server.kill()
    context = Context(server.start().url, server.http)
    with context.client() as client:
        disk.unmount()
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        try:
            reader.read_next(4_000)
            sys.exit("FAILED: a message came although neither bookies nor the bucket should have it")
        except pulsar.Timeout:
            pass
        waits = [s.get("waitReason") or "" for s in stats(context, topic)["subscriptions"].values()]
        check(any("GM-6011" in why for why in waits), f"without the bucket nothing is read, and the reader's reason names it: {waits}")
        disk.mount()
        check(reader.read_next(60_000).data() == payload(0), "the same reader goes on when the bucket is back")
        reader.close()
        read_all(client, topic, count)
    server.stop()


def refused_at_start(binary, root, disk, server):
    disk.unmount()
    try:
        server.start()
    except RuntimeError:
        server.process.wait()
    else:
        server.kill()
        sys.exit("FAILED: it started without its bucket")
    check(disk.in_its_place() == [], "a start without the file system is refused and writes nothing")
    disk.mount()
    fsck = subprocess.run([binary, "admin", "storage", "fsck", "--role", "standalone", "--data-dir", server.data_dir, "--config",
                           f"{root}/server.toml", "--verify"], capture_output=True, text=True)
    check(fsck.returncode == 0, f"fsck: {fsck.stdout.strip().splitlines()[-1:]} {fsck.stderr}")


def main():
    binary = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="geminga-unmount-") as root:
        disk = Disk(root)
        (pathlib.Path(root) / "server.toml").write_text(CONFIG % disk.at)
        server = Server(binary, f"{root}/data", f"{root}/server.toml")
        try:
            server.start()
            context = Context(server.url, server.http)
            topic = context.topic()
            check(context.status("PUT", "/admin/v2/namespaces/public/default/offloadThreshold", 0) == 204, "threshold set")
            with context.client() as client:
                client.subscribe(topic, "keeps").close()
                traffic = Traffic(client, topic)
                for leave in (True, False):
                    outage(context, disk, topic, lambda: pathlib.Path(server.log.name).read_text(), leave)
                    goes_on_soon(context, topic)
                count = traffic.stop()
                goes_on(context, topic)
                time.sleep(4)
                goes_on(context, topic)
            from_the_bucket_alone(server, disk, topic, count)
            refused_at_start(binary, root, disk, server)
        except BaseException:
            print(open(server.log.name).read()[-4000:], file=sys.stderr)
            raise
        finally:
            if server.process and server.process.poll() is None:
                server.kill()
            if disk.mounted:
                subprocess.run(["umount", "-l", disk.at])


def goes_on_soon(context, topic):
    """While messages keep coming."""
    before = stats(context, topic)["lastOffloadLedgerId"]
    until("uploads and releases go on", lambda: stats(context, topic)["lastOffloadLedgerId"] > before
          and "offloadWaitReason" not in stats(context, topic), 150)
    check(True, "the file system is back: uploads and releases go on")


if __name__ == "__main__":
    main()
