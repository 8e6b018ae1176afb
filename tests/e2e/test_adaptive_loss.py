"""The adaptive loss with the other detector: it knows nothing of either."""

from pathlib import Path

import pytest

import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[2] / "projects/PlainDETR/configs/quickstart.yaml"


def test_plain_detr_trains_with_adaptive_losses(tmp_path):
    opts = ["DATASETS.TRAIN", "('shapes_tiny_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)]
    opts += ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "0"]
    opts += ["ADAPTIVE_LOSS.ENABLED", "True", "ADAPTIVE_LOSS.TARGETS", "[['loss_class*', 1.0], ['loss_*', 0.5]]"]
    trainer = Trainer(prepare_data(load_cfg(str(CONFIG), opts)))
    trainer.train()
    (adaptive,) = trainer._trainer.loss_transforms
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if name.startswith("loss_")}
    # a batch may be without objects, and its box losses zero
    assert "loss_class_d0" in adaptive.weights and set(adaptive.weights) | set(adaptive.left_out) == set(losses)
    for name, weight in adaptive.weights.items():
        assert weight * losses[name] == pytest.approx(1.0 if name.startswith("loss_class") else 0.5, rel=1e-4)
