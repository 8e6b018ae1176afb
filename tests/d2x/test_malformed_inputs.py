"""1,350 malformed jsons, other lists, images, configs and checkpoints: all end as documented.

Larger numbers: ``benchmarks/malformed/run.py``.
"""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.malformed import cases
from benchmarks.malformed.cases import CANARY, Broken, Case, run_case
from benchmarks.malformed.run import main, outcomes, table
from d2x.checkpoint.files import Checkpointer
from d2x.config.keys import get_base_cfg
from d2x.config.load import load_cfg
from d2x.data.images import decode
from d2x.data.mapper import make_test_mapper, make_train_mapper
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.wider_face import parse_wider_face

# kind -> (cases, ways to end of which each must be seen at least ten times)
KINDS = {
    "json": (320, ("skipped", "refused")),
    "list": (150, ("accepted", "refused")),
    "image": (400, ("accepted", "skipped")),
    "config": (160, ("refused",)),
    "checkpoint": (320, ("refused",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_malformed_input_ends_as_documented(kind, tmp_path):
    count, expected = KINDS[kind]
    found = list(outcomes(kind, range(count), tmp_path))
    assert len(found) == count
    failed = [one for one in found if one.ended == "FAILED"]
    assert not failed, "\n".join(f"{kind} {one.seed} ({one.what}): {one.detail}" for one in failed[:3])
    for ended in expected:
        assert sum(one.ended == ended for one in found) >= 10, f"hardly any case was {ended}: {table(found)}"


def test_there_are_a_thousand():
    assert sum(count for count, _ in KINDS.values()) >= 1000


def _case(run, named=""):
    return lambda rng, folder: Case("test", named, lambda: run(folder))


def _wrong_kind(folder):
    raise TypeError("a bug")


def _other_file(folder):
    raise ValueError("some file is wrong")


def _broken_rule(folder):
    raise Broken("a bad box went through")


def _code(folder):
    (folder / CANARY).touch()
    raise ValueError("data.json: refused")


def _endless(folder):
    while True:
        pass


@pytest.mark.parametrize("run, words", [
    (_wrong_kind, "TypeError: a bug"),
    (_other_file, "does not name 'data.json'"),
    (_broken_rule, "a bad box went through"),
    (_code, "code in the input was run"),
    (_endless, "more than 0.2 s"),
])  # fmt: skip
def test_the_harness_sees_a_failure(run, words, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "CPU_SECONDS", 0.2)
    outcome = run_case("test", _case(run, "data.json"), 1, tmp_path)
    assert outcome.ended == "FAILED" and words in outcome.detail


def test_the_harness_accepts_a_clear_refusal(tmp_path):
    def refuse(folder):
        raise ValueError("data.json: line 3 is wrong")

    outcome = run_case("test", _case(refuse, "data.json"), 1, tmp_path)
    assert (outcome.ended, outcome.detail) == ("refused", "data.json: line 3 is wrong")


def test_a_case_is_made_from_its_kind_and_number_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = list(outcomes("image", range(5, 15), tmp_path / "a"))
    again = list(outcomes("image", range(5, 15), tmp_path / "b"))
    assert [(one.what, one.ended) for one in first] == [(one.what, one.ended) for one in again]
    files = [sorted((tmp_path / x / "image-7").iterdir())[0].read_bytes() for x in "ab"]
    assert files[0] == files[1]


def test_as_a_command(tmp_path, capsys):
    before = os.environ.get("D2X_CACHE")
    assert main(["--kind", "image", "--cases", "12", "--table", str(tmp_path / "t.md")]) == 0
    assert os.environ.get("D2X_CACHE") == before
    assert (tmp_path / "t.md").read_text() in capsys.readouterr().out
    assert "| all | | 12 |" in (tmp_path / "t.md").read_text()


# What the cases above have found, each by itself.


def test_a_truncated_png_is_not_trained_on(tmp_path):
    """detectron2's reader swallows the error and takes the part that was decoded."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    cfg = get_base_cfg()
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ()
    record = {"file_name": str(tmp_path / "a.png"), "height": 28, "width": 40}
    assert make_train_mapper(cfg, [])(record) is None


def test_the_mapper_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    cfg = get_base_cfg()
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ()
    with pytest.raises(ValueError, match="cannot read image .*a.png: not a file"):
        make_test_mapper(cfg, [])({"file_name": str(tmp_path / "a.png")})


def test_postscript_is_no_image(tmp_path):
    Image.new("RGB", (40, 28)).save(tmp_path / "a.jpg", format="EPS")
    assert Image.open(tmp_path / "a.jpg").format == "EPS", "Pillow would give it to Ghostscript"
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode(tmp_path / "a.jpg")


def test_a_config_cannot_run_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f'SEED: !!python/object/apply:os.system ["touch {tmp_path}/ran"]')
    with pytest.raises(ValueError, match="evil.yaml: not a config.*python/object/apply"):
        load_cfg(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text, words", [
    ("_BASE_: {path}", "recursion"),
    ("_BASE_: nowhere.yaml", "its _BASE_ was not found: .*nowhere.yaml"),
    ("[1, 2]", "not a config"),
    ("SOLVER: {{MAX_ITER: null}}", "SOLVER.MAX_ITER must be a int, got nothing"),
    ("SOLVER: {{MAX_ITER: 0}}", "SOLVER.MAX_ITER must be at least 1, got 0"),
    ("SOLVER: {{BASE_LR: .nan}}", "SOLVER.BASE_LR must be at least 0, got nan"),
    ("DATASETS: {{TRAIN: [[a]]}}", "DATASETS.TRAIN must be names"),
    ("INPUT: {{MIN_SIZE_TRAIN: []}}", "INPUT.MIN_SIZE_TRAIN must be whole numbers of pixels"),
    ("MODEL: {{PIXEL_STD: [a, b, c]}}", "MODEL.PIXEL_STD must be a number for each channel"),
])  # fmt: skip
def test_a_config_that_cannot_be_used_is_named(tmp_path, text, words):
    path = tmp_path / "some.yaml"
    path.write_text(text.format(path=path))
    with pytest.raises((ValueError, OSError), match=f"(?is).*{words}"):
        load_cfg(str(path))


@pytest.mark.parametrize("words, message", [
    (["SOLVER", "{'BASE_LR': 1}"], "override SOLVER.*Type mismatch"),
    (["SOLVER", {"BASE_LR": 1}], "single keys, not a group of them: SOLVER"),
    (["SOLVER.BASE_LR.X", "1"], "SOLVER.BASE_LR.X"),
    (["SEED", "(" * 300], "override SEED"),
])  # fmt: skip
def test_overrides_that_cannot_be_used_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        load_cfg(None, words)


@pytest.mark.parametrize("content, words", [
    ([1, 2], "holds no weights by name"),
    ({"model": {}}, "holds no weights by name"),
    ({"model": {5: torch.zeros(1)}}, "'5' is no dense tensor"),
    ({"model": {"weight": "text", "bias": None}}, "'weight' is no dense tensor"),
    ({"model": {"weight": torch.zeros(2, 3).to_sparse(), "bias": torch.zeros(2)}}, "'weight' is no dense tensor"),
])  # fmt: skip
def test_a_file_that_torch_can_read_and_is_no_checkpoint_is_named(tmp_path, content, words):
    path = tmp_path / "some.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"some.pth: not a checkpoint: .*{words}"):
        Checkpointer(nn.Linear(3, 2)).load(str(path))


def test_a_state_of_another_kind_is_named(tmp_path):
    model = nn.Linear(3, 2)
    path = tmp_path / "some.pth"
    torch.save({"model": model.state_dict(), "optimizer": 7}, path)
    with pytest.raises(ValueError, match="some.pth: does not fit this run"):
        Checkpointer(model, optimizer=torch.optim.SGD(model.parameters(), lr=1)).load(str(path))


@pytest.mark.parametrize("line", [
    '{"ID": "1", "gtboxes": 5}',
    '{"ID": [1], "gtboxes": []}',
    '{"ID": 1, "gtboxes": [5]}',
    '{"ID": 1, "gtboxes": [{"tag": "person", "extra": 3, "vbox": ["1", "2", "3", "4"]}]}',
    "[" * 100_000,
])  # fmt: skip
def test_crowd_human_lines_of_another_shape(tmp_path, line):
    Image.new("RGB", (24, 16)).save(tmp_path / "1.jpg")
    good = '{"ID": "1", "gtboxes": [{"tag": "person", "vbox": [1, 2, 9, 8]}]}'
    (tmp_path / "list.odgt").write_text(f"{line}\n{good}\n")
    records = read_crowd_human(tmp_path / "list.odgt", tmp_path)
    assert [one["bbox"] for record in records for one in record["annotations"]] == [[1, 2, 10, 10]]


def test_a_negative_number_of_faces_is_not_read_for_ever(tmp_path):
    (tmp_path / "list.txt").write_text("1.jpg\n-2\n")
    with pytest.raises(ValueError, match="list.txt: bad entry of '1.jpg' at line 1"):
        parse_wider_face(tmp_path / "list.txt")
