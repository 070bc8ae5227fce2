"""Names in a study file that installed packages can add to: algorithms, benchmarks, formats, engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from retune import extensions

ALGORITHMS = (
    "nomad", "mads-global", "language-bo", "tpe", "random", "lhs", "gp", "soo", "bamsoo", "retune-tpe", "retune-random",
    "multivariate-tpe", "bayesianoptimization", "cmaes",
)  # fmt: skip
"""Algorithms that need no further package."""
KATIB_ONLY = ("multivariate-tpe", "bayesianoptimization", "cmaes")
"""Katib's own services, with no counterpart here. Under Katib the names `tpe` and `random` are Katib's services too;
retune's own are `retune-tpe` and `retune-random` under either engine."""
TASKS = ("mmlu", "bbh", "drop", "humaneval", "hellaswag")
FORMATS = (
    "auto", "alpaca", "dolly", "jsonl", "csv", "parquet", "prompt-completion", "question-answer", "sharegpt", "messages",
    "text",
)  # fmt: skip
ENGINES = ("local", "katib")


@dataclass(frozen=True)
class ExtensibleName:
    """Pydantic's annotation for a text that is one of `builtin` or a name that an installed package adds."""

    kind: extensions.Kind
    builtin: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name; installed packages are searched only if it is not built in."""
        check = partial(extensions.check_name, self.kind, self.builtin)
        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """List the names that are valid on this machine."""
        return {"type": "string", "enum": [*self.builtin, *extensions.names(self.kind)]}


AlgorithmName = Annotated[str, ExtensibleName("algorithms", ALGORITHMS)]
TaskName = Annotated[str, ExtensibleName("tasks", TASKS)]
ScoreName = Annotated[str, ExtensibleName("tasks", (*TASKS, "objective"))]
"""A score that the rule of a selection may name: a benchmark, or `objective` for the search's own metric."""
FormatName = Annotated[str, ExtensibleName("formats", FORMATS)]
EngineName = Annotated[str, ExtensibleName("engines", ENGINES)]
