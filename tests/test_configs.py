"""Every config loads over its bases and builds its model; every key of ours is read somewhere."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch.overrides import TorchFunctionMode

import centerx  # noqa: F401
import plain_detr  # noqa: F401
from d2x.config.keys import flat_items, get_base_cfg
from d2x.config.load import load_cfg
from d2x.config.unread import READ_ELSEWHERE, unread_settings, watched
from d2x.data.prepare import prepare_data
from d2x.detectors import get_recipe
from d2x.engine.losses.build import build_loss_transforms
from d2x.engine.optim import build_optimizer
from d2x.engine.schedules import build_lr_scheduler, epochs_to_iterations

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in ROOT.glob("projects/*/configs/**/*.yaml") if not path.name.startswith("Base-"))

# What only a trainer with its data reads, for any detector.
READ_BY_THE_TRAINER = (
    "CHECKPOINT.*",
    "DATALOADER.*",
    "DISTILL.WARM_START",
    "HEALTH.*",
    "MODEL.BACKBONE.WEIGHTS",
    "MODEL.SYNC_BATCH_NORM",
    "SOLVER.AMP.*",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.UNIT",
    "WEIGHT_AVERAGING.*",
)


class RatesOnCpu(TorchFunctionMode):
    """``linspace`` makes values even below ``torch.device("meta")``: detectron2's backbones read drop rates from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **{**(kwargs or {}), **({"device": "cpu"} if function is torch.linspace else {})})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_config_builds_model_and_optimizer(path):
    cfg = watched(prepare_data(load_cfg(str(path), ["MODEL.DEVICE", "meta"])))
    cfg = epochs_to_iterations(cfg, num_images=10000)
    with torch.device("meta"), RatesOnCpu():
        model = build_model(cfg)
    recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
    optimizer = build_optimizer(cfg, recipe.param_groups(cfg, model))
    optimised = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert optimised == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER
    build_lr_scheduler(cfg, optimizer)
    build_loss_transforms(cfg, model)
    recipe.train_augmentations(cfg), recipe.test_augmentations(cfg)
    assert unread_settings(cfg, (*READ_ELSEWHERE, *READ_BY_THE_TRAINER)) == {}


def test_every_key_of_ours_is_read():
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for package in ("centerx", "plain_detr", "d2x")
        for path in (ROOT / package).rglob("*.py")
        if not path.name.endswith("config.py")
    )
    ours = {key for key, _ in flat_items(get_base_cfg())} - {key for key, _ in flat_items(get_cfg())}
    # In lower case: nodes of backbones and modulations are handed to constructors as arguments of these names.
    names = {key: key.rpartition(".")[2] for key in ours}
    unread = [key for key, name in names.items() if not re.search(rf"\b({name}|{name.lower()})\b", source)]
    assert unread == []


def test_wrong_key_in_a_file_names_file_key_and_nearest(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("SOLVER:\n  MAX_ITERS: 5\n")
    message = r"typo.yaml: unknown config key 'SOLVER.MAX_ITERS'; did you mean SOLVER.MAX_ITER"
    with pytest.raises(ValueError, match=message):
        load_cfg(str(path))


def test_wrong_override_names_key_and_nearest():
    with pytest.raises(ValueError, match="unknown config key 'SOLVER.BASE_LRR'; did you mean SOLVER.BASE_LR"):
        load_cfg(None, ["SOLVER.BASE_LRR", "1"])


def test_missing_config_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_cfg("nowhere.yaml")


def test_unknown_data_set_suggests_one():
    cfg = load_cfg(str(CONFIGS[0]), ["DATASETS.TRAIN", "('shapes_trein',)"])
    with pytest.raises(ValueError, match="unknown data set 'shapes_trein'; did you mean shapes_train"):
        prepare_data(cfg)
