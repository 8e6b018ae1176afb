"""Comparisons as a markdown table, a json file and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.harness import QUIET, Comparison, machine
from d2x.atomic_files import atomic_write

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HEADER = (
    "| what | variant | baseline ms | ms | ratio (rounds) | bar | CPU ratio | memory MiB | ratio | bar |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(found: Sequence[Comparison], *, quick: bool = False) -> str:
    """Markdown: one line a comparison, and what it was measured on; ``quick`` passes no judgement on the bars."""
    lines = [HEADER, *(_line(one, quick) for one in found)]
    lines += ["", ", ".join(f"{key} {value}" for key, value in machine().items() if value is not None)]
    busiest = max((one.others for one in found), default=0.0)
    if busiest > QUIET:
        lines += ["", f"**The machine was busy**: other programs took up to {busiest:.0%} of it. Trust the CPU ratio."]
    return "\n".join(lines) + "\n"


def _line(one: Comparison, quick: bool) -> str:
    low, high = one.spread
    cells = [
        one.what,
        f"{one.variant} over {one.baseline}",
        f"{one.baseline_seconds * 1e3:.1f}",
        f"{one.seconds * 1e3:.1f}",
        f"{one.ratio:.2f} ({low:.2f}-{high:.2f})",
        _bar(one.ratio, one.bar, quick),
        f"{one.cpu_ratio:.2f}",
    ]
    if one.memory_ratio is None:
        cells += ["-", "-", "-"]
    else:
        cells += [
            f"{one.baseline_memory / 2**20:.0f} to {one.memory / 2**20:.0f}",
            f"{one.memory_ratio:.2f}",
            _bar(one.memory_ratio, one.memory_bar, quick),
        ]
    return f"| {' | '.join(cells)} |"


def _bar(ratio: float, bar: float | None, quick: bool) -> str:
    if bar is None:
        return "-"
    if quick:
        return f"<= {bar:g}"
    return f"<= {bar:g} {'met' if ratio <= bar else '**missed**'}"


def write(found: Sequence[Comparison], output: str | Path, name: str, *, quick: bool = False, more: str = "") -> str:
    """Write ``name``.md, .json and .png into the folder, print the table and return it; ``more`` follows the table."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    text = table(found, quick=quick) + (f"\n{more}" if more else "")
    if quick:
        text += "\nA quick look at small sizes: these numbers say nothing about the bars.\n"
    with atomic_write(str(folder / f"{name}.md")) as file:
        file.write(text.encode())
    rows = [{**one._asdict(), "memory_ratio": one.memory_ratio} for one in found]
    content = {"machine": machine(), "quick": quick, "comparisons": rows}
    with atomic_write(str(folder / f"{name}.json")) as file:
        file.write(json.dumps(content, indent=1).encode())
    draw(found, folder / f"{name}.png")
    print(f"\n{text}\n{folder}: {name}.md, {name}.json, {name}.png")
    return text


def draw(found: Sequence[Comparison], path: Path) -> None:
    """Ratios as bars, with what was wanted as a mark."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(found)), layout="constrained")
    places = range(len(found))
    axes.barh(places, [one.ratio for one in found], color="tab:blue", height=0.6, label="measured")
    wanted = [(place, one.bar) for place, one in zip(places, found) if one.bar is not None]
    if wanted:
        axes.plot(*zip(*((bar, place) for place, bar in wanted)), "|", color="tab:red", ms=18, mew=2, label="bar")
    axes.set_yticks(places, [f"{one.what}\n{one.variant}" for one in found], fontsize=7)
    axes.axvline(1, color="grey", lw=1)
    axes.invert_yaxis()
    axes.set(xlabel="time over the baseline's", xlim=(0, None))
    axes.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
