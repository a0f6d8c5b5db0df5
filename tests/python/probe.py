#!/usr/bin/env python3
"""Asks a Pulsar-protocol server what it does, one named behaviour per line.

    probe.py --url pulsar://127.0.0.1:6650 --http http://127.0.0.1:8080 [--expect FILE [--differences FILE]] [--only PART]

Prints `name: observed`, sorted by name. With --expect, a line that differs from the file is a failure unless the list of
differences names it with the value observed: `| name | observed here | reason |`. A listed difference that is gone fails too.
"""
import argparse
import concurrent.futures
import sys
import time
import traceback

import probes_client
import probes_policies
import probes_rest
import probes_wire
from probe_context import Context, PROBES

LIMIT = 60.0  # seconds for one probe


def observe(name, probe, context):
    begun = time.monotonic()
    try:
        seen = str(probe(context))
    except Exception as why:  # what went wrong is what was observed
        if context.debug:
            traceback.print_exc()
        seen = f"exception {type(why).__name__}"
    return name, " ".join(seen.split()), time.monotonic() - begun


def read_expected(path):
    lines = [line.rstrip("\n") for line in open(path) if line.strip() and not line.startswith("#")]
    return dict(line.split(": ", 1) for line in lines)


def read_differences(path):
    rows = {}
    for line in open(path):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) >= 3 and cells[0] in PROBES:
            rows[cells[0]] = cells[1]
    return rows


def compare(observed, expected, listed):
    """Prints what differs without being listed; answers how many passed and failed."""
    failed = 0
    for name in sorted(expected.keys() | observed.keys()):
        want, seen = expected.get(name, "(not in the list)"), observed.get(name, "(not observed)")
        if name in listed:
            if seen == want:
                print(f"FAIL {name}: no longer differs; take it off the list of differences", file=sys.stderr)
            elif seen != listed[name]:
                print(f"FAIL {name}: listed as '{listed[name]}', observed '{seen}'", file=sys.stderr)
            else:
                continue
        elif seen == want:
            continue
        else:
            print(f"FAIL {name}: expected '{want}', observed '{seen}'", file=sys.stderr)
        failed += 1
    return len(expected.keys() | observed.keys()) - failed, failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--http", required=True)
    parser.add_argument("--expect")
    parser.add_argument("--differences")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--debug", action="store_true")
    args = parser.parse_args()
    context = Context(args.url, args.http, args.debug)
    chosen = {name: probe for name, probe in PROBES.items() if args.only in name}
    observed = {}
    pool = concurrent.futures.ThreadPoolExecutor(args.jobs)
    running = {pool.submit(observe, name, probe, context): name for name, probe in chosen.items()}
    try:
        for done in concurrent.futures.as_completed(running, timeout=LIMIT + 10 * len(running) / args.jobs):
            name, seen, seconds = done.result()
            observed[name] = seen
            if args.debug:
                print(f"{seconds:5.1f} s {name}: {seen}", file=sys.stderr)
    except concurrent.futures.TimeoutError:
        for name in running.values():
            observed.setdefault(name, "no end in time")
    for name in sorted(observed):
        print(f"{name}: {observed[name]}")
    failed = 0
    if args.expect:
        expected = {n: v for n, v in read_expected(args.expect).items() if args.only in n}
        listed = read_differences(args.differences) if args.differences else {}
        listed = {n: v for n, v in listed.items() if args.only in n}
        passed, failed = compare(observed, expected, listed)
        print(f"figure: probe: {passed} passed ({len(listed)} of them listed differences), {failed} failed", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the client library must not hold the end up.
    import os
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    assert probes_client and probes_policies and probes_rest and probes_wire
    main()
