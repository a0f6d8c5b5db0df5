#!/usr/bin/env python3
"""The disk cache of offloaded ledgers over a real S3 server: what was read once is asked for no more, across SIGKILL and with the store
away; files that are injured, a disk that is full and a directory that cannot be used cost requests and lines in the log, never a message.

    offload_disk_cache.py BINARY [--mb 64]

The part with a full disk needs root, and says so where it cannot be had.
"""
import argparse
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

from offload import PIECE, SIZE, costs, ledgers, publish, read_all, wait_offloaded
from probe_context import Context
from s3 import KEYS, S3, check, tiering, until
from server import Server

CONFIG = """
%s
[standalone.broker]
ledger_size = "12 MiB"
cache = "1 MiB"
"""
CACHE = """
disk_cache_dir = "%s"
disk_cache_size = "512 MiB"
disk_cache_free_percent = 1
cache = "16 MiB"
"""


def told(context, name, reason=None):
    """A figure of the disk cache; None where there is none."""
    label = f'reason="{reason}"' if reason else ""
    for line in context.rest("GET", "/metrics/", raw=True)[1].decode().splitlines():
        if line.startswith(f"geminga_offload_disk_cache_{name}{{") and label in line:
            return int(float(line.rsplit(" ", 1)[1]))
    return None


def gets(context):
    """Requests for ledgers, and bytes that they brought, since the process began."""
    return int(costs(context).get(("public", "get"), 0)), int(costs(context, "geminga_offload_received_bytes_total").get(("public", None), 0))


class Drill:
    def __init__(self, binary, root, mb):
        self.binary, self.root, self.count = binary, pathlib.Path(root), mb * (1 << 20) // SIZE
        self.s3 = S3(f"{root}/s3").start()
        self.config, self.cache = self.root / "server.toml", self.root / "cache"
        self.configure("")
        self.server = Server(binary, f"{root}/data", str(self.config))

    def configure(self, more):
        self.config.write_text(tiering(self.s3.port, settle_s=2) + CONFIG % more)

    def with_cache(self):
        self.configure(CACHE % self.cache)

    def start(self):
        if self.server.process and self.server.process.poll() is None:
            self.server.kill()
        self.server.start()
        self.context = Context(self.server.url, self.server.http)

    def read(self):
        """Reads everything; the requests it took, and the bytes they brought."""
        before = gets(self.context)
        with self.context.client() as client:
            read_all(client, self.topic, self.count)
        return tuple(after - begun for after, begun in zip(gets(self.context), before))

    def written(self):
        """Waits until nothing more is written."""
        seen = [None]

        def settled():
            seen.append(told(self.context, "written_bytes_total"))
            return seen[-1] == seen[-2]
        until("the disk cache is written", settled, 30)
        return seen[-1]

    def files(self):
        return sorted(self.cache.glob("blocks-*"))

    def logged(self):
        return pathlib.Path(self.server.log.name).read_text()

    def offload(self):
        self.start()
        context = self.context
        check(context.status("PUT", "/admin/v2/namespaces/public/default/offloadDeletionLagMs", 0) == 204, "deletion lag set")
        self.topic = context.topic()
        with context.client() as client:
            client.subscribe(self.topic, "keeps").close()
            for first in range(0, self.count, PIECE):
                publish(client, self.topic, first, min(PIECE, self.count - first))
            last = ledgers(context, self.topic)[-1]["ledgerId"]
            check(context.status("PUT", context.path(self.topic) + "/offload", {"ledgerId": last, "entryId": 0}) == 204, "offload asked for")
            wait_offloaded(context, self.topic)
        self.stored = self.s3.size()
        # A fresh process reads everything from the store once bookies have let go, and nothing of a disk cache is there.
        self.start()
        until("bookies have let go", lambda: self.read_without() >= self.stored * 0.95, 60)
        check(told(self.context, "hits_total") is None and not self.cache.exists(), "without a directory there are no figures and no file")

    def read_without(self):
        brought = self.read()[1]
        if brought < self.stored * 0.95:
            time.sleep(2)
            self.start()
        return brought

    def once(self):
        self.with_cache()
        self.start()
        requests, brought = self.read()
        check(brought >= self.stored * 0.95, f"the first read asks for everything: {requests} requests, {brought} bytes")
        written = self.written()
        # What comes faster than it can be written is left out, and is written when it is read the next time.
        while told(self.context, "left_out_total"):
            print(f"{told(self.context, 'left_out_total')} blocks were left out", flush=True)
            self.start()
            self.read()
            written = self.written()
        check(written >= self.stored * 0.95 or told(self.context, "hits_total"), f"{written} bytes were written for {self.stored}")

    def again(self):
        for what in "SIGKILL", "a second one":
            self.start()
            requests, brought = self.read()
            hits, errors = told(self.context, "hits_total"), told(self.context, "errors_total", "damaged")
            check((requests, brought, errors) == (0, 0, 0) and hits > 0, f"behind {what}: {requests} requests, {brought} bytes; {hits} hits")
        self.idle()
        self.server.kill()
        self.s3.stop()
        self.start()
        with self.context.client() as client:
            read_all(client, self.topic, self.count)
        check(True, "with the store away everything is read")
        self.s3.start()

    def idle(self):
        """A process that nobody asks writes nothing, and has no thread for it."""
        def state():
            files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
            written = re.search(r"^write_bytes: (\d+)", pathlib.Path(f"/proc/{self.server.process.pid}/io").read_text(), re.M).group(1)
            return files, written
        time.sleep(12)  # threads that read files are gone after ten seconds
        before = state()
        time.sleep(5)
        check(state() == before, "idle, with a disk cache: no byte is written")
        status = pathlib.Path(f"/proc/{self.server.process.pid}/status").read_text()
        print("figure: idle with a disk cache: " + ", ".join(re.findall(r"^(?:VmRSS|Threads):.*$", status, re.M)), flush=True)

    def injured(self, dice):
        self.server.kill()
        files = self.files()
        check(len(files) >= 2, f"{len(files)} files")
        for nth, path in enumerate(files):
            if nth % 4 == 3:
                path.unlink()
            elif nth % 4 == 2:
                os.truncate(path, dice.randrange(path.stat().st_size))
            elif nth % 4 == 1:
                path.write_bytes(dice.randbytes(100_000))
            else:
                with open(path, "r+b") as file:
                    for at in range(10_000, path.stat().st_size, 100_000):
                        file.seek(at)
                        file.write(dice.randbytes(4))
        (self.cache / "notes").write_text("not the cache's")
        self.start()
        requests, _ = self.read()
        damaged = told(self.context, "errors_total", "damaged")
        check(requests > 0 and damaged > 0, f"injured files cost {requests} requests; {damaged} times damage was met")
        check("GM-4029" in self.logged() and (self.cache / "notes").exists(), "it is told, and what is not the cache's is left alone")
        self.written()
        self.start()
        requests, _ = self.read()
        check(requests == 0, "what was damaged is written anew")

    def full(self):
        """On a file system of its own that others have filled."""
        self.server.kill()
        self.cache = self.root / "full"
        self.cache.mkdir()
        mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", self.cache], stderr=subprocess.DEVNULL)
        if not mounted or mounted.returncode:
            print("not possible here: a full disk needs root and a tmpfs that can be mounted", flush=True)
            return
        try:
            self.with_cache()
            self.start()
            requests, _ = self.read()
            room = shutil.disk_usage(self.cache)
            check(requests > 0 and room.free >= room.total // 100, f"a disk smaller than the cache is left {room.free} bytes")
            # Where the cache had files it would give those up first, and need nothing of what others have.
            self.server.kill()
            for file in self.cache.glob("blocks-*"):
                file.unlink()
            with open(self.cache / "others", "wb") as others:
                try:
                    while True:
                        others.write(bytes(1 << 16))
                        others.flush()
                except OSError:
                    pass
            self.start()
            requests, _ = self.read()
            check(requests > 0 and told(self.context, "errors_total", "room") > 0, "a disk that others have filled costs requests")
        finally:
            self.server.kill()
            subprocess.run(["umount", self.cache], check=True)

    def unusable(self):
        self.cache = self.root / "file"
        self.cache.write_text("a file")
        self.with_cache()
        before = len(self.logged())
        self.start()
        requests, _ = self.read()
        check(requests > 0 and "GM-4029" in self.logged()[before:], "a directory that cannot be used is told of and done without")
        self.server.kill()
        self.configure(f'disk_cache_dir = "{self.root}/new"\n')
        refused = subprocess.run([self.binary, "standalone", "--data-dir", f"{self.root}/none", "--config", self.config],
                                 capture_output=True, text=True, timeout=60)
        check(refused.returncode != 0 and "GM-6004" in refused.stderr and "offload.disk_cache_size" in refused.stderr,
              f"a directory without a size is refused: {refused.stderr.strip()}")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--mb", type=int, default=64)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="geminga-disk-cache-") as root:
        drill = Drill(arguments.binary, root, arguments.mb)
        try:
            drill.offload()
            drill.once()
            drill.again()
            drill.injured(random.Random(arguments.seed))
            drill.full()
            drill.unusable()
        except BaseException:
            print(drill.logged()[-4000:], file=sys.stderr)
            raise
        finally:
            if drill.server.process and drill.server.process.poll() is None:
                drill.server.kill()
            drill.s3.stop()


if __name__ == "__main__":
    main()
