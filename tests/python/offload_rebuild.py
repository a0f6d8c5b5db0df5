#!/usr/bin/env python3
"""A standalone's data directory is destroyed and its topics are attached again from the bucket alone, a real S3 server: everything
that was offloaded is read back from the earliest on by the official client and compared, publishing goes on with ids that rise.
The command is killed at several moments on the way and run again, and everything it refuses is asked for once.

    offload_rebuild.py BINARY [ETCD]        with an etcd the same topics are attached to a cluster's metadata as well
"""
import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import pulsar

from offload import ledgers, payload, publish, read_all
from probe_context import Context
from s3 import BUCKET, KEYS, S3, check, tiering, until
from server import Server, free_port

CONFIG = """
attempt_timeout_s = 10

[standalone.broker]
ledger_size = "2 MiB"
cache = "1 MiB"
"""
COUNT = 600
NAMESPACE = "acme/orders"
PARTITIONS = 3


def topics():
    """One in the namespace that every start makes, one in a namespace and tenant of its own, a partitioned one."""
    plain = ["persistent://public/default/ledgered", f"persistent://{NAMESPACE}/ä topic"]
    return plain + [f"persistent://{NAMESPACE}/split-partition-{n}" for n in range(PARTITIONS)]


class Drill:
    def __init__(self, binary, root):
        self.binary, self.root = binary, pathlib.Path(root)
        self.s3 = S3(f"{root}/s3").start()
        self.config = self.root / "server.toml"
        self.config.write_text(tiering(self.s3.port) + CONFIG)
        self.starts, self.last = 0, None

    def server(self):
        self.starts += 1
        self.last = Server(self.binary, str(self.root / "data"), str(self.config), log=str(self.root / f"{self.starts}.log"))
        return self.last

    def command(self, *arguments, verb="rebuild"):
        return [self.binary, "admin", "storage", verb, "--role", "standalone", "--config", str(self.config), "--data-dir",
                str(self.root / "data"), *arguments]

    def rebuild(self, what, exit_code, *words, arguments=(), without=(), command=None):
        run = subprocess.run((command or self.command()) + list(arguments), capture_output=True, text=True, timeout=300)
        said = run.stdout + run.stderr
        good = run.returncode == exit_code and all(w in said for w in words) and not any(w in said for w in without)
        check(good, f"rebuild, {what}: exit {run.returncode}: {said.strip().splitlines()[-1]}" if good
              else f"rebuild, {what}: exit {run.returncode}, wanted {exit_code}, {words} and not {without}:\n{said}")
        return said

    def bucket(self):
        """Every file of the bucket and its hash."""
        return {name: hashlib.sha256((self.s3.root / "objects" / name).read_bytes()).hexdigest() for name in self.s3.files()}


def published(drill):
    """Publishes, has everything offloaded, and waits until bookies have nothing left."""
    server = drill.server().start()
    context = Context(server.url, server.http)
    check(context.status("PUT", "/admin/v2/tenants/acme", {"allowedClusters": ["standalone"]}) == 204, "a tenant")
    check(context.status("PUT", f"/admin/v2/namespaces/{NAMESPACE}", {}) == 204, "a namespace")
    check(context.status("PUT", f"/admin/v2/persistent/{NAMESPACE}/split/partitions", PARTITIONS) == 204, "a partitioned topic")
    for namespace in ("public/default", NAMESPACE):
        check(context.status("PUT", f"/admin/v2/namespaces/{namespace}/offloadThreshold", 0) == 204, "threshold set")
    highest = 0
    with context.client() as client:
        for topic in topics():
            client.subscribe(topic, "keeps").close()
            publish(client, topic, 0, COUNT)
        for topic in topics():
            # Closes the last ledger.
            check(context.status("PUT", context.path(topic) + "/unload") == 204, "topic unloaded")
        for topic in topics():
            client.subscribe(topic, "keeps").close()
            until("everything is in the bucket", lambda: sum(l["entries"] for l in ledgers(context, topic) if l["offloaded"]) == COUNT)
            highest = max([highest] + [l["ledgerId"] for l in ledgers(context, topic)])
        # An upload that its topic's unloading cut short may have left a second attempt, until the sweep has been.
        until("one object for each ledger", lambda: len(drill.s3.objects()) == sum(
            l["offloaded"] for topic in topics() for l in ledgers(context, topic)), 90)
    time.sleep(2)
    server.kill()
    shutil.rmtree(drill.root / "data")
    check(True, f"{len(drill.s3.objects())} objects in the bucket, the data directory is gone; highest ledger {highest}")
    return highest


def adoption(drill):
    """The bucket is taken over by nobody who does not say so."""
    drill.rebuild("without data", 1, "GM-6009")
    server = drill.server()
    try:
        server.start()
        sys.exit("FAILED: an empty server took the bucket")
    except RuntimeError:
        said = pathlib.Path(server.log.name).read_text()
        check("GM-6010" in said and "storage rebuild" in said, f"an empty server is refused and told what to do: {said.strip().splitlines()[-1]}")
        server.process.wait()
    dry = drill.rebuild("a dry run", 0, "5 topics, 0 of them attached, 0 findings", "--adopt", arguments=["--dry-run"])
    for topic in topics():
        check(re.search(re.escape(f"+ {topic}: ") + r"\d+ ledgers, 600 entries, \d+ bytes, messages 0 up to and without 600", dry), f"planned: {topic}")
    drill.rebuild("nobody says so", 1, "GM-6010", "pass --adopt")
    drill.rebuild("another is named", 1, "GM-6010", arguments=["--adopt", "0" * 31 + "1"])
    drill.rebuild("what is no identity", 2, "--adopt", arguments=["--adopt", "x"])
    return re.search(r"--adopt ([0-9a-f]{32})", dry).group(1)


def cut_short(drill, store):
    """Killed at growing times: whatever it has got to, the next run goes on."""
    for ms in (5, 20, 40, 80, 160, 320):
        process = subprocess.Popen(drill.command("--adopt", store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(ms / 1000)
        process.kill()
        process.wait()
    check(True, "it was killed six times")


def read_again(drill, highest):
    server = drill.server().start()
    context = Context(server.url, server.http)
    with context.client() as client:
        for topic in topics():
            read_all(client, topic, COUNT)
        check(context.rest("GET", f"/admin/v2/persistent/{NAMESPACE}/split/partitions")[1]["partitions"] == PARTITIONS, "the partition count is back")
        reader = client.create_reader(f"persistent://{NAMESPACE}/split", pulsar.MessageId.earliest)
        for _ in range(PARTITIONS * COUNT):
            reader.read_next(30_000)
        reader.close()
        check(True, "the partitioned topic is read as one")
        for topic in topics():
            # Nobody has a subscription yet: only its retention keeps what was attached.
            publish(client, topic, COUNT, 200)
        time.sleep(5)
        for topic in topics():
            read_all(client, topic, COUNT + 200)
            new = [l["ledgerId"] for l in ledgers(context, topic) if not l["offloaded"]]
            check(new and min(new) > highest, f"new ledgers {new} lie above {highest}")
    server.stop()


def damaged(drill, store):
    """A fresh directory again; one object is damaged, one is missing, one upload was made twice."""
    shutil.rmtree(drill.root / "data")
    server = drill.server()
    try:
        server.start()
    except RuntimeError:
        server.process.wait()
    objects = sorted((drill.s3.root / "objects" / name for name in drill.s3.objects()), key=lambda path: (path.parent.name, int(path.name.split("-")[0])))
    of_topic = [path for path in objects if path.parent.name == objects[0].parent.name]
    kept = {path: path.read_bytes() for path in of_topic}
    of_topic[1].unlink()
    said = drill.rebuild("an object is missing", 3, "! GM-4017 hole: ", arguments=["--dry-run"])
    check("readers go on behind" in said, "the hole is told")
    of_topic[1].write_bytes(kept[of_topic[1]][:-1])
    drill.rebuild("an object is cut off", 3, "! GM-4012 damaged: ", "! GM-4017 hole: ", arguments=["--dry-run"])
    flipped = bytearray(kept[of_topic[1]])
    flipped[len(flipped) // 3] ^= 1
    of_topic[1].write_bytes(flipped)
    drill.rebuild("a byte of a block has changed", 3, "! GM-4012 damaged: ", arguments=["--dry-run", "--verify"])
    of_topic[1].write_bytes(kept[of_topic[1]])
    stray = of_topic[0].with_name("strange")
    stray.write_bytes(b"x")
    drill.rebuild("a strange object", 4, "! GM-4014 spare: ", "1 findings", arguments=["--dry-run"])
    stray.unlink()
    drill.rebuild("all is well again", 0, " 0 findings", arguments=["--adopt", store, "--verify"])


def into_etcd(drill, store, etcd):
    """Empty metadata of a cluster; once as if a broker were alive there."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    process = subprocess.Popen([etcd, "--data-dir", str(drill.root / "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
                                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        config = drill.root / "broker.toml"
        config.write_text(f'[broker]\ncluster = "standalone"\n[broker.metadata]\nurl = "etcd:{client}"\n'
                          f'[broker.offload]\nurl = "s3://{BUCKET}/history"\nendpoint = "http://127.0.0.1:{drill.s3.port}"\n')
        command = [drill.binary, "admin", "storage", "rebuild", "--role", "broker", "--config", str(config)]
        drill.rebuild("into etcd, a dry run", 0, "5 topics, 0 of them attached, 0 findings", arguments=["--dry-run"], command=command)
        key, value = (base64.b64encode(text).decode() for text in (b"/geminga/standalone/v1/live/r/a%3A1", b"x"))

        def put(path, **body):
            request = urllib.request.Request(f"{client}/v3/kv/{path}", json.dumps(body).encode())
            urllib.request.urlopen(request, timeout=10).read()

        put("put", key=key, value=value)
        drill.rebuild("into etcd while a broker lives", 1, "GM-6013", "a:1", arguments=["--adopt", store], command=command)
        put("deleterange", key=key)
        drill.rebuild("into etcd", 0, "5 topics, 5 of them attached, 0 findings", arguments=["--adopt", store], command=command)
        drill.rebuild("into etcd again", 0, "5 topics, 5 of them attached, 0 findings", command=command)
    finally:
        process.kill()
        process.wait()


def main():
    os.environ.update(KEYS)
    with tempfile.TemporaryDirectory(prefix="geminga-rebuild-") as root:
        drill = Drill(sys.argv[1], root)
        try:
            highest = published(drill)
            before = drill.bucket()
            store = adoption(drill)
            cut_short(drill, store)
            drill.rebuild("to the end", 0, "5 topics, 5 of them attached, 0 findings", arguments=["--adopt", store])
            drill.rebuild("again", 0, "5 topics, 5 of them attached, 0 findings", without=["\n+ "])
            check(drill.bucket() == before, "no object was written, changed or removed")
            fsck = subprocess.run(drill.command("--verify", verb="fsck"), capture_output=True, text=True)
            check(fsck.returncode == 0 and " 0 findings" in fsck.stdout, f"fsck: {fsck.stdout.strip()}")
            read_again(drill, highest)
            missing = set(before) - set(drill.bucket())
            check(not missing, "serving the topics has removed nothing")
            damaged(drill, store)
            if len(sys.argv) > 2:
                into_etcd(drill, store, sys.argv[2])
        except BaseException:
            for log in sorted(drill.root.glob("*.log")):
                print(log.name, log.read_text()[-1500:], file=sys.stderr)
            raise
        finally:
            if drill.last and drill.last.process and drill.last.process.poll() is None:
                drill.last.kill()
            drill.s3.stop()


if __name__ == "__main__":
    main()
