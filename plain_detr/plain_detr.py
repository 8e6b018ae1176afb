"""Plain-DETR: a backbone, one feature map, a decoder with global attention (Lin et al., ICCV 2023)."""

import math
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from plain_detr.box_coder import BOX_CODERS, BoxCoder, xyxy_to_cxcywh
from plain_detr.box_position_bias import BoxRPB
from plain_detr.criterion import LossWeights, SetCriterion
from plain_detr.decode import decode
from plain_detr.decoder import Decoder
from plain_detr.decoder_layer import CrossAttention, DecoderLayer
from plain_detr.encoder import Encoder
from plain_detr.hybrid import QueryGroups, match_tasks
from plain_detr.matcher import CostWeights, HungarianMatcher
from plain_detr.padding import FeatureGrid, Size, cells, group_by_size, image_grid, join_maps, nearest_grid
from plain_detr.position_encoding import grid_code
from plain_detr.prediction_head import PredictionHead
from plain_detr.predictions import BoxSetPrediction, SetTargets
from plain_detr.proposals import Proposals, ProposalSelection
from plain_detr.queries import QueryInitializer
from plain_detr.rescale import rescale
from plain_detr.variant import remember_variant

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


class InputProjection(nn.Module):
    """1x1 convolution to the width of the decoder, and GroupNorm over 32 groups."""

    def __init__(self, in_channels: int, hidden_dim: int):
        super().__init__()
        if hidden_dim % 32:
            raise ValueError(f"MODEL.PLAIN_DETR.HIDDEN_DIM must be a multiple of 32, got {hidden_dim}")
        self.conv = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
        self.norm = nn.GroupNorm(32, hidden_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        # The function, not the module: that one refuses a single cell at one channel a group, whose norm is its bias.
        norm = self.norm
        return torch.group_norm(self.conv(features), norm.num_groups, norm.weight, norm.bias, norm.eps)


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
        variant: settings that the weights depend on, see ``plain_detr.variant``.
    """

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
        variant: dict[str, str] | None = None,
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
        remember_variant(self, variant or {})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.PLAIN_DETR
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        if node.IN_FEATURE not in shapes:
            raise ValueError(
                f"MODEL.PLAIN_DETR.IN_FEATURE '{node.IN_FEATURE}' is not an output of the backbone: {', '.join(shapes)}"
            )
        shape = shapes[node.IN_FEATURE]
        upsample = rescale(shape.channels, shape.stride, node.FEATURE_STRIDE, halve=True)
        coder = _choice("BOX_CODER", BOX_CODERS, node.BOX_CODER)(
            **({"anchor_size": node.PROPOSALS.ANCHOR_SIZE} if node.PROPOSALS.ANCHOR_SIZE else {})
        )
        groups = QueryGroups(
            node.NUM_QUERIES, node.ONE_TO_MANY.QUERIES, node.ONE_TO_MANY.REPEATS, node.ONE_TO_MANY.WEIGHT
        )
        encodings = {"sine": True, "sine_unnorm": False}
        return {
            "backbone": backbone,
            "in_feature": node.IN_FEATURE,
            "upsample": upsample,
            "input_projection": InputProjection(upsample.out_channels, node.HIDDEN_DIM),
            "encoder": _encoder(node),
            "normalize_position": _choice("POSITION_ENCODING", encodings, node.POSITION_ENCODING),
            "proposals": Proposals(
                hidden_dim=node.HIDDEN_DIM,
                stride=node.FEATURE_STRIDE,
                strides=node.PROPOSALS.STRIDES,
                head=PredictionHead(hidden_dim=node.HIDDEN_DIM, num_classes=node.NUM_CLASSES),
                coder=coder,
                valid_area=node.VALID_AREA,
                keep_invalid=node.KEEP_INVALID_PROPOSALS,
            ),
            "queries": QueryInitializer(
                hidden_dim=node.HIDDEN_DIM,
                num_queries=groups.one_to_one + groups.one_to_many,
                mixed_selection=node.PROPOSALS.MIXED_SELECTION,
            ),
            "decoder": _decoder(node, coder),
            "coder": coder,
            "groups": groups,
            "criterion": _criterion(node, coder),
            "num_classes": node.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "topk": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "batch_independent": node.BATCH_INDEPENDENT,
            "valid_area": node.VALID_AREA,
            "pad_multiple": node.PAD_MULTIPLE,
            "variant": _variant(node),
        }

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
        images = [self.normalized(record["image"], f"{_name(record)}: the image") for record in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        if self.training:
            targets = self._targets(batched_inputs, sizes)
            layers, selection = self.predict(self.encode(images), training=True)
            return self._losses(layers, selection, targets)
        layers, _ = self.predict(self.encode(images), training=False)
        found = decode(layers[-1], sizes, coder=self.coder, topk=self.topk)
        return [
            {"instances": detector_postprocess(one, record.get("height", size[0]), record.get("width", size[1]))}
            for one, record, size in zip(found, batched_inputs, sizes)
        ]

    def encode(self, images: list[Tensor]) -> Memory:
        """Normalised images (3, h, w) of any sizes -> the one map the rest of the model looks at."""
        sizes: list[Size] = [tuple(image.shape[-2:]) for image in images]
        multiple = self.pad_multiple if self.batch_independent else 1
        rounded = [tuple(-(-side // multiple) * multiple for side in size) for size in sizes]
        groups = group_by_size(rounded) if self.batch_independent else [list(range(len(sizes)))]
        maps, own, padded = [], [None] * len(sizes), [None] * len(sizes)
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
                own[index], padded[index] = tuple(features.shape[2:]), tuple(batch.shape[2:])
        features = join_maps(maps, groups)
        grid = self._grid(sizes, tuple(features.shape[2:]), own, padded)
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
        return self.decoder(*self._decoder_inputs(memory, selection, groups)), selection

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
        return self.decoder.attention_weights(*inputs, layer=layer, with_bias=with_bias)[0]

    def _decoder_inputs(self, memory: Memory, selection: ProposalSelection, groups: list[int]) -> tuple:
        content, query_position = self.queries(selection.reference)
        tokens, position = memory.features.flatten(2).transpose(1, 2), memory.position.flatten(1, 2)
        return (
            content, query_position, selection.reference, groups, tokens, position, memory.grid, selection.extent,
        )  # fmt: skip

    def _losses(
        self, layers: list[BoxSetPrediction], selection: ProposalSelection, targets: SetTargets
    ) -> dict[str, Tensor]:
        log = has_event_storage() and get_event_storage().iter % LOG_PERIOD == 0
        losses, errors = self.criterion(
            match_tasks(layers, selection.prediction, self.groups), targets, with_errors=log
        )
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
        if image.is_floating_point() and not torch.jit.is_tracing() and not image.isfinite().all():
            raise ValueError(f"{name} has pixels that are not finite")
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _targets(self, batched_inputs: list[dict], sizes: list[Size]) -> SetTargets:
        """Pack the annotations: clipped to their image, boxes without area dropped. The batch is left as it is."""
        boxes, classes, labelled = [], [], []
        for record, (height, width) in zip(batched_inputs, sizes):
            instances = record["instances"]
            corners, labels = instances.gt_boxes.tensor.float(), instances.gt_classes
            if not corners.isfinite().all():
                raise ValueError(f"{_name(record)}: a box is not finite")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{_name(record)}: classes {int(labels.min())} to {int(labels.max())}, but the model has"
                    f" {self.num_classes} (MODEL.PLAIN_DETR.NUM_CLASSES)"
                )
            limit = corners.new_tensor([width, height, width, height])
            corners = torch.minimum(corners.clamp(min=0), limit)
            keep = (corners[:, 2:] > corners[:, :2]).all(-1)
            cxcywh = xyxy_to_cxcywh(corners[keep])
            boxes.append(self.coder.from_pixels(cxcywh, limit[:2]).to(self.device))
            classes.append(labels[keep].to(self.device))
            if record.get("labelled_classes") is not None:
                mine = torch.zeros(self.num_classes, dtype=torch.bool)
                mine[record["labelled_classes"].cpu()] = True
                labelled.append(mine)
            else:
                labelled.append(torch.ones(self.num_classes, dtype=torch.bool))
        mask = torch.stack(labelled)
        return SetTargets.pack(boxes, classes, None if mask.all() else mask.to(self.device))


def _without_padding(features: Tensor, grid: FeatureGrid) -> tuple[Tensor, FeatureGrid]:
    """Cut the rows and columns that no image reaches into, and set the rest of the padding to zero."""
    height, width = (max(valid[axis] for valid in grid.valid) for axis in (0, 1))
    features = features[:, :, :height, :width]
    grid = grid._replace(hw=(height, width), own=grid.valid)
    padding = grid.key_padding(features.device)
    if padding is not None:
        features = features.masked_fill(padding.view(-1, 1, height, width), 0)
    return features, grid


def _name(record: dict) -> str:
    return str(record.get("file_name", "an image of the batch"))


def _choice(key: str, choices: dict, value: str):
    if value not in choices:
        raise ValueError(f"MODEL.PLAIN_DETR.{key} must be one of {', '.join(choices)}, got '{value}'")
    return choices[value]


def _variant(node: CfgNode) -> dict[str, str]:
    settings = {
        "BOX_CODER": node.BOX_CODER,
        "POSITION_ENCODING": node.POSITION_ENCODING,
        "NORM_FIRST": node.NORM_FIRST,
        "FEATURE_STRIDE": node.FEATURE_STRIDE,
        "PROPOSALS.STRIDES": list(node.PROPOSALS.STRIDES),
        "BOX_RPB.KIND": node.BOX_RPB.KIND,
    }
    if node.BOX_RPB.KIND != "none":
        settings |= {"BOX_RPB.OFFSETS": node.BOX_RPB.OFFSETS, "BOX_RPB.CORNERS": node.BOX_RPB.CORNERS}
    return {key: str(value) for key, value in settings.items()}


def _encoder(node: CfgNode) -> Encoder | None:
    if not node.ENCODER.LAYERS:
        return None
    return Encoder(
        num_layers=node.ENCODER.LAYERS,
        window=node.ENCODER.WINDOW,
        norm_first=node.ENCODER.NORM_FIRST,
        hidden_dim=node.HIDDEN_DIM,
        num_heads=node.NUM_HEADS,
        feedforward_dim=node.FEEDFORWARD_DIM,
        dropout=node.DROPOUT,
    )


def _decoder(node: CfgNode, coder: BoxCoder) -> Decoder:
    axial = _choice("BOX_RPB.KIND", {"none": None, "axial": True, "full": False}, node.BOX_RPB.KIND)
    box_rpb = None
    if axial is not None:
        box_rpb = BoxRPB(
            num_heads=node.NUM_HEADS,
            hidden_dim=node.BOX_RPB.HIDDEN_DIM,
            offsets=node.BOX_RPB.OFFSETS,
            axial=axial,
            corners=node.BOX_RPB.CORNERS,
        )
    cross_attention = CrossAttention(
        hidden_dim=node.HIDDEN_DIM,
        num_heads=node.NUM_HEADS,
        box_rpb=box_rpb,
        padding_value=node.PADDING_LOGIT,
        implementation=node.ATTENTION,
    )
    layer = DecoderLayer(
        hidden_dim=node.HIDDEN_DIM,
        num_heads=node.NUM_HEADS,
        feedforward_dim=node.FEEDFORWARD_DIM,
        cross_attention=cross_attention,
        dropout=node.DROPOUT,
        norm_first=node.NORM_FIRST,
    )
    heads = [
        PredictionHead(hidden_dim=node.HIDDEN_DIM, num_classes=node.NUM_CLASSES) for _ in range(node.DECODER_LAYERS)
    ]
    return Decoder(
        layer=layer,
        heads=heads,
        coder=coder,
        look_forward_twice=node.LOOK_FORWARD_TWICE,
        activation_checkpoint=node.CHECKPOINT_DECODER,
    )


def _criterion(node: CfgNode, coder: BoxCoder) -> SetCriterion:
    matcher = HungarianMatcher(
        coder=coder,
        cost=CostWeights(node.MATCHER.CLASS_COST, node.MATCHER.BOX_COST, node.MATCHER.GIOU_COST),
        alpha=node.MATCHER.FOCAL_ALPHA,
        gamma=node.MATCHER.FOCAL_GAMMA,
        released_pairing=node.RELEASED_PAIRING,
    )
    weights = LossWeights(node.LOSS.CLASS_WEIGHT, node.LOSS.BOX_WEIGHT, node.LOSS.GIOU_WEIGHT)
    return SetCriterion(
        matcher=matcher, coder=coder, weights=weights, alpha=node.LOSS.FOCAL_ALPHA, gamma=node.LOSS.FOCAL_GAMMA
    )
