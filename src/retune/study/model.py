"""The schema of a study file, section by section, and the rules between sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from retune import uris
from retune.errors import nearest
from retune.records import digest
from retune.space import PRESETS, Parameter, Space
from retune.study import scored, trainable, words
from retune.study.cluster import Cluster
from retune.study.data import Data
from retune.study.engine import Engine
from retune.study.fidelity import Proxy, Stopping, from_kind
from retune.study.names import KATIB_ONLY, AlgorithmName, ScoreName, TaskName
from retune.study.scored import Scoring
from retune.study.section import Section
from retune.study.training import TUNABLE, Training

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


class Model(Section):
    """The frozen base model: a local folder, an ``s3://`` folder or a hub name, with the revision pinned."""

    base: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto is bfloat16 on a GPU that has it, float16 on V100 and T4, and float32 on a CPU",
    )
    quantization: Literal["nf4"] | None = Field(
        None, description="keep the base's linear layers in 4 bits (QLoRA, by bitsandbytes); needs a CUDA GPU"
    )

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        problems = []
        if not self.base.strip():
            problems.append("`base` must name a folder, s3://… or a model of a hub, but is empty")
        if self.base.startswith(("http://", "https://")):
            name = "/".join(self.base.partition("://")[2].split("/")[1:3])
            problems.append(
                f"`base` is a folder, s3://…, hf://… or a hub's model, but got {self.base!r}; write {name or 'owner/name'}"
            )
        if self.base.startswith("hf://datasets/"):
            problems.append(
                f"`base` must be a model, but {self.base!r} is a data set: it belongs under `data.sources`"
            )
        if self.revision and self.base.startswith("hf://") and "@" in self.base:
            problems.append(
                f"give the revision after the @ of `base` or in `revision`, not both, but got {self.base!r} and {self.revision!r}"
            )
        return self._checked(problems)


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
    def _check_limit(self) -> Self:
        if (self.max is None) != (self.min is None):
            return self
        got = "neither" if self.max is None else f"max={self.max:g} and min={self.min:g}"
        return self._checked([f"a constraint has either `max` or `min`, but got {got}"])


# Digests name folders. So keys that a later release added enter a digest only where a study uses them: the folders of
# older studies keep their names.
def _digest_content(parameter: Parameter) -> dict[str, Any]:
    """Return the content of a parameter for a digest."""
    return parameter.model_dump(mode="json", exclude=None if parameter.when else {"when"})


def _allow_list(schema: dict[str, Any]) -> None:
    """Add to the JSON schema of a section that a list of one to three is valid too."""
    one = {"$ref": schema.pop("$ref")}
    schema["anyOf"] = [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 3}]


def _allow_kind(schema: dict[str, Any]) -> None:
    """Add to the JSON schema of `stopping` that its kind alone is valid too."""
    schema["anyOf"] = [{"type": "string", "enum": ["asha", "hyperband", "median"]}, *schema["anyOf"]]


_SEVERAL = "nomad"  # the default where there are several objectives


class Search(Section):
    """How the next settings are found and when to stop."""

    algorithm: AlgorithmName = Field(
        "mads-global", description="with several objectives `nomad`, the one that can improve them"
    )
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    parameters: Annotated[
        Annotated[Preset, Tag("preset of a paper")] | Annotated[list[Parameter], Tag("list of parameters")],
        Discriminator(lambda given: "list of parameters" if isinstance(given, list) else "preset of a paper"),
    ] = Field(default_factory=lambda: Preset(preset="tribes2024"))
    objective: Objective = Field(
        default_factory=Objective,
        description="or a list of two or three: the first ranks and gates, all give the Pareto set",
        json_schema_extra=_allow_list,
    )
    further_objectives: list[Objective] = Field(
        default_factory=list, max_length=2, description="the rest of that list; not written by hand"
    )
    constraints: list[Constraint] = Field(default_factory=list)
    benchmark: Scoring = Field(
        default_factory=Scoring,
        description="benchmarks scored in every trial; their data is in `benchmark.data`",
    )
    trials: int = Field(100, gt=0, lt=2**31, description="trained settings, the default setting among them")
    parallel: Annotated[int, Field(gt=0, lt=2**31)] | Literal["auto"] = Field(
        1,
        description="trials at a time; auto: what this machine's GPUs or cores train side by side (engine `local`)",
    )
    max_failed: int | None = Field(
        None, ge=0, lt=2**31 - 1, description="stop once more trials than this have failed"
    )
    max_hours: float | None = Field(None, gt=0, le=500_000)
    repeats: int = Field(
        2, ge=0, description="other seeds for the finalists and the default setting, to show the spread"
    )
    finalists: int = Field(
        3, ge=1, description="best settings that are repeated: the one that is best with its repeats wins"
    )
    warm_start: list[str] = Field(default_factory=list)
    stopping: Annotated[Stopping | None, BeforeValidator(from_kind)] = Field(
        None,
        description="`asha`, `hyperband` or `median`, alone or as `kind` with options: stop poor trials before their end",
        json_schema_extra=_allow_kind,
    )
    proxy: Proxy | None = Field(
        None,
        description="train the search's trials on a share of the data, and the best settings on all of it",
    )

    @model_validator(mode="before")
    @classmethod
    def _split_objectives(cls, value: Any) -> Any:
        """Split a list of objectives, so that `objective` is a single one, by which trials are ranked."""
        if not isinstance(value, dict) or not isinstance(value.get("objective"), list):
            return value
        if not 1 <= len(value["objective"]) <= 3:
            raise ValueError(f"`objective` holds one to three metrics, but got {len(value['objective'])}")
        first, *further = value["objective"]
        default = {"algorithm": _SEVERAL} if further else {}
        return {**default, **value, "objective": first, "further_objectives": further}

    @property
    def default_algorithm(self) -> str:
        """The algorithm of a search that names none."""
        return _SEVERAL if self.further_objectives else str(Search.model_fields["algorithm"].default)

    @property
    def scored_tasks(self) -> list[str]:
        """The benchmarks that every trial is scored on."""
        metrics = [*(goal.metric for goal in self.objectives), *(limit.metric for limit in self.constraints)]
        return scored.tasks(self.benchmark, metrics)

    @property
    def at_once(self) -> int:
        """Trials at a time; 1 until `auto` is replaced by a number (`retune.engines.spread.settled`)."""
        return 1 if self.parallel == "auto" else self.parallel

    @property
    def planned_trials(self) -> int:
        """The number of trials: base, settings, repeats, and after a proxy search its best settings on all data."""
        whole = 0 if self.proxy is None else 1 + min(self.proxy.full, self.trials - 1)
        return 1 + self.trials + whole + (1 + self.finalists) * self.repeats

    @property
    def objectives(self) -> list[Objective]:
        """All objectives, the one that ranks first."""
        return [self.objective, *self.further_objectives]

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
    def _check_space(self) -> Self:
        problems = []
        metrics = [objective.metric for objective in self.objectives]
        if len(set(metrics)) < len(metrics):
            problems.append(f"the metrics of `objective` must differ, but got {metrics}")
        unknown = [name for name in self.space.names if name not in TUNABLE]
        if unknown:
            meant = [words.ALIASES[name] for name in unknown if words.ALIASES.get(name) in TUNABLE]
            hint = f"; did you mean {meant}?" if meant else ""
            problems.append(f"a trial can tune {list(TUNABLE)}, but the search names {unknown}{hint}")
        if {"alpha", "alpha_ratio"} <= set(self.space.names):
            problems.append("`alpha_ratio` is tuned in place of `alpha`, but the search names both")
        lacking = [p.name for p in self.space.parameters if p.default is None]
        if lacking:
            problems.append(
                f"every parameter needs a `default`, the setting to compare with, but these have none: {lacking}"
            )
        judged = [(o.metric, o.goal) for o in self.objectives]
        if self.stopping is not None and judged != [("validation_loss", "minimize")]:
            problems.append(
                "`stopping` compares validation losses, so the objective must be `validation_loss` alone, minimized, "
                f"but got {[f'{goal} {metric}' for metric, goal in judged]}"
            )
        return self._checked(problems)


class Benchmark(Section):
    """Which models are scored on what, besides the untuned base and the default setting."""

    tasks: list[TaskName] = Field(default_factory=list)
    data: dict[TaskName, str] = Field(default_factory=dict, description="file or folder of each task")
    top: int = Field(3, ge=1, description="how many of the best trials, by the objective")
    bottom: int = Field(0, ge=0, description="and how many of the worst")
    protocol: Literal["instruct-eval", "lm-eval"] = Field(
        "instruct-eval",
        description="whose prompts and rules: the paper's, or lm-evaluation-harness' own tasks",
    )
    limit: int | None = Field(None, gt=0, description="questions per task at most; a seeded, stratified draw")
    batch_size: int = Field(8, gt=0)
    allow_code_execution: bool = Field(False, description="humaneval runs code that a model wrote")
    temperature: float = Field(
        0.0, ge=0, description="humaneval: 0 decodes greedily; Instruct-Eval itself samples one answer at 0.1"
    )
    samples: int = Field(
        1, gt=0, description="humaneval: answers per problem; pass@1 is their mean share that passes"
    )

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
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
        if self.samples > 1 and not self.temperature:
            problems.append(
                "`benchmark.samples > 1` needs `benchmark.temperature > 0`, since greedy answers are all the same, "
                f"but got samples={self.samples}"
            )
        if self.protocol == "lm-eval" and self.temperature:
            problems.append(
                "under `benchmark.protocol: lm-eval` answers are greedy, as its tasks say, "
                f"but got temperature={self.temperature:g}"
            )
        return self._checked(problems)


class Report(Section):
    """What the report shows besides numbers."""

    answers: int = Field(
        10,
        ge=0,
        le=100,
        description="held-out prompts that base, default and winner answer for people to read; 0 for none",
    )
    new_tokens: int = Field(128, gt=0, description="the longest answer, in tokens")


class Select(Section):
    """How one of the Pareto-optimal candidates is chosen; never silently by the loss.

    ``weighted`` takes the highest weighted mean of the scores (equal weights unless given); ``lexicographic`` compares
    the metrics in the given order. ``objective`` in ``order`` stands for the search's own metric, which also breaks ties.
    """

    rule: Literal["weighted", "lexicographic"] = "weighted"
    weights: dict[TaskName, float] = Field(default_factory=dict)
    order: list[ScoreName] = Field(default_factory=lambda: ["objective"])


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
    automatic: Literal["passed", "beyond-noise", "never"] = Field(
        "passed",
        description="when the champion moves without a person: whenever the gate passes, only if all gains are at least twice "
        "the spread over seeds, or never (`retune promote`, `retune ci promote`)",
    )

    @field_validator("model")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name.endswith(".lock") or ".lock.broken." in name:
            raise ValueError(f"must not end in `.lock`, the name of another model's lock, but got {name!r}")
        return name


_TRACKING = ("http", "https", "sqlite", "file", "postgresql", "mysql", "mssql", "databricks")


class Tracking(Section):
    """The MLflow tracking server or database. A password in its address is never written to a file."""

    uri: str = "sqlite:///mlflow.db"
    tensorboard: str | None = Field(
        None,
        min_length=1,
        description="folder for TensorBoard's files of all trials, by the package tensorboard",
    )
    wandb: str | None = Field(
        None,
        pattern=r"^([\w.-]+/)?[\w.-]+$",
        description="project, or entity/project, of Weights & Biases that shows the trials too, by the package wandb",
    )

    @field_validator("tensorboard")
    @classmethod
    def _check_folder(cls, folder: str | None) -> str | None:
        if folder and "://" in folder:
            raise ValueError(f"must be a local folder, but got {folder!r}")
        return folder

    @field_validator("uri")
    @classmethod
    def _check_tracking_uri(cls, uri: str) -> str:
        scheme, mark, _ = uri.partition("://")
        if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
            hint = f"; write http://{uri}"
        elif uri.startswith("sqlite:") and not re.match(r"sqlite://(/|$)", uri):
            hint = f"; write sqlite:///{uri.removeprefix('sqlite:').lstrip('/')}"
        elif not mark or scheme.partition("+")[0] in _TRACKING:
            return uris.hide(uri)
        else:
            near = nearest(scheme, _TRACKING)
            hint = f"; did you mean {near}://?" if near else ""
        raise ValueError(
            f"must be the address of an MLflow server (https://…) or a database (sqlite:///…), but got {uri!r}{hint}"
        )


class Artifacts(Section):
    """Where data, trials and adapters are kept (a folder or ``s3://bucket/prefix``)."""

    uri: str = "./artifacts"
    keep: int = Field(5, ge=1, description="adapters kept: those of the best trials")

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        scheme, mark, rest = uri.partition("://")
        if mark and scheme not in ("s3", "file"):
            why = "a hub is only read from" if scheme == "hf" else f"{scheme}:// is not known"
            raise ValueError(f"must be a folder or s3://bucket/prefix, but got {uri!r}: {why}")
        if mark and not rest.strip("/"):
            raise ValueError(f"must name a bucket or folder, but got {uri!r}")
        return uri


class Study(Section):
    """A whole study. `load` is the usual way to make one."""

    name: str
    seed: int = Field(0, ge=0, lt=2**31)
    code: str | None = Field(
        None,
        min_length=1,
        description="revision of the code that matters, e.g. a commit; another one is searched anew",
    )
    model: Annotated[
        Model, BeforeValidator(lambda given: {"base": given} if isinstance(given, str) else given)
    ]
    data: Data
    training: Training = Field(default_factory=Training)
    search: Search = Field(default_factory=Search)
    benchmark: Benchmark = Field(default_factory=Benchmark)
    select: Select = Field(default_factory=Select)
    promote: Promote
    report: Report = Field(default_factory=Report)
    engine: Engine = Field(default_factory=Engine)
    cluster: Cluster = Field(default_factory=Cluster)
    tracking: Tracking = Field(default_factory=Tracking)
    artifacts: Artifacts = Field(default_factory=Artifacts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(
                f"`name` must be lower-case letters, digits and inner dashes, at most 40 of them, but got {self.name!r}"
            )
        if self.artifacts.keep < self.benchmark.top and self.benchmark.tasks:
            raise ValueError(
                "`artifacts.keep >= benchmark.top` must hold, since only kept adapters can be benchmarked, "
                f"but got keep={self.artifacts.keep}, top={self.benchmark.top}"
            )
        if self.engine.kind == "katib" and self.cluster.images.train is None:
            problems.append(
                "`engine.kind: katib` needs `cluster.images.train`, the image that its trials run, but it is not given"
            )
        if self.engine.kind != "local" and self.search.parallel == "auto":
            problems.append(
                "`search.parallel: auto` asks what one machine can run, which only `engine.kind: local` knows: give a number, "
                f"but `engine.kind` is {self.engine.kind!r}"
            )
        if self.engine.kind == "local" and self.search.algorithm in KATIB_ONLY:
            problems.append(
                f"`search.algorithm: {self.search.algorithm}` is Katib's own, which only `engine.kind: katib` has: "
                f"with the engine `local` use `{self.search.default_algorithm}`"
            )
        if self.engine.kind == "katib" and self.search.algorithm == "language-bo":
            problems.append(
                "`search.algorithm: language-bo` needs torch, which the suggestion image has not, so only `engine.kind: local` "
                f"has it: under Katib use `{self.search.default_algorithm}`"
            )
        problems += trainable.problems(self.training, self.search.space)
        problems += self._fidelity_problems()
        problems += self._scoring_problems()
        outside = [t for t in self.select.weights if t not in self.benchmark.tasks]
        outside += [t for t in self.select.order if t != "objective" and t not in self.benchmark.tasks]
        if outside:
            problems.append(
                f"`select` may name only tasks of `benchmark.tasks` {self.benchmark.tasks}, but names {outside}"
            )
        return self._checked(problems)

    def _fidelity_problems(self) -> list[str]:
        """Return the problems of `search.stopping` and `search.proxy` with the engine."""
        kind, stopping, problems = self.engine.kind, self.search.stopping, []
        if self.search.proxy is not None and kind != "local":
            problems.append(
                f"`search.proxy` needs `engine.kind: local`, but got {kind!r}: change it, or remove `search.proxy`"
            )
        if stopping is None or kind == "local":
            return problems
        if kind != "katib":
            problems.append(
                f"`search.stopping` needs the engine `local` or `katib`, but got {kind!r}: change it, or remove `search.stopping`"
            )
        elif stopping.kind != "median":
            problems.append(
                f"`search.stopping: {stopping.kind}` lets stopped trials go on, which Katib cannot: under `engine.kind: katib` "
                "use `median`, its own early stopping"
            )
        elif stopping.interval is not None:
            problems.append(
                "`search.stopping.interval` has no meaning under `engine.kind: katib`: Katib's rule has one rung, at "
                "`min_share`; remove `search.stopping.interval`"
            )
        elif self.cluster.katib.early_stopping is not None:
            problems.append(
                "`search.stopping: median` and `cluster.katib.early_stopping` are one thing: give one of them, "
                "remove `search.stopping` or remove `cluster.katib.early_stopping`"
            )
        return problems

    def _scoring_problems(self) -> list[str]:
        names = self.search.scored_tasks
        lacking = [task for task in names if task not in self.benchmark.data]
        problems = []
        if lacking:
            problems.append(
                f"the search scores {names} in every trial, so each needs its file or folder under `benchmark.data`, "
                f"but these have none: {lacking}"
            )
        if "humaneval" in names and not self.benchmark.allow_code_execution:
            problems.append(
                "humaneval runs code written by a model: set `benchmark.allow_code_execution: true` to allow it"
            )
        metrics = [goal.metric for goal in self.search.objectives]
        if (
            scored.MEAN_SCORE in [*metrics, *(limit.metric for limit in self.search.constraints)]
            and not names
        ):
            problems.append(
                f"`{scored.MEAN_SCORE}` is the mean of `search.benchmark.tasks`, but there are none"
            )
        worse = [
            goal.metric
            for goal in self.search.objectives
            if goal.goal == "minimize" and (goal.metric in names or goal.metric == scored.MEAN_SCORE)
        ]
        if worse:
            problems.append(f"a higher score is better: write `goal: maximize` for {worse}")
        return problems

    @property
    def scored(self) -> Benchmark | None:
        """What every trial is scored on, None if on nothing."""
        names = self.search.scored_tasks
        if not names:
            return None
        limit = self.search.benchmark.limit or self.benchmark.limit
        return self.benchmark.model_copy(update={"tasks": names, "limit": limit})

    @property
    def search_settings(self) -> dict[str, str | int | float | bool]:
        """The settings of the search's algorithm; `language-bo` embeds by the study's base unless they name a model."""
        settings = dict(self.search.settings)
        if self.search.algorithm == "language-bo" and "model" not in settings:
            settings["model"] = self.model.base
            if self.model.revision is not None:
                settings["revision"] = self.model.revision
        return settings

    @property
    def root(self) -> str:
        """The folder of everything this study writes."""
        return f"{self.artifacts.uri.rstrip('/')}/{self.name}"

    def settings_digest(
        self, data_digest: str, base_digest: str, scored: Mapping[str, str] | None = None
    ) -> str:
        """Return the digest of all that affects the result of a setting: data, base, training, seed, code.

        Args:
            data_digest, base_digest: of the mixed data and the base.
            scored: the digest of each benchmark's files that every trial is scored on, by its task.
        """
        used = {"data": data_digest, "base": base_digest, "dtype": self.model.dtype, "training": self.training.decides(),
                "max_length": self.data.max_length, "loss_on": self.data.loss_on, "seed": self.seed}  # fmt: skip
        if self.model.quantization is not None:
            used["quantization"] = self.model.quantization
        if self.scored is not None:
            kept = {"tasks", "limit", "protocol", "temperature", "samples"}
            used["scored"] = {**self.scored.model_dump(mode="json", include=kept), "data": dict(scored or {})}
        if self.code is not None:
            used["code"] = self.code
        return digest(used)

    def search_digest(
        self, data_digest: str, base_digest: str, scored: Mapping[str, str] | None = None
    ) -> str:
        """Return the digest of all that affects which settings are tried; budgets (trials, hours) are not part of it.

        Args:
            data_digest, base_digest, scored: as of `settings_digest`.
        """
        search = self.search.model_dump(
            mode="json", include={"algorithm", "settings", "objective", "constraints", "warm_start"}
        )
        if self.search.further_objectives:
            search["further_objectives"] = [o.model_dump(mode="json") for o in self.search.further_objectives]
        if self.search.stopping is not None:
            search["stopping"] = self.search.stopping.model_dump(mode="json", exclude_none=True)
        if self.search.proxy is not None:
            search["proxy"] = self.search.proxy.share
        decides = {
            "settings": self.settings_digest(data_digest, base_digest, scored),
            "search": search,
            "space": {"parameters": [_digest_content(p) for p in self.search.space.parameters]},
        }
        # Under Katib a name can be that of another algorithm, and trials end in another order
        if self.engine.kind != "local":
            decides["engine"] = self.engine.kind
        return digest(decides)
