"""Feed malformed jsons, lists, images, configs and checkpoints to the program; each must be skipped or refused clearly.

Hypothesis makes them by damaging valid ones, the same for the same seed. A failure ends the program with the smallest
case that shows it: any exception that is no user error, an error that does not name the file, a hang, a changed input
file, or training, evaluation and tools/check_dataset.py saying different things about the same data.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import itertools
import logging
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import hypothesis as hy
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from tabulate import tabulate

from benchmarks.malformed import inputs
from benchmarks.malformed.inputs import HEIGHT, SMALL_MODEL, VOC, WIDTH, Case
from d2x.checkpoint.files import Checkpointer
from d2x.config.keys import get_base_cfg
from d2x.config.load import load_cfg
from d2x.data.mapper import BadImageError, make_test_mapper, make_train_mapper
from d2x.data.prepare import prepare_data
from d2x.data.rules.image_files import inspect_image
from d2x.data.rules.record_rules import box_rules
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.pseudo_txt import read_pseudo_txt
from d2x.data.sets.wider_face import read_voc_xml, read_wider_face
from d2x.engine.trainer import Trainer
from d2x.errors import one_line
from tools.check_dataset import main as check_dataset

CFG = get_base_cfg()
CFG.INPUT.FORMAT, CFG.DATASETS.TRAIN = "RGB", ()


def use_json(case: Case, path: Path) -> str:
    """Register, map, prepare for evaluation, check and clean."""
    name, images, clean = f"malformed {path}", str(path.parent), str(path.with_name("clean.json"))
    for i in range(1, 5):
        Image.new("RGB", (WIDTH, HEIGHT), (60 * i, 20, 90)).save(path.with_name(f"{i}.png"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = check_dataset([str(path), images, "--write-clean", clean, "--report", f"{clean}.report.json"])
        assert status == 2 or check_dataset([clean, images]) == 0, "the clean copy is not clean"
        try:
            register_coco_json(name, str(path), images)
            metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)
            for record in records:
                for annotation in record["annotations"]:
                    assert not any(box_rules(*annotation["bbox"], record["width"], record["height"])), annotation
                    assert 0 <= annotation["category_id"] < len(metadata.thing_classes), annotation
                make_train_mapper(CFG, [])(record)
            evaluated, boxes = COCO(metadata.json_file), sum(len(record["annotations"]) for record in records)
            assert set(evaluated.getImgIds()) == {record["image_id"] for record in records}, "other images evaluated"
            assert len(evaluated.dataset.get("annotations", [])) == boxes, "other annotations evaluated"
        except (ValueError, OSError) as error:
            assert status == 2, f"training refuses the data set, the check does not: {error}"
            raise
        finally:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
    return "accepted" if status == 0 else "skipped"


def use_list(case: Case, path: Path) -> str:
    folder = path.parent.parent if case.damage == "voc xml" else path.parent
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.jpg")
    if case.damage.startswith("voc"):
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "JPEGImages").mkdir()
        (folder / "list.txt").write_bytes(b"1\n2\n")
        for name in ("1.xml", "2.xml"):
            (folder / "Annotations" / name).write_bytes(VOC)
        path.write_bytes(case.content)
        records = read_voc_xml(folder / "list.txt", folder, ["face"])
    elif case.damage == "found boxes":
        records = read_pseudo_txt(path, folder, ["face", "person"])
    else:
        records = (read_crowd_human if case.damage == "crowd human" else read_wider_face)(path, folder)
    for record in records:
        width, height = record["width"], record["height"]
        assert isinstance(height, int) and isinstance(width, int), f"a size that is none: {record}"
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, f"a bad box: {annotation}"
    return "accepted" if any(record["annotations"] for record in records) else "skipped"


def use_image(case: Case, path: Path) -> str:
    """Map for training and for evaluation, and inspect."""
    record = {"file_name": str(path), "width": WIDTH, "height": HEIGHT, "image_id": 1, "annotations": []}
    trained, evaluated = make_train_mapper(CFG, [])(record) is not None, True
    try:
        assert tuple(make_test_mapper(CFG, [])(record)["image"].shape) == (3, HEIGHT, WIDTH)
    except BadImageError as error:
        assert path.name in str(error) and "\n" not in str(error), f"not a line that names the file: {error}"
        evaluated = False
    facts = inspect_image(str(path), WIDTH, HEIGHT)
    assert trained == evaluated == (not facts.fault), f"taken by training {trained}, evaluation {evaluated}; {facts}"
    return "accepted" if trained else "skipped"


def use_config(case: Case, path: Path) -> str:
    """Load, resolve, and build on the meta device."""
    cfg = prepare_data(load_cfg(str(path)))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = Trainer.build_model(cfg)
    Trainer.build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))
    return "accepted"


def use_checkpoint(case: Case, path: Path) -> str:
    """Load into a small model, which a refusal must leave as it is."""
    model = copy.deepcopy(SMALL_MODEL)
    try:
        Checkpointer(model).load(str(path))
    except ValueError:
        for name, value in model.state_dict().items():
            assert torch.equal(SMALL_MODEL.state_dict()[name], value), f"a refused checkpoint has changed {name}"
        raise
    return "accepted"


KINDS = {
    "json": (inputs.JSONS, use_json),
    "list": (inputs.LISTS, use_list),
    "image": (inputs.IMAGES, use_image),
    "config": (inputs.CONFIGS, use_config),
    "checkpoint": (inputs.CHECKPOINTS, use_checkpoint),
}


def run_case(case: Case, use: Callable[[Case, Path], str], folder: Path) -> str:
    """Write a case into a new folder, use it, and say how that ended; raises if a rule is broken."""
    path = folder / case.name
    path.parent.mkdir(parents=True)
    path.write_bytes(case.content)
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)  # of a case that hangs
    try:
        ended = use(case, path)
    except Exception as error:
        message, ended = one_line(error), "refused"
        assert message and re.search(case.named, message), f"no user error that names '{case.named}': {error!r:.500}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert path.read_bytes() == case.content, "the input was changed"
    return ended


def run_cases(kind: str, cases: int, seed: int, folder: Path) -> Counter[tuple[str, str]]:
    """Run so many cases of a kind, in folders below ``folder``: how many by (damage, end)."""
    (strategy, use), counts, numbers = KINDS[kind], Counter(), itertools.count()
    options = {"database": None, "deadline": None, "suppress_health_check": list(hy.HealthCheck)}

    @hy.seed(seed)
    @hy.settings(max_examples=cases, phases=(hy.Phase.generate, hy.Phase.shrink), **options)
    @hy.given(strategy)
    def run(case: Case) -> None:
        counts[case.damage, run_case(case, use, folder / f"{kind}-{next(numbers)}")] += 1

    with warnings.catch_warnings(), mock.patch.dict(os.environ, D2X_CACHE=str(folder / "cache")):
        warnings.simplefilter("ignore")
        run()
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.malformed", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of each kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default %(default)s)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    args = parser.parse_args(argv)
    rows = []
    for kind in args.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            counts = run_cases(kind, args.cases, args.seed, Path(folder))
        for damage in sorted({damage for damage, _ in counts}):
            ends = [counts[damage, end] for end in ("accepted", "skipped", "refused")]
            rows.append([kind, damage, sum(ends), *ends])
    print(tabulate(rows, ["input", "damage", "cases", "taken as they are", "bad parts skipped", "refused"], "pipe"))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main()
