"""CenterNet ("Objects as Points", arXiv:1904.07850): objects are peaks of a heatmap, boxes are read at the peaks."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from centerx.build import build_parts
from centerx.decode import decode
from centerx.features import finest_first
from centerx.head import CenterHead
from centerx.losses import CenterLoss
from centerx.predictions import CenterPredictions, CenterTargets
from centerx.targets import make_targets
from d2x.deploy.graph import inside


@META_ARCH_REGISTRY.register()
class CenterNet(DenseDetector):
    """Backbone, head, targets, losses and decoding, wired together.

    Input as for every detectron2 detector: dicts with ``image`` (3, h, w), 0-255; in training ``instances`` with
    ``gt_boxes`` (xyxy, px) and ``gt_classes``, and optionally ``labelled_classes`` (L,) int64, the classes that the
    image's data set is labelled for; in evaluation optionally ``height`` and ``width`` of the original file.

    Training gives ``loss_cls``, ``loss_box_wh`` and ``loss_off_reg``, weighted scalars; evaluation gives
    ``[{"instances": Instances}]`` with ``pred_boxes`` (xyxy px of the original file), ``scores`` (descending) and
    ``pred_classes``.

    Of detectron2's ``DenseDetector`` it takes construction, normalisation and padding. ``forward`` is its own: the
    base class does not hand the input dicts to the losses, which need ``labelled_classes`` (and, in a subclass, images
    without ``instances``), and sends differently sized images through the network together.

    A subclass adds training terms by overriding :meth:`losses`; ``predict``, ``targets`` and ``criterion`` are there
    for it to use.

    Args:
        backbone: with one output, at the output stride.
        head: that backbone's features to ``CenterPredictions``.
        criterion: predictions and targets to the loss dict.
        num_classes: K.
        pixel_mean, pixel_std: per channel, in 0-255, in the channel order of the images.
        min_overlap, max_boxes: see ``make_targets``.
        max_detections: per image, over all classes.
        min_score: a detection must score more; below 0 all ``max_detections`` are kept.
        batch_independent: in evaluation, one pass per distinct padded size instead of one over the padded batch.
        centres_in_padding: keep detections whose centre lies outside their image.
        clip_boxes: clip to the image and drop boxes that are then empty.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: CenterHead,
        criterion: CenterLoss,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        min_overlap: float = 0.7,
        max_boxes: int = 0,
        max_detections: int = 100,
        min_score: float = 0.0,
        batch_independent: bool = True,
        centres_in_padding: bool = False,
        clip_boxes: bool = True,
    ):
        super().__init__(backbone, head, pixel_mean=pixel_mean, pixel_std=pixel_std)
        (feature,) = finest_first(backbone.output_shape())
        self.stride = feature.stride
        self.criterion = criterion
        self.num_classes = num_classes
        self.min_overlap, self.max_boxes = min_overlap, max_boxes
        self.max_detections, self.min_score = max_detections, min_score
        self.batch_independent = batch_independent
        self.centres_in_padding, self.clip_boxes = centres_in_padding, clip_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return build_parts(cfg)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """See the class."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        return self.losses(batched_inputs, images, self.predict(images.tensor))

    def predict(self, images: Tensor) -> CenterPredictions:
        """Normalised and padded images, (N, 3, H, W), to the head's maps."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.head_in_features])

    def losses(
        self, batched_inputs: list[dict], images: ImageList, predictions: CenterPredictions
    ) -> dict[str, Tensor]:
        """The loss dict of a training batch.

        Args:
            images: the normalised and padded batch that ``predictions`` were made from.
        """
        return self.criterion(predictions, self.targets(batched_inputs, predictions))

    def targets(self, batched_inputs: list[dict], predictions: CenterPredictions) -> CenterTargets:
        """Training targets on the model's device, on the grid of ``predictions``. The inputs are not changed.

        Raises:
            ValueError: an image has no ``instances``.
        """
        if any("instances" not in record for record in batched_inputs):
            raise ValueError("an image without instances (annotations) in training")
        instances = [record["instances"] for record in batched_inputs]
        height, width = predictions.heatmap_logits.shape[2:]
        return make_targets(
            [objects.gt_boxes.tensor.to(self.device) for objects in instances],
            [objects.gt_classes.to(self.device) for objects in instances],
            num_classes=self.num_classes,
            stride=self.stride,
            grid_hw=(height, width),
            min_overlap=self.min_overlap,
            max_boxes=self.max_boxes,
            labelled_classes=[record.get("labelled_classes") for record in batched_inputs],
        )

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections of each image, in pixels of its original file."""
        results: list[Instances | None] = [None] * len(batched_inputs)
        for indices in self._passes(batched_inputs):
            images = self.preprocess_image([batched_inputs[i] for i in indices])
            detections = self.detect(self.predict(images.tensor), images.image_sizes)
            for i, instances in zip(indices, detections):
                results[i] = self._to_original(instances, batched_inputs[i])
        return [{"instances": instances} for instances in results]

    def detect(self, predictions: CenterPredictions, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Decode maps to boxes in pixels of the padded input, one ``Instances`` an image.

        Args:
            image_sizes: (h, w) of each image before padding.
        """
        heatmap = predictions.heatmap_logits.sigmoid()
        if not self.centres_in_padding:
            sizes = torch.as_tensor([list(map(int, size)) for size in image_sizes], device=heatmap.device)
            heatmap = heatmap * inside(heatmap.shape[2:], self.stride, sizes)
        best = decode(heatmap, predictions.size, predictions.offset, self.max_detections)
        results = []
        for (height, width), boxes, scores, classes in zip(image_sizes, best.boxes, best.scores, best.classes):
            keep = scores > self.min_score
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(boxes[keep] * self.stride)
            instances.scores = scores[keep]
            instances.pred_classes = classes[keep]
            results.append(instances)
        return results

    def _passes(self, batched_inputs: list[dict]) -> list[list[int]]:
        """Indices of the images that go through the network together."""
        if not self.batch_independent:
            return [list(range(len(batched_inputs)))]
        passes: dict[tuple, list[int]] = {}
        for i, record in enumerate(batched_inputs):
            passes.setdefault(tuple(record["image"].shape[-2:]), []).append(i)
        return list(passes.values())

    def _to_original(self, instances: Instances, record: dict) -> Instances:
        height, width = record.get("height", instances.image_size[0]), record.get("width", instances.image_size[1])
        if self.clip_boxes:
            return detector_postprocess(instances, height, width)
        scaled = Instances((height, width), **instances.get_fields())
        scaled.pred_boxes = instances.pred_boxes.clone()
        scaled.pred_boxes.scale(width / instances.image_size[1], height / instances.image_size[0])
        return scaled
