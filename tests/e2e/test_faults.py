"""A run that is killed, stopped, and runs out of disk ends as the one that was never interrupted."""

import os
import random
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from d2x.checkpoint.fingerprint import differences
from tests.faults.tiny_run import (
    DEADLINE,
    LIMITED,
    READ_ONLY,
    RICH,
    command,
    errors,
    interrupt,
    kill_at_random,
    last_checkpoint,
    leftovers,
    start,
    wait,
    wait_for_checkpoint,
)
from tests.fork_server import Program

OPTS = [*RICH, "SOLVER.MAX_ITER", 14]
KILLS = 50
of_one_whole_run = pytest.mark.xdist_group("faults")


def fork(words: Sequence[str], log: Path) -> Program:
    """Start a command in a process that is forked, where ``start`` starts an interpreter."""
    return Program(words[1:], log, PYTHONWARNINGS="ignore")


def run(words: Sequence[str], log: Path) -> int:
    """Run to the end; returns the exit status."""
    return fork(words, log).wait(DEADLINE)


def final(output: Path) -> dict:
    return torch.load(output / "model_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Output of the run that nothing happens to."""
    output = tmp_path_factory.mktemp("whole")
    log = output / "printed.txt"
    assert run(command(output, *OPTS), log) == 0, log.read_text()[-3000:]
    return output


@of_one_whole_run
def test_interrupted_run_ends_with_the_same_bits(whole, tmp_path):
    rng, output, log = random.Random(0), tmp_path / "run", tmp_path / "printed.txt"
    with_workers = command(output, *OPTS, "DATALOADER.NUM_WORKERS", 2)
    assert interrupt(with_workers, output, log, signal.SIGKILL, rng, fork) == -signal.SIGKILL

    assert interrupt(command(output, *OPTS), output, log, signal.SIGTERM, rng, fork) == 0
    assert "SIGTERM: stopped after iteration" in log.read_text()
    stopped = last_checkpoint(output)
    assert f"saved {output / stopped}" in log.read_text() and (output / stopped).is_file()

    disk_full = tmp_path / "disk_full.txt"
    assert run(command(output, *OPTS, python=(sys.executable, "-c", LIMITED)), disk_full) == 1
    assert last_checkpoint(output) == stopped, "the state before is intact"
    (error,) = errors(disk_full)
    assert error.startswith(f"error: cannot write {output}/model_") and error.endswith("File too large")
    assert "Traceback" not in disk_full.read_text()
    assert leftovers(output) == []

    damaged = output / stopped  # one bit of the newest checkpoint
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (output / "model_0000000.pth.123.tmp").write_bytes(b"of a process that was killed")

    assert run(command(output, *OPTS), log) == 0, log.read_text()[-3000:]
    printed = log.read_text()
    assert f"{damaged}: the checksum of its record" in printed and "going on from" in printed
    assert "removed " in printed and leftovers(output) == []
    assert last_checkpoint(output) == "model_final.pth"
    assert differences(final(whole), final(output)) == []
    kept = [name for name in os.listdir(output) if name.startswith("model_0")]
    assert len(kept) == 2, "CHECKPOINT.KEEP_LAST"


def test_fifty_kills_at_random_moments_of_one_run(tmp_path):
    """The script ``tests/faults`` does so with evaluations and loader processes, too."""
    opts = [*RICH, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATE", 1, "SOLVER.MAX_ITER", 120]
    output, log, rng = tmp_path / "run", tmp_path / "printed.txt", random.Random(0)
    assert run(command(tmp_path / "whole", *opts), log) == 0, log.read_text()[-3000:]
    ends = []
    for _ in range(KILLS):
        ends.append(kill_at_random(command(output, *opts), output, log, rng, start=0.4, steps=0.03))
        assert ends[-1] == -signal.SIGKILL, log.read_text()[-3000:]
    assert len(ends) == KILLS and last_checkpoint(output) not in ("", "model_final.pth"), "killed all along"
    assert run(command(output, *opts), log) == 0, log.read_text()[-3000:]
    assert differences(final(tmp_path / "whole"), final(output)) == []
    assert leftovers(output) == []


@of_one_whole_run
def test_output_folder_that_becomes_read_only(whole, tmp_path):
    output, log = tmp_path / "run", tmp_path / "printed.txt"
    words = command(output, *OPTS, python=(sys.executable, "-c", READ_ONLY))
    output.mkdir()
    process = start(words, log)
    wait_for_checkpoint(process, output, "")
    output.chmod(0o555)
    try:
        assert wait(process) == 1
        assert wait(start(words, log)) == 1
    finally:
        output.chmod(0o755)
    saved = last_checkpoint(output)
    # TensorBoard's thread, which cannot write either, prints a traceback of its own, in the middle of our line or not.
    in_the_middle, at_the_start = re.findall("error: .*?: Permission denied", log.read_text())
    assert in_the_middle.startswith(f"error: cannot write {output}/")
    assert at_the_start == f"error: cannot write {output}/writable: Permission denied"
    assert (output / saved).is_file() and saved != "model_final.pth"
    assert run(command(output, *OPTS), log) == 0, log.read_text()[-3000:]
    assert differences(final(whole), final(output)) == [] and leftovers(output) == []


def test_output_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    log = tmp_path / "printed.txt"
    assert run(command(tmp_path / "file" / "run", *OPTS), log) == 1
    assert errors(log) == [f"error: cannot make the folder {tmp_path}/file/run: Not a directory"]
    assert "Traceback" not in log.read_text()
