#!/usr/bin/env python3
"""Smoke test of the official Python client: produce and consume, a partitioned topic, a reader, seek.  smoke.py URL HTTP"""
import sys
import time

import pulsar

from probe_context import Context, receive
from probes_client import numbers, publish


def equal(what, got, want):
    if got != want:
        sys.exit(f"{what}: got {got}, want {want}")


def holes(client, topic):
    """A backlog of many short runs between acknowledged entries comes whole, although nothing else happens on the topic."""
    consumer = client.subscribe(topic, "s", receiver_queue_size=1000)
    publish(client, topic, numbers(600))
    for n in range(600):
        message = consumer.receive(10000)
        if n % 2:
            consumer.acknowledge(message)
    time.sleep(1.3)  # acknowledgements without a receipt are written within a second
    consumer.close()
    consumer = client.subscribe(topic, "s", receiver_queue_size=1000)
    # Nothing is acknowledged meanwhile: that would be another event on the topic.
    equal("holes", receive(consumer, 300, wait_ms=3000), numbers(600)[::2])
    consumer.close()
    print("ok python backlog with holes")


def main():
    context = Context(sys.argv[1], sys.argv[2])
    topic = f"persistent://public/default/python-{time.time_ns()}"
    with context.client() as client:
        consumer = client.subscribe(topic, "s")
        ids = publish(client, topic, numbers(10))
        equal("consume", receive(consumer, 10, ack=True), numbers(10))
        consumer.seek(ids[4])
        equal("seek", receive(consumer, 5, ack=True), numbers(10)[5:])
        print("ok python produce, consume, seek")
        holes(client, topic + "-holes")
        reader, read = client.create_reader(topic, pulsar.MessageId.earliest), []
        while reader.has_message_available():
            read.append(reader.read_next(5000).data().decode())
        equal("reader", read, numbers(10))
        print("ok python reader")
        equal("create", context.status("PUT", context.path(topic + "p") + "/partitions", 3), 204)
        equal("partitions", len(client.get_topic_partitions(topic + "p")), 3)
        consumer = client.subscribe(topic + "p", "s", pulsar.ConsumerType.KeyShared)
        publish(client, topic + "p", [f"k{n}:{n}" for n in range(30)])
        equal("partitioned", len(set(receive(consumer, 30, ack=True))), 30)
        print("ok python partitions")


if __name__ == "__main__":
    main()
