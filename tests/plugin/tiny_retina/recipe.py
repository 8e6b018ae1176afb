"""How it is trained: everything that the trainer asks of a detector."""

from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.solver.build import get_default_optimizer_params

CLASS_COUNT_KEY = "MODEL.RETINANET.NUM_CLASSES"


def train_augmentations(cfg):
    return [T.RandomFlip()] if cfg.TINY_RETINA.FLIP else []


def test_augmentations(cfg):
    return []


def param_groups(cfg, model):
    return get_default_optimizer_params(model, base_lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def extra_hooks(cfg, model):
    return [KeepNormalizer(model)]


class KeepNormalizer(HookBase):
    """RetinaNet divides its losses by a running mean of positives, which is in no state dict of its own."""

    def __init__(self, model):
        self.model = model

    def state_dict(self):
        return {"loss_normalizer": self.model.loss_normalizer}

    def load_state_dict(self, state):
        self.model.loss_normalizer = state["loss_normalizer"]
