"""Every backbone under both detectors: a training step, an evaluation, and detections that no other image changes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import centerx  # noqa: F401
import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from d2x.detectors import get_recipe
from d2x.engine.optim import build_optimizer
from tests.plain_detr.test_backbones import BACKBONES as COMMON
from tests.plain_detr.test_backbones import SWIN_V1, SWIN_V2

TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
REGNET = ["MODEL.BACKBONE.NAME", "build_torchvision_regnet_backbone", "MODEL.TORCHVISION.REGNET"]
ALL_STAGES = ["p2", "p3", "p4", "p5"]
# name -> (config, the output that Plain-DETR takes, the coarsest stride)
BACKBONES = {
    **{name: backbone for name, backbone in COMMON.items() if name != "r50"},
    "r18": ([*COMMON["r50"][0], "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64], "res5", 32),
    "torchvision_regnet_x": ([*REGNET, "x_200mf"], "res5", 32),
    "torchvision_regnet_y": ([*REGNET, "y_200mf", "MODEL.TORCHVISION.OUT_FEATURES", ["res4"]], "res4", 16),
    "timm_regnet": ([*TIMM, "regnetx_002"], "res5", 32),
    "timm_mobilenet": ([*TIMM, "mobilenetv2_035"], "res5", 32),
    "timm_convnext": ([*TIMM, "test_convnext"], "res5", 32),
    "timm_vit_features": ([*TIMM, "test_vit", "MODEL.TIMM.OUT_INDICES", [-1]], "res4", 16),
    "swin_v2_all_stages": ([*SWIN_V2, "MODEL.SWIN_V2.OUT_FEATURES", ALL_STAGES], "p5", 32),
    "swin_v1_all_stages": ([*SWIN_V1, "MODEL.SWIN_V1.OUT_FEATURES", ALL_STAGES], "p4", 32),
}
PLAIN_DETR = {"HIDDEN_DIM": 32, "NUM_HEADS": 2, "NUM_CLASSES": 2, "DECODER_LAYERS": 1, "FEEDFORWARD_DIM": 32}
PLAIN_DETR |= {"NUM_QUERIES": 4, "ONE_TO_MANY.QUERIES": 0}
CENTERNET = {"NUM_CLASSES": 2, "HEAD_CHANNELS": 8, "NECK.CHANNELS": [16, 16, 16], "NECK.CONV": "plain"}
CENTERNET |= {"INFERENCE.CLIP_BOXES": False}  # or an untrained head's boxes, many of them empty, would be dropped
# Rows of pixels, columns: whole strides, none, and less than a stride.
SIZES = [(64, 96), (70, 50), (96, 64), (40, 25)]


def detector(meta_arch: str, name: str, *more):
    options, feature, _ = BACKBONES[name]
    head = (
        {"PLAIN_DETR": {**PLAIN_DETR, "IN_FEATURE": feature}} if meta_arch == "PlainDETR" else {"CENTERNET": CENTERNET}
    )
    flat = [
        item for node, keys in head.items() for key, value in keys.items() for item in (f"MODEL.{node}.{key}", value)
    ]
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", meta_arch, "SOLVER.OPTIMIZER", "AdamW"]
    cfg = load_cfg(None, [*fixed, *options, *flat, *more])
    return cfg, build_model(cfg)


def records(sizes, *, labelled: bool) -> list[dict]:
    batch = []
    for height, width in sizes:
        record = {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8)}
        if labelled:
            record["instances"] = Instances((height, width))
            record["instances"].gt_boxes = Boxes(torch.tensor([[3.0, 4.0, width - 3.0, height - 8.0]]))
            record["instances"].gt_classes = torch.tensor([1])
        batch.append(record)
    return batch


@pytest.mark.parametrize("meta_arch", ["CenterNet", "PlainDETR"])
@pytest.mark.parametrize("name", BACKBONES)
def test_trains_and_evaluates_independently_of_the_batch(name, meta_arch):
    cfg, model = detector(meta_arch, name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(cfg, get_recipe(meta_arch).param_groups(cfg, model))
    losses = model.train()(records(SIZES[:2], labelled=True))
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values()), losses
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("backbone.") for n in changed) or name.startswith(("timm_vit", "dinov3"))
    assert all(p.isfinite().all() for p in model.parameters())

    images = records(SIZES, labelled=False)
    model.eval()
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for one, other, (height, width) in zip(together, alone, SIZES):
        found, expected = one["instances"], other["instances"]
        assert found.image_size == (height, width)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
        # Equal scores may change places; the set of boxes may not change.
        torch.testing.assert_close(
            found.pred_boxes.tensor.sort(0).values, expected.pred_boxes.tensor.sort(0).values, rtol=1e-3, atol=1e-2
        )
        assert len(found) > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_the_neck_reaches_stride_4_from_any_backbone(name):
    _, model = detector("CenterNet", name)
    coarsest = BACKBONES[name][2]
    assert model.backbone.size_divisibility % coarsest == 0
    assert len(model.backbone.neck.stages) == {16: 2, 32: 3}[coarsest]
    padded = model.preprocess_image(records([(70, 50)], labelled=False)).tensor
    assert padded.shape[2] % coarsest == padded.shape[3] % coarsest == 0
    with torch.no_grad():
        (feature,) = model.eval().backbone(padded).values()
    assert feature.shape[2:] == (padded.shape[2] // 4, padded.shape[3] // 4)


def rates(cfg, model) -> dict[str, float]:
    groups = get_recipe(cfg.MODEL.META_ARCHITECTURE).param_groups(cfg, model)
    of = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    return {name: of[parameter] for name, parameter in model.named_parameters() if parameter in of}


@pytest.mark.parametrize(
    ("meta_arch", "backbone", "own"), [("CenterNet", "backbone.bottom_up.", 1.0), ("PlainDETR", "backbone.", 0.1)]
)
@pytest.mark.parametrize("factor", [None, 0.1, 0.25, 1.0, 0.0])
def test_backbone_rate(factor, meta_arch, backbone, own):
    settings = ["SOLVER.BASE_LR", 0.5, "SOLVER.BACKBONE_LR_FACTOR", factor]
    expected = 0.5 * (own if factor is None else factor)
    for name, rate in rates(*detector(meta_arch, "small_conv", *settings)).items():
        assert rate == pytest.approx(expected if name.startswith(backbone) else 0.5), name


@pytest.mark.parametrize(("meta_arch", "backbone"), [("CenterNet", "backbone.bottom_up."), ("PlainDETR", "backbone.")])
def test_layer_decay(meta_arch, backbone):
    """Swin V2 of 1 + 1 + 2 + 2 blocks; BACKBONE_LR_FACTOR is not used beside it."""
    settings = ["SOLVER.BASE_LR", 1.0, "SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_LR_FACTOR", 0.1]
    of = rates(*detector(meta_arch, "swin_v2", *settings))
    for name, depth in {
        "norm3.weight": 0,
        "layers.3.blocks.1.mlp.fc1.weight": 1,
        "layers.2.blocks.0.attn.proj.bias": 4,
        "layers.1.downsample.norm.weight": 5,
        "layers.0.blocks.0.norm1.weight": 6,
        "patch_embed.proj.weight": 7,
    }.items():
        assert of[backbone + name] == pytest.approx(0.5**depth), name
    assert {rate for name, rate in of.items() if not name.startswith(backbone)} == {1.0}


def test_layer_decay_counts_timms_stages():
    """ConvNeXt: stages are named stages_0 and so on, and what leads to a stage counts to it."""
    of = rates(*detector("CenterNet", "timm_convnext", "SOLVER.BASE_LR", 1.0, "SOLVER.LAYER_DECAY", 0.5))
    inside = {name.removeprefix("backbone.bottom_up.model."): rate for name, rate in of.items()}
    first = [inside[f"stages_{stage}.blocks.0.norm.weight"] for stage in range(4)]
    assert first == sorted(set(first)) and first[-1] < 1.0
    assert inside["stem_0.weight"] == first[0] / 2
    assert inside["stages_1.downsample.1.weight"] == first[1] / 2


def test_layer_decay_keeps_the_rates_and_decay_of_biases():
    settings = ["SOLVER.BASE_LR", 1.0, "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.25]
    cfg, model = detector("CenterNet", "swin_v2", *settings, "SOLVER.LAYER_DECAY", 0.5)
    groups = get_recipe("CenterNet").param_groups(cfg, model)
    of = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    block = model.backbone.bottom_up.layers[3].blocks[1]
    assert of[block.mlp.fc1.bias] == (1.0, 0.25)  # 2 for biases, 0.5 for the depth
    assert of[block.norm1.bias] == (0.5, 0.0)


@pytest.mark.parametrize("meta_arch", ["CenterNet", "PlainDETR"])
def test_layer_decay_needs_blocks(meta_arch):
    cfg, model = detector(meta_arch, "small_conv", "SOLVER.LAYER_DECAY", 0.5)
    with pytest.raises(ValueError, match="SOLVER.LAYER_DECAY: SmallResNet has no transformer blocks"):
        get_recipe(meta_arch).param_groups(cfg, model)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_optimizers_saved_before_still_fit(decay):
    """They number parameters through the groups: groups by the first of their parameters, these as in the model."""
    cfg, model = detector("PlainDETR", "swin_v2", "SOLVER.LAYER_DECAY", decay)
    place = {parameter: index for index, parameter in enumerate(model.parameters())}
    groups = build_optimizer(cfg, get_recipe("PlainDETR").param_groups(cfg, model)).param_groups
    order = [[place[parameter] for parameter in group["params"]] for group in groups]
    assert all(places == sorted(places) for places in order)
    assert order == sorted(order)
    assert len(order) == len({(group["lr"], group["weight_decay"]) for group in groups})
