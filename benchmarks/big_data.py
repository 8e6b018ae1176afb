#!/usr/bin/env python3
"""Start-up time and memory of the data pipeline on synthetic jsons of the sizes of COCO and Objects365."""

import argparse
import contextlib
import json
import logging
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2x.atomic_files import write_text  # noqa: E402

SIZES = {  # images, annotations, whether each has a polygon, whether image files are made
    "coco": (118_287, 860_001, True, True),
    "objects365": (1_742_292, 25_407_598, False, False),
}
CATEGORIES = 80

EPILOG = """For each size: a json is synthesised (once; kept in --folder); a fresh process registers it, makes training
records and reads one of them (first start: the json is parsed and its index kept); another one does the same (second
start: from the index); then loader workers read records, with and without company. Each number is of a process of its
own; memory is the largest resident set, of workers what is private to them (Private_Dirty).

The Objects365 size is registered as objects365_train is: without looking for its image files.
"""


def synthesise(path: Path, images: int, annotations: int, *, polygons: bool, files: Path | None) -> None:
    """Write a json with COCO's keys, records in random order; and empty image files, if a folder is given."""
    rng = random.Random(0)
    tails = [_annotation_tail(rng, polygons) for _ in range(2000)]
    record = (
        '{"license": 3, "file_name": "%012d.jpg", "coco_url": "http://images.example/train/%012d.jpg", "height": %d,'
        ' "width": %d, "date_captured": "2013-11-14 16:28:13", "id": %d}'
    )
    temporary = path.with_suffix(".part")
    with temporary.open("w") as file:
        file.write('{"info": {"year": 2026}, "licenses": [], "images": [')
        for i in tqdm(range(images), desc="write images", unit="image", mininterval=5):
            height, width = (480, 640) if i % 3 else (640, 480)
            file.write((", " if i else "") + record % (i, i, height, width, i))
            if files is not None:
                (files / f"{i:012d}.jpg").touch()
        file.write('], "annotations": [')
        for i in tqdm(range(annotations), desc="write boxes", unit="box", mininterval=5):
            head = f'{{"id": {i + 1}, "image_id": {int(rng.random() * images)}, '
            file.write((", " if i else "") + head + tails[i % len(tails)])
        categories = [{"id": i, "name": f"class {i}", "supercategory": "any"} for i in range(1, CATEGORIES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    os.replace(temporary, path)


def _annotation_tail(rng: random.Random, polygon: bool) -> str:
    x, y, w, h = (round(rng.uniform(0, 400), 2), round(rng.uniform(0, 400), 2), *(round(rng.uniform(2, 80), 2),) * 2)
    fields = {
        "category_id": rng.randint(1, CATEGORIES),
        "iscrowd": int(rng.random() < 0.01),
        "area": round(w * h, 4),
        "bbox": [x, y, w, h],
    }
    if polygon:
        points = rng.randint(4, 40)
        fields["segmentation"] = [[round(rng.uniform(0, 480), 2) for _ in range(2 * points)]]
    return json.dumps(fields)[1:]


def start(json_file: str, images: str, need_images: bool) -> dict:
    """What a training start does with the data; seconds and memory of this process."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2x.data.index.cache import open_index
    from d2x.data.index.coco_index import IndexedRecords
    from d2x.data.sets.training_set import are_wide, training_records

    imported = _memory()
    wall, processor = time.perf_counter(), time.process_time()
    index = open_index(json_file, images, need_images=need_images)
    DatasetCatalog.register("big", lambda: IndexedRecords(index, images, "big"))
    MetadataCatalog.get("big").indexed = True
    records = training_records(["big"], filter_empty=True)
    wide = are_wide(records)
    first = records[len(records) // 2]
    return {
        "seconds": round(time.perf_counter() - wall, 1),
        "processor seconds": round(time.process_time() - processor, 1),
        "peak MB": _memory(),
        "of it imports MB": imported,
        "images": len(records),
        "boxes": int(index.arrays["first"][-1]),
        "wide": sum(wide),
        "boxes of one": len(first["annotations"]),
        "index MB": sum(array.nbytes for array in index.arrays.values()) >> 20,
    }


def workers(json_file: str, images: str, need_images: bool, count: int) -> dict:
    """Private memory of ``count`` loader workers after they have read 20,000 records each, in random order."""
    import torch
    from torch.utils.data import DataLoader

    from d2x.data.index.cache import open_index
    from d2x.data.index.coco_index import IndexedRecords

    records = IndexedRecords(open_index(json_file, images, need_images=need_images), images, "big")
    number = min(20_000 * count, len(records))
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))[:number].tolist()
    loader = DataLoader(_Private(records), sampler=order, num_workers=count, batch_size=100, collate_fn=_largest)
    latest: dict[int, int] = {}
    for process, private in loader:
        latest[process] = private
    return {"workers": count, "private MB": sorted(value >> 20 for value in latest.values())}


class _Private:
    """Each item: (process, its private bytes), after a record was read."""

    def __init__(self, records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        return len(self.records[index]["annotations"])


def _largest(_: list) -> tuple[int, int]:
    with open("/proc/self/smaps_rollup") as file:
        private = sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
    return os.getpid(), private << 10


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def in_a_fresh_process(*words: object) -> dict:
    """Run one measurement of this script; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--measure", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise ValueError(f"measurement {' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(size: str, folder: Path, images: int, annotations: int) -> Iterator[str]:
    """Rows of the table for one size."""
    _, _, polygons, with_files = SIZES[size]
    path, files = folder / f"{size}-{images}-{annotations}.json", folder / f"{size}-images"
    files.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        synthesise(path, images, annotations, polygons=polygons, files=files if with_files else None)
    for kept in (folder / "cache" / "index").glob(f"{path.stem}-*"):
        kept.unlink()
    name = f"{size}, {images:,} images, {annotations:,} boxes, json of {path.stat().st_size >> 20:,} MB"
    for title in ("first start", "second start"):
        found = in_a_fresh_process("start", path, files, int(with_files))
        yield (
            f"| {name} | {title} | {found['seconds']} s ({found['processor seconds']} s of processor) | "
            f"{found['peak MB']:,} MB (imports: {found['of it imports MB']}; index: {found['index MB']}) |"
        )
    for count in (1, 4):
        found = in_a_fresh_process("workers", path, files, int(with_files), count)
        private = ", ".join(map(str, found["private MB"]))
        yield f"| {name} | {count} loader workers | | private to each: {private} MB |"


def machine() -> str:
    """Processor, cores, memory."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{model}, {os.cpu_count()} cores, {memory} GB, Python {platform.python_version()}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="may be repeated (default: coco)")
    parser.add_argument("--images", type=int, help="another number of images")
    parser.add_argument("--annotations", type=int, help="another number of boxes")
    parser.add_argument("--folder", default="output/big_data", help="for jsons, files and index (default %(default)s)")
    parser.add_argument("--table", metavar="FILE", help="write the result as markdown")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        logging.basicConfig(level=logging.INFO)
        what, json_file, images, need_images, *more = args.measure
        function = {"start": start, "workers": workers}[what]
        print(json.dumps(function(json_file, images, bool(int(need_images)), *map(int, more))))
        return
    folder = Path(args.folder).resolve()
    os.environ["D2X_CACHE"] = str(folder / "cache")
    lines = [f"{machine()}.", "", "| data | | time | memory |", "|---|---|---|---|"]
    for size in args.size or ["coco"]:
        images, annotations, *_ = SIZES[size]
        for row in measure(size, folder, args.images or images, args.annotations or annotations):
            print(row, flush=True)
            lines.append(row)
    if args.table:
        write_text(Path(args.table), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
