"""What a malformed input led to, and the rules for it."""

import contextlib
import faulthandler
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

CPU_SECONDS = 10  # processor time of one case; more is a hang
_WALL_SECONDS = 600  # blocked without using the processor: the process ends with a traceback

USER_ERRORS = (ValueError, OSError)  # those that d2x.errors turns into one line


class Broken(Exception):
    """A rule is broken; the message says which."""


class Hang(BaseException):
    """A case used more than ``CPU_SECONDS``."""


class Case(NamedTuple):
    """A malformed input.

    Attributes:
        what: the kind of damage, in a few words.
        named: a refusal must have this in its message.
        run: feeds it to the program; returns "accepted" or "skipped"; a refusal is one of ``USER_ERRORS``.
    """

    what: str
    named: str
    run: Callable[[], str]


class Outcome(NamedTuple):
    """``ended`` is "accepted", "skipped", "refused" or "FAILED"; ``detail`` the refusal's message or a traceback."""

    kind: str
    seed: int
    what: str
    ended: str
    detail: str


def run_case(kind: str, make: Callable[[random.Random, Path], Case], seed: int, folder: Path) -> Outcome:
    """Make the case of a seed in a folder of its own, run it and judge how it ended."""
    here = folder / f"{kind}-{seed}"
    here.mkdir()
    case = make(random.Random(f"{kind}-{seed}"), here)
    try:
        with _limited():
            ended, detail = case.run(), ""
    except USER_ERRORS as error:
        ended, detail = "refused", " ".join(str(error).split())
        fault = _unclear(detail, case.named)
        if fault:
            ended, detail = "FAILED", f"{fault}: {detail[:500]}\n{traceback.format_exc(limit=-4)}"
    except (Exception, Hang):
        ended, detail = "FAILED", traceback.format_exc(limit=-8)
    if (here / CANARY).exists():
        ended, detail = "FAILED", f"code in the input was run; {detail}"
    return Outcome(kind, seed, case.what, ended, detail)


CANARY = "code_was_run"


def _unclear(message: str, named: str) -> str:
    if named not in message:
        return f"the message does not name '{named}'"
    return "the message is longer than a few lines" if len(message) > 1000 else ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_) -> None:
        raise Hang(f"more than {CPU_SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    faulthandler.dump_traceback_later(_WALL_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
