"""`python -m pipelines`, from the root of the repository: compile all components and pipelines to YAML.

A component's YAML is next to its source, for `kfp.components.load_component_from_url`; a pipeline's is what
`retune run` runs on this machine and what `retune submit` sends to a cluster.
"""

import importlib
from pathlib import Path

from kfp import compiler

from retune.launch.compiled import PIPELINES

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = tuple(sorted(path.parent.name for path in ROOT.glob("components/*/component.py")))


def compile_all(root: Path) -> list[Path]:
    """Write every component.yaml and pipeline YAML below `root`, laid out as in the repository; return their paths."""
    written = []
    for name in COMPONENTS:
        component = getattr(importlib.import_module(f"components.{name}.component"), name)
        written.append(_compile(component, root / "components" / name / "component.yaml"))
    for name in PIPELINES:
        pipeline = getattr(importlib.import_module(f"pipelines.{name}"), f"{name}_pipeline")
        written.append(_compile(pipeline, root / "pipelines" / f"{name}.yaml"))
    return written


def _compile(what: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(what, str(path))
    return path


if __name__ == "__main__":
    for path in compile_all(ROOT):
        print(path.relative_to(ROOT))
