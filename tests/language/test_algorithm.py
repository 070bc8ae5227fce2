"""`language-bo` with the demo's tiny base: the contract of all algorithms, its parts, and its ablations."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from retune import search, study
from retune.errors import InputError
from retune.language.prompt import opening, written
from retune.search import Objective, Observation
from retune.space import Parameter, Space, tribes2024

ROOT = Path(__file__).parents[2]
TINY = {"model": str(ROOT / "examples/base/tiny"), "candidates": 32}
LOSS = Objective()


def value(space, assignment):
    unit = space.to_unit(space.encode(assignment))
    return sum((u - 0.3) ** 2 * (i + 1) for i, u in enumerate(unit))


def history(space, count=14):
    rng, found = random.Random(0), []
    for number in range(count):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        assignment = space.default() if number == 0 and space.default() else assignment
        status = "failed" if number == 3 else "running" if number == 5 else "completed"
        values = {"validation_loss": value(space, assignment)} if status == "completed" else {}
        found.append(Observation(assignment, status, values, number=number))
    return found


def suggest(space, known, count=4, seed=0, **more):
    return search.explain("language-bo", space, LOSS, {**TINY, "LH_SEARCH": 0, **more}, known, count, seed)


@pytest.mark.slow
def test_new_points_on_the_grid_whatever_the_order_and_in_another_process():
    space, known = tribes2024(), history(tribes2024())
    found = suggest(space, known)
    points = [p.assignment for p in found]
    assert all("language model" in p.origin for p in found)
    assert len({tuple(p.items()) for p in points}) == 4
    assert not {tuple(p.items()) for p in points} & {tuple(e.assignment.items()) for e in known}
    assert all(space.decode(space.encode(p)) == p for p in points)
    shuffled = random.Random(1).sample(known, len(known))
    assert suggest(space, shuffled) == found
    program = (
        "import json, sys; from retune import search; from retune.space import tribes2024\n"
        "given = json.load(sys.stdin); known = [search.Observation(**e) for e in given['known']]\n"
        "print(json.dumps(search.suggest('language-bo', tribes2024(), search.Objective(), given['settings'], known, 4, 0)))"
    )
    given = {"known": [e.__dict__ for e in known], "settings": {**TINY, "LH_SEARCH": 0}}
    answer = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(given), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "99"},
    )  # fmt: skip
    assert json.loads(answer.stdout) == points


def test_the_start_is_the_default_and_a_hypercube_and_needs_no_model():
    found = search.explain("language-bo", tribes2024(), LOSS, {}, [], 3, 0)
    assert found[0].assignment == tribes2024().default()
    assert all(p.origin.startswith("start") for p in found)
    with pytest.raises(InputError, match=r"needs `search.settings.model`"):
        search.suggest("language-bo", tribes2024(), LOSS, {"LH_SEARCH": 0}, history(tribes2024()), 1, 0)
    with pytest.raises(InputError, match="nowhere"):
        search.suggest(
            "language-bo",
            tribes2024(),
            LOSS,
            {"model": "/nowhere", "LH_SEARCH": 0},
            history(tribes2024()),
            1,
            0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{"projection": 0, "token": False}, {"token": False}, {"projection": 0}])
def test_the_ablations_give_other_points(parts):
    """Embedding alone, with projection, with token: each is another model of the same results."""
    space, known = tribes2024(), history(tribes2024())
    assert suggest(space, known, **parts) != suggest(space, known)


@pytest.mark.slow
def test_the_search_finds_the_valley():
    space, known = tribes2024(), []
    while len(known) < 24:
        for assignment in search.suggest("language-bo", space, LOSS, TINY, known, 8, 0):
            known.append(
                Observation(
                    assignment, "completed", {"validation_loss": value(space, assignment)}, number=len(known)
                )
            )
    assert min(e.values["validation_loss"] for e in known) < 0.25, "the start design alone gives about 0.3"


def test_a_small_space_with_names_is_visited_whole_and_failures_are_taken():
    space = Space(parameters=(Parameter(name="x", kind="categorical", values=("a", "b", "c")),))
    known = [
        Observation({"x": "a"}, "completed", {"validation_loss": 1.0}, number=0),
        Observation({"x": "b"}, "failed", number=1),
    ]
    assert [p.assignment for p in suggest(space, known, 1)] == [{"x": "c"}]
    failed = [Observation(e.assignment, "failed", number=e.number) for e in history(tribes2024())]
    assert len(suggest(tribes2024(), failed)) == 4


def test_a_learnable_token_moves_the_embedding_and_gets_a_gradient():
    import torch

    from retune.language.embedding import embedder

    model = embedder(TINY["model"])
    texts = ["The rank is 8.", "A much longer text about a learning rate of 0.001."]
    reading, token = model.read("Read this:", texts), model.start().requires_grad_(True)
    behind = reading.behind(token)
    behind.sum().backward()
    assert token.grad.abs().sum() > 0
    assert torch.equal(behind, reading.behind(token)), "reading behind a text changes nothing"
    alone = model.read("Read this:", texts[:1]).behind(token)
    assert reading.means.shape == behind.shape
    torch.testing.assert_close(alone[0], behind[0], rtol=1e-4, atol=1e-4)  # padding is not seen


def test_a_settings_text_holds_its_values_and_what_they_mean():
    space = tribes2024()
    text = f"{opening(space)} {written(space, {**space.default(), 'alpha': 24})}"
    for part in (
        "low-rank",
        "rank is 8",
        "learning rate is 1e-05",
        "power of -5.00",
        "alpha divided by rank is 3",
    ):
        assert part in text


def test_a_study_reads_with_its_own_base_and_not_under_katib(tmp_path):
    loaded = study.load(ROOT / "examples/01-first-study/study.yaml", ["search.algorithm=language-bo"])
    assert loaded.search_settings["model"] == loaded.model.base
    named = ["search.algorithm=language-bo", "search.settings={model: other}"]
    assert study.load(ROOT / "examples/01-first-study/study.yaml", named).search_settings["model"] == "other"
    with pytest.raises(InputError, match="needs torch"):
        study.load(
            ROOT / "examples/01-first-study/study.yaml",
            ["search.algorithm=language-bo", "engine.kind=katib", "cluster.images.train=i"],
        )
