"""The recipe of CenterX: augmentations, optimizer groups, hooks, class count."""

import dataclasses

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from centerx.resize import RESIZES, FitInto, test_resize
from d2x.backbones.layer_decay import scale_backbone_rates
from d2x.backbones.weights import weight_hooks
from d2x.data.augment import BoxCentreCrop, CenterAffine, StrongColour, ZoomOut
from d2x.data.fast_resize import Resize, ResizeShortestEdge
from d2x.errors import require_choice


@dataclasses.dataclass(frozen=True)
class CenterXRecipe:
    """How CenterNet and FCOS are trained; see ``d2x.detectors.Recipe``.

    Args:
        CLASS_COUNT_KEY: the config key of the class count.
    """

    CLASS_COUNT_KEY: str = "MODEL.CENTERNET.NUM_CLASSES"

    def train_augmentations(self, cfg: CfgNode) -> list[T.Augmentation]:
        """Flip, zoom out, crop, resize and colour changes, each as its keys say.

        Raises:
            ValueError: unknown ``INPUT.CENTERX.RESIZE``.
        """
        node = cfg.INPUT.CENTERX
        augmentations: list[T.Augmentation] = []
        if cfg.INPUT.RANDOM_FLIP != "none":
            vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
            augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
        if node.ZOOM_OUT > 0:
            augmentations.append(ZoomOut(prob=node.ZOOM_OUT, largest=node.ZOOM_OUT_LARGEST, fill=cfg.MODEL.PIXEL_MEAN))
        if cfg.INPUT.CROP.ENABLED:
            crop = BoxCentreCrop if node.CROP_AROUND_OBJECT else T.RandomCrop
            augmentations.append(crop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        augmentations += _train_resize(cfg)
        for limits, change in (
            (node.BRIGHTNESS, T.RandomBrightness),
            (node.CONTRAST, T.RandomContrast),
            (node.SATURATION, T.RandomSaturation),
        ):
            if tuple(limits) != (1.0, 1.0):
                augmentations.append(change(*limits))
        if node.LIGHTING > 0:
            augmentations.append(T.RandomLighting(node.LIGHTING))
        if node.STRONG_COLOUR > 0:
            augmentations.append(StrongColour(prob=node.STRONG_COLOUR))
        return augmentations

    def test_augmentations(self, cfg: CfgNode) -> list[T.Augmentation]:
        """``test_resize`` as an augmentation."""
        resize = test_resize(cfg)
        if resize["kind"] == "fixed":
            return [T.Resize(resize["size"])]
        if resize["kind"] == "fit":
            return [FitInto(resize["size"], rounding=resize["rounding"], interpolation=resize["interpolation"])]
        if resize["kind"] == "shortest_edge":
            return [T.ResizeShortestEdge([resize["size"]] * 2, resize["max_size"])]
        return []

    def param_groups(self, cfg: CfgNode, model: nn.Module) -> list[dict]:
        """detectron2's groups, in which the bias of a norm counts as norm, not as bias, for rate and weight decay.

        The backbone's rates by ``SOLVER.LAYER_DECAY`` or ``BACKBONE_LR_FACTOR``.
        """
        solver = cfg.SOLVER
        biases = {
            id(module.bias) for module in model.modules() if isinstance(getattr(module, "bias", None), nn.Parameter)
        }
        for group in get_default_optimizer_params(model, base_lr=1.0, weight_decay=0.0, weight_decay_norm=1.0):
            if group["weight_decay"] == 1.0:  # these are the norms'
                biases -= {id(parameter) for parameter in group["params"]}
        decay = solver.WEIGHT_DECAY if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
        own = {"lr": solver.BASE_LR * solver.BIAS_LR_FACTOR, "weight_decay": decay}
        groups = []
        for group in get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        ):
            others = [parameter for parameter in group["params"] if id(parameter) not in biases]
            its_biases = [parameter for parameter in group["params"] if id(parameter) in biases]
            groups += [{**group, "params": others}] if others else []
            groups += [{**group, **own, "params": its_biases}] if its_biases else []
        return scale_backbone_rates(
            groups, model, "backbone.bottom_up", factor=solver.BACKBONE_LR_FACTOR, layer_decay=solver.LAYER_DECAY
        )

    def extra_hooks(self, cfg: CfgNode, model: nn.Module) -> list[HookBase]:
        """Loads ``MODEL.BACKBONE.WEIGHTS`` before a training that starts from nothing else."""
        return weight_hooks(cfg, model, "backbone.bottom_up")


def _train_resize(cfg: CfgNode) -> list[T.Augmentation]:
    node, kind = cfg.INPUT.CENTERX, cfg.INPUT.CENTERX.RESIZE
    require_choice("INPUT.CENTERX.RESIZE", kind, RESIZES)
    if kind == "fixed":
        return [Resize(node.SIZE, fast=cfg.INPUT.FAST_RESIZE)]
    if kind == "fit":
        return [FitInto(node.SIZE, rounding=node.FIT_ROUNDING, interpolation=node.FIT_RESAMPLING)]
    if kind == "center_affine":
        return [
            CenterAffine(node.SIZE, scale_range=node.AFFINE_SCALE, border=node.AFFINE_BORDER, fill=cfg.MODEL.PIXEL_MEAN)
        ]
    if kind == "none" or max(cfg.INPUT.MIN_SIZE_TRAIN) == 0:
        return []
    sizes = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    return [ResizeShortestEdge(*sizes, fast=cfg.INPUT.FAST_RESIZE)]
