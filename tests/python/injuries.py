"""Ways to hurt a cluster while it is written to, and to set it right again. Each is a class: `hurt` does the harm, `heal` takes back
what does not pass by itself (a paused process, a filled disk) before everything that ended is started again.

Only one bookie is hurt at a time and it is whole again before the next: that is the promise's fault budget.
"""
import glob
import os
import re
import shutil
import signal
import struct
import subprocess
import time
import urllib.request

import pulsar


class Injury:
    """One fault on one process."""

    hold = 3.0  # seconds between harm and healing, written through

    def __init__(self, cluster, dice, target=None):
        self.cluster, self.dice = cluster, dice
        self.target = target or self.choose()

    def choose(self):
        return f"bookie-{self.dice.randrange(self.cluster.bookies)}"

    def hurt(self):
        raise NotImplementedError

    def heal(self):
        """Nothing to take back: what ended is started again."""


class Killed(Injury):
    """SIGKILL."""

    def hurt(self):
        self.cluster.kill(self.target)


class Paused(Injury):
    """SIGSTOP, later SIGCONT. Longer than leases live."""

    hold = 9.0

    def hurt(self):
        self.cluster.signal(self.target, signal.SIGSTOP)

    def heal(self):
        self.cluster.signal(self.target, signal.SIGCONT)


class AllKilled(Injury):
    """SIGKILL of every process at once."""

    hold = 0.5

    def choose(self):
        return "all"

    def hurt(self):
        names = ["etcd", "broker"] + [f"bookie-{n}" for n in range(self.cluster.bookies)]
        pids = [self.cluster.pid(name) for name in names]
        self.dice.shuffle(pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for name in names:
            self.cluster.await_end(name)


class CallFails(Injury):
    """One system call of a bookie answers EIO: the store must stop, not go on as if nothing had been."""

    call = "fdatasync"

    def hurt(self):
        self.trace = os.path.join(self.cluster.dir, f"strace-{self.target}-{time.monotonic_ns()}")
        when = self.dice.randint(1, 5)
        command = ["strace", "-f", "-qq", "-o", self.trace, "-p", str(self.cluster.pid(self.target)), "-e", f"trace={self.call}",
                   "-e", f"inject={self.call}:error=EIO:when={when}"]
        self.strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def heal(self):
        ended = self.cluster.await_end(self.target)
        self.strace.terminate()
        self.strace.wait()
        with open(self.trace) as file:
            injected = file.read().count("(INJECTED)")
        if not injected:
            raise RuntimeError(f"{self.call} was never called by {self.target}: nothing was injected")
        if not ended:
            raise RuntimeError(f"{self.target} goes on after {self.call} failed with EIO")


class JournalWriteFails(CallFails):
    """A synced write fails: pwrite of a journal or segment file."""

    call = "pwrite64"


class SyncFails(CallFails):
    """fdatasync fails: a segment or the manifest."""

    call = "fdatasync"


class DirectorySyncFails(CallFails):
    """fsync fails: a directory, after a file was made or renamed."""

    call = "fsync"


class DiskFull(Injury):
    """The file system of one bookie has no byte left, later it has."""

    hold = 8.0

    def choose(self):
        return self.cluster.small_disk

    def hurt(self):
        self.filler = os.path.join(self.cluster.dir, self.target, "filler")
        file = os.open(self.filler, os.O_CREAT | os.O_WRONLY)
        chunk = b"\0" * (1 << 20)
        while chunk:
            try:
                os.write(file, chunk)
            except OSError:
                # Down to the last block, so that nothing at all fits.
                chunk = chunk[:len(chunk) // 2] if len(chunk) > 4096 else b""
        os.close(file)

    def heal(self):
        os.remove(self.filler)


class DiskFullTakeover(DiskFull):
    """As `DiskFull`, and meanwhile a topic is written, deleted, and the broker killed: deletions and fences go on, on the full one too."""

    def hurt(self):
        super().hurt()
        time.sleep(2)
        topic = f"short-lived-{time.monotonic_ns()}"
        send_and_read(self.cluster.url, topic, 50)
        self.cluster.send("DELETE", f"/admin/v2/persistent/public/default/{topic}?force=true")
        self.cluster.kill("broker")
        self.cluster.up()


class Away(Killed):
    """A bookie is away for ten minutes, across many ledger rolls; a topic that is made meanwhile works, and the broker says that its
    ledger was placed on too few."""

    hold = 600.0

    def hurt(self):
        super().hurt()
        self.topic = f"made-meanwhile-{time.monotonic_ns()}"
        send_and_read(self.cluster.url, self.topic, 500)
        with urllib.request.urlopen(f"{self.cluster.http}/metrics", timeout=20) as answer:
            short = re.search(rb"geminga_placement_bookies_missing\{[^}]*\} (\S+)", answer.read())
        if not short or float(short.group(1)) < 1:
            raise AssertionError("a bookie is away and no metric says so")


class Wiped(Injury):
    """SIGKILL, and all that was stored is gone."""

    def choose(self):
        names = [f"bookie-{n}" for n in range(self.cluster.bookies)]
        return self.dice.choice([name for name in names if name != self.cluster.small_disk])

    def hurt(self):
        self.cluster.kill(self.target)
        shutil.rmtree(os.path.join(self.cluster.dir, self.target))


class AwayWiped(Away):
    """The same, and it comes back with nothing of what it had stored."""

    def choose(self):
        return Wiped.choose(self)

    def hurt(self):
        super().hurt()
        shutil.rmtree(os.path.join(self.cluster.dir, self.target))


class Flipped(Injury):
    """One bit of a file is turned around. While the bookie is down: where its own inspection sees it. While it runs (`at_rest`):
    anywhere in what is written; nothing is read there at that moment."""

    at_rest = False
    tries = 40

    def hurt(self):
        if self.at_rest:
            self.flip(*self.place())
            return
        for _ in range(8):
            self.cluster.kill(self.target)
            # What an earlier flip left behind in a segment stays there, copied anew elsewhere.
            before = self.cluster.inspect(self.target).splitlines()[-1]
            for _ in range(self.tries):
                path, offset, bit = self.flip(*self.place())
                if self.cluster.inspect(self.target).splitlines()[-1] != before:
                    return
                # A page that is free or a batch that is past: it matters to nobody.
                self.flip(path, offset, bit)
            # It was killed just after it had sorted everything to disk, say.
            self.cluster.up()
            time.sleep(self.dice.uniform(0.3, 1))
        raise RuntimeError(f"{type(self).__name__}: no bit of {self.target} matters")

    def flip(self, path, offset, bit=None):
        bit = self.dice.randrange(8) if bit is None else bit
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.what = f"{os.path.basename(path)} at {offset}"
        return path, offset, bit

    def files(self, pattern):
        files = sorted(glob.glob(os.path.join(self.cluster.data(self.target), pattern)))
        if not files:
            raise RuntimeError(f"{self.target} has no {pattern} yet")
        return files

    def place(self):
        raise NotImplementedError


class JournalFlipped(Flipped):
    """In one of the last batches of the journal, not the very last: what was acknowledged and is nowhere else yet."""

    def place(self):
        batches = []
        for path in self.files("journal/*.jnl"):
            with open(path, "rb") as file:
                data = file.read()
            for at in range(4096, len(data), 4096):
                if data[at:at + 4] == b"GMBT":
                    seq, length = struct.unpack_from("<Q", data, at + 16)[0], struct.unpack_from("<I", data, at + 32)[0]
                    batches.append((seq, path, at, length))
        _, path, at, length = self.dice.choice(sorted(batches)[-20:-2])
        return path, at + self.dice.randrange(40 + length)


class JournalFlippedAtRest(JournalFlipped):
    """As `JournalFlipped`, while the bookie runs; it is killed at once, so that this part of the journal is read."""

    at_rest, hold = True, 0.05

    def heal(self):
        self.cluster.kill(self.target)


class SegmentFlipped(Flipped):
    """In any segment."""

    def place(self):
        path = self.dice.choice(self.files("segments/*.seg"))
        return path, self.dice.randrange(os.path.getsize(path))


class SegmentFlippedAtRest(SegmentFlipped):
    """As `SegmentFlipped`, while the bookie runs."""

    at_rest = True


class ManifestFlipped(Flipped):
    """In the manifest."""

    def place(self):
        path, = self.files("manifest.redb")
        with open(path, "rb") as file:
            written = [at for at, byte in enumerate(file.read()) if byte]
        return path, self.dice.choice(written)


class ManifestFlippedAtRest(ManifestFlipped):
    """As `ManifestFlipped`, while the bookie runs; it is killed afterwards, so that the manifest is read."""

    at_rest = True

    def heal(self):
        self.cluster.kill(self.target)


def send_and_read(url, topic, count):
    """So many messages through a topic of its own; each must come back as it was."""
    quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    client = pulsar.Client(url, logger=quiet, operation_timeout_seconds=30)
    reader = client.subscribe(topic, "reader", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic)
    for n in range(count):
        producer.send(b"%d" % n)
    for n in range(count):
        message = reader.receive(timeout_millis=20_000)
        if message.data() != b"%d" % n:
            raise RuntimeError(f"{topic}: message {n} is {message.data()!r}")
        reader.acknowledge(message)
    client.close()


ALL = {
    "bookie killed": Killed,
    "broker killed": (Killed, "broker"),
    "etcd killed": (Killed, "etcd"),
    "all killed": AllKilled,
    "bookie paused": Paused,
    "broker paused": (Paused, "broker"),
    "etcd paused": (Paused, "etcd"),
    "journal write EIO": JournalWriteFails,
    "fdatasync EIO": SyncFails,
    "fsync EIO": DirectorySyncFails,
    "disk full": DiskFull,
    "disk full, broker killed": DiskFullTakeover,
    "wiped": Wiped,
    "flip in journal": JournalFlipped,
    "flip in journal, running": JournalFlippedAtRest,
    "flip in segment": SegmentFlipped,
    "flip in segment, running": SegmentFlippedAtRest,
    "flip in manifest": ManifestFlipped,
    "flip in manifest, running": ManifestFlippedAtRest,
}
# Not among all: they take their time.
LONG = {"bookie away": Away, "bookie away, wiped": AwayWiped}
SHORT = ("broker killed", "journal write EIO", "wiped")


def make(name, cluster, dice):
    """The injury of that name."""
    kind = {**ALL, **LONG}[name]
    kind, target = kind if isinstance(kind, tuple) else (kind, None)
    return kind(cluster, dice, target)


def left_out(name, cluster):
    """Why an injury cannot be done here; `None` when it can."""
    kind = {**ALL, **LONG}[name]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if issubclass(kind, CallFails) and not shutil.which("strace"):
        return "no strace found"
    if issubclass(kind, DiskFull) and not cluster.small_disk:
        return "no file system can be mounted here"
    return None


def mount_small(cluster, name, mebibytes):
    """Puts a small ext4 under a bookie's directory; whether that could be done."""
    directory, image = os.path.join(cluster.dir, name), os.path.join(cluster.dir, f"{name}.img")
    os.makedirs(directory)
    with open(image, "wb") as file:
        file.truncate(mebibytes << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], capture_output=True)
    mounted = made.returncode == 0 and subprocess.run(["mount", "-o", "loop", image, directory], capture_output=True).returncode == 0
    if not mounted:
        os.rmdir(directory)
        os.remove(image)
    return mounted
