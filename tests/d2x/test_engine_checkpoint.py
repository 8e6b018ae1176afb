"""Checkpoints: atomic, safe, and refused when they are not this model's."""

import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from d2x.atomic_files import WriteError, atomic_write, remove_leftovers, require_writable
from d2x.checkpoint.files import Checkpointer, CheckpointError, DamagedCheckpoint, read_checkpoint


class _RunsCode:
    def __reduce__(self):
        return os.system, ("true",)


def test_round_trip_and_last_checkpoint(tmp_path):
    model = nn.Linear(2, 3)
    Checkpointer(model, str(tmp_path)).save("model_0001", iteration=1)
    other = nn.Linear(2, 3)
    extra = Checkpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(other.weight, model.weight)
    assert extra["iteration"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0001.pth"]


def test_safetensors_weights_are_read(tmp_path):
    model = nn.Linear(2, 3)
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    other = nn.Linear(2, 3)
    Checkpointer(other).load(str(tmp_path / "w.safetensors"))
    assert torch.equal(other.weight, model.weight)


def test_pickled_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": _RunsCode()}))
    with pytest.raises(ValueError, match="evil.pth: (refused|not a readable)"):
        read_checkpoint(str(path))


def test_torch_file_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": _RunsCode()}, path)
    with pytest.raises(ValueError, match="evil.pth: refused, it holds pickled code"):
        read_checkpoint(str(path))


def test_truncated_file_is_one_clear_line(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"model": nn.Linear(64, 64).state_dict()}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="half.pth: not a readable checkpoint"):
        read_checkpoint(str(path))


def test_other_architecture_is_refused(tmp_path):
    torch.save({"model": nn.Conv2d(3, 4, 3).state_dict() | {"x": torch.zeros(1)}}, tmp_path / "conv.pth")
    with pytest.raises(ValueError, match="conv.pth: checkpoint of another architecture: only 0 of 2"):
        Checkpointer(nn.Sequential(nn.Linear(2, 3))).load(str(tmp_path / "conv.pth"))


def test_class_count_mismatch_names_the_tensor(tmp_path):
    body, heads = nn.Linear(2, 2), (nn.Linear(2, 5, bias=False), nn.Linear(2, 4, bias=False))
    torch.save({"model": nn.Sequential(body, heads[0]).state_dict()}, tmp_path / "five.pth")
    expected = r"five.pth: class count mismatch.*1.weight is \(5, 2\).*\(4, 2\) in the model"
    with pytest.raises(ValueError, match=expected):
        Checkpointer(nn.Sequential(body, heads[1])).load(str(tmp_path / "five.pth"))


@pytest.mark.parametrize("value", [True, 1, "False"])
def test_a_file_cannot_switch_the_check_of_its_tensors_off(value, tmp_path, caplog):
    path = tmp_path / "other.pth"
    torch.save({"model": {"a.weight": torch.zeros(9)}, "matching_heuristics": value, "__author__": "Caffe2"}, path)
    checkpointer = Checkpointer(nn.Linear(2, 3))
    with pytest.raises(CheckpointError, match="other.pth: checkpoint of another architecture: only 0 of 2"):
        checkpointer.load(str(path))
    assert "other.pth: its key matching_heuristics is not followed" in caplog.text
    # detectron2 would find "weight" by its end; here a name is the model's or is not
    torch.save({"model": {"weight": torch.ones(3, 2), "x.bias": torch.ones(3)}, "matching_heuristics": value}, path)
    checkpointer.load(str(path))
    assert checkpointer.model.weight.eq(1).all() and not checkpointer.model.bias.eq(1).any()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "nothing.pth"))


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError("killed")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data"]


@pytest.fixture
def three(tmp_path):
    """A folder with three checkpoints; the bias of each is its iteration."""
    model = nn.Linear(2, 1)
    for iteration in (1, 2, 3):
        nn.init.constant_(model.bias, iteration)
        Checkpointer(model, str(tmp_path)).save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder) -> int:
    model = nn.Linear(2, 1)
    extra = Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    assert model.bias.item() == extra["iteration"]
    return extra["iteration"]


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((1,), 3.0).numpy().tobytes())] ^= 1  # in the bias
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def clear(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_bit, cut, clear, os.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_both(damage, three, caplog):
    damage(three / "model_0000003.pth")
    assert resumed(three) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{three}/model_0000003.pth: " in warning and f"going on from {three}/model_0000002.pth" in warning


def test_every_bit_counts(three):
    path = three / "model_0000003.pth"
    whole = path.read_bytes()
    weights = whole.index(torch.full((1,), 3.0).numpy().tobytes())  # the bias
    for position in (weights, weights + 3):
        content = bytearray(whole)
        content[position] ^= 1
        path.write_bytes(content)
        assert torch.load(path, weights_only=True), "torch itself does not notice"
        with pytest.raises(DamagedCheckpoint, match="checksum"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("content", ["", "model_0000009.pth"])
def test_a_pointer_to_nothing_or_none_at_all(content, three):
    (three / "last_checkpoint").write_text(content)
    assert resumed(three) == 3
    os.unlink(three / "last_checkpoint")
    assert resumed(three) == 3


def test_a_final_checkpoint_of_a_shorter_training_is_as_old_as_it_is(three, caplog):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.bias, 1)
    Checkpointer(model, str(three)).save("model_final", iteration=1)  # it was continued to 3 afterwards
    os.unlink(three / "model_0000001.pth")
    (three / "last_checkpoint").write_text("model_0000003.pth")
    cut(three / "model_0000003.pth")
    assert resumed(three) == 2 and "going on from" in caplog.text
    os.unlink(three / "last_checkpoint")
    os.unlink(three / "model_0000003.pth")
    assert resumed(three) == 2
    clear(three / "model_0000002.pth")
    assert resumed(three) == 1
    clear(three / "model_final.pth")
    with pytest.raises(DamagedCheckpoint):
        resumed(three)


def test_no_whole_checkpoint_is_no_silent_start_from_nothing(three):
    for path in three.glob("*.pth"):
        clear(path)
    with pytest.raises(DamagedCheckpoint, match="no checkpoint in .* is whole .*model_0000003.pth.*model_0000001.pth"):
        resumed(three)


def test_code_in_the_newest_checkpoint_is_refused_not_passed_over(three):
    torch.save({"model": _RunsCode()}, three / "model_0000003.pth")
    with pytest.raises(CheckpointError, match="model_0000003.pth: refused, it holds pickled code"):
        resumed(three)


def test_pickles_of_detectron2_are_refused(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": _RunsCode(), "__author__": "x"}))
    with pytest.raises(CheckpointError, match="R-50.pkl: refused.*--trust-pickle"):
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "R-50.pkl"))


def test_weights_alone_do_not_become_the_last_checkpoint(three):
    checkpointer = Checkpointer(nn.Linear(2, 1), str(three))
    for name in ("model_best.pth", "model_best.safetensors"):
        path = checkpointer.save_weights(name, iteration=5)
        other = nn.Linear(2, 1)
        Checkpointer(other).load(path)
        assert torch.equal(other.weight, checkpointer.model.weight)
    assert resumed(three) == 3


class _Full:
    """Something whose state dict cannot be written: ``write`` fails half-way."""

    def state_dict(self):
        return {"x": torch.zeros(100_000)}


def test_a_full_disk_leaves_what_was_there(three):
    before = {path.name: path.read_bytes() for path in three.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*model_0000003.pth: File too large"):
            Checkpointer(nn.Linear(2, 1), str(three), full=_Full()).save("model_0000003")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in three.iterdir()} == before


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    checkpointer = Checkpointer(nn.Linear(2, 1), str(tmp_path / "gone"))
    with pytest.raises(WriteError, match="cannot write .*gone/model_0000001.pth: No such file or directory"):
        checkpointer.save("model_0000001")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in ("model_1.pth.77.tmp", "last_checkpoint.8.tmp", "mine.tmp", "model_1.pth"):
        (tmp_path / name).write_text("x")
    assert remove_leftovers(str(tmp_path)) == ["last_checkpoint.8.tmp", "model_1.pth.77.tmp"]
    assert sorted(os.listdir(tmp_path)) == ["mine.tmp", "model_1.pth"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(WriteError, match="cannot make the folder .*out/run: Not a directory"):
        require_writable(str(tmp_path / "out" / "run"))
    require_writable(str(tmp_path / "new"))
    assert os.listdir(tmp_path / "new") == []
