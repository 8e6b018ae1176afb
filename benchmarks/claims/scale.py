"""How large the runs are, and the data they share."""

import dataclasses

from d2x.data.sets.shapes import CLASSES, ShapesSpec, register_shapes_dataset

A, B = CLASSES[:2], CLASSES[2:]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        images: of each training set; unlabelled: of the extra set without labels; val: of each validation set.
        teacher_iterations, student_iterations, batch: of the runs.
        teacher_widths, student_widths: of the backbone's stages.
        teacher_neck, student_neck: channels of the neck's stages; the last is the head's too.
    """

    images: int
    unlabelled: int
    val: int
    teacher_iterations: int
    student_iterations: int
    batch: int
    teacher_widths: tuple[int, ...]
    student_widths: tuple[int, ...]
    teacher_neck: tuple[int, ...]
    student_neck: tuple[int, ...]
    device: str = "cpu"
    workers: int = 0


SCALES = {
    "tiny": Scale(8, 8, 8, 2, 2, 2, (8, 12, 16, 20), (4, 8, 12, 16), (16, 8, 8), (8, 8, 8)),
    "cpu": Scale(1000, 1000, 300, 1400, 1000, 8, (32, 64, 128, 256), (16, 32, 64, 128), (96, 64, 64), (64, 32, 32)),
    "gpu": Scale(
        4000, 8000, 1000, 8000, 4000, 32, (64, 128, 256, 512), (16, 32, 64, 128), (256, 128, 128), (64, 48, 48),
        device="cuda", workers=8,
    ),
}  # fmt: skip


def register_data(scale: Scale) -> None:
    """The data sets of all runs; drawn on first use."""
    specs = {
        "claims_train": ShapesSpec(scale.images, seed=1),
        "claims_val": ShapesSpec(scale.val, seed=2),
        "claims_a_train": ShapesSpec(scale.images, seed=3, annotated=A),
        "claims_b_train": ShapesSpec(scale.images, seed=4, annotated=B),
        "claims_a_val": ShapesSpec(scale.val, seed=2, annotated=A),
        "claims_b_val": ShapesSpec(scale.val, seed=2, annotated=B),
        "claims_unlabelled": ShapesSpec(scale.unlabelled, seed=5, annotated=()),
    }
    for name, spec in specs.items():
        register_shapes_dataset(name, spec)
