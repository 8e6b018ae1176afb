"""tools/slurm_train.sbatch with Slurm's commands played by short scripts: what it starts, and that it queues itself.

The slow test lets it train.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.faults.tiny_run import ROOT, command, last_checkpoint, wait_for_checkpoint

COMMANDS = {
    # the step: notes its arguments, and trains, or ends as told, or when it gets SIGTERM
    "srun": 'trap "exit 0" TERM; echo "$@" > arguments; echo $$ > step\n'
    '[ -z "${TRAINS:-}" ] || exec "${@:2}"\n'
    '[ -z "${ENDS_WITH:-}" ] || exit "$ENDS_WITH"\nfor _ in $(seq 600); do sleep 0.05; done; exit 9\n',
    "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat step)"\n',
    "scontrol": '[ "$1" = requeue ] && echo "$2" > queued_again || printf "%s\\n" ${HOSTS:-first second}\n',
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job of two machines with four GPUs each, in an empty folder."""
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)

    def start(*words: str, **environment: str) -> subprocess.Popen:
        slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "first,second",
                 "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "PYTHON": "python"}  # fmt: skip
        env = {**os.environ, **slurm, **environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        words = words or ("--config-file", "a.yaml", "OUTPUT_DIR", "/nfs/out put")
        return subprocess.Popen(["bash", str(ROOT / "tools/slurm_train.sbatch"), *words], env=env)

    return start


def option(tmp_path: Path, name: str) -> str:
    words = (tmp_path / "arguments").read_text().split()
    return words[words.index(name) + 1]


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_ends_as_its_step_does(job, status, tmp_path):
    assert job(ENDS_WITH=str(status)).wait(60) == status
    assert not (tmp_path / "queued_again").exists()
    words = (tmp_path / "arguments").read_text()
    assert words.endswith("tools/train_net.py --resume --config-file a.yaml OUTPUT_DIR /nfs/out put\n")
    found = {name: option(tmp_path, name) for name in ("--nnodes", "--nproc-per-node", "--rdzv-endpoint")}
    assert found == {"--nnodes": "2", "--nproc-per-node": "4", "--rdzv-endpoint": "first:20007"}


@pytest.mark.parametrize("gpus", ["0", ""])
@pytest.mark.parametrize("told, expected", [({}, "1"), ({"PROCESSES": "3"}, "3")])
def test_without_gpus_the_number_of_processes_is_told(gpus, told, expected, job, tmp_path, monkeypatch):
    monkeypatch.delenv("PROCESSES", raising=False)
    assert job(ENDS_WITH="0", SLURM_GPUS_ON_NODE=gpus, **told).wait(60) == 0
    assert option(tmp_path, "--nproc-per-node") == expected


def test_before_its_time_is_up_the_training_saves_and_the_job_is_queued_again(job, tmp_path):
    process = job()
    while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 20007.0\n"
    assert (tmp_path / "queued_again").read_text() == "20007\n"


@pytest.mark.slow
def test_a_training_that_is_cut_off_goes_on_in_the_next_stretch(job, tmp_path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    output = tmp_path / "run"
    opts = ("SOLVER.MAX_ITER", 100, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 20)
    whole = command(output, *opts, flags=())
    slurm = {"TRAINS": "yes", "HOSTS": "localhost", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "0", "PROCESSES": "2",
             "SLURM_JOB_ID": str(os.getpid()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip

    process = job(*whole[whole.index("--config-file") :], **slurm)
    wait_for_checkpoint(process, output, "")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(600) == 0
    (tmp_path / "queued_again").unlink()
    saved = torch.load(output / last_checkpoint(output), weights_only=True)["iteration"]
    assert 19 <= saved < 99

    assert job(*whole[whole.index("--config-file") :], **slurm).wait(600) == 0
    assert not (tmp_path / "queued_again").exists()
    log = (output / "log.txt").read_text()
    assert f"Starting training from iteration {saved + 1}" in log and "World size: 2" in log
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 99
