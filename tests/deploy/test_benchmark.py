"""The benchmark of exported models beside PyTorch: it runs, and its ratios are what they say. Nothing here is timed."""

import json
import sys

import pytest

from d2x.deploy.benchmark import Worker, measure, table
from tests import fork_server

FAKE = """
import json, sys
print("chatter"); print(json.dumps({"ready": 1}), flush=True)
for turn, _ in enumerate(sys.stdin):
    seconds = float(sys.argv[1])
    print(json.dumps({"median": seconds * (turn + 1), "memory_mb": 100 * seconds + turn}), flush=True)
"""


def test_ratios_are_taken_within_a_round():
    workers = [Worker(name, [sys.executable, "-c", FAKE, seconds]) for name, seconds in (("a", "0.3"), ("b", "0.1"))]
    try:
        first, second = measure(workers, rounds=3, repeats=2, batch=4)
    finally:
        for worker in workers:
            worker.close()
    # turns take 0.3, 0.6, 0.9 and 0.1, 0.2, 0.3 s
    assert (first.speed_up, first.milliseconds) == (1, pytest.approx(600))
    assert second.speed_up == pytest.approx(3) and second.spread == (pytest.approx(3), pytest.approx(3))
    assert second.images_per_second == pytest.approx(20)
    # memory peaks at 32 and 12 MB
    assert second.memory_mb == pytest.approx(12) and second.memory_share == pytest.approx(12 / 32)
    assert "| b | 3.00 | 3.00 to 3.00 | 200.0 | 20.0 | 12 | 0.38 |" in table([first, second])


def test_a_worker_that_dies_is_named():
    with pytest.raises(ValueError, match="benchmark of x: its process ended with status 3"):
        Worker("x", [sys.executable, "-c", "import sys; sys.exit(3)"])


def test_tool_on_a_tiny_model(centerx_cfg, tmp_path):
    (tmp_path / "config.yaml").write_text(centerx_cfg.dump())
    command = ["-W", "ignore", "tools/benchmark_export.py", "--config-file", tmp_path / "config.yaml"]
    command += ["--weights", centerx_cfg.MODEL.WEIGHTS, "--size", 64, 64, "--threads", 1, "--rounds", 2]
    command += ["--repeats", 1, "--subjects", "ncnn", "caffe", "--output", tmp_path / "speed.json"]
    done = fork_server.run(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = json.loads((tmp_path / "speed.json").read_text())
    assert [one["name"] for one in numbers] == ["pytorch", "ncnn", "caffe"]
    assert all(one["milliseconds"] > 0 and one["memory_mb"] > 20 for one in numbers)
    assert numbers[1]["memory_mb"] < numbers[0]["memory_mb"]  # no torch in there
