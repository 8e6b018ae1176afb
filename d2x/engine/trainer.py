"""The trainer of every detector here: detectron2's ``DefaultTrainer`` with the parts its config cannot choose."""

import contextlib
import glob
import logging
import os
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from d2x.atomic_files import remove_leftovers, require_writable
from d2x.checkpoint.files import Checkpointer
from d2x.checkpoint.hooks import BestCheckpoint, PeriodicCheckpoints
from d2x.config.unread import unread_settings, watched
from d2x.data.mapper import make_test_mapper, make_train_mapper
from d2x.data.sets.training_set import training_records
from d2x.detectors import get_recipe
from d2x.engine.compile_blocks import compile_blocks
from d2x.engine.health.divergence import LossCollapse
from d2x.engine.health.step_guard import DIAGNOSTICS, StepGuard
from d2x.engine.losses.build import build_loss_transforms
from d2x.engine.optim import build_optimizer
from d2x.engine.progress import ProgressBar
from d2x.engine.resume.evaluation import ResumableEvalHook, share_buffers
from d2x.engine.resume.precise_bn import RepeatablePreciseBN
from d2x.engine.resume.seeding import SeedEachStep
from d2x.engine.resume.stopping import EarlyStop, StopOnSignal, StopSignals
from d2x.engine.schedules import build_lr_scheduler, epochs_to_iterations
from d2x.engine.step import TrainStep
from d2x.engine.sync_norm import synchronize_batch_norms
from d2x.engine.train_loader import build_train_loader, run_seed
from d2x.engine.weight_averaging import WeightAveraging
from d2x.errors import one_line
from d2x.evaluation.coco import build_coco_evaluator

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains ``MODEL.META_ARCHITECTURE`` with its package's recipe.

    Differences from ``DefaultTrainer``: augmentations and parameter groups come from the recipe; the optimizer, the
    flat-then-cosine schedule, accumulation, bfloat16 and averaged weights come from the config; checkpoints are
    written atomically and read safely, and a run that is resumed from one goes on, on a CPU bit for bit, as if it had
    never been interrupted (docs/fault_tolerance.md). ``train`` may end before ``max_iter``, see ``request_stop``.

    Raises:
        WriteError: ``OUTPUT_DIR`` cannot be written.
        ValueError: a key of the config has a value that cannot be.
    """

    model: nn.Module
    data_loader: Any  # a ``DataLoader`` of a ``SeededDataset`` in a ``DataOrder``, see ``build_train_loader``

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor fixes the step and the checkpointer
        cfg = watched(cfg)
        cfg = epochs_to_iterations(cfg, _num_images(cfg) if cfg.SOLVER.UNIT == "epochs" else 0)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if comm.is_main_process():
            require_writable(cfg.OUTPUT_DIR)
            below = glob.glob(os.path.join(glob.escape(cfg.OUTPUT_DIR), DIAGNOSTICS, "*", ""))
            for folder in (cfg.OUTPUT_DIR, *below):
                for name in remove_leftovers(folder):
                    logger.info("removed %s, left half-written by an earlier process", os.path.join(folder, name))
        model = self.build_model(cfg)
        if cfg.MODEL.SYNC_BATCH_NORM and comm.get_world_size() > 1:
            logger.info("%d batch norms are synchronised over processes", synchronize_batch_norms(model))
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.signals, self._stop = StopSignals(), ""
        self._averaging = WeightAveraging.from_cfg(cfg, model) if cfg.WEIGHT_AVERAGING.ENABLED else None
        if cfg.SOLVER.COMPILE:
            logger.info("compiling %d blocks when they first run", len(compile_blocks(model)))
        devices: dict[str, Any] = {} if next(model.parameters()).is_cuda else {"device_ids": None}
        self._trainer = TrainStep(
            create_ddp_model(model, broadcast_buffers=False, **devices),
            data_loader,
            optimizer,
            precision=cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "float32",
            accumulate=cfg.SOLVER.ACCUMULATE,
            loss_transforms=build_loss_transforms(cfg, model),
            guard=StepGuard(
                model, max_in_a_row=cfg.HEALTH.MAX_NON_FINITE, checkpointer=self.checkpointer, config=cfg.dump()
            ),
        )
        self.register_hooks([*self.build_hooks()])
        get_recipe(cfg.MODEL.META_ARCHITECTURE).test_augmentations(cfg)  # for what evaluations will read
        _name_unread(cfg)

    @property
    def seed(self) -> int:
        """What every random choice of the run follows from; of a resumed run, the seed it was started with."""
        return self.data_loader.batch_sampler.seed

    def request_stop(self, reason: str) -> None:
        """End training after the current step, as an orderly end; ``reason`` is logged. Call it from a hook."""
        self._stop = reason

    def train(self) -> dict | None:
        """Run from ``start_iter`` to ``max_iter``, or until a hook or a signal ends it.

        Returns:
            Evaluation results, where the config has expectations of them.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage, self.signals:
            try:
                self.before_train()
                self.iter = self.start_iter
                while self.iter < self.max_iter and not self._stop:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
                if not self._stop:
                    self.after_train()
            except BaseException as error:
                _log_end(error)
                self._close(suppress=True)
                raise
            if self._stop:
                self.iter -= 1
                self._close()
                logger.warning(self._stop)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process() and not self._stop:
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def _close(self, *, suppress: bool = False) -> None:
        """The hooks' ends without what belongs to a finished training only: the last evaluation."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            if not isinstance(hook, (hooks.EvalHook, BestCheckpoint)):
                with contextlib.suppress(*[Exception] * suppress):
                    hook.after_train()

    def state_dict(self) -> dict:
        order = self.data_loader.batch_sampler.state_after(self._trainer.batches_taken)
        return {**super().state_dict(), "data_order": order}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if "data_order" not in state_dict:
            logger.warning("the checkpoint does not say which samples were used: the data start from the beginning")
            return
        if not self.data_loader.batch_sampler.continue_from(state_dict["data_order"]):
            logger.warning("the training data have changed since the checkpoint: a new epoch starts")
        self.data_loader.dataset.seed = self.seed

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        try:
            model = build_model(cfg)
        except (ValueError, OSError):
            raise
        except Exception as error:  # the parts of models raise anything for numbers that do not fit together
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(f"MODEL: no model can be built from the config ({reason})") from error
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
        return build_train_loader(cfg, make_train_mapper(cfg, augmentations), run_seed(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        augmentations = get_recipe(cfg.MODEL.META_ARCHITECTURE).test_augmentations(cfg)
        make_loader: Any = build_detection_test_loader  # whose decorator hides its arguments
        return make_loader(
            cfg, dataset_name, mapper=make_test_mapper(cfg, augmentations), batch_size=cfg.TEST.BATCH_SIZE
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_coco_evaluator(cfg, dataset_name, folder)

    def build_hooks(self) -> list[HookBase]:
        """All hooks, in the order in which they act."""
        cfg, main = self.cfg, comm.is_main_process()
        recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
        checkpoints = PeriodicCheckpoints(
            self.checkpointer,
            cfg.SOLVER.CHECKPOINT_PERIOD,
            keep_last=cfg.CHECKPOINT.KEEP_LAST,
            safetensors=cfg.CHECKPOINT.SAFETENSORS,
        )
        return [
            SeedEachStep(),  # before anything draws a random number
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # What changes with every step comes before the checkpoints, which would else hold it as of the step before.
            *([self._averaging] if self._averaging else []),
            *([LossCollapse.from_cfg(cfg)] if cfg.HEALTH.COLLAPSE.WINDOW else []),
            *self._precise_bn(),  # changes the model that is then saved and evaluated
            *([checkpoints] if main else []),  # before the evaluation, so that a failing one costs nothing
            ResumableEvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            # These read the results of the evaluation; a resumed run makes up for one that was cut short.
            *([self._keep_best()] if cfg.CHECKPOINT.KEEP_BEST and main else []),
            *([EarlyStop.from_cfg(cfg)] if cfg.EARLY_STOP.METRIC else []),
            *recipe.extra_hooks(cfg, self.bare_model),
            *([hooks.PeriodicWriter(self.build_writers(), period=20)] if main else []),  # after all that logs
            *([ProgressBar()] if cfg.PROGRESS_BAR and main else []),
            StopOnSignal(self.signals, checkpoints if main else None),  # last: it saves what the others have done
        ]

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper of data-parallel training."""
        return getattr(self.model, "module", self.model)

    def _precise_bn(self) -> list[HookBase]:
        node = self.cfg.TEST.PRECISE_BN
        if not node.ENABLED or not get_bn_modules(self.model):
            return []
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # a loader of its own, which is read seldom
        return [RepeatablePreciseBN(cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), node.NUM_ITER)]

    def _keep_best(self) -> BestCheckpoint:
        node = self.cfg.CHECKPOINT
        return BestCheckpoint(
            self.checkpointer,
            node.KEEP_BEST,
            smaller_is_better=node.SMALLER_IS_BETTER,
            evaluated=self._evaluated_weights,
            safetensors=node.SAFETENSORS,
        )

    def _evaluated_weights(self) -> contextlib.AbstractContextManager:
        return self._averaging.applied() if self._averaging else contextlib.nullcontext()

    def _evaluate(self) -> dict:
        with self._evaluated_weights():
            share_buffers(self.model)
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self):
        writers = super().build_writers()
        return writers[1:] if self.cfg.PROGRESS_BAR else writers  # the first one prints lines


def _name_unread(cfg: CfgNode) -> None:
    unread = unread_settings(cfg)
    if unread:
        settings = ", ".join(f"{key} {value}" for key, value in unread.items())
        logger.warning("settings that %s does not read with this config: %s", cfg.MODEL.META_ARCHITECTURE, settings)


def _log_end(error: BaseException) -> None:
    """What is wrong with the user's input or machine in one line, a bug with its traceback."""
    text = one_line(error)
    if text is not None:
        logger.error("training ended: %s", text)
    else:
        logger.error("training ended", exc_info=error)


def _num_images(cfg: CfgNode) -> int:
    return len(training_records(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS))
