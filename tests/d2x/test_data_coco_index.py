"""The index of a json: the records detectron2's own reader gives, kept on disk, never trusted when damaged or old."""

import json
import logging
import os
import pickle
import random

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from torch.utils.data import ConcatDataset, DataLoader

from d2x.data.index import cache as coco_cache
from d2x.data.index.cache import index_path, open_index
from d2x.data.index.coco_index import CocoIndex, DamagedIndexError, IndexedRecords
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.training_set import are_wide, training_records


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    """(json, image folder) of 100 images, some without boxes, ids in no order, some crowds; files exist, empty."""
    rng = random.Random(0)
    ids = rng.sample(range(10**6), 100)
    images = [
        {"id": n, "file_name": f"sub/{n} é.jpg", "width": rng.randint(50, 90), "height": rng.randint(50, 90)}
        for n in ids
    ]
    annotations = []
    for number in range(1, 301):
        x, y, w, h = (rng.uniform(0, 40) for _ in range(4))
        box = [x, y, w + 1, h + 1] if number % 3 else [int(x), int(y), 5, 6]
        annotations.append(
            {
                "id": number,
                "image_id": rng.choice(ids[:80]),
                "category_id": rng.choice([5, 2, 9]),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(rng.random() < 0.3),
            }
        )
    categories = [{"id": 5, "name": "five"}, {"id": 2, "name": "two"}, {"id": 9, "name": "nine"}]
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for image in images:
        (folder / image["file_name"]).touch()
    json_file = tmp_path / "data.json"
    json_file.write_text(
        json.dumps({"annotations": annotations, "info": {}, "images": images, "categories": categories})
    )
    return str(json_file), str(folder)


def records_of(data, **more) -> IndexedRecords:
    return IndexedRecords(open_index(*data, **more), data[1], "name")


def test_records_are_those_of_detectron2(data):
    expected = load_coco_json(*data, "coco_index_expected")
    ours = records_of(data)
    assert len(ours) == len(expected) == 100
    for mine, theirs in zip(ours, expected):
        assert mine == {**theirs, "dataset_name": "name"}
    assert ours[-1] == ours[99] and ours[98:] == [ours[98], ours[99]] and ours[np.int64(3)] == ours[3]
    with pytest.raises(IndexError):
        ours[100]
    MetadataCatalog.remove("coco_index_expected")


def test_kept_on_disk_and_read_back(data, caplog):
    first = records_of(data, keep_from=0)
    assert first.coco_index.path == index_path(*data) and first.coco_index.path.exists()
    before = first.coco_index.path.stat()
    second = records_of(data, keep_from=0)
    assert list(second) == list(first) == list(records_of(data))
    assert second.coco_index.path.stat() == before, "read, not made anew"
    assert [path.suffix for path in first.coco_index.path.parent.iterdir() if path.suffix != ".lock"] == [
        ".safetensors"
    ]


def _rewrite(json_file):
    with open(json_file) as file:
        content = json.load(file)
    content["annotations"].pop()
    with open(json_file, "w") as file:
        json.dump(content, file)


def _rewrite_at_same_size_and_time(json_file):
    status = os.stat(json_file)
    with open(json_file) as file:
        text = file.read()
    with open(json_file, "w") as file:
        file.write(text.replace('"category_id": 5', '"category_id": 2'))
    os.utime(json_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(json_file).st_size == status.st_size


@pytest.mark.parametrize("change", [_rewrite, _rewrite_at_same_size_and_time])
def test_a_changed_json_is_read_anew(data, change):
    old = list(records_of(data, keep_from=0))
    change(data[0])
    new = list(records_of(data, keep_from=0))
    assert new != old and new == list(records_of(data))


def test_a_file_that_disappears_is_noticed(data):
    name = records_of(data, keep_from=0)[0]["file_name"]
    os.unlink(name)
    again = records_of(data, keep_from=0)
    assert len(again) == 99 and "image files missing" in again.coco_index.header["summary"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def _pickle(path):
    path.write_bytes(pickle.dumps({"header": 1}))


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _pickle, _empty])
def test_a_damaged_index_is_made_anew_with_a_message(data, damage, caplog):
    good = list(records_of(data, keep_from=0))
    path = index_path(*data)
    damage(path)
    with pytest.raises(DamagedIndexError):
        CocoIndex.open(path)
    with caplog.at_level(logging.WARNING):
        assert list(records_of(data, keep_from=0)) == good
    assert str(path) in caplog.text and "made anew" in caplog.text
    assert len(CocoIndex.open(path)) == 100


def test_what_a_killed_process_left_half_written_goes_after_a_day(data):
    path = index_path(*data)
    path.parent.mkdir(parents=True)
    names = (f"{path.name}.1.tmp", f"{path.name}.2.tmp", "other.safetensors.1.tmp")
    old, fresh, other = (path.parent / name for name in names)
    for file in (old, fresh, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (1e9, 1e9))
    assert len(records_of(data, keep_from=0)) == 100
    assert not old.exists() and fresh.exists() and other.exists()


def test_what_was_left_out_is_said_at_each_start(data, caplog):
    with open(data[0]) as file:
        content = json.load(file)
    content["annotations"][7]["bbox"] = [1, 2, -3, 4]
    with open(data[0], "w") as file:
        json.dump(content, file)
    for _ in range(2):
        caplog.clear()
        index = open_index(*data, keep_from=0)
        assert "1 annotations with zero or negative size (annotation 8, bbox [1.0, 2.0, -3.0, 4.0])" in caplog.text
    assert index.header["json_file"] != data[0]
    os.unlink(index.header["json_file"])  # the cleaned copy
    assert os.path.exists(open_index(*data, keep_from=0).header["json_file"])


def test_a_cache_that_cannot_be_written_costs_only_time(data, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(records_of(data, keep_from=0)) == 100
    assert "could not be kept" in caplog.text


def test_a_needed_copy_that_cannot_be_written_is_one_error(data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "file"))
    with open(data[0]) as file:
        content = json.load(file)
    del content["info"]
    with open(data[0], "w") as file:
        json.dump(content, file)
    with pytest.raises(ValueError, match="data.json needs cleaning.*D2X_CACHE"):
        open_index(*data)


def test_a_large_file_is_sampled_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_cache, "_WHOLE_UP_TO", 0)
    monkeypatch.setattr(coco_cache, "_SAMPLE", 4)
    path, keys = tmp_path / "big", set()
    content = bytearray(1000)
    for changed in (None, 0, 999):
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        keys.add(coco_cache.content_key(str(path)))
    assert len(keys) == 3


def test_text_ids(data):
    with open(data[0]) as file:
        content = json.load(file)
    for record, key in [*((r, "id") for r in content["images"]), *((r, "image_id") for r in content["annotations"])]:
        record[key] = f"id é {record[key]}"
    with open(data[0], "w") as file:
        json.dump(content, file)
    ours = records_of(data, keep_from=0)
    assert [r["image_id"] for r in ours] == sorted(image["id"] for image in content["images"])
    assert sum(len(r["annotations"]) for r in ours) == 300


def test_without_empty_is_detectron2s_filter(data):
    ours = records_of(data)
    expected = filter_images_with_only_crowd_annotations(list(ours))
    assert 0 < len(expected) < 80
    assert list(ours.without_empty()) == expected
    assert list(ours.without_empty().without_empty()) == expected
    assert are_wide(ours.without_empty()) == [record["width"] > record["height"] for record in expected]


def test_training_records_of_index_and_list(data):
    names = ("index_user", "index_list")
    register_coco_json(names[0], *data)
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    small = [{"file_name": "a", "height": 4, "width": 9, "image_id": i, "annotations": [box] * i} for i in range(3)]
    DatasetCatalog.register(names[1], lambda: small)
    ours = training_records(names, filter_empty=True)
    alone = training_records(names[:1], filter_empty=True)
    assert isinstance(ours, ConcatDataset) and isinstance(alone, IndexedRecords)
    assert [ours[i] for i in range(len(ours))] == [*alone, *small[1:]]
    assert are_wide(ours) == [*are_wide(alone), True, True]
    assert len(training_records(names, filter_empty=False)) == 103
    assert training_records(names[1:], filter_empty=True) == small[1:]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_process_started_anew_maps_the_file_instead_of_receiving_it(data):
    kept = records_of(data, keep_from=0)
    message = pickle.dumps(kept)
    assert len(message) < 1000 < len(pickle.dumps(records_of(data)))
    assert list(pickle.loads(message)) == list(kept)
    loader = DataLoader(kept, num_workers=1, multiprocessing_context="spawn", collate_fn=list, batch_size=50)
    assert [record for batch in loader for record in batch] == list(kept)


def private_bytes() -> int:
    """Memory of this process that no other shares."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) * 1024


class Measured:
    """Reads all records in a worker; its one item is by how much the worker's own memory grew."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return 4

    def __getitem__(self, _):
        before = private_bytes()
        boxes = sum(len(self.records[i]["annotations"]) for i in range(len(self.records)))
        return boxes, private_bytes() - before


def test_memory_does_not_grow_with_workers(tmp_path):
    boxes = 400_000
    content = {
        "info": {},
        "categories": [{"id": 1, "name": "a"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(20_000)],
    }
    path = tmp_path / "big.json"
    one = '{"id": %d, "image_id": %d, "category_id": 1, "bbox": [1.5, 2, 30, 40], "area": 1200, "iscrowd": 0}'
    path.write_text(
        json.dumps(content)[:-1]
        + ', "annotations": ['
        + ",".join(one % (i + 1, i % 20_000) for i in range(boxes))
        + "]}"
    )
    index = open_index(str(path), str(tmp_path), need_images=False, keep_from=0)
    size = sum(array.nbytes for array in index.arrays.values())
    assert size > 14e6  # 400,000 x (4 x 8 + 4 + 1) bytes and more
    grown = []
    for count, growth in DataLoader(Measured(IndexedRecords(index, "", "n")), num_workers=2, collate_fn=lambda x: x[0]):
        assert count == boxes
        grown.append(growth)
    assert max(grown) < size / 4, "a worker copies neither the arrays nor makes a list of the records"
