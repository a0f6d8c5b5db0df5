#!/usr/bin/env python3
"""Runs a command against a server of its own, on free ports and a fresh data directory.

    with_server.py BINARY COMMAND [ARG ...]     `{url}` and `{http}` in the arguments become the server's addresses
"""
import subprocess
import sys
import tempfile

from server import Server


def main():
    binary, command = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="geminga-test-") as root:
        server = Server(binary, f"{root}/data").start()
        try:
            command = [word.replace("{url}", server.url).replace("{http}", server.http) for word in command]
            code = subprocess.run(command).returncode
            if server.process.poll() is not None:
                sys.exit(f"the server ended by itself, exit {server.process.returncode}; log: {open(server.log.name).read()[-2000:]}")
            seconds = server.stop()
            if seconds > 5:
                sys.exit(f"SIGTERM took {seconds:.1f} s, 5 s are allowed")
        finally:
            if server.process.poll() is None:
                server.kill()
    sys.exit(code)


main()
