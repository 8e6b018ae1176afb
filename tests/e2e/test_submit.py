"""The submitit entry on this machine: a job trains, and one that is cut off saves and is to be queued again."""

import subprocess
import sys
from pathlib import Path

import pytest
import submitit
import torch

from benchmarks.tiny_run import ROOT, command, last_checkpoint, wait_for_checkpoint
from tools import submit

OPTS = ("SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2)


def words(output: Path, *opts) -> list[str]:
    """The training's arguments."""
    whole = command(output, *OPTS, *opts, flags=())
    return whole[whole.index("--config-file") :]


@pytest.mark.slow
def test_a_local_job_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = ["--cluster", "local", "--folder", str(tmp_path / "jobs"), "--processes", "2", "--wait"]
    assert submit.main([*job, "--", *words(tmp_path / "run")]) == 0
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 2
    assert "World size: 2" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_a_job_that_is_cut_off_saves_and_is_queued_again(tmp_path, monkeypatch):
    training = submit.Training(words(tmp_path / "run", "SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 20))
    training._process = subprocess.Popen(
        [sys.executable, "tools/train_net.py", "--resume", *training._words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_checkpoint(training._process, tmp_path / "run", "")
    again = training.checkpoint()
    assert training._process.returncode == 0
    assert (tmp_path / "run" / last_checkpoint(tmp_path / "run")).is_file()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function._words == training._words


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="usage: tools/submit.py"):
        submit.main(["--cluster", "local"])
    with pytest.raises(ValueError, match="--set takes KEY=VALUE"):
        submit.main(["--set", "partition", "--", "--config-file", "x"])
