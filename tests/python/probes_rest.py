"""Probes of the admin interface: statuses, and the bodies tools depend on."""
from probe_context import probe

NAMESPACE = "/admin/v2/namespaces"


def _status(name, method, path, *body, **options):
    @probe(f"rest/{name}")
    def _(context):
        return context.status(method, path, *body, **options)


_status("health", "GET", "/admin/v2/brokers/health")
_status("unknown-path", "GET", "/admin/v2/nowhere")
_status("v1-path", "GET", "/admin/persistent/public/standalone/default/t/stats")
_status("metrics-redirect", "GET", "/metrics")
_status("tenant/missing", "GET", "/admin/v2/tenants/nobody")
_status("namespace/missing", "GET", NAMESPACE + "/public/nowhere")
_status("namespace/unknown-policy", "GET", NAMESPACE + "/public/default/nonsense")
_status("topic/missing-stats", "GET", "/admin/v2/persistent/public/default/never-made/stats")
_status("topic/missing-delete", "DELETE", "/admin/v2/persistent/public/default/never-made")
_status("topic/missing-partitioned-delete", "DELETE", "/admin/v2/persistent/public/default/never-made/partitions")
_status("topic/in-missing-namespace", "PUT", "/admin/v2/persistent/public/nowhere/t")
_status("subscriptions/missing-topic", "GET", "/admin/v2/persistent/public/default/never-made/subscriptions")


@probe("rest/health-body")
def _(context):
    return context.rest("GET", "/admin/v2/brokers/health", raw=True)[1]


@probe("rest/metrics-body")
def _(context):
    status, body = context.rest("GET", "/metrics/", raw=True)
    return status, b"# TYPE" in body


@probe("rest/clusters")
def _(context):
    return context.rest("GET", "/admin/v2/clusters")


@probe("rest/tenants-hold-public")
def _(context):
    status, tenants = context.rest("GET", "/admin/v2/tenants")
    return status, "public" in tenants


@probe("rest/namespaces-hold-default")
def _(context):
    status, names = context.rest("GET", NAMESPACE + "/public")
    return status, "public/default" in names


@probe("rest/tenant/life")
def _(context):
    path = "/admin/v2/tenants/" + context.name("t")
    body = {"adminRoles": [], "allowedClusters": ["standalone"]}
    return (context.status("PUT", path, body), context.status("PUT", path, body), context.status("GET", path),
            context.status("DELETE", path), context.status("GET", path))


@probe("rest/tenant/without-body")
def _(context):
    return context.status("PUT", "/admin/v2/tenants/" + context.name("t"))


@probe("rest/namespace/life")
def _(context):
    path = f"{NAMESPACE}/public/{context.name('n')}"
    return (context.status("PUT", path), context.status("PUT", path), context.status("GET", path),
            context.status("DELETE", path), context.status("GET", path))


@probe("rest/namespace/with-topic-is-not-deleted")
def _(context):
    name = context.name("n")
    path = f"{NAMESPACE}/public/{name}"
    context.rest("PUT", path)
    context.rest("PUT", f"/admin/v2/persistent/public/{name}/t")
    return context.status("DELETE", path)


@probe("rest/namespace/bad-name")
def _(context):
    return context.status("PUT", f"{NAMESPACE}/public/bad%20name")


@probe("rest/namespace/ttl")
def _(context):
    path = f"{NAMESPACE}/public/{context.name('n')}"
    context.rest("PUT", path)
    ttl = path + "/messageTTL"
    return (context.rest("GET", ttl, raw=True), context.status("POST", ttl, 60), context.rest("GET", ttl)[1],
            context.status("POST", ttl, b"60", kind="text/plain"), context.status("DELETE", ttl))


@probe("rest/namespace/retention")
def _(context):
    path = f"{NAMESPACE}/public/{context.name('n')}"
    context.rest("PUT", path)
    body = {"retentionTimeInMinutes": 10, "retentionSizeInMB": 20}
    return (context.rest("GET", path + "/retention", raw=True), context.status("POST", path + "/retention", body),
            sorted(context.rest("GET", path + "/retention")[1].items()))


_status("namespace/unknown-listing-mode", "GET", NAMESPACE + "/public/default/topics?mode=FOO")
_status("topic/name-with-nul", "PUT", "/admin/v2/persistent/public/default/a%00b")


@probe("rest/topic/name-with-line-end")
def _(context):
    path = context.path(context.topic()) + "%0Ab"
    made = context.status("PUT", path)
    context.rest("DELETE", path)
    return made


@probe("rest/tenant/step-of-a-path")
def _(context):
    path = "/admin/v2/tenants/%2E%2E"
    made = context.status("PUT", path, {"adminRoles": [], "allowedClusters": ["standalone"]})
    context.rest("DELETE", path)
    return made


@probe("rest/namespace/zero-bundles-are-the-default")
def _(context):
    path = f"{NAMESPACE}/public/{context.name('n')}"
    made = context.status("PUT", path, {"bundles": {"numBundles": 0}})
    return made, context.rest("GET", path + "/bundles")[1].get("numBundles")


@probe("rest/subscription/skip-below-zero-and-beyond-32-bits")
def _(context):
    path = context.path(context.topic())
    context.rest("PUT", path)
    context.rest("PUT", path + "/subscription/s")
    skip = path + "/subscription/s/skip/"
    return context.status("POST", skip + "-1"), context.status("POST", skip + "0"), context.status("POST", skip + "99999999999")


@probe("rest/topic/life")
def _(context):
    path = context.path(context.topic())
    return (context.status("PUT", path), context.status("PUT", path), context.status("GET", path + "/stats"),
            context.status("DELETE", path), context.status("GET", path + "/stats"))


@probe("rest/topic/partitions")
def _(context):
    path = context.path(context.topic()) + "/partitions"
    made = context.status("PUT", path, 3)
    return (made, context.rest("GET", path)[1].get("partitions"), context.status("POST", path, 5),
            context.rest("GET", path)[1].get("partitions"), context.status("POST", path, 2),
            context.status("DELETE", path), context.status("GET", path))


@probe("rest/topic/new-partitions-have-the-subscriptions")
def _(context):
    topic = context.topic()
    path = context.path(topic)
    context.status("PUT", path + "/partitions", 2)
    context.status("PUT", path + "/subscription/a")
    grown = context.status("POST", path + "/partitions", 4)
    of = [context.rest("GET", context.path(f"{topic}-partition-{n}") + "/subscriptions")[1] for n in range(4)]
    with context.client() as client:
        client.create_producer(f"{topic}-partition-3").send(b"early")
        return grown, of, client.subscribe(f"{topic}-partition-3", "a").receive(5000).data()


@probe("rest/topic/zero-partitions")
def _(context):
    return context.status("PUT", context.path(context.topic()) + "/partitions", 0)


@probe("rest/topic/partitions-as-text")
def _(context):
    path = context.path(context.topic()) + "/partitions"
    return context.status("PUT", path, b"3", kind="text/plain"), context.status("POST", path, b'"4"')


@probe("rest/topic/partition-like-name")
def _(context):
    return context.status("PUT", context.path(context.topic() + "-partition-7"))


@probe("rest/topic/update-partitions-of-missing")
def _(context):
    return context.status("POST", context.path(context.topic()) + "/partitions", 3)


@probe("rest/topic/listed")
def _(context):
    topic = context.topic()
    context.rest("PUT", context.path(topic))
    status, names = context.rest("GET", "/admin/v2/persistent/public/default")
    return status, topic in names


@probe("rest/topic/delete-with-idle-subscription")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic)
        busy = context.status("DELETE", context.path(topic))
    import time
    time.sleep(0.5)
    return busy, context.status("DELETE", context.path(topic))


@probe("rest/subscription/life")
def _(context):
    topic = context.topic()
    path = context.path(topic) + "/subscription/s"
    return (context.status("PUT", path), context.status("PUT", path), context.rest("GET", context.path(topic) + "/subscriptions"),
            context.status("DELETE", path), context.status("DELETE", path))


@probe("rest/subscription/skip-clear-reset-missing")
def _(context):
    topic = context.topic()
    context.rest("PUT", context.path(topic))
    path = context.path(topic) + "/subscription/none"
    return (context.status("POST", path + "/skip/1"), context.status("POST", path + "/skip_all"),
            context.status("POST", path + "/resetcursor/1"))


@probe("rest/subscription/skip-and-backlog")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        for n in range(5):
            raw.publish(b"x", n)
        path = context.path(topic)
        skipped = context.status("POST", path + "/subscription/s/skip/2")
        backlog = context.rest("GET", path + "/stats")[1]["subscriptions"]["s"]["msgBacklog"]
        cleared = context.status("POST", path + "/subscription/s/skip_all")
        after = context.rest("GET", path + "/stats")[1]["subscriptions"]["s"]["msgBacklog"]
        return skipped, backlog, cleared, after


@probe("rest/subscription/reset-by-time")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        for n in range(3):
            raw.publish(b"x", n)
        path = context.path(topic) + "/subscription/s"
        context.rest("POST", path + "/skip_all")
        import time
        reset = context.status("POST", f"{path}/resetcursor/{int(time.time() * 1000) - 3_600_000}")
        time.sleep(0.5)
        stats = context.rest("GET", context.path(topic) + "/stats")[1]
        return reset, stats["subscriptions"]["s"]["msgBacklog"]


@probe("rest/stats-fields")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5, name="c")
        raw.producer(topic, name="p")
        raw.publish(b"12345")
        stats = context.rest("GET", context.path(topic) + "/stats")[1]
        sub = stats["subscriptions"]["s"]
        return (stats["msgInCounter"], len(stats["publishers"]), stats["publishers"][0]["producerName"], sub["type"],
                sub["msgBacklog"], sub["consumers"][0]["consumerName"])


@probe("rest/internal-stats-fields")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.subscribe(topic, ident=5)
        raw.producer(topic)
        raw.publish()
        stats = context.rest("GET", context.path(topic) + "/internalStats")[1]
        return stats["entriesAddedCounter"], len(stats["ledgers"]), sorted(stats["cursors"]), stats["state"]


@probe("rest/terminate-answers-last-id")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        ident = raw.publish().message_id
        status, body = context.rest("POST", context.path(topic) + "/terminate")
        return status, (body.get("ledgerId"), body.get("entryId")) == ident


@probe("rest/terminate-again")
def _(context):
    topic = context.topic()
    with context.raw() as raw:
        raw.producer(topic)
        raw.publish()
        answers = [context.rest("POST", context.path(topic) + "/terminate") for _ in range(2)]
        return [status for status, _ in answers], answers[0] == answers[1]


@probe("rest/terminate-partitioned")
def _(context):
    path = context.path(context.topic())
    context.rest("PUT", path + "/partitions", 2)
    return context.status("POST", path + "/terminate")


@probe("rest/unload-missing")
def _(context):
    return context.status("PUT", context.path(context.topic()) + "/unload")


@probe("rest/schema/bytes-are-none")
def _(context):
    topic = context.topic()
    path = "/admin/v2/schemas/" + topic.split("://")[1] + "/schema"
    context.rest("PUT", context.path(topic))
    body = {"type": "BYTES", "schema": "", "properties": {}}
    status, posted = context.rest("POST", path, body)
    return status, posted, context.rest("GET", path)[1].get("type")


@probe("rest/schema/life")
def _(context):
    topic = context.topic()
    path = "/admin/v2/schemas/" + topic.split("://")[1] + "/schema"
    context.rest("PUT", context.path(topic))
    none = context.status("GET", path)
    body = {"type": "STRING", "schema": "", "properties": {}}
    put = context.rest("POST", path, body)
    got = context.rest("GET", path)
    return (none, put[0], put[1].get("version"), got[0], got[1].get("type"), context.rest("DELETE", path)[0],
            context.status("GET", path))


@probe("rest/lookup")
def _(context):
    topic = context.topic().split("://")[1]
    status, body = context.rest("GET", "/lookup/v2/topic/persistent/" + topic)
    return status, sorted(body) if isinstance(body, dict) else body


@probe("rest/bad-json")
def _(context):
    return context.status("PUT", "/admin/v2/tenants/" + context.name("t"), b"{not json")


@probe("rest/quoted-partition-count")
def _(context):
    return context.status("PUT", context.path(context.topic()) + "/partitions", b'"2"')


@probe("rest/transactions-off")
def _(context):
    return context.status("GET", "/admin/v3/transactions/coordinatorStats")


@probe("rest/functions-off")
def _(context):
    return context.status("GET", "/admin/v3/functions/public/default")


@probe("rest/brokers")
def _(context):
    status, brokers = context.rest("GET", "/admin/v2/brokers/standalone")
    return status, len(brokers)
