"""Launcher of a job's processes: one, several on this machine and others, or as ``torchrun`` has started them."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from d2x.engine.resume.stopping import SIGNALS
from d2x.errors import one_line_errors

logger = logging.getLogger(__name__)


# What torchrun and others tell a process that they have started; MASTER_PORT goes with them.
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")

# Several machines that restart need this for torchrun. Without it all attempts meet in one store, where those before
# have left their addresses, and the machines' own counts of restarts may differ, so they name no attempt.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def available_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_rank() -> bool:
    """Whether ``torchrun``, or anything that sets the same variables, has started this process."""
    return all(name in os.environ for name in RANK_VARIABLES)


def is_restart() -> bool:
    """Whether ``torchrun --max-restarts`` has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch(
    main: Callable,
    args: tuple,
    *,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = "auto",
) -> None:
    """Call ``main(*args)`` in every process of the job; gloo on CPUs, NCCL on GPUs.

    Under ``torchrun`` the other arguments are not looked at: the processes are there. User errors are one line in
    each process, and a process that dies takes the job down: exit status 1 (never returns then). Processes on one
    machine's CPUs share its cores, unless ``OMP_NUM_THREADS`` says how many threads each has.

    Args:
        processes: on each machine; 0 is 1.
        machines, machine_rank, dist_url: see detectron2's ``launch``.
    """
    if has_rank():
        with one_line_errors():
            _join_group()
            main(*args)
            comm.synchronize()  # one that leaves early looks to the others as if it had died
            dist.destroy_process_group()
        return
    processes = max(processes, 1)
    if processes * machines == 1:
        with one_line_errors():
            main(*args)
        return
    before = {each: signal.signal(each, _pass_on) for each in SIGNALS}
    try:
        with one_line_errors():
            _require_place(machines, machine_rank, dist_url)
            arguments = (main, args, processes)
            launch_detectron2(_main_of_process, processes, machines, machine_rank, dist_url, arguments)
    except ProcessExitedException as error:
        how = f"was ended by {error.signal_name}" if error.signal_name else f"ended with exit status {error.exit_code}"
        print(
            f"error: process {error.error_index} {how}, the others were stopped; go on with --resume", file=sys.stderr
        )
        sys.exit(1)
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _require_place(machines: int, machine_rank: int, dist_url: str | None) -> None:
    """Refuse what would wait for processes that never come."""
    if not 0 <= machine_rank < machines:
        raise ValueError(f"the rank of this machine must be from 0 to {machines - 1}, got {machine_rank}")
    if machines > 1 and (dist_url or "auto") == "auto":
        raise ValueError("several machines need an address to meet at, the same for all: tcp://HOST:PORT of the first")


def _main_of_process(main: Callable, args: tuple, processes: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, available_cores() // processes))
    with one_line_errors():
        main(*args)


def _pass_on(number: int, frame) -> None:
    for pid in [child.pid for child in multiprocessing.active_children()]:
        if pid is not None:
            os.kill(pid, number)


def _join_group() -> None:
    local, on_this_machine = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < gpus < on_this_machine:
        raise ValueError(
            f"torchrun has started {on_this_machine} processes, but there are {gpus} GPUs; to train on the CPU set"
            " CUDA_VISIBLE_DEVICES to nothing"
        )
    if gpus:
        torch.cuda.set_device(local)
    store, rank, processes = next(rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun keeps one store for all its restarts
        restarts_allowed, machines = (
            int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_MAX_RESTARTS", "GROUP_WORLD_SIZE")
        )
        if machines == 1:  # the addresses of the processes that have died are still in it
            store = PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        elif restarts_allowed and local == 0:
            (pair,) = OWN_STORE.items()
            print(f"warning: set {'='.join(pair)} for torchrun, or a restart may hang", file=sys.stderr)
    dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=rank, world_size=processes)
    comm.create_local_process_group(on_this_machine)
