"""Manifest of an exported model, ``model.json``: what a program must know to run it. No torch here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

FILE_NAME = "model.json"
VERSION = 1

PRECISIONS = ("fp32", "fp16", "int8")

_OF_PEAKS = {
    "reg": "(N, 2, Hf, Wf) float32 (dx, dy) of the centre from the cell's corner, in cells",
    "wh": "(N, 2 or 2 K, Hf, Wf) float32 (width, height) in cells, one pair or one for each class",
}
# What a model gives, by the name of its form; the shapes are those of every format.
OUTPUTS = {
    "detections": {
        "boxes": "(N, D, 4) float32 xyxy, pixels of the input without its padding, clipped to it",
        "scores": "(N, D) float32, descending; the rows at or below min_score are filler",
        "classes": "(N, D) integer index into classes",
    },
    "peaks": {
        "heat": "(N, K, Hf, Wf) float32 score of an object's centre being in the cell, zero everywhere but at peaks",
        **_OF_PEAKS,
    },
    "heads": {
        "heat": "(N, K, Hf, Wf) float32 score of an object's centre being in the cell",
        "pooled": "(N, K, Hf, Wf) float32 largest heat of each cell's 3x3 neighbourhood; a peak equals it",
        **_OF_PEAKS,
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a program that runs a graph must know of it.

    Attributes:
        mean, std: per channel, 0-255. The graph normalises: its input is 0-255. Pixels of padding are the mean.
        divisibility: height and width of the input are multiples of it.
        smallest: least height and width of an input of any size.
        max_detections: D, rows an image.
        stride: input pixels per cell of the maps; 0 for a form without maps.
        min_score: a detection scores more.
        clip: boxes are clipped to the image, those empty then dropped.
        centres_in_padding: keep peaks in cells without image; for forms with maps.
    """

    mean: list[float]
    std: list[float]
    divisibility: int
    max_detections: int
    smallest: int = 1
    stride: int = 0
    min_score: float = 0.0
    clip: bool = True
    centres_in_padding: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(GraphFacts):
    """All that is needed to feed an exported model and to read what it gives.

    Attributes:
        format: name of the runtime's module in ``d2x.deploy.runtimes``.
        file: the model, in the same folder.
        detector: meta-architecture.
        form: which outputs, a key of ``OUTPUTS``.
        precision: "fp32", "fp16" or "int8".
        classes: names; empty when the training knew none.
        channels: "RGB" or "BGR", the order of the input's channels.
        resize: see ``d2x.deploy.resize``.
        size: (height, width) of the input; None when any is accepted, both sides at least ``smallest``.
        batch: number of images of the input; None when any is accepted.
        inputs: name -> dtype, shape and meaning.
        outputs: name -> meaning.
        source: checkpoint's file name and SHA-256.
        versions: of the packages that took part.
        measured: what was measured after the export: differences to PyTorch, AP.
    """

    format: str
    file: str
    detector: str
    form: str
    precision: str
    classes: list[str]
    channels: str
    resize: dict[str, Any]
    size: tuple[int, int] | None
    batch: int | None
    inputs: dict[str, dict[str, str]]
    outputs: dict[str, str]
    source: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Write ``model.json`` into a folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an exported model's folder.

    Raises:
        FileNotFoundError: no ``model.json`` there.
        ValueError: it is not one, or of another version; names the file.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE_NAME} in {folder}: not the folder of an exported model")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("version") != VERSION:
            raise ValueError(f"{path}: version {fields.get('version')} of the format, this program reads {VERSION}")
        manifest = Manifest(**fields)
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not the description of an exported model ({error})") from error
    size = None if manifest.size is None else tuple(manifest.size)
    return dataclasses.replace(manifest, size=size)
