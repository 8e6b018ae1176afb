"""1,350 malformed jsons, other lists, images, configs and checkpoints: all end as documented.

Larger numbers: ``python -m benchmarks.malformed``. What runs code if it may, and KEY VALUE pairs, are tried here alone.
"""

import faulthandler
import multiprocessing
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks.malformed.__main__ import main, run_case, run_cases
from benchmarks.malformed.inputs import QUICKSTART, VALUES, Case
from d2x.checkpoint.files import Checkpointer
from d2x.config.keys import flat_items, get_base_cfg
from d2x.config.load import load_cfg
from d2x.data.images import decode
from d2x.data.mapper import make_test_mapper, make_train_mapper
from d2x.data.prepare import prepare_data
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.wider_face import parse_wider_face
from d2x.engine.trainer import Trainer
from d2x.errors import LONGEST, one_line

# kind -> (cases, ways to end of which each must be seen at least ten times)
KINDS = {
    "json": (320, ("accepted", "skipped", "refused")),
    "list": (150, ("accepted", "refused")),
    "image": (400, ("accepted", "skipped")),
    "config": (160, ("refused",)),
    "checkpoint": (320, ("refused",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_malformed_input_ends_as_documented(kind, tmp_path):
    cases, expected = KINDS[kind]
    counts = run_cases(kind, cases, 0, tmp_path)
    assert sum(counts.values()) == cases
    for ended in expected:
        assert sum(n for (_, end), n in counts.items() if end == ended) >= 10, f"hardly any case was {ended}: {counts}"


def test_there_are_a_thousand():
    assert sum(count for count, _ in KINDS.values()) >= 1000


CASE = Case("test", "data.json", b"{}", "data.json")


def _wrong_kind(case, path):
    raise TypeError("a bug")


def _other_file(case, path):
    raise ValueError("some file is wrong")


def _broken_rule(case, path):
    raise AssertionError("a bad box went through")


def _changed(case, path):
    path.write_bytes(b"{ }")
    return "accepted"


@pytest.mark.parametrize("use, words", [
    (_wrong_kind, "no user error.*a bug"),
    (_other_file, "no user error that names 'data.json'"),
    (_broken_rule, "a bad box went through"),
    (_changed, "the input was changed"),
])  # fmt: skip
def test_the_harness_sees_a_failure(use, words, tmp_path):
    with pytest.raises(AssertionError, match=words):
        run_case(CASE, use, tmp_path / "case")


def test_the_harness_accepts_a_clear_refusal(tmp_path):
    def refuse(case, path):
        raise ValueError("data.json: line 3 is wrong")

    assert run_case(CASE, refuse, tmp_path / "case") == "refused"


def _endless(case, path):
    while True:
        pass


def test_a_hang_ends_the_program_with_a_traceback(tmp_path, monkeypatch, capfd):
    later = faulthandler.dump_traceback_later
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **options: later(0.3, **options))
    process = multiprocessing.get_context("fork").Process(target=run_case, args=(CASE, _endless, tmp_path / "case"))
    process.start()
    process.join(60)
    assert process.exitcode == 1 and "in _endless" in capfd.readouterr().err


def test_a_seed_always_makes_the_same_cases(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        run_cases("image", 15, 5, tmp_path / run)
    one, other = ([path.read_bytes() for path in sorted((tmp_path / run).glob("*/image*"))] for run in ("a", "b"))
    assert len(one) == 15 and one == other


def test_as_a_command(capsys):
    before = os.environ.get("D2X_CACHE")
    main(["--kind", "image", "--cases", "12"])
    assert os.environ.get("D2X_CACHE") == before
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert sum(int(row[3]) for row in rows) == 12 and {row[1].strip() for row in rows} == {"image"}


# What a run of the quick start reads, and words that are no key.
READ = ("DATASETS.", "DATALOADER.", "INPUT.", "SOLVER.", "MODEL.CENTERNET.", "MODEL.BACKBONE.", "SEED", "VERSION")
KEYS = [key for key, _ in flat_items(load_cfg(str(QUICKSTART))) if key.startswith(READ)]
KEYS += ["--resume", "SOLVER", "SOLVER.BASE_LR.X", "X.Y", "", ".", "_BASE_", "SOLVER..BASE_LR"]
TEXTS = ["(" * 10, "[1,", "{'a': 1}", "None", "()", "('x',)", "1e999", "-1", "0", "nan", "True", "''"]
PAIRS = st.tuples(st.sampled_from(KEYS) | st.text(), st.sampled_from(TEXTS) | VALUES.map(repr))


@given(st.lists(PAIRS, min_size=1, max_size=2), st.sampled_from((0, 0, 0, 1)))
@settings(max_examples=160, deadline=None)
def test_any_overrides_end_in_a_model_or_in_one_line(pairs, left_out):
    words = sum(pairs, ())
    try:
        cfg = prepare_data(load_cfg(str(QUICKSTART), words[left_out:]))
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = Trainer.build_model(cfg)
        Trainer.build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))
    except Exception as error:
        message = one_line(error)
        assert message is not None and "\n" not in message and len(message) <= LONGEST + 4, words
        if "KEY VALUE pairs" not in message and "unknown config key" not in message:
            assert any(str(word).split(".")[-1] in message for word in words), (words, message)


class _Runs:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _zipped(content, path):
    torch.save(content, path)


def _unzipped(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _pickled(protocol):
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl", ".pyth", "", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("save", [_zipped, _unzipped, *map(_pickled, (0, 2, 4))],
                         ids=["zip", "no zip", "pickle 0", "pickle 2", "pickle 4"])  # fmt: skip
def test_a_checkpoint_cannot_run_code(suffix, save, tmp_path):
    path, ran = tmp_path / f"evil{suffix}", tmp_path / "ran"
    touch = f"open({str(ran)!r}, 'w').close()"
    payloads = [_Runs(os.system, f"touch {ran}"), _Runs(eval, touch), _Runs(exec, touch), _Runs(ran.touch),
                _Runs(subprocess.check_output, ["touch", str(ran)]), _Runs(open, str(ran), "w"),
                _Runs(os.mkdir, str(ran)), _Runs(pickle.loads, pickle.dumps(_Runs(exec, touch)))]  # fmt: skip
    for payload in payloads:
        for content in (payload, {"model": payload}, {"model": {"weight": payload}}, [payload]):
            save(content, path)
            with pytest.raises(ValueError, match=path.name):
                Checkpointer(nn.Linear(3, 2)).load(str(path))
            assert not ran.exists(), payload.call


def test_a_pickle_written_by_hand_cannot_run_code(tmp_path):
    (tmp_path / "evil.pth").write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
    with pytest.raises(ValueError, match="evil.pth"):
        Checkpointer(nn.Linear(3, 2)).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_long_message_is_cut():
    assert one_line(ValueError("a.json: " + "x" * 5000)) == "a.json: " + "x" * (LONGEST - 8) + " ..."


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


@pytest.mark.parametrize("key", ["", "SEED: ", "SOLVER: "])
@pytest.mark.parametrize("code", [
    'object/apply:os.system ["touch {ran}"]',
    "object/apply:eval [\"open('{ran}', 'w')\"]",
    'object/new:subprocess.Popen [["touch", "{ran}"]]',
    'object/apply:pathlib.Path ["{ran}"]',
    "name:os.system",
])  # fmt: skip
def test_a_config_cannot_run_code(key, code, tmp_path):
    path, ran = tmp_path / "evil.yaml", tmp_path / "ran"
    path.write_text(f"{key}!!python/{code.format(ran=ran)}")
    with pytest.raises(ValueError, match="evil.yaml: not a config.*python/(object|name)"):
        load_cfg(str(path))
    assert not ran.exists()


@pytest.mark.parametrize("text, words", [
    ("_BASE_: {path}", "recursion"),
    ("_BASE_: nowhere.yaml", "its _BASE_ was not found: .*nowhere.yaml"),
    ("_BASE_: /", "some.yaml"),
    ("_BASE_: 5", "some.yaml"),
    ("_BASE_: [[1]]", "some.yaml"),
    ("_BASE_:", "some.yaml"),
    ("_BASE_: [some.yaml, some.yaml]", "recursion"),
    ("SEED:\n- &a [x, x]\n- &b [*a, *a, *a, *a]\n- &c [*b, *b, *b, *b]\n- [*c, *c, *c, *c]", "SEED|some.yaml"),
    ("{{{{{{", "some.yaml"),
    ("[1, 2]", "not a config"),
    ("5", "some.yaml"),
    ("VERSION: 99", "some.yaml"),
    ("VERSION: x", "some.yaml"),
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
