"""Predictor for single images, with the recipe's own test-time resizing."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from d2x.checkpoint.files import Checkpointer
from d2x.detectors import get_recipe
from d2x.inference.fold import for_inference


class Predictor:
    """Builds the model of a config with its ``MODEL.WEIGHTS`` and runs it on single images.

    detectron2's ``DefaultPredictor`` always resizes by the shortest edge; this one uses the recipe's augmentations,
    so an image is seen as evaluation sees it.
    """

    def __init__(self, cfg: CfgNode):
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: give a checkpoint, e.g. MODEL.WEIGHTS output/model_final.pth")
        model = build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        self.model = for_inference(cfg, model)
        recipe = get_recipe(cfg.MODEL.META_ARCHITECTURE)
        self._augmentations = T.AugmentationList(recipe.test_augmentations(cfg))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detect.

        Args:
            image: (H, W, 3) uint8 in the order of ``INPUT.FORMAT``.

        Returns:
            ``Instances`` on the CPU with ``pred_boxes`` (xyxy, pixels of ``image``), ``scores``, ``pred_classes``.
        """
        height, width = image.shape[:2]
        pixels = torch.as_tensor(np.ascontiguousarray(self.resize(image).transpose(2, 0, 1)))
        (result,) = self.model([{"image": pixels, "height": height, "width": width}])
        return result["instances"].to("cpu")

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image as the recipe's test-time augmentations make it, (h, w, 3) uint8."""
        data = T.AugInput(image)
        self._augmentations(data)
        assert data.image is not None
        return data.image
