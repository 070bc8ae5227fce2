"""Which tests `make quick` leaves out: those marked `slow`, and those listed in slow.txt because they took long when measured.

`make slow` runs all tests and writes the list anew. A file all of whose tests are slow stands in it by its path alone and is not even
imported: most of these import torch or start servers.
"""

import functools
import json
import os
import resource
import sys
import time
from pathlib import Path

import pytest

from tests import forked

LIST = Path(__file__).with_name("slow.txt")
CPU_LIMIT, WALL_LIMIT = 0.15, 0.5
"""Seconds that the most expensive case of a test may take, its processes included."""
MEASURE = "RETUNE_TESTS_MEASURE"
"""A file for what each test takes; the variable holds its path."""


@functools.cache
def _listed():
    return frozenset(LIST.read_text().split())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the listed tests."""
    for item in items:
        test = _function(item.nodeid)
        if test in _listed() or _file(test) in _listed():
            item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path, config):
    """Leave out the listed files where no slow test is wanted."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return collection_path.relative_to(config.rootpath).as_posix() in _listed() or None
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Note the seconds of a test, with those of the fixtures made for it."""
    cpu, begun = _cpu_seconds(), time.monotonic()
    result = yield
    if path := os.environ.get(MEASURE):
        taken = [round(_cpu_seconds() - cpu, 3), round(time.monotonic() - begun, 3)]
        with Path(path).open("a") as file:  # one write a line: several workers share the file
            file.write(json.dumps([_function(item.nodeid), *taken]) + "\n")
    return result


def _function(test):
    return test.partition("[")[0]


def _file(test):
    return test.partition("::")[0]


def _cpu_seconds():
    """CPU seconds of this process, of the children that it waited for, and of the server that forks programs, likewise."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        seconds += used.ru_utime + used.ru_stime
    server = forked.Popen._server
    if server is not None and server.poll() is None:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


def write(measured):
    """Write the list from a file of measurements."""
    lines = [json.loads(line) for line in Path(measured).read_text().splitlines()]
    slow = {test for test, cpu, wall in lines if cpu > CPU_LIMIT or wall > WALL_LIMIT}
    whole = {_file(test) for test in slow} - {_file(test) for test, *_ in lines if test not in slow}
    names = whole | {test for test in slow if _file(test) not in whole}
    LIST.write_text("".join(f"{name}\n" for name in sorted(names)))


if __name__ == "__main__":
    write(sys.argv[1])
