import argparse
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plain_detr.checkpoint_keys import COCO_IDS
from tests.parity.golden import COMMITTED
from tools.convert_checkpoint import convert, main


def released_centerx() -> dict[str, torch.Tensor]:
    """Every released name of the smallest full-size model, with small tensors in place of its own."""
    models = json.loads((COMMITTED / "centerx" / "checkpoint_keys.json").read_text())["models"]
    names = models["resnet18_modulated_deform"]["tensors"]
    return {name: torch.full((1,), float(number)) for number, name in enumerate(names)}


def released_plain_detr(heads: int = 3, outputs: int = 91) -> dict[str, torch.Tensor]:
    state = {"transformer.level_embed": torch.rand(1, 8)}
    for number in range(heads):
        for prefix in ("", "transformer.decoder."):
            state[f"{prefix}class_embed.{number}.weight"] = torch.arange(outputs * 8.0).view(outputs, 8)
            state[f"{prefix}class_embed.{number}.bias"] = torch.arange(float(outputs))
    return state


@pytest.fixture
def paths(tmp_path):
    return str(tmp_path / "in.pth"), str(tmp_path / "out.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_centerx_there_and_back(suffix, tmp_path, capsys):
    source, ours, back = (str(tmp_path / f"{name}{suffix}") for name in ("source", "ours", "back"))
    state = released_centerx()
    if suffix == ".pth":
        torch.save({"model": state, "iteration": 7, "optimizer": {}}, source)
    else:
        save_file(state, source)
    assert main(["--model", "centerx", source, ours]) == 0
    assert "177 tensors: 177 renamed, 0 of the same name" in capsys.readouterr().out
    assert main(["--model", "centerx", "--reverse", ours, back]) == 0
    restored = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)["model"]
    assert restored == state


def test_unmatched_names_are_listed_and_nothing_is_written(paths, capsys):
    torch.save({"model": {**released_centerx(), "head.mask_head.weight": torch.ones(1)}}, paths[0])
    assert main(["--model", "centerx", *paths]) == 1
    assert "1 unmatched:\n  head.mask_head.weight" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        torch.load(paths[1])
    assert main(["--model", "centerx", "--allow-unmatched", *paths]) == 0
    assert len(torch.load(paths[1], weights_only=True)["model"]) == 177


def test_names_of_a_parallel_wrapper(paths):
    torch.save({"model": {f"module.{name}": value for name, value in released_centerx().items()}}, paths[0])
    assert main(["--model", "centerx", *paths]) == 0


def test_released_class_heads_become_the_80_classes_and_back(tmp_path):
    source, ours, back = (str(tmp_path / f"{name}.pth") for name in ("source", "ours", "back"))
    # as released: with the command line of the training
    torch.save({"model": released_plain_detr(), "args": argparse.Namespace(lr=1e-4), "epoch": 11}, source)
    assert main(["--model", "plain_detr", source, ours]) == 0
    state = torch.load(ours, weights_only=True)["model"]
    assert state["decoder.heads.1.class_logits.bias"].tolist() == COCO_IDS
    assert state["proposals.head.class_logits.bias"].tolist() == list(range(80))
    assert main(["--model", "plain_detr", "--reverse", ours, back]) == 0
    restored = torch.load(back, weights_only=True)["model"]
    assert set(restored) == set(released_plain_detr())
    assert restored["class_embed.1.bias"][COCO_IDS].tolist() == COCO_IDS
    assert restored["class_embed.1.bias"].shape == (91,)


@pytest.mark.parametrize("outputs, options", [(91, ["--keep-outputs"]), (366, [])])
def test_class_heads_that_stay(outputs, options, paths):
    torch.save({"model": released_plain_detr(outputs=outputs)}, paths[0])
    assert main(["--model", "plain_detr", *options, *paths]) == 0
    state = torch.load(paths[1], weights_only=True)["model"]
    assert state["decoder.heads.0.class_logits.bias"].shape == (outputs,)


def test_shared_heads_can_be_written_as_safetensors(tmp_path):
    ours = convert("plain_detr", released_plain_detr()).state
    source, back = str(tmp_path / "ours.pth"), str(tmp_path / "back.safetensors")
    torch.save({"model": ours}, source)
    assert main(["--model", "plain_detr", "--reverse", source, back]) == 0
    state = load_file(back)
    assert torch.equal(state["class_embed.0.weight"], state["transformer.decoder.class_embed.0.weight"])


@pytest.mark.parametrize(
    "model, released, left",
    [("centerx", released_centerx, "head.heatmap.out.weight"), ("plain_detr", released_plain_detr, "class_logits")],
)
def test_class_layers_can_be_left_out(model, released, left, paths):
    torch.save({"model": convert(model, released()).state}, paths[0])
    assert main(["--model", model, "--drop-classes", *paths]) == 0
    state = torch.load(paths[1], weights_only=True)["model"]
    assert state and not any(left in name for name in state)


def test_code_in_a_pickle_is_refused_unless_trusted(paths):
    torch.save({"model": released_centerx(), "extra": pytest.approx(1)}, paths[0])
    with pytest.raises(ValueError, match="in.pth: refused.*--trust-pickle"):
        main(["--model", "centerx", *paths])
    assert main(["--model", "centerx", "--trust-pickle", *paths]) == 0


def test_an_existing_output_is_kept(paths):
    torch.save({"model": released_centerx()}, paths[0])
    torch.save({"precious": 1}, paths[1])
    with pytest.raises(ValueError, match="out.pth exists"):
        main(["--model", "centerx", *paths])
    assert torch.load(paths[1]) == {"precious": 1}
    assert main(["--model", "centerx", "--force", *paths]) == 0


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"blocks.0.weight": torch.ones(1)}}, "no name in it is a released checkpoint's"),
        ({"epoch": 3}, "no tensors in this file; it holds epoch"),
        ([1, 2], "holds a list"),
    ],
)
def test_files_of_other_things_are_named(content, message, paths):
    torch.save(content, paths[0])
    with pytest.raises(ValueError, match=message):
        main(["--model", "centerx", *paths])


def test_missing_and_damaged_files_are_named(paths):
    with pytest.raises(FileNotFoundError, match="checkpoint not found: .*in.pth"):
        main(["--model", "centerx", *paths])
    with open(paths[0], "wb") as file:
        file.write(b"PK\x03\x04 not a zip")
    for options in ([], ["--trust-pickle"]):
        with pytest.raises(ValueError, match="in.pth"):
            main(["--model", "centerx", *options, *paths])


def test_a_trusted_pickle_of_arrays_becomes_safetensors(tmp_path):
    source, output = str(tmp_path / "zoo.pkl"), str(tmp_path / "zoo.safetensors")
    with open(source, "wb") as file:
        pickle.dump({"model": {"stem.weight": np.arange(3.0)}, "__author__": "somebody"}, file)
    with pytest.raises(ValueError, match="zoo.pkl"):
        main(["--model", "any", source, output])
    assert main(["--model", "any", "--trust-pickle", source, output]) == 0
    assert load_file(output)["stem.weight"].tolist() == [0, 1, 2]


def test_drop_classes_needs_a_detector(paths):
    torch.save({"model": released_centerx()}, paths[0])
    with pytest.raises(ValueError, match="--drop-classes needs"):
        main(["--model", "any", "--drop-classes", *paths])
