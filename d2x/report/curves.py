"""Training curves from detectron2's ``metrics.json``."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Series by name from a file with one json object a line; a torn last line (killed run) is ignored.

    Returns:
        name -> (iterations, values), in order of iteration; after a resume the later value of an iteration wins.
    """
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[int(record["iteration"])].update({k: v for k, v in record.items() if isinstance(v, int | float)})
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for iteration in sorted(rows):
        for name, value in rows[iteration].items():
            series[name][0].append(iteration)
            series[name][1].append(value)
    return dict(series)


def draw_curves(metrics: str | Path, output: str | Path) -> None:
    """Write a PNG with three panels: losses (log scale), learning rate, AP and AP50 over iterations."""
    series = read_metrics(metrics)
    losses = [name for name in series if "loss" in name and name != "total_loss"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for name in sorted(losses, key=lambda name: -series[name][1][0])[:10]:
        left.plot(*series[name], linewidth=0.9, alpha=0.7, label=name)
    if "total_loss" in series:
        left.plot(*series["total_loss"], color="black", linewidth=1.6, label="total_loss")
    left.set(title="training losses (weighted)", xlabel="iteration", yscale="log")
    left.legend(fontsize=7)
    if "lr" in series:
        middle.plot(*series["lr"])
    middle.set(title="learning rate", xlabel="iteration")
    for name in ("bbox/AP", "bbox/AP50"):
        if name in series:
            right.plot(*series[name], marker="o", label=name.removeprefix("bbox/"))
            right.legend()
    right.set(title="COCO metrics, validation", xlabel="iteration", ylim=(0, 100))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
    plt.close(figure)
