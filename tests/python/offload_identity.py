#!/usr/bin/env python3
"""Whose bucket it is, against a real S3 server: a wrong one is refused at the start, a lost one is waited for, a moved one is used.
And what `geminga admin storage fsck` says, by code and exit code, of everything that it cannot look at and of what it finds.

    offload_identity.py BINARY
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pulsar

from offload import ledgers, publish, read_all, wait_offloaded
from probe_context import Context
from s3 import BUCKET, KEYS, S3, Proxy, check, until
from server import Server

OFFLOAD = """
[standalone.offload]
url = "s3://%s/%s"
endpoint = "http://127.0.0.1:%d"
deletion_lag_s = 0
removal_grace_s = 0
settle_s = 1
sweep_interval_s = 1
"""
BROKER = """
[standalone.broker]
ledger_size = "2 MiB"
cache = "1 MiB"
"""
COUNT = 400


class Drill:
    def __init__(self, binary, root):
        self.binary, self.root, self.configs = binary, pathlib.Path(root), 0
        self.s3 = S3(f"{root}/s3").start()

    def config(self, prefix="history", port=None, bucket=BUCKET, offload=OFFLOAD):
        self.configs += 1
        path = self.root / f"server-{self.configs}.toml"
        path.write_text((offload and offload % (bucket, prefix, port or self.s3.port)) + BROKER)
        return str(path)

    def server(self, config, data="data", number=[0]):
        number[0] += 1
        return Server(self.binary, str(self.root / data), config, log=str(self.root / f"{number[0]}.log"))

    def refused(self, what, config, code, *words, data="data"):
        """A start that fails: the code, what is named, and nothing that is secret."""
        server = self.server(config, data)
        try:
            server.start()
        except RuntimeError:
            said = pathlib.Path(server.log.name).read_text().strip().splitlines()[-1]
            server.process.wait()
            missing = [word for word in (f"geminga: {code}: ", *words) if word not in said]
            check(server.process.returncode == 1 and not missing, f"{what}: {said}" + (f" lacks {missing}" if missing else ""))
            check(KEYS["AWS_SECRET_ACCESS_KEY"] not in said, "no secret in it")
        else:
            server.kill()
            sys.exit(f"FAILED: {what}: it started")

    def logged(self, server):
        return pathlib.Path(server.log.name).read_text()

    def fsck(self, what, config, exit_code, *words, data="data", env=None):
        command = [self.binary, "admin", "storage", "fsck", "--role", "standalone", "--data-dir", str(self.root / data)]
        command += ["--config", config] if config else []
        run = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **(env or {})})
        said = run.stdout + run.stderr
        good = run.returncode == exit_code and all(word in said for word in words)
        check(good, f"fsck, {what}: exit {run.returncode}: {said.strip().splitlines()[0 if words else -1]}" if good
              else f"fsck, {what}: exit {run.returncode}, wanted {exit_code} and {words}:\n{said}")


def claimed(drill):
    server = drill.server(drill.config()).start()
    context = Context(server.url, server.http)
    topic = context.topic()
    with context.client() as client:
        check(not drill.s3.identities(), "a start alone writes nothing to the bucket")
        check(context.status("PUT", "/admin/v2/namespaces/public/default/offloadDeletionLagMs", 0) == 204, "deletion lag set")
        client.subscribe(topic, "keeps").close()
        publish(client, topic, 0, COUNT)
        last = ledgers(context, topic)[-1]["ledgerId"]
        check(context.status("PUT", context.path(topic) + "/offload", {"ledgerId": last, "entryId": 0}) == 204, "offload asked for")
        wait_offloaded(context, topic)
    check(len(drill.s3.identities()) == 1, f"the first use has claimed the bucket: {drill.s3.identities()}")
    until("bookies have no copy", lambda: all(l["offloaded"] for l in ledgers(context, topic)[:-1]))
    server.stop()
    return topic


def refused_at_start(drill):
    here = f"127.0.0.1:{drill.s3.port}"
    drill.refused("another prefix", drill.config("other"), "GM-6011", f"s3://{BUCKET}/other at http://{here}",
                  f"s3://{BUCKET}/history at", "offload.url")
    drill.refused("a fresh cluster on a bucket in use", drill.config(), "GM-6010", f"s3://{BUCKET}/history", data="fresh")
    # A second cluster of the same name has a prefix of its own; then the two are mixed up.
    server = drill.server(drill.config("second"), "second").start()
    context = Context(server.url, server.http)
    topic = context.topic()
    with context.client() as client:
        client.subscribe(topic, "keeps").close()
        publish(client, topic, 0, COUNT)
        last = ledgers(context, topic)[-1]["ledgerId"]
        context.status("PUT", context.path(topic) + "/offload", {"ledgerId": last, "entryId": 0})
        wait_offloaded(context, topic)
    server.stop()
    drill.refused("another cluster's prefix", drill.config("second"), "GM-6010", f"s3://{BUCKET}/second", f"s3://{BUCKET}/history")
    drill.refused("a kind of URL that is none", drill.config(offload=OFFLOAD.replace("s3://", "ftp://id:hidden@")), "GM-6004", "ftp://")


def settings(drill):
    """What cannot be is told with its key, its value and the range."""
    for line, *words in (
        ('part_size = "99999999 TiB"', "part_size", "99999999 TiB", "16777215TiB"),
        ('part_size = "1 TiB"', "offload.part_size is 1TiB", "5MiB to 512MiB"),
        ("deletion_lag_s = 99999999999", "offload.deletion_lag_s is 99999999999", "0 to 31536000"),
    ):
        offload = "\n".join(old for old in OFFLOAD.splitlines() if old.split(" ")[0] != line.split(" ")[0])
        drill.refused(line, drill.config(offload=offload + "\n" + line + "\n"), "GM-6004", *words)


def without_a_store(drill, topic):
    """Topics that need no object are served; a person is told once, with figures."""
    server = drill.server(drill.config(offload="")).start()
    context = Context(server.url, server.http)
    said = until("a warning", lambda: [line for line in drill.logged(server).splitlines() if "GM-6012" in line])
    words = ("WARN", f"s3://{BUCKET}/history", "ledgers=", "only_there=", "topics=1")
    check(len(said) == 1 and all(word in said[0] for word in words), f"without offload.url: {said[0]}")
    with context.client() as client:
        other = context.topic()
        client.subscribe(other, "keeps").close()
        publish(client, other, 0, 50)
        read_all(client, other, 50)
    server.stop()


def away_at_start(drill, topic):
    drill.s3.stop()
    server = drill.server(drill.config()).start()
    check("GM-4009" in until("a warning", lambda: drill.logged(server)), "a store that is away does not keep the broker from starting")
    context = Context(server.url, server.http)
    with context.client() as client:
        reader = client.create_reader(topic, pulsar.MessageId.earliest)
        try:
            reader.read_next(3_000)
            sys.exit("FAILED: a message came although the bucket is away")
        except pulsar.Timeout:
            pass
        drill.s3.start()
        reader.read_next(60_000)
        check(True, "the same reader goes on when the store is back and was found to be the right one")
        reader.close()
    server.stop()
    # The other store is away at the start and comes back wrong: nothing is read from it, and the reason is named.
    proxy = Proxy(drill.s3.port)
    proxy.set(lambda kind, number: "503")
    server = drill.server(drill.config("other", proxy.port)).start()
    context = Context(server.url, server.http)
    with context.client() as client:
        proxy.set()
        reader = client.create_reader(topic, pulsar.MessageId.earliest)

        def reason():
            subscriptions = context.rest("GET", context.path(topic) + "/stats")[1]["subscriptions"]
            return next((s for s in map(str, subscriptions.values()) if "GM-6011" in s), None)

        until("readers wait and say that it is the wrong store", reason)
        check(True, "a wrong store behind a late answer: readers wait and name it")
        reader.close()
    server.stop()
    proxy.stop()
    shutil.rmtree(drill.root / "s3" / "objects" / BUCKET / "other", ignore_errors=True)


def moved(drill, topic):
    proxy = Proxy(drill.s3.port)
    server = drill.server(drill.config(port=proxy.port)).start()
    context = Context(server.url, server.http)
    with context.client() as client:
        read_all(client, topic, COUNT)
    server.stop()
    check(True, "the same bucket behind another endpoint is the same store")
    proxy.stop()


def fsck(drill):
    good = drill.config()
    drill.fsck("all is well", good, 0, " 0 findings")
    drill.fsck("no url", drill.config(offload=""), 1, "GM-6004: offload.url is not set")
    drill.fsck("another prefix", drill.config("other"), 1, "GM-6011", "/other", "/history")
    drill.fsck("another cluster's", drill.config("second"), 1, "GM-6010")
    drill.fsck("no data", good, 1, "GM-6009", "--data-dir", data="nowhere")
    drill.fsck("no file of settings", str(drill.root / "none.toml"), 1, "GM-6005")
    drill.fsck("wrong credentials", good, 1, "GM-4010", "AWS_ACCESS_KEY_ID", env={"AWS_SECRET_ACCESS_KEY": "another"})
    drill.fsck("no such bucket", drill.config(bucket="nobody"), 1, "GM-4010", "NoSuchBucket")
    drill.s3.stop()
    drill.fsck("a store that is away", good, 1, "GM-4009", "offload.endpoint")
    drill.s3.start()
    server = drill.server(good).start()
    drill.fsck("a standalone that runs", good, 1, "GM-6001", "stop it")
    server.stop()
    objects = [drill.s3.root / "objects" / name for name in drill.s3.objects() if "/history/" in name]
    stray = objects[0].with_name("9-0000000000000009")
    stray.write_bytes(b"x")
    drill.fsck("an object of nobody", good, 4, "! GM-4014 unknown: ", "1 findings")
    kept = objects[0].read_bytes()
    objects[0].write_bytes(kept[:-1])
    drill.fsck("a damaged object", good, 3, "! GM-4012 damaged: ", "! GM-4014 unknown: ", "2 findings")
    objects[0].unlink()
    drill.fsck("a missing object", good, 3, "! GM-4011 missing: ", "its messages cannot be read")
    objects[0].write_bytes(kept)
    stray.unlink()
    identity = drill.s3.root / "objects" / next(name for name in drill.s3.identities() if "/history/" in name)
    kept = identity.read_bytes()
    identity.write_bytes(kept[:20] + b"\0" + kept[21:])
    drill.fsck("a damaged identity", good, 1, "GM-4005", "geminga.id")
    drill.refused("a damaged identity", good, "GM-4005", "geminga.id")
    identity.write_bytes(kept[:8] + b"\2" + kept[9:])
    drill.refused("a newer identity", good, "GM-6002", "geminga.id", "version 2")
    identity.write_bytes(kept)
    drill.fsck("all is well again", good, 0, " 0 findings")


def main():
    os.environ.update(KEYS)
    with tempfile.TemporaryDirectory(prefix="geminga-identity-") as root:
        drill = Drill(sys.argv[1], root)
        try:
            topic = claimed(drill)
            refused_at_start(drill)
            settings(drill)
            without_a_store(drill, topic)
            away_at_start(drill, topic)
            moved(drill, topic)
            fsck(drill)
        finally:
            drill.s3.stop()


if __name__ == "__main__":
    main()
