"""COCO's box metrics through detectron2's evaluator; the statistics by hotcoco where it is installed.

hotcoco (MIT, compiled) gives the same numbers as pycocotools to the last bit, about a hundred times faster. They differ
where pycocotools goes by annotation ids: one with id 0 it never counts as found, and of those that share an id it takes
the last one for all. "auto" leaves such data sets to pycocotools, so that numbers stay comparable.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, Instances
from pycocotools.coco import COCO
from torch import Tensor

from d2x.errors import require_choice

try:
    import orjson
except ImportError:  # the same file, some ten times slower
    orjson = None

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "hotcoco", "pycocotools")
ImageRows = tuple[int | str, np.ndarray]


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> COCOEvaluator:
    """The evaluator that ``TEST.COCO_EVAL`` asks for; "auto" gives pycocotools' results on every data set.

    Raises:
        ValueError: the key has another value, or asks for hotcoco where that is not installed.
    """
    backend = cfg.TEST.COCO_EVAL
    require_choice("TEST.COCO_EVAL", backend, BACKENDS)
    installed = importlib.util.find_spec("hotcoco") is not None
    if backend == "hotcoco" and not installed:
        raise ValueError("TEST.COCO_EVAL is 'hotcoco', which is not installed: pip install hotcoco, or use 'auto'")
    if backend == "auto" and not installed:
        logger.info("hotcoco is not installed: COCO statistics by pycocotools, which takes longer")
    if backend != "pycocotools" and installed:
        evaluator = HotCocoEvaluator(dataset_name, output_dir=output_dir)
        if backend == "hotcoco" or not evaluator.has_odd_ids:
            return evaluator
        logger.info(
            "%s: an annotation has id 0, or the id of another: COCO statistics by pycocotools, which goes by ids and"
            " takes longer; number them from 1, or set TEST.COCO_EVAL hotcoco to count each once",
            dataset_name,
        )
    return COCOEvaluator(dataset_name, tasks=("bbox",), output_dir=output_dir)


class HotCocoEvaluator(COCOEvaluator):
    """detectron2's ``COCOEvaluator`` for boxes, with detections kept as tensors and hotcoco's statistics.

    Results, tables and ``coco_instances_results.json`` are those of ``COCOEvaluator(tasks=("bbox",))``.
    ``instances_predictions.pth`` has the same entries, their "instances" as tensors, see ``box_rows``. Masks, keypoints
    and proposals among the outputs are not looked at. ``evaluate`` raises ``ValueError`` for a detection in an image,
    or of a class, that the data set does not have.
    """

    @property
    def has_odd_ids(self) -> bool:
        """Whether pycocotools would give other numbers for the data set, see the head of this module."""
        annotations = self._coco_api.dataset.get("annotations", ())
        return 0 in self._coco_api.anns or len(self._coco_api.anns) < len(annotations)

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the detections of some images.

        Args:
            inputs: each with an ``image_id``.
            outputs: each with ``instances`` (else it does not count as evaluated).
        """
        for record, output in zip(inputs, outputs):
            if "instances" in output:
                self._predictions.append({"image_id": record["image_id"], "instances": box_rows(output["instances"])})

    def _eval_predictions(self, predictions: Sequence[dict], img_ids: Iterable[int | str] | None = None) -> None:
        """What ``evaluate`` calls in the main process, with the predictions of all."""
        rows = torch.cat([prediction["instances"] for prediction in predictions]).double().numpy()
        rows[:, 5] = self._category_ids(rows[:, 5].astype(np.int64))
        ends = np.cumsum([len(prediction["instances"]) for prediction in predictions])
        parts = np.split(rows, ends[:-1])
        image_rows = [(prediction["image_id"], part) for prediction, part in zip(predictions, parts)]
        if self._output_dir:
            write_results(image_rows, os.path.join(self._output_dir, "coco_instances_results.json"))
        if not self._do_evaluation:
            logger.info("the data set has no annotations: nothing to evaluate with")
            return
        # None is how detectron2 says that there are no detections at all
        statistics = box_statistics(self._coco_api, image_rows, img_ids) if len(rows) else None
        class_names = self._metadata.get("thing_classes")
        self._results["bbox"] = self._derive_coco_results(statistics, "bbox", class_names=class_names)

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        """(N,) contiguous ids to the data set's own."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return classes
        own = np.array(sorted(mapping, key=mapping.get))
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(own):
            raise ValueError(f"{self._metadata.name} has {len(own)} classes, but class {classes.max()} was predicted")
        return own[classes]


def box_rows(instances: Instances) -> Tensor:
    """(n, 6) on the CPU, a detection a row: x, y, w, h in px, score, contiguous class id."""
    # in the precision of the boxes, as detectron2 does it, or the last bit of a width would differ
    boxes = BoxMode.convert(instances.pred_boxes.tensor.detach(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return torch.column_stack([torch.as_tensor(boxes), instances.scores.detach(), instances.pred_classes.float()]).cpu()


def write_results(image_rows: Sequence[ImageRows], path: str) -> None:
    """Write a json in COCO's result format, an entry a detection, image by image.

    Args:
        image_rows: (image id, (n, 6) as in ``box_rows`` but with the data set's category ids).
    """
    dumps = orjson.dumps if orjson else lambda entries: json.dumps(entries).encode()
    with open(path, "wb") as file:
        separator = b"["
        for image_id, rows in image_rows:
            if len(rows):
                entries = [
                    {"image_id": image_id, "category_id": int(category), "bbox": box, "score": score}
                    for *box, score, category in rows.tolist()
                ]
                file.write(separator + dumps(entries)[1:-1])
                separator = b","
        file.write(b"[]" if separator == b"[" else b"]")


def box_statistics(ground_truth: COCO, image_rows: Sequence[ImageRows], img_ids: Iterable[int | str] | None = None):
    """COCO's evaluation of boxes, with its default thresholds, areas and limits, summarised on standard output.

    Args:
        ground_truth: pycocotools' form of the data set. Image ids may be texts.
        image_rows: as for ``write_results``; at least one detection in all.
        img_ids: images to evaluate on; None for all.

    Returns:
        An ``hotcoco.COCOeval`` with ``stats`` (12,) and ``eval["precision"]``
        (thresholds, recalls, categories, areas, limits), as pycocotools' ``COCOeval`` has them.

    Raises:
        ValueError: a detection in an image that the data set does not have.
    """
    import hotcoco

    numbers: dict[int | str, int] = {
        image_id: number for number, image_id in enumerate(sorted(ground_truth.imgs), start=1)
    }
    try:
        images = np.repeat([numbers[image_id] for image_id, _ in image_rows], [len(rows) for _, rows in image_rows])
    except KeyError as error:
        raise ValueError(f"there are predictions for image {error}, which the data set does not have") from None
    truth = _with_numbers(ground_truth, numbers)
    detections = truth.load_res(np.column_stack([images, np.concatenate([rows for _, rows in image_rows])]))
    statistics = hotcoco.COCOeval(truth, detections, "bbox")
    if img_ids is not None:
        statistics.params.img_ids = [numbers[image_id] for image_id in img_ids if image_id in numbers]
    statistics.evaluate()
    statistics.accumulate()
    statistics.summarize()
    return statistics


def _with_numbers(ground_truth: COCO, numbers: dict[int | str, int]):
    """hotcoco's form of a data set, its images by number. What belongs to no image or category is left out."""
    import hotcoco

    known = [
        annotation
        for annotation in ground_truth.dataset["annotations"]
        if annotation["image_id"] in numbers and annotation["category_id"] in ground_truth.cats
    ]
    return hotcoco.COCO.from_arrays(
        [{"id": number} for number in numbers.values()],
        [{"id": category["id"], "name": category["name"]} for category in ground_truth.cats.values()],
        np.array([numbers[annotation["image_id"]] for annotation in known], dtype=np.int64),
        np.array([annotation["category_id"] for annotation in known], dtype=np.int64),
        np.array([annotation["bbox"] for annotation in known], dtype=np.float64).reshape(-1, 4),
        area=np.array([annotation["area"] for annotation in known], dtype=np.float64),
        iscrowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in known], dtype=bool),
    )
