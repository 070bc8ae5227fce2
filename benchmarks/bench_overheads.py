"""The cost of everything around the training, in CPU seconds, requests and megabytes, now and before.

    python benchmarks/bench_overheads.py                  the whole table, about five minutes of CPU
    python benchmarks/bench_overheads.py --only report    the lines of one function

Every line is measured in a process of its own, in seconds of CPU (user and system, its children's too), which other work on
the machine changes far less than the time on the clock. "before" is what a user would do without the part, measured here on
the same inputs, or "dc50625": the figure of issue 12, from the commit of that name, on another machine. "equal" names what was
compared; a line whose results differ ends the program. "goal" is that of issue 12.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_studies
from retune.records import now, versions

HERE = Path(__file__).parent
DEMO = made_studies.DEMO
Row = dict[str, Any]
RECORDS, VALIDATION = 49_000, 5_000


def cpu() -> float:
    """Return the CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def command(*words: str, cwd: Path | None = None, times: int = 1) -> tuple[float, str]:
    """Run a program `times` times; return the fewest CPU seconds of a run, and the output."""
    found = []
    for _ in range(times):
        begin = cpu()
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
        found.append(cpu() - begin)
    return min(found), done.stdout


def part(name: str, *words: str) -> dict[str, Any]:
    """Run the function `part_<name>` below in a process of its own; return its result with the CPU seconds."""
    used, out = command(sys.executable, str(Path(__file__)), "--part", name, *words)
    return {"process": used, **json.loads(out.splitlines()[-1])}


def retune(*words: str, cwd: Path, times: int = 1) -> tuple[float, str]:
    """Run the command line."""
    return command(sys.executable, "-m", "retune", *words, cwd=cwd, times=times)


def same(what: str, one: object, other: object) -> str:
    """Return `what` if both are equal; exit if they are not."""
    if one != other:
        sys.exit(f"not equal: {what}: {one!r} and {other!r}")
    return what


# ---- the lines


def validate(work: Path) -> list[Row]:
    """`retune validate` on the demo."""
    used, _ = retune("validate", str(DEMO), cwd=work, times=3)
    ours, theirs = part("ids", "plain"), part("ids", "transformers")
    equal = same("ids of all records as by AutoTokenizer", ours["sum"], theirs["sum"])
    return [
        row("retune validate on the demo", "CPU s", 6.4, used, "dc50625", equal, goal=1),
        row(
            "its tokenizer: read it and tokenise 2,486 records",
            "CPU s",
            theirs["process"],
            ours["process"],
            "by AutoTokenizer",
            equal,
        ),
    ]


def part_ids(how: str) -> Row:
    """Tokenise the demo's records."""
    from retune.data import plain_tokenizer
    from retune.data.tokens import join

    base = DEMO.parents[1] / "base" / "tiny"
    if how == "plain":
        tokenizer: Any = plain_tokenizer.load(base)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
    given = json.loads((DEMO.parents[1] / "data" / "alpaca-demo.json").read_text())
    made = join([[(each["instruction"], each["output"])] for each in given], tokenizer)
    return {"sum": hashlib.sha256(json.dumps([ids for ids, _ in made]).encode()).hexdigest()}


def again(work: Path) -> list[Row]:
    """A second `retune run` of a study that is done."""
    words = ["data.train=40", "data.validation=20", "training.epochs=1", "search.trials=2", "search.repeats=0",
             "search.algorithm=random", "benchmark.tasks=[]", "benchmark.data={}",
             "select={}", "report.answers=0", "--json"]  # fmt: skip
    _, told = retune("run", str(DEMO), *words, cwd=work)
    second, told_again = retune("run", str(DEMO), *words, cwd=work, times=3)
    equal = same("outcome of both runs", json.loads(told), json.loads(told_again))
    return [row("a second retune run with nothing to do", "CPU s", 7.6, second, "dc50625", equal, goal=1)]


def bucket(work: Path) -> list[Row]:
    """The same of 100 trials whose artifacts are in a bucket (moto's server), with an empty cache and with a full one."""
    found = part("bucket", str(work))
    equal = same("records read", found["plain"][1], found["cold"][1])
    before, cold, warm = found["plain"][0], found["cold"][0], found["warm"][0]
    return [
        row("nothing to do, 100 trials in a bucket, on a new machine", "requests", before, cold,
            "one for each record", equal, goal=20),
        row("the same again", "requests", 1200, warm, "dc50625", equal, goal=20),
    ]  # fmt: skip


def part_bucket(work: str) -> Row:
    """Count requests."""
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    from retune import store
    from retune.steps import outcome
    from retune.steps.plan import checked
    from retune.store.s3 import _client

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    sent: list[str] = []

    def look(cache: str) -> tuple[int, str]:
        os.environ["RETUNE_CACHE"] = f"{work}/{cache}"
        sent.clear()
        assert all(checked(study).values())
        records = [record.model_dump(mode="json") for record in outcome.read(study).records()]
        return len(sent), hashlib.sha256(json.dumps(records).encode()).hexdigest()

    os.environ["RETUNE_CACHE"] = f"{work}/first"
    _client().create_bucket(Bucket="bucket")
    study = made_studies.study("s3://bucket/artifacts", 100)
    folder = made_studies.finished(study, 100)
    _client().meta.events.register("before-send.s3.*", lambda request, **_: sent.append(request.method))
    found = {"plain": look("second")}
    folder.gather()
    found |= {"cold": look("third"), "warm": look("third")}
    store.remove("s3://bucket")
    server.shutdown()
    return found


def report(work: Path) -> list[Row]:
    """The whole step `report`, page and files for MLflow, at 1,000 and 5,000 trials."""
    rows = []
    for trials, before, goal in ((1000, 35.0, 5), (5000, 190.0, 20)):
        made = part("make", str(work / f"study-{trials}"), str(trials))
        found = part("report", made["folder"])
        equal = same("a row of the page for every trial", found["rows"], trials + 1)
        rows.append(
            row(f"report of {trials:,} trials", "CPU s", before, found["process"], "dc50625", equal, goal)
        )
    return rows


def part_make(out: str, trials: str) -> Row:
    """Make a finished study."""
    return {"folder": made_studies.finished(made_studies.study(out, int(trials)), int(trials)).uri}


def part_report(folder: str) -> Row:
    """Do what the step does, but for sending it to MLflow."""
    from retune.processes import gc_paused

    with gc_paused():
        return _reported(folder)


def _reported(folder: str) -> Row:
    from retune.report import figures, page
    from retune.report.folder import study_in
    from retune.report.style import write_files
    from retune.workspace.search_folder import SearchFolder

    study, read = study_in(folder), SearchFolder(folder)
    trials = list(read.trials.values())
    drawn = figures.draw(trials, study.search.space, study.search.objective, read.selection)
    page.write_report(
        study, None, trials, [], read.selection, read.gate, read.path("report.html"), None, drawn
    )
    with tempfile.TemporaryDirectory() as made:
        write_files(drawn, Path(made))
    html = Path(read.path("report.html")).read_text()
    return {"rows": sum(f">{record.trial}" in html for record in trials)}


def tokens(work: Path) -> list[Row]:
    """A trial's pod opens 49,000 records."""
    made = part("mix", str(work))
    naive, ours = part("tokens", made["folder"], "tokenise"), part("tokens", made["folder"], "open")
    equal = same(f"all {ours['count']:,} tokens", ours["sum"], naive["sum"])
    what = f"a trial's pod reads {RECORDS:,} records"
    return [
        row(what, "CPU s", naive["cpu"], ours["cpu"], "tokenised in the pod", equal, goal=1),
        row(
            f"{what}, growth of its memory",
            "MB",
            naive["mb"],
            ours["mb"],
            "tokenised in the pod",
            equal,
            goal=100,
        ),
    ]


def part_mix(work: str) -> Row:
    """Mix made-up data, and with it store its tokens."""
    from retune.data import mixing
    from retune.study import Data

    path = made_studies.records(Path(work) / "data.json", RECORDS + VALIDATION)
    data = Data.model_validate(
        {
            "sources": [{"uri": str(path), "share": 1}],
            "train": RECORDS,
            "validation": VALIDATION,
            "max_length": 512,
        }
    )
    out = f"{work}/mixed"
    mixing.mix(data, 0, DEMO.parents[1] / "base" / "tiny", out)
    return {"folder": out}


def part_tokens(folder: str, how: str) -> Row:
    """Bring the tokens of the training split to where a trial trains on them."""
    import torch  # a trial has them, whatever it reads
    import transformers  # noqa: F401

    from retune.data import mixing
    from retune.data.batches import flatten
    from retune.data.encode import tokenize_examples
    from retune.models import load_tokenizer
    from retune.study import Model

    base = DEMO.parents[1] / "base" / "tiny"
    tokenizer = load_tokenizer(Model(base=str(base)))

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    before, begin = resident(), time.process_time()
    if how == "open":
        found = mixing.load_tokens(folder, "train", lambda: sys.exit("made again"), base, 512, "completion")
    else:
        prompt = mixing.read_mix_record(folder).prompt
        found = tokenize_examples(mixing.load_split(folder, "train"), tokenizer, prompt, 512)
    flatten(found, range(8))
    used, grown = time.process_time() - begin, resident() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    total = hashlib.sha256(found.ids.numpy().tobytes() + found.counted.numpy().tobytes()).hexdigest()
    assert found.offsets.dtype == torch.int64
    return {"cpu": used, "mb": max(grown, peak), "sum": total, "count": len(found.ids)}


def prune(work: Path) -> list[Row]:
    """A search drops the adapters that it will not need as its trials end."""
    found = {count: part("prune", str(work / f"prune-{count}"), str(count)) for count in (500, 2000)}
    per = {count: 1000 * each["cpu"] / count for count, each in found.items()}
    order = found[2000]["order"]
    equal = same("trial-1000 follows trial-999", order[order.index("trial-999") + 1], "trial-1000")
    what = "a trial ends: its record, and the adapters that go, at 2,000 trials"
    return [row(what, "CPU ms", per[500], per[2000], "the same at 500 trials: O(n) if equal", equal)]


def part_prune(out: str, count: str) -> Row:
    """Finish trials one after another; each has an adapter of one file."""
    import random

    from retune import store
    from retune.workspace.ledger import Ledger

    study = made_studies.study(out, int(count))
    ledger, rng = Ledger(out), random.Random(0)
    given = []
    for number in range(1, int(count) + 1):
        record = made_studies.trial(study, number, rng)
        ledger.issue(number, record.role, record.assignment, 0)
        uri = store.join(out, "trials", record.trial, "adapter")
        store.write(store.join(uri, "adapter_model.safetensors"), b"x")
        given.append(record.model_copy(update={"adapter_uri": uri, "curves": {}}))
    begin = time.process_time()
    for record in given:
        ledger.finish(record, write=True)
        ledger.prune(ledger.kept(study))
    used = time.process_time() - begin
    return {"cpu": used, "order": [r.trial for r in ledger.outcome(study, "trials").records]}


def suggest(work: Path) -> list[Row]:
    """The next 8 settings of 30 parameters after 1,000 trials, by each algorithm."""
    from retune import search

    rows = []
    for name in search.ALGORITHMS:
        found, other = part("suggest", name), part("suggest", name)
        equal = same("settings of two processes", found["sum"], other["sum"])
        what = f"8 suggestions of {name}, 30 parameters, 1,000 trials"
        rows.append(
            row(what, "CPU s", 7.6, found["cpu"], "dc50625, without saying by which algorithm", equal, goal=2)
        )
    return rows


def part_suggest(name: str) -> Row:
    """Ask an algorithm; the start design is in the history, so that it has to do its real work."""
    import numpy as np

    from retune import search
    from retune.search import Objective, Observation, design
    from retune.search.nomad import NomadSettings
    from retune.search.problem import pose

    space, rng = made_studies.wide_space(30), np.random.default_rng(0)
    begun = design.start(pose(space, Objective(), NomadSettings(), [], 0, 0), 8)
    history = []
    for k in range(1000):
        drawn = space.from_unit(rng.random(30).tolist())
        given = space.decode(begun[k].levels if k < len(begun) else drawn)
        place = np.array(space.to_unit(space.encode(given)))
        loss = float(((place - 0.3) ** 2).sum() + 0.05 * np.sin(20 * place).sum())
        history.append(
            Observation(given, "completed", {"validation_loss": loss}, f"trial-{k:03}", number=k + 1)
        )
    begin = cpu()
    found = search.suggest(name, space, Objective(), {}, history, 8, 0)
    used = cpu() - begin
    return {"cpu": used, "sum": hashlib.sha256(json.dumps(found).encode()).hexdigest()}


def demo(work: Path) -> list[Row]:
    """The demo with two trials of few records, and those trials and benchmarks once more by themselves on one loaded base.

    What is left is what every run of the demo costs: processes, imports, the check of the base, MLflow, the report.
    """
    words = ["data.train=8", "data.validation=4", "training.epochs=1", "search.trials=2", "search.repeats=0"]
    words += ["benchmark.limit=1", "report.answers=1", "--json"]
    used, told = retune("run", str(DEMO), *words, cwd=work)
    alone = part("trials", json.loads(told)["folder"], cwd_of(work))
    equal = same("losses of all trials, in the demo and alone", alone["demo"], alone["alone"])
    what = "the demo without its trials and the answers to its benchmarks"
    return [
        row(what, "CPU s", 69.0, used - alone["cpu"], f"dc50625; here whole {used:.0f} s", equal, goal=15)
    ]


def cwd_of(work: Path) -> str:
    """Return the folder that the demo ran in."""
    return str(work)


def part_trials(folder: str, work: str) -> Row:
    """Run a search's trials and benchmarks again; only the seconds of `run_trial` and `bench.run` count."""
    os.chdir(work)
    import peft  # noqa: F401  # imports are no part of a trial

    from retune import models
    from retune.evaluation import bench
    from retune.report.folder import study_in
    from retune.training.resident import ResidentBase
    from retune.trials.run_trial import run_trial
    from retune.workspace import folders
    from retune.workspace.search_folder import SearchFolder

    study, read = study_in(folder), SearchFolder(folder)
    data = folders.data_folder(study)
    base = ResidentBase(study.model)
    base.checked(study.training, study.data.max_length)
    losses, used = {}, 0.0  # seconds of CPU, with those of the sandbox that runs answers
    for name, task in read.ledger.tasks.items():
        fresh = task.model_copy(update={"folder": f"{work}/alone/{name}"})
        begin = cpu()
        losses[name] = run_trial(study, data, fresh, base).values.get("validation_loss")
        used += cpu() - begin
    models.load_base(study.model)
    candidates = [bench.Candidate(t.trial, t.adapter_uri, t.adapter_digest) for t in read.candidates(study)]
    begin = cpu()
    bench.run(study.model, candidates, study.benchmark, study.seed, f"{work}/alone/bench")
    used += cpu() - begin
    recorded = {name: record.values.get("validation_loss") for name, record in read.trials.items()}
    return {"cpu": used, "demo": dict(sorted(recorded.items())), "alone": dict(sorted(losses.items()))}


# ---- the program


def row(
    what: str, unit: str, before: float, after: float, how: str, equal: str, goal: float | None = None
) -> Row:
    """Print and return a line of the table; `goal` is the largest value that is allowed."""
    told = "" if goal is None else f"goal {goal:g}: {'met' if after < goal else 'MISSED'}"
    print(
        f"{what:84} {before:8.1f} -> {after:7.2f} {unit:8} {before / max(after, 1e-9):6.1f}x  {told:16}"
        f"  before: {how}; equal: {equal}",
        flush=True,
    )
    met = None if goal is None else after < goal
    found = {"what": what, "unit": unit, "before": before, "after": after, "how": how, "equal": equal}
    return {**found, "goal": goal, "met": met}


LINES: dict[str, Callable[[Path], list[Row]]] = {
    "validate": validate, "again": again, "bucket": bucket, "report": report, "tokens": tokens, "prune": prune,
    "suggest": suggest, "demo": demo,
}  # fmt: skip


def main() -> None:
    """Measure, print, and write what `--out` asks for."""
    if sys.argv[1:2] == ["--part"]:
        found = globals()[f"part_{sys.argv[2]}"](*sys.argv[3:])
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(LINES))
    parser.add_argument("--out", type=Path, help="write the lines as JSON")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = given.only or list(LINES)
    rows = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as work:
            rows += LINES[name](Path(work))
    if given.out:
        content = {
            "measured": now(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "seeds": 0,
            "versions": versions(
                "torch", "transformers", "tokenizers", "numpy", "optuna", "PyNomadBBO", "matplotlib"
            ),
            "rows": rows,
        }
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
