"""Record a command in a terminal as an animated SVG: `python docs/record.py OUT.svg [--folder DIR] -- retune run study.yaml`.

The command runs for real in a pseudo terminal, pyte keeps its screen, and the screens become a film strip that CSS moves
past a window: it plays wherever an SVG is shown as a picture. The time of the recording is played faster where it is
longer than `--seconds`; the title says so. `make pictures` makes the README's.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import shlex
import struct
import sys
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyte

COLUMNS, ROWS = 112, 28
CELL, LINE, FONT = 8.0, 18, 13.3  # in pixels
EDGE, TITLE = 14, 30
COLOURS = {
    "default": "#e6edf3", "black": "#6e7681", "red": "#ff7b72", "green": "#56d08c", "brown": "#e3b341", "blue": "#79c0ff",
    "magenta": "#d2a8ff", "cyan": "#76e3ea", "white": "#f0f6fc",
}  # fmt: skip
Run = tuple[int, str, str, bool]
"""Characters of one look: column, text, colour, bold."""


@dataclass(frozen=True)
class Frame:
    """A screen that was there from `start` on, in seconds; a row is a tuple of runs."""

    start: float
    rows: tuple[tuple[Run, ...], ...]


def record(command: list[str], folder: Path) -> tuple[list[Frame], float]:
    """Run a command in a pseudo terminal; return its screens, and how long it took.

    Raises:
        SystemExit: if it fails.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    output: list[tuple[float, bytes]] = []
    begin = time.monotonic()
    while True:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        output.append((time.monotonic() - begin, data))
    took = time.monotonic() - begin
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{shlex.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return frames(output, f"$ {shlex.join(command)}", every=took / 1000), took


def frames(output: Iterable[tuple[float, bytes]], prompt: str, every: float = 0.0) -> list[Frame]:
    """Return the screens that a terminal shows below a prompt when it gets this output.

    Equal ones in a row are one. Between two there are at least `every` seconds, but the last one is always there.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[1m{prompt}\x1b[0m\r\n".encode())
    found = [Frame(0.0, _rows(screen))]
    looked = at = 0.0
    for at, data in output:
        stream.feed(data)
        if at < looked + every:
            continue
        looked, rows = at, _rows(screen)
        if rows != found[-1].rows:
            found.append(Frame(at, rows))
    if (rows := _rows(screen)) != found[-1].rows:
        found.append(Frame(at, rows))
    return found


def _rows(screen: pyte.Screen) -> tuple[tuple[Run, ...], ...]:
    return tuple(tuple(_runs(screen, number)) for number in range(ROWS))


def _runs(screen: pyte.Screen, number: int) -> Iterable[Run]:
    start, text, look = 0, "", ("default", False)
    line = screen.buffer[number]
    for column in range(COLUMNS):
        cell = line[column]
        this = (cell.fg, cell.bold)
        if this != look:
            yield from _run(start, text, look)
            start, text, look = column, "", this
        text += cell.data
    yield from _run(start, text, look)


def _run(start: int, text: str, look: tuple[str, bool]) -> Iterable[Run]:
    if text.strip():
        yield start + len(text) - len(text.lstrip()), text.strip(), *look


def thinned(found: list[Frame], most: int) -> list[Frame]:
    """Return at most so many frames, evenly over the time; first and last stay."""
    if len(found) <= most:
        return found
    kept, step = [found[0]], found[-1].start / (most - 1)
    for frame in found[1:-1]:
        if frame.start >= kept[-1].start + step:
            kept.append(frame)
    return [*kept, found[-1]]


def svg(found: list[Frame], title: str, seconds: float, hold: float = 6.0) -> str:
    """Return the film: it plays in `seconds`, holds the last frame and begins again.

    For those who want no motion, and where CSS does not run, the last frame stands still.
    """
    width, height = COLUMNS * CELL + 2 * EDGE, ROWS * LINE + TITLE + EDGE
    pace = seconds / (found[-1].start or 1.0)
    whole = seconds + hold
    names: dict[tuple[Run, ...], str] = {}
    strips = []
    for k, frame in enumerate(found):
        uses = []
        for number, row in enumerate(frame.rows):
            if row:
                name = names.setdefault(row, f"r{len(names)}")
                uses.append(f'<use href="#{name}" y="{number * LINE}"/>')
        strips.append(f'<g transform="translate(0 {k * height:g})">{"".join(uses)}</g>')
    keys = "".join(
        f"{100 * frame.start * pace / whole:.3f}%{{transform:translateY({-k * height:g}px)}}"
        for k, frame in enumerate(found)
    )
    last = f"translateY({-(len(found) - 1) * height:g}px)"
    defs = "".join(f'<g id="{name}">{"".join(map(_text, row))}</g>' for row, name in names.items())
    style = (
        f"text{{font:{FONT}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}"
        f"#film{{transform:{last};animation:film {whole:g}s steps(1,end) infinite}}"
        f"@keyframes film{{{keys}100%{{transform:{last}}}}}"
        f"@media (prefers-reduced-motion:reduce){{#film{{animation:none}}}}"
    )
    dots = "".join(f'<circle cx="{EDGE + 6 + 18 * k}" cy="16" r="5.5" fill="#484f58"/>' for k in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><style>{style}</style>"
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#0d1117"/>{dots}'
        f'<text x="{width / 2:g}" y="20" text-anchor="middle" fill="#8b949e">{escape(title)}</text>'
        f'<defs>{defs}</defs><svg x="{EDGE}" y="{TITLE}" width="{COLUMNS * CELL:g}" height="{ROWS * LINE}">'
        f'<g id="film">{"".join(strips)}</g></svg></svg>\n'
    )


def _text(run: Run) -> str:
    column, text, colour, bold = run
    fill = COLOURS.get(colour, f"#{colour}" if len(colour) == 6 else COLOURS["default"])
    weight = ' font-weight="bold"' if bold else ""
    spread = f' textLength="{len(text) * CELL:g}"'  # whatever the font, columns stand below each other
    return f'<text x="{column * CELL:g}" y="{LINE - 5}" fill="{fill}"{weight}{spread}>{escape(text)}</text>'


def main() -> None:
    """Record the command behind ``--``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the command runs")
    parser.add_argument("--seconds", type=float, default=30.0, help="the film's length at most")
    parser.add_argument("--frames", type=int, default=120, help="screens at most")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    found, took = record(asked.command, asked.folder)
    seconds = min(asked.seconds, took)
    title = shlex.join(asked.command) + (" (time lapse)" if seconds < took else "")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(svg(thinned(found, asked.frames), title, seconds), encoding="utf-8")
    print(f"{asked.out}: {took:.0f} s, {len(found)} screens, {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
