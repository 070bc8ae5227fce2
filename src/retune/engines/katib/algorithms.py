"""The algorithm of an Experiment, with parameters and settings in the form that its suggestion service expects.

Retune's algorithms run in the suggestion image, under the names in `OURS`. Katib's own run in Katib's images and support
neither our grids nor constraints nor earlier studies; ``tpe`` and ``random`` are Katib's.

Sources: kubeflow/katib v0.19.0, pkg/suggestion/v1beta1/{hyperopt,optuna,skopt,goptuna}, for settings and faults.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeflow_katib_api import models

from retune import extensions, search
from retune.engines.katib import OURS
from retune.errors import nearest
from retune.search import Objective, Observation
from retune.space import Parameter, Value
from retune.study import Study
from retune.suggestion import messages as katib
from retune.suggestion.experiment import WARM, experiment_of_study, search_of
from retune.suggestion.warm import encode

_NO_DEFAULT_FIRST = ("retune-random",)  # all others of ours try the default setting first

_KATIB_SETTINGS: dict[str, tuple[str, ...]] = {
    "tpe": ("gamma", "prior_weight", "n_EI_candidates", "random_state"),
    "random": ("random_state",),
    "multivariate-tpe": ("n_startup_trials", "n_ei_candidates", "random_state"),
    "bayesianoptimization": (
        "base_estimator",
        "n_initial_points",
        "acq_func",
        "acq_optimizer",
        "random_state",
    ),
    "cmaes": ("sigma", "restart_strategy", "random_state"),
}
_TYPES = {
    katib.DOUBLE: "double",
    katib.INT: "int",
    katib.DISCRETE: "discrete",
    katib.CATEGORICAL: "categorical",
}


def is_ours(algorithm: str) -> bool:
    """Return whether an algorithm runs in our image under Katib: retune's own, and those of installed packages."""
    return algorithm in OURS or algorithm in extensions.names("algorithms")


def begins_with_default(study: Study, warm: Sequence[Observation] = ()) -> bool:
    """Return whether the first point of the Experiment will be exactly the default setting.

    Otherwise the default is trained by a Job of its own: for Katib's algorithms, for uniform random search, if an
    earlier study has tried it, and if it lies between two levels of the grid.
    """
    space, algorithm = study.search.space, study.search.algorithm
    default = space.default()
    if default is None or not is_ours(algorithm) or algorithm in _NO_DEFAULT_FIRST:
        return False
    tried = [space.encode(entry.assignment) for entry in warm]
    return space.snap(default) == default and space.encode(default) not in tried


def problems(study: Study) -> list[str]:
    """Return why the study's algorithm cannot run under Katib; empty if it can."""
    name, wanted = study.search.algorithm, study.search
    objective = Objective.of(wanted)
    if is_ours(name):
        return search.validate(name, wanted.space, wanted.settings, objective, here=False, katib=True)
    messages = []
    for key in wanted.settings:
        if key not in _KATIB_SETTINGS[name]:
            near = nearest(key, _KATIB_SETTINGS[name])
            hint = f"did you mean {near!r}? " if near else ""
            messages.append(
                f"Katib's `{name}` has no setting {key!r}; {hint}`search.settings` may hold {list(_KATIB_SETTINGS[name])}"
            )

    def ours() -> str:
        # Only for a problem: to know them all, all algorithms are imported
        return f"use one of {search.fitting(wanted.space, objective, here=False, katib=True)}"

    if wanted.warm_start:
        messages.append(
            f"Katib's `{name}` cannot use earlier studies: remove `search.warm_start`, or {ours()}"
        )
    if wanted.constraints:
        limited = [limit.metric for limit in wanted.constraints]
        messages.append(
            f"Katib's `{name}` has no constraints, but got some on {limited}: remove `search.constraints`, or {ours()}"
        )
    if wanted.further_objectives:
        messages.append(
            f"Katib's `{name}` optimises one metric, but got {[o.metric for o in wanted.objectives]}: {ours()}"
        )
    if depending := [p.name for p in wanted.space.parameters if p.when]:
        messages.append(
            f"Katib's `{name}` has no conditional parameters, but got `when` of {depending}: remove `when`, or {ours()}"
        )
    numbers = [p.name for p in wanted.space.parameters if p.kind in ("real", "integer") and p.step is None]
    if name == "cmaes" and len(numbers) < 2:
        messages.append(
            f"`cmaes` needs two or more real or integer parameters without a `step`, but got {numbers}: {ours()}"
        )
    if name == "bayesianoptimization":
        # Katib's skopt service samples each double on a log scale, whatever the distribution
        doubles = [p for p in wanted.space.parameters if p.kind == "real" and p.step is None]
        low = [p.name for p in doubles if p.low is not None and p.low <= 0]
        if low:
            messages.append(
                "Katib's `bayesianoptimization` draws real parameters on a log scale, so `low > 0` must hold, "
                f"but got {low}: raise `low`, give a `step`, or {ours()}"
            )
    return messages


def spec(study: Study, warm: Sequence[Observation] = ()) -> models.V1beta1AlgorithmSpec:
    """Return the Experiment's `algorithm`; settings of ours carry what Katib's message has no field for."""
    name = study.search.algorithm
    if is_ours(name):
        message = experiment_of_study(study)
        settings = {entry.name: entry.value for entry in message.spec.algorithm.algorithm_settings}
        if warm:
            settings[WARM] = encode(search_of(message).space, warm)
    else:
        settings = {"random_state": str(study.seed)} | {k: _text(v) for k, v in study.search.settings.items()}
    return models.V1beta1AlgorithmSpec(
        algorithm_name=name,
        algorithm_settings=[
            models.V1beta1AlgorithmSetting(name=key, value=value) for key, value in settings.items()
        ],
    )


def parameters(study: Study) -> list[models.V1beta1ParameterSpec]:
    """Return the Experiment's `parameters`."""
    if is_ours(study.search.algorithm):
        return [_from_message(entry) for entry in experiment_of_study(study).spec.parameter_specs.parameters]
    return [_for_katib(parameter) for parameter in study.search.space.parameters]


def _from_message(entry: katib.ParameterSpec) -> models.V1beta1ParameterSpec:
    feasible = entry.feasible_space
    scale = "logUniform" if feasible.distribution == katib.LOG_UNIFORM else "uniform"
    space = models.V1beta1FeasibleSpace(
        min=feasible.min or None,
        max=feasible.max or None,
        step=feasible.step or None,
        list=list(feasible.list) or None,
        distribution=None if feasible.list else scale,
    )
    return models.V1beta1ParameterSpec(
        name=entry.name, parameter_type=_TYPES[entry.parameter_type], feasible_space=space
    )


def _for_katib(parameter: Parameter) -> models.V1beta1ParameterSpec:
    """Return a parameter for Katib's own services.

    Each of them interprets a `step` in another way (hyperopt rounds to multiples of it, even out of the range), so a
    parameter with a step becomes the list of its values.
    """
    if parameter.values is not None or parameter.step is not None:
        kind = "categorical" if parameter.kind == "categorical" else "discrete"
        values = parameter.values or tuple(parameter.value(level) for level in range(parameter.levels))
        feasible = models.V1beta1FeasibleSpace(list=[_text(value) for value in values])
    else:
        assert parameter.low is not None
        assert parameter.high is not None
        whole = parameter.kind == "integer"
        kind = "int" if whole else "double"
        low, high = (repr(int(x) if whole else x) for x in (parameter.low, parameter.high))
        scale = "logUniform" if parameter.scale == "log" else "uniform"
        feasible = models.V1beta1FeasibleSpace(min=low, max=high, distribution=scale)
    return models.V1beta1ParameterSpec(name=parameter.name, parameter_type=kind, feasible_space=feasible)


def _text(value: Value | bool) -> str:
    return value if isinstance(value, str) else repr(value)
