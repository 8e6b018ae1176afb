"""Tiny students and teachers."""

import torch
from detectron2.structures import Boxes, Instances

from centerx.backbone import UpsampledBackbone
from centerx.centernet import CenterNet
from centerx.distill.distilled_centernet import DistilledCenterNet
from centerx.distill.teachers import Teacher, TeacherSpec
from centerx.distill.terms import DistillationLoss
from centerx.head import CenterHead
from centerx.losses import CenterLoss
from centerx.upsample_neck import UpsampleNeck
from d2x.backbones.small_resnet import SmallResNet


def centernet_parts(
    num_classes: int, *, stride: int = 4, mean: float = 100.0, class_specific_size: bool = False
) -> dict:
    bottom_up = SmallResNet(widths=(4, 8), blocks=(1, 1), norm="BN", out_features=("res3",))
    neck = UpsampleNeck(bottom_up.output_shape(), output_stride=stride, channels=(8, 8))
    return {
        "backbone": UpsampledBackbone(bottom_up, neck, output_stride=stride),
        "head": CenterHead(
            in_channels=8, hidden_channels=8, num_classes=num_classes, class_specific_size=class_specific_size
        ),
        "criterion": CenterLoss(),
        "num_classes": num_classes,
        "pixel_mean": [mean] * 3,
        "pixel_std": [50.0] * 3,
    }


def make_teacher(
    class_names=("a",), *, input_format: str = "RGB", loss: DistillationLoss | None = None, **parts
) -> Teacher:
    return Teacher(
        name="teacher.yaml",
        model=CenterNet(**centernet_parts(len(class_names), **parts)),
        input_format=input_format,
        class_names=class_names,
        loss=loss or DistillationLoss(),
    )


def make_spec(**options) -> TeacherSpec:
    return TeacherSpec(config="teacher.yaml", weights="teacher.pth", loss=DistillationLoss(), **options)


def make_student(class_names=("a", "b"), *, specs=(), labelled=None, use_labels=True, parts=None, **options):
    return DistilledCenterNet(
        **{
            "teacher_specs": specs or [make_spec()],
            "class_names": class_names,
            "labelled": range(len(class_names)) if labelled is None else labelled,
            "use_labels": use_labels,
            **options,
            **centernet_parts(len(class_names), **(parts or {})),
        }
    )


def make_batch(*, labels: bool = True, sizes=((40, 64), (48, 36))) -> list[dict]:
    batch = []
    for height, width in sizes:
        one = {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8)}
        if labels:
            one["instances"] = Instances((height, width))
            one["instances"].gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 28.0]]))
            one["instances"].gt_classes = torch.tensor([0])
        batch.append(one)
    return batch
