"""Loading a base says nothing: what is on the screen is retune's own."""

import subprocess
import sys

from tests.conftest import ROOT


def test_loading_a_base_is_silent_even_after_the_hub_was_imported():
    code = (
        "import huggingface_hub; from retune import models; from retune.study import Model; "
        f"models.load_base(Model(base={str(ROOT / 'examples/base/tiny')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
