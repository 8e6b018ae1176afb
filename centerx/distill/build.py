"""Builder of a student's arguments from a config: the only place that reads ``DISTILL``, but for the recipe."""

import difflib
import functools
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from centerx.distill.teachers import EmaTeacher, TeacherSpec
from centerx.distill.terms import DistillationLoss


def student_arguments(cfg: CfgNode, num_classes: int) -> dict:
    """``Student``'s arguments from ``DISTILL``, ``DATASETS`` and ``INPUT``.

    Raises:
        ValueError: label-free training whose data loader would drop every image.
    """
    node = cfg.DISTILL
    if not node.LABELS and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise ValueError(
            "DISTILL.LABELS False needs DATALOADER.FILTER_EMPTY_ANNOTATIONS False: images without annotations"
            " would be dropped"
        )
    class_names = list(cfg.DATASETS.CLASS_NAMES) or [str(index) for index in range(num_classes)]
    make_ema = None
    if node.EMA.ENABLED:
        make_ema = functools.partial(
            EmaTeacher,
            decay=node.EMA.DECAY,
            start=node.EMA.START,
            input_format=cfg.INPUT.FORMAT,
            class_names=class_names,
            loss=make_loss(cfg, {"WEIGHT": node.EMA.WEIGHT}),
        )
    return {
        "teacher_specs": read_specs(cfg),
        "class_names": class_names,
        "labelled": labelled_classes(cfg.DATASETS.TRAIN, class_names),
        "use_labels": node.LABELS,
        "overlap": node.OVERLAP,
        "stride_mismatch": node.STRIDE_MISMATCH,
        "student_normalisation": node.STUDENT_NORMALISATION,
        "input_format": cfg.INPUT.FORMAT,
        "make_ema": make_ema,
    }


def labelled_classes(datasets: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Class indices that some training data set is labelled for, by its metadata; without metadata all are."""
    indices: set[int] = set()
    for name in datasets:
        labelled = MetadataCatalog.get(name).get("labelled_classes")
        indices |= set(range(len(class_names)) if labelled is None else labelled)
    return sorted(indices)


def read_specs(cfg: CfgNode) -> list[TeacherSpec]:
    """``DISTILL.TEACHERS`` with defaults filled in.

    Raises:
        ValueError: an entry is no mapping, lacks CONFIG or WEIGHTS, or has an unknown key.
    """
    node = cfg.DISTILL
    known = {
        "CONFIG", "WEIGHTS", "CLASSES", "STUDENT_SLICE", "TEACHER_SLICE",
        "WEIGHT", "HEATMAP_WEIGHT", "SIZE_WEIGHT", "OFFSET_WEIGHT", "NORM_SIZE",
    }  # fmt: skip
    specs = []
    for index, entry in enumerate(node.TEACHERS):
        where = f"DISTILL.TEACHERS[{index}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a mapping with CONFIG and WEIGHTS, got {entry!r}")
        for key in entry:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise ValueError(f"{where}: unknown key '{key}'" + (f"; did you mean {near[0]}?" if near else ""))
        for key in ("CONFIG", "WEIGHTS"):
            if not entry.get(key):
                raise ValueError(f"{where}: {key} is missing")
        classes = entry.get("CLASSES")
        if classes is not None and not isinstance(classes, Mapping):
            classes = {name: name for name in classes}
        specs.append(
            TeacherSpec(
                config=entry["CONFIG"],
                weights=entry["WEIGHTS"],
                classes=dict(classes) if classes else None,
                student_slice=_slice(entry, "STUDENT_SLICE", where),
                teacher_slice=_slice(entry, "TEACHER_SLICE", where),
                loss=make_loss(cfg, entry),
            )
        )
    return specs


def make_loss(cfg: CfgNode, overrides: Mapping = {}) -> DistillationLoss:  # noqa: B006
    """The distillation terms of ``DISTILL``, with a teacher's own values where it has them."""
    node = cfg.DISTILL
    return DistillationLoss(
        definition=node.DEFINITION,
        weight=overrides.get("WEIGHT", node.WEIGHT),
        heatmap_weight=overrides.get("HEATMAP_WEIGHT", node.HEATMAP_WEIGHT),
        size_weight=overrides.get("SIZE_WEIGHT", node.SIZE_WEIGHT),
        offset_weight=overrides.get("OFFSET_WEIGHT", node.OFFSET_WEIGHT),
        norm_size=overrides.get("NORM_SIZE", node.NORM_SIZE),
        min_size=node.MIN_SIZE,
    )


def _slice(entry: Mapping, key: str, where: str) -> tuple[int, int] | None:
    value = entry.get(key)
    if value is None:
        return None
    if len(value) != 2 or not 0 <= value[0] < value[1]:
        raise ValueError(f"{where}: {key} must be [start, stop] with start < stop, got {value}")
    return int(value[0]), int(value[1])
