"""A run that is killed, stopped, and runs out of disk ends as the one that was never interrupted."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from d2x.engine.fingerprint import differences
from tests.e2e.tiny_run import command, interrupt, run

RICH = (
    "SOLVER.MAX_ITER 14 SOLVER.IMS_PER_BATCH 4 SOLVER.ACCUMULATE 2 ADAPTIVE_LOSS.ENABLED True WEIGHT_AVERAGING.START 3"
).split()
# Files of the process may have this many bytes: logs fit, a checkpoint does not.
LIMITED = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));\
 sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def final(output: Path) -> dict:
    return torch.load(output / "model_final.pth", weights_only=True)


def errors(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("error: ")]


def leftovers(output: Path) -> list[str]:
    return sorted(name for name in os.listdir(output) if name.endswith(".tmp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Output of the run that nothing happens to."""
    output = tmp_path_factory.mktemp("whole")
    log = output / "printed.txt"
    assert run(command(output, *RICH), log) == 0, log.read_text()[-3000:]
    return output


def test_interrupted_run_ends_with_the_same_bits(whole, tmp_path):
    rng, output, log = random.Random(0), tmp_path / "run", tmp_path / "printed.txt"
    with_workers = command(output, *RICH, "DATALOADER.NUM_WORKERS", 2)
    assert interrupt(with_workers, output, log, signal.SIGKILL, rng) == -signal.SIGKILL

    assert interrupt(command(output, *RICH), output, log, signal.SIGTERM, rng) == 0
    assert "SIGTERM: stopped after iteration" in log.read_text()
    stopped = (output / "last_checkpoint").read_text()
    assert stopped in log.read_text() and (output / stopped).is_file()

    disk_full = tmp_path / "disk_full.txt"
    assert run(command(output, *RICH, python=(sys.executable, "-c", LIMITED)), disk_full) == 1
    assert [stopped] == [(output / "last_checkpoint").read_text()], "the state before is intact"
    (error,) = errors(disk_full)
    assert error.startswith(f"error: cannot write {output}/model_") and error.endswith("File too large")
    assert "Traceback" not in disk_full.read_text()
    assert leftovers(output) == []

    # The newest checkpoint is damaged: one bit of it, then all of it.
    damaged = output / stopped
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (output / "model_0000000.pth.123.tmp").write_bytes(b"of a process that was killed")

    assert run(command(output, *RICH), log) == 0, log.read_text()[-3000:]
    printed = log.read_text()
    assert f"{damaged}: the checksum of its record" in printed and "going on from" in printed
    assert "removed " in printed and leftovers(output) == []
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert differences(final(whole), final(output)) == []
    kept = [name for name in os.listdir(output) if name.startswith("model_0")]
    assert len(kept) == 2, "CHECKPOINT.KEEP_LAST"


def test_output_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    log = tmp_path / "printed.txt"
    assert run(command(tmp_path / "file" / "run", *RICH), log) == 1
    assert errors(log) == [f"error: cannot make the folder {tmp_path}/file/run: Not a directory"]
    assert "Traceback" not in log.read_text()
