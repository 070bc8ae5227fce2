"""Converts between Katib's Experiment and our search.

What Katib's message has no field for is passed as algorithm settings: ``seed``; ``default.<parameter>`` (the start);
``when.<parameter>`` (``{"variant": ["dora"]}``, as JSON); ``constraints`` (``"peak_gpu_gib <= 80, accuracy >= 0.5"``);
``further_objectives`` (``"minimize adapter_mib, maximize accuracy"``, besides the Experiment's own);
``log_step.<parameter>`` (a step in log10).

Meaning of Katib's fields here: ``min`` and ``max`` are inclusive; values are ``min + k * step``; without a
step the grid is the default one of `retune.space`. The log distributions use a log scale; with a ``step`` the values are
those of the linear grid that are nearest to an even grid on the log scale. Of the normal distributions only the mean is
used, the middle of the range on its scale: it is the default unless one is given.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.space import LOG10_GRID, Assignment, Parameter, Space, Value, tidy
from retune.study import Constraint, Study
from retune.study import Objective as Goal
from retune.suggestion import messages as katib
from retune.suggestion import warm as warm_start

_CONSTRAINT = re.compile(r"\s*(?P<metric>\S+?)\s*(?P<sign><=|>=)\s*(?P<limit>\S+)\s*")
_GOAL = re.compile(r"\s*(?P<goal>minimize|maximize)\s+(?P<metric>\S+)\s*")
_KINDS = {
    "real": katib.DOUBLE,
    "integer": katib.INT,
    "discrete": katib.DISCRETE,
    "categorical": katib.CATEGORICAL,
}
MAX_PARAMETERS, MAX_VALUES, MAX_CHARACTERS = 1000, 10_000, 10_000
ISSUED = "retune.issued"
"""The algorithm setting with the points issued so far: each reply contains it, and Katib sends it with the next request."""
WARM = "retune.warm_start"
"""The algorithm setting with the results of earlier studies, see `retune.suggestion.warm`."""


@dataclass(frozen=True)
class Search:
    """A search as an Experiment describes it.

    Attributes:
        issued: the points issued so far, see `ISSUED`.
        parallel: trials that Katib runs at a time.
        texts: for each list parameter the texts of the list by level: Katib expects them exactly as they were written.
        warm: results of earlier studies.

    """

    name: str
    algorithm: str
    space: Space
    objective: Objective
    settings: dict[str, str]
    issued: str = ""
    parallel: int = 1
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warm: tuple[Observation, ...] = ()

    def text(self, name: str, value: Value) -> str:
        """Return a value as Katib expects it: the text of the list, or the shortest exact number."""
        if name in self.texts:
            return self.texts[name][self.space[name].level(value)]
        return repr(value)

    def value(self, name: str, text: str) -> Value:
        """Return the value of a parameter from Katib's text.

        Raises:
            ValueError: if the text is none of the list, or not a number.
        """
        if name in self.texts:
            texts = self.texts[name]
            level = texts.index(text) if text in texts else self.space[name].level(_number(text))
            return self.space[name].value(level)
        return float(text)


def experiment_of(
    name: str,
    algorithm: str,
    space: Space,
    objective: Objective,
    settings: Mapping[str, Value],
    seed: int,
    parallel: int = 1,
) -> Any:
    """Return the Experiment message of a search; `search_of` is its inverse.

    Args:
        name: of the Experiment.
        algorithm: its name in Katib.
        space: the parameters, with defaults and conditions.
        objective: with its constraints and further objectives.
        settings: of the algorithm.
        seed: of the search.
        parallel: trials at a time.

    """
    experiment = katib.Experiment(name=name)
    spec = experiment.spec
    extra: dict[str, Value] = {"seed": seed, **settings}
    for parameter in space.parameters:
        spec.parameter_specs.parameters.append(_parameter_spec(parameter))
        if parameter.default is not None:
            extra[f"default.{parameter.name}"] = parameter.default
        if parameter.scale == "log" and parameter.step is not None:
            extra[f"log_step.{parameter.name}"] = parameter.step
        if parameter.when:
            extra[f"when.{parameter.name}"] = json.dumps(parameter.when)
    if objective.constraints:
        extra["constraints"] = ", ".join(
            f"{c.metric} <= {c.max!r}" if c.max is not None else f"{c.metric} >= {c.min!r}"
            for c in objective.constraints
        )
    if objective.further:
        extra["further_objectives"] = ", ".join(f"{goal.goal} {goal.metric}" for goal in objective.further)
    spec.objective.type = katib.MINIMIZE if objective.goal == "minimize" else katib.MAXIMIZE
    spec.objective.objective_metric_name = objective.metric
    spec.objective.additional_metric_names.extend(objective.additional_metrics)
    spec.algorithm.algorithm_name = algorithm
    spec.parallel_trial_count = parallel
    for key, value in extra.items():
        spec.algorithm.algorithm_settings.add(name=key, value=_text(value))
    return experiment


def experiment_of_study(study: Study) -> Any:
    """Return the Experiment message of a study's search."""
    search = study.search
    return experiment_of(
        study.name,
        search.algorithm,
        search.space,
        Objective.of(search),
        study.search_settings,
        study.seed,
        search.at_once,
    )


def _text(value: Value) -> str:
    return value if isinstance(value, str) else repr(value)


def _parameter_spec(parameter: Parameter) -> Any:
    spec = katib.ParameterSpec(name=parameter.name, parameter_type=_KINDS[parameter.kind])
    feasible = spec.feasible_space
    feasible.distribution = katib.LOG_UNIFORM if parameter.scale == "log" else katib.UNIFORM
    if parameter.values is not None:
        feasible.list.extend(_text(value) for value in parameter.values)
        return spec
    for bound in ("min", "max"):
        number = parameter.low if bound == "min" else parameter.high
        assert number is not None
        setattr(feasible, bound, repr(int(number) if parameter.kind == "integer" else number))
    if parameter.step is not None and parameter.scale == "linear":
        feasible.step = repr(int(parameter.step) if parameter.kind == "integer" else parameter.step)
    return spec


def search_of(experiment: Any) -> Search:
    """Return the search that an Experiment describes.

    Raises:
        InputError: with all problems. Katib's webhook lets through empty lists, crossed bounds, texts that are no
            numbers, and any setting.
    """
    spec, problems = experiment.spec, []
    settings = {entry.name: entry.value for entry in spec.algorithm.algorithm_settings}
    issued, earlier = settings.pop(ISSUED, ""), settings.pop(WARM, "")
    problems += _too_large(spec, settings)
    if problems:  # the other checks could take too long on it
        raise InputError(problems, "experiment")
    parameters, texts = [], {}
    for entry in spec.parameter_specs.parameters:
        extra = {key: settings.pop(f"{key}.{entry.name}", None) for key in ("default", "log_step", "when")}
        try:
            parameter, words = _parameter(entry, extra["default"], extra["log_step"])
            if extra["when"] is not None:
                parameter = _conditional(entry, parameter, extra["when"])
        except InputError as error:
            problems += error.problems
            continue
        parameters.append(parameter)
        if words:
            texts[entry.name] = words
    objective = _objective(
        spec.objective, settings.pop("constraints", ""), settings.pop("further_objectives", ""), problems
    )
    for key in [k for k in settings if k.startswith(("default.", "log_step.", "when."))]:
        del settings[key]
        problems.append(
            f"setting {key!r} names no parameter; there are {[p.name for p in spec.parameter_specs.parameters]}"
        )
    if spec.HasField("nas_config"):
        problems.append("neural architecture search is not supported, but `nasConfig` is given")
    space = _space(parameters, spec, problems)
    warm = tuple(warm_start.decode(space, earlier, problems)) if space else ()
    problems += search.validate(
        spec.algorithm.algorithm_name, space or _ANY_SPACE, settings, objective, katib=True
    )
    if problems or space is None:
        raise InputError(problems, f"experiment {experiment.name!r}")
    algorithm = spec.algorithm.algorithm_name
    parallel = max(spec.parallel_trial_count, 1)
    return Search(experiment.name, algorithm, space, objective, settings, issued, parallel, texts, warm)


def _too_large(spec: Any, settings: Mapping[str, str]) -> list[str]:
    """Return the problems of an Experiment larger than any search is: reading it could take longer than Katib waits."""
    parameters = spec.parameter_specs.parameters
    problems = []
    if len(parameters) > MAX_PARAMETERS:
        problems.append(f"a search has at most {MAX_PARAMETERS:,} parameters, but got {len(parameters):,}")
    for entry in parameters[:MAX_PARAMETERS]:
        size = len(entry.feasible_space.list)
        if size > MAX_VALUES:
            problems.append(
                f"`list` of {entry.name[:50]!r} has at most {MAX_VALUES:,} values, but got {size:,}"
            )
        space = entry.feasible_space
        texts = (entry.name, space.min, space.max, space.step, *space.list[:MAX_VALUES])
        problems += _too_long(f"a text of parameter {entry.name[:50]!r}", texts)
    objective = spec.objective
    problems += _too_long(
        "a metric's name", (objective.objective_metric_name, *objective.additional_metric_names)
    )
    problems += [
        problem
        for name, value in settings.items()
        for problem in _too_long(f"setting {name[:50]!r}", (name, value))
    ]
    return problems[:10]


def _too_long(what: str, texts: Iterable[str]) -> list[str]:
    longest = max(map(len, texts))
    if longest <= MAX_CHARACTERS:
        return []
    return [f"{what} has at most {MAX_CHARACTERS:,} letters, but got {longest:,}"]


# Replaces a space that cannot be read, so that algorithm and settings are still checked
_ANY_SPACE = Space(parameters=(Parameter(name="any", kind="categorical", values=("any",)),))


def _space(parameters: list[Parameter], spec: Any, problems: list[str]) -> Space | None:
    if not spec.parameter_specs.parameters:
        problems.append("a search needs at least one parameter, but got none")
    if len(parameters) < max(len(spec.parameter_specs.parameters), 1):
        names = Counter(entry.name for entry in spec.parameter_specs.parameters)
        if twice := sorted(name for name, times in names.items() if name and times > 1):
            problems.append(f"parameter names must differ, but duplicates are {twice}")
        return None
    try:
        return Space(parameters=tuple(parameters))
    except ValidationError as error:
        problems += [_plain(entry["msg"]) for entry in error.errors()]
        return None


def _objective(spec: Any, constraints: str, further: str, problems: list[str]) -> Objective:
    goals = {katib.MINIMIZE: "minimize", katib.MAXIMIZE: "maximize"}
    if spec.type not in goals:
        problems.append(f"`objective.type` must be minimize or maximize, but got {spec.type}")
    if not spec.objective_metric_name:
        problems.append("`objective.objectiveMetricName` is required, but got ''")
    goal: Any = goals.get(spec.type, "minimize")
    limits, more = _constraints(constraints, problems), _further(further, problems)
    names = dict.fromkeys((limit.metric for limit in limits), "a constrained")
    for metric, kind in {**names, **{goal.metric: "a further objective's" for goal in more}}.items():
        if metric not in spec.additional_metric_names:
            problems.append(
                f"{kind} metric must be one of `additionalMetricNames` "
                f"{list(spec.additional_metric_names)}, but got {metric!r}"
            )
    return Objective(spec.objective_metric_name, goal, tuple(limits), tuple(more))


def _constraints(text: str, problems: list[str]) -> list[Constraint]:
    constraints = []
    for part in _parts(text):
        match = _CONSTRAINT.fullmatch(part)
        limit = _finite(match["limit"]) if match else None
        if match is None or limit is None:
            problems.append(f"a constraint reads `metric <= number` or `metric >= number`, but got {part!r}")
            continue
        constraints.append(
            Constraint(metric=match["metric"], **{"max" if match["sign"] == "<=" else "min": limit})
        )
    return constraints


def _further(text: str, problems: list[str]) -> list[Goal]:
    objectives = []
    for part in _parts(text):
        match = _GOAL.fullmatch(part)
        if match is None:
            problems.append(f"an objective reads `minimize metric` or `maximize metric`, but got {part!r}")
            continue
        objectives.append(Goal.model_validate(match.groupdict()))
    return objectives


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, re.split(r"[,;]", text)) if part]


def _parameter(spec: Any, default: str | None, log_step: str | None) -> tuple[Parameter, tuple[str, ...]]:
    """Return the parameter of a spec and, for a list, its texts in the order of the levels."""
    if not spec.name:
        raise InputError("a parameter needs a name, but got ''")
    if spec.parameter_type in (katib.DISCRETE, katib.CATEGORICAL):
        return _list(spec, default)
    if spec.parameter_type in (katib.DOUBLE, katib.INT):
        return _range(spec, default, log_step)
    kinds = "double, int, discrete or categorical"
    raise InputError(f"`parameterType` of {spec.name!r} must be {kinds}, but got {spec.parameter_type}")


def _list(spec: Any, default: str | None) -> tuple[Parameter, tuple[str, ...]]:
    words = list(spec.feasible_space.list)
    # Katib inserts the texts into the JSON of a trial without escaping them
    broken = [word for word in words if json.dumps(word, ensure_ascii=False) != f'"{word}"']
    if broken:
        raise InputError(
            f"`list` of {spec.name!r} must hold words without quotes, backslashes and line breaks, but got {broken}"
        )
    if spec.parameter_type == katib.CATEGORICAL:
        return _build(spec, kind="categorical", values=tuple(words), default=default), tuple(words)
    bad = [word for word in words if _finite(word) is None]
    if bad:
        raise InputError(f"`list` of the discrete parameter {spec.name!r} must hold numbers, but got {bad}")
    words.sort(key=float)
    values = tuple(_number(word) for word in words)
    number: Value | None = default
    if default is not None and _finite(default) is not None:
        number = next((value for value in values if value == _number(default)), _number(default))
    return _build(spec, kind="discrete", values=values, default=number), tuple(words)


def _range(spec: Any, default: str | None, log10_step: str | None) -> tuple[Parameter, tuple[str, ...]]:
    feasible, name = spec.feasible_space, spec.name
    numbers: dict[str, float | None] = {}
    fields = {"min": feasible.min, "max": feasible.max, "step": feasible.step or None}
    fields |= {f"setting default.{name}": default, f"setting log_step.{name}": log10_step}
    for what, text in fields.items():
        numbers[what] = None if text is None else _finite(text)
    if wrong := [(what, text) for what, text in fields.items() if text is not None and numbers[what] is None]:
        raise InputError(
            [f"`{what}` of {name!r} must be a finite number, but got {text!r}" for what, text in wrong]
        )
    low, high, step, start, log_step = numbers.values()
    assert low is not None
    assert high is not None
    log = feasible.distribution in (katib.LOG_UNIFORM, katib.LOG_NORMAL)
    kind = "integer" if spec.parameter_type == katib.INT else "real"
    normal = feasible.distribution in (katib.NORMAL, katib.LOG_NORMAL)
    if start is None and normal and low <= high and (low > 0 or not log):
        start = math.sqrt(low * high) if log else (low + high) / 2
    bounds = {"low": low, "high": high, "scale": "log" if log else "linear"}
    parameter = _build(spec, kind=kind, **bounds, step=log_step if log else step, default=start)
    if not log or step is None:
        return parameter, ()
    if step <= 0:
        raise InputError(f"`step > 0` must hold for {name!r}, but got step={step:g}")
    if kind == "integer" and step != int(step):
        raise InputError(f"an integer parameter has a whole `step`, but got {step:g} for {name!r}")
    if low < high and (high - low) / step < 1 - 1e-9:
        raise InputError(
            f"`step` must be at most `max` - `min`, {high - low:g}, or {name!r} would always be {low:g}, but got step={step:g}"
        )
    if not math.isfinite((high - low) / step):
        raise InputError(f"`step` is too small for the range of {name!r}, but got step={step:g}")
    return _stepped_log(spec, parameter, step)


def _stepped_log(spec: Any, parameter: Parameter, step: float) -> tuple[Parameter, tuple[str, ...]]:
    """Return the parameter whose values are those ``min + k * step`` that are nearest to an even grid on the log scale."""
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    start, span = math.log10(low), math.log10(high) - math.log10(low)
    count = math.ceil(span / LOG10_GRID) + 1
    most = math.floor((high - low) / step + 1e-9)
    places = (10 ** (start + span * k / max(count - 1, 1)) for k in range(count))
    values: tuple[Value, ...] = tuple(
        sorted({tidy(low + min(round((position - low) / step), most) * step) for position in places})
    )
    if parameter.kind == "integer":
        values = tuple(int(value) for value in values)
    default = parameter.default
    if default is not None:
        wanted = float(default)
        default = min(values, key=lambda value: abs(float(value) - wanted))
    return _build(spec, kind="discrete", values=values, default=default), tuple(map(repr, values))


def _conditional(spec: Any, parameter: Parameter, text: str) -> Parameter:
    """Return the parameter with the condition in the setting ``when.<parameter>``."""
    try:
        when = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"setting 'when.{spec.name}' must be JSON, but got {text!r}: {error}") from error
    fields = parameter.model_dump() | {"when": when}
    del fields["name"]
    return _build(spec, **fields)


def _build(spec: Any, **fields: Any) -> Parameter:
    try:
        return Parameter(name=spec.name, **fields)
    except ValidationError as error:
        raise InputError([_plain(entry["msg"]) for entry in error.errors()]) from error


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _number(text: str) -> float | int:
    return int(text) if re.fullmatch("[-+]?[0-9]{1,18}", text.strip()) else float(text)


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def strings(search: Search, assignment: Assignment) -> dict[str, str]:
    """Return an assignment as Katib expects it, see `Search.text`."""
    return {name: search.text(name, value) for name, value in assignment.items()}
