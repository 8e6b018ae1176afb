"""Plain-DETR: a backbone, one feature map, a decoder with global attention (Lin et al., ICCV 2023)."""

import math
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from d2x.backbones.tracing import exporting
from plain_detr.box_coder import BoxCoder
from plain_detr.build import build_parts
from plain_detr.checkpoint_settings import remember_settings
from plain_detr.criterion import SetCriterion
from plain_detr.decode import decode
from plain_detr.decoder import Decoder, DecoderInputs
from plain_detr.hybrid import QueryGroups, match_tasks
from plain_detr.padding import FeatureGrid, Size, cells, group_by_size, image_grid, join_maps, nearest_grid, size_of
from plain_detr.position_encoding import grid_code
from plain_detr.predictions import BoxSetPrediction, SetTargets
from plain_detr.proposals import Proposals, ProposalSelection, QueryInitializer
from plain_detr.targets import image_name, pack_targets

# Iterations between two entries of the error rates in the log: they cost a wait for the device.
LOG_PERIOD = 20


class Memory(NamedTuple):
    """What the decoder looks at.

    Attributes:
        features: (N, C, Hf, Wf), zero on padding.
        position: (N, Hf, Wf, C) float32, position code plus level embedding.
        grid: of both.
    """

    features: Tensor
    position: Tensor
    grid: FeatureGrid


@META_ARCH_REGISTRY.register()
class PlainDETR(nn.Module):
    """The detector, wired from finished parts.

    Args:
        backbone: a detectron2 backbone.
        in_feature: name of its one output that is used.
        upsample: takes that output to the stride of the decoder's map.
        input_projection: to C channels.
        encoder: between backbone and decoder, or None.
        normalize_position: position code "sine" instead of "sine_unnorm".
        proposals, queries, decoder: the three stages.
        coder: the space of boxes, the same object in all of them.
        groups: the query groups.
        criterion: the loss.
        num_classes: K.
        hidden_dim: C.
        topk: detections an image.
        pixel_mean, pixel_std: per channel, in the images' own unit (0-255) and channel order.
        batch_independent, valid_area, pad_multiple: see ``plain_detr.padding``.
        weight_settings: those that the weights depend on, see ``plain_detr.checkpoint_settings``.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str,
        upsample: nn.Module,
        input_projection: nn.Module,
        encoder: nn.Module | None,
        normalize_position: bool,
        proposals: Proposals,
        queries: QueryInitializer,
        decoder: Decoder,
        coder: BoxCoder,
        groups: QueryGroups,
        criterion: SetCriterion,
        num_classes: int,
        hidden_dim: int,
        topk: int,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        batch_independent: bool = True,
        valid_area: str = "image",
        pad_multiple: int = 1,
        weight_settings: dict[str, str] | None = None,
    ):
        super().__init__()
        if valid_area not in ("image", "nearest"):
            raise ValueError(f"MODEL.PLAIN_DETR.VALID_AREA must be 'image' or 'nearest', got '{valid_area}'")
        if pad_multiple < 1:
            raise ValueError(f"MODEL.PLAIN_DETR.PAD_MULTIPLE must be at least 1, got {pad_multiple}")
        self.backbone, self.in_feature, self.upsample = backbone, in_feature, upsample
        self.input_proj = input_projection
        self.level_embed = nn.Parameter(torch.randn(1, hidden_dim))
        self.encoder, self.normalize_position = encoder, normalize_position
        self.proposals, self.queries, self.decoder = proposals, queries, decoder
        self.coder, self.groups, self.criterion = coder, groups, criterion
        self.num_classes, self.hidden_dim, self.topk = num_classes, hidden_dim, topk
        self.batch_independent, self.valid_area, self.pad_multiple = batch_independent, valid_area, pad_multiple
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        remember_settings(self, weight_settings or {})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return build_parts(cfg)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections in evaluation.

        Args:
            batched_inputs: detectron2's format. ``image`` (3, h, w); ``instances`` with ``gt_boxes`` (xyxy, pixels of
                that image) and ``gt_classes`` in training; ``height`` and ``width`` of the file in evaluation;
                optional ``labelled_classes`` (int64, the classes the image's data set is labelled for).

        Returns:
            Training: weighted scalar losses. Evaluation: one ``{"instances": Instances}`` an image, with ``pred_boxes``
            (xyxy, pixels of the file), ``scores`` and ``pred_classes``.

        Raises:
            ValueError: pixels or boxes that are not finite, or classes outside the model's.
        """
        images = [self.normalized(record["image"], f"{image_name(record)}: the image") for record in batched_inputs]
        sizes = [size_of(image) for image in images]
        if self.training:
            targets = pack_targets(
                batched_inputs, sizes, num_classes=self.num_classes, coder=self.coder, device=self.device
            )
            layers, selection = self.predict(self.encode(images), training=True)
            return self._losses(layers, selection, targets)
        layers, _ = self.predict(self.encode(images), training=False)
        detections = decode(layers[-1], sizes, coder=self.coder, topk=self.topk)
        return [
            {"instances": detector_postprocess(instances, record.get("height", size[0]), record.get("width", size[1]))}
            for instances, record, size in zip(detections, batched_inputs, sizes)
        ]

    def encode(self, images: list[Tensor]) -> Memory:
        """Normalised images (3, h, w) of any sizes -> the one map the rest of the model looks at."""
        sizes = [size_of(image) for image in images]
        multiple = self.pad_multiple if self.batch_independent else 1
        rounded = [(-(-height // multiple) * multiple, -(-width // multiple) * multiple) for height, width in sizes]
        groups = group_by_size(rounded) if self.batch_independent else [list(range(len(sizes)))]
        maps, own, padded = [], list(sizes), list(sizes)
        for group in groups:
            batch = ImageList.from_tensors(
                [images[index] for index in group],
                math.lcm(multiple, max(self.backbone.size_divisibility, 1)),
                padding_constraints=self.backbone.padding_constraints,
            ).tensor
            features = self.upsample(self.backbone(batch)[self.in_feature])
            if self.batch_independent and self.valid_area == "image":
                rows, columns = cells(rounded[group[0]], self.proposals.stride)
                features = features[:, :, :rows, :columns]
            maps.append(self.input_proj(features))
            for index in group:
                own[index], padded[index] = size_of(features), size_of(batch)
        features = join_maps(maps, groups)
        grid = self._grid(sizes, size_of(features), own, padded)
        if self.valid_area == "image":
            features, grid = _without_padding(features, grid)
        position = grid_code(grid, self.hidden_dim, normalize=self.normalize_position, device=features.device)
        position = position + self.level_embed
        if self.encoder is not None:
            outside = grid.padding(features.device)
            features = self.encoder(features, position, outside).masked_fill(outside[:, None], 0)
        return Memory(features, position, grid)

    def predict(self, memory: Memory, *, training: bool) -> tuple[list[BoxSetPrediction], ProposalSelection]:
        """Predictions of every decoder layer for both query groups (training) or the one-to-one group alone."""
        groups = self.groups.sizes(training)
        selection = self.proposals(memory.features, memory.grid, sum(groups), all_predictions=training)
        return self.decoder(self._decoder_inputs(memory, selection, groups)), selection

    @torch.no_grad()
    def attention_weights(self, image: Tensor, *, layer: int = -1, with_bias: bool = True) -> Tensor:
        """What the one-to-one queries look at in one image (3, h, w) in the images' own unit.

        Args:
            layer: index of the decoder layer.
            with_bias: False leaves the bias by box out of that layer's logits.

        Returns:
            (heads, Q, Hf, Wf), each map sums to 1. Query q is row q of ``predict``'s last prediction.
        """
        memory = self.encode([self.normalized(image)])
        groups = self.groups.sizes(training=False)
        selection = self.proposals(memory.features, memory.grid, sum(groups), all_predictions=False)
        inputs = self._decoder_inputs(memory, selection, groups)
        return self.decoder.attention_weights(inputs, layer=layer, with_bias=with_bias)[0]

    def _decoder_inputs(self, memory: Memory, selection: ProposalSelection, groups: list[int]) -> DecoderInputs:
        content, position = self.queries(selection.reference)
        return DecoderInputs(
            content=content,
            position=position,
            reference=selection.reference,
            groups=groups,
            memory=memory.features.flatten(2).transpose(1, 2),
            memory_position=memory.position.flatten(1, 2),
            grid=memory.grid,
            extent=selection.extent,
        )

    def _losses(
        self, layers: list[BoxSetPrediction], selection: ProposalSelection, targets: SetTargets
    ) -> dict[str, Tensor]:
        log = has_event_storage() and get_event_storage().iter % LOG_PERIOD == 0
        tasks = match_tasks(layers, selection.prediction, self.groups, class_aware_proposals=self.proposals.class_aware)
        losses, errors = self.criterion(tasks, targets, with_errors=log)
        if log:
            get_event_storage().put_scalars(**errors)
        return losses

    def _grid(self, sizes: list[Size], hw: Size, own: list[Size], padded: list[Size]) -> FeatureGrid:
        stride = self.proposals.stride
        if self.valid_area == "image":
            return image_grid(sizes, hw, own, stride)
        return nearest_grid(sizes, padded, hw, own, stride)

    def normalized(self, image: Tensor, name: str = "the image") -> Tensor:
        """(3, h, w) in the images' own unit -> the network's, on its device.

        Raises:
            ValueError: pixels that are not finite; the message starts with ``name``.
        """
        if image.is_floating_point() and not exporting() and not image.isfinite().all():
            raise ValueError(f"{name} has pixels that are not finite")
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std


def _without_padding(features: Tensor, grid: FeatureGrid) -> tuple[Tensor, FeatureGrid]:
    """Cut the rows and columns that no image reaches into, and set the rest of the padding to zero."""
    height, width = (max(valid[axis] for valid in grid.valid) for axis in (0, 1))
    features = features[:, :, :height, :width]
    grid = grid._replace(hw=(height, width), own=grid.valid)
    padding = grid.key_padding(features.device)
    if padding is not None:
        features = features.masked_fill(padding.view(-1, 1, height, width), 0)
    return features, grid
