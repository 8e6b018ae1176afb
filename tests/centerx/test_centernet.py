"""The whole detector: input formats, batches, devices, reproducibility, options."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import centerx
from centerx.centernet import CenterNet
from centerx.predictions import CenterPredictions
from d2x.config.keys import get_base_cfg


def tiny_cfg(**changes):
    cfg = get_base_cfg()
    cfg.MODEL.META_ARCHITECTURE = "CenterNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_torchvision_resnet_backbone"
    cfg.MODEL.TORCHVISION.WIDTHS = [8, 8, 16, 16]
    cfg.MODEL.CENTERNET.NUM_CLASSES = 3
    cfg.MODEL.CENTERNET.HEAD_CHANNELS = 8
    cfg.MODEL.CENTERNET.NECK.CHANNELS = [16, 8, 8]
    cfg.MODEL.CENTERNET.NECK.CONV = "plain"
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


def image(height, width, boxes=(), classes=(), seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "instances": instances, **more}


BATCH = [
    image(60, 90, [[4, 4, 40, 30], [50, 10, 80, 55]], [0, 2]),
    image(96, 50, [[10, 20, 30, 90]], [1], seed=1),
    image(60, 90, seed=2),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = build_model(tiny_cfg())
    built.head.size.out.bias.data.fill_(3.0)  # an untrained head would predict empty boxes
    return built


def test_train_step_gives_losses_and_changes_no_input(model):
    model.train()
    batch = copy.deepcopy(BATCH)
    losses = model(batch)
    assert list(losses) == ["loss_cls", "loss_box_wh", "loss_off_reg"]
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())
    for ours, theirs in zip(batch, BATCH):
        assert ours.keys() == theirs.keys() and torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)


def test_batch_without_any_object_trains(model):
    model.train()
    losses = model([image(60, 90), image(33, 64)])
    sum(losses.values()).backward()
    assert losses["loss_box_wh"] == 0


def test_training_without_instances_says_so(model):
    model.train()
    with pytest.raises(ValueError, match="without instances"):
        model([{"image": BATCH[0]["image"]}])


@pytest.mark.parametrize("neck", ["plain", "modulated_deform", "separable"])
def test_train_step_is_bit_reproducible(neck):
    def run():
        torch.manual_seed(5)
        built = build_model(tiny_cfg(**{"MODEL.CENTERNET.NECK.CONV": neck}))
        optimizer = torch.optim.SGD(built.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            sum(built(copy.deepcopy(BATCH)).values()).backward()
            optimizer.step()
        return built.state_dict()

    first, second = run(), run()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_detections_do_not_depend_on_the_batch(model):
    model.eval()
    with torch.no_grad():
        together = model(BATCH)
        alone = [model([one])[0] for one in BATCH]
    for ours, theirs in zip(together, alone):
        ours, theirs = ours["instances"], theirs["instances"]
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_detections_are_in_the_original_image(model):
    model.eval()
    with torch.no_grad():
        (small,), (large,) = model([BATCH[0]]), model([{**BATCH[0], "height": 120, "width": 270}])
    small, large = small["instances"], large["instances"]
    assert small.image_size == (60, 90) and large.image_size == (120, 270)
    factor = torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * factor)
    assert (large.pred_boxes.tensor >= 0).all() and (large.pred_boxes.tensor <= torch.tensor([270, 120] * 2)).all()
    assert (small.scores.diff() <= 0).all() and small.pred_classes.dtype == torch.int64


def test_number_of_detections_and_least_score():
    torch.manual_seed(0)
    kept = build_model(tiny_cfg(**{"TEST.DETECTIONS_PER_IMAGE": 7, "MODEL.CENTERNET.INFERENCE.CLIP_BOXES": False}))
    with torch.no_grad():
        assert len(kept.eval()([BATCH[0]])[0]["instances"]) == 7
        kept.min_score = 0.99
        assert len(kept([BATCH[0]])[0]["instances"]) == 0


def peaks_at(model, cells, shape):
    heatmap = torch.full((1, 3, *shape), -20.0)
    for y, x in cells:
        heatmap[0, 0, y, x] = 3.0
    return CenterPredictions(heatmap, torch.full((1, 2, *shape), 2.0), torch.full((1, 2, *shape), 0.5))


def test_centres_in_padding_are_dropped(model):
    # an image of 60 x 90 in a batch padded to 64 x 96: cells from row 15 and column 23 on hold no pixel of it
    predictions = peaks_at(model, [(14, 22), (15, 4), (3, 23)], (16, 24))
    (found,) = model.detect(predictions, [(60, 90)])
    assert found.pred_boxes.tensor[found.scores > 0.5].tolist() == [[86.0, 54.0, 94.0, 62.0]]
    model.centres_in_padding = True
    (found,) = model.detect(predictions, [(60, 90)])
    model.centres_in_padding = False
    assert (found.scores > 0.5).sum() == 3


def test_every_option_of_the_config_builds():
    for key, value in (
        ("OFFSET", False),
        ("CLASS_SPECIFIC_SIZE", True),
        ("OUTPUT_STRIDE", 8),
        ("NECK.NORM", "GN"),
        ("NECK.UP", "bilinear"),
        ("IN_FEATURES", ["res5"]),
        ("LOSS.SIZE", "giou"),
        ("LOSS.HEATMAP", "quality_focal"),
    ):
        channels = {"MODEL.CENTERNET.NECK.CHANNELS": [32, 32, 32]}
        built = build_model(tiny_cfg(**channels, **{f"MODEL.CENTERNET.{key}": value}))
        assert all(loss.isfinite() for loss in built(copy.deepcopy(BATCH)).values()), key
        with torch.no_grad():
            assert built.eval()(BATCH)[0]["instances"].image_size == (60, 90)


def test_bad_config_is_named():
    with pytest.raises(ValueError, match="NUM_CLASSES is 0"):
        build_model(tiny_cfg(**{"MODEL.CENTERNET.NUM_CLASSES": 0}))
    with pytest.raises(ValueError, match=r"IN_FEATURES \['p3'\]: the backbone has \['res5'\]"):
        build_model(tiny_cfg(**{"MODEL.CENTERNET.IN_FEATURES": ["p3"]}))


def test_labelled_classes_reach_the_loss(model):
    model.train()
    plain = model(copy.deepcopy(BATCH))["loss_cls"]
    partly = [{**one, "labelled_classes": torch.tensor([0])} for one in BATCH]
    assert model(partly)["loss_cls"] != plain


def test_normalisation_is_in_no_checkpoint_and_moves_with_the_model(model):
    assert not [name for name in model.state_dict() if "pixel" in name]
    assert isinstance(model, CenterNet) and centerx.CenterNet is CenterNet
    assert copy.deepcopy(model).to("meta").device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu(model):
    model.eval()
    there = copy.deepcopy(model).cuda()
    with torch.no_grad():
        expected, found = model([BATCH[0]])[0]["instances"], there([BATCH[0]])[0]["instances"].to("cpu")
    torch.testing.assert_close(found.scores[:20], expected.scores[:20], rtol=1e-3, atol=1e-4)
    there.train()
    with torch.autocast("cuda", dtype=torch.float16):
        losses = there(copy.deepcopy(BATCH))
    assert all(loss.isfinite() for loss in losses.values())
