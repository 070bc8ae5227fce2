"""A combination that a search does not support is refused with a remedy, and a study that follows the remedy is accepted and runs.

Every algorithm under every engine, with each feature that some lack; some algorithms with each pair of features.
"""

import ast
import itertools
import json
import re

import pytest

from retune import search, store, study
from retune.engines.katib import OURS
from retune.engines.katib.algorithms import is_ours
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.steps.check import check, search_problems
from retune.study.names import ALGORITHMS, KATIB_ONLY
from retune.suggestion.experiment import experiment_of, search_of
from tests.conftest import DEMO, ROOT, SMALL
from tests.evaluation.conftest import write_mmlu

RATE = {"name": "learning_rate", "kind": "real", "low": 1e-6, "high": 1e-3, "scale": "log", "default": 1e-5}
RANK = {"name": "rank", "kind": "integer", "low": 1, "high": 64, "default": 8}
DEPENDING = [
    {"name": "variant", "kind": "categorical", "values": ["lora", "dora"], "default": "lora"},
    {"name": "init", "kind": "categorical", "values": ["default", "pissa"], "default": "default", "when": {"variant": "lora"}},
]  # fmt: skip
WANTED = {
    "constraints": {"search.constraints": [{"metric": "adapter_mib", "max": 80}]},
    "several objectives": {"search.objective": [{"metric": "validation_loss"}, {"metric": "seconds"}]},
    "asha": {"search.stopping": "asha"},
    "median": {"search.stopping": "median"},
    "medianstop": {"cluster.katib.early_stopping": "medianstop"},
    "proxy": {"search.proxy": {"share": 0.5}},
    "warm start": {"search.warm_start": ["{before}"]},
    "conditions": {"search.parameters": [RATE, RANK, *DEPENDING]},
    "a range from zero": {"search.parameters": [RATE, {"name": "dropout", "kind": "real", "low": 0, "high": 0.3, "default": 0.1}]},
    "one parameter": {"search.parameters": [RATE]},
    "a benchmark": {"search.objective": {"metric": "mmlu", "goal": "maximize"}, "benchmark.data": {"mmlu": "{mmlu}"}},
}  # fmt: skip
PLACES = [(engine, name) for engine in ("local", "katib") for name in ALGORITHMS]
UNDER = {
    "local": {},
    "katib": {
        "cluster.images.train": "registry.example/retune-train:1", "cluster.gpus": 0,
        "cluster.volumes": [{"claim": "work", "mount": "{tmp}"}, {"claim": "repo", "mount": str(ROOT)}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the studies name: a finished search, questions, and a folder that pods see."""
    folder = tmp_path_factory.mktemp("remedies")
    store.write(str(folder / "before" / "search.json"), b"{}")
    return {"tmp": str(folder), "before": str(folder / "before"), "mmlu": str(write_mmlu(folder / "mmlu"))}


def loaded(content, files):
    """Load the small demo study with `content`, keys and values."""
    text = json.dumps({**UNDER[content["engine.kind"]], "artifacts.uri": "{tmp}/artifacts", **content})
    for name, path in files.items():
        text = text.replace(f"{{{name}}}", path)
    return study.load(DEMO, [*SMALL, *(f"{key}={json.dumps(v)}" for key, v in json.loads(text).items())])


_KNOWN = {}  # many remedies lead to the same study


def refusals(content, files):
    """Return the problems of a study, none if it is accepted."""
    key = json.dumps(content, sort_keys=True)
    if key not in _KNOWN:
        try:
            _KNOWN[key] = list(search_problems(loaded(content, files)))
        except InputError as error:
            _KNOWN[key] = error.problems
    return _KNOWN[key]


def remedies(problem, content):
    """Return the contents that a problem advises in place of `content`."""
    found = []
    for names in re.findall(r"use one of (\[[^]]*\])", problem):
        found += [{**content, "search.algorithm": name} for name in ast.literal_eval(names)]
    for key in re.findall(r"remove `([\w.]+)`", problem):
        key = "search.parameters" if key == "when" else key
        assert key in content, f"{key} was not given"
        found.append({k: v for k, v in content.items() if k != key})
    if "needs `engine.kind: local`" in problem and content["search.algorithm"] not in KATIB_ONLY:
        found.append({**content, "engine.kind": "local"})
    for name in re.findall(r"(?:`local` use|Katib use|engine.kind: katib` use) `([\w-]+)`", problem):
        found.append({**content, "search.stopping" if name == "median" else "search.algorithm": name})
    if "so the objective must be" in problem:
        found.append({**content, "search.objective": {"metric": "validation_loss"}})
    return found


_ASKED = set()


def works(accepted):
    """Ask for the next settings as the engine would, and read them."""
    wanted, space = accepted.search, accepted.search.space
    question = accepted.engine.kind, wanted.model_dump_json()
    if question in _ASKED:
        return
    _ASKED.add(question)
    if accepted.engine.kind == "katib" and not is_ours(wanted.algorithm):
        assert not wanted.constraints, "it would not know of them"
        assert not wanted.further_objectives
        assert not wanted.warm_start
        return
    objective = Objective.of(wanted)
    settings = {"LH_SEARCH": 0} if wanted.algorithm in ("mads-global", "gp", "nomad") else {}
    history = []
    for number in range(6):
        rates = {**space.default(), "learning_rate": 10.0 ** -(3 + number / 2)}
        values = {
            "validation_loss": number % 4,
            "mmlu": 0.3,
            "adapter_mib": 60 + 8 * number,
            "seconds": -number,
        }
        status = "early_stopped" if number == 4 and wanted.stopping else "completed"
        rungs = ((0.25, 5.0),) if wanted.stopping else ()
        warm = bool(wanted.warm_start) and number < 3
        history.append(
            Observation(space.snap(rates), status, values, number=number, warm=warm, source="w" * warm, rungs=rungs)
        )  # fmt: skip
    found = search.suggest(wanted.algorithm, space, objective, settings, history, 3, 0)
    assert len(found) == 3
    message = experiment_of("e", wanted.algorithm, space, objective, settings, 3)
    if wanted.algorithm in OURS:
        assert search_of(message).objective == objective


def followed(content, files, depth=0):
    """Check that a study is accepted and works, or that each remedy of each of its problems solves that problem."""
    problems = refusals(content, files)
    if not problems:
        works(loaded(content, files))
    assert depth < 4, problems
    for problem in problems:
        advised = remedies(problem, content)
        assert advised, f"no remedy: {problem}"
        for other in advised:
            left = refusals(other, files)
            assert problem not in left, "what is advised changes nothing"
            new = [text for text in left if text not in problems and not _same_rule(text, problems)]
            if new and _when_loaded(content, files):
                # Only a study that loads is asked what its algorithm can do
                followed(other, files, depth + 1)
                continue
            assert not new, f"{other} follows {problem!r} and is refused: {new}"
    for other in remedies(problems[0], content)[:1] if problems else []:
        followed(other, files, depth + 1)


def _when_loaded(content, files):
    """Return whether a study is refused while its file is read."""
    try:
        loaded(content, files)
    except InputError:
        return True
    return False


def _same_rule(text, problems):
    """Return whether the same rule was reported before, with other suggested names or for another algorithm."""
    rule = text.partition("but got")[2].partition(":")[0]
    return bool(rule) and any(rule in problem for problem in problems)


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize(("engine", "algorithm"), PLACES)
def test_what_is_refused_names_a_remedy_that_is_accepted(engine, algorithm, name, files):
    followed({"engine.kind": engine, "search.algorithm": algorithm, **WANTED[name]}, files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "algorithm"),
    [("local", "soo"), ("local", "gp"), ("local", "cmaes"), ("katib", "language-bo")],
)
def test_the_remedies_of_two_things_at_once(engine, algorithm, files):
    for one, other in itertools.combinations(WANTED.values(), 2):
        if not one.keys() & other.keys():
            followed({"engine.kind": engine, "search.algorithm": algorithm, **one, **other}, files)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "multivariate-tpe", "bayesianoptimization", "cmaes"])
def test_katibs_own_with_constraints_are_refused(algorithm, files):
    content = {"engine.kind": "katib", "search.algorithm": algorithm, **WANTED["constraints"]}
    [problem] = refusals(content, files)
    assert f"Katib's `{algorithm}` has no constraints, but got some on ['adapter_mib']" in problem
    assert "'retune-random'" in problem
    assert "'random'" not in problem, "under Katib that is Katib's own"


def test_several_objectives_are_refused_before_anything_runs(small, files):
    with pytest.raises(InputError, match="`gp` optimises one metric"):
        check(small("search.algorithm=gp", "search.objective=[{metric: validation_loss}, {metric: seconds}]"))
    for engine, random in (("local", "random"), ("katib", "retune-random")):
        [problem] = refusals(
            {"engine.kind": engine, "search.algorithm": "gp", **WANTED["several objectives"]}, files
        )
        assert f"use one of ['lhs', 'nomad', '{random}']" in problem


def test_medianstop_needs_one_objective_that_is_reported_during_the_training(files):
    content = {"engine.kind": "katib", "search.algorithm": "nomad", **WANTED["medianstop"]}
    assert not refusals({**content, "search.objective": {"metric": "train_loss"}}, files)
    for name in ("several objectives", "a benchmark"):
        [problem] = refusals({**content, **WANTED[name]}, files)
        assert "the objective must be one of ['validation_loss', 'train_loss'] alone, but got" in problem
    settings = {"cluster.katib.early_stopping_settings": {"start_step": 2}}
    assert not refusals({**content, **settings}, files)
    del content["cluster.katib.early_stopping"]
    [problem] = refusals({**content, **settings}, files)
    assert "which is not given" in problem
