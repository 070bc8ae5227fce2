"""The study file: all problems at once, each with key, rule and value; and the meaning of a loaded study."""

import copy
import importlib
import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retune import study
from retune.errors import InputError
from retune.space import tribes2024

VALID = {
    "name": "s",
    "model": {"base": "meta/llama", "revision": "abc"},
    "data": {
        "sources": [
            {"format": "alpaca", "uri": "s3://data/a.json", "share": 0.7},
            {"format": "dolly", "uri": "hf://datasets/o/n/d.jsonl", "share": 0.3},
        ],
        "train": 54000,
        "validation": 13000,
    },
    "promote": {"model": "m"},
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a function that writes a study file into one folder, while we stand in another."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(content=VALID):
        path = tmp_path / "inputs" / "study.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def changed(*changes):
    """Return the valid study with keys set; a value of None deletes the key."""
    content = copy.deepcopy(VALID)
    for key, value in changes:
        node, (*parents, last) = content, key.split(".")
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return content


def problems(*changes):
    with pytest.raises(InputError) as caught:
        study.parse(changed(*changes))
    return caught.value.problems


def test_least_study_has_the_defaults_of_the_paper():
    found = study.parse(VALID)
    training = found.training
    assert (training.batch_size, training.target_modules, training.epochs) == (4, ["q_proj", "v_proj"], 2)
    assert (training.rank, training.alpha, training.dropout, training.learning_rate) == (8, 32, 0.1, 1e-5)
    assert found.search.space == tribes2024()
    assert found.search.space.default() == {"rank": 8, "dropout": 0.1, "alpha": 32, "learning_rate": 1e-5}


def test_a_study_survives_json():
    found = study.parse(VALID)
    assert study.Study.model_validate_json(found.model_dump_json()) == found


WRONG = [
    ("data.trian", 5, "data.trian: unknown key; did you mean 'train'?"),
    ("serach", {}, "serach: unknown key; did you mean 'search'?"),
    ("zzz", 1, "zzz: unknown key; valid keys are ['artifacts', 'benchmark', 'cluster', 'code', 'data', 'engine', 'model', 'name'"),
    ("data.sources.1.shrae", 1, "data.sources.1.shrae: unknown key; did you mean 'share'?"),
    ("search.objective", {"metrik": "x"}, "search.objective.metrik: unknown key; did you mean 'metric'?"),
    ("search.parameters", {"preset": "tribes2024", "replce": []}, "search.parameters.replce: unknown key; did you mean 'replace'?"),
    ("search.parameters", [{"name": "rank", "kind": "integer", "low": 1, "hgh": 8}], "search.parameters.0.hgh: unknown key; did you mean 'high'?"),
    ("promote.gate", {"min_gain": 1}, "promote.gate.min_gain: unknown key; did you mean 'min_gain_over_base'?"),
    ("model", None, "model: this key is required"),
    ("data.train", None, "data.train: this key is required"),
    ("data.sources.0.uri", None, "data.sources.0.uri: this key is required"),
    ("data.sources.0.share", 0.5, "data: the shares must add up to 1, but got 0.8 from [0.5, 0.3]"),
    ("data.sources.0.share", 0, "data.sources.0.share: must be above 0, but got 0"),
    ("data.sources", [], "data.sources: must hold at least one item"),
    ("data.sources", ["a.json"], "data.sources.0: must be a section of keys and values, but got 'a.json'; write {uri: a.json}"),
    ("data.sources.0.format", "alpacca", "data.sources.0.format:"),
    ("data.sources.0.share", None, "data: either every source has a `share` or none, but got [None, 0.3]"),
    ("data.sources.0.uri", "hf://me/data", "data on a hub has the form hf://datasets/<owner>/<name>, with or without a path behind it, but got 'hf://me/data'"),
    ("data.sources.0.columns", {"prompt": "q"}, "`columns` names `prompt` and `completion`, or `messages` alone, or `text` alone, but got ['prompt']"),
    ("data.validation", "all", "data.validation: `train` may be `all`, and `validation` a number, a share or a file"),
    ("data.validation", 1.5, "data.validation: a share must lie between 0 and 1, but got 1.5"),
    ("data.validation", "5%", "but got '5%'; write 0.05"),
    ("data.train", 0, "data.train: a number of records must be above 0, but got 0"),
    ("data.train", 1.0, "data.train: a share must lie between 0 and 1, but got 1.0; write `all`"),
    ("data.train", True, "data.train: must be a number of records, a share such as 0.05 or `all`, but got True"),
    ("model", "hf://datasets/me/data", "is a data set: it belongs under `data.sources`"),
    ("data.max_length", 8, "data.max_length: must be at least 16, but got 8"),
    ("data.train", "many", "data.train: must be a number of records, a share such as 0.05 or `all`, but got 'many'"),
    ("training.epochs", 2.5, "training.epochs: must be a whole number, but got 2.5"),
    ("training.learning_rate", float("inf"), "training.learning_rate: must be a finite number, but got inf"),
    ("training.learning_rate", float("nan"), "training.learning_rate: must be a finite number, but got nan"),
    ("training.target_modules", "q_(proj", "`target_modules` is a list of names, one of ['all-linear', 'attention', 'mlp'] or a regular expression, but 'q_(proj' is none"),
    ("training.target_modules", " ", "`target_modules` must name layers"),
    ("training.dropout", 1.0, "training.dropout: must be below 1, but got 1.0"),
    ("name", "Not A Name", "`name` must be lower-case letters, digits and inner dashes, at most 40 of them, but got 'Not A Name'"),
    ("name", "a" * 41, "at most 40 of them"),
    ("seed", -1, "seed: must be at least 0, but got -1"),
    ("search.algorithm", "nomd", "search.algorithm: unknown name 'nomd'; did you mean 'nomad'?"),
    ("search.parameters", {"preset": "tribes"}, "search.parameters.preset: unknown name 'tribes'; did you mean 'tribes2024'?"),
    ("search.parameters", [{"name": "rnk", "kind": "integer", "low": 1, "high": 8, "default": 4}], "but the search names ['rnk']"),
    ("search.parameters", [{"name": "rank", "kind": "integer", "low": 1, "high": 8}], "every parameter needs a `default`"),
    ("search.parameters", [{"name": "rank", "kind": "integer", "low": 9, "high": 8, "default": 8}], "`low <= high` must hold for 'rank', but got low=9.0, high=8.0"),
    ("search.constraints", [{"metric": "x"}], "search.constraints.0: a constraint has either `max` or `min`, but got neither"),
    ("search.constraints", [{"metric": "x", "max": 1, "min": 0}], "a constraint has either `max` or `min`"),
    ("benchmark.tasks", ["mmlu"], "these have none: ['mmlu']"),
    ("benchmark.tasks", ["humaneval"], "set `benchmark.allow_code_execution: true`"),
    ("benchmark.tasks", ["mmul"], "benchmark.tasks.0: unknown name 'mmul'; did you mean 'mmlu'?"),
    ("select.weights", {"mmlu": 1}, "`select` may name only tasks of `benchmark.tasks` [], but names ['mmlu']"),
    ("select.weights", {"mmul": 1}, "select.weights.mmul: unknown name 'mmul'; did you mean 'mmlu'?"),
    ("promote.model", "a model", "promote.model: must hold only letters, digits, dots, dashes and underscores"),
]  # fmt: skip


def parameter(name, **fields):
    return {"name": name, **fields}


UNTRAINABLE = [
    ([parameter("variant", kind="categorical", values=["lora", "dor"], default="lora")], "did you mean 'dora'?"),
    ([parameter("batch_size", kind="real", low=1, high=8, default=4)], "batch_size: must be a whole number"),
    ([parameter("epochs", kind="integer", low=0, high=8, default=4)], "epochs: must be above 0, but got 0"),
    (
        [
            parameter("variant", kind="categorical", values=["lora", "dora"], default="lora"),
            parameter("init", kind="categorical", values=["default", "olora"], default="default"),
        ],
        "leaves the base's weights alone, but got 'olora' (at variant dora, init olora): remove a value",
    ),
    (
        [
            parameter("init", kind="categorical", values=["default", "orthogonal"], default="default"),
            parameter("rank", kind="integer", low=2, high=64, default=8),
        ],
        "needs an even `rank`",
    ),
    (
        [
            parameter("first_layer", kind="integer", low=0, high=20, default=0),
            parameter("last_layer", kind="integer", low=10, high=31, default=31),
        ],
        "`first_layer <= last_layer` must hold, but got",
    ),
    (
        [
            parameter("alpha", kind="integer", low=1, high=64, default=8),
            parameter("alpha_ratio", kind="real", low=1, high=4, default=2),
        ],
        "`alpha_ratio` is tuned in place of `alpha`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "words"), UNTRAINABLE)
def test_a_setting_that_cannot_be_trained_is_told_before_the_search(parameters, words):
    found = problems(("search.parameters", parameters))
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_one_problem_is_told_with_key_rule_and_value(key, value, words):
    found = problems((key, value))
    assert any(words in problem for problem in found), found


def test_one_mistake_is_one_problem():
    for key, value, words in WRONG:
        if key not in ("benchmark.tasks", "search.parameters", "data.sources"):
            assert len(problems((key, value))) == 1, (key, problems((key, value)))


def test_all_problems_at_once_over_all_sections():
    """Wrong keys, wrong values, and rules that span keys and sections: none hides another."""
    found = problems(
        ("data.trian", 5), ("data.sources.0.share", 0.5), ("name", "BAD"), ("training.epochs", 0),
        ("search.constraints", [{"metric": "x"}]), ("select.weights", {"mmlu": 1}), ("engine.kind", "kubernetes"),
        ("search.parameters", [{"name": "rnk", "kind": "integer", "low": 1, "high": 8}]),
        ("benchmark", {"tasks": ["mmul", "humaneval"], "top": 0}), ("model.base", None),
    )  # fmt: skip
    text = "\n".join(found)
    for words in (
        "did you mean 'train'", "shares must add up to 1", "`name` must be", "training.epochs", "search.constraints.0",
        "`select` may name only tasks", "engine.kind", "the search names ['rnk']", "every parameter needs a `default`",
        "'mmul'", "these have none: ['humaneval']", "allow_code_execution: true", "benchmark.top", "model.base: this key is required",
    ):  # fmt: skip
        assert words in text, (words, text)
    assert len(found) == len(set(found))


def test_a_wrong_task_raises_no_false_alarm_elsewhere():
    """`bbh` is a task of this study, though its neighbour is misspelt."""
    found = problems(
        ("benchmark", {"tasks": ["mmul", "bbh"], "data": {"bbh": "bbh"}}), ("select.weights", {"bbh": 1})
    )
    assert len(found) == 1


@st.composite
def broken(draw):
    """Any content at any one or two places."""
    places = ["name", "model", "model.base", "data", "data.sources", "data.sources.0", "data.sources.0.share", "training",
              "search", "search.parameters", "search.objective", "benchmark", "benchmark.tasks", "benchmark.data", "select",
              "select.weights", "select.order", "promote", "engine", "tracking", "tracking.uri", "artifacts", "artifacts.uri",
              "search.warm_start", "zzz", "data.zzz"]  # fmt: skip
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("mmlu")
    value = st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    content = copy.deepcopy(VALID)
    for place in draw(st.lists(st.sampled_from(places), min_size=1, max_size=2, unique=True)):
        node, (*parents, last) = content, place.split(".")
        for parent in parents:
            if isinstance(node, dict):
                node = node.setdefault(parent, {})
            elif isinstance(node, list) and parent.isdigit() and int(parent) < len(node):
                node = node[int(parent)]
        if isinstance(node, dict):
            node[last] = draw(value)
    return content


def refusal(action):
    """Return the error that an action ends with, or None; any other error is one of ours."""
    try:
        action()
    except InputError as error:
        return error
    return None


@given(broken())
def test_any_content_is_a_study_or_a_list_of_problems(content):
    before = copy.deepcopy(content)
    error = refusal(lambda: study.parse(content))
    if error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)
        assert len(error.problems) == len(set(error.problems))
    assert repr(content) == repr(before)  # looking for further problems changes nothing that is the caller's


def test_a_home_of_nobody_is_told_with_the_file(tmp_path):
    (tmp_path / "s.yaml").write_text("model: ~nobody-of-this-name/base\n")
    error = refusal(lambda: study.load(tmp_path / "s.yaml"))
    assert str(tmp_path / "s.yaml") in str(error)
    assert "'~nobody-of-this-name/base' for `base`" in str(error)


@pytest.mark.slow
@given(broken())
def test_any_file_is_loaded_or_refused_in_words(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    error = refusal(lambda: study.load(path))
    assert error is None or str(path) in str(error)


# Files.


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: the study file cannot be read: No such file"):
        study.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- a\n- b", "a study file is a mapping of keys to values"),
        ("", "a study file is a mapping"),
        ("{1: 2}", "keys should be strings"),
        (b"name: \xff", "must be UTF-8"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("a: &x [*x]", "a: unknown key"),
        ("search: {trials: 1}\nseed: 1\nsearch: {parallel: 2}", "duplicate keys: ['search']"),
        ("data: {train: 5, train: 6}", "duplicate keys: ['train']"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_files_that_are_no_study(file, content, words):
    with pytest.raises(InputError) as caught:
        study.load(file(content))
    assert words in str(caught.value)


def test_merge_keys_are_no_doubles(file):
    text = yaml.safe_dump(VALID) + "training: {<<: {epochs: 1, rank: 4}, rank: 2}\n"
    training = study.load(file(text)).training
    assert (training.epochs, training.rank) == (1, 2)


def test_study_file_is_read_as_utf8_whatever_the_locale(file, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    path = file(yaml.safe_dump(changed(("model.base", "org/mödel")), allow_unicode=True).encode("utf-8"))
    assert study.load(path).model.base == "org/mödel"


# Overrides.


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("search.trials=20", lambda s: s.search.trials == 20),
        ("training.learning_rate=1e-4", lambda s: s.training.learning_rate == 1e-4),
        ("training.learning_rate=.5", lambda s: s.training.learning_rate == 0.5),
        ("model.revision=null", lambda s: s.model.revision is None),
        ("data.sources.1.uri=s3://x/y=z.jsonl", lambda s: s.data.sources[1].uri == "s3://x/y=z.jsonl"),
        ("training.target_modules=[k_proj]", lambda s: s.training.target_modules == ["k_proj"]),
        ("search.objective={metric: loss, goal: maximize}", lambda s: s.search.objective.goal == "maximize"),
        ("search.max_hours=3", lambda s: s.search.max_hours == 3),
        (
            "data={sources: [{format: jsonl, uri: s3://a/b, share: 1}], train: 2, validation: 1}",
            lambda s: s.data.train == 2,
        ),
    ],
)
def test_overrides(file, override, read):
    assert read(study.load(file(), [override]))


def test_later_overrides_win(file):
    assert study.load(file(), ["search.trials=20", "search.trials=30"]).search.trials == 30


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trials", "has the form key.subkey=value, but got 'search.trials'"),
        ("=1", "has the form key.subkey=value"),
        ("search.trails=1", "search.trails: unknown key; did you mean 'trials'?"),
        ("data.sources.2.share=1", "`0 <= index < 2` must hold, but got '2'"),
        ("data.sources.x.share=1", "`0 <= index < 2` must hold, but got 'x'"),
        ("data.sources.-1.share=1", "`0 <= index < 2` must hold, but got '-1'"),
        ("data.sources.5=1", "`0 <= index < 2` must hold, but got '5'"),
        ("name=[1,", "the value is not valid YAML in 'name=[1,'"),
        ("training.target_modules.0.x=1", "'0' must be a section or a list, but is 'q_proj'"),
        ("search.trials=", "search.trials: must be a whole number, but got ''"),
    ],
)
def test_wrong_overrides(file, override, words):
    path = file(changed(("training.target_modules", ["q_proj"])))
    with pytest.raises(InputError) as caught:
        study.load(path, [override])
    assert words in str(caught.value)


# Paths.


def test_inputs_count_from_the_file_and_outputs_from_here(file, tmp_path):
    (tmp_path / "inputs" / "base").mkdir()
    content = changed(
        ("model.base", "base"), ("data.sources.0.uri", "a.json"), ("data.sources.1.uri", "../d.jsonl"),
        ("search.warm_start", ["before", "s3://b/before"]), ("benchmark", {"data": {"mmlu": "mmlu"}}),
        ("artifacts", {"uri": "out"}), ("tracking", {"uri": "sqlite:///ml.db"}),
    )  # fmt: skip
    found = study.load(file(content))
    inputs, here = tmp_path / "inputs", tmp_path / "here"
    assert [s.uri for s in found.data.sources] == [str(inputs / "a.json"), str(tmp_path / "d.jsonl")]
    assert found.model.base == str(inputs / "base")
    assert found.search.warm_start == [str(inputs / "before"), "s3://b/before"]
    assert found.benchmark.data == {"mmlu": str(inputs / "mmlu")}
    assert found.artifacts.uri == str(here / "out")
    assert found.root == str(here / "out" / "s")
    assert found.tracking.uri == f"sqlite:///{here}/ml.db"


def test_defaults_of_outputs_are_absolute_too(file, tmp_path):
    found = study.load(file())
    assert found.artifacts.uri == str(tmp_path / "here" / "artifacts")
    assert found.tracking.uri == f"sqlite:///{tmp_path}/here/mlflow.db"


@pytest.mark.parametrize("uri", ["s3://bucket/a", "hf://datasets/o/n/a", "file:///a/b"])
def test_uris_stay(file, uri):
    written = uri.replace("hf://datasets", "s3://bucket")  # a hub is only read from
    found = study.load(file(changed(("data.sources.0.uri", uri), ("artifacts", {"uri": written}))))
    assert (found.data.sources[0].uri, found.artifacts.uri) == (uri, written)


@pytest.mark.parametrize(
    ("base", "means"),
    [("meta/llama", "meta/llama"), ("./base", "{inputs}/base"), ("../base", "{root}/base"), ("/a/base", "/a/base"),
     ("~/base", "{home}/base"), ("s3://b/base", "s3://b/base")],
)  # fmt: skip
def test_base_is_a_path_if_it_looks_like_one(file, tmp_path, base, means):
    found = study.load(file(changed(("model.base", base))))
    assert found.model.base == means.format(inputs=tmp_path / "inputs", root=tmp_path, home=Path.home())


def test_tracking_servers_and_absolute_databases_stay(file):
    for uri in ("http://mlflow:5000", "sqlite:////a/ml.db"):
        assert study.load(file(changed(("tracking", {"uri": uri})))).tracking.uri == uri


# What decides a result.


def test_digests_change_with_what_decides_and_with_nothing_else():
    def settings(*changes, data="d", base="b"):
        return study.parse(changed(*changes)).settings_digest(data, base)

    def search(*changes):
        return study.parse(changed(*changes)).search_digest("d", "b")

    assert settings() == settings(("search.trials", 5), ("training.checkpoint_minutes", 5), ("name", "other"))
    ours = [
        settings(), settings(("seed", 1)), settings(("training.epochs", 1)), settings(("data.max_length", 99)),
        settings(("data.loss_on", "all")), settings(("model.dtype", "float32")), settings(data="e"), settings(base="c"), settings(("code", "c0ffee")),
    ]  # fmt: skip
    assert len(set(ours)) == len(ours)
    assert search() == search(("search.trials", 5), ("search.parallel", 3), ("search.max_hours", 1))
    theirs = [
        search(), search(("search.algorithm", "tpe")), search(("search.settings", {"x": 1})), search(("seed", 1)),
        search(("search.parameters", {"preset": "davouse2024"})), search(("search.objective.metric", "train_loss")),
    ]  # fmt: skip
    assert len(set(theirs)) == len(theirs)
    spelled_out = [p.model_dump() for p in tribes2024().parameters]
    assert search() == search(("search.parameters", spelled_out))


def test_one_objective_or_a_list_of_which_the_first_ranks():
    two = [{"metric": "validation_loss"}, {"metric": "adapter_mib", "goal": "minimize"}]
    several = study.parse(changed(("search.objective", two)))
    assert several.search.objective.metric == "validation_loss"
    assert [objective.metric for objective in several.search.objectives] == ["validation_loss", "adapter_mib"]
    assert study.parse(several.model_dump(mode="json")) == several
    one, listed = (study.parse(changed(("search.objective", given))) for given in (two[0], two[:1]))
    assert one == listed == study.parse(VALID)
    assert one.search_digest("d", "b") != several.search_digest("d", "b")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "`objective` holds one to three metrics, but got 0"),
        ([{"metric": name} for name in "abcd"], "one to three metrics, but got 4"),
        ([{"metric": "a"}, {"metric": "a"}], "must differ, but got ['a', 'a']"),
        (
            [{"metric": "a"}, {"metric": "b", "goal": "up"}],
            "search.objective.1.goal: unknown name 'up'; there are ['minimize', 'maximize']",
        ),
    ],
    ids=["none", "four", "twice", "goal"],
)
def test_wrong_lists_of_objectives_are_refused_where_they_stand(given, words):
    (problem,) = problems(("search.objective", given))
    assert words in problem


def test_preset_with_a_replaced_and_an_added_parameter():
    rank = {"name": "rank", "kind": "discrete", "values": [2, 4], "default": 2}
    decay = {
        "name": "weight_decay",
        "kind": "real",
        "low": 1e-5,
        "high": 0.1,
        "scale": "log",
        "default": 0.01,
    }
    space = study.parse(
        changed(("search.parameters", {"preset": "tribes2024", "replace": [rank, decay]}))
    ).search.space
    assert space.names == ["rank", "dropout", "alpha", "learning_rate", "weight_decay"]
    assert space["rank"].values == (2, 4)


# The JSON Schema.


def test_json_schema_agrees_with_the_model():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(study.json_schema()))
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    checker.validate(VALID)
    checker.validate(json.loads(study.parse(VALID).model_dump_json()))
    for key, value in (
        ("data.trian", 5),
        ("model", None),
        ("training.epochs", 0),
        ("search.algorithm", "nomd"),
        ("data.train", "x"),
    ):
        assert not checker.is_valid(changed((key, value))), key


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.parent.glob("examples/**/study*.yaml")), ids=str
)
def test_examples_are_valid(path):
    if "plugin" in str(path):
        pytest.skip("its names are those of a package: tests/examples/test_plugin.py installs it")
    study.load(path)
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), study.json_schema())


def test_there_are_examples():
    assert len(list(Path(__file__).parent.parent.glob("examples/**/study*.yaml"))) >= 2


def test_an_override_of_a_text_is_taken_as_it_is_typed():
    for text in ("1234567", "12e4567", "0123", "2026-01-01"):
        assert study.load(FIRST, [f"code={text}"]).code == text
    assert study.load(FIRST, ["code=null"]).code is None
    assert study.load(FIRST, ["training.learning_rate=1e-4"]).training.learning_rate == 1e-4


def test_reading_a_study_changes_no_yaml_for_others():
    assert yaml.safe_load("a: 1e-4") == {"a": "1e-4"}  # as YAML 1.1 has it, whatever we take it for
    assert study.load(FIRST, ["training.learning_rate=1e-4"])
    assert yaml.safe_load("a: 1e-4") == {"a": "1e-4"}


FIRST = Path(__file__).parent.parent / "examples/01-first-study/study.yaml"


def test_what_was_asked_of_a_space_does_not_change_the_study():
    """The folder of a search is named by a digest of the study, which another process reads as JSON."""
    content = {
        "name": "x",
        "model": "base",
        "promote": {"model": "x"},
        "data": {"sources": [{"format": "jsonl", "uri": "a.jsonl"}], "train": 4, "validation": 2},
        "search": {"parameters": [{"name": "rank", "kind": "discrete", "values": [2, 4, 8], "default": 4},
                                  {"name": "learning_rate", "kind": "real", "low": 1e-5, "high": 1e-3, "scale": "log", "default": 1e-4}]},
    }  # fmt: skip
    made = study.parse(content)
    before = made.model_dump_json(), made.search_digest("data", "base")
    for parameter in made.search.space.parameters:
        for level in range(parameter.levels):
            assert parameter.level(parameter.value(level)) == level
    assert (made.model_dump_json(), made.search_digest("data", "base")) == before
    again = study.parse(json.loads(made.model_dump_json()))
    assert again.search_digest("data", "base") == before[1]


PIECES = [
    *"ab19-.:, \n[]{}#&*|>'\"%@`=<_", "a: ", "- ", "\n  ", "1e-4", "true", "null", "&x ", "*x", "<<: ", "\u00e9", "\u2028", "\r\n", "---",
    "...", "2020-01-01", "1:30", "0x1f", "!!int ", "\t", "? ",
]  # fmt: skip


def test_both_of_pyyamls_loaders_read_a_file_alike(monkeypatch):
    """The one in C, which is not built everywhere, and the one in Python."""
    load = importlib.import_module("retune.study.load")  # the package has a function of that name
    dice = random.Random(0)
    texts = ["".join(dice.choices(PIECES, k=dice.randint(1, 12))) for _ in range(1000)]
    texts += [yaml.safe_dump(VALID), "[" * 200_000, "- " * 200_000, "a: [" * 200_000, "\ud800"]

    def read(text):
        try:
            return load._read(text, "study.yaml")
        except ValueError as error:
            return str(error)

    fast = [read(text) for text in texts]
    monkeypatch.setattr(load, "_FAST_LEVELS", 0)
    assert [repr(content) for content in fast] == [repr(read(text)) for text in texts]
    assert sum(not isinstance(content, str) for content in fast) > 100, "too few of them mean anything"
