"""A stand-in for the KFP API server (v2beta1 REST), for the real client: it stores pipelines and runs them.

A run is carried out by `kfp.local` from the uploaded package, in a process of its own, as Kubeflow would in pods.
What a real server would refuse is refused: an unknown pipeline, a package that KFP cannot read.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

RUN = """
import json, sys
from kfp import components, local
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[3], raise_on_error=True)
components.load_component_from_file(sys.argv[1])(**json.load(open(sys.argv[2])))
"""


class Kubeflow:
    """What the server knows; `faults` holds status codes that the next requests get instead of an answer.

    With a `token` it answers those alone who have it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipelines, self.versions, self.experiments, self.schedules = {}, {}, {}, {}
        self.runs: dict[str, dict] = {}
        self.processes: dict[str, subprocess.Popen] = {}
        self.faults: list[int] = []
        self.token: str | None = None
        self.requests: list[tuple[str, str]] = []
        self.execute = False
        self._count = 0
        self._lock = threading.Lock()

    def new(self, kind: str) -> str:
        with self._lock:
            self._count += 1
            return f"{kind}-{self._count}"

    def upload(self, pipeline: str, name: str, package: bytes) -> dict:
        from kfp import components

        label = self.new("version")
        path = self.folder / f"{label}.yaml"
        path.write_bytes(package)
        components.load_component_from_file(str(path))
        version = {"pipeline_id": pipeline, "pipeline_version_id": label, "display_name": name, "name": name}
        self.versions[label] = {**version, "path": str(path)}
        return version

    def check(self, body: dict) -> dict:
        """Refuse arguments that are too long, as backend/src/common/util's MaxParameterBytes has it."""
        length = len(json.dumps(body["runtime_config"].get("parameters", {})))
        if length > 10_000:
            raise ValueError("The input parameter length exceed maximum size of 10000")
        return body

    def start(self, body: dict) -> dict:
        label = self.new("run")
        self.runs[label] = {**body, "run_id": label, "state": "PENDING"}
        if self.execute:
            version = self.versions[body["pipeline_version_reference"]["pipeline_version_id"]]
            arguments = self.folder / f"{label}.json"
            arguments.write_text(json.dumps(body["runtime_config"]["parameters"]))
            command = [sys.executable, "-c", RUN, version["path"], str(arguments), str(self.folder / label)]
            log = (self.folder / f"{label}.log").open("w")
            self.processes[label] = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        return self.runs[label]

    def terminate(self, label: str) -> dict:
        self.runs[label]["state"] = "CANCELED"
        if process := self.processes.pop(label, None):
            process.terminate()
        return {}

    def look(self, label: str) -> dict:
        process = self.processes.get(label)
        if process is not None:
            code = process.poll()
            self.runs[label]["state"] = "RUNNING" if code is None else "SUCCEEDED" if code == 0 else "FAILED"
        return self.runs[label]


def serve(
    folder: Path, address: tuple[str, int] = ("127.0.0.1", 0)
) -> tuple[ThreadingHTTPServer, Kubeflow, str]:
    """Start the server, by default on a free port; return it, what it knows, and its address."""
    cluster = Kubeflow(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content: object, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_one(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = url.path.removeprefix("/apis/v2beta1")
            cluster.requests.append((self.command, path))
            if cluster.faults:
                return self.answer({"message": "upstream is away"}, cluster.faults.pop(0))
            if cluster.token and self.headers.get("Authorization") != f"Bearer {cluster.token}":
                return self.answer({"message": "Unauthenticated"}, 401)
            try:
                return self.answer(self.route(path, query, body))
            except ValueError as error:
                return self.answer({"message": str(error)}, 400)
            except KeyError as error:
                return self.answer({"message": f"{error} not found"}, 404)

        def route(self, path: str, query: dict, body: bytes) -> object:
            match self.command, path:
                case "GET", "/healthz":
                    return {"multi_user": False}
                case "GET", "/pipelines":
                    wanted = json.loads(query["filter"])["predicates"][0]["stringValue"]
                    return {
                        "pipelines": [p for p in cluster.pipelines.values() if p["display_name"] == wanted]
                    }
                case "POST", "/pipelines/upload":
                    label = cluster.new("pipeline")
                    cluster.upload(label, query["name"], part(self.headers, body))
                    cluster.pipelines[label] = {"pipeline_id": label, "display_name": query["name"]}
                    return cluster.pipelines[label]
                case "POST", "/pipelines/upload_version":
                    cluster.pipelines[query["pipelineid"]]  # KeyError: 404
                    return cluster.upload(query["pipelineid"], query["name"], part(self.headers, body))
                case "GET", "/experiments":
                    found = list(cluster.experiments.values())
                    if "filter" in query:
                        wanted = json.loads(query["filter"])["predicates"][0]["stringValue"]
                        found = [e for e in found if e["display_name"] == wanted]
                    return {"experiments": found}
                case "POST", "/experiments":
                    label = cluster.new("experiment")
                    cluster.experiments[label] = {**json.loads(body), "experiment_id": label}
                    return cluster.experiments[label]
                case "POST", "/runs":
                    return cluster.start(cluster.check(json.loads(body)))
                case "GET", "/recurringruns":
                    return {"recurringRuns": list(cluster.schedules.values())}
                case "POST", "/recurringruns":
                    label = cluster.new("schedule")
                    cluster.schedules[label] = {**cluster.check(json.loads(body)), "recurring_run_id": label}
                    return cluster.schedules[label]
            if found := re.fullmatch(r"/pipelines/([^/]+)/versions", path):
                kept = [v for v in cluster.versions.values() if v["pipeline_id"] == found[1]]
                return {"pipeline_versions": [{k: v for k, v in one.items() if k != "path"} for one in kept]}
            if self.command == "POST" and (found := re.fullmatch(r"/runs/([^/:]+):terminate", path)):
                return cluster.terminate(found[1])
            if found := re.fullmatch(r"/runs/([^/]+)", path):
                return cluster.look(found[1])
            if self.command == "DELETE" and (found := re.fullmatch(r"/recurringruns/([^/]+)", path)):
                del cluster.schedules[found[1]]
                return {}
            raise KeyError(path)

        do_GET = do_POST = do_DELETE = handle_one

    server = ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server, cluster, f"http://127.0.0.1:{server.server_port}"


def part(headers: EmailMessage, body: bytes) -> bytes:
    """Return the one file of a multipart upload."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    (found,) = BytesParser().parsebytes(head + body).get_payload()
    return found.get_payload(decode=True)
