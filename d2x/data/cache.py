"""The folder for generated and cleaned data sets, and writing into it so that no half-written file is ever read."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """``$D2X_CACHE``, by default ``~/.cache/d2x``; need not exist yet."""
    return Path(os.environ.get("D2X_CACHE") or Path.home() / ".cache" / "d2x")


def write_atomically(path: Path, text: str) -> None:
    """Write a file under another name first, then move it in place; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
