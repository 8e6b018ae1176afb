"""WIDER FACE (arXiv:1511.06523) in its public text format, and as VOC xml, in which MAFA is often added to it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from d2x.data.rules.problems import Problems
from d2x.data.sets.records import add_box, finish, image_size, make_record, read_lines, reading, require_folder


class Face(NamedTuple):
    """One line of the text format: ``bbox`` is (x, y, w, h) px, as written; the rest are its grades."""

    bbox: tuple[float, float, float, float]
    blur: int = 0
    expression: int = 0
    illumination: int = 0
    invalid: int = 0
    occlusion: int = 0
    pose: int = 0


def parse_wider_face(annotation_file: str | os.PathLike) -> list[tuple[str, list[Face]]]:
    """(``event/file.jpg``, faces) of ``wider_face_*_bbx_gt.txt``, nothing left out but the line that says "no face".

    Per image: its name, the number of faces, then that many lines ``x y w h blur expression illumination invalid
    occlusion pose``. With 0 faces one line of zeros follows, in some releases none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not follow the format (truncated?); names the line.
    """
    lines = read_lines(annotation_file)
    images, at = [], 0
    while at < len(lines):
        name = lines[at].strip()
        try:
            count = int(lines[at + 1])
            if count < 0:
                raise ValueError(f"{count} faces")
            faces = [_face(line) for line in lines[at + 2 : at + 2 + count]]
        except (IndexError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{annotation_file}: bad entry of '{name}' at line {at + 1} ({error})") from error
        if len(faces) < count:
            raise ValueError(
                f"{annotation_file}: '{name}' at line {at + 1} lists {len(faces)} of {count} faces; truncated?"
            )
        images.append((name, faces))
        at += 2 + count
        if not count and at < len(lines) and not any(word.strip("0") for word in lines[at].split()):
            at += 1
    return images


def read_wider_face(
    annotation_file: str | os.PathLike, image_root: str | os.PathLike, *, category_id: int = 0, least_side: float = 0.0
) -> list[dict]:
    """Records of the text format; boxes clipped to the image, without those of no area.

    Faces graded "invalid" are marked ``iscrowd``: evaluation ignores them. ``image_id`` is ``event/file`` without the
    suffix.

    Args:
        image_root: folder that the names are relative to, ``WIDER_train/images``; files are opened for their sizes.
        category_id: of a face.
        least_side: boxes must be wider and higher than this; px.

    Raises:
        FileNotFoundError, ValueError: see ``parse_wider_face``; or nothing usable in it.
    """
    annotation_file, image_root = os.fspath(annotation_file), os.fspath(image_root)
    images = parse_wider_face(annotation_file)
    require_folder(image_root, annotation_file)
    problems, records = Problems(annotation_file), []
    for name, faces in reading(images, annotation_file):
        path = os.path.join(image_root, name)
        try:
            record = make_record(path, os.path.splitext(name)[0], image_size(path))
        except ValueError as error:
            problems.add(str(error), path)
            continue
        for face in faces:
            x, y, w, h = face.bbox
            box = (x, y, x + w, y + h)
            fault = add_box(record, category_id, box, least_side=least_side, crowd=bool(face.invalid))
            if fault:
                problems.add(fault, f"{name}, bbox {face.bbox}")
        records.append(record)
    return finish(records, problems)


def read_voc_xml(
    image_list: str | os.PathLike, root: str | os.PathLike, classes: Sequence[str], *, clip: bool = True
) -> list[dict]:
    """Records of a folder in VOC layout: ``Annotations/<id>.xml`` and ``JPEGImages/<id>.jpg``.

    Boxes are (xmin - 1, ymin - 1, xmax, ymax): VOC counts pixels from 1 and includes the last. Sizes are the xml's;
    images are not opened. Images without an object stay.

    Args:
        image_list: text file with one image id per line.
        classes: names, in the order of their contiguous ids.
        clip: to the image, leaving out boxes without area. False, as in the released reader: boxes as they are written.

    Raises:
        FileNotFoundError: list, or a folder, missing.
        ValueError: an object's class is not among ``classes``, or nothing usable in it. Missing or broken xml files are
            reported and left out.
    """
    root = Path(root)
    lines = read_lines(image_list)
    for folder in ("Annotations", "JPEGImages"):
        require_folder(os.path.join(root, folder), image_list)
    ids = {name: index for index, name in enumerate(classes)}
    problems, records = Problems(os.fspath(image_list)), []
    for image_id in filter(None, (line.strip() for line in reading(lines, image_list))):
        path = root / "Annotations" / f"{image_id}.xml"
        try:
            tree = ElementTree.parse(path).getroot()
            size = int(tree.findtext("size/height", "")), int(tree.findtext("size/width", ""))
            if min(size) < 1:
                raise ValueError
            objects = [(element.findtext("name"), _voc_box(element)) for element in tree.iter("object")]
        except OSError:
            problems.add("xml files missing", str(path))
            continue
        except (ElementTree.ParseError, TypeError, ValueError, LookupError):
            problems.add("xml files without size, name or box, or not xml", str(path))
            continue
        record = make_record(root / "JPEGImages" / f"{image_id}.jpg", image_id, size)
        for kind, box in objects:
            if kind not in ids:
                raise ValueError(f"{path}: object of class '{kind}', which is not among {', '.join(classes)}")
            fault = add_box(record, ids[kind], box, clip=clip, least_side=0.0)
            if fault:
                problems.add(fault, f"{path}, bbox {box}")
        records.append(record)
    return finish(records, problems)


def _face(line: str) -> Face:
    x, y, w, h, *grades = map(float, line.split())
    return Face((x, y, w, h), *(int(grade) for grade in grades[:6]))


def _voc_box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    return x0 - 1, y0 - 1, x1, y1
