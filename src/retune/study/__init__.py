"""The study file: one pydantic model, validated as a whole, all errors at once.

`load` reads YAML, applies dotted overrides (``search.trials=20``), resolves paths and returns a `Study`. Paths of
inputs (data, model, benchmark files, warm starts) are relative to the study file; paths of outputs (artifacts,
tracking) are relative to the current folder. A loaded study holds absolute paths only, so that its JSON is valid in
every process.
"""

from retune.study.cluster import Cluster, Katib, Volume
from retune.study.data import PROMPTS, Data, File, Source
from retune.study.engine import Engine
from retune.study.fidelity import Proxy, Stopping
from retune.study.load import json_schema, load, loads, parse
from retune.study.model import (
    Artifacts,
    Benchmark,
    Constraint,
    Gate,
    Model,
    Objective,
    Preset,
    Promote,
    Report,
    Search,
    Select,
    Study,
    Tracking,
)
from retune.study.names import ALGORITHMS, TASKS, AlgorithmName, TaskName
from retune.study.placement import Toleration
from retune.study.training import TUNABLE, Training

__all__ = [
    "ALGORITHMS",
    "PROMPTS",
    "TASKS",
    "TUNABLE",
    "AlgorithmName",
    "Artifacts",
    "Benchmark",
    "Cluster",
    "Constraint",
    "Data",
    "Engine",
    "File",
    "Gate",
    "Katib",
    "Model",
    "Objective",
    "Preset",
    "Promote",
    "Proxy",
    "Report",
    "Search",
    "Select",
    "Source",
    "Stopping",
    "Study",
    "TaskName",
    "Toleration",
    "Tracking",
    "Training",
    "Volume",
    "json_schema",
    "load",
    "loads",
    "parse",
]
