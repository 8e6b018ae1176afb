"""Malformed inputs as hypothesis strategies: valid files of five kinds, damaged."""

import copy
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

WIDTH, HEIGHT = 24, 16  # of every image


class Case(NamedTuple):
    """A malformed input: kind of damage, file, and what a refusal must name (a regex)."""

    damage: str
    name: str
    content: bytes
    named: str


ODD = [10**400, "é" * 300, "../../../etc/passwd", "/dev/null", "a\nb\x1b[2J", [1e308] * 4, [-5, 2, 9, "4"], [0.5] * 300]
DEEP = st.integers(1, 60).map(lambda depth: json.loads("[" * depth + "]" * depth))
NAMES = st.text(st.characters()) | st.integers() | st.none()
LEAVES = NAMES | st.booleans() | st.floats() | DEEP | st.sampled_from(ODD)
VALUES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(NAMES, x, max_size=3), max_leaves=5)


@st.composite
def damaged_tree(draw, tree: Any, values: st.SearchStrategy = VALUES) -> Any:
    """A tree of dicts and lists with one to four parts replaced, removed, repeated or renamed."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        holder, key = root, 0
        while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 9)):
            holder = holder[key]
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "repeat")))
        if how == "replace" or holder is root:
            holder[key] = copy.deepcopy(draw(values))  # which later damage may change
        else:
            part = holder.pop(key)
            if how == "repeat":
                holder.update({f"{key} ": part}) if isinstance(holder, dict) else holder.extend([part, part])
    return root[0]


@st.composite
def damaged_bytes(draw, content: str | bytes) -> bytes:
    """One to three stretches replaced: which also cuts off, inserts, removes, repeats and moves."""
    content = _encoded(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        start, other = draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from((0, 1, 1, 1, 4, 64, 300, len(content))))
        fillings = (b"", b"", b"\0" * (end - start), b"\xff" * 4, b"[" * 3000, content[other : other + 300])
        content = content[:start] + draw(st.sampled_from(fillings) | st.binary(max_size=8)) + content[end:]
    return content


def cases(damage: str, name: str, content: st.SearchStrategy[str | bytes], named: str = "") -> st.SearchStrategy[Case]:
    return content.map(lambda content: Case(damage, name, _encoded(content), named or re.escape(name)))


def _written(write: Callable, *content, **options) -> bytes:
    write(*content, file := io.BytesIO(), **options)
    return file.getvalue()


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


BOX = {"bbox": [1, 2.5, 5, 6], "area": 30, "iscrowd": 0}
COCO = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 5)],
    "annotations": [{**BOX, "id": i, "image_id": 1 + i % 4, "category_id": 1 + i % 3} for i in range(1, 8)],
    "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 4)],
}
DAMAGED_COCO = damaged_tree(COCO).map(json.dumps)
JSONS = cases("text", "data.json", damaged_bytes(json.dumps(COCO))) | cases("values", "data.json", DAMAGED_COCO)

CROWD = {"ID": "1", "gtboxes": [{"tag": "person", "vbox": [1, 2, 9, 8], "extra": {"ignore": 0}}] * 2}
WIDER = b"1.jpg\n2\n1 2 9 8 0 0 0 0 0 0\n3 4 5 6 0 0 0 1 0 0\n1.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
FOUND = b"1.jpg;24;16;face;1;2;9;8;person;3;4;20;15\n2.jpg;24;16;face;1;2;9;8\n"
VOC = b"""<annotation><size><width>24</width><height>16</height></size><object><name>face</name>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"""
LISTS = st.one_of(
    cases("crowd human", "list.odgt", damaged_tree(CROWD).map(lambda tree: f"{json.dumps(CROWD)}\n{json.dumps(tree)}")),
    cases("crowd human", "list.odgt", damaged_bytes(json.dumps(CROWD))),
    cases("wider face", "list.txt", damaged_bytes(WIDER)),
    cases("found boxes", "list.txt", damaged_bytes(FOUND)),
    cases("voc list", "list.txt", damaged_bytes(b"1\n2\n"), r"list\.txt|\d\.xml"),
    cases("voc xml", "Annotations/2.xml", damaged_bytes(VOC), r"list\.txt|\d\.xml"),
)


def _with_header(header: bytes) -> bytes:
    """A png of another size, depth or colour type, with a right checksum."""
    png, header = _written(RGB.save, format="png"), b"IHDR" + header[:13].ljust(13, b"\0")
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
GREY = RGB.convert("L").convert("I;16")
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 3, "a description"  # upside down
FILES = {kind: _written(RGB.save, format=kind) for kind in ("png", "jpeg", "bmp", "webp", "ppm")}
FILES |= {"gif": _written(RGB.quantize(64).save, format="gif", save_all=True, append_images=[RGB.rotate(180)])}
FILES |= {"png palette": _written(RGB.quantize(16).save, format="png"), "png 16 bit": _written(GREY.save, format="png")}
FILES |= {"tiff": _written(RGB.save, format="tiff", compression="tiff_lzw")}
FILES |= {"jpeg exif": _written(RGB.save, format="jpeg", exif=EXIF)}
IMAGES = cases("png header", "image.jpg", damaged_bytes(FILES["png"][16:29]).map(_with_header))
IMAGES = st.one_of(IMAGES, *(cases(kind, "image.png", damaged_bytes(content)) for kind, content in FILES.items()))

QUICKSTART = Path(__file__).resolve().parents[2] / "projects/CenterX/configs/quickstart.yaml"
BASE = QUICKSTART.parents[3] / "configs/Base-shapes.yaml"
CONFIG = {**yaml.safe_load(BASE.read_text()), **yaml.safe_load(QUICKSTART.read_text()), "_BASE_": str(QUICKSTART)}
KEYED = r"config\.yaml|[A-Z]{2,}"  # the file or a key
CONFIGS = cases("yaml text", "config.yaml", damaged_bytes(yaml.safe_dump(CONFIG)), KEYED)
CONFIGS |= cases("yaml values", "config.yaml", damaged_tree(CONFIG).map(yaml.safe_dump), KEYED)

SMALL_MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).requires_grad_(False)
for parameter in SMALL_MODEL.parameters():
    parameter.fill_(0.5)
MODEL = dict(SMALL_MODEL.state_dict())
STATES = [MODEL, {"model": MODEL, "iteration": 3, "optimizer": {}, "trainer": {}, "matching_heuristics": False}]
TENSORS = [torch.zeros(0), torch.full((4,), float("nan")), torch.zeros(4).bool(), torch.zeros(4).to_sparse()]
TENSORS += [torch.zeros(4, dtype=torch.complex64), torch.empty(4, 3, 3, 3, device="meta"), torch.zeros(4).expand(9, 4)]
ARRAYS = pickle.dumps({"model": {name: value.numpy() for name, value in MODEL.items()}, "__author__": "x"})
WHOLE = [(".safetensors", save(MODEL)), (".pkl", ARRAYS), *((".pth", _written(torch.save, state)) for state in STATES)]
WHOLE += [(".pth", _written(torch.save, MODEL, _use_new_zipfile_serialization=False))]  # without checksums
ODD_STATES = st.sampled_from(STATES).flatmap(lambda state: damaged_tree(state, VALUES | st.sampled_from(TENSORS)))
CHECKPOINTS = st.one_of(
    cases("values", "model.pth", ODD_STATES.map(lambda state: _written(torch.save, state))),
    *(cases(f"{suffix} bytes", f"model{suffix}", damaged_bytes(content)) for suffix, content in WHOLE),
)
