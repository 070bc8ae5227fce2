"""The study file: one pydantic model, validated as a whole, all errors at once.

`load` reads YAML, applies dotted overrides (``search.trials=20``), resolves paths and returns a `Study`. Paths of
inputs (data, model, benchmark files, warm starts) are relative to the study file; paths of outputs (artifacts,
tracking) are relative to the current directory. A loaded study holds absolute paths only, so that its JSON means
the same in every process.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from retune.errors import InputError
from retune.records import digest
from retune.space import PRESETS, Parameter, Space

AlgorithmName = Literal["nomad", "mads-global", "tpe", "random", "lhs", "gp", "soo", "bamsoo"]
TaskName = Literal["mmlu", "bbh", "drop", "humaneval", "hellaswag"]
TUNABLE = ("rank", "alpha", "dropout", "learning_rate", "weight_decay")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")


class Section(BaseModel):
    """The base of every part of the study file: unknown keys are refused, and so are infinite numbers and NaN."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    def _checked(self, problems: Sequence[str]) -> Self:
        """Return the section, or raise one error with all of its problems."""
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Model(Section):
    """The frozen base model: a local folder, an ``s3://`` folder or a hub name, with the revision pinned."""

    base: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto is bfloat16 on a GPU that has it and float32 on a CPU"
    )


class Source(Section):
    """One instruction data set and its share of both splits."""

    format: Literal["alpaca", "dolly", "jsonl"]
    uri: str
    share: float = Field(gt=0, le=1)


class Data(Section):
    """What is mixed: `train` and `validation` are exact record counts; every source keeps its share in both."""

    sources: list[Source] = Field(min_length=1)
    train: int = Field(gt=0)
    validation: int = Field(gt=0)
    max_length: int = Field(512, ge=16, description="tokens; longer records are cut at the end")
    loss_on: Literal["completion", "all"] = "completion"

    @model_validator(mode="after")
    def _shares(self) -> Self:
        total = sum(source.share for source in self.sources)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the shares must add up to 1, but got {total:g} from {[s.share for s in self.sources]}"
            )
        return self


class Training(Section):
    """How one trial trains; the defaults are those of Tribes et al. 2024 and of the transformers Trainer they used."""

    epochs: int = Field(2, gt=0)
    batch_size: int = Field(4, gt=0, description="records per optimiser step, over all devices")
    target_modules: list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"], min_length=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = Field(
        0.0, ge=0, lt=1, description="share of all steps in which the learning rate rises from 0"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    rank: int = Field(8, gt=0, description="used when the search does not tune it; so are the next four")
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    checkpoint_minutes: float = Field(10.0, gt=0, description="how much work a killed trial may lose at most")


class Preset(Section):
    """A space from a paper, by name; single parameters of it may be replaced."""

    preset: Literal["tribes2024", "davouse2024"]
    replace: list[Parameter] = Field(default_factory=list)


class Objective(Section):
    """The metric that the search improves."""

    metric: str = "validation_loss"
    goal: Literal["minimize", "maximize"] = "minimize"


class Constraint(Section):
    """An upper or lower limit on another metric of a trial, e.g. ``{metric: adapter_mib, max: 100}``."""

    metric: str
    max: float | None = None
    min: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError(
                f"a constraint has either `max` or `min`, but got max={self.max}, min={self.min}"
            )
        return self


class Search(Section):
    """How the next settings are found and when to stop."""

    algorithm: AlgorithmName = "nomad"
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    parameters: Annotated[
        Annotated[Preset, Tag("preset of a paper")] | Annotated[list[Parameter], Tag("list of parameters")],
        Discriminator(lambda given: "list of parameters" if isinstance(given, list) else "preset of a paper"),
    ] = Field(default_factory=lambda: Preset(preset="tribes2024"))
    objective: Objective = Field(default_factory=Objective)
    constraints: list[Constraint] = Field(default_factory=list)
    trials: int = Field(100, gt=0, description="trained settings, the default setting among them")
    parallel: int = Field(1, gt=0)
    max_failed: int | None = Field(None, ge=0, description="stop once more trials than this have failed")
    max_hours: float | None = Field(None, gt=0)
    repeats: int = Field(
        2, ge=0, description="other seeds for the best and the default setting, to show the spread"
    )
    warm_start: list[str] = Field(default_factory=list)

    @property
    def space(self) -> Space:
        """The parameters, from the preset or as spelled out."""
        if isinstance(self.parameters, list):
            return Space(parameters=tuple(self.parameters))
        preset = PRESETS[self.parameters.preset]()
        replaced = {parameter.name: parameter for parameter in self.parameters.replace}
        return Space(
            parameters=tuple(replaced.pop(p.name, p) for p in preset.parameters) + tuple(replaced.values())
        )

    @model_validator(mode="after")
    def _space_is_trainable(self) -> Self:
        problems = []
        unknown = [name for name in self.space.names if name not in TUNABLE]
        if unknown:
            problems.append(f"a trial can tune {list(TUNABLE)}, but the search names {unknown}")
        lacking = [p.name for p in self.space.parameters if p.default is None]
        if lacking:
            problems.append(
                f"every parameter needs a `default`, the setting to compare with, but these have none: {lacking}"
            )
        return self._checked(problems)


class Benchmark(Section):
    """Which models are scored on what, besides the untuned base and the default setting."""

    tasks: list[TaskName] = Field(default_factory=list)
    data: dict[TaskName, str] = Field(default_factory=dict, description="file or folder of each task")
    top: int = Field(3, ge=1, description="how many of the best trials, by the objective")
    bottom: int = Field(0, ge=0, description="and how many of the worst")
    limit: int | None = Field(None, gt=0, description="questions per task at most; a seeded, stratified draw")
    batch_size: int = Field(8, gt=0)
    allow_code_execution: bool = Field(False, description="humaneval runs code that a model wrote")

    @model_validator(mode="after")
    def _tasks_have_data(self) -> Self:
        problems = []
        lacking = [task for task in self.tasks if task not in self.data]
        if lacking:
            problems.append(
                f"every task needs its file or folder under `benchmark.data`, but these have none: {lacking}"
            )
        if "humaneval" in self.tasks and not self.allow_code_execution:
            problems.append(
                "humaneval runs code written by a model: set `benchmark.allow_code_execution: true` to allow it, or drop the task"
            )
        return self._checked(problems)


class Select(Section):
    """How one of the Pareto-optimal candidates is chosen; never silently by the loss.

    ``weighted`` takes the highest weighted mean of the scores (equal weights unless given); ``lexicographic`` compares
    the metrics in the given order. ``objective`` in ``order`` stands for the search's own metric, which also breaks ties.
    """

    rule: Literal["weighted", "lexicographic"] = "weighted"
    weights: dict[TaskName, float] = Field(default_factory=dict)
    order: list[TaskName | Literal["objective"]] = Field(
        default_factory=lambda: list[TaskName | Literal["objective"]](["objective"])
    )


class Gate(Section):
    """What a challenger must show before it becomes champion."""

    min_gain_over_base: float = Field(0.0, ge=0, description="in units of the objective")
    min_gain_over_champion: float = Field(
        0.0, ge=0, description="in units of the objective, on this study's validation data"
    )
    max_score_loss: float = Field(
        0.02, ge=0, description="how far each benchmark score may lie below the champion's, else the base's"
    )


class Promote(Section):
    """The registered model that the winner becomes a version of."""

    model: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    gate: Gate = Field(default_factory=Gate)


class Engine(Section):
    """Who runs the trials. ``local``: worker processes on this machine that keep the base model loaded."""

    kind: Literal["local"] = "local"
    threads: int | None = Field(
        None, gt=0, description="CPU threads per trial; default: the cores shared out"
    )


class Tracking(Section):
    """The MLflow tracking server or database."""

    uri: str = "sqlite:///mlflow.db"


class Artifacts(Section):
    """Where data, trials and adapters are kept (a folder or ``s3://bucket/prefix``)."""

    uri: str = "./artifacts"
    keep: int = Field(5, ge=1, description="adapters kept: those of the best trials")


class Study(Section):
    """A whole study. `load` is the usual way to make one."""

    name: str
    seed: int = Field(0, ge=0, lt=2**31)
    model: Model
    data: Data
    training: Training = Field(default_factory=Training)
    search: Search = Field(default_factory=Search)
    benchmark: Benchmark = Field(default_factory=Benchmark)
    select: Select = Field(default_factory=Select)
    promote: Promote
    engine: Engine = Field(default_factory=Engine)
    tracking: Tracking = Field(default_factory=Tracking)
    artifacts: Artifacts = Field(default_factory=Artifacts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if not _NAME.match(self.name):
            problems.append(
                f"`name` must be lower-case letters, digits and inner dashes, at most 40 of them, but got {self.name!r}"
            )
        if self.artifacts.keep < self.benchmark.top and self.benchmark.tasks:
            raise ValueError(
                "`artifacts.keep >= benchmark.top` must hold, since only kept adapters can be benchmarked, "
                f"but got keep={self.artifacts.keep}, top={self.benchmark.top}"
            )
        outside = [t for t in self.select.weights if t not in self.benchmark.tasks]
        outside += [t for t in self.select.order if t != "objective" and t not in self.benchmark.tasks]
        if outside:
            problems.append(
                f"`select` may name only tasks of `benchmark.tasks` {self.benchmark.tasks}, but names {outside}"
            )
        return self._checked(problems)

    @property
    def root(self) -> str:
        """The folder of everything this study writes."""
        return f"{self.artifacts.uri.rstrip('/')}/{self.name}"

    def settings_digest(self, data_digest: str, base_digest: str) -> str:
        """Return the digest of all that decides the result of a setting: data, base, training, seed."""
        training = self.training.model_dump(mode="json", exclude={"checkpoint_minutes"})
        used = {"data": data_digest, "base": base_digest, "dtype": self.model.dtype, "training": training,
                "max_length": self.data.max_length, "loss_on": self.data.loss_on, "seed": self.seed}  # fmt: skip
        return digest(used)

    def search_digest(self, data_digest: str, base_digest: str) -> str:
        """Return the digest of all that decides which settings are tried; budgets (trials, hours) are not part of it."""
        search = self.search.model_dump(
            mode="json", include={"algorithm", "settings", "objective", "constraints", "warm_start"}
        )
        space = self.search.space.model_dump(mode="json")
        return digest(
            {"settings": self.settings_digest(data_digest, base_digest), "search": search, "space": space}
        )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply overrides, resolve paths and validate all of it.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value``, the value read as YAML; list items by number (``data.sources.0.share=0.5``).

    Raises:
        InputError: with every problem found.

    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the study file cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"a study file must be UTF-8, but {error.reason} at byte {error.start}", str(path)
        ) from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {error}", str(path)) from error
    if not isinstance(content, dict):
        raise InputError("a study file is a mapping of keys to values", str(path))
    for override in overrides:
        _override(content, override)
    _resolve(content, path.resolve().parent, Path.cwd())
    return parse(content, str(path))


def parse(content: Mapping[str, Any], subject: str = "study") -> Study:
    """Validate the content of a study file.

    Raises:
        InputError: with every problem found.

    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(_all_problems(content, error), subject) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the study file, for editors."""
    schema = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "retune study", **schema}


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"an override has the form key.subkey=value, but got {override!r}", "command line")
    node: Any = content
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(node, list):
            node = node[_index(node, parent, override)]
        else:
            if not isinstance(node.get(parent), dict | list):
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise InputError(
                f"{parent!r} must be a section or a list, but is {node!r} in {override!r}", "command line"
            )
    try:
        value = yaml.load(text, Loader=_Loader) if text else ""
    except yaml.YAMLError as error:
        raise InputError(f"the value is not valid YAML in {override!r}: {error}", "command line") from error
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list[Any], text: str, override: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise InputError(
            f"`0 <= index < {len(items)}` must hold, but got {text!r} in {override!r}", "command line"
        )
    return int(text)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as text; people mean a number. If a key stands twice it keeps the last, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, if no key stands twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"these keys stand twice: {twice}", node.start_mark
            )
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$")
for _loader in (yaml.SafeLoader, _Loader):
    _loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _resolve(content: dict[str, Any], inputs: Path, outputs: Path) -> None:
    """Make the relative paths in `content` absolute, in place; what is not as expected is left to the validation."""
    for source in _dicts(_get(content, "data", "sources")):
        _absolute(source, "uri", inputs)
    model = _get(content, "model")
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        base = model["base"]
        if base.startswith((".", "~")) or (inputs / base).is_dir():
            _absolute(model, "base", inputs)
    files = _get(content, "benchmark", "data")
    if isinstance(files, dict):
        for task in list(files):
            _absolute(files, task, inputs)
    starts = _get(content, "search", "warm_start")
    if isinstance(starts, list):
        holder = {str(k): uri for k, uri in enumerate(starts)}
        for key in holder:
            _absolute(holder, key, inputs)
        starts[:] = list(holder.values())
    artifacts = content.setdefault("artifacts", {})
    if isinstance(artifacts, dict):
        artifacts.setdefault("uri", "./artifacts")
        _absolute(artifacts, "uri", outputs)
    tracking = content.setdefault("tracking", {})
    if isinstance(tracking, dict):
        uri = tracking.setdefault("uri", "sqlite:///mlflow.db")
        if isinstance(uri, str) and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            tracking["uri"] = f"sqlite:///{outputs / uri.removeprefix('sqlite:///')}"


def _get(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _dicts(items: Any) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _absolute(holder: dict[str, Any], key: str, folder: Path) -> None:
    uri = holder.get(key)
    if isinstance(uri, str) and uri and "://" not in uri:
        holder[key] = str((folder / Path(uri).expanduser()).resolve())


def _all_problems(content: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Return every problem.

    Rules that span keys are checked only once the single keys are right, so drop the wrong ones and look again.
    """
    left: dict[Any, Any] = copy.deepcopy(dict(content))
    problems: list[str] = []
    while True:
        missing = [e for e in error.errors() if e["type"] == "missing"]
        # What is missing in later rounds we dropped ourselves.
        found = [e for e in error.errors() if not problems or e not in missing]
        problems += [sentence for e in found if (sentence := _sentence(e)) not in problems]
        changes = [_drop(left, _path(e)) for e in reversed(found)]  # of a list the last items first
        changes += [_stand_in(left, _path(e)[0]) for e in missing]
        if not any(changes):
            return problems
        try:
            Study.model_validate(left)
        except ValidationError as further:
            error = further
        else:
            return problems


_STAND_INS: dict[str | int, Any] = {
    "name": "x",
    "model": {"base": "x"},
    "data": {"sources": [{"format": "alpaca", "uri": "x", "share": 1}], "train": 1, "validation": 1},
    "promote": {"model": "x"},
}


def _stand_in(content: dict[Any, Any], section: str | int) -> bool:
    """Put a valid section in the place of one that lacks a key, so that the rules between sections are checked too."""
    if section not in _STAND_INS or content.get(section) == _STAND_INS[section]:
        return False
    content[section] = copy.deepcopy(_STAND_INS[section])
    return True


def _drop(content: Any, path: Sequence[str | int]) -> bool:
    """Delete the key at `path`; return whether there was one.

    Of a list with a wrong item the whole list goes, but for the benchmark tasks, which other sections refer to.
    """
    while path and isinstance(path[-1], int) and "tasks" not in path:
        path = path[:-1]
    try:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _path(error: Any) -> list[str | int]:
    """Return the keys that lead to an error, without the names of union members, which mean nothing to a person."""
    return [part for part in error["loc"] if part not in ("preset of a paper", "list of parameters", "[key]")]


def _sentence(error: Any) -> str:
    """Turn one pydantic error into a sentence: where, the rule, the value, and the nearest valid key."""
    path = _path(error)
    where = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; valid keys are {valid}"
        return f"{where}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{where}: this key is required"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, but got {error['input']!r}"


def _valid_keys(path: Sequence[str | int]) -> list[str]:
    """Return the keys that the section at `path` knows."""
    node: Any = Study
    for part in path:
        if isinstance(part, int):
            continue
        field = (
            node.model_fields.get(part) if isinstance(node, type) and issubclass(node, BaseModel) else None
        )
        if field is None:
            return []
        in_list = part == "parameters" and any(isinstance(step, int) for step in path)
        node = Parameter if in_list else _section(field.annotation)
    return sorted(node.model_fields) if isinstance(node, type) and issubclass(node, BaseModel) else []


def _section(annotation: Any) -> Any:
    """Return the section class inside a list or union annotation."""
    if get_origin(annotation) is Annotated:
        return _section(get_args(annotation)[0])
    for inner in get_args(annotation):
        found = _section(inner)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation
