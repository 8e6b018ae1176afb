"""A folded copy gives what the model gives."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import centerx  # noqa: F401  (registers the model)
from d2x.config.load import load_cfg
from d2x.inference.fold import fold_for_inference, for_inference
from d2x.inference.predictor import Predictor


@pytest.fixture
def model():
    words = ["MODEL.DEVICE", "cpu", "MODEL.CENTERNET.NUM_CLASSES", "3"]
    made = build_model(load_cfg("projects/CenterX/configs/quickstart.yaml", words))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.2)
    return made.eval()


def test_the_same_detections_from_fewer_layers(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_for_inference(model)
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in one.modules()) for one in (model, folded)]
    assert norms == [24, 3]  # those after an interpolation stay
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    with torch.no_grad():
        (one,), (other,) = (net([{"image": image}]) for net in (model, folded))
        maps = [
            net.predict(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
            for net in (model, folded)
        ]
    torch.testing.assert_close(other["instances"].scores, one["instances"].scores, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(*maps):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # a copy was folded


def test_a_config_key_folds_the_predictor(model, tmp_path):
    words = ["MODEL.DEVICE", "cpu", "MODEL.CENTERNET.NUM_CLASSES", "3", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    cfg = load_cfg("projects/CenterX/configs/quickstart.yaml", words)
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    plain = Predictor(cfg)
    cfg.TEST.FOLD = True
    folded = Predictor(cfg)
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in one.model.modules()) for one in (plain, folded)]
    assert norms == [24, 3]
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    one, other = (predictor(image).pred_boxes.tensor for predictor in (plain, folded))
    assert len(one) == len(other) > 0
    # boxes of nearly equal scores may change places
    nearest = torch.cdist(one, other).amin(1)
    assert (nearest < 1e-2).float().mean() > 0.97


def test_a_model_without_backbone_is_named():
    cfg = load_cfg("projects/CenterX/configs/quickstart.yaml", ["TEST.FOLD", "True"])
    with pytest.raises(ValueError, match="TEST.FOLD: CenterNet has no backbone"):
        for_inference(cfg, nn.Linear(2, 2))


def test_refused_in_training(model):
    with pytest.raises(ValueError, match="model.eval"):
        fold_for_inference(model.train())
