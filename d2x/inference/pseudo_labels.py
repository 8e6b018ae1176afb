"""Pseudo labels: detections of teachers for the classes that an image is not labelled for, beside its true boxes."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode, Instances
from torchvision.ops import batched_nms
from tqdm import tqdm

from d2x.atomic_files import write_text
from d2x.data.images import read_image
from d2x.inference.predictor import Predictor

NMS_IOU = 0.6  # between detections of one class by several teachers


class Teachers:
    """Several detectors that answer in the classes of one joint list.

    Args:
        configs: with ``MODEL.WEIGHTS`` and class names.
        classes: the joint list.
        thresholds: least score by class name.

    Raises:
        ValueError: one of them knows none of the classes.
    """

    def __init__(self, configs: Sequence[CfgNode], classes: Sequence[str], thresholds: dict[str, float]):
        self._thresholds = torch.tensor([thresholds[name] for name in classes])
        self._teachers = []
        for cfg in configs:
            names = list(cfg.DATASETS.CLASS_NAMES)
            if not set(names) & set(classes):
                raise ValueError(
                    f"teacher {cfg.MODEL.WEIGHTS} knows {', '.join(names)}; none is in {', '.join(classes)}"
                )
            to_joint = torch.tensor([classes.index(name) if name in classes else -1 for name in names])
            self._teachers.append((Predictor(cfg), cfg.INPUT.FORMAT, to_joint))

    def __call__(self, file_name: str, wanted: Sequence[int]) -> list[dict]:
        """COCO annotations with scores of the wanted classes in one image."""
        answers = []
        for predict, channels, to_joint in self._teachers:
            answer = predict(read_image(file_name, channels))
            answer.pred_classes = to_joint[answer.pred_classes]
            answers.append(answer)
        found = Instances.cat(answers)
        of_class = torch.isin(found.pred_classes, torch.tensor(list(wanted), dtype=torch.int64))
        found = found[of_class & (found.scores >= self._thresholds[found.pred_classes.clamp(min=0)])]
        if len(answers) > 1:
            best = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, NMS_IOU)
            found = found[best]  # pyright: ignore[reportArgumentType]  (an index by numbers, which works, too)
        rows = zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist())
        return [_annotation(box, BoxMode.XYXY_ABS, label, score=round(score, 5)) for box, score, label in rows]


def _annotation(box: Sequence[float], mode: BoxMode, label: int, **more: float) -> dict:
    """COCO's, without ids; category ids are class indices + 1."""
    xywh = [round(float(value), 3) for value in BoxMode.convert(list(box), mode, BoxMode.XYWH_ABS)]
    return {"iscrowd": 0, **more, "category_id": label + 1, "bbox": xywh, "area": round(xywh[2] * xywh[3], 3)}


class Progress:
    """Images that are done, one line each in a file; lines of a run with another identity are forgotten."""

    def __init__(self, path: Path, identity: str):
        self.done: dict[str, dict] = {}
        first, *lines = (path.read_text(encoding="utf-8") if path.exists() else "").splitlines() or [""]
        for line in lines if first == identity else ():
            with contextlib.suppress(json.JSONDecodeError):  # the line that was being written when the run ended
                image = json.loads(line)
                self.done[image["file_name"]] = image
        write_text(path, "\n".join([identity, *map(json.dumps, self.done.values())]) + "\n")
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def add(self, image: dict) -> None:
        """Note an image with its ``file_name``."""
        self.done[image["file_name"]] = image
        print(json.dumps(image), file=self._file, flush=True)

    def finish(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink()


def label_images(records: Sequence[dict], classes: Sequence[str], teachers: Teachers, progress: Progress) -> list[dict]:
    """COCO images, each with its ``annotations``: the true boxes, and the teachers' of classes it is not labelled for.

    Args:
        records: of a data set merged by ``register_merged``.
        classes: of that data set.
        teachers: answer in these classes.
        progress: images in it are taken from there.
    """
    for record in tqdm(records, desc="pseudo labels", unit="image"):
        name = record["file_name"]
        if name in progress.done:
            continue
        height, width = record.get("height"), record.get("width")
        if height is None:
            height, width = read_image(name).shape[:2]
        annotations = [
            _annotation(true["bbox"], true["bbox_mode"], true["category_id"], iscrowd=true.get("iscrowd", 0))
            for true in record["annotations"]
        ]
        wanted = sorted(set(range(len(classes))) - set(record["labelled_classes"]))
        annotations += teachers(name, wanted) if wanted else []
        progress.add({"file_name": name, "height": height, "width": width, "annotations": annotations})
    return [progress.done[record["file_name"]] for record in records]


def write_coco(path: Path, labelled: Sequence[dict], classes: Sequence[str], image_root: str, info: dict) -> None:
    """Write what ``label_images`` gave as one COCO json; file names become relative to ``image_root``."""
    images, annotations = [], []
    for number, image in enumerate(labelled, start=1):
        size = {"height": image["height"], "width": image["width"]}
        images.append({"id": number, "file_name": os.path.relpath(image["file_name"], image_root), **size})
        for annotation in image["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_text(path, json.dumps(content))
