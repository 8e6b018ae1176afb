"""User errors as one line instead of a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn ``ValueError`` and ``FileNotFoundError`` into ``error: ...`` on stderr and exit status 1.

    These are what the packages raise for wrong input; anything else is a bug and keeps its traceback. With the
    environment variable ``D2X_TRACEBACK`` set, everything does.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("D2X_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
