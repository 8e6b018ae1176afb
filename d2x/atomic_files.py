"""Atomic writes: files and folders that are there complete or not at all, and the folder where they are cached."""

import contextlib
import glob
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"\.\d+\.tmp$")
ABANDONED = 24 * 3600.0  # seconds after which what is half-written belongs to no process any more


def cache_dir() -> Path:
    """``$D2X_CACHE``, by default ``~/.cache/d2x``: generated and cleaned data sets. Need not exist yet."""
    return Path(os.environ.get("D2X_CACHE") or Path.home() / ".cache" / "d2x")


class WriteError(OSError):
    """A file that could not be written; the message is one line that names it and the reason."""


class atomic_write:
    """Context manager: a binary file that appears under ``path`` complete, or not at all.

    It is written under another name (``path.PID.tmp``), forced to the disk, and renamed; then the folder is forced to
    the disk, too, so that the new name survives a power cut. If anything fails, the temporary file is removed and what
    was under ``path`` before is untouched.

    Raises:
        WriteError: the disk is full, the folder is missing or read-only, and so on.
    """

    def __init__(self, path: str | os.PathLike):
        self._path, self._temporary = os.fspath(path), f"{os.fspath(path)}.{os.getpid()}.tmp"

    def __enter__(self) -> BinaryIO:
        try:
            self._file = _RememberingFile(self._temporary, "wb")
        except OSError as error:
            raise _write_error(self._path, error) from error
        return self._file

    def __exit__(self, kind, error, traceback) -> None:
        failure = self._file.error  # torch.save reports it as an error of its own
        try:
            if kind is None and failure is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as later:
            failure = later
        try:
            self._file.close()
        except OSError as later:  # close writes what flush could not
            failure = failure or later
        if kind is None and failure is None:
            try:
                os.replace(self._temporary, self._path)
                fsync_folder(os.path.dirname(self._path))
                return
            except OSError as later:
                failure = later
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
        if failure is not None:
            raise _write_error(self._path, failure) from failure


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically; makes its folder if needed.

    Raises:
        WriteError: see ``atomic_write``.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def atomic_cache_write(path: Path) -> atomic_write:
    """``atomic_write`` into a cache: makes the folder, and removes what killed writers of the file have left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent.glob(f"{glob.escape(path.name)}.*.tmp"))
    return atomic_write(path)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Context manager: a draft folder that becomes ``path`` at the end, or is removed on an error.

    Makes the parent folder if needed.

    Args:
        replace: take the place of a folder that is there already; it is moved aside before and removed after, so that
            never a part of either is under the name. False: one that is there by then, from another process, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}-*"))
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp's are private
        if replace and path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
                _exchange(path, draft, Path(aside) / "earlier")
        else:
            try:
                os.rename(draft, path)
            except OSError:
                if replace or not path.is_dir():
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(path: Path, draft: Path, aside: Path) -> None:
    os.replace(path, aside)
    try:
        os.replace(draft, path)
    except BaseException:
        os.replace(aside, path)
        raise


def remove_abandoned(entries: Iterable[Path]) -> None:
    """Remove those files and folders that have not changed for a day: their writers were killed."""
    for entry in entries:
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > ABANDONED:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


class _RememberingFile(io.FileIO):
    """An unbuffered file that keeps the first error of a write, and writes all it is given."""

    error: OSError | None = None

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = self.error or error
            raise
        return done


def fsync_folder(folder: str) -> None:
    """Force a folder's list of names to the disk (not possible, and not needed, on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_writable(folder: str) -> None:
    """Make a folder if it is missing, and try to write into it.

    Raises:
        WriteError: that is not possible; names the folder and the reason.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _write_error(folder, error, "cannot make the folder") from error
    probe = os.path.join(folder, "writable")
    with atomic_write(probe) as file:
        file.write(b"1")
    os.unlink(probe)


def remove_leftovers(folder: str) -> list[str]:
    """Remove temporary files that a killed process left in a folder; returns their names.

    Only one run may use a folder at a time: a file that another process is just writing would be removed, too.
    """
    names = sorted(name for name in os.listdir(folder) if TEMPORARY.search(name))
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    return names


def _write_error(path: str, error: OSError, what: str = "cannot write") -> WriteError:
    return WriteError(f"{what} {path}: {error.strerror or error}")
