"""Two processes train as one with all their images, and when one of them dies the job ends, or starts again."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from d2x.checkpoint.fingerprint import differences
from d2x.engine.launch import OWN_STORE
from tests.e2e import two_processes
from tests.faults.tiny_run import (
    ROOT,
    command,
    errors,
    kill,
    processes_below,
    run,
    start,
    torchrun,
    wait,
    wait_for_checkpoint,
)
from tests.fork_server import Program

# SGD at a rate at which it is stable: differences of rounding stay small, which they do not in a run that diverges.
OPTS = (
    "SOLVER.MAX_ITER 8 SOLVER.IMS_PER_BATCH 4 SOLVER.OPTIMIZER SGD SOLVER.BASE_LR 0.001 MODEL.SYNC_BATCH_NORM True"
    " WEIGHT_AVERAGING.ENABLED False CHECKPOINT.KEEP_LAST 0"
).split()

pytestmark = pytest.mark.xdist_group("processes")  # one pair of trainings for all


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[dict, dict]:
    """Results of one process and of two."""
    folder = tmp_path_factory.mktemp("compared")
    two_processes.make_validation_sets(folder)
    log = folder / "printed.txt"
    words = [*torchrun("--standalone", "--nproc-per-node", 2), "tests/e2e/two_processes.py", str(folder)]
    assert run(words, log, PYTHONPATH=str(ROOT)) == 0, log.read_text()[-3000:]
    return two_processes.results(folder), torch.load(folder / "results.pth", weights_only=True)


@pytest.mark.parametrize("case", two_processes.CASES)
@pytest.mark.parametrize("detector", sorted(two_processes.CONFIGS))
def test_two_processes_give_the_gradients_of_one(detector, case, compared):
    one, two = (results[detector, case] for results in compared)
    assert set(one) <= set(two), "DDP makes zeros of gradients that are not there"
    assert max(value.abs().max() for value in one.values()) > 1e-3
    for name, value in two.items():
        expected = one.get(name, torch.zeros_like(value))
        rounding = 1e-9 if value.dtype == torch.float64 else 1e-5 + 1e-4 * value.abs().max().item()
        torch.testing.assert_close(value, expected, atol=rounding, rtol=0, msg=name)


@pytest.mark.parametrize("images", two_processes.VALIDATION)
@pytest.mark.parametrize("detector", sorted(two_processes.CONFIGS))
def test_two_processes_detect_the_same(detector, images, compared):
    one, two = (results[detector, images] for results in compared)
    assert len({found["image_id"] for found in one}) > images / 2, "random weights find something in most images"
    assert one == two, "image by image, in the same order"


def test_processes_decide_alike_about_bad_steps_and_signals(compared):
    one, two = (results["votes"] for results in compared)
    assert (len(one), len(two)) == (1, 2)
    for allowed, logged, name in (*one, *two):
        assert not allowed and name == "SIGTERM"
        assert "loss_a is nan: step skipped" in logged and logged.endswith("images: of_the_last.jpg")


def final(output: Path) -> dict:
    """The whole state at the end: weights, optimizer, data order, ..."""
    return torch.load(output / "model_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Output of two processes that detectron2's launcher starts."""
    output = tmp_path_factory.mktemp("pair")
    log = output / "printed.txt"
    flags = ("--resume", "--num-processes", 2, "--dist-url", "auto")
    assert Program(command(output, *OPTS, flags=flags)[1:], log).wait() == 0, log.read_text()[-3000:]
    return output


def test_a_whole_training_is_the_same_but_for_rounding(pair, tmp_path):
    assert Program(command(tmp_path, *OPTS)[1:], tmp_path / "printed.txt").wait() == 0
    one, two = final(tmp_path)["model"], final(pair)["model"]
    first = torch.load(tmp_path / "model_0000000.pth", weights_only=True)["model"]
    assert set(one) == set(two)
    assert max((one[name] - first[name]).abs().max() for name in one if "weight" in name) > 1e-3, "it has learnt"
    # detectron2's synchronised norm divides by n, where torch's divides by n - 1, and does not count batches
    names = [name for name in one if not name.endswith(("running_var", "num_batches_tracked"))]
    for name in names:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


def workers_of(process, count: int, word: str) -> list[int]:
    """Processes that train; the launchers are their parents."""
    found = processes_below(process.pid, word)
    assert len(found) >= count, found
    return found


def test_a_process_that_dies_takes_the_others_along(tmp_path):
    log = tmp_path / "printed.txt"
    flags = ("--resume", "--num-processes", 2, "--dist-url", "auto")
    process = start(command(tmp_path / "run", *OPTS, "SOLVER.MAX_ITER", 100_000, flags=flags), log)
    wait_for_checkpoint(process, tmp_path / "run", "")
    workers = workers_of(process, 2, "spawn_main")
    os.kill(workers[-1], signal.SIGKILL)
    assert wait(process) == 1
    assert any("ended by SIGKILL, the others were stopped; go on with --resume" in line for line in errors(log)), (
        log.read_text()[-2000:]
    )
    assert "Traceback" not in log.read_text()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_two_machines_start_again_after_a_death_and_end_with_the_same_bits(pair, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = tmp_path / "run"
    logs, machines = [tmp_path / f"printed_{i}.txt" for i in range(2)], []
    for i in range(2):
        options = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, "--rdzv-backend", "c10d"]
        options += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", f"127.0.0.{1 + i}"]
        machines.append(start(command(output, *OPTS, python=torchrun(*options)), logs[i], **OWN_STORE))
    try:
        wait_for_checkpoint(machines[0], output, "")
        os.kill(workers_of(machines[1], 1, "train_net")[-1], signal.SIGKILL)
        assert [wait(machine) for machine in machines] == [0, 0], logs[0].read_text()[-3000:]
    finally:
        for machine in machines:
            kill(machine)
    assert "Starting training from iteration 0" not in (output / "log.txt").read_text().split("Starting training")[-1]
    assert differences(final(pair), final(output)) == []
