"""Checkpoints: atomic, safe, and refused when they are not this model's."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from d2x.engine.checkpoint import Checkpointer, atomic_write, read_checkpoint


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


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "nothing.pth"))


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(str(path)) as file:
        file.write(b"half of the new")
        raise RuntimeError("killed")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data"]
