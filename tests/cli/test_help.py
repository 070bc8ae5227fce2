"""The help texts: fast to print, short, complete, and the same as in the docs."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli import VERBS, cli

ROOT = Path(__file__).resolve().parents[2]


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['retune', '--help']\ntry:\n from retune.cli import main; main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'transformers', 'mlflow', 'kfp', 'optuna', 'grpc', 'numpy', 'pydantic'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_a_screen_and_has_examples(verb):
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) <= 45
    assert "Example" in result.output
    assert max(map(len, result.output.splitlines())) <= 110


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_does_not_wait_for_torch(verb):
    code = f"import sys; from click.testing import CliRunner; from retune.cli import cli; r = CliRunner().invoke(cli, ['{verb}', '--help']); assert r.exit_code == 0, r.output; assert not {{'torch', 'mlflow', 'kfp'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_verb_has_its_file_and_every_file_its_verb():
    files = {p.stem for p in (ROOT / "src/retune/cli").glob("*.py") if not p.stem.startswith("_")}
    assert files == set(VERBS)


def test_generated_pages_are_what_the_program_says():
    check = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
