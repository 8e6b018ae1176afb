"""Processes that ``launch`` starts: their group, and how they share the cores of the machine."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from d2x.engine.launch import _main_of_process, available_cores, launch
from d2x.engine.resume.stopping import SIGNALS
from tests.fork_server import Program


def write_threads(folder: Path) -> None:
    """Run by every process: its number of threads, in a file by its rank."""
    (folder / f"{comm.get_rank()}_of_{comm.get_world_size()}").write_text(str(torch.get_num_threads()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes on GPUs keep their threads")
def test_two_processes_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(write_threads, (tmp_path,), processes=2)
    each = str(max(1, available_cores() // 2))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0_of_2": each, "1_of_2": each}


def test_a_process_that_was_told_its_threads_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"set to {number}"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    _main_of_process(write_threads, (tmp_path,), 2)
    assert (tmp_path / "0_of_1").exists()


def test_two_machines_are_one_job(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    results = tmp_path / "results"
    results.mkdir()
    code = (
        f"from {__name__} import *; launch(write_threads, (Path({str(results)!r}),), machines=2, machine_rank=1,"
        f" dist_url={url!r})"
    )
    other = Program(["-c", code], tmp_path / "printed.txt")
    try:
        launch(write_threads, (results,), machines=2, machine_rank=0, dist_url=url)
        assert other.wait(600) == 0, (tmp_path / "printed.txt").read_text()
    finally:
        other.send_signal(signal.SIGKILL)
    assert sorted(file.name for file in results.iterdir()) == ["0_of_2", "1_of_2"]


@pytest.mark.parametrize("place, words", [
    ({"machines": 2}, "tcp://HOST:PORT"),
    ({"machines": 2, "machine_rank": 2, "dist_url": "tcp://127.0.0.1:1"}, "from 0 to 1, got 2"),
    ({"processes": 2, "machine_rank": 1}, "from 0 to 0, got 1"),
])  # fmt: skip
def test_machines_that_could_not_meet_are_one_line(place, words, tmp_path, capsys):
    handlers = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(SystemExit) as ended:
        launch(write_threads, (tmp_path,), **place)
    assert ended.value.code == 1 and list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1
    assert [signal.getsignal(one) for one in SIGNALS] == handlers


def test_cores_are_those_that_the_process_may_use():
    assert 1 <= available_cores() <= os.cpu_count()
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_one_process_stays_in_this_one(tmp_path):
    threads = torch.get_num_threads()
    launch(write_threads, (tmp_path,), processes=0)
    assert (tmp_path / "0_of_1").read_text() == str(threads)
