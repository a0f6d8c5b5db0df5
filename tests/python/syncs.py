"""Counts synced journal writes against acknowledged entries, from outside: the server runs under strace.

    syncs.py GEMINGA

With one message outstanding every acknowledgement must have a synced write of its own; with many outstanding they share.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

OPEN = re.compile(r'openat\(AT_FDCWD, "([^"]+)", ([A-Z_|]+).*\)\s+= (\d+)$')
WRITE = re.compile(r"pwrite64\((\d+), .*\)\s+= (\d+)$")


def synced_writes(lines):
    """Journal writes that were durable when they returned, and their bytes."""
    synced, writes, size, begun = set(), 0, 0, {}
    for line in lines:
        thread, _, call = line.rstrip("\n").partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... "):
            call = begun.pop(thread, "") + call.partition("resumed>")[2]
        if opened := OPEN.search(call):
            path, flags, fd = opened.groups()
            durable = path.endswith(".jnl") and "O_DSYNC" in flags
            (synced.add if durable else synced.discard)(fd)
        elif (written := WRITE.search(call)) and written[1] in synced:
            writes, size = writes + 1, size + int(written[2])
    return writes, size


def run(binary, *load):
    """Synced writes and their bytes of a server that took this load."""
    with tempfile.TemporaryDirectory() as work:
        trace = Path(work) / "trace"
        traced = ["strace", "-f", "-qq", "-e", "trace=openat,pwrite64", "-o", str(trace)]
        server = [binary, "standalone", "--data-dir", f"{work}/data", "--pulsar-port", "0", "--http-port", "0", "--log", "warn"]
        process = subprocess.Popen([*traced, *server], stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().split()[1]
            perf = [binary, "perf", "produce", "--json", "--url", url, "--rate", "0", *load]
            subprocess.run(perf, stdout=subprocess.DEVNULL, check=True)
        finally:
            # strace ends with its child, and writes what it has seen.
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
            subprocess.run(["kill", *children.stdout.split()], check=True)
            process.wait(20)
        with trace.open() as lines:
            return synced_writes(lines)


def main(binary):
    writes, _ = run(binary, "--no-batch", "--max-pending", "1", "--messages", "300")
    print(f"figure: one outstanding: 300 acknowledged entries, {writes} synced writes")
    assert writes >= 300, f"{writes} synced writes for 300 acknowledgements: something was acknowledged before it was durable"
    for what, count, load in [("1000 outstanding", 20000, ["--no-batch"]), ("client batches", 100000, [])]:
        writes, size = run(binary, *load, "--messages", str(count))
        print(f"figure: {what}: {count} acknowledged messages of 1 KiB, {writes} synced writes, {size / writes / 1024:.0f} KiB a write")
        assert size >= count * 1024, f"{size} bytes synced for {count} messages of 1 KiB"


if __name__ == "__main__":
    main(*sys.argv[1:])
