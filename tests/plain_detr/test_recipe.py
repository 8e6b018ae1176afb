"""The recipe: augmentations, and the numbers of every shipped config against the paper's and the release's."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T

import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from d2x.detectors import class_count, set_class_count
from plain_detr import recipe

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "PlainDETR" / "configs"
ON_COCO = sorted(
    path.name
    for path in CONFIGS.glob("*.yaml")
    if "quickstart" not in path.name and "objects365_24ep" not in path.name and not path.name.startswith("Base-")
)
EPOCH = 117266 // 16  # images of train2017 with boxes, 16 an iteration
# DINOv3's own detector, to evaluate the released head: wider, and with more queries.
DINOV3_DETECTOR = ("dinov3_vit_7b_frozen.yaml", "dinov3_vit_l_plus_frozen.yaml")


def config(name: str, *options):
    return load_cfg(str(CONFIGS / name), options)


@pytest.mark.parametrize("name", ON_COCO)
def test_recipe_numbers(name):
    cfg = config(name)
    solver, head = cfg.SOLVER, cfg.MODEL.PLAIN_DETR
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.IMS_PER_BATCH) == ("AdamW", 2e-4, 16)
    assert solver.WEIGHT_DECAY == (1e-4 if name.startswith("R50") else 0.05)
    assert (solver.WEIGHT_DECAY_NORM, solver.GAMMA, solver.WARMUP_ITERS) == (0.0, 0.1, 1000)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.WHOLE_MODEL, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, True, "norm", 0.1)
    epochs = next((int(word[:-2]) for word in Path(name).stem.split("_") if word.endswith("ep")), 12)
    assert solver.MAX_ITER == epochs * EPOCH
    drops = {12: 11, 24: 20, 36: 33, 50: 45}
    assert list(solver.STEPS) == [drops[epochs] * EPOCH]
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(480, 801, 32)) and cfg.INPUT.MAX_SIZE_TRAIN == 1333
    assert (head.DECODER_LAYERS, head.FEEDFORWARD_DIM, head.NUM_HEADS, head.FEATURE_STRIDE) == (6, 2048, 8, 16)
    assert head.HIDDEN_DIM == (768 if name in DINOV3_DETECTOR else 256)
    assert (head.NUM_QUERIES, head.ONE_TO_MANY.QUERIES) == ((1500, 1500) if name in DINOV3_DETECTOR else (300, 1500))
    assert (head.ONE_TO_MANY.REPEATS, head.ONE_TO_MANY.WEIGHT) == (6, 1.0)
    weight = {"delta": 1.0, "sigmoid": 5.0}[head.BOX_CODER]
    assert (head.LOSS.CLASS_WEIGHT, head.LOSS.BOX_WEIGHT, head.LOSS.GIOU_WEIGHT) == (2.0, weight, 2.0)
    assert (head.MATCHER.CLASS_COST, head.MATCHER.BOX_COST, head.MATCHER.GIOU_COST) == (2.0, weight, 2.0)
    assert list(head.PROPOSALS.STRIDES) == [8, 16, 32, 64]
    assert head.BATCH_INDEPENDENT and head.NORM_FIRST and head.DROPOUT == 0.0


# config -> backbone file, pre-trained windows, bias, coder, position code, layer-wise decay
RELEASED = {
    "swinv2_s_sup_ape_12ep.yaml": ("sup", [16, 16, 16, 8], "none", "sigmoid", "sine", 0.0),
    "swinv2_s_sup_boxrpb_12ep.yaml": ("sup", [16, 16, 16, 8], "axial", "sigmoid", "sine", 0.0),
    "swinv2_s_mim_boxrpb_12ep.yaml": ("mim", [12, 12, 12, 6], "axial", "sigmoid", "sine", 0.9),
    "swinv2_s_mim_boxrpb_delta_12ep.yaml": ("mim", [12, 12, 12, 6], "axial", "delta", "sine_unnorm", 0.9),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs(name):
    origin, windows, bias, coder, position, decay = RELEASED[name]
    cfg = config(name)
    head, swin = cfg.MODEL.PLAIN_DETR, cfg.MODEL.SWIN_V2
    assert ("mim" in cfg.MODEL.BACKBONE.WEIGHTS) == (origin == "mim")
    assert (swin.EMBED_DIM, list(swin.DEPTHS), list(swin.NUM_HEADS)) == (96, [2, 2, 18, 2], [3, 6, 12, 24])
    assert (swin.WINDOW_SIZE, swin.DROP_PATH, list(swin.PRETRAINED_WINDOW_SIZES)) == (16, 0.1, windows)
    assert [list(blocks) for blocks in swin.GLOBAL_BLOCKS] == [[-1], [-1], [-1], [0, 1]]
    assert (head.BOX_RPB.KIND, head.BOX_CODER, head.POSITION_ENCODING) == (bias, coder, position)
    assert (head.BOX_RPB.OFFSETS, head.BOX_RPB.HIDDEN_DIM) == ("linear", 512)
    assert (cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BACKBONE_LR_FACTOR) == (decay, 0.1)


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*encoder12*.yaml")])
def test_encoder_of_the_largest_models(name):
    cfg = config(name)
    encoder = cfg.MODEL.PLAIN_DETR.ENCODER
    assert (encoder.LAYERS, cfg.MODEL.PLAIN_DETR.HIDDEN_DIM) == (12, 256)
    assert encoder.WINDOW > 0


def test_training_sizes():
    """Half of the images are cropped first, all end with a shorter side of 480 to 800 or a longer one of 1333."""
    augmentations = T.AugmentationList(recipe.train_augmentations(config("swinv2_s_sup_ape_12ep.yaml")))
    np.random.seed(0)
    sizes, flips = [], 0
    for _ in range(60):
        image = T.AugInput(np.zeros((375, 500, 3), np.uint8))
        transforms = augmentations(image)
        sizes.append(image.image.shape[:2])
        flips += any(isinstance(one, T.HFlipTransform) for one in transforms.transforms)
    assert 15 < flips < 45
    assert all(min(size) in range(480, 801, 32) or max(size) == 1333 for size in sizes)
    whole = sum(abs(height / width - 0.75) < 0.01 for height, width in sizes)
    assert 15 < whole < 45


def test_augmentations_follow_the_config():
    cfg = config("swinv2_s_sup_ape_12ep.yaml", "INPUT.RANDOM_FLIP", "none", "INPUT.PLAIN_DETR.CROP_PROBABILITY", "0.0")
    (resize,) = recipe.train_augmentations(cfg)
    assert isinstance(resize, T.ResizeShortestEdge) and resize.fast
    cfg.INPUT.FAST_RESIZE = False
    assert not recipe.train_augmentations(cfg)[0].fast
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [64, 64]
    crop, _ = recipe.train_augmentations(cfg)
    assert (crop.crop_type, crop.crop_size) == ("absolute", [64, 64])
    (resize,) = recipe.test_augmentations(cfg)
    image = T.AugInput(np.zeros((375, 500, 3), np.uint8))
    resize(image)
    assert image.image.shape[:2] == (800, 1067)
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert recipe.test_augmentations(cfg) == []


def test_classes_follow_the_data():
    cfg = config("swinv2_s_sup_ape_12ep.yaml")
    assert class_count(cfg) == 0
    set_class_count(cfg, 7)
    assert class_count(cfg) == cfg.MODEL.PLAIN_DETR.NUM_CLASSES == 7


def test_readme_lists_every_config_and_no_other():
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `") and "build_" not in line]
    listed = {name.strip("`,") for cell in cells for name in cell.split()}
    assert listed == {Path(name).stem for name in ON_COCO} | {"swinv2_l_encoder12_objects365_24ep"}
