"""Removal of the Experiments that use our algorithms, before these are removed from Katib's configuration.

Katib's controller removes its finalizer from a deleted Experiment by an update, and its webhook refuses every update of an
Experiment whose algorithm has no entry in `katib-config` (Katib 0.19, `experiment_controller_util.go` and the validator). So an
Experiment that outlives the entry of its algorithm, running or finished, can never be deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from retune.engines.katib.api import Api, Object, ended
from retune.errors import InputError, RetuneError

_THREADS = 8
_PER_LINE = 20  # Experiments in one line of the error: longer lines would be shortened (`retune.errors`)
_PATIENCE = 300.0  # seconds for the deletion of one Experiment


def clear(
    api: Api,
    algorithms: Collection[str],
    delete_finished: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Require that no Experiment of the cluster uses one of these algorithms.

    Args:
        api: its credentials must be allowed to list Experiments in all namespaces, and to delete them if requested.
        algorithms: values of `algorithmName`.
        delete_finished: first delete the Experiments that have ended, with their trials, and wait until they are gone.
        say: called with a line about each deleted Experiment.

    Raises:
        InputError: if there are any; names all, and the commands that delete them.
        RetuneError: if a deletion does not finish.

    """
    users = using(api, algorithms)
    if delete_finished:
        _delete([each for each in users if ended(each) or "deletionTimestamp" in each["metadata"]], say)
        users = using(api, algorithms)
    if users:
        raise InputError(_report(users), "retune katib unregister")


def using(api: Api, algorithms: Collection[str]) -> list[Object]:
    """Return the Experiments of all namespaces that use one of these algorithms, sorted by namespace and name."""
    users = [each for each in api.everywhere("experiments") if _algorithm(each) in algorithms]
    return sorted(users, key=_place)


def state(experiment: Object) -> str:
    """Return the state of an Experiment as a word."""
    if "deletionTimestamp" in experiment["metadata"]:
        return "being deleted"
    return (ended(experiment) or "running").lower()


def _delete(experiments: list[Object], say: Callable[[str], None]) -> None:
    """Delete Experiments in parallel; report all deletions that failed."""

    def delete(experiment: Object) -> str:
        namespace, name = _place(experiment)
        try:
            Api(namespace, patience=_PATIENCE).delete_experiment(name)
        except RetuneError as error:
            return str(error)
        say(f"deleted experiment {namespace}/{name}")
        return ""

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = [problem for problem in pool.map(delete, experiments) if problem]
    if problems:
        raise RetuneError("; ".join(problems))


def _report(experiments: list[Object]) -> list[str]:
    """Return the rule, and the Experiments that violate it with the command that deletes them, by namespace."""
    rule = (
        "Katib cannot delete an Experiment whose algorithm it does not know, so no Experiment that uses ours may be left, "
        f"running or finished, but there {'is' if len(experiments) == 1 else 'are'} {len(experiments)}"
    )
    if any(map(ended, experiments)):
        rule += "; with --delete-finished the finished ones are deleted first"
    lines = [rule]
    for namespace, group in itertools.groupby(experiments, lambda each: _place(each)[0]):
        members = list(group)
        for start in range(0, len(members), _PER_LINE):
            part = members[start : start + _PER_LINE]
            states = ", ".join(f"{_place(each)[1]} ({_algorithm(each)}, {state(each)})" for each in part)
            names = " ".join(_place(each)[1] for each in part)
            lines.append(f"{states}: kubectl delete experiments --namespace {namespace} {names}")
    return lines


def _algorithm(experiment: Object) -> str | None:
    name: str | None = (experiment["spec"].get("algorithm") or {}).get("algorithmName")
    return name


def _place(experiment: Object) -> tuple[str, str]:
    return experiment["metadata"]["namespace"], experiment["metadata"]["name"]
