#!/usr/bin/env python3
"""How fast offloaded topics come back from a store that is as far away, narrow and moody as a real one.

    offload_readback.py BINARY SHAPER [--mb 512] [--seconds 12] [--short | --publish]

BINARY is a release build; SHAPER is the example `s3_shaper` of the tests' crate (`cargo build -p geminga-tests --example s3_shaper`),
which stands before a real S3 server. The reader is `perf consume`; each run is cold: a fresh process, more bytes than its cache.
Everything shares this machine, so the CPU of each part is told beside its figures, and an unlimited run tells what the machine allows.
A publisher is measured by itself, beside cold readers, and beside the same readers of another broker process on a copy of the data: what that
costs is the machine's, not the broker's. Store, shaper and readers stand for other machines: while a publisher is measured they are niced.
Fails when nothing comes back, when a read or a publish fails, or when the store is asked more than 130 times a GB.
--short only looks whether reading and writing get through refusals and slow answers.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

from offload import wait_offloaded
from probe_context import Context
from s3 import KEYS, S3, check, tiering, until
from server import Server

TOPIC = "persistent://public/default/"
SIZE = 16 << 10
GETS_MAX = 130
FAR = {"first_byte_ms": 30, "mb_s": 80}
MOODY = {**FAR, "share_503": 0.2, "share_slow": 0.1}
CONFIG = """
[standalone.broker]
ledger_size = "%d MiB"
cache = "64 MiB"
"""


class Shaper:
    def __init__(self, binary, upstream):
        self.process = subprocess.Popen([binary, str(upstream)], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def ask(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/__{path}", timeout=60) as answer:
            return answer.read()

    def set(self, **limits):
        self.ask("set?" + "&".join(f"{name}={value}" for name, value in limits.items()))

    def counts(self):
        return json.loads(self.ask("counts"))

    def alone(self, connections, megabytes, **limits):
        """MB/s of bytes of its own over so many connections: what it allows by itself."""
        self.set(**limits)
        begun = time.monotonic()
        url = f"http://127.0.0.1:{self.port}/__zero?bytes={megabytes * 1_000_000}"
        runs = [subprocess.Popen(["curl", "-sf", "-o", "/dev/null", url]) for _ in range(connections)]
        check(not any(run.wait() for run in runs), f"{connections} connections to the shaper")
        return connections * megabytes / (time.monotonic() - begun)


def cpu(process):
    """Seconds of CPU that a process has used."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def threads(process):
    return list(pathlib.Path(f"/proc/{process.pid}/task").iterdir())


def cpu_of_threads(process):
    """Seconds of CPU by a thread's name."""
    used = {}
    for thread in threads(process):
        try:
            name, ran = (thread / "comm").read_text().strip(), int((thread / "schedstat").read_text().split()[0])
        except OSError:
            continue  # it has ended
        used[name] = used.get(name, 0) + ran / 1e9
    return used


def nice(processes, priority):
    """Sets the priority of every thread; those that they start inherit it."""
    for thread in (thread for process in processes for thread in threads(process)):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), priority)
        except ProcessLookupError:
            pass


class Drill:
    def __init__(self, arguments, root):
        self.binary, self.mb, self.seconds, self.runs = arguments.binary, arguments.mb, arguments.seconds, 0
        self.s3 = S3(f"{root}/s3").start()
        self.shaper = Shaper(arguments.shaper, self.s3.port)
        config = pathlib.Path(root) / "server.toml"
        config.write_text(tiering(self.shaper.port, settle_s=2) + CONFIG % max(16, self.mb // 2))
        self.server = Server(self.binary, f"{root}/data", str(config))
        self.other = Server(self.binary, f"{root}/other", str(config))

    def parts(self):
        return {"broker": self.server.process, "shaper": self.shaper.process, "store": self.s3.process}

    def restart(self):
        if self.server.process:
            self.server.stop(30)
        self.server.start()
        self.context = Context(self.server.url, self.server.http)
        return self.context

    def held(self):
        """What the broker says about holding back."""
        lines = self.context.rest("GET", "/metrics/", raw=True)[1].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("geminga_offload_"))
        return {name.split("{")[0]: float(value) for name, value in pairs}

    def perf(self, what, *words, server=None):
        command = [self.binary, "perf", what, "--url", (server or self.server).url, "--json", *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def report(self, run):
        said, wrong = run.communicate(timeout=540)
        if run.returncode:
            sys.exit(f"FAILED: perf: exit {run.returncode}: {wrong[-2000:]}")
        return json.loads(said.strip().splitlines()[-1])

    def names(self, prefix, topics):
        prefix = TOPIC + prefix
        return [prefix] if topics == 1 else [f"{prefix}-{n}" for n in range(topics)]

    def fill(self, prefix, topics):
        """So many MiB in closed ledgers, which are then in the store alone."""
        context, count = self.restart(), (self.mb << 20) // SIZE
        with context.client() as client:
            for name in self.names(prefix, topics):
                client.subscribe(name, "keeps").close()
        flags = ("--topic", TOPIC + prefix, "--topics", topics, "--size", SIZE, "--rate", 0, "--no-batch")
        self.report(self.perf("produce", *flags, "--messages", count))
        context = self.restart()
        # A ledger is closed by its topic's next owner; one more message opens the next.
        for name in self.names(prefix, topics):
            self.report(self.perf("produce", "--topic", name, "--messages", 1, "--rate", 0))
        for name in self.names(prefix, topics):
            last = context.rest("GET", context.path(name) + "/internalStats")[1]["ledgers"][-1]["ledgerId"]
            check(context.status("PUT", context.path(name) + "/offload", {"ledgerId": last, "entryId": 0}) == 204, "offload")
        for name in self.names(prefix, topics):
            wait_offloaded(context, name)
        # Bookies are asked before the store: nothing is measured before they have nothing left.
        until("bookie copies go", lambda: self.fetched(prefix, topics, count) > 0.9, 120)
        return count

    def fetched(self, prefix, topics, count):
        """Share of the bytes that a read of everything has from the store."""
        self.restart()
        self.shaper.set()
        self.report(self.consume(prefix, topics, count))
        return self.shaper.counts()["get_bytes"] / (count * SIZE)

    def consume(self, prefix, topics, count, server=None):
        self.runs += 1
        return self.perf("consume", "--topic", TOPIC + prefix, "--topics", topics, "--subscription", f"run-{self.runs}",
                         "--initial-position", "earliest", "--receiver-queue", 1000, "--messages", count, server=server)

    def read(self, name, prefix, topics, count, limits):
        """One cold read of everything; its figures."""
        self.restart()
        self.shaper.set(**limits)
        before, begun = {part: cpu(process) for part, process in self.parts().items()}, time.monotonic()
        seen = self.report(self.consume(prefix, topics, count))
        wall = time.monotonic() - begun
        used = ", ".join(f"{part} {cpu(process) - before[part]:.1f}" for part, process in self.parts().items())
        counts = self.shaper.counts()
        rate = count * SIZE / 1e6 / wall
        per_gb = counts["gets"] / (count * SIZE / 1e9)
        allowed = counts["busy_mean"] * limits.get("mb_s", 0)
        share = f", {100 * counts['get_bytes'] / 1e6 / (counts['span_s'] * allowed):.0f} % of what they allow" if allowed else ""
        print(f"figure: {name}: {rate:.0f} MB/s ({seen['messages']} messages, {wall:.2f} s), {counts['busy_mean']:.1f} connections busy "
              f"(at most {counts['busy_max']}){share}; {per_gb:.0f} GETs per GB, {counts['get_bytes'] / (count * SIZE):.2f} bytes fetched per byte; "
              f"{counts['refused']} refused, {counts['slowed']} slow; CPU s: {used}", flush=True)
        check(seen["messages"] >= count, "everything came back")
        if limits.get("share_503"):
            held = self.held()
            check(counts["refused"] > 0 and held["geminga_offload_store_refused_total"] >= counts["refused"] - counts["busy"],
                  f"the broker tells of {held['geminga_offload_store_refused_total']:.0f} refusals, at most {held['geminga_offload_rate_limit']:.1f} "
                  f"requests a second, {held['geminga_offload_held_seconds_total']:.1f} s held back")
            reason = self.context.rest("GET", self.context.path(self.names(prefix, topics)[0]) + "/stats")[1].get("offloadWaitReason") or ""
            check(reason.startswith("GM-4025"), f"the topic's stats say why it waits: {reason}")
        return per_gb

    def first(self, topic, limits):
        """ms from asking for a reader to its first message, beside that of a topic which bookies have."""
        def one(name):
            with context.client() as client:
                client.create_reader(TOPIC + warm, earliest).close()
                begun = time.monotonic()
                reader = client.create_reader(TOPIC + name, earliest, receiver_queue_size=1)
                reader.read_next(30_000)
                took = (time.monotonic() - begun) * 1000
                reader.close()
                return took

        import pulsar
        earliest, warm, times = pulsar.MessageId.earliest, "warm", []
        for _ in range(5):
            context = self.restart()
            self.report(self.perf("produce", "--topic", TOPIC + warm, "--messages", 1, "--rate", 0))
            self.shaper.set(**limits)
            times.append((one(topic), one(warm)))
        far, near = (sorted(of)[len(of) // 2] for of in zip(*times))
        extra = far - near
        print(f"figure: first message: {far:.0f} ms, {near:.0f} ms from bookies: {extra / limits['first_byte_ms']:.1f} times the first byte", flush=True)

    def copy(self):
        """Another broker process with the same topics."""
        self.server.stop(30)
        shutil.copytree(self.server.data_dir, self.other.data_dir)
        self.server.start()

    def publish(self, name, limits, read=None, server=None):
        """p99 of a steady producer, with cold readers beside it or not, of its own broker or another; and the CPU of the broker."""
        self.restart()
        if server:
            server.start()
        self.shaper.set(**limits)
        run = self.perf("produce", "--topic", TOPIC + "hot", "--rate", 1000, "--size", 1024, "--warmup", 1, "--duration", self.seconds)
        niced, reads = [self.shaper.process, self.s3.process], 0
        nice(niced, 19)
        before = cpu_of_threads(self.server.process)
        while read and run.poll() is None:
            reader = self.consume(*read, server=server)
            nice([reader], 19)
            while reader.poll() is None and run.poll() is None:
                time.sleep(0.02)
            if reader.poll() is None:
                reader.kill()
                reader.communicate()
            else:
                self.report(reader)
                reads += 1
        done = self.shaper.counts()["get_bytes"]
        seen = self.report(run)
        after = cpu_of_threads(self.server.process)
        nice(niced, 0)
        if server:
            server.stop(30)
        check(seen["failed"] == 0, "every publish was acknowledged")
        of = seen["latency_ms"]
        used = {name: after[name] - before.get(name, 0) for name in after if after[name] - before.get(name, 0) > 0.1}
        print(f"figure: publish {name}: p50 {of['p50']:.2f} ms, p99 {of['p99']:.2f} ms, {seen['messages']} messages, {reads} whole reads and "
              f"{done / 1e6:.0f} MB beside; CPU s of the broker's threads: {', '.join(f'{n} {s:.2f}' for n, s in used.items())}", flush=True)
        return of["p99"]

    def stop(self):
        for process in (self.server.process, self.other.process, self.shaper.process):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        self.s3.stop()


def read_back(drill):
    """How fast, and by how many requests."""
    print(f"figure: the shaper alone: {drill.shaper.alone(4, 400):.0f} MB/s, limited to 80 MB/s each "
          f"{drill.shaper.alone(4, 100, **FAR):.0f} MB/s over 4 connections", flush=True)
    counts = {topics: drill.fill(prefix, topics) for prefix, topics in (("one", 1), ("ten", 10))}
    drill.read("1 topic, no limits", "one", 1, counts[1], {})
    per_gb = [drill.read(f"{topics} topic(s), 30 ms and 80 MB/s", prefix, topics, counts[topics], FAR)
              for prefix, topics in (("one", 1), ("ten", 10))]
    drill.read("1 topic, 20 % refused, 10 % slow", "one", 1, counts[1], MOODY)
    drill.first("one", FAR)
    check(per_gb[0] <= GETS_MAX, f"{per_gb[0]:.0f} GETs per GB, {GETS_MAX} at most")


def publish_beside(drill):
    """What publishers have of it."""
    cold = ("beside", 1, drill.fill("beside", 1))
    drill.copy()
    for name, limits in (("30 ms and 80 MB/s", FAR), ("20 % refused, 10 % slow", MOODY)):
        alone = drill.publish("alone", limits)
        others = drill.publish(f"beside cold readers of another broker, {name}", limits, cold, drill.other)
        beside = drill.publish(f"beside cold readers, {name}", limits, cold)
        print(f"figure: publish p99 beside cold readers, {name}: {100 * (beside / alone - 1):+.0f} %; beside those of another broker "
              f"{100 * (others / alone - 1):+.0f} %", flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("shaper")
    arguments.add_argument("--mb", type=int, default=512)
    arguments.add_argument("--seconds", type=int, default=12)
    arguments.add_argument("--short", action="store_true")
    arguments.add_argument("--publish", action="store_true", help="only what publishers have of it")
    arguments = arguments.parse_args()
    if arguments.short:
        arguments.mb = min(arguments.mb, 64)
    os.environ.update(KEYS)
    with tempfile.TemporaryDirectory(prefix="geminga-readback-") as root:
        drill = Drill(arguments, root)
        try:
            if arguments.short:
                count = drill.fill("one", 1)
                drill.read("20 % refused, 10 % slow", "one", 1, count, MOODY)
                return
            if not arguments.publish:
                read_back(drill)
            publish_beside(drill)
        except BaseException:
            print(open(drill.server.log.name).read()[-3000:], file=sys.stderr)
            raise
        finally:
            drill.stop()


if __name__ == "__main__":
    main()
