"""Damaged or malicious files end in one clear error that names them, fast and in little memory."""

import gzip
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc

import pytest
from pydantic import BaseModel

from retune import records, store, study
from retune.data import sources
from retune.errors import InputError, RetuneError
from retune.evaluation.decoding.adapters import tensor_shapes
from retune.evaluation.tasks import humaneval, lines
from retune.records import TrialRecord
from retune.store.packed import MAX_RECORD, gunzip
from retune.study import File
from retune.workspace.ledger import Ledger
from retune.workspace.stamps import Stamps

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
STUDIES = {
    "alias bomb": (BOMB, "more than 100,000 values"),
    "a list that holds itself": ("a: &a [*a]\n", "a: unknown key"),
    "a mapping merged into itself": ("a: &a {<<: *a}\n", "nested deeper|unknown key"),
    "deep lists": ("a: " + "[" * 20_000, "nested deeper"),
    "deep mappings": ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested deeper"),
    "60 levels": ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
    "no date": ("name: 2001-99-99\n", "month must be"),
    "a long number": ("seed: " + "9" * 5000, "at most 100 characters"),
    "a long hexadecimal number": ("seed: 0x" + "f" * 100_000, "at most 100 characters"),
    "a number of 80 bits": ("seed: 0x" + "f" * 20, "64 bits"),
    "Python objects": ("name: !!python/object/apply:os.system ['touch x']\n", "could not determine a constructor"),
    "a null character": ("a: \0", "not allowed"),
    "2 MiB": ("a: " + "x" * (2 << 20), "at most 1 MiB"),
    "two documents": ("a: 1\n---\nb: 2\n", "single document"),
    "keys of all kinds": ("1: 2\nnull: 3\n2001-01-01: 1\n.nan: 1\n", "problems"),
    "lists as keys": ("? [a]\n: 1\n", "unhashable"),
    "a newline in a name": ('name: "demo\\n"\n', "`name` must be|problems"),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_study_files(tmp_path, name):
    text, why = STUDIES[name]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    begin = time.process_time()
    with pytest.raises(InputError, match=why) as found:
        study.load(path)
    assert time.process_time() - begin < 20
    assert str(path) in str(found.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "override", ["a." * 5000 + "a=1", "data.sources.²=1", "seed=" + "[" * 5000, f"a={BOMB}", "=", "a", "seed=2001-99-99"]
)  # fmt: skip
def test_overrides(small, override):
    with pytest.raises(InputError):
        small(override)


@pytest.mark.parametrize("key", ["name", "promote.model"])
def test_no_name_ends_in_a_newline(small, key):
    with pytest.raises(InputError, match=key.rpartition(".")[2]):
        small(f'{key}="demo\\n"')


@pytest.mark.parametrize("model", ["chat.lock", "a.lock.broken.b"])
def test_no_model_is_named_like_a_lock(small, model):
    with pytest.raises(InputError, match=r"must not end in `\.lock`"):
        small(f"promote.model={model}")


def bomb(size=256 << 20):
    """256 MiB of zeros in 256 KiB."""
    import zlib

    packer, part = zlib.compressobj(9, wbits=31), bytes(1 << 20)
    return b"".join(packer.compress(part) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.slow
def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(bomb())
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 200 times"):
        lines.read_text(path)
    with pytest.raises(InputError, match="more than 200 times"):
        humaneval.read(path)
    with pytest.raises(InputError, match="more than 200 times"):
        sources.read_source(File(uri=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20  # of 256 MiB: 64 MiB in parts and whole


@pytest.mark.parametrize("lies", ["one text, meant 300,000 times", "one long text", "a size that is none"])
def test_a_parquet_bomb_is_not_unpacked(tmp_path, lies):
    """300 MB in 35 KB."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text, times = {"one text, meant 300,000 times": (1000, 300_000), "one long text": (300_000_000, 1)}.get(
        lies, (1, 10)
    )
    column = pa.array(["x" * text]).take(pa.array([0] * times))
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table({"instruction": column, "output": column}), path, compression="zstd")
    if lies == "a size that is none":
        path.write_bytes(path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="damaged" if times == 10 else "more than 200 times"):
        list(sources.read_source(File(uri=str(path))))


def test_gzip_that_is_right_is_unpacked():
    text = random.Random(0).randbytes(3 << 20)
    assert gunzip(gzip.compress(text)) == (text, None)
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b") + bytes(10)) == (b"ab", None)
    assert gunzip(gzip.compress(bytes(32 << 20))) == (bytes(32 << 20), None)
    assert gunzip(gzip.compress(text)[:-9])[1] == "the file is truncated: its gzip stream has no end"
    packed = bytearray(gzip.compress(text))
    packed[-5] ^= 1
    assert "damaged" in gunzip(bytes(packed))[1]
    assert "truncated" in gunzip(b"\x1f\x8b")[1]


def test_deep_json_is_told_with_its_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n' + "[" * 200_000 + "\n")
    with pytest.raises(InputError, match="line 2"):
        sources.read_source(File(uri=str(path)))
    with pytest.raises(InputError, match=":2:"):
        lines.parse(path, path.read_text(), "a line is", lambda number, row: row)


def trial_file(folder, **changes):
    ledger = Ledger(str(folder))
    task = ledger.issue(2, "search", {"rank": 4}, 0)
    record = TrialRecord(trial=task.trial, number=2, role="search", assignment={"rank": 4}, seed=0, status="completed",
                         values={"validation_loss": 1.25, "x": 1e-17}, **changes)  # fmt: skip
    ledger.finish(record, write=True)
    return folder / "trials" / task.trial / "trial.json", record


def test_a_record_is_read_back_as_it_was(tmp_path):
    path, record = trial_file(tmp_path)
    assert Ledger(str(tmp_path)).records == {"trial-002": record}
    content = json.loads(path.read_bytes())
    assert content["checksum"]
    assert TrialRecord.model_validate_json(path.read_bytes()).to_json() == path.read_bytes()
    del content["checksum"]  # as older records are
    path.write_text(json.dumps(content))
    assert Ledger(str(tmp_path)).records == {"trial-002": record}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"trial": 1}', b"9" * 5000, b"\0" * 100]
)
@pytest.mark.parametrize("name", ["trial.json", "assignment.json"])
def test_damaged_files_of_the_ledger_are_named(tmp_path, name, content):
    path = trial_file(tmp_path)[0].with_name(name)
    path.write_bytes(content)
    with pytest.raises(RetuneError) as found:
        Ledger(str(tmp_path))
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)
    assert "pydantic" not in str(found.value)


def test_every_flipped_bit_of_a_record_is_seen(tmp_path):
    """A flipped digit of a loss is still JSON: without the checksum it would be a wrong result."""
    path, record = trial_file(tmp_path)
    whole = path.read_bytes()
    kept = 0
    for place in range(0, len(whole) * 8, 7):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        try:
            found = records.parse(TrialRecord, bytes(data), str(path))
        except RetuneError:
            continue
        # White space, or the word `checksum` itself: all that counts is as it was.
        assert found.model_dump(include=set(TrialRecord.model_fields)) == record.model_dump(), (
            place,
            bytes(data),
        )
        kept += 1
    assert kept < len(whole) // 7


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"inputs": 1}', b'{"inputs": "a", "outputs": {}, "checksum": "0"}']
)
def test_damaged_stamps(tmp_path, content):
    stamps = Stamps(str(tmp_path))
    with stamps.step("mix", {}) as outputs:
        outputs["a"] = 1
    assert stamps.outputs("mix", {}) == {"a": 1}
    store.write(tmp_path / "steps" / "mix.json", content)
    if content == b'{"inputs": 1}':  # of a writer that is not ours: the step is done again
        assert stamps.outputs("mix", {}) is None
    else:
        with pytest.raises(RetuneError, match=r"mix\.json"):
            stamps.outputs("mix", {})


def test_sealed_content_is_compared():
    class Any(BaseModel):
        a: int

    sealed = records.seal({"a": 1, "b": [1.5, "ü"]})
    assert records.unseal(json.loads(json.dumps(sealed))) == {"a": 1, "b": [1.5, "ü"]}
    assert records.parse(Any, json.dumps(sealed).encode(), "x").a == 1
    with pytest.raises(RetuneError, match="x cannot be read: its checksum"):
        records.parse(Any, json.dumps({**sealed, "a": 2}).encode(), "x")


@pytest.mark.parametrize(
    "line",
    [
        "name: 1" + ":1" * 100_000, "name: 1" + ":1" * 2000 + ".5", "name: !!bool no bool", 'name: !!int ""', "name: !!timestamp x",
        "name: !!float x", 'name: "\\ud800"', '"\\ud800": 1', 'name: "\\0"', 'artifacts: {uri: "\\0"}', "artifacts: {uri: ~nobody-at-all/x}",
        "artifacts: {uri: '" + "a/" * 3000 + "\\0'}", "model: ~nobody-at-all/x", "model: " + "a" * 5000, 'benchmark: {data: {mmlu: "\\0"}}',
        'tracking: {tensorboard: "a\\0"}', 'search: {warm_start: ["\\0"]}', 'data: {prompt: "\\0"}', "name: |" + "\n a" * 100_000,
    ],
    ids=lambda line: line[:30],
)  # fmt: skip
def test_texts_and_numbers_that_nothing_can_hold(line, tmp_path):
    """One short, printable error in bounded time, instead of PyYAML's or the file system's own."""
    path = tmp_path / "study.yaml"
    path.write_text(line + "\n")
    begin = time.process_time()
    with pytest.raises(InputError) as caught:
        study.load(path)
    assert time.process_time() - begin < 20
    assert str(path) in str(caught.value) or "a path must be" in str(caught.value)
    assert len(str(caught.value).encode()) < 6000


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "many cells", "txt", "parquet"])
def test_a_record_has_a_bound(tmp_path, kind):
    """A table of 100 MB is valid data, a record of 100 MB is not: reading one took fifteen times its size."""
    long = "x" * (MAX_RECORD + 1)
    good = {"instruction": "a", "output": "b"}
    path = tmp_path / f"data.{kind if kind != 'many cells' else 'csv'}"
    where = "line 2"
    if kind == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist([good, {**good, "output": long}]), path, compression="none")
        where = "record 2"
    elif kind == "json":
        path.write_text(json.dumps([good, {**good, "output": long}]))
        where = "record 2 (line 1)"
    elif kind == "jsonl":
        path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "output": long}))
        with pytest.raises(InputError, match=r":2: a record must have at most 16 MiB"):
            lines.parse(path, path.read_text(), "a line is", lambda number, row: row)
    elif kind == "txt":
        path.write_text("a\n" + long)
    elif kind == "csv":
        path.write_text(f"instruction,output\na,{long}\n")
    else:
        half = long[: MAX_RECORD // 2 + 1]
        path.write_text(f"instruction,output\n{half},{half}\n")
    with pytest.raises(InputError) as found:
        sources.read_source(File(uri=str(path)))
    assert f"{where}: a record must have at most 16 MiB" in str(found.value)
    assert str(path) in str(found.value)
    assert len(str(found.value)) < 1000


HEADERS = {
    "offsets beyond the file": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}},
    "overlapping": {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    },
    "a gap": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    "a shape larger than its bytes": {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}},
    "negative": {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
    "fractions": {"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}},
    "a number for a shape": {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
    "a list for a kind": {"a": {"dtype": [], "shape": [4], "data_offsets": [0, 16]}},
    "three offsets": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
    "no object": [1],
    "a tensor that is a text": {"a": "b"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_safetensors_that_lie(tmp_path, name):
    path, header = tmp_path / "model.safetensors", json.dumps(HEADERS[name]).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        tensor_shapes(path)


@pytest.mark.parametrize("length", [1 << 63, 17, 0])
def test_lengths_of_headers_that_lie(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"[" * 16)
    with pytest.raises(ValueError, match=r"truncated|does not begin"):
        tensor_shapes(path)


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    """Between the check of the name and the opening another process may put anything there."""
    path = tmp_path / "record.json"
    path.write_text("{}")
    look = type(path).stat

    def look_and_swap(self, **words):
        found = look(self, **words)
        if self == path and not path.is_fifo():
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(type(path), "stat", look_and_swap)
    monkeypatch.setattr(type(path), "is_fifo", lambda self: (os.lstat(self).st_mode & 0o170000) == 0o010000)

    def too_long(*words):
        raise AssertionError("read waits for the pipe")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    try:
        with pytest.raises(RetuneError, match="device, pipe or socket"):
            store.read(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_no_message_steers_a_terminal(tmp_path):
    """A file's name, or a value in it, could clear the screen, write over a line or forge a colour."""
    folder = tmp_path / "\x1b[2J\r\x9b1m\u202e"
    folder.mkdir()
    (folder / "data.jsonl").write_text("{")
    with pytest.raises(InputError) as found:
        sources.read_source(File(uri=str(folder / "data.jsonl")))
    for text in (str(found.value), found.value.subject, str(RetuneError("\x1b]0;x\x07 cannot be read"))):
        assert not set(text) & set("\x1b\r\x9b\u202e\x07")
        assert "\\x1b" in text
    assert str(RetuneError("a\n\tb ü")) == "a\n\tb ü"


READ = """
import resource, sys
from retune import free_memory
from retune.data import sources
from retune.errors import InputError
from retune.study import File
import csv, json, zlib
if sys.argv[1].endswith(".parquet"):
    import pyarrow.parquet
held = free_memory.fields(__import__("pathlib").Path("/proc/self/status"))["VmSize"]
resource.setrlimit(resource.RLIMIT_AS, (held + (96 << 20),) * 2)
before = free_memory.resident()
try:
    print(len(sources.read_source(File(uri=sys.argv[1]))))
except InputError as error:
    assert free_memory.resident() - before < 70 << 20
    print(error)
"""


def grown(name):
    """Return files that fill memory with many times their size."""
    if name == "tiny.csv":
        return b"instruction,output\n" + b"11,12\n" * 1_000_000
    if name == "tiny.json":
        return b"[" + b",".join([b'{"text":"ab"}'] * 1_000_000) + b"]"
    if name == "tiny.jsonl":
        return b'{"text":"ab"}\n' * 1_000_000
    if name == "wide.jsonl":  # one letter beyond U+FFFF makes four bytes of each
        return '{{"text":"{}"}}\n'.format("\N{GRINNING FACE}" + "a" * 9_000_000).encode() * 2
    if name == "large.jsonl":
        return b'{"text":"' + b"a" * 40_000_000 + b'"}\n'
    letters = random.Random(0).choices("abcdefgh", k=120_000)
    return gzip.compress("".join(letter * 60 for letter in letters).encode() * 12)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")
@pytest.mark.parametrize(
    ("name", "where", "told"),
    [
        ("tiny.csv", r"row \d", "reading took"), ("tiny.json", r"record \d", "reading took"), ("tiny.jsonl", r"line \d", "reading took"),
        ("wide.jsonl", "", "its text takes 68.7 MiB"), ("large.jsonl", "", "the file has 38.1 MiB"), ("packed.jsonl.gz", "", "it unpacks to more than"),
    ],
)  # fmt: skip
def test_a_file_that_memory_has_no_room_for_is_refused(tmp_path, name, where, told):
    """Read by a process limited to 96 MiB: the error names file, limit and remedy, and the process is not killed."""
    path = tmp_path / name
    path.write_bytes(grown(name))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert re.search(where, done.stdout)
    assert str(path) in done.stdout
    assert told in done.stdout
    assert "free; split it into several sources" in done.stdout


def test_records_are_not_kept_beside_what_is_made_of_them(tmp_path):
    """Records without a text once took 30 times the file's size, since all were read before the first was checked."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"a":1}\n' * 100_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="in 99,999 more lines"):
        sources.read_source(File(uri=str(path), columns={"text": "b"}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size


def test_problems_of_records_have_a_bound(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"messages": [{{"role": "{n}", "content": "a"}}]}}\n' for n in range(3000)))
    with pytest.raises(InputError, match="and 2,980 more problems"):
        sources.read_source(File(uri=str(path)))


def test_a_long_text_that_parquet_means_a_thousand_times_is_read_row_by_row(tmp_path):
    """One text of 12 MiB, stored once and referenced 1,000 times: its first 512 rows would take 6 GiB."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    column = pa.array(["x" * (12 << 20)]).dictionary_encode().take(pa.array([0] * 1000))
    parquet.write_table(
        pa.table({"text": column}),
        path,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=64 << 20,
    )
    assert path.stat().st_size < 1 << 20
    read = (
        "import pyarrow, sys\n"
        "from retune.data import sources\n"
        "from retune.study import File\n"
        "try: sources.read_source(File(uri=sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        "assert pyarrow.default_memory_pool().max_memory() < 1 << 30\n"  # of this process, which read nothing else
    )
    done = subprocess.run(
        [sys.executable, "-c", read, str(path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "more than 200 times" in done.stdout
