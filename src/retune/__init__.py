"""retune finds, scores and promotes the best LoRA adapter for an instruction-tuned language model.

::

    import retune

    study = retune.load("study.yaml", ["search.trials=20"])
    outcome = retune.run(study)
    print(outcome.selection.chosen, outcome.gate.decision)

The names in `__all__` are the public interface; they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retune.api import bench, promote, run, select, suggest
    from retune.errors import InputError, Interrupted, RetuneError
    from retune.events import Event
    from retune.steps.outcome import Outcome

    # mypy takes `load` for the module of that name, too.
    from retune.study import Study, load  # type: ignore[no-redef]

__version__ = "0.1.0"
__all__ = [
    "Event", "InputError", "Interrupted", "Outcome", "RetuneError", "Study",
    "bench", "load", "promote", "run", "select", "suggest",
]  # fmt: skip

_MODULES = {
    "Event": "retune.events",
    "InputError": "retune.errors",
    "Interrupted": "retune.errors",
    "Outcome": "retune.steps.outcome",
    "RetuneError": "retune.errors",
    "Study": "retune.study",
    "load": "retune.study",
    "bench": "retune.api",
    "promote": "retune.api",
    "run": "retune.api",
    "select": "retune.api",
    "suggest": "retune.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562): `import retune` itself must stay fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'retune' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
