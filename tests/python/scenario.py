#!/usr/bin/env python3
"""Real input under kill -9: the machine's own Debian package index goes through a partitioned topic and four subscriptions,
while the server is killed at random moments. Nothing acknowledged may be lost, changed, or come again after its ack was
receipted; the order per key must hold on first deliveries.

    scenario.py --server target/release/geminga --consumer SCENARIO-GO [--config FILE] [--records N] [--kills N] [--seed N]

The official Python client publishes: keyed by Section, key-based batches, zstd, each record numbered within its key. The
official Go client consumes with ack receipts and batch-index acks (the Python one has no switch for receipts).

Words. Acked: the send callback said Ok. Receipted: the Ack call, which waits for the broker's response, returned no error.
Redelivered although receipted: a message came in an epoch (time between two kills) after the one of its receipt, and either
through a consumer made since, or at least 3 s after the receipt, which no queue inside the client outlives. What comes
again within the epoch of its receipt by the same consumers is not judged: it may have been under way. Messages are told
apart by their ids, since a producer's retry may store a record twice. A last check opens all
subscriptions afresh after one more kill: nothing that was receipted may come.
"""
import argparse
import collections
import glob
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import pulsar

from server import Server

ORDERED = ("exclusive", "failover", "key_shared")
SUBSCRIPTIONS = ("exclusive", "failover", "shared", "key_shared")
QUEUE_AGE_MS = 3000


def package_records(limit):
    """(key, number within key, bytes) of each record of the package index, in its order."""
    if not glob.glob("/var/lib/apt/lists/*Packages*"):
        sys.exit("scenario: no package index; run `apt-get update`")
    dump = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True).stdout
    counts, records = collections.Counter(), []
    for block in dump.split(b"\n\n"):
        if not block.strip():
            continue
        section = next((line[9:].decode() for line in block.split(b"\n") if line.startswith(b"Section: ")), "none")
        records.append((section, counts[section], block))
        counts[section] += 1
        if limit and len(records) >= limit:
            break
    return records, counts


class Publisher(threading.Thread):
    """Sends every record; a send stays open across crashes until its receipt comes."""

    def __init__(self, url, topic, records, portions):
        super().__init__(daemon=True)
        self.records, self.portion = records, -(-len(records) // portions)
        self.released = threading.Semaphore(0)
        self.acked, self.failed = {}, []
        quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
        self.client = pulsar.Client(url, logger=quiet, operation_timeout_seconds=30, connection_timeout_ms=2000)
        self.producer = self.client.create_producer(
            topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased, batching_max_messages=100,
            batching_max_publish_delay_ms=5, compression_type=pulsar.CompressionType.ZSTD, send_timeout_millis=0,
            block_if_queue_full=True, max_pending_messages=2000)

    def run(self):
        for index, (key, number, block) in enumerate(self.records):
            if index % self.portion == 0:
                self.released.acquire()

            def done(result, ident, index=index):
                if result == pulsar.Result.Ok:
                    self.acked[index] = (ident.ledger_id(), ident.entry_id())
                else:
                    self.failed.append((index, str(result)))
            self.producer.send_async(block, done, partition_key=key, properties={"n": str(number)})
        self.producer.flush()

    def settled(self):
        return len(self.acked) + len(self.failed) == len(self.records)


class Consumer:
    """The Go process."""

    def __init__(self, binary, url, topic, log):
        self.command = [binary, "-url", url, "-topic", topic, "-log", log]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.expect("ready")

    def expect(self, word):
        line = self.process.stdout.readline().strip()
        if not line.startswith(word):
            raise RuntimeError(f"scenario consumer: expected {word}, got {line!r}")
        return line

    def tell(self, text, answer):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.expect(answer)

    def status(self):
        """Per subscription `receipted/seen`, in different records."""
        words = self.tell("status", "status").split()[1:]
        return dict(word.split("=") for word in words)

    def stop(self):
        self.tell("stop", "stopped")
        self.process.wait(20)


def make_partitions(http, topic, count):
    path = f"{http}/admin/v2/persistent/public/default/{topic}/partitions"
    request = urllib.request.Request(path, data=str(count).encode(), method="PUT",
                                     headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


def ledgers_seen(acked):
    return len({ledger for ledger, _ in acked.values()})


def kill_at_random(server, consumer, publisher, kills, dice, epochs, say):
    """Releases one portion of the records at full speed, kills the server somewhere in the middle of it, restarts it, lets it
    run for a moment, and so on; every second time the consumers are made anew."""
    for n in range(kills):
        publisher.released.release()
        time.sleep(dice.uniform(0.02, 0.8))
        server.kill()
        consumer.tell(f"epoch {n + 1}", "epoch")
        epochs.append(False)
        time.sleep(dice.uniform(0, 0.3))
        server.start()
        if n % 2:
            consumer.tell("recreate", "recreated")
            epochs[-1] = True
        time.sleep(dice.uniform(0, 2))
        say(f"kill {n + 1}: back after {server.starts[-1]:.2f} s, {len(publisher.acked)} acked, {consumer.status()}")


def wait_until_done(publisher, consumer, total, limit, say):
    """Waits until all is published, every subscription has seen every record, and nothing moves any more. A record may stay
    without receipt: when the kill came between the durable ack and its response, it rightly does not come again."""
    last, since = None, time.monotonic()
    while True:
        status = consumer.status()
        now = (len(publisher.acked), *status.values())
        if now != last:
            last, since = now, time.monotonic()
        quiet = time.monotonic() - since
        seen = all(int(counts.split("/")[1]) >= total for counts in status.values())
        if publisher.settled() and seen and quiet > 3:
            return True
        if quiet > limit:
            say(f"no progress for {limit} s: {len(publisher.acked)} of {total} acked, receipted/seen {status}")
            return False
        time.sleep(0.2)


class Verdict:
    """Reads the event log and counts violations per subscription."""

    def __init__(self, records, acked, recreated, pauses=()):
        self.sums = {(key, number): hashlib.sha256(block).digest()[:8].hex() for key, number, block in records}
        self.must = {(records[index][0], records[index][1]) for index in acked}
        self.recreated, self.pauses = recreated, pauses
        self.rows = {name: collections.Counter() for name in SUBSCRIPTIONS}
        self.examples = []

    def note(self, sub, what, text):
        self.rows[sub][what] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{sub}: {what}: {text}")

    def read(self, path):
        seen = {name: set() for name in SUBSCRIPTIONS}
        highest = {name: {} for name in SUBSCRIPTIONS}
        receipts = {name: {} for name in SUBSCRIPTIONS}
        for line in open(path):
            cells = line.rstrip("\n").split("\t")
            sub = cells[1]
            if cells[0] == "A":
                receipts[sub].setdefault(cells[6], (int(cells[2]), int(cells[3])))
                self.rows[sub]["receipts"] += 1
            elif cells[0] == "E":
                self.rows[sub]["acks without receipt"] += 1
            else:
                self.received(sub, cells, seen[sub], highest[sub], receipts[sub])
        for sub in SUBSCRIPTIONS:
            for missing in sorted(self.must - seen[sub])[:5]:
                self.note(sub, "example of lost", str(missing))
            self.rows[sub]["acked records lost"] = len(self.must - seen[sub])
            self.rows[sub]["records"] = len(seen[sub])

    def received(self, sub, cells, seen, highest, receipts):
        _, _, consumer, epoch, now, key, number, digest, ident = cells
        record, epoch, now = (key, int(number)), int(epoch), int(now)
        self.rows[sub]["deliveries"] += 1
        if self.sums.get(record) != digest:
            self.note(sub, "bytes differing", str(record))
        if ident in receipts:
            receipt_epoch, receipt_time = receipts[ident]
            anew = any(self.recreated[receipt_epoch:epoch])
            if epoch > receipt_epoch and (anew or self.age(receipt_time, now) >= QUEUE_AGE_MS):
                self.note(sub, "redelivered although receipted", f"{record} {ident} to {consumer} in epoch {epoch}, receipted in {receipt_epoch}")
        if record not in seen:
            seen.add(record)
            if sub in ORDERED and highest.get(key, -1) > record[1]:
                self.note(sub, "order per key broken", f"{record} after {highest[key]}")
            highest[key] = max(highest.get(key, -1), record[1])

    def age(self, since, now):
        """Time between two moments without the pauses: what a paused process holds in its sockets grows old there."""
        return now - since - sum(max(0, min(now, end) - max(since, begin)) for begin, end in self.pauses)

    BAD = ("acked records lost", "bytes differing", "redelivered although receipted", "order per key broken")

    def table(self):
        heads = ("records", "deliveries", "receipts", "acks without receipt") + self.BAD
        print("| subscription | " + " | ".join(heads) + " |")
        print("|---" * (len(heads) + 1) + "|")
        for sub in SUBSCRIPTIONS:
            cells = ["-" if head == self.BAD[3] and sub not in ORDERED else str(self.rows[sub][head]) for head in heads]
            print(f"| {sub} | " + " | ".join(cells) + " |")
        for example in self.examples:
            print("  " + example)

    def bad(self):
        return sum(self.rows[sub][what] for sub in SUBSCRIPTIONS for what in self.BAD)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", help="the geminga binary")
    parser.add_argument("--consumer", required=True, help="the built tests/go/scenario")
    parser.add_argument("--config", help="settings of the server")
    parser.add_argument("--url", help="use a running server instead of --server; no kills then")
    parser.add_argument("--http")
    parser.add_argument("--records", type=int, default=0, help="0 for all")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="keep data directory and event log")
    args = parser.parse_args()
    begun = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - begun:6.1f} s {text}", file=sys.stderr, flush=True)

    records, counts = package_records(args.records)
    say(f"seed {args.seed}: {len(records)} records, {len(counts)} keys, {sum(len(b) for _, _, b in records) / 1e6:.1f} MB")
    work = tempfile.mkdtemp(prefix="geminga-scenario-")
    events, topic = os.path.join(work, "events.tsv"), f"packages-{args.seed}-{os.getpid()}"
    server = None
    if args.url:
        url, http, args.kills = args.url, args.http, 0
    else:
        server = Server(args.server, os.path.join(work, "data"), args.config).start()
        url, http = server.url, server.http
    make_partitions(http, topic, 4)
    consumer = Consumer(args.consumer, url, f"persistent://public/default/{topic}", events)
    publisher = Publisher(url, topic, records, args.kills + 1)
    publisher.start()
    recreated = [False]
    if args.kills:
        kill_at_random(server, consumer, publisher, args.kills, random.Random(args.seed), recreated, say)
    publisher.released.release()
    done = wait_until_done(publisher, consumer, len(records), 60, say)
    say(f"{len(publisher.acked)} acked in {ledgers_seen(publisher.acked)} ledgers, {len(publisher.failed)} failed")
    if server:
        last_look_at(server.kill, server.start, consumer, recreated, say)
    consumer.stop()
    publisher.client.close()
    if server:
        say(f"stopped in {server.stop():.2f} s; slowest start {max(server.starts):.2f} s of {len(server.starts)}")
    verdict = Verdict(records, publisher.acked, recreated)
    verdict.read(events)
    verdict.table()
    bad = verdict.bad() + len(publisher.failed) + (not done)
    print(f"figure: scenario: seed {args.seed}, {len(records)} records, {len(publisher.acked)} acked, {args.kills} kills: "
          f"{bad} violations")
    if args.keep or bad:
        print(f"kept: {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    sys.exit(1 if bad else 0)


def last_look_at(kill, start, consumer, recreated, say):
    """One more kill after everything was receipted, new consumers: nothing may come."""
    before = consumer.status()
    kill()
    recreated.append(True)
    consumer.tell(f"epoch {len(recreated) - 1}", "epoch")
    start()
    consumer.tell("recreate", "recreated")
    time.sleep(3)
    say(f"last look, receipted {before}")


if __name__ == "__main__":

    main()
