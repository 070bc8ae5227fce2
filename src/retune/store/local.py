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
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from retune.errors import FULL, DiskFull, RetuneError

_ADVICE = {
    errno.ENOSPC: "free some space there and run again",
    errno.EDQUOT: "free some of your quota there and run again",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) and run again",
    errno.EACCES: "this user may not; change the permissions, or name another folder",
    errno.EPERM: "this user may not; change the permissions, or name another folder",
    errno.EISDIR: "a folder of that name lies there; name another file",
    errno.EROFS: "name a folder that can be written",
}


@dataclass(frozen=True)
class LocalPlace:
    """A local file or folder. The methods are described in `retune.store`."""

    path: Path

    def read(self) -> bytes:
        """Return the file's bytes."""
        with self._translated_errors("read"):
            self._refuse_devices(self.path.stat().st_mode)
            with open(self.path, "rb", opener=_without_waiting) as file:
                # Another file may have taken the name meanwhile: what counts is what is open
                self._refuse_devices(os.fstat(file.fileno()).st_mode)
                return file.read()

    def write(self, data: bytes) -> None:
        """Write the file atomically."""
        self._fill(lambda file: file.write(data), os.replace)

    def create(self, data: bytes) -> bool:
        """Write the file if it is not there: a hard link appears at once and replaces nothing."""
        try:
            self._fill(lambda file: file.write(data), os.link)
        except FileExistsError:
            return False
        return True

    def take(self, file: Path) -> None:
        """Copy a local file here, atomically."""
        with open(file, "rb", opener=_without_waiting) as source:
            LocalPlace(file)._refuse_devices(os.fstat(source.fileno()).st_mode)
            self._fill(lambda target: shutil.copyfileobj(source, target, 1 << 20), os.replace)

    def exists(self) -> bool:
        """Return whether this is a file or folder."""
        return self.path.exists()

    def listing(self) -> list[str]:
        """Return the names of all files below."""
        found = (path.relative_to(self.path) for path in self.path.rglob("*") if not path.is_dir())
        return sorted(name.as_posix() for name in found if not _temporary(name))

    def contents(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the contents of the wanted files below; one that goes meanwhile is left out."""
        found = {}
        for name in filter(wanted, self.listing()):
            with contextlib.suppress(FileNotFoundError):
                found[name] = LocalPlace(self.path / name).read()
        return found

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
        """Delete the file or folder. A folder goes out of sight at once: half of it is never seen."""
        with self._translated_errors("deleted"):
            if self.path.is_dir() and not self.path.is_symlink():
                hidden = self.path.parent / f".{uuid4().hex}.tmp"
                try:
                    os.replace(self.path, hidden)
                except FileNotFoundError:  # another process has just removed it
                    return
                shutil.rmtree(hidden, ignore_errors=True)
            else:
                self.path.unlink(missing_ok=True)

    def _refuse_devices(self, kind: int) -> None:
        """Refuse what might never end."""
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise RetuneError(f"{self.path} cannot be read: it is a device, pipe or socket, not a file")

    def _fill(self, fill: Callable[[BinaryIO], object], appear: Callable[[Path, Path], None]) -> None:
        """Write a temporary file beside the target and flush it; then let it `appear` under its name."""
        temporary = self.path.parent / f".{uuid4().hex}.tmp"
        with self._translated_errors("written"):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:  # not the file itself, about which `create` must know
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            try:
                with temporary.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                appear(temporary, self.path)
                _sync_folder(self.path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _translated_errors(self, verb: str) -> Iterator[None]:
        """Say in words what the operating system refused; "not there" and "there already" go through."""
        try:
            yield
        except NotADirectoryError as error:
            if verb == "read":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path)) from error
            if verb == "deleted":
                return  # nothing can be there
            raise RetuneError(
                f"{self.path} cannot be {verb}: a part of its path is a file, not a folder"
            ) from error
        except FileNotFoundError as error:
            if verb != "written":
                raise
            raise RetuneError(
                f"{self.path} cannot be written: its folder cannot be made there; name another folder"
            ) from error
        except FileExistsError:
            raise
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0)
            raise (DiskFull if error.errno in FULL else RetuneError)(
                f"{self.path} cannot be {verb}: {error.strerror}{'; ' + advice if advice else ''}"
            ) from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to is opened too, where it would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


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
    """Flush the folder's entry for the new file too: without it a power cut may undo the rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
