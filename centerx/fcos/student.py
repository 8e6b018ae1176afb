"""FCOS as a student of FCOS teachers."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from centerx.distill.build import student_arguments
from centerx.distill.student import Student
from centerx.distill.teachers import Teacher
from centerx.distill.terms import Route
from centerx.fcos.fcos import FCOSDetector, FCOSMaps


@META_ARCH_REGISTRY.register()
class DistilledFCOS(Student, FCOSDetector):
    """An FCOS that frozen FCOS teachers train, beside its labels or instead of them.

    Adds ``kd_cls_loss{t}``, ``kd_box_loss{t}`` and ``kd_ctr_loss{t}``; everything else as ``DistilledCenterNet``.
    Teachers must have the student's levels.

    Args: see ``Student``, and detectron2's ``FCOS`` for the rest.
    """

    CLASS_TENSORS = ("head.cls_score.weight", "head.cls_score.bias")

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
            instances = [record["instances"].to(self.device) for record in batched_inputs]
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
