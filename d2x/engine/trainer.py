"""The trainer of every detector here: detectron2's ``DefaultTrainer`` with the parts its config cannot choose."""

import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from d2x.data.mapper import make_test_mapper, make_train_mapper
from d2x.engine.adaptive_loss import build_loss_transforms
from d2x.engine.checkpoint import Checkpointer
from d2x.engine.compile_blocks import compile_blocks
from d2x.engine.optim import build_optimizer
from d2x.engine.progress import ProgressBar
from d2x.engine.recipe import get_recipe
from d2x.engine.schedules import build_lr_scheduler, epochs_to_iterations
from d2x.engine.step import TrainStep
from d2x.engine.weight_averaging import WeightAveraging

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains ``MODEL.META_ARCHITECTURE`` with its package's recipe.

    Differences from ``DefaultTrainer``: augmentations and parameter groups come from the recipe; the optimizer, the
    flat-then-cosine schedule, accumulation, bfloat16 and averaged weights come from the config; checkpoints are
    written atomically and read safely.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor fixes the step and the checkpointer
        cfg = epochs_to_iterations(cfg, _num_images(cfg) if cfg.SOLVER.UNIT == "epochs" else 0)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._averaging = WeightAveraging.from_cfg(cfg, model) if cfg.WEIGHT_AVERAGING.ENABLED else None
        if cfg.SOLVER.COMPILE:
            logger.info("compiling %d blocks when they first run", len(compile_blocks(model)))
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            precision=cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "float32",
            accumulate=cfg.SOLVER.ACCUMULATE,
            loss_transforms=build_loss_transforms(cfg, model),
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        logger.debug("Model:\n%s", model)
        logger.info("%s: %.2f M trainable parameters", cfg.MODEL.META_ARCHITECTURE, trained / 1e6)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, get_recipe(cfg.MODEL.META_ARCHITECTURE).param_groups(cfg, model))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        augmentations = get_recipe(cfg.MODEL.META_ARCHITECTURE).train_augmentations(cfg)
        return build_detection_train_loader(cfg, mapper=make_train_mapper(cfg, augmentations))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        augmentations = get_recipe(cfg.MODEL.META_ARCHITECTURE).test_augmentations(cfg)
        return build_detection_test_loader(
            cfg, dataset_name, mapper=make_test_mapper(cfg, augmentations), batch_size=cfg.TEST.BATCH_SIZE
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return COCOEvaluator(dataset_name, tasks=("bbox",), output_dir=folder, max_dets_per_image=None)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, with averaged weights applied before they are saved or evaluated, then the recipe's."""
        found = super().build_hooks()
        if self._averaging:
            after_lr = 1 + next(i for i, hook in enumerate(found) if isinstance(hook, hooks.LRScheduler))
            found.insert(after_lr, self._averaging)
            self._evaluate_averaged(found)
        extra = get_recipe(self.cfg.MODEL.META_ARCHITECTURE).extra_hooks(self.cfg, self)
        last = len(found) - 1 if comm.is_main_process() else len(found)  # the writer stays last
        found[last:last] = extra
        if self.cfg.PROGRESS_BAR and comm.is_main_process():
            found.append(ProgressBar())
        return found

    def _evaluate_averaged(self, found: list[HookBase]) -> None:
        def evaluate():
            with self._averaging.applied():
                self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        index = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
        found[index] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate)

    def build_writers(self):
        writers = super().build_writers()
        return writers[1:] if self.cfg.PROGRESS_BAR else writers  # the first one prints lines


def _num_images(cfg: CfgNode) -> int:
    return len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS))
