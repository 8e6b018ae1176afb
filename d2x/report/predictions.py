"""Pictures of detections and of ground truth, alone and as a grid."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from d2x.data.images import read_image


def draw_instances(
    image: np.ndarray, instances: Instances, metadata, threshold: float, scale: float = 1.0
) -> np.ndarray:
    """Detections above a score, drawn on an RGB image (H, W, 3) uint8; returns RGB uint8, ``scale`` times as large."""
    shown = instances[instances.scores >= threshold]
    drawer = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE)
    return drawer.draw_instance_predictions(shown).get_image()


def draw_ground_truth(image: np.ndarray, record: dict, metadata, scale: float = 1.0) -> np.ndarray:
    """A dataset record's annotations drawn on its RGB image."""
    return Visualizer(image, metadata, scale=scale).draw_dataset_dict(record).get_image()


def draw_prediction_grid(
    predict: Callable[[np.ndarray], Instances],
    dataset: str,
    output: str | Path,
    *,
    images: int = 12,
    columns: int = 3,
    threshold: float = 0.3,
    cell: int = 320,
) -> None:
    """Write a PNG of ``images`` records of a data set, each as (ground truth | prediction), ``columns`` pairs a row.

    Args:
        predict: RGB uint8 image -> ``Instances`` in pixels of that image.
        cell: width of one picture in pixels.
    """
    metadata = MetadataCatalog.get(dataset)
    records = DatasetCatalog.get(dataset)
    step = max(len(records) // images, 1)
    pairs = []
    for record in records[::step][:images]:
        image = read_image(record["file_name"])
        scale = cell / image.shape[1]
        truth = draw_ground_truth(image, record, metadata, scale)
        predicted = draw_instances(image, predict(image), metadata, threshold, scale)
        pairs.append(np.hstack([titled(truth, "ground truth"), titled(predicted, "prediction")]))
    save_grid(pairs, output, columns)


def save_grid(pictures: Sequence[np.ndarray], output: str | Path, columns: int) -> None:
    """Tile RGB pictures of different sizes on white and write them as one image file."""
    height = max(picture.shape[0] for picture in pictures) + 8
    width = max(picture.shape[1] for picture in pictures) + 8
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height, min(columns, len(pictures)) * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * height + 4, (index % columns) * width + 4
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), canvas[..., ::-1]):
        raise OSError(f"could not write {output}")


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """An RGB picture with a line of text above it."""
    strip = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])
