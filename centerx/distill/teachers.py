"""Frozen teachers: built from config and weights, routed to the student's classes by name, checked before training."""

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList
from torch import Tensor, nn

from centerx.distill.terms import DistillationLoss, Route
from d2x.checkpoint.files import read_state
from d2x.config.load import load_cfg
from d2x.data.prepare import class_names
from d2x.detectors import class_count, set_class_count
from d2x.engine.weight_averaging import ramped_decay
from d2x.errors import require_choice

OVERLAPS = ("average", "first")
STRIDE_MISMATCHES = ("error", "resize")
CHECK_SIDE = 128  # pixels of the image that every teacher must answer with finite numbers before training


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """One teacher as the config describes it.

    Args:
        config, weights: files.
        classes: teacher's class name -> student's; None for all common names, unless slices are given.
        student_slice, teacher_slice: (start, stop) class indices, instead of names.
        loss: its distillation terms.
    """

    config: str
    weights: str
    loss: DistillationLoss
    classes: Mapping[str, str] | None = None
    student_slice: tuple[int, int] | None = None
    teacher_slice: tuple[int, int] | None = None


class MapDetector(DenseDetector):
    """The type of a ``DenseDetector`` with ``predict``, which is all that a teacher's network must have."""

    backbone: Backbone
    pixel_mean: Tensor
    pixel_std: Tensor
    predict: Callable[[Tensor], Any]  # normalised and padded images, (N, 3, H, W), to the head's maps

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device


class Teacher:
    """A frozen detector in evaluation mode. Not an ``nn.Module``, so that no student can hold it as a submodule.

    Args:
        name: for messages: its config file.
        model: a ``DenseDetector`` with ``predict(images)``; its parameters are frozen.
        input_format: channel order of its images, "RGB" or "BGR".
        class_names: of its outputs.
        loss: its distillation terms.
    """

    teaches = True  # whether it has something to say yet

    def __init__(
        self, *, name: str, model: MapDetector, input_format: str, class_names: Sequence[str], loss: DistillationLoss
    ):
        self.name, self.input_format, self.class_names, self.loss = name, input_format, list(class_names), loss
        self.model = model.eval().requires_grad_(False)

    @property
    def divisor(self) -> int:
        """Sides of its images are multiples of this, px."""
        return max(1, self.model.backbone.size_divisibility)

    @torch.no_grad()
    def predict(self, batched_inputs: Sequence[dict], student_format: str, padded: ImageList):
        """The teacher's maps for the student's batch.

        Args:
            batched_inputs: with ``image`` (3, h, w), 0-255, in the student's channel order.
            student_format: that order.
            padded: the student's batch; the teacher's is padded to at least its size, and to its own divisibility.
        """
        model = self.model
        device = padded.tensor.device
        model.to(device)
        images = [record["image"].to(device) for record in batched_inputs]
        if student_format != self.input_format:
            images = [image.flip(0) for image in images]
        images = [(image - model.pixel_mean) / model.pixel_std for image in images]
        # not by ``ImageList.from_tensors``, which pads to the largest image, not to a given size
        height, width = (math.ceil(side / self.divisor) * self.divisor for side in padded.tensor.shape[-2:])
        batch = images[0].new_zeros(len(images), 3, height, width)
        for image, place in zip(images, batch):
            place[:, : image.shape[1], : image.shape[2]] = image
        return model.predict(batch)

    @torch.no_grad()
    def predict_normalised(self, images: Tensor):
        """The teacher's maps for a batch that is already normalised and padded, (N, 3, H, W)."""
        self.model.to(images.device)
        return self.model.predict(images)

    def check(self) -> None:
        """One image through the network.

        Raises:
            ValueError: a weight or an output is not finite.
        """
        bad = next((key for key, value in self.model.state_dict().items() if not torch.isfinite(value).all()), None)
        if bad is not None:
            raise ValueError(f"teacher {self.name}: weight {bad} is not finite")
        side = math.ceil(CHECK_SIDE / self.divisor) * self.divisor
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (1, 3, side, side), generator=generator).float().to(self.model.device)
        with torch.no_grad():
            maps = self.model.predict((image - self.model.pixel_mean) / self.model.pixel_std)
        if not all(torch.isfinite(m).all() for m in tensors_of(maps)):
            raise ValueError(f"teacher {self.name}: its predictions are not finite (NaN or inf)")


def tensors_of(maps) -> list[Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(maps, Tensor):
        return [maps]
    return [] if maps is None else [t for part in maps for t in tensors_of(part)]


def load_teacher(spec: TeacherSpec, device: torch.device | str = "cpu") -> Teacher:
    """Build a teacher and load all of its weights.

    Raises:
        FileNotFoundError: config or weights do not exist.
        ValueError: the weights are another model's, or the model has no maps to teach; names the file.
    """
    cfg = load_cfg(spec.config, ["MODEL.DEVICE", str(device)])
    if not os.path.isfile(spec.weights):
        raise FileNotFoundError(f"weights of teacher {spec.config} not found: {spec.weights}")
    names = class_names(cfg)
    set_class_count(cfg, class_count(cfg) or len(names))
    model = build_model(cfg)
    if not hasattr(model, "predict"):
        raise ValueError(f"teacher {spec.config}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} cannot teach")
    state = read_state(spec.weights)
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            raise ValueError(f"{spec.weights}: not the weights of teacher {spec.config}: {name} is missing")
        if tuple(state[name].shape) != tuple(value.shape):
            raise ValueError(
                f"{spec.weights}: not the weights of teacher {spec.config}: {name} is {tuple(state[name].shape)}, "
                f"the config says {tuple(value.shape)}"
            )
    model.load_state_dict({name: torch.as_tensor(state[name]) for name in own})
    return Teacher(
        name=spec.config,
        model=model,
        input_format=cfg.INPUT.FORMAT,
        class_names=names or [str(i) for i in range(model.num_classes)],
        loss=spec.loss,
    )


def pair_classes(spec: TeacherSpec, teacher_classes: Sequence[str], student_classes: Sequence[str]) -> list[tuple]:
    """(teacher's index, student's index) pairs of one teacher.

    Raises:
        ValueError: a class name or slice does not exist, or nothing is common; names the teacher.
    """
    where = f"teacher {spec.config}"
    if spec.student_slice or spec.teacher_slice:
        start, stop = spec.student_slice or (0, len(student_classes))
        own_start, own_stop = spec.teacher_slice or (0, len(teacher_classes))
        if stop > len(student_classes):
            raise ValueError(f"{where}: STUDENT_SLICE ends at {stop}, the student has {len(student_classes)} classes")
        if own_stop > len(teacher_classes):
            raise ValueError(f"{where}: TEACHER_SLICE ends at {own_stop}, it has {len(teacher_classes)} classes")
        if stop - start != own_stop - own_start:
            raise ValueError(f"{where}: {own_stop - own_start} classes cannot teach {stop - start}")
        return list(zip(range(own_start, own_stop), range(start, stop)))
    wanted = spec.classes
    if wanted is None:
        wanted = {name: name for name in teacher_classes if name in student_classes}
        if not wanted:
            raise ValueError(
                f"{where}: none of its classes ({', '.join(teacher_classes)}) is the student's"
                f" ({', '.join(student_classes)}); map them by CLASSES or a slice"
            )
    pairs = []
    for own, taught in wanted.items():
        for name, names, whose in ((own, teacher_classes, "its"), (taught, student_classes, "the student's")):
            if name not in names:
                raise ValueError(f"{where}: class '{name}' is not one of {whose} classes ({', '.join(names)})")
        pairs.append((list(teacher_classes).index(own), list(student_classes).index(taught)))
    return pairs


def make_routes(pairs: Sequence[Sequence[tuple[int, int]]], overlap: str = "average") -> list[Route]:
    """Share out the classes that several teachers have.

    Args:
        pairs: per teacher, see ``pair_classes``.
        overlap: "average": equal shares; "first": the first teacher's alone.

    Raises:
        ValueError: unknown overlap, or a teacher has no class left.
    """
    require_choice("DISTILL.OVERLAP", overlap, OVERLAPS)
    owners: dict[int, list[int]] = {}
    for index, its in enumerate(pairs):
        for _, taught in its:
            owners.setdefault(taught, []).append(index)
    routes = []
    for index, its in enumerate(pairs):
        kept = [(own, taught) for own, taught in its if overlap == "average" or owners[taught][0] == index]
        if not kept:
            raise ValueError(f"DISTILL.TEACHERS[{index}] has nothing to teach: earlier teachers have all its classes")
        shares = tuple(1 / len(owners[taught]) if overlap == "average" else 1.0 for _, taught in kept)
        routes.append(Route(tuple(own for own, _ in kept), tuple(taught for _, taught in kept), shares))
    return routes


def require_coverage(routes: Sequence[Route], student_classes: Sequence[str], labelled: Sequence[int]) -> None:
    """Every class must be taught by a teacher or labelled in some data set.

    Raises:
        ValueError: names the classes that are neither.
    """
    covered = set(labelled) | {channel for route in routes for channel in route.student_channels}
    alone = [name for index, name in enumerate(student_classes) if index not in covered]
    if alone:
        raise ValueError(f"no teacher teaches and no training label covers: {', '.join(alone)}")


class EmaTeacher(Teacher):
    """The exponential moving average of a student's own weights and buffers, teaching all of its classes.

    Args:
        student: it is copied, before it has teachers.
        decay, start: see ``DISTILL.EMA``.
    """

    def __init__(self, student: MapDetector, *, decay: float, start: int, **teacher):
        super().__init__(name="moving average", model=copy.deepcopy(student), **teacher)
        self.decay, self.start, self.steps = decay, start, 0

    @property
    def teaches(self) -> bool:
        return self.steps >= self.start

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """One step of the average; integer buffers are copied."""
        decay = ramped_decay(self.decay, self.steps)
        current = student.state_dict()
        for name, value in self.model.state_dict().items():
            new = current[name].detach().to(value.device)
            value.lerp_(new.to(value.dtype), 1 - decay) if value.is_floating_point() else value.copy_(new)
        self.steps += 1
