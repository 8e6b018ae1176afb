"""The baselines give the values, and the gradients, of what they are measured against."""

import pytest
import torch
from detectron2.modeling import build_model

from benchmarks import data_loading
from benchmarks.baselines.attention import MaskedSelfAttention, MaterialisedCrossAttention
from benchmarks.baselines.detector import ReleasedPlainDETR, copy_parameters, shared_parameters
from benchmarks.baselines.matching import PerLayerCriterion
from benchmarks.baselines.swin import PlainStage
from benchmarks.baselines.targets import dense_focal_loss, loop_targets
from benchmarks.random_sets import random_sets
from centerx.heatmap_losses import heatmap_focal_loss
from centerx.targets import make_targets
from d2x.backbones.swin_v2 import SwinV2
from d2x.config.load import load_cfg
from d2x.engine.resume.seeding import Place, SeededDataset
from plain_detr.criterion import SetCriterion
from plain_detr.decoder_layer import CrossAttention, SelfAttention
from plain_detr.hybrid import QueryGroups, match_tasks
from plain_detr.matcher import HungarianMatcher
from plain_detr.modulation.box_rpb import BoxRPB
from tests.plain_detr.builders import random_record, randomise, tiny_config

RELEASED = {"VALID_AREA": "nearest", "KEEP_INVALID_PROPOSALS": True, "PADDING_LOGIT": -100.0, "RELEASED_PAIRING": True}


def compare(ours, plain, inputs, parameters, *, rtol=1e-4, atol=1e-5):
    """Outputs of both functions, and gradients of inputs and parameters under one random weighting."""
    runs = []
    for function in (ours, plain):
        leaves = [one.clone().requires_grad_() for one in inputs]
        for parameter in parameters:
            parameter.grad = None
        out = function(*leaves)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
        (out * weight).sum().backward()
        runs.append([out.detach(), *(leaf.grad for leaf in leaves), *(one.grad.clone() for one in parameters)])
    for one, other in zip(*runs):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("offsets", ["linear", "abs_log8"])
@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention(offsets, padded):
    ours = CrossAttention(
        hidden_dim=16,
        num_heads=2,
        box_rpb=BoxRPB(num_heads=2, hidden_dim=12, offsets=offsets),
        padding_value=-100.0,
    )
    randomise(ours)
    hw, stride = (3, 5), 16
    boxes = torch.rand(2, 6, 4) * 40 + 10
    padding = None
    if padded:
        padding = torch.zeros(2, *hw, dtype=torch.bool)
        padding[1, 2:] = padding[1, :, 3:] = True
        padding = padding.flatten(1)
    inputs = torch.randn(2, 6, 16), torch.randn(2, 15, 16), torch.randn(2, 15, 16)
    plain = MaterialisedCrossAttention(ours)
    compare(
        lambda *x: ours(*x, boxes, hw, stride, padding),
        lambda *x: plain(*x, boxes, hw, stride, padding),
        inputs,
        list(ours.parameters()),
    )


def test_data_loading(tmp_path):
    """The same sizes, boxes and classes; pixels to within one level for each of two resizes."""
    cfg = load_cfg(data_loading.CONFIG, ["DATASETS.TRAIN", "()", "INPUT.MIN_SIZE_TRAIN", "(90,110)"])
    cfg.INPUT.PLAIN_DETR.CROP_RESIZE, cfg.INPUT.PLAIN_DETR.CROP_SIZE = (100, 130), (80, 90)
    records = data_loading.make_images(tmp_path, 8, 160, 120)
    plain, fast = (SeededDataset(records, mapper, 3) for mapper in data_loading.mappers(cfg).values())
    shapes = set()
    for number in range(8):
        theirs, ours = plain[Place(number, number)], fast[Place(number, number)]
        assert ours["image"].shape == theirs["image"].shape
        assert (ours["image"].int() - theirs["image"].int()).abs().max() <= 2
        torch.testing.assert_close(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
        assert ours["instances"].gt_classes.tolist() == theirs["instances"].gt_classes.tolist()
        shapes.add(tuple(ours["image"].shape))
    assert len(shapes) > 3


def test_self_attention_between_groups():
    ours = SelfAttention(hidden_dim=16, num_heads=2)
    plain = MaskedSelfAttention(ours)
    inputs = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    compare(lambda *x: ours(*x, [3, 4]), lambda *x: plain(*x, [3, 4]), inputs, list(ours.parameters()))


@pytest.mark.parametrize("size", [(16, 16), (9, 21)])
def test_swin_stages(size):
    swin = SwinV2(
        embed_dim=8, depths=(3,), num_heads=(2,), window_size=4, pretrained_window_sizes=(6,), global_blocks=((2,),),
        out_features=("p2",), shift_mask_value=-100.0,
    )  # fmt: skip
    randomise(swin)
    ours = swin.layers[0]
    plain = PlainStage(ours)
    parameters = [one for name, one in ours.named_parameters() if "downsample" not in name]
    compare(lambda x: ours(x)[0], lambda x: plain(x)[0], [torch.randn(2, *size, 8)], parameters)


@pytest.mark.parametrize("coder", ["delta", "sigmoid"])
def test_matching_and_losses(coder):
    coder, layers, proposals, targets = random_sets(coder, queries=12, extra=20, layers=2, counts=(3, 0, 5))
    groups = QueryGroups(12, 20, 3)
    tasks = match_tasks(layers, proposals, groups)
    ours = SetCriterion(matcher=HungarianMatcher(coder=coder), coder=coder)
    mine, _ = ours(tasks, targets)
    plain, _ = PerLayerCriterion(ours)(tasks, targets)
    assert set(mine) == set(plain) and len(mine) == 3 * 5
    for name, value in plain.items():
        torch.testing.assert_close(mine[name], value, msg=lambda text, name=name: f"{name}: {text}")
    leaves = [part for layer in layers for part in (layer.logits, layer.raw)] + [proposals.logits, proposals.raw]
    gradients = [torch.autograd.grad(sum(one.values()), leaves, retain_graph=True) for one in (mine, plain)]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_targets_object_by_object():
    generator = torch.Generator().manual_seed(0)
    boxes, classes = [], []
    for count in (7, 0, 3):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 60.0])
        boxes.append(torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 60], dim=1))
        classes.append(torch.randint(0, 4, (count,), generator=generator))
    settings = {"num_classes": 4, "stride": 4, "grid_hw": (20, 30), "min_overlap": 0.3}
    sparse = make_targets(boxes, classes, **settings)
    ours = sparse._replace(heatmap=sparse.heatmap.dense())
    plain = loop_targets(boxes, classes, **settings, slots=7)
    assert (plain.heatmap == 1).sum() >= 8
    for name, one, other in zip(ours._fields, ours, plain):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    runs = []
    for loss, target in ((heatmap_focal_loss, sparse.heatmap), (dense_focal_loss, plain.heatmap)):
        logits = torch.randn(3, 4, 20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = loss(logits, target)
        value.backward()
        runs.append((value.detach(), logits.grad))
    for one, other in zip(*runs):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def pair():
    """Ours and the baseline on the same random parameters."""
    cfg = tiny_config(**RELEASED)
    cfg.MODEL.SWIN_V2.RELEASED_SHIFT_MASK = True
    ours = build_model(cfg)
    randomise(ours)
    plain = ReleasedPlainDETR(cfg)
    copy_parameters(ours, plain)
    return ours, plain


def test_whole_model_in_evaluation(pair):
    ours, plain = (model.eval() for model in pair)
    batch = [random_record(64, 96, 3, 0), random_record(50, 70, 2, 1)]
    with torch.no_grad():
        for mine, other in zip(ours(batch), plain(batch)):
            mine, other = mine["instances"], other["instances"]
            torch.testing.assert_close(mine.scores, other.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mine.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
            assert torch.equal(mine.pred_classes, other.pred_classes)


def test_whole_model_in_training(pair):
    ours, plain = (model.train() for model in pair)
    batch = [random_record(64, 96, 3, 0), random_record(50, 70, 2, 1)]
    losses = [model(batch) for model in (ours, plain)]
    assert set(losses[0]) == set(losses[1])
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value, rtol=1e-4, atol=1e-5)
    for one in losses:
        sum(one.values()).backward()
    for name, other, mine in shared_parameters(plain, ours):
        scale = float(other.grad.abs().max()) if other.grad is not None else 0.0
        if scale:
            torch.testing.assert_close(
                mine.grad,
                other.grad,
                rtol=1e-3,
                atol=1e-4 * scale + 1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )
