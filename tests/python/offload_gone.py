#!/usr/bin/env python3
"""Objects vanish from the bucket while bookies still have their ledgers, some of which go several as one: readers notice nothing, stats
and `fsck` name it, and once the lag is over what is gone is uploaded again before any bookie copy goes.

    offload_gone.py BINARY [--seed N]           a minute, most of which the broker waits for objects to be put back
"""
import argparse
import os
import random
import sys
import tempfile

from offload_together import NAMESPACE, Drill, read_from_the_bucket_alone
from s3 import KEYS, check, until


def lag(drill, ms):
    status = drill.context.status("PUT", f"/admin/v2/namespaces/{NAMESPACE}/offloadDeletionLagMs", ms)
    check(status == 204, f"bookies keep what is offloaded for {ms} ms")


def reasons(drill):
    stats = [drill.context.rest("GET", drill.context.path(topic.name) + "/stats")[1] for topic in drill.topics]
    return [reason for reason in (of.get("offloadWaitReason") for of in stats) if reason]


def offloaded(drill):
    context = drill.start()
    lag(drill, 3_600_000)
    with context.client() as client:
        for topic in drill.topics:
            client.subscribe(topic.name, "keeps").close()
            topic.publish(client, 500)
    drill.threshold(0)
    drill.everything_offloaded()
    drill.quiet()
    drill.down()


def vanish(drill, dice):
    """Half of the objects, those of one ledger and of several."""
    objects = drill.s3.objects()
    lost = dice.sample(objects, len(objects) // 2)
    for name in lost:
        (drill.s3.root / "objects" / name).unlink()
    run = drill.command("fsck")
    told = run.stdout.count("! GM-4011 missing: ")
    check(run.returncode == 3 and told >= len(lost), f"{len(lost)} of {len(objects)} objects are gone; fsck tells {told} ledgers")
    return lost


def mended(drill, lost):
    context = drill.start()
    with context.client() as client:
        for topic in drill.topics:
            topic.read(client)
    check(True, "everything is read from bookies")
    lag(drill, 0)
    why = until("the reason is told", lambda: reasons(drill), 30)
    check("GM-4011" in why[0], f"told: {why[0]}")
    until("all goes again", lambda: not reasons(drill), 150)
    drill.everything_offloaded()
    drill.quiet()
    drill.settled()
    check(not set(lost) & set(drill.s3.objects()), "what was gone is there again, under keys of other attempts; fsck finds nothing")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = arguments.parse_args()
    os.environ.update(KEYS)
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="geminga-gone-") as root:
        drill = Drill(arguments.binary, root)
        try:
            drill.without_proxy()
            offloaded(drill)
            mended(drill, vanish(drill, random.Random(arguments.seed)))
            read_from_the_bucket_alone(drill)
        except BaseException:
            print(open(drill.server.log.name).read()[-4000:], file=sys.stderr)
            raise
        finally:
            drill.stop()


if __name__ == "__main__":
    main()
