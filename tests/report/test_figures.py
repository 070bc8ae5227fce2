"""Figures: well formed, with missing values marked, and with an axis that one diverged trial does not stretch."""

import random
import re
import xml.etree.ElementTree as ET

import pytest
import sklearn.ensemble

from retune.report import importance
from retune.report.figures import draw, history
from retune.report.importance import MIN_TRIALS, importances
from retune.report.style import to_svg, write_files
from retune.selection.choice import select
from retune.space import tribes2024
from retune.study import Objective, Select
from tests.report.synthetic import outcome, trial, trials

LOSS = Objective()
SPACE = tribes2024()


def selected(records):
    return select(records, [], LOSS, Select(), [])


def test_all_figures_of_a_whole_study_are_well_formed_svg():
    asked, records, _, selection, _ = outcome()
    drawn = draw(records, asked.search.space, LOSS, selection)
    assert list(drawn) == ["history", "parallel-coordinates", "importance", "loss-curves", "scores"]
    for name, figure in drawn.items():
        text = to_svg(figure, name, 'a "title" & more')
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        assert root.get("aria-label") == 'a "title" & more'
        assert root.get("width") is None  # the page decides
        assert "currentColor" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_same_study_gives_the_same_figure():
    first, again = (to_svg(history(trials(), LOSS), "history") for _ in range(2))
    assert first == again


def test_figures_on_one_page_do_not_refer_into_each_other():
    few = trials(12)
    texts = [to_svg(history(few, LOSS), name) for name in ("one", "two")]
    referred = [set(re.findall(r"url\(#([^)]+)\)", text)) for text in texts]
    assert referred[0]
    assert not referred[0] & referred[1]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [trial(0, "base", {}, 2.9)],
        [trial(0, "base", {}, 2.9), trial(1, "default", SPACE.default(), None)],
        [trial(1, "default", SPACE.default(), 2.0)],
        [trial(k, "search", SPACE.default(), None) for k in range(3)],
        [trial(k, "search", SPACE.decode([k, 0, 0, 0]), 2.0) for k in range(2)],
    ],
)
def test_studies_with_little_in_them_can_be_drawn(records):
    for name, figure in draw(records, SPACE, LOSS, selected(records)).items():
        ET.fromstring(to_svg(figure, name))


def test_one_diverged_trial_does_not_flatten_the_others():
    figure = history(trials(), LOSS)
    low, high = figure.axes[0].get_ylim()
    assert high < 4  # the diverged trial has 11.4
    assert "1 trial lies outside this range" in to_svg(figure, "history")
    assert low < 1.95


def test_failed_trials_are_marked_and_the_best_so_far_only_improves():
    records = trials()
    lines = {line.get_label(): line for line in history(records, LOSS).axes[0].get_lines()}
    assert list(lines["failed"].get_xdata()) == [t.number for t in records if t.status == "failed"]
    best = list(lines["best so far"].get_ydata())
    assert best == sorted(best, reverse=True)
    assert best[-1] == min(t.values["validation_loss"] for t in records if t.role == "search" and t.values)


def test_importance_finds_what_decides():
    chance = random.Random(0)
    records = []
    for number in range(2, 42):
        levels = [chance.randrange(p.levels) for p in SPACE.parameters]
        loss = 2 + abs(levels[3] - 150) / 100 + chance.gauss(0, 0.01)  # only the learning rate
        records.append(trial(number, "search", SPACE.decode(levels), loss))
    found = importances(records, SPACE, LOSS)
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert importances(records, SPACE, LOSS) == found


def test_importance_of_too_few_or_equal_trials_is_not_told():
    few = trials(MIN_TRIALS)[: MIN_TRIALS - 1]
    assert importances(few, SPACE, LOSS) is None
    same = [trial(k, "search", SPACE.default(), 2.0 + k) for k in range(20)]
    assert importances(same, SPACE, LOSS) is None


def test_files_for_mlflow(tmp_path):
    records = trials()
    files = write_files(draw(records, SPACE, LOSS, selected(records)), tmp_path / "figures")
    names = {path.name for path in files}
    assert {"history.png", "history.svg", "importance.png"} <= names
    assert all(path.stat().st_size > 2000 for path in files)
    assert (tmp_path / "figures/history.png").read_bytes().startswith(b"\x89PNG")


def drawn_at_random(count, parameters, seed):
    """Return levels of so many settings, and losses in which parameters work alone and together."""
    chance = random.Random(seed)
    points = [tuple(chance.randrange(5 + 9 * k) for k in range(parameters)) for _ in range(count)]
    return points, [p[1] / 7 + (p[0] - 2) ** 2 * (p[-1] % 3) + chance.gauss(0, 0.1) for p in points]


@pytest.mark.parametrize(("count", "parameters"), [(10, 2), (60, 4)])
def test_importances_are_those_of_optunas_fanova(count, parameters):
    import optuna

    points, losses = drawn_at_random(count, parameters, seed=count)
    levels = tuple(5 + 9 * k for k in range(parameters))
    asked = optuna.create_study()
    space = {f"p{k}": optuna.distributions.IntDistribution(0, n - 1) for k, n in enumerate(levels)}
    for point, loss in zip(points, losses, strict=True):
        params = dict(zip(space, point, strict=True))
        asked.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=loss))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    theirs = optuna.importance.get_param_importances(asked, evaluator=evaluator)
    ours = importance._shares(levels, tuple(zip(points, losses, strict=True)))
    assert ours == pytest.approx([theirs[name] for name in space], rel=1e-9)


def test_importances_are_told_from_all_trials_and_computed_once(monkeypatch):
    fitted = []
    real = sklearn.ensemble.RandomForestRegressor.fit
    monkeypatch.setattr(
        sklearn.ensemble.RandomForestRegressor,
        "fit",
        lambda self, x, y: fitted.append(len(x)) or real(self, x, y),
    )
    chance = random.Random(1)
    points = [[chance.randrange(p.levels) for p in SPACE.parameters] for _ in range(300)]
    records = [
        trial(number, "search", SPACE.decode(levels), 2 + levels[3] / 100)
        for number, levels in enumerate(points, 2)
    ]
    found = importances(records, SPACE, LOSS)
    assert importances(records[::-1], SPACE, LOSS) == found
    assert fitted == [300]
    assert sum(found.values()) == pytest.approx(1.0)
