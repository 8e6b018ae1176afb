"""The evaluator with hotcoco against detectron2's own with pycocotools: the same numbers, tables and result files."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.structures import Boxes, Instances

from d2x.config.keys import get_base_cfg
from d2x.evaluation import coco
from d2x.evaluation.coco import HotCocoEvaluator, box_rows, box_statistics, build_coco_evaluator, write_results

NAME = "evaluation_test"
CATEGORIES = {3: "dog", 7: "cat", 8: "cow", 90: "owl"}  # with gaps; owls have neither annotations nor detections


class World:
    """Images, annotations and detections of a data set, made from a seed."""

    def __init__(self, tmp_path, seed, images=12, text_ids=False, first_annotation=1):
        self.rng = np.random.default_rng(seed)
        self.ids = [f"{n:03d}" if text_ids else 5 * n + 2 for n in self.rng.permutation(images).tolist()]
        self.annotations, self.outputs = [], []
        for number, image_id in enumerate(self.ids):
            truth = self.boxes(0 if number == 3 else self.rng.integers(1, 8))
            for box in truth:
                x0, y0, x1, y1 = box.tolist()
                self.annotations.append(
                    {
                        "id": len(self.annotations) + first_annotation,
                        "image_id": image_id,
                        "category_id": int(self.rng.choice([3, 7, 8])),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": float((x1 - x0) * (y1 - y0) * self.rng.uniform(0.4, 1)),  # of a mask, say
                        "iscrowd": int(self.rng.random() < 0.15),
                    }
                )
            near = truth[self.rng.integers(len(truth), size=12)] if len(truth) else truth
            near = near + self.rng.normal(0, 4, near.shape)
            boxes = np.concatenate([near, self.boxes(0 if number == 5 else 120)])
            self.outputs.append(self.instances(np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)))
        content = {
            "images": [{"id": image_id, "width": 200, "height": 160} for image_id in self.ids],
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        }
        self.json_file = tmp_path / "truth.json"
        self.json_file.write_text(json.dumps(content))
        MetadataCatalog.get(NAME).set(
            json_file=str(self.json_file),
            thing_classes=list(CATEGORIES.values()),
            thing_dataset_id_to_contiguous_id={number: i for i, number in enumerate(CATEGORIES)},
        )

    def boxes(self, count):
        start = self.rng.uniform(0, 120, (count, 2))
        return np.concatenate([start, start + np.exp(self.rng.uniform(1.5, 5, (count, 2)))], axis=1)

    def instances(self, boxes):
        found = Instances((160, 200))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        scores = self.rng.random(len(boxes)).round(2)  # with ties
        found.scores = torch.tensor(scores, dtype=torch.float32)
        found.pred_classes = torch.tensor(self.rng.integers(0, 3, len(boxes)))
        return found

    def results(self, evaluator, img_ids=None):
        evaluator.reset()
        for image_id, output in zip(self.ids, self.outputs):
            evaluator.process([{"image_id": image_id}], [{"instances": output}])
        return evaluator.evaluate(img_ids)


@pytest.fixture
def world(tmp_path):
    yield lambda seed=0, **more: World(tmp_path, seed, **more)
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def same(ours, theirs):
    assert list(ours) == list(theirs) and [list(part) for part in ours.values()] == [list(p) for p in theirs.values()]
    np.testing.assert_array_equal([*ours["bbox"].values()], [*theirs["bbox"].values()])  # NaN equals NaN


@pytest.mark.parametrize("seed", range(4))
def test_results_and_files_are_those_of_detectron2(world, tmp_path, seed):
    world = world(seed)
    ours = world.results(HotCocoEvaluator(NAME, output_dir=str(tmp_path / "ours")))
    theirs = world.results(COCOEvaluator(NAME, tasks=("bbox",), output_dir=str(tmp_path / "theirs")))
    same(ours, theirs)
    assert 0 < ours["bbox"]["AP"] < 100 and np.isnan(ours["bbox"]["AP-owl"])
    files = [tmp_path / side / "coco_instances_results.json" for side in ("ours", "theirs")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


@pytest.mark.parametrize("options", [{}, {"text_ids": True}], ids=str)
def test_twelve_numbers_and_every_precision(world, tmp_path, options):
    world = world(7, **options)
    evaluator = HotCocoEvaluator(NAME)
    found = [(image_id, box_rows(output).double().numpy()) for image_id, output in zip(world.ids, world.outputs)]
    for _, rows in found:
        rows[:, 5] = np.array(list(CATEGORIES))[rows[:, 5].astype(int)]
    ours = box_statistics(evaluator._coco_api, found)
    write_results(found, str(tmp_path / "results.json"))
    rows = json.loads((tmp_path / "results.json").read_text())
    theirs = _evaluate_predictions_on_coco(evaluator._coco_api, rows, "bbox")
    assert len(ours.stats) == 12
    np.testing.assert_array_equal(ours.stats, theirs.stats)
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])


@pytest.mark.parametrize("case", ["zero", "shared"])
def test_odd_annotation_ids_are_left_to_pycocotools_or_counted_once(world, tmp_path, caplog, case):
    # pycocotools takes a match with annotation 0 for none, and reads the last of those that share an id for all of them
    plain = world(7)
    expected = plain.results(HotCocoEvaluator(NAME))
    content = json.loads(plain.json_file.read_text())
    if case == "zero":
        odd = world(7, first_annotation=0)
    else:
        odd = plain
        for annotation in content["annotations"][:8]:
            annotation["id"] = 8
        odd.json_file.write_text(json.dumps(content))
    cfg = get_base_cfg()
    with caplog.at_level(logging.INFO):
        auto = build_coco_evaluator(cfg, NAME, str(tmp_path))
    assert type(auto) is COCOEvaluator and f"{NAME}: an annotation has id 0" in caplog.text
    cfg.TEST.COCO_EVAL = "hotcoco"
    forced = odd.results(build_coco_evaluator(cfg, NAME, str(tmp_path)))
    same(forced, expected)
    assert odd.results(auto)["bbox"]["AP"] != forced["bbox"]["AP"]


def test_some_images(world):
    world = world(1)
    img_ids = world.ids[4:9]
    some = world.results(HotCocoEvaluator(NAME), img_ids)
    same(some, world.results(COCOEvaluator(NAME, tasks=("bbox",)), img_ids))
    assert some["bbox"]["AP"] != world.results(HotCocoEvaluator(NAME))["bbox"]["AP"]


def test_no_detections_are_not_a_number(world):
    world = world(2)
    world.outputs = [output[:0] for output in world.outputs]
    ours, theirs = (world.results(make(NAME)) for make in (HotCocoEvaluator, COCOEvaluator))
    same(ours, theirs)
    assert np.isnan(ours["bbox"]["AP"])


def test_nothing_evaluated(world, caplog):
    world()
    evaluator = HotCocoEvaluator(NAME)
    evaluator.reset()
    evaluator._logger.addHandler(caplog.handler)  # detectron2's logger may pass nothing on
    assert evaluator.evaluate() == {}
    evaluator._logger.removeHandler(caplog.handler)
    assert "Did not receive valid predictions" in caplog.text


def test_no_annotations(world, tmp_path):
    world = world()
    content = json.loads(world.json_file.read_text())
    del content["annotations"]
    world.json_file.write_text(json.dumps(content))
    assert world.results(HotCocoEvaluator(NAME, output_dir=str(tmp_path / "out"))) == {}
    assert len(json.loads((tmp_path / "out/coco_instances_results.json").read_text())) > 100


def test_reset_forgets(world):
    world = world(3)
    evaluator = HotCocoEvaluator(NAME)
    first = world.results(evaluator)
    same(world.results(evaluator), first)


def test_wrong_image_and_class_are_named(world):
    world = world()
    world.ids[0] = 4711
    with pytest.raises(ValueError, match="image 4711"):
        world.results(HotCocoEvaluator(NAME))
    world.outputs[0].pred_classes[0] = 4
    with pytest.raises(ValueError, match=f"{NAME} has 4 classes, but class 4"):
        world.results(HotCocoEvaluator(NAME))


def test_saved_detections_load_without_pickled_code(world, tmp_path):
    world = world()
    world.results(HotCocoEvaluator(NAME, output_dir=str(tmp_path)))
    saved = torch.load(tmp_path / "instances_predictions.pth", weights_only=True)
    assert [one["image_id"] for one in saved] == world.ids
    assert [one["instances"].shape for one in saved] == [(len(output), 6) for output in world.outputs]
    assert torch.equal(saved[0]["instances"][:, 4], world.outputs[0].scores)


@pytest.mark.parametrize("library", ["orjson", "json"])
def test_result_file_image_by_image(tmp_path, monkeypatch, library):
    if library == "json":
        monkeypatch.setattr(coco, "orjson", None)
    images = []
    for n in (0, 2, 0, 3):
        found = Instances((160, 200), pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 4.5, 9.0]]).repeat(n, 1)))
        found.scores, found.pred_classes = torch.full((n,), 0.1), torch.full((n,), 10 + n)
        images.append((n, box_rows(found).double().numpy()))
    write_results(images, str(tmp_path / "results.json"))
    score = float(np.float32(0.1))
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": n, "category_id": 10 + n, "bbox": [1, 2, 3.5, 7], "score": score} for n in (2, 2, 3, 3, 3)
    ]
    write_results(images[:1], str(tmp_path / "results.json"))
    assert (tmp_path / "results.json").read_bytes() == b"[]"


def test_half_precision_keeps_every_class():
    found = Instances((160, 200), pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 4.5, 9.0]])))
    found.pred_boxes.tensor = found.pred_boxes.tensor.bfloat16()
    found.scores, found.pred_classes = torch.tensor([0.5]).bfloat16(), torch.tensor([1203])  # LVIS has as many
    assert box_rows(found).tolist() == [[1, 2, 3.5, 7, 0.5, 1203]]


def test_choice_of_evaluator(world, tmp_path, monkeypatch, caplog):
    world()
    cfg = get_base_cfg()
    assert type(build_coco_evaluator(cfg, NAME, str(tmp_path))) is HotCocoEvaluator
    cfg.TEST.COCO_EVAL = "pycocotools"
    assert type(build_coco_evaluator(cfg, NAME, str(tmp_path))) is COCOEvaluator
    cfg.TEST.COCO_EVAL = "cocoapi"
    with pytest.raises(ValueError, match="TEST.COCO_EVAL 'cocoapi' is not one of auto, hotcoco, pycocotools"):
        build_coco_evaluator(cfg, NAME, str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg.TEST.COCO_EVAL = "hotcoco"
    with pytest.raises(ValueError, match="not installed"):
        build_coco_evaluator(cfg, NAME, str(tmp_path))
    cfg.TEST.COCO_EVAL = "auto"
    with caplog.at_level(logging.INFO):
        assert type(build_coco_evaluator(cfg, NAME, str(tmp_path))) is COCOEvaluator
    assert caplog.text.count("hotcoco is not installed") == 1
    assert NAME not in DatasetCatalog
