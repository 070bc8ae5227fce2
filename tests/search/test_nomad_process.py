"""The solver process against NOMAD itself: a request that aborts it, and what it leaves behind."""

import os
import threading

from retune.search import nomad_process
from retune.search.nomad_process import Request

# Found in a study over the space of Davouse (2024); every row is needed.
ABORTING = """
500 6 31 20 300 1.394632966476351
166 346 15 62 70 0.7989952925178787
103 136 1 9 200 0.6552375157470396
203 136 1 19 180 0.41084862685815066
203 236 1 19 130 0.3522233385075163
203 136 11 19 140 0.11583728898966993
203 136 1 19 110 0.3014736268581506
203 136 31 19 140 0.1793293524817334
303 136 21 19 140 0.06779999999999999
203 136 21 19 40 0.25949753086419747
303 236 21 19 140 0.11854971164936563
503 136 21 19 40 0.32097901234567894
303 156 21 29 120 0.005146981930026915
403 166 21 29 120 0.026871105130505366
303 56 21 29 120 0.0774268742791234
403 156 21 29 120 0.02564080909052074
303 256 21 29 120 0.08665409457900806
"""


def aborting():
    rows = [row.split() for row in ABORTING.split("\n") if row]
    points = [
        f"( {' '.join(f'{level}.0' for level in levels)} ) BB_EVAL_OK ( {value} ) SURROGATE_EVAL_NOT_STARTED ( )"
        for *levels, value in rows
    ]
    parameters = {
        "DISPLAY_DEGREE": "0",
        "DIMENSION": "5",
        "BB_INPUT_TYPE": "( I I I I I )",
        "LOWER_BOUND": "( 0 0 0 0 0 )",
        "UPPER_BOUND": "( 900 510 63 100 400 )",
        "BB_OUTPUT_TYPE": "OBJ",
        "MEGA_SEARCH_POLL": "yes",
        "DIRECTION_TYPE": "ORTHO N+1 QUAD",
        "QUAD_MODEL_SEARCH": "yes",
        "NM_SEARCH": "yes",
    }
    cache = "\n".join(["CACHE_HITS 0", "BB_OUTPUT_TYPE OBJ", *points]) + "\n"
    known = [[int(level) for level in levels] for *levels, _ in rows]
    return Request(parameters, cache, known, [(969859, (100, 100, 20, 100, 100))], 2)


def test_where_nomad_itself_aborts_a_simpler_search_answers(caplog):
    answer = nomad_process.ask(aborting())
    assert [record.reason for record in caplog.records] == ["it ended with SIGABRT"]
    assert answer.failure is None
    assert len(answer.points) >= 2
    assert nomad_process.ask(aborting()) == answer


def test_aborts_leave_no_process_thread_descriptor_or_file_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        nomad_process.ask(aborting())
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    # Not more than before; what other tests left may end meanwhile.
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert not list(tmp_path.iterdir())


def test_several_threads_ask_at_once():
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(nomad_process.ask(aborting()))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)


def test_the_environment_of_the_service_does_not_reach_nomad(monkeypatch):
    """A decimal comma, other threads: none of it may change an answer."""
    expected = nomad_process.ask(aborting())
    for name, value in (("LC_ALL", "de_DE.UTF-8"), ("OMP_NUM_THREADS", "7"), ("PYTHONHASHSEED", "9")):
        monkeypatch.setenv(name, value)
    assert nomad_process.ask(aborting()) == expected


def test_memory_is_limited(monkeypatch):
    monkeypatch.setattr(nomad_process, "_MEMORY_MIB", 16)
    answer = nomad_process.ask(aborting())
    assert not answer.points
    assert answer.failure.startswith("it ended with ")
