"""Mistakes in study files: each is answered by one line that says what is right.

Every answer names the key, the rule or the valid names, and what to write. None mentions pydantic's types or repeats a
consequence of another problem, and no study that cannot run counts as valid.
"""

import copy
import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from click.testing import CliRunner

from retune import models, study
from retune.cli import cli
from retune.data import mixing, truncation
from retune.errors import InputError
from retune.steps.check import check

EXAMPLES = Path(__file__).parents[1] / "examples"
GONE = "DELETED"
VALID = {
    "name": "s",
    "model": {"base": str(EXAMPLES / "base/tiny")},
    "data": {
        "sources": [
            {"format": "alpaca", "uri": str(EXAMPLES / "data/alpaca-demo.json"), "share": 0.7},
            {"format": "dolly", "uri": str(EXAMPLES / "data/dolly-demo.jsonl"), "share": 0.3},
        ],
        "train": 40, "validation": 10, "max_length": 160,
    },
    "search": {"trials": 3},
    "promote": {"model": "m"},
}  # fmt: skip
PYDANTIC = (
    "valid dictionary",
    "instance of",
    "nput should",
    "unable to parse",
    "fractional part",
    "pydantic",
    "type=",
    "None",
)


def changed(key, value):
    content = copy.deepcopy(VALID)
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    if value == GONE:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return content


LOCAL = "['nomad', 'mads-global', 'language-bo', 'tpe', 'random', 'lhs', 'gp', 'soo', 'bamsoo', 'retune-tpe', 'retune-random']"

# What the file itself says: key, value, answer.
IN_THE_FILE = [
    ("training.lr", 0.1, "training.lr: unknown key; did you mean 'learning_rate'?"),
    ("training.learning_rat", 0.1, "training.learning_rat: unknown key; did you mean 'learning_rate'?"),
    ("training.lora_r", 8, "training.lora_r: unknown key; did you mean 'rank'?"),
    ("training.max_length", 512, "training.max_length: unknown key; did you mean 'data.max_length'?"),
    ("training.seed", 1, "training.seed: unknown key; 'seed' belongs to the top of the file"),
    ("search.n_trials", 5, "search.n_trials: unknown key; did you mean 'trials'?"),
    ("model.bse", "x", "model.bse: unknown key; did you mean 'base'?"),
    ("model.name_or_path", "x", "model.name_or_path: unknown key; did you mean 'base'?"),
    ("promote.gate.min_gain", 0.1, "promote.gate.min_gain: unknown key; did you mean 'min_gain_over_base'?"),
    ("data.sources.0.path", "x", "data.sources.0.path: unknown key; did you mean 'uri'?"),
    ("search.algorithm", "nomadd", "search.algorithm: unknown name 'nomadd'; did you mean 'nomad'?"),
    ("search.algorithm", "hyperband", f"search.algorithm: unknown name 'hyperband'; there are {LOCAL}"),
    ("search.algorithm", "optuna", "search.algorithm: unknown name 'optuna'; did you mean 'tpe'?"),
    ("engine.kind", "kubernetes", "engine.kind: unknown name 'kubernetes'; there are ['local', 'katib']"),
    ("engine", "local", "engine: must be a section of keys and values, but got 'local'; write {kind: local}"),
    ("promote", "m", "promote: must be a section of keys and values, but got 'm'; write {model: m}"),
    ("tracking", "http://x", "tracking: must be a section of keys and values, but got 'http://x'; write {uri: http://x}"),
    ("artifacts", "./x", "artifacts: must be a section of keys and values, but got './x'; write {uri: ./x}"),
    ("data.sources.0", "a.json", "data.sources.0: must be a section of keys and values, but got 'a.json'; write {uri: a.json}"),
    ("search.parameters", "tribes2024", "search.parameters: must be a section of keys and values, but got 'tribes2024'; write {preset: tribes2024}"),
    ("search", None, "search: must be a section of keys and values, but got nothing; write keys under it, or leave it out where it is not required"),
    ("training", [1], "training: must be a section of keys and values, but got [1]"),
    ("data.sources", "a.json", "data.sources: must be a list, but got 'a.json'; write [a.json]"),
    ("data.sources", {"uri": "a"}, "data.sources: must be a list, but got {'uri': 'a'}; put a dash before each item, or brackets around them"),
    ("benchmark.tasks", "mmlu", "benchmark.tasks: must be a list, but got 'mmlu'; write [mmlu]"),
    ("data.sources.0.share", 70, "data.sources.0.share: must be at most 1, but got 70; 70 percent is 0.7"),
    ("data.sources.0.share", "70%", "data.sources.0.share: must be a number, but got '70%'; write 0.7"),
    ("data.sources.0.format", "alpacca", "data.sources.0.format: unknown name 'alpacca'; did you mean 'alpaca'?"),
    ("data.sources.0.uri", "gs://x/y.json", "data.sources.0: `uri` is a path, or begins with s3://, hf:// or file://, but got 'gs://x/y.json'"),
    ("data.loss_on", "answer", "data.loss_on: unknown name 'answer'; there are ['completion', 'all']"),
    ("model.base", GONE, "model.base: this key is required"),
    ("model.base", 5, 'model.base: must be text, but got 5; write it in quotes: "5"'),
    ("model.dtype", "fp16", "model.dtype: unknown name 'fp16'; did you mean 'float16'?"),
    ("name", "My Study", "`name` must be lower-case letters, digits and inner dashes, at most 40 of them, but got 'My Study'"),
    ("seed", -1, "seed: must be at least 0, but got -1"),
    ("seed", "abc", "seed: must be a whole number, but got 'abc'"),
    ("search.trials", 0, "search.trials: must be above 0, but got 0"),
    ("search.trials", "ten", "search.trials: must be a whole number, but got 'ten'"),
    ("search.trials", 2.5, "search.trials: must be a whole number, but got 2.5"),
    ("search.constraints", [{"metric": "seconds", "max": "ten"}], "search.constraints.0.max: must be a number, but got 'ten'"),
    ("search.constraints", [{"metric": "seconds"}], "search.constraints.0: a constraint has either `max` or `min`, but got neither"),
    ("search.parameters", [{"name": "lr", "kind": "real", "low": 1e-6, "high": 0.1, "default": 1e-4}],
     "search: a trial can tune ['rank', 'alpha', 'alpha_ratio', 'dropout', 'learning_rate', 'weight_decay', 'lora_plus_ratio', 'beta1', 'beta2', 'max_grad_norm', 'epochs', 'batch_size', 'gradient_accumulation_steps', 'schedule', 'warmup_share', 'target_modules', 'first_layer', 'last_layer', 'variant', 'init'], but the search names ['lr']; did you mean ['learning_rate']?"),
    ("search.parameters", [{"name": "rank", "kind": "int", "low": 1, "high": 8, "default": 4}], "search.parameters.0.kind: unknown name 'int'; did you mean 'integer'?"),
    ("training.schedule", "cosin", "training.schedule: unknown name 'cosin'; did you mean 'cosine'?"),
    ("training.dropout", 1, "training.dropout: must be below 1, but got 1"),
    ("promote.model", "my model", "promote.model: must hold only letters, digits, dots, dashes and underscores, but got 'my model'"),
    ("benchmark.tasks", ["mmul"], "benchmark.tasks.0: unknown name 'mmul'; did you mean 'mmlu'?"),
    ("artifacts.uri", "gs://b/x", "artifacts.uri: must be a folder or s3://bucket/prefix, but got 'gs://b/x': gs:// is not known"),
    ("artifacts.uri", "hf://me/x", "artifacts.uri: must be a folder or s3://bucket/prefix, but got 'hf://me/x': a hub is only read from"),
    ("artifacts.uri", "s3://", "artifacts.uri: must name a bucket or folder, but got 's3://'"),
    ("search.trials", True, "search.trials: must be a whole number, but got True"),
    ("training.learning_rate", "0,001", "training.learning_rate: must be a number, but got '0,001'; write 0.001"),
    ("search.max_hours", "8h", "search.max_hours: must be a number, but got '8h'; write 8"),
    ("training.checkpoint_minutes", "10 min", "training.checkpoint_minutes: must be a number, but got '10 min'; write 10"),
    ("search.max_hours", "8m", "search.max_hours: must be a number, but got '8m'"),
    ("name", True, "name: must be text, but got True; yes, no, on, off, true and false are truth values: write the word in quotes"),
    ("search.parallel", 0, "search.parallel: must be above 0, but got 0"),
    ("search.parallel", "all", "search.parallel: must be a whole number or 'auto', but got 'all'"),
    ("engine", {"pack": "many"}, "engine.pack: must be a whole number or 'auto', but got 'many'"),
    ("training.target_modules", [], "training.target_modules: must hold at least one item, but got []"),
    ("training.target_modules", 5, "training.target_modules: must be a list or text, but got 5"),
    ("cluster.env", {"HF_X": ["a"]}, "cluster.env.HF_X: must be text, but got ['a']"),
    ("benchmark.tasks", None, "benchmark.tasks: must be a list, but got nothing; write [] for none"),
    ("benchmark.tasks", ["MMLU"], "benchmark.tasks.0: unknown name 'MMLU'; did you mean 'mmlu'?"),
    ("search.algorithm", "NOMAD", "search.algorithm: unknown name 'NOMAD'; did you mean 'nomad'?"),
    ("data.maxLength", 3, "data.maxLength: unknown key; did you mean 'max_length'?"),
    ("model", {"BASE": "x"}, "model.BASE: unknown key; did you mean 'base'?"),
    ("study", {"model": "x", "data": {}}, "study: unknown key; move what is below it to the top of the file"),
    ("search.parameters", [{"name": "rank", "kind": "discrete", "values": "1,2,4", "default": 4}],
     "search.parameters.0.values: must be a list, but got '1,2,4'; write [1,2,4]"),
    ("model.base", "https://huggingface.co/a/b", "model: `base` is a folder, s3://…, hf://… or a hub's model, but got 'https://huggingface.co/a/b'; write a/b"),
    ("model.base", "", "model: `base` must name a folder, s3://… or a model of a hub, but is empty"),
    ("data.sources.0.uri", "", "data.sources.0: `uri` must name a file or folder, but is empty"),
    ("data.validation", {"uri": "a.json", "frmat": "alpaca"}, "data.validation.frmat: unknown key; did you mean 'format'?"),
    ("tracking.uri", "localhost:5000", "tracking.uri: must be the address of an MLflow server (https://…) or a database (sqlite:///…), but got 'localhost:5000'; write http://localhost:5000"),
    ("tracking.uri", "sqlite://mlflow.db", "tracking.uri: must be the address of an MLflow server (https://…) or a database (sqlite:///…), but got 'sqlite://mlflow.db'; write sqlite:///mlflow.db"),
    ("tracking.uri", "htp://x", "tracking.uri: must be the address of an MLflow server (https://…) or a database (sqlite:///…), but got 'htp://x'; did you mean http://?"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "answer"), IN_THE_FILE)
def test_the_file_itself(key, value, answer):
    with pytest.raises(InputError) as caught:
        study.parse(changed(key, value))
    assert caught.value.problems == [answer]
    assert not [word for word in PYDANTIC if word in answer]


def test_algorithms_are_those_of_the_engine():
    content = changed("search.algorithm", "cmaess")
    for kind, answer in [("local", f"there are {LOCAL}"), ("katib", "did you mean 'cmaes'?")]:
        content["engine"] = {"kind": kind}
        with pytest.raises(InputError, match=r"unknown name 'cmaess'") as caught:
            study.parse(content)
        assert answer in str(caught.value)


# What it points to.
POINTED_TO = [
    ("search.objective", {"metric": "val_loss"}, "search.objective.metric: unknown metric 'val_loss'; did you mean 'validation_loss'?"),
    ("search.objective", [{"metric": "validation_loss"}, {"metric": "mmlu"}], "the search scores ['mmlu'] in every trial, so each needs its file or folder under `benchmark.data`"),
    ("search.constraints", [{"metric": "adapter_mb", "max": 9}], "search.constraints.0.metric: unknown metric 'adapter_mb'; did you mean 'adapter_mib'?"),
    ("data.max_length", 100000, "`data.max_length <= 2048` must hold, the context of the base, but got 100000"),
    ("data.max_length", 16, "`max_length` is 16 tokens, and the longest prompt alone has"),
    ("data.sources.0.uri", "/no/such.json", "data.sources: /no/such.json: the file must exist, but there is none"),
    ("data.sources.0.uri", "$HOME/a.json", "variables such as $HOME are not replaced"),
    ("data.sources.0.uri", str(EXAMPLES / "data/*.json"), "a path names one file or folder, no pattern"),
    ("data.sources.0.uri", str(EXAMPLES / "data/alpaca_demo.json"), f"did you mean {str(EXAMPLES / 'data/alpaca-demo.json')!r}?"),
    ("data.prompt", "chat", "the base has no chat template, which `prompt: chat` needs; write `prompt: alpaca`"),
    ("data.prompt", "/x/chatt", "cannot be read; did you mean 'chat'?"),
    ("data.train", 100000, "the most that these shares allow is data.train="),
    ("training.target_modules", ["q_prj"], "did you mean 'q_proj' for 'q_prj'?"),
    ("training.target_modules", "all_linear", "did you mean all-linear?"),
    ("model.base", "/no/such/folder", "a base model folder holds config.json, but /no/such/folder does not"),
    ("search.settings", {"seeds": 3}, "unknown setting 'seeds'; did you mean 'seed'?"),
    ("search.warm_start", ["/nowhere"], "there is no search.json in /nowhere"),
    ("artifacts.uri", "s3://bucket/x", "artifacts.uri: s3://bucket/x/s: Unable to locate credentials; set AWS_ACCESS_KEY_ID"),
    ("artifacts.uri", "/dev/null/x", "artifacts.uri: /dev/null/x must be a folder, but /dev/null is a file"),
    ("tracking.uri", "http://127.0.0.1:9", "tracking.uri: the MLflow server http://127.0.0.1:9 does not answer (["),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value", "answer"), POINTED_TO)
def test_what_it_points_to(key, value, answer, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError) as caught:
        check(study.parse(changed(key, value)), tracking=True)
    assert any(answer in problem for problem in caught.value.problems), caught.value.problems


@pytest.fixture
def server():
    """Yield a function that starts a web server which answers everything with one status and text."""
    started = []

    def start(status, text):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *words):
                pass

        found = HTTPServer(("127.0.0.1", 0), Answer)
        started.append(found)
        Thread(target=found.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{found.server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "text", "run", "validate"),
    [
        (200, "{}", None, None),
        (200, "<html>", "a page for browsers", "a page for browsers"),
        (401, "", "requires a login", "requires a login"),
        (404, "", "not as an MLflow server does", "not as an MLflow server does|it is not an MLflow server"),
        (503, "", None, "answers with an error"),
    ],
)
def test_the_tracking_server_is_asked_by_validate_and_refused_by_a_run_where_waiting_is_no_use(
    server, status, text, run, validate
):
    loaded = study.parse(changed("tracking", {"uri": server(status, text)}))
    for answer, tracking in ((run, False), (validate, True)):
        if answer is None:
            check(loaded, tracking=tracking)
        else:
            with pytest.raises(InputError, match=answer):
                check(loaded, tracking=tracking)


def test_offline_leaves_the_network_out_and_says_so(tmp_path):
    content = changed("artifacts", {"uri": "s3://bucket/x"})
    content["tracking"] = {"uri": "http://127.0.0.1:9"}
    content["model"] = {"base": "owner/name"}
    content["data"]["sources"][0]["uri"] = "hf://datasets/owner/name"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    shown = CliRunner().invoke(
        cli, ["validate", str(tmp_path / "s.yaml"), "--offline"], catch_exceptions=False
    )
    assert shown.exit_code == 0
    for uri in ("owner/name", "hf://datasets/owner/name", "s3://bucket/x", "http://127.0.0.1:9"):
        assert uri in shown.output.partition("not checked (--offline):")[2]


def test_validate_says_what_the_data_was_taken_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(changed("data.sources.0.format", "auto")))
    shown = CliRunner().invoke(cli, ["validate", "s.yaml"], catch_exceptions=False).output
    assert "alpaca-demo.json: 1,806 records, read as alpaca" in shown
    assert "40 + 10 records; prompt: Alpaca's template" in shown


def test_validate_counts_what_is_dropped_and_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]
    rows += [
        rows[0],
        rows[1],
        {"prompt": "x", "completion": " "},
        {"prompt": "word " * 300, "completion": "y"},
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("held.jsonl").write_text(json.dumps(rows[2]) + "\n")
    content = changed("data.sources", [{"uri": "a.jsonl"}])
    content["data"] |= {"train": "all", "validation": "held.jsonl"}
    Path("s.yaml").write_text(yaml.safe_dump(content))
    said = CliRunner().invoke(cli, ["validate", "s.yaml"], catch_exceptions=False).output
    assert (
        "a.jsonl: 24 records, read as prompt-completion; dropped: 1 empty, 2 duplicate, 1 with a prompt of the validation "
        "file, 1 too long (the prompt alone fills `max_length`, 160 tokens)\n"
    ) in said
    assert "19 + 1 records; prompt: Alpaca's template\n" in said
    assert "about 1 minute on the" in said


def test_validate_tells_what_is_cut_and_what_keeps_it(tmp_path, monkeypatch):
    """The demo's tokenizer gives a word of these one token; Alpaca's template and the end of text come on top."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {n}", "completion": "a " * (20 if n % 10 else 200)} for n in range(100)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = changed("data.sources", [{"uri": "a.jsonl"}])
    content["data"] |= {"train": "all", "validation": 10}

    def said(max_length):
        content["data"]["max_length"] = max_length
        Path("s.yaml").write_text(yaml.safe_dump(content))
        return CliRunner().invoke(cli, ["validate", "s.yaml"], catch_exceptions=False).output

    message = said(160)
    found = re.search(
        r"10 of 100 records are cut at `max_length`, 160 tokens, and lose about (\d+) % of all tokens; "
        r"`data.max_length: (\d+)` keeps them whole\n", message
    )  # fmt: skip
    assert found, message
    longest = int(found[2])
    read = mixing.mix(
        study.parse(content).data, 0, models.load_tokenizer(study.parse(content).model), str(tmp_path / "mix")
    )
    totals = [part.lengths["total"] for part in read.splits.values()]
    assert longest == max(total.max for total in totals)
    whole = sum(total.mean * part.records for total, part in zip(totals, read.splits.values(), strict=True))
    kept = sum(part.tokens for part in read.splits.values())
    assert int(found[1]) == pytest.approx(100 * (whole - kept) / whole, abs=1)
    assert "are cut" not in said(longest)
    assert "are cut" in said(longest - 1)


def test_what_the_base_cannot_read_is_not_proposed():
    lengths = [100] * 99 + [5000]
    for max_length, context, words in [
        (512, 2048, "the longest has 5,000, but the base reads at most 2,048: `data.max_length: 2048` keeps most"),
        (2048, 2048, "the longest has 5,000, and the base reads no more than 2,048"),
        (512, None, "`data.max_length: 5000` keeps them whole"),
    ]:  # fmt: skip
        assert truncation._remedy(lengths, max_length, context) == words
    long = [100] * 50 + [600] * 49 + [5000]
    assert (
        truncation._remedy(long, 512, None)
        == "`data.max_length: 600` keeps 99 % of the records whole, 5000 all"
    )


def test_plain_text_is_asked_by_no_template(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"Line {n} of a text.\n" for n in range(20)))
    content = changed("data.sources", [{"uri": "a.txt"}])
    content["data"] |= {"train": "all", "validation": 2}
    Path("s.yaml").write_text(yaml.safe_dump(content))
    said = CliRunner().invoke(cli, ["validate", "s.yaml"], catch_exceptions=False).output
    assert "18 + 2 records; prompt: none, since plain text has none\n" in said


def test_an_error_in_the_yaml_names_the_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmodel: [x\n")
    with pytest.raises(InputError) as caught:
        study.load(path)
    assert f'in "{path}", line 3' in str(caught.value)
    assert "unicode string" not in str(caught.value)
    for text, words in [
        ("a: 1\n\tb: 2\n", "indent with spaces: YAML does not allow tabs there"),
        ("a: 1\nb:\u00a02\nc: 3\n", "line 2 holds a no-break space"),
        ("a: 1\n---\nb: 2\n", "a file holds one study"),
        ("a: @x\n", "needs quotes around it"),
        ("a: b: c\n", "a value that holds a colon and a space needs quotes"),
        ("", "is empty"),
        ("- a\n", "is list"),
        ("a: 1\na: 2\n", "duplicate keys: ['a']"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=r"study file is a mapping|not valid YAML") as caught:
            study.load(path)
        assert words in str(caught.value)


@pytest.mark.parametrize(("encoding", "words"), [("utf-16", "UTF-16"), ("latin-1", "byte 10 is 0xe9")])
def test_another_encoding_is_named(tmp_path, encoding, words):
    path = tmp_path / "s.yaml"
    path.write_bytes("name: s # é\n".encode(encoding))
    with pytest.raises(InputError, match=r"a study file must be UTF-8, but .*; save it as UTF-8") as caught:
        study.load(path)
    assert words in str(caught.value)


def test_what_looks_odd_and_is_right_is_taken(tmp_path):
    """A byte order mark, Windows' line ends, JSON, and a number in quotes."""
    path, text = tmp_path / "s.yaml", yaml.safe_dump(VALID)
    for content in (
        b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode(), json.dumps(VALID).encode(),
        text.replace("trials: 3", "trials: '3'").encode(),
    ):  # fmt: skip
        path.write_bytes(content)
        assert study.load(path).search.trials == 3


def test_parameters_by_name_are_told_their_form():
    with pytest.raises(InputError) as caught:
        study.parse(changed("search.parameters", {"rank": {"low": 1, "high": 8}}))
    (problem,) = caught.value.problems
    assert problem.startswith("search.parameters: must be {preset: …} or a list of parameters")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    link = tmp_path / "data.json"
    link.symlink_to(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"it is a link to .*gone.json"):
        check(study.parse(changed("data.sources.0.uri", str(link))))
