"""Config keys of distillation."""

from detectron2.config import CfgNode as CN


def add_distill_config(cfg: CN) -> None:
    """Declare ``DISTILL.*``, read by the meta-architectures "DistilledCenterNet" and "DistilledFCOS"."""
    if "DISTILL" in cfg:
        return
    cfg.DISTILL = CN()
    # One mapping a teacher: CONFIG and WEIGHTS (files) and, optionally,
    #   CLASSES: a list of class names that both have, or {teacher's name: student's name}; default: all common names
    #   STUDENT_SLICE: [start, stop] student classes, taught in order by the teacher's TEACHER_SLICE (default: all)
    #   WEIGHT, HEATMAP_WEIGHT, SIZE_WEIGHT, OFFSET_WEIGHT, NORM_SIZE: instead of the values below
    cfg.DISTILL.TEACHERS = []
    cfg.DISTILL.DEFINITION = "released"  # or "article"; see centerx/distill/terms.py
    cfg.DISTILL.WEIGHT = 1.0  # of a teacher; multiplies the three below
    cfg.DISTILL.HEATMAP_WEIGHT = 1000.0
    cfg.DISTILL.SIZE_WEIGHT = 1.0
    cfg.DISTILL.OFFSET_WEIGHT = 0.1
    cfg.DISTILL.NORM_SIZE = False  # divide size errors by the teacher's size
    cfg.DISTILL.MIN_SIZE = 0.0  # of NORM_SIZE: smallest divisor, in cells; 0: no limit, as released
    cfg.DISTILL.LABELS = True  # False: label-free, teachers alone train the student; annotations are not read
    # A class that several teachers have: "average" (each pulls with an equal share) or "first" (in TEACHERS' order).
    cfg.DISTILL.OVERLAP = "average"
    cfg.DISTILL.STRIDE_MISMATCH = "error"  # or "resize": teachers' maps are resampled to the student's stride
    # Teachers see images normalised with the student's mean and std, as the released code does, not with their own.
    cfg.DISTILL.STUDENT_NORMALISATION = False
    # Start from this teacher's weights (index into TEACHERS), as far as shapes fit; -1: from MODEL.WEIGHTS or scratch.
    cfg.DISTILL.WARM_START = -1

    # One more teacher: the exponential moving average of the student itself, for all classes.
    cfg.DISTILL.EMA = CN()
    cfg.DISTILL.EMA.ENABLED = False
    cfg.DISTILL.EMA.DECAY = 0.999  # grows towards it as (1 + n) / (10 + n) with the number n of steps
    cfg.DISTILL.EMA.WEIGHT = 1.0  # instead of DISTILL.WEIGHT
    cfg.DISTILL.EMA.START = 0  # steps before it teaches
