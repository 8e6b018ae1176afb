"""Report of a data-set check, for people and for programs."""

from typing import Any

import numpy as np
from tabulate import tabulate

from d2x.data.check.dataset_check import CheckedSet
from d2x.data.rules.problems import examples, severity

_ORDER = ("error", "warning", "note")
_VERSION = 1


def as_text(checked: CheckedSet) -> str:
    """A table of the kinds of problems, the gravest first, with examples; and one line on the size of the set."""
    scan, lines = checked.scan, []
    for fault in scan.faults:
        lines.append(f"cannot be used: {fault}")
    found = checked.problems.found.items()
    rows = [(severity(kind), entry.count, kind, examples(entry, 2)) for kind, entry in found]
    rows.sort(key=lambda row: (_ORDER.index(row[0]), -row[1]))
    if rows:
        lines.append(tabulate(rows, headers=("", "count", "what", "first"), maxcolwidths=(None, None, None, 60)))
    usable = _sizes(checked)
    lines.append(
        f"{scan.json_file}: usable are {usable['images']} of {len(scan.keep_images)} images, {usable['annotations']} of"
        f" {len(scan.annotations.keep)} annotations, {len(scan.categories)} categories"
    )
    return "\n".join(lines)


def as_json(checked: CheckedSet) -> dict[str, Any]:
    """The same as json values, with every remembered record of each kind."""
    scan = checked.scan
    return {
        "version": _VERSION,
        "json": scan.json_file,
        "images": scan.image_root,
        "usable": checked.usable,
        "clean": checked.clean,
        "faults": scan.faults,
        "records": {"images": len(scan.keep_images), "annotations": len(scan.annotations.keep)},
        "usable_records": _sizes(checked),
        "categories": _categories(checked),
        "problems": [
            {"kind": kind, "severity": severity(kind), "count": entry.count, "records": entry.records}
            for kind, entry in sorted(checked.problems.found.items(), key=lambda item: _ORDER.index(severity(item[0])))
        ],
    }


def _sizes(checked: CheckedSet) -> dict[str, int]:
    scan = checked.scan
    return {"images": len(scan.images), "annotations": int(np.count_nonzero(scan.annotations.keep))}


def _categories(checked: CheckedSet) -> list[dict]:
    scan, found = checked.scan, checked.scan.annotations
    counts = np.bincount(found.category[found.keep], minlength=len(scan.categories))
    return [
        {"id": category["id"], "name": category["name"], "annotations": int(count)}
        for category, count in zip(scan.categories, counts)
    ]
