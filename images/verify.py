"""Compare what pip installed with the hashes of this repository: `python3 verify.py REPORT [--allow-unpinned]`.

REPORT is what `pip install --report` wrote: each file that came over the network, with its SHA-256. A file whose hash
is not among those of `hashes.txt` ends the build. `make hashes` writes that file anew after a change of constraints.txt.
A package that is not listed at all ends it too. The exception is a variant of torch (``2.13.0+cpu``) from an index other than
PyPI: hashes.txt has PyPI's torch with its CUDA libraries, while other indexes have files of their own.
"""

import json
import re
import sys
from pathlib import Path


def pinned(text: str) -> dict[str, set[str]]:
    """Return the hashes by `name==version`."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if name := re.match(r"([A-Za-z0-9._-]+==[^\s;\\]+)", line):
            hashes = found.setdefault(_key(*name[1].split("==")), set())
        hashes_here = re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
        if hashes_here:
            hashes.update(hashes_here)
    return found


def _key(name: str, version: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower() + "==" + version


def problems(report: dict, known: dict[str, set[str]], allow_unpinned: bool) -> list[str]:
    """Return what was installed and is not what it should be; our own wheel, which was built here, is passed over."""
    found = []
    allow_unpinned = allow_unpinned and any(
        item["metadata"]["name"] == "torch" and "+" in item["metadata"]["version"]
        for item in report["install"]
    )
    for item in report["install"]:
        info = item["download_info"]
        if item.get("is_direct") and info["url"].startswith("file://"):
            continue
        key = _key(item["metadata"]["name"], item["metadata"]["version"])
        sha256 = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        if key not in known:
            if not allow_unpinned:
                found.append(f"{key} is not in hashes.txt; run `make hashes`")
        elif sha256 not in known[key]:
            found.append(f"{key} has the SHA-256 {sha256}, which hashes.txt does not list: {info['url']}")
    return found


def main() -> None:
    """Print each problem and end with 1 if there is any."""
    report = json.loads(Path(sys.argv[1]).read_text())
    known = pinned(Path(__file__).with_name("hashes.txt").read_text())
    wrong = problems(report, known, "--allow-unpinned" in sys.argv[2:])
    print(*wrong, sep="\n", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
