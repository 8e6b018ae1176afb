"""Malformed image files: mapped for training and for evaluation, and inspected."""

import io
import random
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.malformed.cases import Broken, Case
from benchmarks.malformed.mutate import damage_bytes
from d2x.config.keys import get_base_cfg
from d2x.data.mapper import BadImageError, make_test_mapper, make_train_mapper
from d2x.data.rules.image_files import ImageFiles, inspect_image

SIZE = (40, 28)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 28\n%%EndComments\n{ } loop\n%%EOF\n"  # a program without end


def make(rng: random.Random, folder: Path) -> Case:
    what, content = rng.choice(_whole())
    if what == "png" and rng.random() < 0.2:
        what, content = "png header", _other_header(rng, content)
    elif rng.random() < 0.05:
        what, content = "no image at all", rng.choice((b"", b"\0" * 500, b"<html></html>", EPS, rng.randbytes(300)))
    else:
        content = damage_bytes(rng, content)
    path = folder / f"image.{rng.choice(('png', 'jpg', 'gif', 'bin'))}"
    path.write_bytes(content)
    return Case(what, path.name, lambda: _run(path))


def _run(path: Path) -> str:
    record = {"file_name": str(path), "width": SIZE[0], "height": SIZE[1], "image_id": 1, "annotations": []}
    train, test = _mappers()
    mapped = train(record)
    train._bad_in_a_row = 0
    facts = inspect_image(str(path), *SIZE)
    if bool(facts.fault) != (mapped is None):
        raise Broken(f"training says {'bad' if mapped is None else 'good'}, the check {facts}")
    ImageFiles(1).fault(str(path))
    if mapped is not None:
        if tuple(mapped["image"].shape) != (3, SIZE[1], SIZE[0]):
            raise Broken(f"an image of shape {tuple(mapped['image'].shape)} went through")
        test(record)
        return "accepted"
    try:
        test(record)
    except BadImageError as error:
        if path.name not in str(error) or "\n" in str(error):
            raise Broken(f"not a line that names the file: {error}") from error
        return "skipped"
    raise Broken("training skips what evaluation takes")


def _other_header(rng: random.Random, content: bytes) -> bytes:
    """A PNG that claims another size, depth or colour type, with a right checksum."""
    header = bytearray(content[12:29])  # "IHDR", width, height, depth, colour, compression, filter, interlace
    sizes = (0, 1, 27, 41, 4000, 65535, 2**31 - 1, 2**32 - 1)
    if rng.random() < 0.7:
        header[4:12] = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
    else:
        header[12:17] = rng.randbytes(5)
    return content[:12] + bytes(header) + struct.pack(">I", zlib.crc32(header)) + content[33:]


@lru_cache
def _whole() -> list[tuple[str, bytes]]:
    """(format, whole file) of one picture."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "a description"
    deep = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]))
    kinds = [
        ("png", picture, {}),
        ("png palette", picture.quantize(16), {}),
        ("png 16 bit", deep, {}),
        ("jpeg", picture, {}),
        ("jpeg", picture, {"progressive": True, "quality": 95}),
        ("jpeg exif", picture, {"exif": exif}),
        ("gif", picture.quantize(64), {"save_all": True, "append_images": [picture.rotate(90)]}),
        ("bmp", picture, {}),
        ("tiff", picture, {"compression": "tiff_lzw"}),
        ("tiff", picture, {}),
        ("webp", picture, {}),
        ("ppm", picture, {}),
    ]
    found = []
    for name, image, options in kinds:
        file = io.BytesIO()
        image.save(file, format=name.split()[0], **options)
        found.append((name, file.getvalue()))
    return found


@lru_cache
def _mappers():
    cfg = get_base_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = ()
    return make_train_mapper(cfg, []), make_test_mapper(cfg, [])
