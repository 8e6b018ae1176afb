"""How BoxRPB attention grows with the image, the queries and the batch: time and memory, ours and materialised.

Memory should be linear in queries x (Wf + Hf), not in queries x Wf x Hf. Written as a table, json and a picture with
doubly logarithmic axes, on which the exponent of growth is the slope; the table names it.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib
from tqdm import tqdm

from benchmarks.attention import AXIAL, MATERIALISED, STRIDE, Size, build
from benchmarks.harness import add_options, machine, measure, prepare
from benchmarks.memory import peak_memory
from d2x.atomic_files import atomic_write
from d2x.errors import one_line_errors

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SIDES, QUERIES, BATCHES = (256, 384, 512, 768, 1024), (100, 300, 600, 1200, 1800), (1, 2, 4, 8)


class Point(NamedTuple):
    """One measurement: forward and backward of one attention.

    Attributes:
        along: what grows: "side", "queries" or "batch".
        value: of that.
        variant: name.
        seconds, cpu_seconds: medians.
        bytes: of memory above the inputs.
    """

    along: str
    value: int
    variant: str
    seconds: float
    cpu_seconds: float
    bytes: int


def sizes(quick: bool) -> list[tuple[str, int, Size]]:
    """(what grows, its value, size) of every point."""
    if quick:
        return [("side", side, Size(8, (side // STRIDE,) * 2, 1, 32, 2)) for side in (64, 128)]
    middle = (512 // STRIDE,) * 2
    found = [("side", side, Size(300, (side // STRIDE,) * 2)) for side in SIDES]
    found += [("queries", count, Size(count, middle)) for count in QUERIES]
    return found + [("batch", count, Size(300, middle, count)) for count in BATCHES]


def run(points: list[tuple[str, int, Size]], repeats: int) -> list[Point]:
    """Measure every point in both variants."""
    found = []
    for along, value, size in tqdm(points, desc="sizes", unit="size"):
        names = (MATERIALISED, AXIAL)
        timings, _ = measure({name: build(name, size, True) for name in names}, repeats=repeats)
        for name in names:
            wall, cpu = (sorted(one)[len(one) // 2] for one in timings[name])
            found.append(Point(along, value, name, wall, cpu, peak_memory(build, name, size, True)))
    return found


def exponent(points: list[Point], attribute: str) -> float:
    """Slope between the first and the last point on doubly logarithmic axes."""
    first, last = points[0], points[-1]
    low, high = max(getattr(first, attribute), 1e-9), max(getattr(last, attribute), 1e-9)
    return math.log(high / low) / math.log(last.value / first.value)


def series(found: list[Point]) -> dict[tuple[str, str], list[Point]]:
    """By what grows and variant."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in found:
        groups.setdefault((point.along, point.variant), []).append(point)
    return groups


def table(found: list[Point]) -> str:
    """Markdown."""
    lines = ["| growing | variant | values | ms | MiB | time ~ | memory ~ |", "|---|---|---|---|---|---|---|"]
    for (along, variant), points in series(found).items():
        values, times, memory = (
            ", ".join(text.format(one) for one in column)
            for text, column in (
                ("{}", [point.value for point in points]),
                ("{:.1f}", [point.seconds * 1e3 for point in points]),
                ("{:.0f}", [point.bytes / 2**20 for point in points]),
            )
        )
        slopes = f"^{exponent(points, 'cpu_seconds'):.1f} | ^{exponent(points, 'bytes'):.1f}"
        lines.append(f"| {along} | {variant} | {values} | {times} | {memory} | {slopes} |")
    described = ", ".join(f"{key} {value}" for key, value in machine().items() if value is not None)
    return "\n".join(lines) + f"\n\nForward and backward; exponents of time from CPU time. {described}\n"


def draw(found: list[Point], path: Path) -> None:
    """Time and memory over every size."""
    groups = series(found)
    along = list(dict.fromkeys(name for name, _ in groups))
    figure, axes = plt.subplots(2, len(along), figsize=(4 * len(along), 6.5), layout="constrained", squeeze=False)
    for column, name in enumerate(along):
        for row, (attribute, label, unit) in enumerate((("seconds", "ms", 1e3), ("bytes", "MiB", 2**-20))):
            for (mine, variant), points in groups.items():
                if mine == name:
                    values = [getattr(point, attribute) * unit for point in points]
                    axes[row, column].loglog([point.value for point in points], values, "o-", label=variant)
            axes[row, column].set(xlabel="image side, px" if name == "side" else name, ylabel=label)
            axes[row, column].grid(alpha=0.3, which="both")
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    add_options(parser, "scaling")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Point]:
    """Run; returns the points."""
    args = parse_args(argv)
    prepare(args)
    found = run(sizes(args.quick), args.repeats)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    text = table(found)
    with atomic_write(output / "scaling.md") as file:
        file.write(text.encode())
    with atomic_write(output / "scaling.json") as file:
        file.write(json.dumps({"machine": machine(), "points": [one._asdict() for one in found]}, indent=1).encode())
    draw(found, output / "scaling.png")
    print(f"\n{text}\n{output}: scaling.md, scaling.json, scaling.png")
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
