"""`python -m retune.pipelines`: compile every pipeline to the YAML beside it."""

from pathlib import Path

from retune.pipelines.compiled import PIPELINES, compile_pipeline

for name in PIPELINES:
    path = Path(__file__).with_name(f"{name}.yaml")
    compile_pipeline(name, path)
    print(path.name)
