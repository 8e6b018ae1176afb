"""User errors as one line instead of a traceback, and the check of a key's choices."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator

import torch.distributed as dist

# What gloo, NCCL and the store say when another process is gone, and what follows in the processes that wait for it.
LOST = re.compile(
    r"connection (closed|reset|refused|was likely closed)|broken pipe|socket|timed out|timeout|nccl|gloo", re.I
)
LONGEST = 1000  # characters of a message; what is wrong may itself be long, and stands at the end
DEAD_WORKER = "DataLoader worker"  # how torch's message about one begins


def require_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises ``ValueError`` that names a config key, unless its value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{key} '{value}' is not one of {', '.join(choices)}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn ``ValueError`` and ``OSError`` into ``error: ...`` on stderr and exit status 1.

    These are what the packages raise for wrong input, and what a full or missing disk raises; a lost process of the
    same job, or one that loads data, is a third kind. Anything else is a bug and keeps its traceback. With the
    environment variable ``D2X_TRACEBACK`` set, everything does.
    """
    try:
        yield
    except Exception as error:
        text = one_line(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


def one_line(error: BaseException) -> str | None:
    """The message of an error that is not a bug, as one line; None for a bug."""
    if os.environ.get("D2X_TRACEBACK"):
        return None
    text = " ".join(str(error).split())
    if lost_process(error):
        return f"process {dist.get_rank()} lost another process of the job ({text[:200]}); go on with --resume"
    if isinstance(error, RuntimeError) and text.startswith(DEAD_WORKER):
        return f"{text[:200]}; it was killed or ran out of memory; go on with --resume"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return text if isinstance(error, (ValueError, OSError)) else None


def lost_process(error: BaseException) -> bool:
    """Whether an error comes from talking to a process of the job that is no longer there."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))
