"""The file between a training and the server: crashes, full disks, several writers."""

import json
import subprocess
import sys
import threading

import pytest

from retune.tracking.outbox import Outbox, Position


def operations(outbox):
    return list(outbox.all())


def test_operations_come_back_in_order_and_by_position(tmp_path):
    outbox = Outbox(tmp_path)
    for n in range(10):
        outbox.append({"op": "metric", "n": n})
    batch = outbox.read(0, 4)
    assert [op["n"] for op, _ in batch] == [0, 1, 2, 3]
    outbox.save(Position(offset=batch[-1][1], parent="p", runs={"trial-001": "r"}))
    assert outbox.left() == 6
    again = Outbox(tmp_path)
    assert again.position() == Position(batch[-1][1], None, "p", {"trial-001": "r"})
    assert [op["n"] for op, _ in again.read(again.position().offset, 100)] == [4, 5, 6, 7, 8, 9]


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path):
    Outbox(tmp_path).append({"n": 0})
    with (tmp_path / "outbox.jsonl").open("a") as file:
        file.write('{"n": 1, "val')
    outbox = Outbox(tmp_path)
    assert [op["n"] for op in operations(outbox)] == [0]
    outbox.append({"n": 2})
    assert [op["n"] for op in operations(outbox)] == [0, 2]
    assert [op for op, _ in outbox.read(0, 10)] == [{"n": 0}, None, {"n": 2}]


@pytest.mark.parametrize("content", ["", "{", '{"offset": 1, "unknown": 2}', "[]"])
def test_a_broken_position_means_to_start_again(tmp_path, content):
    outbox = Outbox(tmp_path)
    (tmp_path / "position.json").write_text(content)
    assert outbox.position() == Position()


def test_several_writers_do_not_mix_their_lines(tmp_path):
    boxes = [Outbox(tmp_path) for _ in range(4)]

    def write(writer: int) -> None:
        for n in range(200):
            boxes[writer].append({"writer": writer, "n": n, "text": "x" * (n * 7 % 300)})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = operations(boxes[0])
    assert len(found) == 800
    for writer in range(4):
        assert [op["n"] for op in found if op["writer"] == writer] == list(range(200))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from retune.tracking.outbox import Outbox
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
outbox = Outbox(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk, a write comes back short
for n in range(100):
    outbox.append({"n": n, "text": "x" * 37})
print(outbox.left())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
outbox.append({"n": 100})
"""


def test_a_full_disk_loses_nothing_and_breaks_no_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "100"
    lines = (tmp_path / "outbox.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(101))


def test_only_one_process_sends(tmp_path):
    with Outbox(tmp_path).sending() as first:
        assert first
        with Outbox(tmp_path).sending() as second:
            assert not second
    with Outbox(tmp_path).sending() as third:
        assert third
