"""A real server process that can be killed and started again on the same ports and data directory."""
import random
import re
import signal
import socket
import subprocess
import time


def outgoing():
    """First of the ports that outgoing connections take: one of theirs may be gone when its server comes back."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as given:
            return int(given.read().split()[0])
    except (OSError, ValueError):
        return 32768


def free_port():
    """A port of the loopback below those, or any where the kernel leaves none below."""
    first, end = 10000, outgoing()
    tried = random.sample(range(first, end), 200) if end >= first + 1000 else []
    for port in [*tried, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                continue
            return probe.getsockname()[1]
    raise RuntimeError("the loopback has no free port")


class Server:
    """`geminga standalone` on loopback; the first start takes free ports, later ones the same."""

    READY = re.compile(r"^ready: (pulsar://\S+) (http://\S+) data (.+)$")

    def __init__(self, binary, data_dir, config=None, log=None):
        self.binary, self.data_dir, self.config = binary, data_dir, config
        self.ports = free_port(), free_port()
        self.log = open(log or f"{data_dir}.log", "ab")
        self.process, self.starts = None, []

    def start(self, limit=30.0):
        command = [self.binary, "standalone", "--data-dir", self.data_dir, "--pulsar-port", str(self.ports[0]),
                   "--http-port", str(self.ports[1])]
        if self.config:
            command += ["--config", self.config]
        begun = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        # The line is the first thing on standard output, or the process ends and the read with it.
        line = self.process.stdout.readline().strip()
        ready = self.READY.match(line)
        seconds = time.monotonic() - begun
        if not ready or seconds > limit:
            raise RuntimeError(f"no ready line within {limit} s: {line!r}, exit {self.process.poll()}, log {self.log.name}")
        self.url, self.http = ready.group(1), ready.group(2)
        self.starts.append(seconds)
        return self

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self, limit=10.0):
        """SIGTERM; answers how long it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process.stdout.close()
        return time.monotonic() - begun
