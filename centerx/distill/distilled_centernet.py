"""CenterNet with teachers: adds their terms in training, nothing else; its checkpoint is a CenterNet checkpoint."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from centerx.centernet import CenterNet
from centerx.distill.build import student_arguments
from centerx.distill.student import Student
from centerx.distill.teachers import Teacher
from centerx.distill.terms import Route, align_to_grid
from centerx.predictions import CenterPredictions


@META_ARCH_REGISTRY.register()
class DistilledCenterNet(Student, CenterNet):
    """A CenterNet that frozen teachers train, beside its labels or instead of them.

    Training adds, for teacher t in the order of ``DISTILL.TEACHERS``, ``kd_cls_loss{t}``, ``kd_wh_loss{t}`` and
    ``kd_off_loss{t}`` to CenterNet's losses; without labels the loss dict holds nothing else, and images need no
    ``instances``. Evaluation is CenterNet's and needs no teacher: teachers are loaded when training starts
    (:meth:`prepare_teachers`), and are no part of the state dict, of ``parameters()`` or of DDP.

    Args: see ``Student``, and ``CenterNet`` for the rest.
    """

    CLASS_TENSORS = ("head.heatmap.out.weight", "head.heatmap.out.bias")

    @configurable
    def __init__(self, **arguments):
        super().__init__(**arguments)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), **student_arguments(cfg, cfg.MODEL.CENTERNET.NUM_CLASSES)}

    def losses(
        self, batched_inputs: list[dict], images: ImageList, predictions: CenterPredictions
    ) -> dict[str, Tensor]:
        """Distillation terms first, then, with labels, CenterNet's."""
        losses = self.distillation_losses(batched_inputs, images, predictions)
        if self.use_labels:
            losses.update(super().losses(batched_inputs, images, predictions))
        return losses

    def check_teacher(self, teacher: Teacher) -> None:
        stride = _stride(teacher)
        if stride != self.stride and self.stride_mismatch == "error":
            raise ValueError(
                f"teacher {teacher.name} has stride {stride}, the student {self.stride}:"
                " set DISTILL.STRIDE_MISMATCH to resize"
            )

    def terms(
        self, predictions: CenterPredictions, teacher: Teacher, maps: CenterPredictions, route: Route
    ) -> dict[str, Tensor]:
        height, width = predictions.heatmap_logits.shape[2:]
        aligned = align_to_grid(
            maps, teacher_stride=_stride(teacher), student_stride=self.stride, grid_hw=(height, width)
        )
        return teacher.loss(predictions, aligned, route)


def _stride(teacher: Teacher) -> int:
    stride = getattr(teacher.model, "stride", None)
    if not isinstance(stride, int):
        raise ValueError(f"teacher {teacher.name} is no CenterNet: a DistilledCenterNet cannot learn from it")
    return stride
