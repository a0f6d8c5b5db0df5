"""A cluster of processes that can be hurt: `geminga cluster up` does the starting, this does the rest, by process id."""
import json
import os
import re
import signal
import subprocess
import time
import urllib.request

READY = re.compile(r"^ready: (pulsar://\S+) (http://\S+) dir (.+)$", re.MULTILINE)

# So small that a short run crosses journal files, flushes, ledger rolls and cursor snapshots many times; nobody waits long.
SMALL = {
    "GEMINGA_BROKER_SERVICE_MAX_MESSAGE_SIZE": "192 KiB",
    "GEMINGA_BROKER_SERVICE_LEDGER_ENTRIES": "200",
    "GEMINGA_BROKER_SERVICE_CURSOR_LEDGER_SIZE": "128 KiB",
    "GEMINGA_BROKER_SERVICE_CACHE": "1 MiB",
    "GEMINGA_BROKER_LEASE_MS": "6000",
    "GEMINGA_BROKER_BOOKIE_GRACE_MS": "1000",
    "GEMINGA_BROKER_REPAIR_AFTER_MS": "5000",
    "GEMINGA_BOOKIE_MAX_MESSAGE_SIZE": "192 KiB",
    "GEMINGA_BOOKIE_LEASE_MS": "2000",
    "GEMINGA_BOOKIE_STORE_JOURNAL_FILE_SIZE": "1 MiB",
    "GEMINGA_BOOKIE_STORE_WRITE_CACHE": "1 MiB",
    "GEMINGA_BOOKIE_STORE_BLOCK_CACHE": "64 KiB",
    "GEMINGA_BOOKIE_STORE_FLUSH_MS": "500",
    "GEMINGA_BOOKIE_STORE_DISK_RESERVE": "4 MiB",
}


class Cluster:
    """`geminga cluster` in a directory of its own, on free ports that stay the same."""

    def __init__(self, binary, directory, etcd, bookies=3, settings=SMALL, config=None):
        self.binary, self.dir, self.etcd, self.bookies = binary, directory, etcd, bookies
        self.settings, self.config = settings, config
        os.makedirs(directory, exist_ok=True)

    def run(self, *args):
        done = subprocess.run([self.binary, "cluster", args[0], "--dir", self.dir, *args[1:]], capture_output=True,
                              text=True, env={**os.environ, **self.settings})
        return done.returncode == 0, done.stdout + done.stderr

    def up(self):
        """Starts what does not run; answers how long that took."""
        begun = time.monotonic()
        good, said = self.run("up", "--bookies", str(self.bookies), "--etcd", self.etcd, "--pulsar-port", "0",
                              "--http-port", "0", *(["--config", self.config] if self.config else []))
        ready = READY.search(said)
        if not good or not ready:
            raise RuntimeError(f"cluster up: {said}\n{self.run('logs', '--lines', '15')[1]}")
        self.url, self.http = ready.group(1), ready.group(2)
        return time.monotonic() - begun

    def down(self):
        good, said = self.run("down")
        if not good:
            raise RuntimeError(f"cluster down: {said}")

    def process(self, name):
        """Process id and port of `etcd`, `broker` or `bookie-N`; no id when it is down."""
        for line in self.run("status")[1].splitlines():
            words = line.split()
            if words and words[0] == name:
                return (int(words[3]) if words[3].isdigit() else None), int(words[4].rsplit(":", 1)[1])
        raise RuntimeError(f"no process {name}")

    def pid(self, name):
        pid, _ = self.process(name)
        if pid is None:
            raise RuntimeError(f"{name} does not run")
        return pid

    def signal(self, name, number):
        os.kill(self.pid(name), number)

    def kill(self, name):
        """SIGKILL, and waits until it is gone: it is not our child."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        self.await_end(name)

    def await_end(self, name, limit=20):
        """Waits until a process has ended; answers whether it did."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if self.process(name)[0] is None:
                return True
            time.sleep(0.05)
        return False

    def data(self, bookie):
        """Where a bookie's store lies."""
        return os.path.join(self.dir, bookie, "bookie")

    def inspect(self, bookie):
        """What `geminga bookie inspect` says of a store that is down; its last line counts the findings."""
        done = subprocess.run([self.binary, "bookie", "inspect", self.data(bookie)], capture_output=True, text=True)
        return done.stdout + done.stderr

    def log(self, name):
        with open(os.path.join(self.dir, "logs", f"{name}.log"), errors="replace") as file:
            return file.read()

    def get(self, path):
        with urllib.request.urlopen(self.http + path, timeout=10) as answer:
            return json.load(answer)

    def send(self, method, path, body=None):
        request = urllib.request.Request(self.http + path, data=body, method=method,
                                         headers={"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=20).close()
