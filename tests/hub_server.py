"""A small hub that takes uploads as the real one does: create, preupload, LFS batch and PUT, commit."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """A running hub.

    Attributes:
        url: its address. repos: `private` and `files` by name. asked: method and path of each request, in order.
    """

    def __init__(self, token: str, owners: tuple[str, ...] = ("me",)) -> None:
        self.repos: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.route()

            do_POST = do_PUT = do_GET

            def route(self):
                path = self.path.partition("?")[0]
                hub.asked.append((self.command, path))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if path.startswith("/blob/"):
                    oid = path.rpartition("/")[2]
                    right = hashlib.sha256(body).hexdigest() == oid
                    hub.blobs[oid] = body
                    return self.answer({}, 200 if right else 400)
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self.answer({"error": "Invalid username or password."}, 401)
                if path == "/api/repos/create":
                    return self.create(json.loads(body))
                if path == "/api/validate-yaml":
                    return self.answer({"errors": [], "warnings": []})
                parts = (
                    path.removeprefix("/api/models")
                    .strip("/")
                    .removesuffix(".git/info/lfs/objects/batch")
                    .split("/")
                )
                repo = "/".join(parts[:2])
                if repo not in hub.repos:
                    return self.answer(
                        {"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"}
                    )
                if path.endswith("/objects/batch"):
                    objects = [
                        {**o, "actions": {"upload": {"href": f"{hub.url}/blob/{o['oid']}"}}}
                        for o in json.loads(body)["objects"]
                    ]
                    return self.answer({"transfer": "basic", "objects": objects})
                if parts[2:3] == ["preupload"]:
                    modes = [
                        {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                         "shouldIgnore": False, "oid": None}
                        for f in json.loads(body)["files"]
                    ]  # fmt: skip
                    return self.answer({"files": modes})
                if parts[2:3] == ["commit"]:
                    return self.commit(repo, body)
                private = hub.repos[repo]["private"]
                self.answer({"id": repo, "private": private, "sha": "0" * 40, "siblings": [], "tags": []})

            def create(self, asked):
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if repo.partition("/")[0] not in owners:
                    return self.answer({"error": "You don't have the rights"}, 403)
                if repo in hub.repos:
                    return self.answer({"url": f"{hub.url}/{repo}", "error": "You already created it"}, 409)
                hub.repos[repo] = {
                    "private": asked.get("private") or asked.get("visibility") == "private",
                    "files": {},
                }
                self.answer({"url": f"{hub.url}/{repo}", "name": repo, "id": "1"})

            def commit(self, repo, body):
                lines = [json.loads(line) for line in body.splitlines()]
                hub.repos[repo]["message"] = next(
                    x["value"]["summary"] for x in lines if x["key"] == "header"
                )
                for line in lines:
                    value = line["value"]
                    if line["key"] == "file":
                        hub.repos[repo]["files"][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.repos[repo]["files"][value["path"]] = hub.blobs[value["oid"]]
                url = f"{hub.url}/{repo}/commit/{'1' * 40}"
                self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})

            def answer(self, content, status=200, **headers):
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {
                    **headers,
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
