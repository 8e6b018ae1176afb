#!/usr/bin/env python3
"""Label what a data set is not labelled for: a teacher's detections, merged with the true boxes, as one COCO json."""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torchvision.ops import batched_nms
from tqdm import tqdm

from d2x.atomic_files import write_text
from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument, load_plugins
from d2x.data.images import read_image
from d2x.data.prepare import prepare_classes
from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.merged import register_merged
from d2x.data.sets.shapes import register_shapes
from d2x.data.sets.sources import register_source
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor

EPILOG = """Each image keeps the boxes of the classes that its source is labelled for, and gets the detections of
the other classes that score at least the class' threshold ("score" in the json; true boxes have none). A run that
was interrupted goes on where it stopped when it is started again with the same arguments.

example:
  tools/make_pseudo_labels.py --data a.json a/ --data b.json b/ \\
      --teacher output/teacher_a/config.yaml output/teacher_a/model_final.pth \\
      --teacher output/teacher_b/config.yaml output/teacher_b/model_final.pth \\
      --threshold 0.4 --threshold face=0.3 --output output/pseudo.json
"""
NMS_IOU = 0.6  # between detections of one class by several teachers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs=2, action="append", default=[], metavar=("JSON", "FOLDER"))
    parser.add_argument("--images", action="append", default=[], metavar="FOLDER", help="images without labels")
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME", help="a registered data set")
    parser.add_argument("--teacher", nargs=2, action="append", required=True, metavar=("CONFIG", "WEIGHTS"))
    parser.add_argument("--classes", nargs="+", help="default: those of the data, then those of the teachers")
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="[CLASS=]SCORE", help="least score (default 0.4)"
    )
    add_plugin_argument(parser)
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--image-root", help="file names are relative to it; default: the images' common folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def read_thresholds(given: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Least score by class name.

    Raises:
        ValueError: not a number in [0, 1], or an unknown class.
    """
    found = dict.fromkeys(classes, 0.4)
    for text in sorted(given, key=lambda text: "=" in text):  # the general one first, whatever the order
        name, _, value = text.rpartition("=")
        try:
            score = float(value)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            raise ValueError(f"--threshold {text}: must be SCORE or CLASS=SCORE with a score from 0 to 1")
        if name and name not in found:
            raise ValueError(f"--threshold {text}: the classes are {', '.join(classes)}")
        found.update({name: score} if name else dict.fromkeys(classes, score))
    return found


def teacher_configs(pairs: Sequence[tuple[str, str]], device: str) -> list[CfgNode]:
    """Each teacher's config with its weights and its class names in it."""
    configs = []
    for config, weights in pairs:
        cfg = prepare_classes(load_cfg(config, ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", device]))
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"weights of teacher {config} not found: {weights}")
        configs.append(cfg)
    return configs


class Teachers:
    """Detections of several teachers, in the classes of the joint list."""

    def __init__(self, configs: Sequence[CfgNode], classes: Sequence[str], thresholds: dict[str, float]):
        self.thresholds = torch.tensor([thresholds[name] for name in classes])
        self.parts = []
        for cfg in configs:
            names = list(cfg.DATASETS.CLASS_NAMES)
            if not set(names) & set(classes):
                raise ValueError(
                    f"teacher {cfg.MODEL.WEIGHTS} knows {', '.join(names)}; none is in {', '.join(classes)}"
                )
            to_joint = torch.tensor([classes.index(name) if name in classes else -1 for name in names])
            self.parts.append((Predictor(cfg), cfg.INPUT.FORMAT, to_joint))

    def __call__(self, file_name: str, wanted: Sequence[int]) -> list[dict]:
        """COCO annotations (bbox xywh px, score, category index) of the wanted classes in one image."""
        boxes, scores, kinds = [], [], []
        for predict, order, to_joint in self.parts:
            found = predict(read_image(file_name, order))
            boxes.append(found.pred_boxes.tensor)
            scores.append(found.scores)
            kinds.append(to_joint[found.pred_classes])
        box, score, kind = torch.cat(boxes), torch.cat(scores), torch.cat(kinds)
        keep = torch.isin(kind, torch.tensor(list(wanted), dtype=kind.dtype)) & (kind >= 0)
        keep &= score >= self.thresholds[kind.clamp(min=0)]
        box, score, kind = box[keep], score[keep], kind[keep]
        if len(self.parts) > 1:
            best = batched_nms(box, score, kind, NMS_IOU)
            box, score, kind = box[best], score[best], kind[best]
        return [
            {"category": int(k), "bbox": xyxy_to_xywh(b), "score": round(float(s), 5)}
            for b, s, k in zip(box.tolist(), score, kind)
        ]


def xyxy_to_xywh(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]


def true_boxes(record: dict) -> Iterator[dict]:
    for annotation in record["annotations"]:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
        yield {
            "category": annotation["category_id"],
            "bbox": [round(float(value), 3) for value in box],
            "iscrowd": annotation.get("iscrowd", 0),
        }


class Progress:
    """What is done already, one line an image, in ``OUTPUT.part``; of another run's arguments nothing is taken."""

    def __init__(self, path: Path, identity: str):
        self.path = path
        self.done: dict[str, dict] = {}
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] == identity:
                for line in lines[1:]:
                    try:
                        entry = json.loads(line)
                    except json.JSONDecodeError:  # the line that was being written when the run ended
                        continue
                    self.done[entry["file_name"]] = entry
        lines = [identity, *(json.dumps(entry) for entry in self.done.values())]
        write_text(path, "\n".join(lines) + "\n")
        self._file = path.open("a", encoding="utf-8")

    def add(self, entry: dict) -> None:
        self.done[entry["file_name"]] = entry
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def finish(self) -> None:
        self._file.close()
        self.path.unlink()


def write_coco(path: Path, entries: Sequence[dict], classes: Sequence[str], image_root: str, info: dict) -> None:
    """One COCO json; category ids are class indices + 1."""
    images, annotations = [], []
    for number, entry in enumerate(entries, start=1):
        images.append(
            {
                "id": number,
                "file_name": os.path.relpath(entry["file_name"], image_root),
                "height": entry["height"],
                "width": entry["width"],
            }
        )
        for box in entry["boxes"]:
            annotation = {"iscrowd": 0, **box}
            annotation["category_id"] = annotation.pop("category") + 1
            annotation["area"] = round(box["bbox"][2] * box["bbox"][3], 3)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_text(path, json.dumps(content))


def main(argv: Sequence[str] | None = None) -> Path:
    """Returns the json's path."""
    args = parse_args(argv)
    load_plugins(args.plugin)
    register_builtin()
    register_shapes()
    names = [register_source(source) for source in (*args.data, *args.dataset, *args.images)]
    if not names:
        raise ValueError("no data: give --data, --dataset or --images")
    configs = teacher_configs(args.teacher, args.device)
    known = [name for source in names for name in MetadataCatalog.get(source).get("thing_classes", [])]
    known += [name for cfg in configs for name in cfg.DATASETS.CLASS_NAMES]
    classes = args.classes or list(dict.fromkeys(known))
    thresholds = read_thresholds(args.threshold, classes)
    teachers = Teachers(configs, classes, thresholds)

    text = json.dumps([args.data, args.dataset, args.images, args.teacher, classes, thresholds])
    identity = hashlib.sha256(text.encode()).hexdigest()
    records = DatasetCatalog.get(register_merged(f"pseudo_{identity[:12]}", names, classes))
    output = Path(args.output)
    progress = Progress(output.with_name(output.name + ".part"), identity)
    for record in tqdm(records, desc="pseudo labels", unit="image"):
        if record["file_name"] in progress.done:
            continue
        wanted = sorted(set(range(len(classes))) - set(record["labelled_classes"]))
        height, width = record.get("height"), record.get("width")
        if height is None:
            height, width = read_image(record["file_name"]).shape[:2]
        found = teachers(record["file_name"], wanted) if wanted else []
        progress.add(
            {
                "file_name": record["file_name"],
                "height": height,
                "width": width,
                "boxes": [*true_boxes(record), *found],
            }
        )
    entries = [progress.done[record["file_name"]] for record in records]
    folders = [os.path.dirname(os.path.abspath(entry["file_name"])) for entry in entries]
    image_root = args.image_root or os.path.commonpath(folders)
    info = {"description": "true boxes and pseudo labels", "thresholds": thresholds}
    write_coco(output, entries, classes, image_root, info)
    progress.finish()
    boxes = [box for entry in entries for box in entry["boxes"]]
    pseudo = sum("score" in box for box in boxes)
    print(
        f"{output}: {len(entries)} images, {len(boxes) - pseudo} true boxes, {pseudo} pseudo labels\n"
        f"train with DATASETS.TRAIN_JSON {output} DATASETS.TRAIN_IMAGES {image_root}"
    )
    return output


if __name__ == "__main__":
    with one_line_errors():
        main()
