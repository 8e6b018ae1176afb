"""COCO's box metrics through detectron2's evaluator; the statistics by hotcoco where it is installed.

hotcoco (MIT, compiled) gives the same numbers as pycocotools to the last bit, about a hundred times faster. They differ
where pycocotools goes by annotation ids: one with id 0 it never counts as found, and of those that share an id it takes
the last one for all. "auto" leaves such data sets to pycocotools, so that numbers stay comparable.
"""

import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO

from d2x.evaluation.box_columns import BoxColumns, ImageBoxes

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "hotcoco", "pycocotools")


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> COCOEvaluator:
    """The evaluator that ``TEST.COCO_EVAL`` asks for; "auto" gives pycocotools' results on every data set.

    Raises:
        ValueError: the key has another value, or asks for hotcoco where that is not installed.
    """
    backend = cfg.TEST.COCO_EVAL
    if backend not in BACKENDS:
        raise ValueError(f"TEST.COCO_EVAL '{backend}' is not one of {', '.join(BACKENDS)}")
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
    """detectron2's ``COCOEvaluator`` for boxes, with detections kept in arrays and hotcoco's statistics.

    Results, tables and ``coco_instances_results.json`` are those of ``COCOEvaluator(tasks=("bbox",))``.
    ``instances_predictions.pth`` holds the arrays of ``BoxColumns`` as tensors. Masks, keypoints and proposals among
    the outputs are not looked at.

    Args:
        dataset_name: registered, in COCO format or to be converted to it in ``output_dir``.
        output_dir: for the files named above; None for none.
        distributed: gather the detections of all processes; only the main one returns results.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None, distributed: bool = True):
        super().__init__(
            dataset_name, tasks=("bbox",), distributed=distributed, output_dir=output_dir, use_fast_impl=False
        )
        self.reset()

    @property
    def has_odd_ids(self) -> bool:
        """Whether pycocotools would give other numbers for the data set, see the head of this module."""
        annotations = self._coco_api.dataset.get("annotations", ())
        return 0 in self._coco_api.anns or len(self._coco_api.anns) < len(annotations)

    def reset(self) -> None:
        self._images: list[ImageBoxes] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the detections of some images.

        Args:
            inputs: each with an ``image_id``.
            outputs: each with ``instances`` (else it does not count as evaluated).
        """
        for record, output in zip(inputs, outputs):
            if "instances" in output:
                self._images.append(ImageBoxes.from_instances(record["image_id"], output["instances"]))

    def evaluate(self, img_ids: Iterable[int | str] | None = None) -> dict:
        """
        Args:
            img_ids: images to evaluate on; None for all of the data set.

        Returns:
            {"bbox": {"AP": per cent, ...}}; empty in other processes than the main one, without any evaluated image,
            and for a data set without annotations.

        Raises:
            ValueError: a detection in an image, or of a class, that the data set does not have.
        """
        found = BoxColumns.from_images(self._images)
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(found, dst=0)
            if not comm.is_main_process():
                return {}
            found = BoxColumns.join(parts)
        if not found.image_ids:
            logger.warning("no predictions to evaluate")
            return {}
        categories = self._category_ids(found.classes)
        if self._output_dir:
            self._write(found, categories)
        if not self._do_evaluation:
            logger.info("the data set has no annotations: nothing to evaluate with")
            return {}
        # None is how detectron2 says that there are no detections at all
        statistics = box_statistics(self._coco_api, found, categories, img_ids) if len(found.scores) else None
        class_names = self._metadata.get("thing_classes")
        return {"bbox": self._derive_coco_results(statistics, "bbox", class_names=class_names)}

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        """(N,) contiguous ids to the data set's own."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return classes
        own = np.array(sorted(mapping, key=mapping.get))
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(own):
            raise ValueError(f"{self._metadata.name} has {len(own)} classes, but class {classes.max()} was predicted")
        return own[classes]

    def _write(self, found: BoxColumns, categories: np.ndarray) -> None:
        os.makedirs(self._output_dir, exist_ok=True)
        torch.save(found.tensors(), os.path.join(self._output_dir, "instances_predictions.pth"))
        with open(os.path.join(self._output_dir, "coco_instances_results.json"), "wb") as file:
            file.writelines(found.coco_json(categories))


def box_statistics(
    ground_truth: COCO, found: BoxColumns, categories: np.ndarray, img_ids: Iterable[int | str] | None = None
):
    """COCO's evaluation of boxes, with its default thresholds, areas and limits, summarised on standard output.

    Args:
        ground_truth: pycocotools' form of the data set. Image ids may be texts.
        found: at least one detection.
        categories: (N,) their category ids in the data set.
        img_ids: images to evaluate on; None for all.

    Returns:
        An ``hotcoco.COCOeval`` with ``stats`` (12,) and ``eval["precision"]``
        (thresholds, recalls, categories, areas, limits), as pycocotools' ``COCOeval`` has them.

    Raises:
        ValueError: a detection in an image that the data set does not have.
    """
    import hotcoco

    numbers = {image_id: number for number, image_id in enumerate(sorted(ground_truth.imgs), start=1)}
    try:
        images = np.array([numbers[image_id] for image_id in found.image_ids])[found.images]
    except KeyError as error:
        raise ValueError(f"there are predictions for image {error}, which the data set does not have") from None
    truth = _with_numbers(ground_truth, numbers)
    detections = truth.load_res(np.column_stack([images, found.boxes, found.scores, categories]).astype(np.float64))
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
