"""Print what some extras of pyproject.toml require, one a line: `python3 requirements.py suggest track`."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def required(extra: str) -> Iterator[str]:
    """Yield the requirements of an extra, and of those that it names."""
    for line in PROJECT["optional-dependencies"][extra]:
        own = re.fullmatch(r"retune\[(.+)\]", line)
        if own:
            for inner in own[1].split(","):
                yield from required(inner)
        else:
            yield line


lines = PROJECT["dependencies"] + [line for extra in sys.argv[1:] for line in required(extra)]
print(*dict.fromkeys(lines), sep="\n")
