"""The harness's arithmetic, and every script at its smallest size."""

import json

import pytest
import torch

from benchmarks import (
    attention,
    centerx_inference,
    centerx_targets,
    coco_eval,
    data_loading,
    matching,
    plain_detr_step,
    scaling,
    two_processes,
)
from benchmarks.harness import Bar, Comparison, compare
from benchmarks.memory import peak_memory
from benchmarks.report import table
from benchmarks.scaling import Point, exponent


def test_ratios_are_of_medians_and_rounds_interleave(monkeypatch):
    order, clock = [], iter(range(1000))
    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: next(clock))
    found = compare(
        "work",
        {"slow": lambda: order.append("slow"), "fast": lambda: (order.append("fast"), next(clock))},
        baseline="slow",
        repeats=3,
        bars={"fast": Bar(time=0.5)},
        memory={"slow": 200, "fast": 50},
    )
    assert order == ["slow", "fast"] * 4  # one round to warm up
    (one,) = found
    assert one.baseline_seconds == 1 and one.seconds == 2 and one.ratio == 2 and one.spread == (2, 2)
    assert one.memory_ratio == 0.25 and one.bar == 0.5


def comparison(**changes):
    settings = {
        "what": "work", "variant": "b", "baseline": "a", "seconds": 0.4, "baseline_seconds": 1.0, "ratio": 0.4,
        "spread": (0.3, 0.5), "cpu_ratio": 0.41, "bar": 0.5, "memory": 2**20, "baseline_memory": 2**22,
        "memory_bar": 0.2, "others": 0.0,
    }  # fmt: skip
    return Comparison(**{**settings, **changes})


def test_the_table_says_what_was_met_and_whether_the_machine_was_busy():
    text = table([comparison()])
    assert "| 0.40 (0.30-0.50) | <= 0.5 met | 0.41 | 4 to 1 | 0.25 | <= 0.2 **missed** |" in text
    assert "missed" not in table([comparison()], quick=True)
    assert "busy" not in text and "busy" in table([comparison(others=0.5)])


def grow(numbers):
    """What ``peak_memory`` runs in its process."""
    return lambda: torch.ones(numbers)


def test_peak_memory_is_that_of_the_run():
    numbers = 8 << 20  # 32 MiB
    assert 0.9 < peak_memory(grow, numbers) / (4 * numbers) < 1.5


def test_exponent_of_growth():
    points = [Point("side", side, "a", side**2.0, side**2.0, side**3) for side in (2, 4, 8)]
    assert exponent(points, "seconds") == pytest.approx(2) and exponent(points, "bytes") == pytest.approx(3)


@pytest.mark.parametrize("script", [attention, matching, centerx_targets, plain_detr_step, coco_eval, data_loading])
def test_quick(script, tmp_path):
    found = script.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    name = script.__name__.rpartition(".")[2]
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["quick"] and len(content["comparisons"]) == len(found) >= 1
    assert all(one.ratio > 0 for one in found) and any(one.bar is not None for one in found)
    assert "bar" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.slow
def test_quick_two_processes(tmp_path):
    (one,) = two_processes.main(["--quick", "--output", str(tmp_path)])
    assert one.ratio > 0 and one.bar == pytest.approx(1 / 1.8)
    assert "images/s" in (tmp_path / "two_processes.md").read_text()


def test_evaluators_that_disagree_are_an_error():
    found = coco_eval.Found({"AP": 10.0, "AP-owl": float("nan")}, ["0.100"] * 12)
    coco_eval.require_same(found, found)
    with pytest.raises(ValueError, match="disagree: AP-owl"):
        coco_eval.require_same(found._replace(results={"AP": 10.0, "AP-owl": 1.0}), found)
    with pytest.raises(ValueError, match="disagree"):
        coco_eval.require_same(found._replace(printed=["0.101"] * 12), found)


def test_quick_centerx_inference(tmp_path):
    words = ["--quick", "--threads", "1", "--forms", "folded", "--output", str(tmp_path)]
    (one,) = centerx_inference.main(words)
    assert one.variant == "folded" and one.bar == 0.4


def test_quick_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.scaling.peak_memory", lambda build, *arguments: 1 << 20)
    found = scaling.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    assert len(found) == 4 and "side" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (attention, ["--repeats", "-1"], "must not be negative"),
        (plain_detr_step, ["--sizes", "512"], "a size is written HxW"),
        (plain_detr_step, ["--config-file", "nowhere.yaml"], "config file not found: nowhere.yaml"),
    ],
)
def test_errors(script, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        script.main(words)
