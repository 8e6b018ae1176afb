"""Every training of the claims: its settings, and the trainings it learns from."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.scale import A, B, Scale
from d2x.data.sets.shapes import CLASSES

ROOT = Path(__file__).resolve().parents[2]
RATES = (0.02, 0.05, 0.1)  # of SGD, from one that both losses can use to one that breaks the plain loss
QUICKSTART = ROOT / "projects/CenterX/configs/quickstart.yaml"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: of the row or of what a row needs.
        opts: config overrides.
        needs: names of runs of the same seed that teach and must be done before.
        pseudo: make the training set from the teachers' detections first; otherwise they distil.
    """

    name: str
    opts: tuple = ()
    needs: tuple[str, ...] = ()
    pseudo: bool = False

    def key(self, scale: Scale, seed: int, runs: dict[str, "Run"]) -> str:
        """Hash of everything that the result depends on, needed runs included."""
        content = [dataclasses.asdict(scale), seed, self.name, self.opts, self.pseudo, QUICKSTART.read_text()]
        content += [runs[name].key(scale, seed, runs) for name in self.needs]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def network(widths: Sequence[int], neck: Sequence[int], iterations: int, scale: Scale) -> tuple:
    warmup = max(1, iterations // 20)
    return (
        *("MODEL.SMALL_RESNET.WIDTHS", list(widths), "MODEL.CENTERNET.NECK.CHANNELS", list(neck)),
        *("MODEL.CENTERNET.HEAD_CHANNELS", neck[-1], "MODEL.DEVICE", scale.device),
        *("SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", warmup, "SOLVER.IMS_PER_BATCH", scale.batch),
        *("SOLVER.CHECKPOINT_PERIOD", max(1, iterations // 4), "TEST.EVAL_PERIOD", 0),
        *("DATALOADER.NUM_WORKERS", scale.workers),
    )


def data(train: Sequence[str], val: Sequence[str], classes: Sequence[str] = CLASSES) -> tuple:
    return (
        *("DATASETS.TRAIN_SOURCES", list(train), "DATASETS.VAL_SOURCES", list(val)),
        *("DATASETS.CLASS_NAMES", list(classes)),
    )


def all_runs(scale: Scale) -> dict[str, Run]:
    """Every run by its name, each after those it needs."""
    teacher = network(scale.teacher_widths, scale.teacher_neck, scale.teacher_iterations, scale)
    student = network(scale.student_widths, scale.student_neck, scale.student_iterations, scale)
    distilled = ("MODEL.META_ARCHITECTURE", "DistilledCenterNet", "DISTILL.NORM_SIZE", True)
    label_free = (*distilled, "DISTILL.LABELS", False)
    train, val = data(["claims_train"], ["claims_val"]), ["claims_a_val", "claims_b_val"]
    more = data(["claims_train", "claims_unlabelled"], ["claims_val"])
    union = data(["claims_a_train", "claims_b_train"], val)
    # The size loss that the adaptive targets are meant for, and the smooth schedule that they ask for.
    sgd = (
        *(*student, *train, "SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", False),
        *("SOLVER.WEIGHT_DECAY", 0.0001, "SOLVER.FLAT_FRACTION", 0.0),
        *("MODEL.CENTERNET.LOSS.SIZE", "l1", "MODEL.CENTERNET.LOSS.SIZE_WEIGHT", 0.1),
    )
    adaptive = ("ADAPTIVE_LOSS.ENABLED", True)
    found = [
        Run("teacher", (*teacher, *train)),
        Run("student", (*student, *train)),
        Run("student_kd", (*student, *train, *distilled), ("teacher",)),
        Run("student_label_free", (*student, *train, *label_free), ("teacher",)),
        Run("student_label_free_more_images", (*student, *more, *label_free), ("teacher",)),
        Run("student_self_kd", (*student, *train, *distilled), ("student",)),
        Run("teacher_a", (*teacher, *data(["claims_a_train"], ["claims_a_val"], A))),
        Run("teacher_b", (*teacher, *data(["claims_b_train"], ["claims_b_val"], B))),
        Run("only_a", (*student, *data(["claims_a_train"], ["claims_a_val"], A))),
        Run("only_b", (*student, *data(["claims_b_train"], ["claims_b_val"], B))),
        Run("as_negatives", (*student, *union, "MODEL.CENTERNET.LOSS.UNLABELLED", "none")),
        Run("ignore_unlabelled", (*student, *union)),
        Run("pseudo_labels", (*student, *data([], val)), ("teacher_a", "teacher_b"), pseudo=True),
        Run("two_teachers", (*student, *union, *label_free), ("teacher_a", "teacher_b")),
        *(
            Run(f"sgd_{rate}_{loss}", (*sgd, *(adaptive if loss == "adaptive" else ()), "SOLVER.BASE_LR", rate))
            for rate in RATES
            for loss in ("plain", "adaptive")
        ),
    ]
    return {run.name: run for run in found}
