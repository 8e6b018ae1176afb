"""Injects faults into small trainings and writes what was promised and what happened as a table."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from d2x.atomic_files import atomic_write
from d2x.errors import one_line_errors
from tests.faults.cases import CASES, OPTS, Outcome, Place
from tests.faults.tiny_run import command, run

EPILOG = """Finished cases are read from OUTPUT/results.json, and the series of kills goes on where it was: start it
again after an interruption. --only repeats cases. Needs Linux; the cases that mount something need root, and do without
if there is none."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__, epilog=EPILOG)
    parser.add_argument("--output", default="output/faults", help="default: output/faults")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the first case (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", choices=CASES, help="cases to run (again)")
    parser.add_argument("--table", help="write the table there, too, between its two marker lines")
    return parser.parse_args(argv)


def write_table(results: dict[str, Outcome]) -> str:
    lines = ["| injected | promised | happened | kept |", "|---|---|---|---|"]
    for name in CASES:
        if name in results:
            one = results[name]
            lines.append(f"| {one.injected} | {one.promised} | {one.happened} | {'yes' if one.kept else '**no**'} |")
    return "\n".join(lines) + "\n"


MARKS = ("<!-- table of tests/faults -->", "<!-- end of table -->")


def put_into(page: Path, table: str) -> None:
    """Replace what is between the two marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    before, mark, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise ValueError(f"{page}: the lines {MARKS[0]} and {MARKS[1]} are not in it")
    page.write_text(f"{before}{mark}\n{table}{end}{after}")


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns 0 if every promise was kept."""
    args = parse_args(argv)
    output = Path(args.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    saved = output / "results.json"
    results = {name: Outcome(*row) for name, row in json.loads(saved.read_text()).items()} if saved.exists() else {}
    whole = output / "whole"
    if not (whole / "model_final.pth").exists():
        whole.mkdir(exist_ok=True)
        if run(command(whole, *OPTS), output / "whole.txt"):
            raise ValueError(f"the run without faults failed, see {output / 'whole.txt'}")
    for name in tqdm(args.only or [name for name in CASES if name not in results], desc="cases"):
        folder = output / name
        if name != "sigkill" or name in results:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        results[name] = CASES[name](Place(folder / "run", folder / "printed.txt", whole, args.kills, args.seed))
        with atomic_write(saved) as file:
            file.write(json.dumps(results, indent=1).encode())
    table = write_table(results)
    with atomic_write(output / "faults.md") as file:
        file.write(table.encode())
    if args.table:
        put_into(Path(args.table), table)
    print(table)
    return 0 if all(one.kept for one in results.values()) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
