"""Write the pins and hashes of a layer of an image: `python3 pins.py torch` makes `torch/constraints.txt` and `torch/hashes.txt`.

A layer that copies only those is built again only when one of its own pins changes. For torch that saves 3 GB of downloads.
"""

import os
import re
import sys
from pathlib import Path

LAYERS = {
    "pip": r"hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers",
    "torch": r"torch|triton|nvidia-.*|cuda-.*|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|setuptools|sympy|"
    r"typing-extensions",
}
"""What each layer installs, as a pattern of normalised names; a test compares it with what these packages require."""


def of(layer: str, text: str) -> str:
    """Return the entries of constraints.txt or hashes.txt that belong to a layer; an entry's further lines are indented."""
    kept, belongs = [], False
    for line in text.splitlines(keepends=True):
        if name := re.match(r"([A-Za-z0-9._-]+)==", line):
            belongs = bool(re.fullmatch(LAYERS[layer], re.sub(r"[-_.]+", "-", name[1]).lower()))
        elif not line[:1].isspace():
            belongs = False
        if belongs:
            kept.append(line)
    return "".join(kept)


if __name__ == "__main__":
    for layer in sys.argv[1:]:
        folder = Path(layer)
        folder.mkdir()
        for name in ("constraints.txt", "hashes.txt"):
            (folder / name).write_text(of(layer, Path(name).read_text()))
            os.utime(folder / name, (0, 0))  # builders that compare times see the same file
        os.utime(folder, (0, 0))
