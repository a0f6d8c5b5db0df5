#!/usr/bin/env python3
"""Real power cuts: the data directory is on a loop-mounted ext4 that is shut down without a flush of its log while clients
publish, as if the machine had lost its power; then it is mounted again and the server started on what is left.

    powercut.py --server target/release/geminga [--config FILE] [--rounds 200] [--per-store 20] [--seed N]

Needs root, mkfs.ext4 and a loop device. A store lives through `--per-store` cuts, then comes a new one. Held to, after each cut:
every message whose receipt came is read back from the beginning, byte for byte, in the order of sending; what was skipped
durably (REST answered) does not come back. Broken promises are counted and printed; the exit code is 1 then.
"""
import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

import pulsar

from server import Server

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), include/uapi/linux/ext4.h
WITHOUT_LOG_FLUSH = 2
TOPICS = ("batched", "single", "large")


class Disk:
    """A file system in a file."""

    def __init__(self, work, megabytes):
        self.image, self.at = os.path.join(work, "image"), os.path.join(work, "mount")
        with open(self.image, "wb") as image:
            image.truncate(megabytes << 20)
        os.makedirs(self.at)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image], check=True)
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.at], check=True)

    def cut(self):
        """Nothing that is not on the disk by now reaches it any more."""
        handle = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        finally:
            os.close(handle)

    def unmount(self):
        subprocess.run(["umount", self.at], check=True)


class Topic:
    """What was sent to one topic over the life of its store."""

    def __init__(self, name):
        self.name = f"persistent://public/default/{name}"
        self.short, self.sent, self.acked, self.failed = name, 0, {}, 0
        self.mark = (-1, -1)

    def body(self, number, dice):
        size = {"batched": dice.randint(10, 300), "single": dice.randint(10, 4000), "large": dice.randint(10_000, 150_000)}[self.short]
        return struct.pack(">Q", number) + dice.randbytes(size)

    def publish(self, client):
        """An open producer; batches only where the name says so."""
        return client.create_producer(self.name, batching_enabled=self.short == "batched", batching_max_publish_delay_ms=2,
                                      batching_max_messages=50, max_pending_messages=2000, send_timeout_millis=0)

    def send(self, producer, dice):
        number, body = self.sent, self.body(self.sent, dice)
        self.sent += 1
        digest = hashlib.sha256(body).digest()

        def done(result, _):
            if result == pulsar.Result.Ok:
                self.acked[number] = digest
            else:
                self.failed += 1
        producer.send_async(body, done)


def quiet_client(url):
    return pulsar.Client(url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"), operation_timeout_seconds=20)


class Store:
    """One file system with a server on it, and what is known to be in it."""

    def __init__(self, args, dice):
        self.dice = dice
        self.work = tempfile.mkdtemp(prefix="geminga-powercut.")
        self.disk = Disk(self.work, args.megabytes)
        self.server = Server(args.server, os.path.join(self.disk.at, "data"), args.config, os.path.join(self.work, "server.log"))
        self.topics = [Topic(name) for name in TOPICS]
        self.server.start()
        try:
            self.subscribe()
        except BaseException:
            self.end(keep=True)
            raise

    def subscribe(self):
        client = quiet_client(self.server.url)
        for topic in self.topics:
            for name in ("keeper", "skipper"):
                client.subscribe(topic.name, name, initial_position=pulsar.InitialPosition.Earliest).close()
        client.close()

    def rest(self, topic, rest, method="GET"):
        path = f"{self.server.http}/admin/v2/persistent/public/default/{topic.short}/{rest}"
        with urllib.request.urlopen(urllib.request.Request(path, method=method), timeout=20) as answer:
            return answer.read()

    def position(self, topic):
        cursors = json.loads(self.rest(topic, "internalStats"))["cursors"]
        place = cursors.get("skipper", {}).get("markDeletePosition", "-2:-2")  # a lost subscription is behind everything
        return tuple(int(word) for word in place.split(":"))

    def write_and_cut(self):
        client = quiet_client(self.server.url)
        producers = [(topic, topic.publish(client)) for topic in self.topics]
        end = time.monotonic() + self.dice.uniform(0.05, 1.5)
        skip_at = time.monotonic() + self.dice.uniform(0.0, 1.5)
        while time.monotonic() < end:
            for topic, producer in producers:
                for _ in range({"batched": 40, "single": 8, "large": 1}[topic.short]):
                    topic.send(producer, self.dice)
            if time.monotonic() > skip_at:
                topic = self.dice.choice(self.topics)
                self.rest(topic, f"subscription/skipper/skip/{self.dice.randint(1, 20)}", "POST")
                topic.mark, skip_at = self.position(topic), end
            time.sleep(0.001)
        self.disk.cut()
        time.sleep(self.dice.choice([0, 0, 0.05, 0.3]))  # acks that come now are held to as well
        self.server.kill()
        with contextlib.suppress(pulsar.PulsarException):
            client.close()  # says goodbye to a server that is gone
        self.disk.unmount()
        self.disk.mount()

    def check(self):
        """Starts the server again and reads everything; broken promises as texts."""
        self.server.start()
        client, broken = quiet_client(self.server.url), []
        for topic in self.topics:
            seen, last = {}, -1
            reader = client.create_reader(topic.name, pulsar.MessageId.earliest, receiver_queue_size=500)
            while reader.has_message_available():
                body = reader.read_next(20_000).data()
                number = struct.unpack(">Q", body[:8])[0]
                if number <= last:
                    broken.append(f"{topic.short}: {number} after {last}")
                last, seen[number] = max(last, number), hashlib.sha256(body).digest()
            reader.close()
            lost = [number for number in topic.acked if number not in seen]
            wrong = [number for number in topic.acked if number in seen and seen[number] != topic.acked[number]]
            if lost or wrong:
                broken.append(f"{topic.short}: {len(lost)} acked lost {lost[:5]}, {len(wrong)} changed {wrong[:5]}")
            if self.position(topic) < topic.mark:
                broken.append(f"{topic.short}: skipped to {topic.mark}, now at {self.position(topic)}")
        client.close()
        return broken

    def acked(self):
        return sum(len(topic.acked) for topic in self.topics)

    def end(self, keep):
        self.server.kill()
        self.disk.unmount()
        if keep:
            print(f"kept: {self.work}", file=sys.stderr)
        else:
            shutil.rmtree(self.work)


def run(args):
    dice, begun = random.Random(args.seed), time.monotonic()
    rounds = acked = 0
    broken = []
    while rounds < args.rounds and not broken:
        store = Store(args, dice)
        try:
            for _ in range(min(args.per_store, args.rounds - rounds)):
                store.write_and_cut()
                broken += [f"round {rounds}: {text}" for text in store.check()]
                rounds += 1
                if broken:
                    break
        finally:
            store.end(keep=bool(broken))
        acked += store.acked()
        print(f"{time.monotonic() - begun:6.1f} s {rounds} power cuts, {acked} acked", file=sys.stderr, flush=True)
    print(f"figure: power cuts, seed {args.seed}: {rounds} rounds, {acked} messages acked, {len(broken)} promises broken")
    for text in broken[:20]:
        print("  " + text)
    return 1 if broken else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--config")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--per-store", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=1024, help="size of the file system")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
