"""Fault injection: `python -m benchmarks.faults [--quick]` breaks disks, clocks, networks and inputs, and prints a table.

Each line says how often a fault was tried, how often it was survived, and how often something was lost: a wrong
result that was kept, an old file that was gone, a hang, or an error that says nothing. `lost` must be 0.
docs/security.md has the table of the last full run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from retune import records, store, study
from retune.errors import InputError, RetuneError
from retune.records import TrialRecord
from retune.workspace.ledger import Ledger
from retune.workspace.stamps import Stamps

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "01-first-study" / "study.yaml"
KINDS = ("busy", "broken", "slow", "cut", "silent", "reset up", "reset down")  # of tests.tcp_proxy.Fault
SLOW_SECONDS = 60.0  # longer is a hang


@dataclass
class Line:
    """One line of the table."""

    fault: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""

    def count(self, problem: str | None) -> None:
        """Count one attempt; `problem` is what was lost, None if nothing."""
        self.tried += 1
        if problem:
            self.lost.append(problem)


def trial(number: int) -> TrialRecord:
    """Return a record with numbers that a flipped bit would falsify."""
    role = ("base", "default", "search")[min(number, 2)]
    return TrialRecord(
        trial=f"trial-{number:03d}", number=number, role=role, assignment={"rank": 2 + number}, seed=0,
        status="completed", values={"validation_loss": 1.0 + number / 7}, started=records.now(), finished=records.now(),
    )  # fmt: skip


def work(folder: str, count: int) -> None:
    """Do what a search writes: issue and finish `count` trials, stamp the step. May be repeated."""
    ledger = Ledger(folder)
    for number in range(count):
        role = ("base", "default", "search")[min(number, 2)]
        task = ledger.issue(number, role, {"rank": 2 + number}, 0)
        if task.trial not in ledger.records:
            ledger.finish(trial(number), write=True)
    stamps = Stamps(folder)
    if stamps.outputs("search", {"n": count}) is None:
        with stamps.step("search", {"n": count}) as outputs:
            outputs["best"] = "trial-000"


def result(folder: str, count: int) -> str | None:
    """Return what is wrong with the outcome of `work`."""
    found = Ledger(folder).records
    values = {name: record.values["validation_loss"] for name, record in found.items()}
    if values != {f"trial-{n:03d}": 1.0 + n / 7 for n in range(count)}:
        return f"the trials are {values}"
    return None if Stamps(folder).last("search") == {"best": "trial-000"} else "the stamp is gone"


def full_disk(quick: bool) -> Line:
    """A file system of 512 KiB in memory is filled but for k pages, for every k, while a search writes."""
    line = Line("full disk, at each write")
    return _on_a_disk_of_its_own(line, "--in-small-disk", quick)


def _on_a_disk_of_its_own(line: Line, inside: str, quick: bool) -> Line:
    """Fill in what this program, called with `inside` where it may mount file systems, found to be lost."""
    mount = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *mount,
            sys.executable,
            "-m",
            "benchmarks.faults",
            inside,
            folder,
            *(["--quick"] if quick else []),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if done.returncode:
        line.note = f"not run: {done.stderr.strip().splitlines()[-1][:80]}"
        return line
    for problem in json.loads(done.stdout):
        line.count(problem)
    return line


def in_small_disk(folder: str, quick: bool) -> list[str | None]:
    """The inside of `full_disk`: what was lost at each k, None for nothing."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], check=True)
    found: list[str | None] = []
    pages = os.statvfs(folder).f_bavail
    for free in range(0, 40, 8 if quick else 1):
        home, filler = f"{folder}/search", Path(folder, "filler")
        work(home, 2)
        used = pages - os.statvfs(folder).f_bavail
        filler.write_bytes(bytes(4096 * max(0, pages - used - free)))
        problem = None
        try:
            work(home, 8)
        except RetuneError as error:
            if "space" not in str(error):
                problem = f"the error says {error}"
        except BaseException as error:
            problem = f"it ended in {error!r}"
        try:
            before = Ledger(home).records
            if not {"trial-000", "trial-001"} <= before.keys():
                problem = problem or "a finished trial is gone"
            filler.unlink()
            work(home, 8)
            problem = problem or result(home, 8)
        except BaseException as error:
            problem = problem or f"afterwards {error!r}"
        found.append(problem)
        shutil.rmtree(home)
        filler.unlink(missing_ok=True)
    return found


def flipped_bits(quick: bool) -> Line:
    """One bit of one file is flipped; readers must refuse the file, or get what was written."""
    line = Line("a flipped bit, in each kind of file")
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, path, read in _readers(Path(folder)):
            whole, wanted = path.read_bytes(), read()
            for _ in range(10 if quick else 200):
                data = bytearray(whole)
                place = rng.randrange(len(data) * 8)
                data[place // 8] ^= 1 << place % 8
                path.write_bytes(data)
                try:
                    found = read()
                    line.count(None if found == wanted else f"{name}: bit {place} was not seen")
                except RetuneError as error:
                    line.count(
                        None
                        if path.name in str(error) or path.parent.name in str(error)
                        else f"{name}: {error}"
                    )
                except Exception as error:
                    line.count(f"{name}: {error!r}")
            path.write_bytes(whole)
    return line


def _readers(folder: Path) -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    """Yield each kind of file with its path and the function that reads it."""
    from retune.registry.gate import GateRecord
    from retune.training import checkpoint
    from retune.workspace.search_folder import SearchFolder

    home = folder / "search"
    work(str(home), 3)

    def known(record: Any) -> dict[str, Any]:
        return {name: getattr(record, name) for name in type(record).model_fields}

    place = home / "trials" / "trial-002"
    yield "trial.json", place / "trial.json", lambda: known(Ledger(str(home)).records["trial-002"])
    yield "assignment.json", place / "assignment.json", lambda: Ledger(str(home)).tasks["trial-002"]
    gate = GateRecord(
        model="m", challenger="2", champion="1", decision="keep", rules=[{"rule": "r", "passed": False}]
    )
    SearchFolder(str(home)).write("gate.json", gate)
    yield "gate.json", home / "gate.json", lambda: known(SearchFolder(str(home)).gate)
    yield "stamp", home / "steps" / "search.json", lambda: Stamps(str(home)).outputs("search", {"n": 3})
    yield from _results(home, known)
    yield from _data(folder)
    yield from _adapter(place)
    saved = {"step": 7, "values": [1.5, 2.5]}
    checkpoint.save(str(place), "identity", saved)

    def resumed() -> Any:
        import torch

        try:
            return checkpoint.load(str(place), "identity", torch.device("cpu"))
        except checkpoint.UnusableCheckpoint as error:
            raise RetuneError(f"state.pt: {error}") from error

    yield "checkpoint", place / "checkpoint" / "state.pt", resumed


Reader = tuple[str, Path, Callable[[], Any]]


def _results(home: Path, known: Callable[[Any], dict[str, Any]]) -> Iterator[Reader]:
    """The records of a finished search, its benchmarks and its selection."""
    from retune.evaluation import bench
    from retune.records import BenchRecord
    from retune.selection.record import Row, Selection
    from retune.workspace.search_folder import SearchFolder, SearchRecord

    search = SearchRecord(
        study="s", algorithm="random", stopped_by="trials", trials=3, completed=3, failed=0, best="trial-000",
        digest="d", data_digest="e", hours=0.25,
    )  # fmt: skip
    row = Row(
        trial="trial-000", number=0, role="base", seed=0, assignment={}, objective=1.0, scores={"mmlu": 0.25}
    )
    selection = Selection(
        metric="validation_loss", goal="minimize", chosen="trial-000", rule="best", rows=[row]
    )
    score = BenchRecord(
        model="trial-000", task="mmlu", score=0.25, stderr=0.01, n=40, shots=5, protocol="instruct-eval",
        answers=[{"id": "q", "right": True}], inputs_digest="i",
    )  # fmt: skip
    folder = SearchFolder(str(home))
    for name, record in (
        ("search.json", search),
        ("selection.json", selection),
        ("bench/trial-000/mmlu.json", score),
    ):
        folder.write(name, record)
    yield "search.json", home / "search.json", lambda: known(SearchFolder(str(home)).search)
    yield "selection.json", home / "selection.json", lambda: known(SearchFolder(str(home)).selection)
    path = home / "bench" / "trial-000" / "mmlu.json"
    yield (
        "a benchmark's record",
        path,
        lambda: known(records.parse(BenchRecord, path.read_bytes(), str(path))),
    )

    def kept() -> dict[str, Any]:
        found = bench._existing(str(path), score)
        return known(score if found is None else found)  # None: it is made again

    yield "a benchmark's record, kept", path, kept


def _data(folder: Path) -> Iterator[Reader]:
    """Mixed data, its record and its token ids."""
    from retune.data import mixing, stored_tokens
    from retune.study import Data

    source, out = folder / "made.jsonl", folder / "data"
    lines = [json.dumps({"instruction": f"Say {n}.", "output": str(n)}) for n in range(8)]
    source.write_text("\n".join(lines) + "\n")
    said = {"sources": [{"format": "jsonl", "uri": str(source), "share": 1}], "train": 5, "validation": 3}
    mixing.mix(Data.model_validate({**said, "max_length": 64}), 0, str(ROOT / "examples/base/tiny"), str(out))

    def mixed() -> Any:
        return mixing.read_mix_record(str(out)).digest, mixing.load_split(str(out), "train")

    yield "mixed data", out / "train.jsonl", mixed
    yield "mix.json", out / "mix.json", mixed
    (place,) = out.glob("tokens-*")

    def tokens() -> Any:
        found = stored_tokens.load(str(place), "train")
        return found and [getattr(found, name).tolist() for name in ("ids", "counted", "offsets")]

    for name in ("train-ids.npy", "train-counted.npy", "train-offsets.npy", "tokens.json"):
        yield f"token ids, {name}", place / name, tokens


def _adapter(trial_folder: Path) -> Iterator[Reader]:
    """The two files of a trial's adapter."""
    from retune import adapter

    place = trial_folder / "adapter"
    place.mkdir()
    content = {
        adapter.CONFIG: b'{"peft_type": "LORA", "r": 4}',
        adapter.WEIGHTS: random.Random(1).randbytes(2000),
    }
    for name, data in content.items():
        (place / name).write_bytes(data)

    def whole() -> bool:
        if problems := adapter.damage(str(place), adapter.digest(content)):
            raise RetuneError("; ".join(problems))
        return True

    for name in content:
        yield f"adapter, {name}", place / name, whole


def training_disk(quick: bool) -> Line:
    """A trial is trained on a file system that fills up, more of it each time; then there is room, and it is repeated.

    A full disk is not the setting's fault: nothing is recorded, what was there stays, and the repeated trial is as good as new.
    """
    line = Line("full disk, while a trial trains")
    return _on_a_disk_of_its_own(line, "--train-in-small-disk", quick)


def train_in_small_disk(folder: str, quick: bool) -> list[str | None]:
    """The inside of `training_disk`: what was lost at each size, None for nothing."""
    from tests.training.conftest import make_base

    from retune.data import mixing
    from retune.training.resident import ResidentBase
    from retune.trials.run_trial import run_trial
    from retune.trials.task import TrialTask

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    with tempfile.TemporaryDirectory() as outside:
        source = Path(outside, "made.jsonl")
        lines = [json.dumps({"instruction": f"Say {n}.", "output": str(n)}) for n in range(10)]
        source.write_text("\n".join(lines) + "\n")
        changes = [
            f"model.base={make_base(Path(outside, 'base'))}", "training.epochs=1", "training.batch_size=2",
            "training.checkpoint_minutes=0.0001", "training.target_modules=[q_proj]", "data.max_length=256",
            "data.sources=[{format: jsonl, uri: " + str(source) + ", share: 1}]", "data.train=6", "data.validation=1",
        ]  # fmt: skip
        asked, data = study.load(DEMO, changes), f"{outside}/data"
        mixing.mix(asked.data, 0, asked.model.base, data)
        base = ResidentBase(asked.model)

        def task(home: str) -> TrialTask:
            return TrialTask(
                trial="trial-002", number=2, role="search", assignment={"rank": 4}, seed=0, folder=home
            )

        def outcome(home: str) -> tuple[float, str | None]:
            record = run_trial(asked, data, task(home), base)
            return record.values["validation_loss"], record.adapter_digest

        right = outcome(f"{outside}/right")
        pages, found = os.statvfs(folder).f_bavail, []
        for free in (0, 2, 4, 8, 16) if quick else (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48):
            home, filler, problem = f"{folder}/trial", Path(folder, "filler"), None
            filler.write_bytes(bytes(4096 * max(0, pages - free)))
            try:
                if outcome(home) != right:
                    problem = f"{free} pages: another result was kept"
            except RetuneError as error:
                if "space" not in str(error):
                    problem = f"{free} pages: the error says {error}"
                if Path(home, "trial.json").exists():
                    problem = f"{free} pages: a full disk was recorded as the trial's fault"
            except BaseException as error:
                problem = f"{free} pages: it ended in {error!r}"
            filler.unlink()
            try:
                if not problem and outcome(home) != right:
                    problem = f"{free} pages: afterwards the result is another"
            except BaseException as error:
                problem = f"{free} pages: afterwards {error!r}"
            found.append(problem)
            shutil.rmtree(home, ignore_errors=True)
    return found


def clock_jumps(quick: bool) -> Line:
    """The machine's clock jumps by hours and years, both ways, between any two writes of a search."""
    line = Line("clock jumps")
    real = time.time
    for jump in (-3e8, -3600.0, -1.0, 1.0, 3600.0, 3e8)[:: 3 if quick else 1]:
        rng = random.Random(jump)

        def jumping(jump: float = jump, rng: random.Random = rng) -> float:
            return real() + rng.choice([0.0, jump])

        class Jumping(datetime):  # what `records.now` reads
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.fromtimestamp(time.time(), tz)

        time.time, records.datetime = jumping, Jumping
        try:
            with tempfile.TemporaryDirectory() as folder:
                for count in range(1, 8):
                    work(folder, count)
                    line.count(result(folder, count))
                    os.utime(next(Path(folder).rglob("trial.json")), (real() + jump, real() + jump))
        finally:
            time.time, records.datetime = real, datetime
    return line


def object_store(quick: bool) -> Line:
    """S3 answers 500, slowly, half, or not at all; each call works, or fails in words and leaves what was there."""
    line = Line("S3: 500, 503, slow, half a body, silence, resets")
    from tests.s3_server import Server
    from tests.tcp_proxy import Fault, TcpProxy

    from retune.store import s3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    server = Server()
    proxy = TcpProxy(server.port)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "RETUNE_CACHE": folder,
            "AWS_MAX_ATTEMPTS": "2",
        }  # fmt: skip
        s3.READ_SECONDS = 1
        s3._client().create_bucket(Bucket="faults")
        old, new = b"old" * 20_000, b"new" * 20_000
        for kind in KINDS:
            for method in ("PUT", "GET", "HEAD"):
                for times in (1,) if quick else (1, 2, 9):
                    uri = f"s3://faults/{kind}-{method}-{times}".replace(" ", "-")
                    store.write(uri, old)
                    proxy.faults[:] = [Fault(method, kind, 100, times)]
                    line.count(_stored(uri, old, new, lambda: proxy.faults.clear()))
    server.stop()
    return line


def _stored(uri: str, old: bytes, new: bytes, heal: Callable[[], None]) -> str | None:
    begin = time.monotonic()
    try:
        if store.read(uri) != old:
            return f"{uri}: something else was read"
        store.write(uri, new)
        if store.download(uri).read_bytes() != new:
            return f"{uri}: something else came down"
    except RetuneError:
        pass
    except Exception as error:
        return f"{uri}: {error!r}"
    if time.monotonic() - begin > SLOW_SECONDS:
        return f"{uri}: it took {time.monotonic() - begin:.0f} s"
    heal()
    if store.read(uri) not in (old, new):
        return f"{uri}: it is neither the old nor the new"
    store.write(uri, new)
    return None if store.read(uri) == new else f"{uri}: it cannot be written any more"


def registry(_: bool) -> Line:
    """MLflow answers in the same ways while a champion is promoted: there is one, old or new, and it can be done again."""
    from tests.mlflow_server import Server
    from tests.tcp_proxy import Fault, TcpProxy

    from retune.registry import promotion
    from retune.registry.aliases import aliases
    from retune.registry.versions import register

    line = Line("MLflow: 500, 503, slow, half a body, silence, resets")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ |= {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), f"sqlite:///{folder}/server.db", f"{folder}/artifacts")
        try:
            server.start()
            for number in (1, 2):
                adapter = Path(folder, f"adapter-{number}")
                adapter.mkdir()
                (adapter / "adapter_config.json").write_text("{}")
                (adapter / "adapter_model.safetensors").write_bytes(bytes([number]))
                register(server.uri, "m", trial(number), adapter, study="faults")
            promotion.promote(server.uri, "m", "1", None)
            proxy = TcpProxy(server.port)
            for kind in KINDS:
                for method in ("GET", "POST", "DELETE"):
                    old = aliases(server.uri, "m").champion
                    new = "2" if old == "1" else "1"
                    proxy.faults[:] = [Fault(method, kind, 40)]
                    begin = time.monotonic()
                    with contextlib.suppress(Exception):  # MLflow's own words; what counts is what is left
                        promotion.promote(proxy.url, "m", new, old)
                    problem = None if time.monotonic() - begin < SLOW_SECONDS else "it took too long"
                    proxy.faults.clear()
                    found = aliases(server.uri, "m")
                    if found.champion not in (old, new) or (found.previous is None and found.champion == new):
                        problem = f"{kind} {method}: the aliases are {found}"
                    done = promotion.promote(server.uri, "m", new, found.champion)
                    if (done.champion, done.previous) != (new, old):
                        problem = f"{kind} {method}: afterwards the aliases are {done}"
                    line.count(problem)
        finally:
            server.kill()
    return line


class Wire:
    """Forwards TCP connections until it is cut; then all break, and new ones are refused until it is restored."""

    def __init__(self, port: int) -> None:
        self._port, self._up = port, True
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection."""
        self._up = False
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def restore(self) -> None:
        """Let new connections through."""
        self._up = True

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self._up:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def network_cuts(quick: bool) -> Line:
    """The network between search and service is cut at random moments; each answer must be that of an intact network."""
    from tests.suggestion.katib_requests import Service

    from retune.search import Observation
    from retune.suggestion.client import SuggestionClient as Client

    line = Line("network cut between search and service")
    asked = study.load(DEMO, ["search.algorithm=random"])
    service, rng = Service(), random.Random(0)
    try:
        history: list[Observation] = []
        with Client(service.address) as client:
            wanted = [client.suggest(asked, history, 3, issued=n) for n in range(4)]
        wire = Wire(service.port)
        with Client(f"127.0.0.1:{wire.port}", patience=20) as client:
            for turn in range(10 if quick else 100):
                moment = threading.Timer(rng.uniform(0, 0.05), wire.cut)
                again = threading.Timer(rng.uniform(0.06, 0.3), wire.restore)
                moment.start()
                again.start()
                try:
                    found = client.suggest(asked, history, 3, issued=turn % 4)
                    line.count(None if found == wanted[turn % 4] else f"turn {turn}: another answer")
                except Exception as error:
                    line.count(f"turn {turn}: {error!r}")
                again.join()
    finally:
        service.close()
    return line


def fuzzed_studies(quick: bool) -> Line:
    """The demo study with bytes and lines changed must give a study or an `InputError`, quickly and without another error."""
    line = Line("fuzzed study files")
    rng, text = random.Random(0), DEMO.read_bytes()
    bits = [
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"[",
        b"{",
        b"]",
        b"}",
        b": ",
        b"- ",
        b"\0",
        b"\xff",
        b"1e999",
        b"-1",
        b".nan",
        b"~",
    ]
    bits += [
        b"!!python/name:os.system ",
        b"2001-99-99",
        b"0x" + b"f" * 99,
        b"'",
        b'"',
        b"|\n",
        b"\t",
        b"!!binary ",
        b"? ",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        for turn in range(100 if quick else 1000):
            data = bytearray(text)
            for _ in range(rng.randint(1, 6)):
                start = rng.randrange(len(data))
                end = start + rng.choice([0, 1, 5, 40])
                data[start:end] = rng.choice(
                    [rng.choice(bits), bytes([rng.randrange(256)]), bytes(data[end : end + 40]) * 2]
                )
            path.write_bytes(data)
            begin = time.monotonic()
            try:
                study.load(path)
                problem = None
            except InputError as error:
                problem = (
                    None
                    if str(path) in str(error) and "pydantic" not in str(error)
                    else f"the error says {error}"
                )
            except BaseException as error:
                problem = repr(error)[:200]
            line.count(problem and f"turn {turn}: {problem}")
            if time.monotonic() - begin > 20:
                line.lost.append(f"turn {turn}: {time.monotonic() - begin:.0f} s")
    return line


def fuzzed_requests(quick: bool) -> Line:
    """Changed bytes of a right request to the running service: it answers, and then answers a right one as before."""
    import grpc
    from tests.suggestion import katib_requests as requests

    from retune.suggestion import messages as katib

    line = Line("fuzzed gRPC requests")
    rng = random.Random(0)
    asked = study.load(DEMO, ["search.algorithm=random"])
    right = katib.GetSuggestionsRequest(experiment=requests.experiment(asked.search.space, "random"))
    for number in range(4):
        requests.add_trial(
            right, {p.name: p.default for p in asked.search.space.parameters}, loss=1.0 + number
        )
    requests.ask(right, 2)
    text = right.SerializeToString()
    service = requests.Service()
    try:
        with grpc.insecure_channel(service.address) as channel:
            raw = {method: channel.unary_unary(f"/api.v1.beta1.Suggestion/{method}") for method in
                   ("GetSuggestions", "ValidateAlgorithmSettings")}  # fmt: skip
            wanted = raw["GetSuggestions"](text, timeout=60)
            for turn in range(100 if quick else 1000):
                data = bytearray(text)
                for _ in range(rng.randint(1, 8)):
                    start = rng.randrange(len(data))
                    end = start + rng.choice([0, 1, 1, 4, 30])
                    data[start:end] = rng.choice(
                        [rng.randbytes(rng.randint(0, 5)), b"\xff" * 5, bytes(data[end : end + 30])]
                    )
                problem = None
                try:
                    raw[rng.choice(sorted(raw))](bytes(data), timeout=SLOW_SECONDS)
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL):
                        problem = f"{error.code()}: {error.details()}"
                    elif "Exception calling application" in (error.details() or ""):
                        problem = error.details()
                if turn % 10 == 9 and raw["GetSuggestions"](text, timeout=60) != wanted:
                    problem = "the right request is answered in another way now"
                line.count(problem and f"turn {turn}: {problem}")
    finally:
        service.close()
    return line


FAULTS = (
    full_disk,
    training_disk,
    flipped_bits,
    clock_jumps,
    object_store,
    registry,
    network_cuts,
    fuzzed_studies,
    fuzzed_requests,
)


def table(lines: list[Line]) -> str:
    """Return the lines as a Markdown table."""
    rows = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    for line in lines:
        note = f" ({line.note})" if line.note else ""
        rows.append(
            f"| {line.fault}{note} | {line.tried} | {line.tried - len(line.lost)} | {len(line.lost)} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run all faults, or those named, and print the table; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of each")
    parser.add_argument("--in-small-disk", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help=f"of {[fault.__name__ for fault in FAULTS]}")
    parser.add_argument("--train-in-small-disk", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train_in_small_disk:
        print(json.dumps(train_in_small_disk(asked.train_in_small_disk, asked.quick)))
        return
    if asked.in_small_disk:
        print(json.dumps(in_small_disk(asked.in_small_disk, asked.quick)))
        return
    lines = []
    for fault in FAULTS:
        if not asked.names or fault.__name__ in asked.names:
            begin = time.monotonic()
            lines.append(fault(asked.quick))
            print(
                f"{fault.__name__}: {time.monotonic() - begin:.0f} s",
                *lines[-1].lost[:5],
                sep="\n  ",
                file=sys.stderr,
            )
    print(table(lines))
    found = records.versions("pydantic", "grpcio", "boto3", "moto", "PyYAML")
    print(
        f"\n{platform.platform()}, {os.cpu_count()} CPUs; " + ", ".join(f"{k} {v}" for k, v in found.items())
    )
    sys.exit(any(line.lost for line in lines))


if __name__ == "__main__":
    main()
