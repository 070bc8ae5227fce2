"""Files on this machine's disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from retune.errors import InputError, RetuneError, as_retune_error


@dataclass(frozen=True)
class LocalPlace:
    """A local file or folder. The methods are described in `retune.store`."""

    path: Path

    def read(self) -> bytes:
        """Return the file's bytes."""
        with self._translated_errors("read"):
            self._refuse_devices(self.path.stat().st_mode)
            # `opened` checks the open file too: another one may have taken the name since
            with opened(self.path) as file:
                return file.read()

    def write(self, data: bytes) -> None:
        """Write the file atomically."""
        self._write_atomically(lambda file: file.write(data), os.replace)

    def create(self, data: bytes) -> bool:
        """Write the file if it is not there. `os.link` is atomic and, unlike `os.replace`, fails if the name is taken."""
        try:
            self._write_atomically(lambda file: file.write(data), os.link)
        except FileExistsError:
            return False
        return True

    def take(self, content: BufferedReader) -> None:
        """Copy an open file here, atomically."""
        self._write_atomically(lambda target: shutil.copyfileobj(content, target, 1 << 20), os.replace)

    def exists(self) -> bool:
        """Return whether this is a file or folder."""
        return self.path.exists()

    def listing(self) -> list[str]:
        """Return the names of all files below."""
        paths = (path.relative_to(self.path) for path in self.path.rglob("*") if not path.is_dir())
        return sorted(name.as_posix() for name in paths if not _temporary(name))

    def contents(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the contents of the wanted files below; one that goes meanwhile is left out."""
        contents = {}
        for name in filter(wanted, self.listing()):
            with contextlib.suppress(FileNotFoundError):
                contents[name] = LocalPlace(self.path / name).read()
        return contents

    def gather(self, wanted: Callable[[str], bool]) -> None:
        """Do nothing: on a disk many files are read as fast as one."""

    def download(self) -> Path:
        """Return the path itself."""
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if not self.path.is_file() and not self.path.is_dir():
            raise RetuneError(f"{self.path} cannot be read: it is a device, pipe or socket, not a file")
        return self.path

    def remove(self) -> None:
        """Delete the file or folder. A folder is renamed first, so that no reader ever sees half of it."""
        with self._translated_errors("deleted"):
            if self.path.is_dir() and not self.path.is_symlink():
                hidden = self.path.parent / f".{uuid4().hex}.tmp"
                os.replace(self.path, hidden)
                shutil.rmtree(hidden, ignore_errors=True)
            else:
                self.path.unlink(missing_ok=True)

    def _refuse_devices(self, mode: int) -> None:
        """Refuse what is neither a file nor a folder: a device or pipe may be read for ever."""
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise RetuneError(f"{self.path} cannot be read: it is a device, pipe or socket, not a file")

    def _write_atomically(
        self, fill: Callable[[BinaryIO], object], publish: Callable[[Path, Path], None]
    ) -> None:
        """Write a temporary file beside the target and flush it to the disk; then `publish` it under its name.

        Args:
            fill: writes the content.
            publish: `os.replace`, or `os.link` to keep a file that is there.

        """
        temporary = self.path.parent / f".{uuid4().hex}.tmp"
        with self._translated_errors("written"):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                # A file where a folder is needed. Not FileExistsError, which `create` reads as an existing file
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            try:
                with temporary.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                publish(temporary, self.path)
                _sync_folder(self.path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _translated_errors(self, verb: str) -> Iterator[None]:
        """Convert the operating system's errors, except those by which callers test for existence."""
        try:
            yield
        except FileExistsError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            if verb == "deleted":
                return  # it does not exist, or another process has just deleted it
            if verb == "read":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path)) from error
            raise as_retune_error(error, f"{self.path} cannot be {verb}") from error
        except OSError as error:
            raise as_retune_error(error, f"{self.path} cannot be {verb}") from error


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file without waiting: opening a pipe without a writer would block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader]:
    """Open a file to send it.

    Raises:
        RetuneError: if it is a device, pipe or socket.
    """
    with open(file, "rb", opener=_open_nonblocking) as content:
        LocalPlace(file)._refuse_devices(os.fstat(content.fileno()).st_mode)
        yield content


@contextmanager
def opened_below(folder: Path, name: str) -> Iterator[BufferedReader]:
    """Open a file of a folder to send it; its links may lead to others within, and to none outside.

    Every part of the path is opened from the folder before it, and none as a link: whatever another process puts in its place
    meanwhile, nothing outside is read.

    Raises:
        InputError: if it is a link out of the folder, or became a link or something else meanwhile.
        RetuneError: if it is a device, pipe or socket.
    """
    inside = folder.resolve()
    path = (inside / name).resolve()
    if not path.is_relative_to(inside):
        raise InputError(f"{name!r} is a link out of the folder", str(folder))
    *above, last = path.relative_to(inside).parts
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in above:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        handle = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise InputError(
            f"{name!r} was replaced by a link while the folder was sent; send it again once nothing writes to it",
            str(folder),
        ) from error
    finally:
        os.close(descriptor)
    with open(handle, "rb") as content:
        LocalPlace(path)._refuse_devices(os.fstat(handle).st_mode)
        yield content


def unwritable(folder: Path) -> str | None:
    """Return why files cannot be written below a folder, which may not be there yet; None if they can."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not there.is_dir():
        return f"{folder} must be a folder, but {there} is a file"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{folder} must be writable, but {there} is not: {error.strerror}"


def _temporary(name: Path) -> bool:
    return any(part.startswith(".") and part.endswith(".tmp") for part in name.parts)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry for the new file too: without that a power cut can undo the rename (fsync(2))."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
