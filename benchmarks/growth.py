"""How time grows with a number (images, workers, ...): a table and a curve for each variant."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Curves = Mapping[str, Sequence[float]]


def growth_table(along: str, values: Sequence[int], curves: Curves, unit: str) -> str:
    """Markdown: a line for each value.

    Args:
        along: what grows.
        curves: by variant, a number for each value.
        unit: of these numbers.
    """
    lines = [f"| {along} | {' | '.join(f'{name}, {unit}' for name in curves)} |", "|---" * (1 + len(curves)) + "|"]
    for value, *numbers in zip(values, *curves.values()):
        lines.append(f"| {value} | {' | '.join(f'{number:.3g}' for number in numbers)} |")
    return "\n".join(lines) + "\n"


def draw_growth(along: str, values: Sequence[int], curves: Curves, unit: str, path: Path, *, log: bool = True) -> None:
    """The same as a picture; with ``log`` on doubly logarithmic axes."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, numbers in curves.items():
        (axes.loglog if log else axes.plot)(values, numbers, "o-", label=name)
    axes.set(xlabel=along, ylabel=unit)
    if not log:
        axes.set(ylim=(0, None), xticks=list(values))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
