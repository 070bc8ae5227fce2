"""The fourth example: `import retune`, and the script that uses it, with fewer trials."""

import subprocess
import sys

import pytest
from tests.conftest import ROOT

import retune

SCRIPT = ROOT / "examples/04-python/study.py"


def test_the_front_door_is_quick_and_gives_what_it_promises():
    program = (
        "import sys, time; begin = time.perf_counter(); import retune; spent = time.perf_counter() - begin\n"
        "heavy = {'torch', 'pydantic', 'kfp', 'mlflow', 'numpy', 'yaml', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(retune.__all__) <= set(dir(retune))\n"
        "for name in retune.__all__: getattr(retune, name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        retune.nothing


def test_bench_tells_all_problems_of_its_settings_at_once():
    with pytest.raises(retune.InputError) as caught:
        retune.bench("base", {"mmlu": "x", "mmul": "y"}, dtype="int8", limt=3)
    messages = str(caught.value)
    assert "dtype" in messages
    assert "did you mean 'mmlu'" in messages
    assert "limt: unknown key; did you mean 'limit'?" in messages


@pytest.mark.slow
def test_the_script_runs_and_the_same_study_goes_on_from_python(tmp_path):
    text = SCRIPT.read_text()
    for old, new in (('"train": 200', '"train": 40'), ('"validation": 60', '"validation": 20'), ('"trials": 6', '"trials": 3'),
                     ('"repeats": 1', '"repeats": 0')):  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = text.replace("here = Path(__file__).parent", f"here = Path({str(SCRIPT.parent)!r})")
    text += "\nagain = retune.suggest(study, 2)\nassert all(s not in [r.assignment for r in outcome.records()] for s in again)\n"
    text += "assert retune.select(study).selection.chosen == outcome.selection.chosen\n"
    text += "assert retune.promote('in-python-adapter', rollback=False)['champion']['version'] == '1'\n"
    text += "assert retune.run(study) == outcome\n"
    (tmp_path / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "the first settings to be tried: [{'rank': 8" in done.stdout
    assert "chosen: trial-00" in done.stdout
    assert (tmp_path / "history.png").stat().st_size > 5000
