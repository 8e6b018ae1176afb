"""The folder for generated and cleaned data sets, and writing into it so that no half-written file is ever read."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED = 24 * 3600.0  # seconds after which what is half-written belongs to no process any more


def cache_dir() -> Path:
    """``$D2X_CACHE``, by default ``~/.cache/d2x``; need not exist yet."""
    return Path(os.environ.get("D2X_CACHE") or Path.home() / ".cache" / "d2x")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; it takes the place of ``path`` at the end, or is removed on an error.

    Makes the folder if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}-"
    remove_abandoned(path.parent, prefix)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove files and folders of this prefix that have not changed for a day: their writers were killed."""
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.startswith(prefix) and time.time() - entry.stat().st_mtime > ABANDONED:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a file under another name first, then move it in place; makes the folder if needed."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
