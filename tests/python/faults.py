#!/usr/bin/env python3
"""Real input on the real shape under faults: the scenario's package index through a partitioned topic and four subscriptions of a
cluster of processes (etcd, three bookies, a broker), while processes are killed and paused, calls fail, disks fill up, directories
vanish and bits flip, one fault after the other, each while it is written to.

    faults.py --server GEMINGA --consumer SCENARIO-GO --audit AUDIT --etcd ETCD [--faults short|all|NAME+NAME...] [--rounds N]
              [--seed N] [--rate N] [--progress FILE]

Clients and verdict are the scenario's (its head says what acked, receipted and redelivered mean). Besides, after each fault every
closed ledger must get back to its whole write quorum without a restart of anything that was not hurt: the auditor (tests/src/audit.rs)
asks the bookies entry by entry. At the end everything is read once more from its beginning by a fresh subscription, and every copy
from every holder, byte for byte.

A round is a fresh cluster and all the faults in random order, its seed the first one plus its number. With --progress each finished
round is written down with its table, one line of JSON, and a run that is started again goes on behind the last of them.
"""
import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pulsar

import injuries
from cluster import Cluster
from scenario import Consumer, Publisher, Verdict, last_look_at, make_partitions, package_records, wait_until_done

WHOLE_WITHIN = 180
WRITING_WITHIN = 90


class Writer(Publisher):
    """Publishes the index again and again at a steady rate, numbers per key running on, until it is told to stop."""

    def __init__(self, url, topic, source, rate):
        super().__init__(url, topic, [], 1)
        self.source, self.rate = source, rate
        self.counts, self.acks, self.stopping = collections.Counter(), [], threading.Event()

    def run(self):
        due = time.monotonic()
        index = 0
        while not self.stopping.is_set():
            key, _, block = self.source[index % len(self.source)]
            number = self.counts[key]
            self.counts[key] += 1
            self.records.append((key, number, block))
            self.producer.send_async(block, self.told(index), partition_key=key, properties={"n": str(number)})
            index += 1
            # What a stall delayed is not made up for: the pace is what stays.
            due = max(due + 1 / self.rate, time.monotonic() - 0.1)
            time.sleep(max(0, due - time.monotonic()))
        self.producer.flush()

    def told(self, index):
        def done(result, ident):
            if result == pulsar.Result.Ok:
                self.acked[index] = (ident.ledger_id(), ident.entry_id())
                self.acks.append(time.time())
            else:
                self.failed.append((index, str(result)))
        return done

    def longest_stall(self, since, held_up):
        """The longest time without an acknowledgement from a moment on, without the time in which nothing here ran."""
        times = [since] + [at for at in reversed(self.acks) if at >= since] + [time.time()]
        return max(after - before - overlap(held_up, before, after) for before, after in zip(times, times[1:]))

    def written_from_now(self, limit):
        """Waits until something that is sent from now on is acknowledged."""
        begun, index = time.monotonic(), len(self.records)
        while index not in self.acked:
            if time.monotonic() - begun > limit:
                return False
            time.sleep(0.02)
        return True


def overlap(intervals, begin, end):
    """How much of the time between two moments lies in these intervals."""
    return sum(max(0, min(end, to) - max(begin, since)) for since, to in list(intervals))


class Ticker(threading.Thread):
    """Notes when this process itself was held up: whatever seems late then is not."""

    def __init__(self):
        super().__init__(daemon=True)
        self.held_up = []

    def run(self):
        last = time.time()
        while True:
            time.sleep(0.2)
            now = time.time()
            if now - last > 1.2:
                self.held_up.append((last, now))
            last = now


class Round:
    """One cluster, its clients, and all faults."""

    def __init__(self, args, seed, say):
        self.args, self.seed, self.say = args, seed, say
        self.dice = random.Random(seed)
        self.work = tempfile.mkdtemp(prefix="geminga-faults-")
        self.cluster = Cluster(args.server, os.path.join(self.work, "cluster"), args.etcd)
        small = "bookie-2"
        self.cluster.small_disk = small if injuries.mount_small(self.cluster, small, 512) else None
        self.ticker = Ticker()
        self.pauses, self.recreated, self.rows, self.bad = [], [False], [], []
        self.topic = f"packages-{seed}-{os.getpid()}"

    def open(self):
        self.cluster.up()
        make_partitions(self.cluster.http, self.topic, 4)
        self.keep()
        self.events = os.path.join(self.work, "events.tsv")
        full = f"persistent://public/default/{self.topic}"
        self.consumer = Consumer(self.args.consumer, self.cluster.url, full, self.events)
        source, _ = package_records(20_000)
        self.writer = Writer(self.cluster.url, self.topic, source, self.args.rate)
        self.writer.start()
        self.stores = self.audit(WHOLE_WITHIN)["bookies"]
        self.ticker.start()

    def keep(self):
        """A subscription that acknowledges nothing: all stays, and all is read again at the end."""
        quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
        client = pulsar.Client(self.cluster.url, logger=quiet)
        client.subscribe(self.topic, "keeper", initial_position=pulsar.InitialPosition.Earliest).close()
        client.close()

    def epoch(self, recreate=False):
        self.recreated.append(recreate)
        self.consumer.tell(f"epoch {len(self.recreated) - 1}", "epoch")
        if recreate:
            self.consumer.tell("recreate", "recreated")

    def audit(self, wait, *more):
        url = f"http://127.0.0.1:{self.cluster.process('etcd')[1]}"
        done = subprocess.run([self.args.audit, url, str(wait), *more], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"audit: {done.stderr}")
        return json.loads(done.stdout)

    def wrong(self, text):
        self.bad.append(text)
        self.say(f"WRONG: {text}")

    def suffer(self, number, name):
        """One fault, from writing to whole again."""
        why = injuries.left_out(name, self.cluster)
        if why:
            self.say(f"left out: {name}: {why}")
            return
        if not self.writer.written_from_now(WRITING_WITHIN):
            return self.wrong(f"before {name}: nothing is acknowledged")
        time.sleep(self.dice.uniform(0.5, 2))
        injury = injuries.make(name, self.cluster, self.dice)
        acked, harmed = len(self.writer.acked), time.time()
        injury.hurt()
        self.epoch()
        time.sleep(injury.hold)
        meanwhile = len(self.writer.acked) - acked
        injury.heal()
        if isinstance(injury, injuries.Paused):
            self.pauses.append((harmed, time.time()))
        up = self.cluster.up()
        healed = time.monotonic()
        self.epoch(recreate=number % 3 == 2)
        if not self.writer.written_from_now(WRITING_WITHIN):
            self.wrong(f"{name} of {injury.target}: nothing is acknowledged {WRITING_WITHIN} s after it was set right")
        again, stall = time.monotonic() - healed, self.writer.longest_stall(harmed - 0.1, self.ticker.held_up)
        if isinstance(injury, injuries.SegmentFlipped):
            # What nobody reads before the next scrub nobody knows of: every copy is read once.
            met = self.audit(0, "--bytes")
            self.say(f"{len(met['unreadable'])} copies met by a reader, such as {met['unreadable'][:1]}")
        seen = self.audit(WHOLE_WITHIN)
        renewed = seen["bookies"] != self.stores
        self.stores = seen["bookies"]
        whole = seen["whole_ms"]
        if whole is None:
            self.wrong(f"{name} of {injury.target}: {seen['why_not']}; {self.cluster.get('/admin/v2/bookies/repair')}")
        total = time.monotonic() - healed
        row = [name + (" (a new store)" if renewed else ""), injury.target, meanwhile, f"{stall:.1f}", f"{up:.1f}", f"{again:.1f}", f"{total:.1f}" if whole is not None else "never"]
        self.rows.append(row)
        self.say(f"{name} of {injury.target}{' (' + injury.what + ')' if hasattr(injury, 'what') else ''}: stall {stall:.1f} s, "
                 f"up {up:.1f} s, writing {again:.1f} s, whole {row[-1]} s; {self.consumer.status()}")

    def close(self):
        """Everything settles, is looked at once more, and judged."""
        self.writer.stopping.set()
        self.writer.join(60)
        done = wait_until_done(self.writer, self.consumer, len(self.writer.records), 60, self.say)
        if not done:
            self.wrong("not everything was delivered")
        last_look_at(lambda: self.cluster.kill("broker"), self.cluster.up, self.consumer, self.recreated, self.say)
        self.consumer.stop()
        self.writer.client.close()
        self.bad += [f"send failed: {failed}" for failed in self.writer.failed[:5]]
        verdict = Verdict(self.writer.records, self.writer.acked, self.recreated,
                          [(begin * 1000, end * 1000) for begin, end in self.pauses + self.ticker.held_up])
        verdict.read(self.events)
        verdict.table()
        if verdict.bad():
            self.wrong(f"{verdict.bad()} violations on the subscriptions")
        self.read_again(verdict)
        seen = self.audit(WHOLE_WITHIN, "--bytes")
        print(f"figure: audit: {seen['ledgers']} closed ledgers, {seen['copies']} copies read from their holders, "
              f"{len(seen['unreadable'])} unreadable, {len(seen['wrong'])} wrong; {seen['bookies']}")
        for what in ("unreadable", "wrong"):
            if seen[what]:
                self.wrong(f"{len(seen[what])} copies {what}, such as {seen[what][0]}")
        if seen["whole_ms"] is None:
            self.wrong(f"at the end: {seen['why_not']}")

    def read_again(self, verdict):
        """All of it from the beginning, by a subscription that nothing has cached anything for."""
        quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
        client = pulsar.Client(self.cluster.url, logger=quiet)
        reader = client.subscribe(self.topic, "late", initial_position=pulsar.InitialPosition.Earliest)
        seen, highest, differing, disordered = set(), {}, 0, 0
        while not verdict.must <= seen:
            try:
                message = reader.receive(timeout_millis=30_000)
            except pulsar.Timeout:
                break
            record = (message.partition_key(), int(message.properties()["n"]))
            differing += hashlib.sha256(message.data()).digest()[:8].hex() != verdict.sums.get(record)
            if record not in seen:
                seen.add(record)
                disordered += highest.get(record[0], -1) > record[1]
                highest[record[0]] = max(highest.get(record[0], -1), record[1])
            reader.acknowledge(message)
        client.close()
        lost = len(verdict.must - seen)
        print(f"figure: read again from the beginning: {len(seen)} records, {lost} acked lost, {differing} differing, {disordered} out of order")
        if lost or differing or disordered:
            self.wrong("what is read again is not what was acknowledged")

    def end(self):
        try:
            self.cluster.down()
        finally:
            if self.cluster.small_disk:
                subprocess.run(["umount", os.path.join(self.cluster.dir, self.cluster.small_disk)], check=True)
        if self.bad or self.args.keep:
            print(f"kept: {self.work}", file=sys.stderr)
        else:
            shutil.rmtree(self.work)

    def run(self, names):
        names = list(names)
        self.dice.shuffle(names)
        try:
            self.open()
            for number, name in enumerate(names):
                self.suffer(number, name)
            self.close()
        finally:
            self.end()
        heads = ("fault", "of", "acked during it", "longest stall, s", "started again, s", "writing after, s", "whole after, s")
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
        for row in self.rows:
            print("| " + " | ".join(map(str, row)) + " |")
        print(f"figure: faults: seed {self.seed}, {len(self.rows)} faults, {len(self.writer.records)} records, "
              f"{len(self.writer.acked)} acked: {len(self.bad)} violations", flush=True)
        for text in self.bad:
            print("  " + text)
        return self.bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", required=True, help="the geminga binary")
    parser.add_argument("--consumer", required=True, help="the built tests/go/scenario")
    parser.add_argument("--audit", required=True, help="the built tests/examples/audit")
    parser.add_argument("--etcd", required=True, help="the etcd binary")
    parser.add_argument("--faults", default="short", help="short, all, or names joined by +: " + ", ".join([*injuries.ALL, *injuries.LONG]))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=400, help="records a second")
    parser.add_argument("--progress", help="file of finished rounds; a run that finds some goes on behind them")
    parser.add_argument("--keep", action="store_true", help="keep the cluster's directory")
    args = parser.parse_args()
    begun = time.monotonic()
    # So that whoever ends a run early leaves no processes and no mount behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))

    def say(text):
        print(f"{time.monotonic() - begun:6.1f} s {text}", file=sys.stderr, flush=True)

    known = {"short": list(injuries.SHORT), "all": list(injuries.ALL)}
    names = known.get(args.faults) or [name.strip() for name in args.faults.split("+")]
    finished = []
    if args.progress and os.path.exists(args.progress):
        with open(args.progress) as file:
            finished = [json.loads(line) for line in file]
        args.seed = finished[0]["seed"] if finished else args.seed
    violations = sum(len(one["bad"]) for one in finished)
    for number in range(len(finished), args.rounds):
        say(f"round {number + 1} of {args.rounds}, seed {args.seed + number}")
        one = Round(args, args.seed + number, say)
        violations += len(one.run(names))
        if args.progress:
            with open(args.progress, "a") as file:
                file.write(json.dumps({"seed": one.seed, "rows": one.rows, "bad": one.bad, "acked": len(one.writer.acked)}) + "\n")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
