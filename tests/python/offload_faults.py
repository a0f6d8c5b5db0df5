#!/usr/bin/env python3
"""The broker is killed, and the store fails, at every request that an offload, a trim and a deletion make to a real S3 server.

    offload_faults.py BINARY [--long]

After every kill, while nothing runs: no referenced object is missing and every object is named (`geminga admin storage fsck`). In
the end every message was read back, and once the sweeper is through nothing is left that no topic references. The bucket is also
looked at from outside, as files.
"""
import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

from offload import SIZE, ledgers, publish, read_all
from probe_context import Context
from s3 import KEYS, S3, Proxy, check, tiering, until
from server import Server

CONFIG = """
attempt_timeout_s = 10
part_size = "5 MiB"

[standalone.broker]
ledger_size = "%d MiB"
cache = "1 MiB"
"""
# Two sizes of ledgers: one goes in one request, one in two parts.
ONE, PARTS = 2, 6
BEFORE, AFTER = ("kill", "before"), ("kill", "after")
# The last request before the commit is answered and the kill follows so many milliseconds behind: commit and release are met.
LAST, SOON = {ONE: ("range", 2), PARTS: ("uploads", 0)}, [("kill", "soon", ms) for ms in (0, 1, 2, 4, 8, 16)]
# Requests of an offload by number, then those of removals. A step that is never reached is a failure of this test.
STEPS = {
    ONE: [("put", 0), ("size", 0), ("range", 0), ("range", 2)],
    PARTS: [("begin", 0), ("part", 0), ("part", 1), ("complete", 0), ("size", 0), ("range", 1), ("uploads", 0)],
}
REMOVALS = [("uploads", 0), ("remove", 0), ("remove", 1)]


class Drill:
    def __init__(self, binary, root):
        self.binary, self.root = binary, pathlib.Path(root)
        self.s3 = S3(f"{root}/s3").start()
        self.proxy = Proxy(self.s3.port)
        self.servers, self.counts = {}, {"kills": 0, "failures": 0}
        for size in (ONE, PARTS):
            config = self.root / f"server-{size}.toml"
            config.write_text(tiering(self.proxy.port) + CONFIG % size)
            # Two clusters' worth of data in one bucket would share a name; each has a prefix of its own.
            config.write_text(config.read_text().replace("/history", f"/history-{size}"))
            self.servers[size] = Server(binary, f"{root}/data-{size}", str(config))

    def start(self, size):
        server = self.servers[size]
        server.start()
        self.proxy.kill = lambda: os.kill(server.process.pid, signal.SIGKILL)
        return Context(server.url, server.http)

    def down(self, size):
        """The server is gone by the proxy's hand, or is killed now."""
        server = self.servers[size]
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.process.stdout.close()

    def fsck(self, size, *flags):
        """The report's lines and numbers; the server is not running, the store works."""
        self.proxy.set()
        command = [self.binary, "admin", "storage", "fsck", "--role", "standalone", "--config", self.servers[size].config,
                   "--data-dir", self.servers[size].data_dir, *flags]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
        if run.returncode or not last.endswith(" 0 findings"):
            sys.exit(f"FAILED: fsck: exit {run.returncode}\n{run.stdout}{run.stderr}")
        numbers = re.match(r"(\d+) objects of topics \(\d+ bytes\) .*, (\d+) uploads under way, (\d+) removals wait", last).groups()
        return dict(zip(("referenced", "under way", "waiting"), map(int, numbers)))

    def files(self, size):
        return [name for name in self.s3.objects() if f"/history-{size}/" in name]


def asked(context, topic):
    """Offload of everything closed; answers when it is done or failed."""
    last = ledgers(context, topic)[-1]["ledgerId"]
    if context.status("PUT", context.path(topic) + "/offload", {"ledgerId": last, "entryId": 0}) != 204:
        sys.exit("FAILED: an offload cannot be asked for")


def state(context, topic):
    return context.rest("GET", context.path(topic) + "/offload")[1]


def offloaded(context, topic):
    """Asks until every closed ledger is in the store alone; what fails on the way is asked for again."""
    def done():
        answer = state(context, topic)
        if answer["status"] in ("NOT_RUN", "ERROR"):
            asked(context, topic)
        return answer["status"] == "SUCCESS" and all(l["offloaded"] for l in ledgers(context, topic)[:-1])

    until("the offload ends", done, 180)


def gone(server):
    return server.process.poll() is not None


def filled(context, size):
    """A topic with a subscription that keeps everything, and one closed ledger at least."""
    topic, count = context.topic(), (size * 5 // 2 << 20) // SIZE
    with context.client() as client:
        client.subscribe(topic, "keeps").close()
        publish(client, topic, 0, count)
    return topic, count


def kill_in_offload(drill, size, step, when):
    server = drill.servers[size]
    context = drill.start(size)
    topic, count = filled(context, size)
    drill.proxy.set(lambda kind, number: when if (kind, number) == step else None)
    asked(context, topic)
    until(f"a kill {when[1:]} {step}", lambda: gone(server), 60)
    drill.down(size)
    drill.counts["kills"] += 1
    print(f"ok killed {when[1:]} {step}: {drill.fsck(size)}", flush=True)
    context = drill.start(size)
    offloaded(context, topic)
    with context.client() as client:
        read_all(client, topic, count)
    drill.down(size)
    drill.fsck(size, "--verify")
    return topic, count


def kill_in_removal(drill, size, topic, trim, step, when):
    """The topic goes, or is trimmed because its subscription has had everything; the sweep is killed."""
    server = drill.servers[size]
    context = drill.start(size)
    drill.proxy.set(lambda kind, number: when if (kind, number) == step else None)
    if trim:
        path = context.path(topic) + "/subscription/keeps/skip_all"
        check(context.status("POST", path) in (200, 204), "everything is acknowledged")
    else:
        check(context.status("DELETE", context.path(topic) + "?force=true") == 204, "topic deleted")
    until(f"a kill {when[1]} {step} of a removal", lambda: gone(server), 60)
    drill.down(size)
    drill.counts["kills"] += 1
    print(f"ok killed {when[1]} {step} of a removal: {drill.fsck(size)}", flush=True)


def settled(drill, size):
    """Everything that waits is swept; what is left is what topics reference."""
    drill.start(size)
    end = time.monotonic() + 60
    while True:
        time.sleep(3)
        drill.down(size)
        report = drill.fsck(size, "--verify")
        files = drill.files(size)
        if not report["under way"] and not report["waiting"]:
            break
        if time.monotonic() > end:
            sys.exit(f"FAILED: the sweeper does not get through: {report}")
        drill.start(size)
    check(len(files) == report["referenced"],
          f"{report['referenced']} objects referenced, {len(files)} files in the bucket: leaked 0, lost 0")


def storms(drill, size, rounds):
    """Nobody is killed; requests fail in every way, first one kind after the other at its first step, then at random."""
    context = drill.start(size)
    fates = ["503", "lost", "truncate", "slow"]
    kinds = {ONE: ["put", "size", "range"], PARTS: ["begin", "part", "complete", "size", "range", "uploads"]}[size]
    plans = [(f"{fate} at {what}", lambda kind, number, f=fate, w=what: f if (kind, number) == (w, 0) else None)
             for fate in fates for what in kinds]
    for seed in range(rounds):
        dice = random.Random(seed)

        def at_random(kind, number, dice=dice):
            at = dice.random()
            return "503" if at < 0.2 else "slow" if at < 0.3 else "lost" if at < 0.33 else "truncate" if at < 0.36 else None

        plans.append((f"20 % 503, 10 % slow, 3 % lost, 3 % truncated, seed {seed}", at_random))
    topics = []
    for name, plan in plans:
        topic, count = filled(context, size)
        drill.proxy.set(plan)
        asked(context, topic)
        offloaded(context, topic)
        with context.client() as client:
            read_all(client, topic, count)
        check(drill.proxy.hit > 0, f"offloaded and read back under {name}: {drill.proxy.hit} of {len(drill.proxy.seen)} requests hit")
        drill.counts["failures"] += drill.proxy.hit
        drill.proxy.set()
        topics.append((topic, count))
        if len(topics) > 2:
            check(context.status("DELETE", context.path(topics.pop(0)[0]) + "?force=true") == 204, "topic deleted")
    drill.down(size)
    return topics


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--long", action="store_true")
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="geminga-offload-") as root:
        drill = Drill(arguments.binary, root)
        try:
            for size in (ONE, PARTS):
                kills = [(step, when) for step in STEPS[size] for when in (BEFORE, AFTER)] + [(LAST[size], when) for when in SOON]
                topics = [kill_in_offload(drill, size, step, when) for step, when in kills]
                settled(drill, size)
                for nth, (step, when) in enumerate((step, when) for step in REMOVALS[:2] for when in (BEFORE, AFTER)):
                    kill_in_removal(drill, size, topics.pop()[0], nth % 2 == 1, step, when)
                topics += storms(drill, size, 10 if arguments.long else 1)
                settled(drill, size)
                context = drill.start(size)
                with context.client() as client:
                    for topic, count in topics[-3:]:
                        read_all(client, topic, count)
                for topic, _ in topics:
                    check(context.status("DELETE", context.path(topic) + "?force=true") == 204, "topic deleted")
                drill.down(size)
                settled(drill, size)
            check(not drill.s3.objects(), "every topic is gone, and the bucket is empty, parts of uploads included")
        except BaseException:
            for server in drill.servers.values():
                print(open(server.log.name).read()[-3000:], file=sys.stderr)
            raise
        finally:
            for server in drill.servers.values():
                if server.process and server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()
            drill.proxy.stop()
            drill.s3.stop()
    print(f"figure: offload: {drill.counts['kills']} kills, {drill.counts['failures']} failed requests, {time.monotonic() - begun:.0f} s: "
          "objects leaked 0, referenced objects deleted 0")


if __name__ == "__main__":
    main()
