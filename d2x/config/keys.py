"""Config keys: those that every detector shares, on top of detectron2's own, and those that packages declare."""

from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

_DECLARATIONS: list[Callable[[CN], None]] = []
_UPGRADES: list[Callable[[CN, dict], None]] = []


def declare_keys(declaration: Callable[[CN], None], *, upgrade: Callable[[CN, dict], None] | None = None) -> None:
    """Have ``declaration(cfg)`` add its keys, with their defaults, to every config that is made from now on.

    Args:
        upgrade: ``upgrade(cfg, content)`` is called after a config file was read; it changes what a file that an
            earlier version has saved says in another way. ``content`` is the file's, with its bases.
    """
    if declaration not in _DECLARATIONS:
        _DECLARATIONS.append(declaration)
        _UPGRADES.extend([upgrade] if upgrade else [])


def upgrade_saved(cfg: CN, content: dict) -> None:
    """Apply every declared upgrade to a config into which a file was merged."""
    for upgrade in _UPGRADES:
        upgrade(cfg, content)


def get_base_cfg() -> CN:
    """detectron2's defaults plus the keys of ``d2x``, of the backbones and of every registered detector."""
    cfg = get_cfg()
    for declaration in (add_d2x_config, *_DECLARATIONS):
        declaration(cfg)
    return cfg


def flat_items(node: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every single setting of a config; groups are not among them."""
    for key, value in node.items():
        if isinstance(value, CN):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def add_d2x_config(cfg: CN) -> None:
    """Declare the keys read by ``d2x``; values are the defaults."""
    _add_data(cfg)
    _add_optimization(cfg)
    _add_losses(cfg)
    _add_checkpoints_and_health(cfg)

    # With several processes: batch norms take their statistics from the images of all of them.
    cfg.MODEL.SYNC_BATCH_NORM = False
    # Images per batch in evaluation.
    cfg.TEST.BATCH_SIZE = 1
    # Who computes COCO's statistics: "hotcoco", "pycocotools", or "auto", hotcoco where installed. Same numbers.
    cfg.TEST.COCO_EVAL = "auto"
    # Detect with batch norms folded into the convolutions before them and maps in channels-last order: the same numbers
    # to rounding, in less time. In --eval-only and wherever finished weights detect; not in evaluations while training.
    cfg.TEST.FOLD = False
    # Importable packages that register further detectors, as --plugin does.
    cfg.PLUGINS = []
    # Show one tqdm bar instead of a log line every 20 iterations.
    cfg.PROGRESS_BAR = False


def _add_data(cfg: CN) -> None:
    # A user's own COCO json files and image folders; when set they replace DATASETS.TRAIN / DATASETS.TEST.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.VAL_JSON = ""
    cfg.DATASETS.VAL_IMAGES = ""
    # Data sets that know different classes, or none: registered names, [json, image folder] pairs, folders of images.
    # When set they replace DATASETS.TRAIN (joined, each image knowing what it is labelled for) and DATASETS.TEST.
    cfg.DATASETS.TRAIN_SOURCES = []
    cfg.DATASETS.VAL_SOURCES = []
    # Names of the classes in the order of the model's outputs. Filled in from the data set when empty.
    cfg.DATASETS.CLASS_NAMES = []

    # Everyday JPEGs through simplejpeg where it is installed: the same pixels as Pillow's, see d2x/data/images.py.
    cfg.INPUT.FAST_DECODE = True
    # Resize in training with torch's kernel: Pillow's pixels to within one level, see d2x/data/fast_resize.py.
    cfg.INPUT.FAST_RESIZE = True


def _add_optimization(cfg: CN) -> None:
    # "SGD", "Adam" or "AdamW"; SGD reads MOMENTUM and NESTEROV, the others BETAS.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # With CLIP_GRADIENTS.ENABLED and CLIP_TYPE "norm": clip the norm over all parameters instead of each one's own.
    cfg.SOLVER.CLIP_GRADIENTS.WHOLE_MODEL = False
    # "iterations", or "epochs": MAX_ITER, WARMUP_ITERS, STEPS, CHECKPOINT_PERIOD, TEST.EVAL_PERIOD and
    # WEIGHT_AVERAGING.START / PERIOD are then epochs and are turned into iterations once, before training.
    cfg.SOLVER.UNIT = "iterations"
    # LR_SCHEDULER_NAME "WarmupFlatCosineLR": constant until this fraction of MAX_ITER, then cosine to BASE_LR_END.
    cfg.SOLVER.FLAT_FRACTION = 0.0
    # Batches whose gradients are summed before a step; the loss is divided by it.
    cfg.SOLVER.ACCUMULATE = 1
    # "float16" (with a gradient scaler, GPU only) or "bfloat16"; read when SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.PRECISION = "float16"
    # torch.compile the model's repeated blocks, see d2x/engine/compile_blocks.py.
    cfg.SOLVER.COMPILE = False

    # Averaged weights (torch.optim.swa_utils). They are what is evaluated, and what model_final.pth holds.
    cfg.WEIGHT_AVERAGING = CN()
    cfg.WEIGHT_AVERAGING.ENABLED = False
    cfg.WEIGHT_AVERAGING.MODE = "ema"  # "ema": exponential; "swa": equal-weight mean
    cfg.WEIGHT_AVERAGING.DECAY = 0.9998  # ema only
    cfg.WEIGHT_AVERAGING.START = 0  # first iteration that may enter the average
    cfg.WEIGHT_AVERAGING.PERIOD = 1  # iterations between two updates of the average
    # (from, to): cosine cycles of the learning rate, PERIOD iterations each, from START on; () follows the schedule.
    cfg.WEIGHT_AVERAGING.CYCLE_LR = ()
    # ema only: let the decay grow as min(DECAY, (1 + n) / (10 + n)) with the number n of updates.
    cfg.WEIGHT_AVERAGING.RAMP = True


def _add_losses(cfg: CN) -> None:
    # Scale every loss to a fixed target each iteration (the "communist" loss); for any model.
    cfg.ADAPTIVE_LOSS = CN()
    cfg.ADAPTIVE_LOSS.ENABLED = False
    # (pattern, target): the first shell-style pattern that matches a loss' name counts; other losses are unchanged.
    # For a DETR e.g. [["loss_class*", 1.0], ["loss_box*", 1.0], ["loss_giou*", 1.0]].
    cfg.ADAPTIVE_LOSS.TARGETS = [["*cls*", 1.5], ["*wh*", 0.3], ["*off*", 0.1]]
    cfg.ADAPTIVE_LOSS.MIN_LOSS = 1e-12  # a loss nearer to zero is left out for the step
    cfg.ADAPTIVE_LOSS.MAX_WEIGHT = 0.0  # limit of the weights; 0 for none

    # Skip a batch whose loss exceeds FACTOR times the last accepted one.
    cfg.SKIP_LOSS = CN()
    cfg.SKIP_LOSS.ENABLED = False
    cfg.SKIP_LOSS.FACTOR = 1.3
    cfg.SKIP_LOSS.MAX_SKIPS = 20  # accept any finite loss after so many skips in a row; 0 never, as released
    cfg.SKIP_LOSS.STEP_ANYWAY = False  # step with zero gradients, so that momentum and decay act, as released


def _add_checkpoints_and_health(cfg: CN) -> None:
    # Which checkpoints are kept besides those of SOLVER.CHECKPOINT_PERIOD and model_final.pth.
    cfg.CHECKPOINT = CN()
    cfg.CHECKPOINT.KEEP_LAST = 0  # so many of the latest model_NNNNNNN.pth, at least 2; 0 for all
    cfg.CHECKPOINT.KEEP_BEST = ""  # a metric, e.g. "bbox/AP": model_best.pth holds the weights that were best in it
    cfg.CHECKPOINT.SMALLER_IS_BETTER = False  # of that metric
    # Write model_best as .safetensors, and the final weights as model_final.safetensors beside the .pth.
    cfg.CHECKPOINT.SAFETENSORS = False

    # End training when a metric has not improved by more than MIN_DELTA for PATIENCE evaluations in a row.
    cfg.EARLY_STOP = CN()
    cfg.EARLY_STOP.METRIC = ""  # e.g. "bbox/AP"; "" for never
    cfg.EARLY_STOP.PATIENCE = 5
    cfg.EARLY_STOP.MIN_DELTA = 0.0
    cfg.EARLY_STOP.SMALLER_IS_BETTER = False

    cfg.HEALTH = CN()
    # A step whose loss or gradient is not finite is skipped; so many in a row end training. 0 for no limit.
    cfg.HEALTH.MAX_NON_FINITE = 10
    # The median loss of WINDOW steps is FACTOR times the lowest before it, or a part of the loss is zero.
    cfg.HEALTH.COLLAPSE = CN()
    cfg.HEALTH.COLLAPSE.WINDOW = 200  # 0 for no such check
    cfg.HEALTH.COLLAPSE.FACTOR = 10.0
    cfg.HEALTH.COLLAPSE.ACTION = "warn"  # or "stop"
