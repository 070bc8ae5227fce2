"""The pipeline `tune`, run by kfp.local from its compiled YAML."""

import json
from pathlib import Path

import pytest

from retune.launch.compiled import compiled
from retune.records import TrialRecord

pytestmark = pytest.mark.slow


def run_here(name, arguments, root):
    """Run a compiled pipeline, every component in a process of its own."""
    from kfp import components, local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    components.load_component_from_file(str(compiled(name)))(**arguments)


def test_one_setting_from_raw_data_to_scores(small, tmp_path):
    tasks = [
        "benchmark.tasks=[mmlu]",
        f"benchmark.data={{mmlu: {Path(__file__).parents[2]}/examples/data/benchmarks/mmlu}}",
    ]
    study = small(*tasks, "benchmark.limit=4")
    arguments = {"study": study.model_dump_json(), "assignment": {"rank": 16, "learning_rate": 0.003}}
    run_here("tune", arguments, tmp_path / "pipeline")
    (path,) = Path(study.root).glob("tune-*/trial.json")
    record = TrialRecord.model_validate_json(path.read_text())
    assert record.status == "completed"
    assert record.assignment == {"rank": 16, "learning_rate": 0.003}
    assert {p.parent.name for p in path.parent.glob("bench/*/mmlu.json")} == {"base", "adapter"}
    metrics = [
        json.loads(p.read_text())
        for p in (tmp_path / "pipeline").glob("*/validate-adapter/executor_output.json")
    ]
    (loss,) = [m["parameterValues"]["Output"] for m in metrics]
    assert loss == pytest.approx(record.values["validation_loss"], rel=1e-6)
