"""Batch norms folded into the convolutions before them: fewer layers, the same function, for faster inference."""

import copy
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d as NormedConv2d
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model in evaluation mode or, with ``TEST.FOLD``, a folded copy of it; its weights are loaded already.

    Raises:
        ValueError: ``TEST.FOLD`` with a model that has no ``backbone``.
        RuntimeError: see ``fold_batch_norms``.
    """
    model = model.eval()
    if not cfg.TEST.FOLD:
        return model
    if not hasattr(model, "backbone"):
        raise ValueError(f"TEST.FOLD: {cfg.MODEL.META_ARCHITECTURE} has no backbone whose batch norms could be folded")
    return fold_for_inference(model)


def fold_for_inference(model: nn.Module, hw: tuple[int, int] = (128, 160)) -> nn.Module:
    """A copy of a detector that computes the same with fewer layers; for inference only.

    Args:
        model: in evaluation mode; its ``backbone`` gives a dict of maps.
        hw: (height, width) of an example that the backbone is run with, rounded up to what it takes.

    Raises:
        ValueError: the model is in training mode.
        RuntimeError: see ``fold_batch_norms``.
    """
    if model.training:
        raise ValueError("batch norms can be folded in evaluation mode only: call model.eval() first")
    model = copy.deepcopy(model)
    multiple = max(model.backbone.size_divisibility, 1)
    device = next(model.parameters()).device
    example = torch.randn(1, 3, *(-(-side // multiple) * multiple for side in hw), device=device)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return list(model.backbone(example).values())

    fold_batch_norms(model.backbone, run)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def fold_batch_norms(module: nn.Module, run: Callable[[], Sequence[Tensor]]) -> int:
    """Fold every batch norm whose input is what one convolution gave, in place; evaluation mode only.

    Which convolution feeds which norm is seen while ``run`` runs the module, so that no knowledge of the architecture
    is needed. What it gives before and after is compared.

    Args:
        module: the module, in evaluation mode.
        run: runs it on some example; gives its raw outputs.

    Returns:
        How many norms were folded.

    Raises:
        RuntimeError: the outputs are not the same: a convolution's output is used besides its norm.
    """
    before = run()
    pairs = _observe(module, run)
    for convolution, norm in pairs:
        _fold(convolution, norm)
    folded = {id(norm) for _, norm in pairs}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(parent, NormedConv2d) and name == "norm" and isinstance(child, NORMS):
                _fold(parent, child)
                parent.norm = None
                folded.add(id(child))
            elif id(child) in folded:
                setattr(parent, name, nn.Identity())
    for one, other in zip(before, run()):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max())):
            raise RuntimeError("folding batch norms changed the outputs: a convolution feeds more than its norm")
    return len(folded)


def _observe(module: nn.Module, run: Callable[[], Sequence[Tensor]]) -> list[tuple[nn.Module, nn.Module]]:
    """(convolution, norm) pairs where the norm ran once, on the output of a convolution that ran once."""
    sources: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # alive until the end, so that no two tensors have one id
    runs: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def saw_convolution(convolution, inputs, output):
        runs[convolution] = runs.get(convolution, 0) + 1
        sources[id(output)] = convolution
        kept.append(output)

    def saw_norm(norm, inputs):
        runs[norm] = runs.get(norm, 0) + 1
        if id(inputs[0]) in sources:
            pairs.append((sources[id(inputs[0])], norm))

    handles = []
    for part in module.modules():
        if isinstance(part, CONVOLUTIONS):
            handles.append(part.register_forward_hook(saw_convolution))
        elif isinstance(part, NORMS):
            handles.append(part.register_forward_pre_hook(saw_norm))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(runs[part] == 1 for part in pair)]


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    if transposed and convolution.groups > 1:
        # torch's fusion scales axis 1, the outputs of one group; those of all groups lie along axis 0 and 1 together
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        per_group = scale.view(convolution.groups, 1, -1, 1, 1)
        weight = convolution.weight.unflatten(0, (convolution.groups, -1)) * per_group
        shift = norm.bias - norm.running_mean * scale
        bias = shift if convolution.bias is None else shift + convolution.bias * scale
        convolution.weight, convolution.bias = nn.Parameter(weight.flatten(0, 1)), nn.Parameter(bias)
        return
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=transposed,
    )
