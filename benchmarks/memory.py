"""Peak memory of one run, in a process of its own, as the operating system counts it.

The process builds the inputs, runs once to load what loads lazily, and then notes its resident memory; during a second
run the highest resident memory is watched. Unlike a count of tensors this sees the scratch memory of all libraries.
"""

import gc
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import psutil

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(build: Callable[..., Callable[[], object]], *arguments) -> int:
    """Bytes that a run needs above what was there before it.

    Args:
        build: a function of a module, called with ``arguments`` in the new process; gives what is to be run.

    Raises:
        RuntimeError: the process failed; its own message is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # Freed blocks go back to the system at once, so that the run cannot hide in what building the inputs left behind.
    before = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        process = context.Process(target=_watch, args=(sender, build, arguments))
        process.start()
    finally:
        if before is None:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]
        else:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = before
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process measuring the memory of {build.__name__}{arguments} failed") from None
    finally:
        process.join()


def _watch(sender, build, arguments) -> None:
    run = build(*arguments)
    run()
    gc.collect()
    base = psutil.Process().memory_info().rss
    try:
        RESET.write_text("5")
        run()
        peak = next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    except OSError:  # not Linux: the highest of both runs and of building the inputs
        run()
        unit = 1 if os.uname().sysname == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    sender.send(max(0, peak - base))
