"""The results as a table and a picture."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from benchmarks.claims.runner import Claims
from benchmarks.claims.runs import RATES
from d2x.atomic_files import write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLLAPSED = 1.0  # AP below which a run counts as collapsed

# Title, and rows of the table: (run, description).
TABLES = (
    (
        "One teacher: all labels on the same images",
        (
            ("teacher", "teacher, large"),
            ("student", "student, small, alone"),
            ("student_kd", "+ teacher"),
            ("student_label_free", "teacher only, no labels"),
            ("student_label_free_more_images", "teacher only, no labels, twice the images"),
            ("student_self_kd", "+ itself as teacher"),
        ),
    ),
    (
        "Two data sets, A labelled for two classes, B for the two others",
        (
            ("teacher_a", "teacher A, large"),
            ("teacher_b", "teacher B, large"),
            ("only_a", "student on A only"),
            ("only_b", "student on B only"),
            ("as_negatives", "student on A + B, unlabelled counted as background"),
            ("ignore_unlabelled", "student on A + B, unlabelled ignored"),
            ("pseudo_labels", "student on A + B, pseudo labels"),
            ("two_teachers", "student on A + B, two teachers, no labels"),
        ),
    ),
    (
        "Learning rate (SGD without clipping)",
        tuple((f"sgd_{rate}_{loss}", f"rate {rate}, {loss} loss") for rate in RATES for loss in ("plain", "adaptive")),
    ),
)


def columns(result: dict) -> dict[str, float]:
    """AP by column: "all", "A", "B"."""
    names: dict[str, Callable[[str], bool]] = {
        "all": lambda name: name.startswith("claims_val"),
        "A": lambda name: name.startswith("claims_a_val"),
        "B": lambda name: name.startswith("claims_b_val"),
    }
    return {column: value for column, fits in names.items() for name, value in result["AP"].items() if fits(name)}


def mean_and_spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"


def write_table(claims: Claims, seeds: Sequence[int], names: Sequence[str]) -> Path:
    """``claims.md``: mean and standard deviation over the seeds of every row that is done."""
    lines = [
        "# CenterX's claims in miniature",
        "",
        f"COCO AP on the embedded data set, mean ± standard deviation over seeds {', '.join(map(str, seeds))}.",
        f"Collapsed are runs whose loss became NaN or whose AP ended below {COLLAPSED:g}. Made by",
        "",
        f"    python -m benchmarks.claims --scale {claims.scale_name} --seeds {' '.join(map(str, seeds))}",
        "",
        f"Sizes: {dataclasses.asdict(claims.scale)}.",
    ]
    for title, rows in TABLES:
        lines += ["", f"## {title}", "", "| run | AP | AP on A's classes | AP on B's classes | collapsed |"]
        lines.append("|---|---|---|---|---|")
        for name, text in rows:
            results = [result for seed in seeds if (result := claims.result(name, seed))]
            if name not in names or not results:
                continue
            cells = [columns(result) for result in results]
            shown = []
            for column in ("all", "A", "B"):
                values = [cell[column] for cell in cells if column in cell]
                shown.append(mean_and_spread(values) if values else "")
            collapsed = sum(r["diverged"] or max(r["AP"].values()) < COLLAPSED for r in results)
            if len(results) < len(seeds):
                text += f" ({len(results)} of {len(seeds)} seeds)"
            lines.append(f"| {text} | {' | '.join(shown)} | {collapsed} of {len(results)} |")
    path = claims.output / "claims.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def draw(claims: Claims, seeds: Sequence[int], path: Path) -> None:
    """One panel a table: bars are means, dots the seeds."""
    figure, panels = plt.subplots(1, len(TABLES), figsize=(6 * len(TABLES), 5), layout="constrained")
    for axes, (title, rows) in zip(panels, TABLES):
        labels = []
        for name, text in rows:
            results = [columns(result) for seed in seeds if (result := claims.result(name, seed))]
            for column, colour in (("all", "tab:gray"), ("A", "tab:blue"), ("B", "tab:orange")):
                values = [result[column] for result in results if column in result]
                if values:
                    y = len(labels)
                    axes.barh(y, statistics.mean(values), color=colour, alpha=0.6)
                    axes.plot(values, [y] * len(values), "k.", markersize=4)
                    labels.append(text if column == "all" else f"{text}: {column}")
        axes.set(title=title, xlabel="COCO AP", yticks=range(len(labels)), yticklabels=labels)
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
