"""Objects that a server lists are written only below the target folder; only plain files are read and sent."""

import itertools
import os
from pathlib import Path

import boto3
import pytest

from retune import store
from retune.errors import InputError, RetuneError
from retune.store import names

pytest_plugins = ["tests.s3_server"]

LEADING_AWAY = [
    "../../x",
    "a/../../../x",
    "..",
    "a/..",
    "./x",
    "/etc/x",
    "a//x",
    "a\\..\\x",
    "C:/x",
    "a\0b",
    "a\nb",
]
DEVICES = ["nul", "a/CON", "com1.txt", "x/aux.json"]


@pytest.mark.parametrize(
    "name", [*LEADING_AWAY, *DEVICES, "aux .txt", "x" * 300, "x/" * 2000 + "x", "\ud800"]
)
def test_names_that_are_refused(name):
    assert names.problem(name)


@pytest.mark.parametrize(
    "name", ["x", "a/b.c", "..a", "a..", "...", "a/..b/c", "console", "ä ü/ 1", ".hidden", "nullable"]
)
def test_names_that_are_not(name):
    assert names.problem(name) is None


def test_every_refused_name_is_told():
    with pytest.raises(InputError) as found:
        names.check(["ok", "../a", "d", "d/e", "nul"], "s3://bucket/x")
    assert found.value.subject == "s3://bucket/x"
    assert len(found.value.problems) == 3
    with pytest.raises(InputError, match="and 40 more"):
        names.check([f"../{n}" for n in range(50)], "s3://bucket/x")


def test_two_names_that_read_the_same_are_refused():
    """On some disks the second file would replace the first."""
    with pytest.raises(InputError, match="another Unicode form"):
        names.check(["d/\u00e9.txt", "d/e\u0301.txt"], "s3://bucket/x")
    names.check(["d/\u00e9.txt", "d/e.txt", "D/e.txt"], "s3://bucket/x")


def test_names_that_differ_in_case_are_refused_where_they_are_one_file(monkeypatch):
    names.check(["a/README", "a/readme"], "s3://bucket/x")
    monkeypatch.setattr(names, "_FOLDS_CASE", True)
    for other in ("a/readme", "A/ReadMe"):
        with pytest.raises(InputError, match="upper or lower case"):
            names.check(["a/README", other], "s3://bucket/x")
    with pytest.raises(InputError, match="upper or lower case"):
        names.check(["STRASSE", "stra\u00dfe"], "s3://bucket/x")
    names.check(["a/README", "b/readme"], "s3://bucket/x")


@pytest.mark.parametrize(
    ("page", "words"),
    [({"Contents": [{"Key": "set/x", "ETag": '"0"', "Size": 1}]}, "without an end"), ({}, "without an end"), ({"Contents": [{"Key": "other/x", "ETag": '"0"', "Size": 1}]}, "does not lie below")],
)  # fmt: skip
def test_a_listing_without_an_end_is_given_up(page, words, monkeypatch):
    """Each page has a new token, so that the client would go on for ever; for such a server nothing is deleted or fetched."""

    class Pages:
        def paginate(self, **_):
            return itertools.repeat(page)

    class Client:
        meta = type("Meta", (), {"endpoint_url": "http://server"})

        def get_paginator(self, _):
            return Pages()

    monkeypatch.setattr("retune.store.s3._client", Client)
    for ask in (store.listing, store.remove, lambda uri: store.contents(uri, lambda name: True)):
        with pytest.raises(RetuneError, match=words):
            ask("s3://bucket/set")


@pytest.mark.parametrize("name", ["../../escaped", "sub/../../../escaped", "/escaped", "nul", "taken/x"])
def test_no_object_is_written_outside(s3, tmp_path, name):
    bucket = s3.removeprefix("s3://")
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="set/good.txt", Body=b"good")
    client.put_object(Bucket=bucket, Key="set/taken", Body=b"a file where a folder is")
    before = sorted(tmp_path.rglob("*"))
    # moto's web server tidies a path before it sees it: the listing is what the attacker's server would send.
    listing = [{"Key": f"set/{n}", "ETag": '"0"', "Size": 4} for n in ("good.txt", "taken", name)]
    place = store._place(f"{s3}/set")

    class Pages:
        def paginate(self, **_):
            return [{"Contents": listing}]

    real = client

    class Client:
        meta = real.meta

        def get_paginator(self, _):
            return Pages()

        def __getattr__(self, call):
            return getattr(real, call)

    import retune.store.s3 as module

    kept, module._client = module._client, lambda: Client()
    try:
        with pytest.raises(InputError, match="is refused"):
            place.download()
    finally:
        module._client = kept
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("uri", ["s3://bucket/a/../b", "s3://bucket/..", "s3://bucket/a//b", "hf://datasets/me/set/../../x",
                                 "hf://datasets/me/set/a//b"])  # fmt: skip
def test_uris_that_lead_away(uri):
    with pytest.raises(InputError, match="is refused"):
        store.exists(uri)


def test_a_hub_that_lists_names_that_lead_away(monkeypatch):
    from retune.store import hub

    class Api:
        endpoint = "here"

        def list_repo_files(self, *_, **__):
            return ["data/x", "data/../../../x"]

        def snapshot_download(self, *_, **__):
            pytest.fail("something was fetched")

    monkeypatch.setattr(hub, "_api", Api)
    with pytest.raises(InputError, match=r"\.\./\.\./\.\./x"):
        store.download("hf://datasets/me/set")


def test_devices_and_pipes_are_no_files(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", "/dev/null"):
        for ask in (store.read, store.download):
            with pytest.raises(RetuneError, match="device, pipe or socket"):
                ask(path)


def test_links_out_of_a_folder_are_not_sent(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a").write_text("a")
    (folder / "link-inside").symlink_to("in/a")
    store.upload(folder, tmp_path / "sent")
    assert (tmp_path / "sent" / "link-inside").read_text() == "a"
    (folder / "link-out").symlink_to(secret)
    (folder / "link-nowhere").symlink_to("none")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError) as found:
        store.upload(folder, tmp_path / "sent-2")
    assert len(found.value.problems) == 3
    assert not (tmp_path / "sent-2").exists()


@pytest.mark.parametrize("part", ["the file", "its folder", "a link within"])
def test_a_link_that_takes_a_files_place_after_the_check_is_not_followed(part, tmp_path, monkeypatch):
    """Another process may swap it in after all names were checked and before the file is opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a").write_text("a")
    if part == "a link within":
        (folder / "z").symlink_to("in/a")
    resolve, swapped = Path.resolve, []

    def swap(self, strict=False):
        """Runs after the last check, so that the result of `resolve` is no longer true."""
        found = resolve(self, strict)
        if self.name in ("a", "z") and swapped.append(self) is None and len(swapped) == looks:
            moved = folder / "in"
            if part == "the file":
                (moved / "a").unlink()
                (moved / "a").symlink_to(outside / "a")
            else:
                os.rename(moved, folder / "old")
                moved.symlink_to(outside)
        return found

    looks = 10**9
    monkeypatch.setattr(Path, "resolve", swap)
    store.upload(folder, tmp_path / "sent-before")
    looks, swapped[:] = len(swapped), []
    with pytest.raises(InputError, match="replaced by a link while the folder was sent"):
        store.upload(folder, tmp_path / "sent")
    assert len(swapped) == looks
    assert b"secret" not in b"".join(
        path.read_bytes() for path in (tmp_path / "sent").rglob("*") if path.is_file()
    )


def test_names_that_no_other_machine_reads_back_are_told_before_the_first_is_sent(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "con", "b\nc", "x\\y"):
        (folder / name).write_text("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError) as found:
        store.upload(folder, "s3://bucket/x")
    assert len(found.value.problems) == 3
    store.upload(folder, tmp_path / "here")
    assert (tmp_path / "here" / "con").read_text() == "a"


def test_an_exported_adapter_has_no_file_of_elsewhere(tmp_path):
    from retune.steps import export

    folder = tmp_path / "models--a--b" / "snapshots" / "c"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "0").write_text("kept by the hub's cache")
    (folder / "adapter_config.json").symlink_to("../../blobs/0")
    (folder / "own").symlink_to("adapter_config.json")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    export._require_own(folder / "adapter_config.json", folder)
    export._require_own(folder / "own", folder)
    with pytest.raises(InputError, match=r"README\.md' is a link to"):
        export._require_own(folder / "README.md", folder)
