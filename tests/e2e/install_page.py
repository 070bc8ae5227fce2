"""The commands of docs/install.md, run by a shell: placeholders are filled in, the rest is unchanged."""

import re
import subprocess

from tests.conftest import ROOT

PAGE = ROOT / "docs/install.md"


def block(beginning):
    """Return the indented block of the page in which a line begins so."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", PAGE.read_text(), re.M)
    (found,) = [b for b in blocks if any(line.strip().startswith(beginning) for line in b.splitlines())]
    return "".join(line[4:] for line in found.splitlines(keepends=True))


def filled(script, names, keys):
    """Replace names of the page, and the `…` of `KEY=…`."""
    for old, new in names.items():
        script = script.replace(old, new)
    return re.sub(r"(\w+)=…", lambda found: f"{found[1]}={keys[found[1]]}", script)


def run(script, folder, env):
    """Run a script in a folder, to its end, and return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=1500
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout
