"""Malformed annotation lists of the other formats: CrowdHuman, WIDER FACE, VOC xml, found boxes as text."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.malformed.cases import Broken, Case
from benchmarks.malformed.mutate import damage_bytes, damage_tree
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.pseudo_txt import read_pseudo_txt
from d2x.data.sets.wider_face import read_voc_xml, read_wider_face

PERSON = {"tag": "person", "vbox": [1, 2, 9, 8], "fbox": [1, 2, 9, 9], "extra": {"ignore": 0}}
CROWD = {"ID": "1", "gtboxes": [PERSON, PERSON]}
WIDER = "1.jpg\n2\n1 2 9 8 0 0 0 0 0 0\n3 4 5 6 0 0 0 1 0 0\n1.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
XML = (
    "<annotation><size><width>24</width><height>16</height></size>"
    "<object><name>face</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
    "</annotation>"
)
FOUND = "1.jpg;24;16;face;1;2;9;8;person;3;4;20;15\n2.jpg;24;16;face;1;2;9;8\n"


def make(rng: random.Random, folder: Path) -> Case:
    Image.new("RGB", (24, 16)).save(folder / "1.jpg")
    kind = rng.choice(("crowd human", "wider face", "voc xml", "found boxes"))
    if kind == "crowd human":
        lines = [json.dumps(CROWD), json.dumps(damage_tree(rng, json.loads(json.dumps(CROWD))))]
        text = "\n".join(lines).encode()
        return _case(
            kind, folder / "list.odgt", text if rng.random() < 0.6 else damage_bytes(rng, text), read_crowd_human
        )
    if kind == "wider face":
        return _case(kind, folder / "list.txt", damage_bytes(rng, WIDER.encode()), read_wider_face)
    if kind == "found boxes":
        return _case(
            kind,
            folder / "list.txt",
            damage_bytes(rng, FOUND.encode()),
            lambda path, root: read_pseudo_txt(path, root, ["face", "person"]),
        )
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir()
    (folder / "Annotations" / "1.xml").write_text(XML)
    (folder / "Annotations" / "2.xml").write_bytes(damage_bytes(rng, XML.encode()))
    listed = b"1\n2\n" if rng.random() < 0.8 else damage_bytes(rng, b"1\n2\n")
    # An object of an unknown class is named with its xml file.
    return _case(kind, folder / "list.txt", listed, lambda path, root: read_voc_xml(path, root, ["face"]), named="")


def _case(kind: str, path: Path, content: bytes, read: Callable, named: str | None = None) -> Case:
    path.write_bytes(content)
    return Case(kind, path.name if named is None else named, lambda: _run(read, path))


def _run(read: Callable, path: Path) -> str:
    records = read(path, path.parent)
    boxes = 0
    for record in records:
        if not (isinstance(record["height"], int) and isinstance(record["width"], int)):
            raise Broken(f"a size that is none: {record}")
        for annotation in record["annotations"]:
            boxes += 1
            x0, y0, x1, y1 = annotation["bbox"]
            inside = 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
            if not (all(map(math.isfinite, (x0, y0, x1, y1))) and inside):
                raise Broken(f"a bad box went through: {annotation} of {record['width']} x {record['height']}")
    return "accepted" if boxes else "skipped"
