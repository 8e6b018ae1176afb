"""The embedded data set: deterministic, as described, and written so that a killed run leaves nothing half done."""

import json
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from d2x.data.sets import shapes
from d2x.data.sets.shapes import DATASETS, OUTLINES, ShapesSpec, generate_shapes, register_shapes, render

SPEC = ShapesSpec(12, seed=7)


def test_same_spec_gives_same_pixels_and_more_images_do_not_change_the_first():
    image, found = render(SPEC, 3)
    again, found_again = render(replace(SPEC, images=500), 3)
    assert np.array_equal(image, again) and found == found_again
    assert not np.array_equal(image[:96, :96], render(replace(SPEC, seed=8), 3)[0][:96, :96])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 5000), st.sampled_from([0.0, 1.0, 2.0]))
def test_every_object_is_visible_and_its_box_inside_the_image(seed, index, difficulty):
    image, found = render(ShapesSpec(1, seed=seed, classes=tuple(OUTLINES), difficulty=difficulty), index)
    height, width = image.shape[:2]
    assert image.dtype == np.uint8 and 96 <= height <= 128 and 96 <= width <= 128
    assert len(found) <= 6
    for shape in found:
        x0, y0, x1, y1 = shape.box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert min(x1 - x0, y1 - y0) >= shapes.MIN_VISIBLE_SIDE
        assert max(x1 - x0, y1 - y0) <= 0.7 * min(height, width) + 2
        assert 0 < shape.area <= (x1 - x0) * (y1 - y0)


def test_boxes_are_tight_on_a_flat_background():
    # Without noise a lone object is whatever differs from the background's one colour by more than an edge pixel.
    for index in range(40):
        image, found = render(ShapesSpec(1, seed=1, difficulty=0.0, max_objects=1), index)
        if len(found) == 1:
            colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
            background, inside = colours[counts.argsort()[-2:]][::-1].astype(float)
            if found[0].area > image.shape[0] * image.shape[1] / 2:
                background, inside = inside, background
            part = (image - background) @ (inside - background) / np.square(inside - background).sum()
            assert shapes._extent(part > 0.5) == pytest.approx(found[0].box, abs=1)


def test_the_sets_are_not_made_easier_than_described():
    spec = DATASETS["shapes_train"]
    assert len(spec.classes) >= 4 and spec.max_objects == 6 and spec.object_sides == (10, 0.7) and spec.difficulty == 1
    drawn = [render(spec, index) for index in range(150)]
    counts = np.bincount([len(found) for _, found in drawn], minlength=7)
    assert (counts > 5).all(), "0 to 6 objects all occur"
    sides = np.array([max(s.box[2] - s.box[0], s.box[3] - s.box[1]) for _, found in drawn for s in found])
    assert np.mean(sides < 20) > 0.2 and np.mean(sides > 50) > 0.1, "log-uniform: many small ones, some large"
    at_border = [0 in s.box[:2] or s.box[2] == im.shape[1] or s.box[3] == im.shape[0] for im, f in drawn for s in f]
    assert np.mean(at_border) > 0.1, "objects are cut off by the border"


def test_generated_set_is_complete_and_reused(tmp_path):
    json_file = generate_shapes(SPEC, tmp_path / "set")
    content = json.loads(json_file.read_text())
    assert [image["id"] for image in content["images"]] == list(range(1, 13))
    assert {category["name"] for category in content["categories"]} == set(SPEC.classes)
    assert all((json_file.parent / "images" / image["file_name"]).exists() for image in content["images"])
    changed = json_file.stat().st_mtime_ns
    assert generate_shapes(SPEC, tmp_path / "set").stat().st_mtime_ns == changed


def test_an_interrupted_generation_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def fail(spec, index):
        if index == 5:
            raise KeyboardInterrupt
        return render(spec, index)

    monkeypatch.setattr(shapes, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(SPEC, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert generate_shapes(SPEC, tmp_path / "set").exists()


def test_partial_and_unlabelled_sets(monkeypatch, tmp_path):
    partial = generate_shapes(ShapesSpec(12, seed=7, annotated=("star",)), tmp_path / "partial")
    everything = generate_shapes(SPEC, tmp_path / "all")
    none = generate_shapes(ShapesSpec(12, seed=7, annotated=()), tmp_path / "none")

    def boxes(path, name):
        content = json.loads(path.read_text())
        ids = [category["id"] for category in content["categories"] if category["name"] == name]
        return [a["bbox"] for a in content["annotations"] if a["category_id"] in ids]

    assert boxes(partial, "star") == boxes(everything, "star") != []
    assert [category["name"] for category in json.loads(partial.read_text())["categories"]] == ["star"]
    assert json.loads(none.read_text())["annotations"] == []


def test_registered_names_load_with_metadata():
    register_shapes()
    register_shapes()
    records = DatasetCatalog.get("shapes_tiny_val")
    metadata = MetadataCatalog.get("shapes_tiny_val")
    assert len(records) == 32 and metadata.thing_classes == list(shapes.CLASSES)
    assert {a["category_id"] for record in records for a in record["annotations"]} == {0, 1, 2, 3}
    assert MetadataCatalog.get("shapes_partial_b_tiny").thing_classes == ["triangle", "star"]
    assert MetadataCatalog.get("shapes_unlabelled_tiny").labelled_classes == []


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="hexagon"):
        ShapesSpec(1, seed=0, classes=("hexagon",))
    with pytest.raises(ValueError, match="object_sides"):
        ShapesSpec(1, seed=0, object_sides=(100, 0.5))
