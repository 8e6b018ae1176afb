"""Student mix-in: teachers that are loaded at the start of training and seen by nothing else of the model."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.structures import ImageList
from torch import Tensor, nn

from centerx.distill.teachers import (
    STRIDE_MISMATCHES,
    EmaTeacher,
    MapDetector,
    Teacher,
    TeacherSpec,
    load_teacher,
    make_routes,
    pair_classes,
    require_coverage,
)
from centerx.distill.terms import Route
from d2x.errors import require_choice

logger = logging.getLogger(__name__)


class Student(MapDetector):
    """Mix-in for a ``DenseDetector``, put before it: holds teachers and makes their losses.

    Teachers sit in a plain tuple: ``nn.Module`` does not see them, so they are in no state dict, optimizer or DDP
    bucket; ``_apply`` takes them along when the student is moved.
    """

    CLASS_TENSORS: tuple[str, ...] = ()  # names of those whose rows are classes
    teachers: tuple[Teacher, ...] = ()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raises ``ValueError`` if the teacher's maps cannot be compared with the student's."""
        raise NotImplementedError

    def terms(self, predictions: Any, teacher: Teacher, maps: Any, route: Route) -> dict[str, Tensor]:
        """A teacher's weighted terms from the student's ``predictions`` and its own ``maps``, by their short names."""
        raise NotImplementedError

    def __init__(
        self,
        *,
        teacher_specs: Sequence[TeacherSpec],
        class_names: Sequence[str],
        labelled: Sequence[int],
        use_labels: bool,
        overlap: str = "average",
        stride_mismatch: str = "error",
        student_normalisation: bool = False,
        input_format: str = "RGB",
        make_ema: Callable[["Student"], EmaTeacher] | None = None,
        **detector,
    ) -> None:
        """
        Args:
            teacher_specs: loaded by ``prepare_teachers``.
            class_names: the student's, in the order of its channels.
            labelled: class indices that some training label covers.
            use_labels: whether ground-truth losses are added.
            overlap: see ``make_routes``.
            stride_mismatch: "error" or "resize".
            student_normalisation: teachers see images normalised with the student's mean and std.
            input_format: channel order of the images, "RGB" or "BGR".
            make_ema: makes the moving-average teacher of this student; None for no such teacher.
            detector: arguments of the detector that this is mixed into.

        Raises:
            ValueError: unknown ``stride_mismatch``.
        """
        super().__init__(**detector)
        require_choice("DISTILL.STRIDE_MISMATCH", stride_mismatch, STRIDE_MISMATCHES)
        self.teacher_specs = tuple(teacher_specs)
        self.class_names, self.labelled = list(class_names), list(labelled)
        self.use_labels, self.overlap, self.stride_mismatch = use_labels, overlap, stride_mismatch
        self.student_normalisation, self.input_format = student_normalisation, input_format
        self.make_ema = make_ema
        self.routes: tuple[Route, ...] = ()
        self.ema_teacher: EmaTeacher | None = None  # the last of the teachers, where there is one

    def prepare_teachers(self, teachers: Sequence[Teacher] | None = None) -> None:
        """Load the teachers and check everything that can be wrong with them; a second call does nothing.

        Args:
            teachers: use these instead of loading ``teacher_specs``.

        Raises:
            FileNotFoundError: a teacher's config or weights do not exist.
            ValueError: a teacher does not fit, predicts NaN, or a class is neither taught nor labelled.
        """
        if self.teachers:
            return
        if teachers is None:
            teachers = [load_teacher(spec, self.device) for spec in self.teacher_specs]
        pairs = [
            pair_classes(spec, teacher.class_names, self.class_names)
            for spec, teacher in zip(self.teacher_specs, teachers, strict=True)
        ]
        if not teachers and self.make_ema is None:
            raise ValueError("DISTILL.TEACHERS is empty: give each teacher's CONFIG and WEIGHTS, or enable DISTILL.EMA")
        routes = make_routes(pairs, self.overlap)
        if not self.use_labels or routes:
            require_coverage(routes, self.class_names, self.labelled if self.use_labels else ())
        teachers = list(teachers)
        if self.make_ema is not None:
            self.ema_teacher = self.make_ema(self)
            every = tuple(range(len(self.class_names)))
            teachers.append(self.ema_teacher)
            routes.append(Route(every, every, (1.0,) * len(every)))
        for teacher in teachers:
            self.check_teacher(teacher)
            teacher.check()
        for teacher, route in zip(teachers, routes):
            taught = [self.class_names[channel] for channel in route.student_channels]
            logger.info("teacher %s teaches %s", teacher.name, ", ".join(taught))
        self.teachers, self.routes = tuple(teachers), tuple(routes)

    def distillation_losses(self, batched_inputs: list[dict], images: ImageList, predictions) -> dict[str, Tensor]:
        """Every teacher's terms on this batch, ``kd_cls_loss0`` and so on; prepares the teachers if nobody has."""
        self.prepare_teachers()
        losses = {}
        for index, (teacher, route) in enumerate(zip(self.teachers, self.routes)):
            if not teacher.teaches:
                continue
            if self.student_normalisation:
                maps = teacher.predict_normalised(images.tensor)
            else:
                maps = teacher.predict(batched_inputs, self.input_format, images)
            for term, value in self.terms(predictions, teacher, maps, route).items():
                losses[f"kd_{term}_loss{index}"] = value
        return losses

    def _apply(self, fn, recurse: bool = True):
        for teacher in self.teachers:
            teacher.model._apply(fn, recurse)
        return super()._apply(fn, recurse)


def copy_weights(student: Student, teacher: nn.Module, route: Route) -> int:
    """Copy tensors of equal name and shape, of ``CLASS_TENSORS`` the rows of the route's classes; returns how many."""
    taught, own = list(route.student_channels), list(route.teacher_channels)
    theirs = teacher.state_dict()
    count = 0
    with torch.no_grad():
        for name, value in student.state_dict().items():
            other = theirs.get(name)
            if other is not None and name in student.CLASS_TENSORS and other.shape[1:] == value.shape[1:]:
                value[taught] = other[own].to(value)
                count += 1
            elif other is not None and other.shape == value.shape:
                value.copy_(other)
                count += 1
    return count


class DistillationHook(HookBase):
    """Loads and checks the teachers when it is made, starts from one of them, and keeps the moving-average teacher.

    Args:
        model: the student, not wrapped in DDP.
        warm_start: index of the teacher whose weights to start from; -1 for none. Not when a run is resumed.
    """

    def __init__(self, model: Student, *, warm_start: int = -1):
        self._model, self._warm_start = model, warm_start
        if warm_start >= len(model.teacher_specs):
            raise ValueError(
                f"DISTILL.WARM_START {warm_start}: there are {len(model.teacher_specs)} teachers, counted from 0"
            )
        model.prepare_teachers()

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            return
        model = self._model
        if self._warm_start >= 0:
            teacher = model.teachers[self._warm_start]
            taken, of = copy_weights(model, teacher.model, model.routes[self._warm_start]), len(model.state_dict())
            if not taken:
                raise ValueError(f"DISTILL.WARM_START: no weight of teacher {teacher.name} fits the student")
            logger.info("started from teacher %s: %d of %d tensors", teacher.name, taken, of)
        if model.ema_teacher is not None:  # the student's weights have changed since it was copied
            model.ema_teacher.model.load_state_dict(model.state_dict())

    def before_step(self) -> None:
        # not after the step: checkpoints are written by an earlier hook there, and would be one update behind
        if self._model.ema_teacher is not None:
            self._model.ema_teacher.update(self._model)

    def state_dict(self) -> dict:
        ema = self._model.ema_teacher
        return {} if ema is None else {"ema": ema.model.state_dict(), "steps": ema.steps}

    def load_state_dict(self, state: dict) -> None:
        ema = self._model.ema_teacher
        if ema is not None and state:
            ema.model.load_state_dict(state["ema"])
            ema.steps = state["steps"]
