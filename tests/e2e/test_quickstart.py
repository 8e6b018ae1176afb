"""A short run of what ``./run.sh`` does: the loss falls, AP rises above a floor, and every promised file is there."""

import json
from pathlib import Path

import pytest

from tests import fork_server

ARTEFACTS = ("model_final.pth", "metrics.json", "curves.png", "predictions.png", "config.yaml")


def quickstart(detector: str, output: Path, *opts) -> str:
    done = fork_server.run("tools/quickstart.py", detector, "--output", output, *opts)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize(
    "detector, iterations, floor_ap50",
    [("centerx", 160, 3.0), ("plain_detr", 100, 0.0)],
)
def test_short_quickstart(detector, iterations, floor_ap50, tmp_path):
    short = ["SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", 20, "SOLVER.CHECKPOINT_PERIOD", 1000]
    sets = ["DATASETS.TEST", "('shapes_tiny_val',)", "TEST.EVAL_PERIOD", 1000, "WEIGHT_AVERAGING.DECAY", 0.95]
    printed = quickstart(detector, tmp_path, *short, *sets)
    for name in ARTEFACTS:
        assert (tmp_path / name).stat().st_size > 0, name
    assert list(tmp_path.glob("events.out.tfevents*"))
    first, last = losses(tmp_path)[0], losses(tmp_path)[-1]
    assert last < 0.8 * first, f"the loss went from {first:.2f} to {last:.2f}"
    ap50 = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])["bbox/AP50"]
    assert ap50 > floor_ap50 or floor_ap50 == 0
    assert "AP" in printed and "predictions.png" in printed
    # Finished runs are not trained again.
    stamp = (tmp_path / "model_final.pth").stat().st_mtime_ns
    assert "is there already" in quickstart(detector, tmp_path, *short, *sets)
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == stamp
