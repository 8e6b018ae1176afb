"""Pseudo-label text files, as CPFLAME released them: one image a line, semicolons between the fields."""

import copy
import os
from collections.abc import Sequence

from d2x.data.rules.problems import Problems
from d2x.data.sets.records import add_box, finish, make_record, read_lines, require_folder


def read_pseudo_txt(
    text_file: str | os.PathLike,
    image_root: str | os.PathLike,
    classes: Sequence[str],
    *,
    keep_empty: bool = False,
    released_ids: bool = False,
) -> list[dict]:
    """Records of lines ``name.jpg;W;H;class;x1;y1;x2;y2;class;...``, boxes xyxy px.

    Boxes are clipped to the image; those not wider and higher than 1 px are left out. Images are not opened.

    Args:
        classes: names, in the order of their contiguous ids; boxes of others are an error.
        keep_empty: keep images without a box.
        released_ids: ``image_id`` as the released reader makes it: the name without any of the characters ". j p g" at
            its ends ("img_g.jpg" -> "img_"). Else without its suffix.

    Raises:
        FileNotFoundError: file or folder missing.
        ValueError: an unknown class, or nothing usable in it. Malformed lines are reported and left out.
    """
    text_file, image_root = os.fspath(text_file), os.fspath(image_root)
    lines = read_lines(text_file)
    require_folder(image_root, text_file)
    ids = {name: index for index, name in enumerate(classes)}
    problems, records = Problems(text_file), []
    for number, line in enumerate(lines, start=1):
        name, *fields = line.strip().split(";")
        try:
            width, height = int(fields[0]), int(fields[1])
            groups = [fields[i : i + 5] for i in range(2, len(fields), 5)]
            boxes = [(kind, [float(value) for value in box]) for kind, *box in groups]
            if min(width, height) < 1 or any(len(box) != 4 for _, box in boxes):
                raise ValueError
        except (IndexError, ValueError):
            problems.add("lines that are not 'name;W;H' and groups of 'class;x1;y1;x2;y2'", f"line {number}")
            continue
        image_id = name.strip(".jpg") if released_ids else os.path.splitext(name)[0]  # noqa: B005
        record = make_record(os.path.join(image_root, name), image_id, (height, width))
        for kind, box in boxes:
            if kind not in ids:
                raise ValueError(f"{text_file}: line {number}: class '{kind}', which is not among {', '.join(classes)}")
            fault = add_box(record, ids[kind], box)
            if fault:
                problems.add(fault, f"line {number}")
        if record["annotations"] or keep_empty:
            records.append(record)
    return finish(records, problems)


def join_records(first: Sequence[dict], second: Sequence[dict]) -> list[dict]:
    """Records of ``second`` in their order, with the boxes of ``first``'s record of the same file appended; then the
    records that only ``first`` has. Neither is changed."""
    joined = {record["file_name"]: copy.deepcopy(record) for record in second}
    for record in first:
        if record["file_name"] in joined:
            joined[record["file_name"]]["annotations"] += copy.deepcopy(record["annotations"])
        else:
            joined[record["file_name"]] = copy.deepcopy(record)
    return list(joined.values())
