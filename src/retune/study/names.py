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
"""Algorithms that need no other package."""
KATIB_ONLY = ("multivariate-tpe", "bayesianoptimization", "cmaes")
"""Katib's own services, with no counterpart here. Under Katib `tpe` and `random` are Katib's too; ours are `retune-tpe`
and `retune-random`, under either engine."""
TASKS = ("mmlu", "bbh", "drop", "humaneval", "hellaswag")
FORMATS = (
    "auto", "alpaca", "dolly", "jsonl", "csv", "parquet", "prompt-completion", "question-answer", "sharegpt", "messages",
    "text",
)  # fmt: skip
ENGINES = ("local", "katib")


@dataclass(frozen=True)
class Known:
    """Pydantic's annotation for a text that is one of `own` or a name that an installed package adds."""

    kind: extensions.Kind
    own: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name; packages are looked for only if it is none of retune's own."""
        check = partial(extensions.known, self.kind, self.own)
        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Offer what there is on this machine."""
        return {"type": "string", "enum": [*self.own, *extensions.names(self.kind)]}


AlgorithmName = Annotated[str, Known("algorithms", ALGORITHMS)]
TaskName = Annotated[str, Known("tasks", TASKS)]
ScoreName = Annotated[str, Known("tasks", (*TASKS, "objective"))]
"""What a selection can go by: a benchmark, or `objective` for the search's own metric."""
FormatName = Annotated[str, Known("formats", FORMATS)]
EngineName = Annotated[str, Known("engines", ENGINES)]
