"""Inference with an exported model of any format: an image in numpy in, detections in numpy out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2x.deploy.manifest import Manifest, read_manifest
from d2x.deploy.peaks import Detections, crop_to_image, keep_pooled_peaks, read_peaks
from d2x.deploy.resize import fitted_size, resize_image, resized_size
from d2x.deploy.runtimes import Runtime, open_runtime


def load(folder: str | Path, *, threads: int | None = None, precision: str | None = None) -> "Detector":
    """Open an exported model.

    Args:
        folder: what ``tools/export_model.py`` wrote.
        threads: CPU threads of the runtime; None for its default.
        precision: arithmetic of runtimes that can choose it when they load (OpenVINO): "fp32" is exact, "fp16" lets it
            take what is fastest, bfloat16 included. None: as the model was exported.

    Raises:
        FileNotFoundError: no model there.
        ValueError: the manifest is damaged, or the runtime is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not (folder / manifest.file).is_file():
        raise FileNotFoundError(f"{folder / manifest.file} is missing")
    runtime = open_runtime(folder, manifest, threads=threads, precision=precision or manifest.precision)
    return Detector(manifest, runtime)


class Detector:
    """An exported model with its own resizing, padding and reading of the outputs.

    Args:
        manifest: of the model.
        runtime: inputs by name to outputs by name, all numpy.
    """

    def __init__(self, manifest: Manifest, runtime: Runtime):
        self.manifest, self.runtime = manifest, runtime

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.manifest.classes

    def __call__(self, image: np.ndarray, threshold: float = 0.0) -> Detections:
        """Detect in one image, (H, W, 3) uint8 in the manifest's ``channels`` order; boxes are in its pixels."""
        return self.batch([image], threshold)[0]

    def batch(self, images: Sequence[np.ndarray], threshold: float = 0.0) -> list[Detections]:
        """Detect in several images, each as if it were alone.

        Images whose padded inputs have one size run together if the model takes any batch.

        Args:
            images: (H, W, 3) uint8 each.
            threshold: least score wanted, on top of the model's own ``min_score``.

        Raises:
            ValueError: not such an array.
        """
        prepared = [self.prepare(image) for image in images]
        groups: dict[tuple, list[int]] = {}
        for i, (canvas, _) in enumerate(prepared):
            groups.setdefault(canvas.shape if self.manifest.batch is None else (i,), []).append(i)
        detections: dict[int, Detections] = {}
        for group in groups.values():
            outputs = self.runtime(self.feeds([prepared[i] for i in group]))
            for row, i in enumerate(group):
                of_image = {name: value[row] for name, value in outputs.items()}
                detections[i] = self._read(of_image, prepared[i][1], images[i].shape, threshold)
        return [detections[i] for i in range(len(images))]

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Resize and pad.

        Returns:
            canvas: (3, H, W) float32, 0-255, the image in its top left corner and the channel means elsewhere.
            size: (height, width) of the resized image in it.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        manifest = self.manifest
        size = resized_size(manifest.resize, image.shape[:2])
        if manifest.size is not None and any(side > most for side, most in zip(size, manifest.size)):
            size = fitted_size(image.shape[:2], manifest.size)
        resized = resize_image(image, size, manifest.resize.get("interpolation", "bilinear"))
        multiple = manifest.divisibility
        height, width = manifest.size or (max(manifest.smallest, -(-side // multiple) * multiple) for side in size)
        canvas = np.empty((3, height, width), dtype=np.float32)
        canvas[:] = np.asarray(manifest.mean, dtype=np.float32)[:, None, None]
        canvas[:, : size[0], : size[1]] = resized.transpose(2, 0, 1)
        return canvas, size

    def feeds(self, prepared: Sequence[tuple[np.ndarray, tuple[int, int]]]) -> dict[str, np.ndarray]:
        """The runtime's inputs from what ``prepare`` gave for images of one padded size."""
        canvases = [canvas for canvas, _ in prepared]
        feeds = {"images": canvases[0][None] if len(canvases) == 1 else np.stack(canvases)}
        if "sizes" in self.manifest.inputs:
            feeds["sizes"] = np.array([size for _, size in prepared], dtype=np.int64)
        return feeds

    def _read(
        self, outputs: dict[str, np.ndarray], size: tuple[int, int], original: tuple[int, ...], threshold: float
    ) -> Detections:
        boxes, scores, classes = self._decode(outputs, size, max(self.manifest.min_score, threshold))
        height, width = original[:2]
        boxes = boxes * np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
        if self.manifest.clip:
            boxes = np.clip(boxes, 0, np.array([width, height] * 2, dtype=np.float32))
            kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        return Detections(boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int64))

    def _decode(self, outputs: dict[str, np.ndarray], size: tuple[int, int], min_score: float) -> Detections:
        """Detections of one image in pixels of the input."""
        manifest = self.manifest
        if manifest.form == "detections":
            kept = outputs["scores"] > min_score
            return Detections(*(outputs[name][kept] for name in ("boxes", "scores", "classes")))
        heat, offset, wh = outputs["heat"], outputs.get("reg"), outputs["wh"]
        if not manifest.centres_in_padding:
            heat = crop_to_image(heat, size, manifest.stride)
        if manifest.form == "heads":
            heat = keep_pooled_peaks(heat, outputs["pooled"])
        limit = manifest.max_detections
        return read_peaks(heat, offset, wh, stride=manifest.stride, min_score=min_score, limit=limit)
