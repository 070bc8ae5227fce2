"""The study file that `retune init` writes: one that runs without changes, on the given data and base."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from retune import models, search
from retune.data import mixing
from retune.errors import InputError, RetuneError
from retune.steps import base_facts, check, duration, remote
from retune.study import Study, loads

SAMPLE = "sample.jsonl"
# On a machine without a GPU a first study is reduced until it is estimated to end within this
MAX_SECONDS = 3600.0
MIN_RECORDS = 200  # the training data is not reduced below this
MAX_LENGTH = 512

_TEMPLATE = """\
# yaml-language-server: $schema=./study.schema.json
# A retune study. Check it: retune validate {file}   Run it: retune run {file}
name: {name}
seed: 0
model:
  base: {base}          # a folder, s3:// or a hub name
  # revision: <commit>  # pin it for hub models
data:
  sources:              # JSON, JSONL, CSV, Parquet, a folder or hf://datasets/…; docs/data.md has the formats
    - {source}
  # - uri: another.csv  # without `share:` every source gives all it has
  train: {train:<15}# or a number of records, a share such as 0.9, or all
  validation: 0.1       # held out; or a number, or a file of its own
  max_length: {max_length:<10}# tokens of a record; what is longer is cut
  loss_on: completion   # or all
  prompt: auto          # conversations by the base's chat template if it has one, else Alpaca's; or chat, alpaca, none, a file
training:
  epochs: {epochs}
  batch_size: 4
  target_modules: all-linear   # or names: [q_proj, v_proj]
  schedule: linear      # or cosine, constant
search:
  algorithm: mads-global   # or {others}
  parameters: {{preset: tribes2024}}   # rank, alpha, dropout, learning_rate as in the paper's Table 3
  trials: {trials:<14}# settings to train; the default setting is the first of them
  repeats: {repeats:<13}# other seeds for the best three and the default setting, to show how much is chance
  parallel: 1
  max_failed: 5
benchmark:
  tasks: []             # mmlu, bbh, drop, humaneval, hellaswag; each needs its files under data:
  # data: {{mmlu: data/mmlu}}
promote:
  model: {name}
  gate:
    min_gain_over_base: 0.05   # nats per token: what gains less is not worth a champion
artifacts: {{uri: ./artifacts}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""
_WORDS = (
    ("Which number comes after {0}?", "After {0} comes {1}."),
    ("Write {0} and {1} in one line.", "{0}, {1}"),
    ("What is {0} plus 1?", "{0} plus 1 is {1}."),
    ("Is {0} larger than {1}?", "No, {0} is smaller than {1}."),
)


@dataclass(frozen=True)
class _Size:
    """The size of a study: training records (or ``all``), epochs, trials, and repeats of the best."""

    train: str = "all"
    epochs: int = 2
    trials: int = 20
    repeats: int = 2


@dataclass(frozen=True)
class FirstStudy:
    """The text of a study file, and lines for people: the data as it was read, and the estimated duration."""

    text: str
    notes: list[str]


def sample() -> str:
    """Return a small data set to experiment with: 200 questions about numbers, as JSONL."""
    pairs = [(n, words) for n in range(1, 51) for words in _WORDS]
    rows = [
        {"prompt": asked.format(n, n + 1), "completion": answer.format(n, n + 1)}
        for n, (asked, answer) in pairs
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(file: Path, name: str, base: str, source: Mapping[str, object] | None) -> FirstStudy:
    """Return a study that runs without changes.

    Without a GPU it is reduced until it is estimated to end within about an hour: fewer trials first, then fewer records.

    Args:
        file: where the study will be written; its paths are relative to there.
        name: of the study and of its registered model. base: as in the study file.
        source: `uri` of the data as in the study file, with `format`, `columns` and `split` if given; None for the
            sample, which will be beside the study.

    Raises:
        InputError: with everything that would keep it from running, as far as that is known without the network.
    """
    with tempfile.TemporaryDirectory() as beside:
        trial = {"uri": str(Path(beside) / SAMPLE)} if source is None else source
        Path(beside, SAMPLE).write_text(sample())
        length = MAX_LENGTH

        def study(size: _Size) -> Study:
            return loads(_text(file, name, base, trial, size, length), file)

        size = _Size()
        try:
            length = min(MAX_LENGTH, _context(study(size)) or MAX_LENGTH)
            notes = check.check(study(size), network=False)
        except InputError as error:
            raise InputError([_with_option(problem) for problem in error.problems], "retune init") from error
        cut = None
        if source is None or not remote.is_remote(str(source["uri"])):
            size, cut = _reduced(study)
            if cut is not None:  # the notes count records, and must be those of the smaller study
                notes = check.check(study(size), network=False)
    notes = [note.replace("not checked (--offline)", "left to `retune validate`") for note in notes]
    text = _text(file, name, base, {"uri": SAMPLE} if source is None else source, size, length)
    return FirstStudy(text, [*notes, *([cut] if cut else [])])


def _text(
    file: Path, name: str, base: str, source: Mapping[str, object], size: _Size, max_length: int
) -> str:
    return _TEMPLATE.format(
        file=file.name if file.parent == Path() else file,
        name=_scalar(name),
        base=_scalar(base),
        source="\n      ".join(f"{key}: {_scalar(value)}" for key, value in source.items()),
        others=", ".join(algorithm for algorithm in search.ALGORITHMS if algorithm != "mads-global"),
        max_length=max_length,
        **vars(size),
    )


def _scalar(value: object) -> str:
    """Return a value as YAML in one line, quoted if necessary."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def _context(study: Study) -> int | None:
    """Return the context of the base in tokens, if it is on this machine; the check reports what is wrong with it."""
    if study.model.base in remote.network_uris(study):
        return None
    try:
        return base_facts.read(models.locate(study.model)).context
    except (RetuneError, OSError):
        return None


def _reduced(study: Callable[[_Size], Study]) -> tuple[_Size, str | None]:
    """Return the largest size that fits into `MAX_SECONDS` here, and a line about what was reduced and why."""
    first = study(_Size())
    base = None if first.model.base in remote.network_uris(first) else models.locate(first.model)
    preview = mixing.preview(first.data, first.seed, base)
    parameters = duration.parameters(first.model.base, base)
    if parameters is None or duration.estimate(first, preview, base) is None:
        return _Size(), None
    needed = duration.seconds(first, preview, parameters)
    if needed <= MAX_SECONDS:
        return _Size(), None
    size = _Size(trials=10, repeats=1)
    needed_now = duration.seconds(study(size), preview, parameters)
    if needed_now > MAX_SECONDS:
        # Of one epoch instead of two
        count = max(MIN_RECORDS, int(2 * preview.train * MAX_SECONDS / needed_now))
        size = _Size(str(count) if count < preview.train else "all", 1, 10, 1)
    long = f"20 settings on all {preview.train:,} records need {duration.words(needed)} here"
    whole = "`train: all`, `epochs: 2`, `trials: 20`, `repeats: 2`"
    return size, f"made smaller for this machine: {long}; with a GPU set {whole}"


def _with_option(problem: str) -> str:
    """Return a problem whose remedy is the study's `columns` together with the option of `retune init` for it."""
    match = re.search(r"`columns: \{([^}]*)\}`", problem)
    if not match:
        return problem
    return f"{problem}; for init: --columns {match[1].replace(': ', '=').replace(', ', ',')}"
