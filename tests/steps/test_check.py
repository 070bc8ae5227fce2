"""What is refused before any GPU time is spent: all problems of a study at once."""

import json
import shutil
from pathlib import Path

import pytest

from retune.errors import InputError
from retune.retuning import changes
from retune.steps import benchmark
from retune.steps.check import check
from tests.evaluation.conftest import make_adapter, make_base, write_mmlu


def problems(study) -> str:
    with pytest.raises(InputError) as caught:
        check(study)
    return str(caught.value)


def test_a_right_study_passes(small):
    check(small())


def test_target_modules_must_be_the_bases(small):
    messages = problems(small("training.target_modules=[q_proj, query]", "data.sources.0.uri=gone.json"))
    assert "'query'" in messages
    assert "q_proj" in messages
    assert "gone.json" in messages


def test_a_base_that_is_none_is_told_once(small, tmp_path):
    messages = problems(small(f"model.base={tmp_path}"))
    assert messages.count("config.json") == 1
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    assert "transformers cannot read" in problems(small(f"model.base={tmp_path}"))


def test_a_quantised_base_that_cannot_be_loaded_here_or_edited_is_refused(small, tmp_path):
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "unheard-of"}
    (base / "config.json").write_text(json.dumps(config))
    messages = problems(small(f"model.base={base}", "training.init=pissa", "data.max_length=512"))
    assert "are quantised, and cannot be loaded here: Unknown quantization type" in messages
    assert "`init: pissa` edits the base's weights" in messages
    messages = problems(small(f"model.base={base}", "model.quantization=nf4", "data.max_length=512"))
    assert "are quantised already: remove `model.quantization: nf4`" in messages


def test_adapters_of_a_finished_search_are_checked_before_they_are_scored(searched):
    study, folder, tmp_path = searched
    check(study)
    shutil.rmtree(tmp_path / "adapter-1")
    other = make_base(tmp_path / "other", hidden=64)
    shutil.rmtree(tmp_path / "adapter-2")
    make_adapter(other, tmp_path / "adapter-2")
    messages = problems(study)
    assert "trial-001: an adapter's folder holds adapter_config.json" in messages
    assert "trial-002" in messages
    assert "was made for another base" in messages
    with folder.stamps.step("benchmark", benchmark.inputs(study, folder)):
        pass
    check(study)  # scored already: nobody needs the adapters


def test_a_first_run_knows_no_candidates(small, tmp_path):
    data = write_mmlu(tmp_path / "mmlu")
    study = small("benchmark.tasks=[mmlu]", f"benchmark.data={{mmlu: {data}}}")
    check(study)
    assert not Path(study.root).exists()


def test_other_questions_in_the_same_file_are_scored_again_and_retuned_for(searched):
    study, folder, tmp_path = searched
    inputs, reasons = benchmark.inputs(study, folder), changes.inputs(study)
    questions = next((tmp_path / "mmlu/test").glob("*.csv"))
    questions.write_text("".join(questions.read_text().splitlines(keepends=True)[1:]))
    assert benchmark.inputs(study, folder) != inputs
    (line,) = changes.reasons(reasons, changes.inputs(study))
    assert line.startswith("benchmark mmlu: ")
