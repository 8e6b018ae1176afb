"""The decoder: layers with a head each, and the refinement of boxes from one to the next."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plain_detr.box_coder import BoxCoder
from plain_detr.decoder_layer import RELEASED_INIT_STD, DecoderLayer, LayerInputs, init_transformer_linears
from plain_detr.padding import FeatureGrid
from plain_detr.prediction_head import PredictionHead
from plain_detr.predictions import BoxSetPrediction


class DecoderInputs(NamedTuple):
    """What the decoder works on.

    Attributes:
        content, position: (N, Q, C), the two parts of the queries.
        reference: (N, Q, 4), coder space, the boxes to start from.
        groups: sizes of the query groups; they sum to Q.
        memory: (N, L, C).
        memory_position: (N, L, C), added to the keys only.
        grid: of the memory.
        extent: (N, 1, 2) valid (width, height) in pixels.
    """

    content: Tensor
    position: Tensor
    reference: Tensor
    groups: list[int]
    memory: Tensor
    memory_position: Tensor
    grid: FeatureGrid
    extent: Tensor


class Decoder(nn.Module):
    """D layers that look at one feature map and refine boxes.

    Layer l starts from the boxes of layer l - 1, detached. With *look forward twice* (DINO, section 3.5) its
    prediction is computed from the same boxes undetached, so its loss also trains layer l - 1.

    Args:
        layer: the layer, copied D times and started anew.
        heads: D heads, one a layer.
        coder: the space of boxes.
        look_forward_twice: see above. It changes gradients only.
        activation_checkpoint: recompute each layer in the backward pass instead of keeping its activations.
        init_std: see ``init_transformer_linears``.
    """

    def __init__(
        self,
        *,
        layer: DecoderLayer,
        heads: list[PredictionHead],
        coder: BoxCoder,
        look_forward_twice: bool = True,
        activation_checkpoint: bool = False,
        init_std: float = RELEASED_INIT_STD,
    ):
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in heads)
        self.heads = nn.ModuleList(heads)
        hidden_dim = layer.feedforward_norm.normalized_shape[0]
        self.final_norm = nn.LayerNorm(hidden_dim) if layer.norm_first else nn.Identity()
        self.coder = coder
        self.look_forward_twice, self.activation_checkpoint = look_forward_twice, activation_checkpoint
        for layer in self._layers():
            init_transformer_linears(layer, init_std)
            nn.init.xavier_uniform_(layer.self_attention.in_proj_weight)

    def _layers(self) -> list[DecoderLayer]:
        return list(self.layers)  # pyright: ignore[reportReturnType]  a ModuleList forgets what its modules are

    def forward(self, inputs: DecoderInputs) -> list[BoxSetPrediction]:
        """One prediction a layer."""
        return [prediction for _, prediction in self._run(inputs)]

    @torch.no_grad()
    def attention_weights(self, inputs: DecoderInputs, *, layer: int = -1, with_bias: bool = True) -> Tensor:
        """(N, heads, Q, Hf, Wf) cross-attention of one layer, for pictures.

        Args:
            layer: its index.
            with_bias: False leaves the bias by box out of this layer's logits, and of no other's.
        """
        layer_inputs, _ = self._run(inputs)[layer]
        return self._layers()[layer].cross_attention_weights(layer_inputs, with_bias=with_bias)

    def _run(self, inputs: DecoderInputs) -> list[tuple[LayerInputs, BoxSetPrediction]]:
        """Every layer's inputs and its prediction."""
        grid, extent, memory = inputs.grid, inputs.extent, inputs.memory
        keys = memory + inputs.memory_position.to(memory.dtype)
        padding = grid.key_padding(memory.device)
        reference = undetached = inputs.reference
        x, run = inputs.content, []
        for layer, head in zip(self.layers, self.heads):
            pixels = self.coder.to_pixels(reference, extent)
            layer_inputs = LayerInputs(
                x, inputs.position, inputs.groups, keys, memory, pixels, grid.hw, grid.stride, padding
            )
            if self.activation_checkpoint and self.training:
                x = checkpoint(layer, layer_inputs, use_reentrant=False)
            else:
                x = layer(layer_inputs)
            logits, raw = head(self.final_norm(x))
            boxes = self.coder.decode(undetached, raw, extent)
            run.append((layer_inputs, BoxSetPrediction(logits, boxes, raw, undetached)))
            updated = boxes if undetached is reference else self.coder.decode(reference, raw, extent)
            reference = updated.detach()
            undetached = updated if self.look_forward_twice and torch.is_grad_enabled() else reference
        return run
