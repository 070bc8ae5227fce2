"""The objects of a cluster, and the HTTP server that the real `kubernetes` client talks to.

Faithful: resourceVersion conflicts, generateName, label selectors, merge patches, finalizers, deletion of what is owned,
errors as Status objects. Left out: watches, paging, server-side apply.
"""

import itertools
import json
import pickle
import random
import re
import socket
import struct
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?P<status>/status)?$"
)
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code, self.reason = code, reason


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Objects:
    """Everything that the API server stores. `admit` sees each new or changed object first, and may change it."""

    def __init__(self, seed=0):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.deleted = []  # called with each object that is gone
        self.admit = lambda plural, new, old: None
        self._stored = {}
        self._version = itertools.count(1)
        self._random = random.Random(seed)

    def suffix(self, length):
        return "".join(self._random.choice(_SUFFIX) for _ in range(length))

    def create(self, plural, namespace, content, dry=False):
        """Store a new object; with `dry` only return it."""
        with self.lock:
            new = _copy(content)
            meta = new.setdefault("metadata", {})
            meta["namespace"] = namespace
            if "name" not in meta:
                meta["name"] = meta["generateName"] + self.suffix(5)
            if (plural, namespace, meta["name"]) in self._stored:
                raise Refused(409, "AlreadyExists", f'{plural} "{meta["name"]}" already exists')
            self.admit(plural, new, None)
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            return new if dry else self._store(plural, new)

    def get(self, plural, namespace, name):
        with self.lock:
            if (plural, namespace, name) not in self._stored:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            return _copy(self._stored[plural, namespace, name])

    def find(self, plural, namespace, name):
        """Like `get`, but None if there is none."""
        with self.lock:
            return _copy(self._stored.get((plural, namespace, name)))

    def list(self, plural, namespace=None, selector=""):
        """Objects of a namespace, or of all of them."""
        with self.lock:
            return [
                _copy(found)
                for (kind, place, _), found in self._stored.items()
                if kind == plural
                and namespace in (None, place)
                and _matches(found["metadata"].get("labels", {}), selector)
            ]

    def replace(self, plural, content, status_only=False):
        """Update an object; it is a conflict if it was changed since it was read."""
        with self.lock:
            meta = content["metadata"]
            old = self.get(plural, meta["namespace"], meta["name"])
            if (
                meta.get("resourceVersion", old["metadata"]["resourceVersion"])
                != old["metadata"]["resourceVersion"]
            ):
                raise Refused(
                    409,
                    "Conflict",
                    "the object has been modified; please apply your changes to the latest version",
                )
            new = {**old, "status": content.get("status", {})} if status_only else _copy(content)
            if not status_only:
                self.admit(plural, new, old)
            if "deletionTimestamp" in old["metadata"] and not new["metadata"].get("finalizers"):
                return self._remove(plural, meta["namespace"], meta["name"])
            return self._store(plural, new)

    def patch(self, plural, namespace, name, change, dry=False):
        with self.lock:
            old = self.get(plural, namespace, name)
            new = _merged(old, change)
            if dry:
                self.admit(plural, new, old)
                return new
            return self.replace(plural, new)

    def delete(self, plural, namespace, name):
        """Delete an object and all that it owns, at once; one with finalizers is only marked until the last is removed."""
        with self.lock:
            found = self.get(plural, namespace, name)
            if not found["metadata"].get("finalizers"):
                return self._remove(plural, namespace, name)
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = now()
                found = self._store(plural, found)
            return found

    def _remove(self, plural, namespace, name):
        with self.lock:
            gone = self._stored.pop((plural, namespace, name))
            for (kind, place, other), found in list(self._stored.items()):
                owners = [owner["uid"] for owner in found["metadata"].get("ownerReferences", [])]
                if gone["metadata"]["uid"] in owners and (kind, place, other) in self._stored:
                    self.delete(kind, place, other)
            for tell in self.deleted:
                tell(plural, gone)
            self.changed.notify_all()
            return gone

    def _store(self, plural, new):
        new["metadata"]["resourceVersion"] = str(next(self._version))
        self._stored[plural, new["metadata"]["namespace"], new["metadata"]["name"]] = new
        self.changed.notify_all()
        return _copy(new)


def _copy(content):
    """Return a deep copy of JSON, which a copy by pickle makes several times as fast as `copy.deepcopy`."""
    return pickle.loads(pickle.dumps(content))


def _matches(labels, selector):
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if (labels.get(key) != value) if equals else key not in labels:
            return False
    return True


def _merged(old, change):
    """RFC 7396."""
    if not isinstance(change, dict) or not isinstance(old, dict):
        return change
    merged = {**old}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(old.get(key), value)
    return merged


class ApiServer:
    """Serves `objects` over HTTP on a free port. `faults` are taken from the front, one a matching request.

    A fault is ``(method, plural, how)``; how: an HTTP status, ``"reset"`` (the request is not carried out) or
    ``"lost"`` (it is carried out, the reply never arrives).
    """

    def __init__(self, objects):
        self.objects, self.faults, self.requests = objects, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                outer._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        parts = urlsplit(handler.path)
        match, query = _PATH.match(parts.path), parse_qs(parts.query)
        plural = match["plural"] if match else ""
        self.requests.append((handler.command, plural))
        how = self._fault(handler.command, plural)
        if how == "reset":
            return _reset(handler)
        if isinstance(how, int):
            return _send(handler, how, {"kind": "Status", "message": "injected", "code": how})
        try:
            code, reply = self._carry_out(handler.command, match, query, body)
        except Refused as error:
            code = error.code
            reply = {
                "kind": "Status",
                "status": "Failure",
                "message": str(error),
                "reason": error.reason,
                "code": code,
            }
        if how == "lost":
            return _reset(handler)
        return _send(handler, code, reply)

    def _fault(self, method, plural):
        for place, (wanted, kind, how) in enumerate(self.faults):
            if (wanted, kind) == (method, plural):
                del self.faults[place]
                return how
        return None

    def _carry_out(self, method, match, query, body):
        if match is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        plural, namespace, name = match["plural"], match["namespace"], match["name"]
        if method == "GET" and name:
            return 200, self.objects.get(plural, namespace, name)
        if method == "GET":
            items = self.objects.list(plural, namespace, query.get("labelSelector", [""])[0])
            return 200, {"kind": "List", "apiVersion": match["group"] or "v1", "metadata": {}, "items": items}
        if method == "POST":
            return 201, self.objects.create(plural, namespace, body, dry="dryRun" in query)
        if method == "PUT":
            return 200, self.objects.replace(plural, body, bool(match["status"]))
        if method == "PATCH":
            return 200, self.objects.patch(plural, namespace, name, body, dry="dryRun" in query)
        self.objects.delete(plural, namespace, name)
        return 200, {"kind": "Status", "status": "Success"}


def _send(handler, code, reply):
    data = json.dumps(reply).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
