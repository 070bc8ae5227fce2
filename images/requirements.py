"""Write what extras of pyproject.toml require: `python3 requirements.py FOLDER suggest track` makes `FOLDER/requirements.txt`.

A layer that copies only that file is built again when a requirement changes, and not for another line of pyproject.toml.
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def required(project: dict, extra: str) -> Iterator[str]:
    """Yield the requirements of an extra, and of those that it names."""
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"retune\[(.+)\]", line)
        if own:
            for inner in own[1].split(","):
                yield from required(project, inner.strip())
        else:
            yield line


def main() -> None:
    """Write the file, with the time 0: builders that compare times see the same file."""
    folder, extras = Path(sys.argv[1]), sys.argv[2:]
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in required(project, extra)]
    folder.mkdir()
    file = folder / "requirements.txt"
    file.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)))
    for made in (file, folder):
        os.utime(made, (0, 0))


if __name__ == "__main__":
    main()
