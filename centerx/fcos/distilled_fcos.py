"""detectron2's FCOS (arXiv:1904.01355) from a config, and as a student of FCOS teachers.

CenterX's distillation asks of a detector only independent class logits per cell and some regressed channels, so FCOS
needs no losses of its own: per level, class logits take the place of the heatmap, the four distances that of the size,
centerness that of the offset.
"""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch import Tensor

from centerx.distill.student import Student, copy_weights, student_arguments
from centerx.distill.teachers import Teacher
from centerx.distill.terms import Route
from d2x.engine.losses.normalizer import shared_normalizer

FCOSMaps = tuple[list[Tensor], list[Tensor], list[Tensor]]


def add_fcos_config(cfg: CfgNode) -> None:
    """Declare ``MODEL.FCOS.*``."""
    if "FCOS" in cfg.MODEL:
        return
    node = cfg.MODEL.FCOS = CfgNode()
    node.NUM_CLASSES = 0  # 0: follow the data set
    # Channels of a feature pyramid to put on the backbone's outputs, plus one coarser level; 0: the backbone is one.
    node.FPN_CHANNELS = 64
    node.IN_FEATURES = []  # levels that the head reads; empty: all
    node.HEAD_CONVS = [64, 64]  # channels of the 3x3 convolutions of each branch of the head
    node.NORM = "GN"  # of pyramid and head
    node.CENTER_RADIUS = 1.5  # cells around an object's centre that are positive
    node.SCORE_THRESH = 0.05
    node.NMS_THRESH = 0.6
    node.CANDIDATES = 1000  # per level before NMS


@META_ARCH_REGISTRY.register()
class FCOSDetector(FCOS):
    """detectron2's FCOS, which has no config of its own, built from one; any backbone.

    The running mean of positives that its losses are divided by is part of the state dict here, so that a resumed run
    goes on with it, and it is that of all processes.
    """

    @configurable
    def __init__(self, **fcos):
        super().__init__(**fcos)
        self.register_buffer("mean_positives", torch.zeros((), dtype=torch.float64))  # 0: none yet

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.FCOS
        if node.NUM_CLASSES < 1:
            raise ValueError("MODEL.FCOS.NUM_CLASSES is 0: set it, or let d2x.config.load.prepare_data do so")
        backbone = build_backbone(cfg)
        if node.FPN_CHANNELS:
            names = sorted(backbone.output_shape(), key=lambda name: backbone.output_shape()[name].stride)
            coarser = LastLevelMaxPool()
            coarser.in_feature = f"p{int(math.log2(backbone.output_shape()[names[-1]].stride))}"
            backbone = FPN(backbone, names, node.FPN_CHANNELS, norm=node.NORM, top_block=coarser)
        shapes = backbone.output_shape()
        unknown = [name for name in node.IN_FEATURES if name not in shapes]
        if unknown:
            raise ValueError(f"MODEL.FCOS.IN_FEATURES {unknown}: there are {sorted(shapes)}")
        levels = sorted(node.IN_FEATURES or shapes, key=lambda name: shapes[name].stride)
        return {
            "backbone": backbone,
            "head": FCOSHead(
                input_shape=[ShapeSpec(channels=shapes[n].channels, stride=shapes[n].stride) for n in levels],
                num_classes=node.NUM_CLASSES,
                conv_dims=list(node.HEAD_CONVS),
                norm=node.NORM,
            ),
            "head_in_features": levels,
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_RADIUS,
            "test_score_thresh": node.SCORE_THRESH,
            "test_topk_candidates": node.CANDIDATES,
            "test_nms_thresh": node.NMS_THRESH,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def strides(self) -> list[int]:
        """Of the levels, finest first."""
        return list(self.anchor_generator.strides)

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        shared = shared_normalizer(self.mean_positives.new_tensor(value)).double()
        old = torch.where(self.mean_positives == 0, initial_value, self.mean_positives)
        self.mean_positives.copy_(old * momentum + shared * (1 - momentum))
        return self.mean_positives.item()

    def predict(self, images: Tensor) -> FCOSMaps:
        """Normalised and padded images, (N, 3, H, W), to lists over the levels: class logits (N, K, Hi, Wi), distances
        in strides (N, 4, Hi, Wi) as (left, top, right, bottom), centerness logits (N, 1, Hi, Wi)."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.head_in_features])


@META_ARCH_REGISTRY.register()
class DistilledFCOS(Student, FCOSDetector):
    """An FCOS that frozen FCOS teachers train, beside its labels or instead of them.

    Adds ``kd_cls_loss{t}``, ``kd_box_loss{t}`` and ``kd_ctr_loss{t}``; everything else as ``DistilledCenterNet``.
    Teachers must have the student's levels.

    Args: see ``Student``, and detectron2's ``FCOS`` for the rest.
    """

    @configurable
    def __init__(self, **arguments):
        super().__init__(**arguments)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), **student_arguments(cfg, cfg.MODEL.FCOS.NUM_CLASSES)}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """See the class."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        losses = self.distillation_losses(batched_inputs, images, predictions)
        if self.use_labels:
            instances = [one["instances"].to(self.device) for one in batched_inputs]
            losses.update(self.forward_training(images, features, predictions, instances))
        return losses

    def check_teacher(self, teacher: Teacher) -> None:
        strides = getattr(teacher.model, "strides", None)
        if strides is None:
            raise ValueError(f"teacher {teacher.name} is no FCOS: a DistilledFCOS cannot learn from it")
        if strides != self.strides:
            raise ValueError(f"teacher {teacher.name} has levels of strides {strides}, the student {self.strides}")

    def terms(self, predictions: FCOSMaps, teacher: Teacher, maps: FCOSMaps, route: Route) -> dict[str, Tensor]:
        loss, parts = teacher.loss, []
        for own_logits, own_box, own_centre, logits, box, centre in zip(*predictions, *maps):
            rows, columns = own_logits.shape[2:]
            logits, box, centre = (m[..., :rows, :columns] for m in (logits, box, centre))
            heatmap = loss.activate(logits)[:, list(route.teacher_channels)]
            level = (
                loss.activate(own_logits)[:, list(route.student_channels)],
                heatmap,
                loss.mask(heatmap),
                own_box.float(),
                box.float().relu(),  # as FCOS decodes: a distance is never negative
                own_centre.float().sigmoid(),
                centre.float().sigmoid(),
            )
            parts.append([m.flatten(2)[:, :, None] for m in level])
        own_heatmap, heatmap, mask, own_box, box, own_centre, centre = (torch.cat(m, dim=-1) for m in zip(*parts))
        terms = loss.from_heatmaps(
            own_heatmap, heatmap, (own_box, box), (own_centre, centre), shares=route.shares, mask=mask
        )
        return {"cls": terms["cls"], "box": terms["wh"], "ctr": terms["off"]}

    def start_from(self, teacher: Teacher, route: Route) -> int:
        """Copy a teacher's weights, class channels by their routes; returns how many tensors were taken."""
        return copy_weights(
            self, teacher.model, per_class=("head.cls_score.weight", "head.cls_score.bias"), route=route
        )
