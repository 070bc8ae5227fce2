"""Mistakes that people make in the words of commands, and what they are told: the right answers, a line each.

Mistakes in study files are in tests/test_mistakes.py. None is answered by a stack trace, and none after work was done.
"""

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli import cli
from retune.errors import RetuneError

EXAMPLES = Path(__file__).parents[2] / "examples"
BASE, MMLU = EXAMPLES / "base/tiny", EXAMPLES / "data/benchmarks/mmlu"
HUMANEVAL = EXAMPLES / "data/benchmarks/humaneval.jsonl.gz"
STUDY = f"""\
name: s
model: {BASE}
data: {{sources: [{{uri: {EXAMPLES}/data/alpaca-demo.json}}], train: 40, validation: 10}}
search: {{trials: 3}}
promote: {{model: m}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a study's file, a study's folder without a record, a plain file and an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "MLFLOW_TRACKING_URI",
        "LLAMA_CPP",
    ):
        monkeypatch.delenv(name, raising=False)
    Path("study.yaml").write_text(STUDY)
    Path("q.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n')
    Path("rows.csv").write_text("a,b\n")
    Path("rows.parquet").write_bytes(b"PAR1\xff\xfe\x00")
    Path("file").touch()
    Path("empty").mkdir()
    trial = Path("artifacts/s/search-1/trials/trial-001/adapter")
    trial.mkdir(parents=True)
    (trial / "adapter_config.json").write_text("{}")
    Path("artifacts/s/search-1/study.json").write_text(json.dumps({"name": "s"}))
    return tmp_path


def told(*words):
    """Return what a command says about a mistake; it must be one that is told without a stack trace."""
    done = CliRunner().invoke(cli, list(words), prog_name="retune")
    assert done.exit_code != 0, done.output
    if isinstance(done.exception, SystemExit):  # click's own
        return done.output
    assert isinstance(done.exception, RetuneError), done.exc_info
    return str(done.exception)


@pytest.mark.parametrize(("words", "answer"), [
    ("runn", "No such command 'runn'; did you mean 'run'?"),
    ("xyz", "No such command 'xyz'; `retune --help` lists them"),
    ("run study.yaml --trials 3", "keys of the study are written without dashes: search.trials=3"),
    ("run study.yaml --max-hours=2", "without dashes: search.max_hours=2"),
    ("validate study.yaml --lr", "without dashes: training.learning_rate=VALUE"),
    ("mix study.yaml --uri x --json", "without dashes: tracking.uri=x or artifacts.uri=x"),
    ("trial study.yaml --data empty --out file --search.trials 3", "without dashes: search.trials=3"),
    ("ci run study.yaml --seed 3", "without dashes: seed=3"),
    ("render experiment study.yaml --name x", "without dashes: name=x"),
    ("run study.yaml --nosuch 3", "No such option '--nosuch'"),
    ("run studi.yaml", "did you mean 'study.yaml'?"),
    ("delete", "No such command 'delete'; `retune --help` lists them"),
    ("run search.trials=2 study.yaml", "the study file comes first: study.yaml search.trials=2"),
    ("run q.jsonl", "q.jsonl: this looks like data: `retune init --data q.jsonl` writes a study for it"),
    ("run rows.csv", "but this one is str: 'a,b'; this looks like data: `retune init --data rows.csv` writes a study for it"),
    ("validate rows.parquet", "this looks like data: `retune init --data rows.parquet` writes a study for it"),
    ("run empty", "Is a directory; name a study's YAML file (`retune init` writes one)"),
    ("run .", "Is a directory; it holds ['study.yaml']"),
    ("run study.yaml artifacts.uri=file", "file must be a folder, but"),
    ("run study.yaml tracking.uri=./mlruns", "since MLflow no longer keeps runs in folders, but got './mlruns'; write sqlite:///mlflow.db"),
    ("mix study.yaml --out file/x", "--out: file/x must be a folder, but file is a file"),
    ("trial study.yaml --data empty --out file", "--out: file must be a folder, but file is a file"),
    ("judge prepare --a x --b base --questions q.txt --out file", "--out: file must be a folder, but file is a file"),
    ("report file", "this is a file; name the folder below `artifacts` that has the study's name"),
    ("report empty", "this one has none; has the study been run?"),
    ("report artifacts", "this one holds those of studies: name one of ['artifacts/s']"),
    ("report artifacts/ss", "there is no such folder; did you mean 'artifacts/s'?"),
    ("report artifacts/s/search-1/trials/trial-001", "this is a part of one: name 'artifacts/s/search-1'"),
    ("export nosuch", "of a registered model, name the version too: model@champion"),
    ("export m@champion", "there is no database mlflow.db: name the one that the study writes to"),
    ("export m@champion --tracking runs.db", "but got 'runs.db'; write sqlite:///runs.db"),
    ("export artifacts/s --gguf q8_0", "put it on the PATH, or set LLAMA_CPP"),
    ("chat m@champion --tracking ./mlruns", "write sqlite:///mlflow.db"),
    ("promote m", "there is no database mlflow.db"),
    ("promote m --rollback --tracking sqlite:///gone.db", "there is no database gone.db"),
    ("watch file", "file: a study's folder is needed, but this is a file; name the folder below `artifacts` that has"),
    ("judge score empty/", "the answers: empty/ is a folder: name the files in it, empty/*.json"),
    ("watch empty --port 99999", "99999 is not in the range 0<=x<=65535"),
    ("watch empty --host nosuch.invalid", "but nosuch.invalid:8008 cannot be served"),
    ("serve --port 99999", "99999 is not in the range 0<=x<=65535"),
    ("serve --metrics-port -1", "-1 is not in the range 0<=x<=65535"),
    ("serve --port abc", "a whole number is asked for, but got 'abc'"),
    ("ci runn", "No such command 'runn'; did you mean 'run'?"),
    ("katib foo", "No such command 'foo'; there are 'register', 'unregister'"),
    ("judge report", "No such command 'report'; `retune judge score` does that"),
    ("train study.yaml", "No such command 'train'; `retune run` does that"),
    ("evaluate", "No such command 'evaluate'; `retune bench` does that"),
    ("merge", "No such command 'merge'; `retune export --merge` does that"),
    ("help run", "No such command 'help'; `retune --help` does that"),
    ("judge prepar", "No such command 'prepar'; did you mean 'prepare'?"),
    ("render serving", "No such command 'serving'; there are 'experiment', 'runtime'"),
    ("submit study.yaml --cron x", "No such option '--cron'; it is an option of `retune schedule`"),
    ("ci run study.yaml --before x", "No such option '--before'; it is an option of `retune ci promote`"),
    ("validate study.yaml --offlin", "No such option '--offlin'; did you mean '--offline'?"),
    ("watch empty --foo", "No such option '--foo'; `retune watch --help` lists them"),
    ("ci run study.yaml --gpu-hours ten", "a number is asked for, but got 'ten'"),
    ("ci run study.yaml --pull-request retune --dry-run", "--pull-request needs a clone of a git repository"),
    ("ci promote file", "file: must be a file written by `retune ci run --pull-request`, but it is not JSON"),
])  # fmt: skip
def test_the_answer_names_the_rule_and_the_remedy(here, words, answer):
    before = sorted(here.rglob("*"))
    assert answer in told(*words.split())
    assert sorted(here.rglob("*")) == before, "nothing is written"


def test_bench_tells_all_at_once_in_its_own_words(here):
    said = told(
        "bench", "--model", "nosuch/folder/x", "--tasks", "mmlu,humaneval", "--data", f"humaneval={HUMANEVAL}"
    )
    assert "by `--data TASK=PATH`, but these have none: ['mmlu']" in said
    assert "pass --allow-code-execution to allow it" in said
    assert "the base 'nosuch/folder/x' cannot be fetched" in said
    assert "`--tasks` names one or more of" in told("bench", "--model", str(BASE), "--tasks", " ")
    task = ("bench", "--model", str(BASE), "--tasks", "drop")
    said = told(*task, "--data", f"drop={MMLU}", "--adapter", "artifacts/s")
    assert "the file must be readable, but it is not: Is a directory" in said
    assert "it holds others: name one, as artifacts/s/search-1/trials/trial-001/adapter" in said
    said = told("bench", "--model", str(BASE), "--tasks", "mmlu", "--data", f"mmlu={MMLU}", "--out", "file")
    assert "file must be a folder, but file is a file" in said


def test_a_port_that_is_taken_is_named(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be served: Address already in use" in told(
            "watch", "empty", "--port", port
        )
        assert f"127.0.0.1:{port} cannot be bound" in told("serve", "--host", "127.0.0.1", "--port", port)


def test_a_path_that_cannot_be_used_is_no_stack_trace(here, capsys, monkeypatch):
    from retune.cli import main

    monkeypatch.setattr("sys.argv", ["retune", "init", "file/study.yaml", "--base", str(BASE)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert (
        "error: file: File exists; a file lies where a folder is needed: remove it, or name another path"
        in said
    )
    assert "Traceback" not in said
