"""The embedded data set: a deterministic generator of a small but not trivial COCO-format detection set.

Simple shapes in random colours on textured, noisy backgrounds, of many sizes, overlapping and cut off by the border.
Boxes are tight around the *visible* part, as in COCO. ``register_shapes()`` gives detectron2 the names in ``DATASETS``;
a set is generated on first use into the cache folder (``$D2X_CACHE``, default ``~/.cache/d2x``).
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image, ImageDraw
from tqdm import tqdm

from d2x.atomic_files import atomic_folder, cache_dir

GENERATOR_VERSION = 2  # part of the cache folder's name: raise it when the same spec gives other pixels
SUPERSAMPLING = 4
# An object that shows less, behind others or beyond the border, is not drawn: a corner of it could be of any class.
MIN_VISIBLE_SIDE = 8  # pixels
MIN_VISIBLE_FRACTION = 0.5


def _regular(corners: int, first: float = -np.pi / 2) -> np.ndarray:
    """Corners on the unit circle, clockwise as seen in the image; the first at the angle ``first``, default: on top."""
    angles = first + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)
    return _regular(10) * radii[:, None]


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.3
    quarter = np.array([[arm, -half], [arm, half], [half, half]])
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return np.concatenate([quarter @ turn.T for turn in turns])


OUTLINES = {
    "ellipse": _regular(40),
    "rectangle": _regular(4, first=np.pi / 4),
    "triangle": _regular(3),
    "star": _star(),
    "cross": _cross(),
}
CLASSES = ("ellipse", "rectangle", "triangle", "star")


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """Everything a generated set depends on.

    Args:
        images: how many.
        seed: two specs that differ only in ``images`` share their first images.
        classes: names out of ``OUTLINES`` that are drawn.
        annotated: the classes that get boxes, and the categories of the json; None for all, () for no annotations.
        sides: smallest and largest height and width of an image, pixels.
        max_objects: an image has 0 to this many objects.
        object_sides: smallest object side in pixels, largest as a fraction of the shorter image side; log-uniform.
        max_angle: shapes are turned by up to this many degrees either way; 180 is any direction.
        difficulty: 0 is flat backgrounds and full contrast; 1 the registered sets; more is noisier.
    """

    images: int
    seed: int
    classes: tuple[str, ...] = CLASSES
    annotated: tuple[str, ...] | None = None
    sides: tuple[int, int] = (96, 128)
    max_objects: int = 6
    object_sides: tuple[float, float] = (10, 0.7)
    max_angle: float = 20.0
    difficulty: float = 1.0

    def __post_init__(self):
        unknown = set(self.classes) - set(OUTLINES) | set(self.annotated or ()) - set(self.classes)
        if unknown:
            raise ValueError(f"unknown shape classes {sorted(unknown)}; drawn are {self.classes} of {sorted(OUTLINES)}")
        if self.object_sides[0] > self.object_sides[1] * self.sides[0]:
            raise ValueError(f"object_sides {self.object_sides}: the smallest is larger than the largest")

    @property
    def labelled(self) -> tuple[str, ...]:
        return self.classes if self.annotated is None else self.annotated

    @property
    def categories(self) -> tuple[str, ...]:
        """Classes listed in the json; an unlabelled set still lists what is in its images."""
        return self.labelled or self.classes


class Shape(NamedTuple):
    """One visible object: class name, (4,) xyxy box in pixels of the image, number of visible pixels."""

    name: str
    box: tuple[int, int, int, int]
    area: int


# Each split has images of its own. The partial sets show all classes and annotate two of them.
_A, _B = CLASSES[:2], CLASSES[2:]
DATASETS = {
    "shapes_train": ShapesSpec(4000, seed=1),
    "shapes_val": ShapesSpec(400, seed=2),
    "shapes_tiny_train": ShapesSpec(64, seed=1),
    "shapes_tiny_val": ShapesSpec(32, seed=2),
    "shapes_partial_a_train": ShapesSpec(1000, seed=3, annotated=_A),
    "shapes_partial_b_train": ShapesSpec(1000, seed=4, annotated=_B),
    "shapes_partial_a_val": ShapesSpec(400, seed=2, annotated=_A),
    "shapes_partial_b_val": ShapesSpec(400, seed=2, annotated=_B),
    "shapes_partial_a_tiny": ShapesSpec(48, seed=3, annotated=_A),
    "shapes_partial_b_tiny": ShapesSpec(48, seed=4, annotated=_B),
    "shapes_unlabelled": ShapesSpec(2000, seed=5, annotated=()),
    "shapes_unlabelled_tiny": ShapesSpec(48, seed=5, annotated=()),
}


def render(spec: ShapesSpec, index: int) -> tuple[np.ndarray, list[Shape]]:
    """Draw image number ``index``.

    Returns:
        image: (h, w, 3) uint8 RGB.
        shapes: the visible objects, back to front, of all classes of the spec.
    """
    rng = np.random.default_rng([spec.seed, index])
    height, width = rng.integers(spec.sides[0], spec.sides[1] + 1, size=2)
    image = _background(rng, height, width, spec.difficulty)
    owner = np.full((height, width), -1)
    names, sizes = [], []
    for _ in range(rng.integers(0, spec.max_objects + 1)):
        name = spec.classes[rng.integers(len(spec.classes))]
        coverage, size = _coverage(rng, OUTLINES[name], height, width, spec)
        solid = coverage > 0.5
        if not _all_visible(np.where(solid, len(names), owner), [*sizes, size]):
            continue
        colour = _colour(rng, image[solid].mean(axis=0), spec.difficulty)
        shade = 1 + 0.15 * spec.difficulty * _noise(rng, height, width, cells=3)[..., None]
        image += coverage[..., None] * (colour * shade - image)
        owner[solid] = len(names)
        names.append(name)
        sizes.append(size)
    image += rng.normal(0, 12 * spec.difficulty, image.shape)
    boxes = [_extent(owner == i) for i in range(len(names))]
    areas = [int((owner == i).sum()) for i in range(len(names))]
    return image.clip(0, 255).astype(np.uint8), [Shape(*found) for found in zip(names, boxes, areas, strict=True)]


def _background(rng: np.random.Generator, height: int, width: int, difficulty: float) -> np.ndarray:
    """A colour, and on it coloured noise of four wave lengths: patches, blotches, grain."""
    image = np.broadcast_to(rng.uniform(40, 215, size=3), (height, width, 3)).copy()
    for cells in (2, 5, 12, 30):
        strength = difficulty * rng.uniform(5, 30)
        image += strength * _noise(rng, height, width, cells)[..., None] * rng.uniform(-1, 1, size=3)
    return image


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise with about ``cells`` waves along each side; (h, w), unit variance before smoothing."""
    grid = Image.fromarray(rng.normal(size=(cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _coverage(
    rng: np.random.Generator, outline: np.ndarray, height: int, width: int, spec: ShapesSpec
) -> tuple[np.ndarray, float]:
    """Place one shape at random; (h, w) float, the part of each pixel that it covers, and its whole area in pixels.

    The turned outline is stretched to a box whose sides are log-uniform, so the box is tight whatever the angle. The
    box centre lies in the image: up to half of each side may be cut off.
    """
    smallest, largest = spec.object_sides[0], spec.object_sides[1] * min(height, width)
    side = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    box_wh = np.array([side, max(smallest, side * rng.uniform(0.5, 1))])[:: rng.choice([-1, 1])]
    angle = np.deg2rad(rng.uniform(-spec.max_angle, spec.max_angle))
    turned = outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    unit = (turned - low) / (high - low) - 0.5
    corners = (unit * box_wh + rng.uniform(0, [width, height])) * SUPERSAMPLING
    x, y = (unit * box_wh).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # shoelace formula
    mask = Image.new("L", (int(width) * SUPERSAMPLING, int(height) * SUPERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=255)
    return np.asarray(mask.reduce(SUPERSAMPLING)) / 255.0, area


def _all_visible(owner: np.ndarray, sizes: list[float]) -> bool:
    """Would every object still show enough of itself? ``sizes``: whole areas, by object number."""
    for i, size in enumerate(sizes):
        visible = owner == i
        x0, y0, x1, y1 = _extent(visible)
        if visible.sum() < MIN_VISIBLE_FRACTION * size or min(x1 - x0, y1 - y0) < MIN_VISIBLE_SIDE:
            return False
    return True


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight xyxy box of a mask, in pixels; all zero if the mask is empty."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(xs):
        return 0, 0, 0, 0
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _colour(rng: np.random.Generator, behind: np.ndarray, difficulty: float) -> np.ndarray:
    """A random colour that can be told from what it covers."""
    least = 70 / max(difficulty, 0.5)
    while True:
        colour = rng.uniform(0, 255, size=3)
        if np.linalg.norm(colour - behind) >= least:
            return colour


def shapes_folder(spec: ShapesSpec) -> Path:
    """Where the cached set of a spec is, or will be: ``annotations.json`` and ``images/``."""
    text = json.dumps([GENERATOR_VERSION, dataclasses.asdict(spec)], sort_keys=True)
    return cache_dir() / "shapes" / hashlib.sha256(text.encode()).hexdigest()[:16]


def generate_shapes(spec: ShapesSpec, folder: Path) -> Path:
    """Write a set unless it is there; a killed or concurrent run never leaves half a set under ``folder``.

    Returns:
        Path of the COCO json; the images are in ``images/`` beside it.
    """
    done = folder / "annotations.json"
    if done.exists():
        return done
    with atomic_folder(folder) as draft:
        _write(spec, draft)
    return done


def _write(spec: ShapesSpec, folder: Path) -> None:
    (folder / "images").mkdir()
    category = {name: i + 1 for i, name in enumerate(spec.categories)}
    images, annotations = [], []
    for index in tqdm(
        range(spec.images), desc="drawing the shapes data set", disable=spec.images < 200, leave=False, mininterval=1
    ):
        image, shapes = render(spec, index)
        name = f"{index:06d}.jpg"
        Image.fromarray(image).save(folder / "images" / name, quality=95)
        images.append({"id": index + 1, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for shape in shapes:
            if shape.name in spec.labelled:
                x0, y0, x1, y1 = shape.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": category[shape.name],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": shape.area,
                        "iscrowd": 0,
                    }
                )
    content = {
        "info": {"description": "shapes", "version": GENERATOR_VERSION, "spec": dataclasses.asdict(spec)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in category.items()],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def register_shapes_dataset(name: str, spec: ShapesSpec) -> str:
    """Register one generated set with detectron2 (again: nothing happens); it is drawn when first asked for."""
    if name in DatasetCatalog.list():
        return name
    folder = shapes_folder(spec)
    classes = list(spec.categories)

    def load() -> list[dict]:
        json_file = generate_shapes(spec, folder)
        records = load_coco_json(str(json_file), str(folder / "images"), name)
        return [{**record, "dataset_name": name} for record in records]

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        labelled_classes=[classes.index(labelled) for labelled in spec.labelled],
        json_file=str(folder / "annotations.json"),
        image_root=str(folder / "images"),
        evaluator_type="coco",
    )
    return name


def register_shapes() -> None:
    """Register every set of ``DATASETS`` under its name."""
    for name, spec in DATASETS.items():
        register_shapes_dataset(name, spec)
