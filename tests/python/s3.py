"""A real S3 server as a process, and a proxy before it that makes requests fail at a chosen step.

`GEMINGA_TEST_S3_SERVER=minio` takes MinIO instead of S3Proxy (see `tests/s3`), for what does not look into the bucket's files."""
import http.client
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

from server import free_port

HERE = pathlib.Path(__file__).resolve().parent
BUCKET = "geminga-tier"
IS_MINIO = os.environ.get("GEMINGA_TEST_S3_SERVER") == "minio"
KEYS = {"AWS_ACCESS_KEY_ID": "geminga", "AWS_SECRET_ACCESS_KEY": "geminga-secret"}


def check(good, what):
    if not good:
        sys.exit(f"FAILED: {what}")
    print(f"ok {what}", flush=True)


def until(what, look, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    sys.exit(f"FAILED: {what} within {seconds} s; last seen {look()!r}")


def tiering(port, settle_s=1):
    """The begin of a configuration: a standalone that offloads to the server on this port and waits for nothing. More settings of
    offloading may follow."""
    return f"""
[standalone.offload]
url = "s3://{BUCKET}/history"
endpoint = "http://127.0.0.1:{port}"
deletion_lag_s = 0
removal_grace_s = 0
sweep_interval_s = 1
settle_s = {settle_s}
"""


class S3:
    """The S3 server; its objects are files, so that the bucket can be looked at without it. Those of MinIO are not: it is asked."""

    def __init__(self, root):
        self.root, self.port, self.process = pathlib.Path(root), free_port(), None
        (self.root / "objects" / BUCKET).mkdir(parents=True)

    def start(self):
        log = open(self.root / "s3.log", "ab")
        command = [str(HERE.parent / "s3"), "run", str(self.port), str(self.root)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **KEYS})

        def answers():
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=1)
            except urllib.error.HTTPError:
                return True  # it asks for a signature
            except OSError:
                return self.process.poll() is not None
            return True

        until("the S3 server answers", answers)
        if self.process.poll() is not None:
            sys.exit(f"the S3 server ended, log: {(self.root / 's3.log').read_text()[-2000:]}")
        return self

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def files(self):
        """Every object's name, and those of parts of uploads where they are files; what goes meanwhile is passed."""
        if IS_MINIO:
            return sorted(self.listed())
        top = self.root / "objects"
        return sorted(os.path.relpath(os.path.join(where, name), top) for where, _, names in os.walk(top) for name in names)

    def listed(self):
        """Names and bytes of all objects, as the server tells them."""
        found, behind = {}, ""
        while behind is not None:
            url = f"http://127.0.0.1:{self.port}/{BUCKET}?list-type=2&start-after={urllib.parse.quote(behind, safe='')}"
            answer = subprocess.run(["curl", "-sf", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", ":".join(KEYS.values()), url], capture_output=True)
            if answer.returncode:
                sys.exit(f"FAILED: the bucket is not listed: curl ends with {answer.returncode}")
            page = xml.etree.ElementTree.fromstring(answer.stdout)
            of = page.tag.split("}")[0] + "}"
            for row in page.iter(of + "Contents"):
                found[f"{BUCKET}/{row.find(of + 'Key').text}"] = int(row.find(of + "Size").text)
            behind = max(found).split("/", 1)[1] if page.find(of + "IsTruncated").text == "true" else None
        return found

    def size(self):
        """Bytes of ledgers' objects."""
        if IS_MINIO:
            listed = self.listed()
            return sum(listed[name] for name in listed if not name.endswith("/geminga.id"))
        return sum((self.root / "objects" / name).stat().st_size for name in self.objects())

    def objects(self):
        """Ledgers' objects."""
        return [name for name in self.files() if not name.endswith("/geminga.id")]

    def identities(self):
        """What says whose bucket it is."""
        return [name for name in self.files() if name.endswith("/geminga.id")]


def kind(method, path):
    """What a request is for, by the names of the seam for stores."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query, keep_blank_values=True)
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}.get(method, "other")
    if "uploads" in query:
        return {"POST": "begin", "GET": "uploads"}.get(method, "other")
    if "list-type" in query:
        return "list"
    if "delete" in query:
        return "remove"  # several objects by one request, of which Geminga names one
    return {"PUT": "put", "HEAD": "size", "GET": "range", "DELETE": "remove"}.get(method, "other")


class Proxy:
    """Stands between Geminga and the S3 server. `plan` answers what happens to a request, by its kind and its number of that kind
    since the plan was set: None, or one of
      ("kill", "before")  `kill()` is called, the request never arrives     ("kill", "after")  it arrives, its answer does not
      ("kill", "soon", ms)  it is answered, the kill follows so many milliseconds behind
      "503"               refused without being looked at                   "lost"     carried out, the connection ends unanswered
      "truncate"          carried out, half of the answer's body comes      "slow"     the answer comes in trickles
    """

    def __init__(self, upstream_port):
        self.upstream, self.kill, self.plan = upstream_port, None, lambda kind, number: None
        self.lock, self.counts, self.seen, self.hit = threading.Lock(), {}, [], 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one(self):
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, address):
                pass  # the other end was killed

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def set(self, plan=None):
        """A new plan; requests are counted anew."""
        with self.lock:
            self.plan, self.counts, self.seen, self.hit = plan or (lambda kind, number: None), {}, [], 0

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        what = kind(request.command, request.path)
        with self.lock:
            number = self.counts.get(what, 0)
            self.counts[what] = number + 1
            self.seen.append(what)
            fate = self.plan(what, number)
            self.hit += fate is not None
        if fate == ("kill", "before"):
            self.kill()
            request.close_connection = True
            return
        if fate == "503":
            text = b"<Error><Code>SlowDown</Code><Message>injected</Message></Error>"
            return self.answer(request, 503, {}, text, None)
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            text = answer.read()
            if fate == ("kill", "after"):
                self.kill()
            if fate in ("lost", ("kill", "after")):
                request.close_connection = True
                return
            self.answer(request, answer.status, dict(answer.getheaders()), text, fate)
            if fate and fate[:2] == ("kill", "soon"):
                request.wfile.flush()
                time.sleep(fate[2] / 1000)
                self.kill()
        except OSError:
            request.close_connection = True  # either end is gone
        finally:
            upstream.close()

    def answer(self, request, status, headers, text, fate):
        request.send_response(status)
        length = headers.pop("Content-Length", None) or str(len(text))
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                request.send_header(name, value)
        request.send_header("Content-Length", length)
        request.end_headers()
        if fate == "truncate":
            request.wfile.write(text[:len(text) // 2])
            request.close_connection = True
        elif fate == "slow":
            for at in range(0, len(text), max(1, len(text) // 10)):
                request.wfile.write(text[at:at + max(1, len(text) // 10)])
                request.wfile.flush()
                time.sleep(0.05)
        else:
            request.wfile.write(text)
