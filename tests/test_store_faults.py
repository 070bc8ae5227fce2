"""S3 over a failing network and with concurrent clients: nothing is lost, mixed or incomplete."""

from __future__ import annotations

import random
import threading

import pytest

from retune import outages, store
from retune.data import mixing
from retune.errors import InputError, RetuneError
from retune.store import s3 as s3_place
from tests.tcp_proxy import Fault, TcpProxy

pytest_plugins = ["tests.s3_server"]
pytestmark = pytest.mark.slow

MIB = 1 << 20
LARGE = random.Random(0).randbytes(6 * MIB)  # two parts of 5 MiB, the smallest that S3 takes


@pytest.fixture
def proxy(s3, moto, monkeypatch):
    made = TcpProxy(int(moto.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    monkeypatch.setattr(s3_place, "READ_SECONDS", 2)
    monkeypatch.setattr(s3_place, "MULTIPART_BYTES", 5 * MIB)
    yield made
    made.close()


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(LARGE)
    return path


SENDING = {
    "reset in the middle of a part": Fault("PUT", "reset up", 2 * MIB),
    "reset in the headers": Fault("PUT", "reset up", 100),
    "answer to a part lost": Fault("PUT", "reset down"),
    "answer to the start lost": Fault("POST", "reset down"),
    "503": Fault("PUT", "busy"),
    "503 at the start": Fault("POST", "busy"),
    "silent": Fault("PUT", "silent"),
}
FETCHING = {
    "reset in the middle of a part": Fault("GET", "reset down", 2 * MIB),
    "reset in the headers": Fault("GET", "reset down", 50),
    "truncated": Fault("GET", "cut", 2 * MIB),
    "503": Fault("GET", "busy"),
    "silent": Fault("GET", "silent"),
    "slow": Fault("GET", "slow"),
}


def cases(faults):
    return [pytest.param(Fault(**vars(fault)), id=name) for name, fault in faults.items()]


@pytest.mark.parametrize("fault", cases(SENDING))
def test_passing_faults_while_sending_lose_nothing(proxy, s3, large, fault):
    proxy.faults = [fault]
    store.upload(large, f"{s3}/adapter/weights.bin")
    assert fault.times == 0
    assert store.read(f"{s3}/adapter/weights.bin") == LARGE


@pytest.mark.parametrize("fault", cases(FETCHING))
def test_passing_faults_while_fetching_lose_nothing(proxy, s3, large, fault):
    store.upload(large, f"{s3}/adapter/weights.bin")
    proxy.faults = [fault]
    assert store.download(f"{s3}/adapter/weights.bin").read_bytes() == LARGE
    assert fault.times == 0


@pytest.mark.parametrize("fault", cases(SENDING))
def test_lasting_faults_while_sending_name_bucket_and_key(proxy, s3, large, monkeypatch, fault):
    uri = f"{s3}/adapter/weights.bin"
    store.write(uri, b"old")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fault.times = 1000
    proxy.faults = [fault]
    with pytest.raises(RetuneError) as error:
        store.upload(large, uri)
    assert uri in str(error.value)
    proxy.faults = []
    assert store.read(uri) == b"old"
    assert store.listing(s3) == ["adapter/weights.bin"]


@pytest.mark.parametrize("fault", cases({name: FETCHING[name] for name in FETCHING if name != "slow"}))
def test_lasting_faults_while_fetching_name_bucket_and_key(proxy, s3, large, monkeypatch, tmp_path, fault):
    uri = f"{s3}/adapter/weights.bin"
    store.upload(large, uri)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3_place, "READ_SECONDS", 0.2)
    monkeypatch.setenv("AWS_PROFILE_FOR_A_NEW_CLIENT", "1")
    fault.times = 1000
    proxy.faults = [fault]
    for attempt in (store.read, store.download):
        with pytest.raises(RetuneError) as error:
            attempt(uri)
        assert uri in str(error.value)
    assert store.listing(tmp_path / "cache") == []  # nothing that a later run could take for the object


def test_what_may_bear_absence_outlives_a_server_that_is_away_for_longer(proxy, s3, monkeypatch):
    """A trial's record: found on a cluster, where a minute without the storage lost the training."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)  # else half a minute
    proxy.faults = [Fault("PUT", "reset up", 0, 9)]
    with pytest.raises(RetuneError, match=r"trial\.json"):
        store.write(f"{s3}/trial.json", b"{}")
    proxy.faults = [Fault("PUT", "reset up", 0, 9)]
    with outages.long_waits():
        store.write(f"{s3}/trial.json", b"{}")
    assert store.read(f"{s3}/trial.json") == b"{}"


def test_a_folder_whose_upload_fails_has_no_marker(proxy, s3, tmp_path, monkeypatch):
    """Readers look for the marker, so an incomplete folder is not read; the next upload completes it."""
    for name in ("train.jsonl", "validation.jsonl", "mix.json"):
        store.write(tmp_path / "data" / name, name.encode() * 100)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    uri = f"{s3}/data-0123"
    store.upload(tmp_path / "data" / "train.jsonl", f"{uri}/train.jsonl")
    for fault in (Fault("PUT", "reset up", 200, 1000), Fault("PUT", "busy", 0, 1000)):
        proxy.faults = [fault]
        with pytest.raises(RetuneError, match=rf"{uri}/train\.jsonl"):
            store.upload(tmp_path / "data", uri, marker="mix.json")
        proxy.faults = []
        with pytest.raises(InputError, match=r"the folder holds no mixed data, since mix\.json is missing"):
            mixing.read_mix_record(uri)
    store.upload(tmp_path / "data", uri, marker="mix.json")
    assert store.read(f"{uri}/mix.json") == b"mix.json" * 100


def together(*works):
    """Run functions at the same time in threads, and raise what one of them raised."""
    problems = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def test_writers_and_readers_at_once_see_whole_versions(s3, monkeypatch):
    """Three writers send versions of different lengths in parts, while two readers fetch: never a mixture."""
    monkeypatch.setattr(s3_place, "MULTIPART_BYTES", 5 * MIB)
    uri = f"{s3}/weights.bin"
    versions = {bytes([number, turn]) * (3 * MIB + number) for number in range(3) for turn in range(3)}
    store.write(uri, min(versions))
    going = threading.Event()
    seen = []

    def write(number):
        for version in sorted(version for version in versions if version[0] == number):
            store.write(uri, version)

    def writers():
        together(*(lambda number=number: write(number) for number in range(3)))
        going.set()

    def read(how):
        while not going.is_set():
            seen.append(how() in versions)

    together(
        writers, lambda: read(lambda: store.read(uri)), lambda: read(lambda: store.download(uri).read_bytes())
    )
    assert len(seen) > 1
    assert all(seen)
    assert store.read(uri) in versions


def test_a_folder_that_is_rewritten_while_it_is_fetched(s3):
    """The result is that of one listing: file `a` is written before `b`, so `b` is never newer than `a`."""
    uri = f"{s3}/folder"
    going = threading.Event()

    def write():
        for number in range(40):
            store.write(f"{uri}/a.txt", str(number).encode())
            store.write(f"{uri}/b.txt", str(number).encode())
        going.set()

    def read():
        while not going.is_set():
            try:
                folder = store.download(uri)
            except FileNotFoundError:  # before the first file
                continue
            if (folder / "b.txt").exists():
                seen.append(int((folder / "a.txt").read_bytes()) - int((folder / "b.txt").read_bytes()))

    seen = []
    together(write, read)
    assert set(seen) <= {0, 1}


def test_a_server_of_ones_own_is_asked_by_path(proxy, s3):
    """Such servers seldom have a host name for each bucket."""
    store.write(f"{s3}/x", b"")
    assert proxy.asked[-1] == f"PUT /{s3[5:]}/x HTTP/1.1"
