"""No forged answer passes, no answer changes another's verdict, and every solution still passes."""

import functools
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from retune.evaluation.sandbox import roles, runner, wire
from retune.evaluation.tasks import humaneval
from retune.evaluation.tasks.question import Question

from . import attacks, escapes, forgeries
from .test_probes import as_user, shown
from .test_runner import strays

__all__ = ["shown"]  # the fixture

SOURCE = Path(__file__).parents[3] / "src"


def judge(completion, isolation=None, seconds=2.0):
    limits = runner.Limits(seconds=seconds, memory_mib=512)
    return runner.check(
        attacks.TARGET + completion,
        attacks.TESTS,
        "total",
        prompt=attacks.TARGET,
        limits=limits,
        isolation=isolation,
    )


def isolations():
    for isolation in ("namespaces", "filters"):
        try:
            runner._once([{"role": "program", "program": "pass"}], runner.DEFAULT, isolation)
        except OSError:
            continue
        yield isolation


def corpus():
    """Return all forged answers by name; no two of one name."""
    parts = (
        attacks.FORGERIES,
        attacks.HOGS,
        forgeries.MORE,
        forgeries.MORE_HOGS,
        escapes.ESCAPES,
        escapes.ESCAPE_HOGS,
    )
    return {f"{number} {name}": text for number, part in enumerate(parts) for name, text in part.items()}


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["namespaces", "filters"])
def test_no_forgery_passes(isolation):
    if isolation not in isolations():
        pytest.skip(f"this machine does not grant {isolation}")
    forged = corpus()
    first = judge(attacks.SOLUTION, isolation, seconds=30)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(functools.partial(judge, isolation=isolation), forged.values()))
    last = judge(attacks.SOLUTION, isolation, seconds=30)
    assert first.passed, first
    assert last.passed, last
    assert strays() == []
    passed = [name for name, outcome in zip(forged, outcomes, strict=True) if outcome.passed]
    assert passed == []
    assert all(outcome.reason for outcome in outcomes)


def test_what_a_function_may_return_arrives_as_it_was():
    """Each kind of plain data is sent to the answer and back, and keeps its type."""
    values = (
        "[None, True, 0, -7, 1 << 80, -(1 << 70), 0.1, -0.0, 1e308, float('inf'), 3 + 4j, '', 'ü\\u2028\\ud800', b'\\x00', bytearray(b'x'),"
        " [], [[1], [2]], (1, (2,)), {1, 2}, frozenset('a'), {'a': [1], (1, 2): None}, range(3), Decimal('0.10'),"
        " Fraction(1, 3), deque([1])]"
    )
    imports = "from collections import Counter, OrderedDict, deque, namedtuple\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    tests = (
        f"{imports}def check(candidate):\n"
        f"    for value in {values}:\n"
        "        back = candidate(value)\n"
        "        assert type(back) is type(value) and repr(back) == repr(value), (value, back)\n"
        "    assert candidate(float('nan')) != candidate(float('nan'))\n"
        "    assert list(candidate(x for x in 'ab')) == ['a', 'b']\n"
        "    assert list(candidate({1: 2}.values())) == [2] and candidate({1: 2}.keys()) == {1}\n"
        "    assert candidate(value=Counter('aa')) == {'a': 2}\n"
        "    assert candidate(namedtuple('P', 'x y')(1, 2)) == (1, 2)\n"
        "    kept = [3, 1]\n    candidate(kept)\n    assert kept == [3, 1]\n"
    )
    outcome = runner.check("def same(value):\n    return value\n", tests, "same")
    assert outcome.passed, outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "tests", "reason"),
    [
        ("    raise ValueError('so')", "    try:\n        c()\n    except ValueError as e:\n        assert str(e) == 'so'\n    else: assert 0", ""),
        ("    class Own(Exception): pass\n    raise Own('so')", "    c()", "Own: so"),
        ("    return 1 / 0", "    c()", "ZeroDivisionError: division by zero"),
        ("    return object()", "    c()", "TypeError: only plain data can be passed, but got an object of type object"),
        ("    import os; os._exit(0)", "    try:\n        c()\n    except BaseException: pass", "ended before its last line"),
        ("    return 1", "    c(lambda: 1)", "TypeError: only plain data can be passed, but got an object of type function"),
        ("    return 1", "    assert c() == 2, 'why'", "AssertionError: why"),
        ("    return 'x' * (17 << 20)", "    c()", "ended before its last line"),
    ],
)  # fmt: skip
def test_how_an_answer_ended_is_said(body, tests, reason):
    outcome = runner.check(f"def f(*a):\n{body}\n", f"def check(c):\n{tests}\n", "f")
    assert (outcome.passed, outcome.reason) == (not reason, reason)


def test_an_answer_sees_no_test():
    """The memory of the answer's process is searched for a text of the tests."""
    answer = (
        "def f(word):\n"
        "    import gc, sys\n"
        "    seen = [repr(frame) + repr(frame.f_locals) for frame in sys._current_frames().values()]\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        seen += [repr(list(frame.f_locals.items())), repr(list(frame.f_globals.items()))]\n"
        "        frame = frame.f_back\n"
        "    seen += [repr(thing) for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]\n"
        "    return any(word[::-1] in text for text in seen)\n"
    )
    tests = "def check(candidate):\n    assert 'not_for_you'\n    assert candidate('uoy_rof_ton') is False\n"
    assert runner.check(answer, tests, "f") == runner.Outcome(True)


def test_a_sandbox_that_cannot_be_set_up_is_tried_again(monkeypatch):
    calls = []
    once = runner._once

    def short(jobs, limits, isolation):
        calls.append(isolation)
        if len(calls) < 3:
            raise runner.SetupError("no memory for a process")
        return once(jobs, limits, isolation)

    monkeypatch.setattr(runner, "_PAUSES", (0.0, 0.0, 0.0))
    isolation = runner.available()
    monkeypatch.setattr(runner, "_once", short)
    assert judge(attacks.SOLUTION).passed
    assert calls == [isolation] * 3
    calls[:] = [None] * -9
    monkeypatch.setattr(runner, "_once", lambda *words: (_ for _ in ()).throw(runner.SetupError("never")))
    with pytest.raises(OSError, match="never"):
        judge(attacks.SOLUTION)


@pytest.mark.parametrize("victim", ["the judge", "its supervisor", "the answer", "the answer's supervisor"])
def test_what_the_machine_kills_is_no_wrong_answer(monkeypatch, victim):
    """Linux kills a process when memory runs out. The answer is right, so only the kill could make it count as wrong."""
    killed, started = [], []
    wait, start = runner._wait, runner._start

    def start_and_note(job):
        started.append(start(job))
        return started[-1]

    def kill_once(child, seconds):
        if not killed:
            chosen = started[1 if "answer" in victim else 0].pid
            children = Path(f"/proc/{chosen}/task/{chosen}/children").read_text().split()
            killed.append(chosen if "supervisor" in victim else int(children[0]))
            os.kill(killed[0], signal.SIGKILL)
        wait(child, seconds)

    monkeypatch.setattr(runner, "_PAUSES", (0.0,))
    runner.available()
    monkeypatch.setattr(runner, "_start", start_and_note)
    monkeypatch.setattr(runner, "_wait", kill_once)
    tests = "import time\ntime.sleep(1)\n" + attacks.TESTS
    assert runner.check(attacks.TARGET + attacks.SOLUTION, tests, "total").passed
    assert killed
    monkeypatch.setattr(runner, "_PAUSES", ())
    killed.clear()
    started.clear()
    # Without it an answer goes on
    wrong = "    return 0\n" if victim == "the answer's supervisor" else attacks.SOLUTION
    with pytest.raises(runner.SetupError, match="killed from outside"):
        runner.check(attacks.TARGET + wrong, tests, "total")


def test_what_its_own_limit_of_cpu_time_kills_is_a_wrong_answer():
    """SIGKILL ends it as well, but because it has used up its CPU time; this must not stop the benchmark."""
    verdict, control = os.pipe(), os.pipe()
    job = {
        "role": "program", "program": "while True: pass", "verdict": verdict[1], "pipes": [verdict[1]], "control": control[1],
        "isolation": "filters", "seconds": 60, "limits": {**asdict(runner.DEFAULT), "seconds": 0}, "scratch": "",
        "python": runner._python_folders(), "source": runner._SOURCE,
    }  # fmt: skip
    child = runner._start(job)
    os.close(control[1])
    os.close(verdict[1])
    assert child.wait(60) == 0
    reported = os.read(control[0], 1000).splitlines()
    os.close(control[0])
    os.close(verdict[0])
    assert [json.loads(line) for line in reported] == [{"ready": True}]


# Run by an ordinary user, to whom the sandboxes' processes belong too
CORPUS = """
import json, os, sys
source, here, folder, isolation, user = sys.argv[1:]
if user != "root":
    os.setgid(int(user)); os.setuid(int(user))
sys.path[:0] = [source]
import functools
from concurrent.futures import ThreadPoolExecutor
from retune.evaluation.sandbox import runner
given = json.load(open(here + "/corpus.json"))
def judge(completion):
    limits = runner.Limits(seconds=30.0 if completion == given["texts"][0] else 2.0, memory_mib=512)
    return runner.check(given["target"] + completion, given["tests"], "total", prompt=given["target"], limits=limits, isolation=isolation)
with ThreadPoolExecutor(4) as pool:
    outcomes = list(pool.map(judge, given["texts"]))
print(json.dumps([[outcome.passed, outcome.reason] for outcome in outcomes]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["namespaces", "filters"])
def test_no_forgery_of_an_ordinary_user_passes(isolation, shown):
    """As `test_no_forgery_passes`, run by an ordinary user, who owns the sandbox's processes."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    forged = corpus()
    texts = [attacks.SOLUTION, *forged.values(), attacks.SOLUTION]
    given = {"target": attacks.TARGET, "tests": attacks.TESTS, "texts": texts}
    (shown / "corpus.json").write_text(json.dumps(given))
    done = as_user(CORPUS, "65534", isolation, shown, shown, seconds=900)
    (first, _), *outcomes, (last, _) = json.loads(done.stdout)
    assert first
    assert last
    assert strays() == []
    assert [name for name, (passed, _) in zip(forged, outcomes, strict=True) if passed] == []
    assert all(reason for _, reason in outcomes)


def test_an_answer_leaves_nothing_for_the_next():
    """Whatever one answer wrote, in its folder or elsewhere, is gone for the next."""
    planted = escapes.ESCAPES["modules for the next one"].replace("typing", "planted")
    search = (
        "    import os\n"
        "    folders = ('.', '..', '/tmp', '/scratch', '/dev/shm', '/var/tmp')\n"
        "    seen = [f for f in folders if os.path.exists(f'{f}/planted.py') or os.path.exists(f'{f}/secrets.py')]\n"
        "    return 0 if seen else sum(numbers)\n"
    )
    for isolation in isolations():
        assert not judge(planted, isolation).passed
        assert judge(search, isolation, seconds=30).passed


def test_without_root_a_pipe_sends_no_signal(tmp_path):
    """Where retune itself runs as the answer's user, F_SETOWN would let the answer kill it."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    program = (
        "import os, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"sys.path.insert(0, {str(SOURCE)!r})\n"
        "from retune.evaluation.sandbox import runner\n"
        f"attack = {attacks.HOGS['a signal by a pipe'].replace('os.getppid(), ', 'PARENT, os.getppid(), ')!r}.replace('PARENT', str(os.getpid()))\n"
        f"kept = runner.run({'def f(numbers):' + chr(10)!r} + attack + 'f([])', isolation='filters')\n"
        f"judged = runner.check({attacks.TARGET!r} + attack, {attacks.TESTS!r}, 'total', isolation='filters')\n"
        "print('alive', kept.passed, judged.passed)\n"
    )
    for python in (sys._base_executable, "/usr/bin/python3"):  # the first may lie in a folder of root's
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=100, cwd="/")
        if not any(
            word in done.stderr for word in ("could not be set up", "No module named", "Permission", "syntax")
        ):
            break
    else:
        pytest.skip(f"another user has no Python or no filters here: {done.stderr[-200:]}")
    assert done.stdout.split() == ["alive", "True", "False"], done


def test_messages_are_read_to_the_letter():
    reader, writer = os.pipe()
    wire.send(writer, ["n", "value", wire.encode({(1, 2): [b"x"]})])
    assert roles._value(wire.receive(reader), "n") == {(1, 2): [b"x"]}
    for strange in (None, [], ["n", "value"], ["n", "value", 1, 2], ["m", "value", 1], ["n", "?", 1], ["n", "value", ["?"]],
                    ["n", "value", {"a": 1}], ["n", "error", 1], ["n", "value", ["i", "zz"]], ["n", "value", ["s", ["l"]]]):  # fmt: skip
        with pytest.raises(wire.ProtocolError):
            roles._value(json.loads(json.dumps(strange)), "n")
    os.write(writer, b"\xff\xff\xff\xff")
    with pytest.raises(wire.ProtocolError, match="16 MiB"):
        wire.receive(reader)
    os.write(writer, b"\x00\x00\x00\x01[")
    with pytest.raises(wire.ProtocolError):
        wire.receive(reader)
    os.close(writer)
    with pytest.raises(wire.ProtocolError):
        wire.receive(reader)
    os.close(reader)


def test_grading_gives_every_answer_a_verdict():
    extra = {"prompt": attacks.TARGET, "test": attacks.TESTS, "entry_point": "total"}
    question = Question("T/0", "", "", (), attacks.TARGET, attacks.SOLUTION, extra)
    texts = [
        attacks.SOLUTION,
        attacks.HOGS["memory"],
        attacks.SOLUTION,
        attacks.FORGERIES["strange messages"],
    ]
    verdicts = humaneval.grade([question] * 4, texts)
    assert [verdict.right for verdict in verdicts] == [True, False, True, False]


def test_a_sandbox_that_never_said_it_was_ready_is_no_verdict(monkeypatch):
    """If a machine short of memory kills the sandbox before it begins, the answer must not count as wrong."""
    monkeypatch.setattr(runner, "_START", "import sys; sys.stdin.read()")
    with pytest.raises(runner.SetupError, match="silent"):
        runner._once([{"role": "program", "program": "pass"}], runner.DEFAULT, "filters")
