"""Folding of batch norms into the convolutions before them: fewer layers, the same function, faster inference."""

import copy
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d as NormedConv2d
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d
Norm = nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d


def for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model in evaluation mode or, with ``TEST.FOLD``, a folded copy of it; its weights are loaded already.

    Raises:
        ValueError: ``TEST.FOLD`` with a model that has no ``backbone``.
        RuntimeError: see ``fold_batch_norms``.
    """
    model = model.eval()
    if not cfg.TEST.FOLD:
        return model
    if "backbone" not in dict(model.named_children()):
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
    backbone = model.get_submodule("backbone")
    multiple = max(getattr(backbone, "size_divisibility", 0), 1)
    device = next(model.parameters()).device
    example = torch.randn(1, 3, *(-(-side // multiple) * multiple for side in hw), device=device)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return list(backbone(example).values())

    fold_batch_norms(backbone, run)
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
            if isinstance(parent, NormedConv2d) and name == "norm" and isinstance(child, Norm):
                _fold(parent, child)
                parent.norm = None
                folded.add(id(child))
            elif id(child) in folded:
                setattr(parent, name, nn.Identity())
    for expected, actual in zip(before, run()):
        atol = 1e-3 * float(expected.abs().max())
        if not torch.allclose(expected, actual, rtol=1e-3, atol=atol):
            raise RuntimeError("folding batch norms changed the outputs: a convolution feeds more than its norm")
    return len(folded)


def _observe(module: nn.Module, run: Callable[[], Sequence[Tensor]]) -> list[tuple[Convolution, Norm]]:
    """(convolution, norm) pairs where the norm ran once, on the output of a convolution that ran once."""
    sources: dict[int, Convolution] = {}
    kept: list[Tensor] = []  # alive until the end, so that no two tensors have one id
    runs: dict[nn.Module, int] = {}
    pairs: list[tuple[Convolution, Norm]] = []

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
        if isinstance(part, Convolution):
            handles.append(part.register_forward_hook(saw_convolution))
        elif isinstance(part, Norm):
            handles.append(part.register_forward_pre_hook(saw_norm))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(runs[part] == 1 for part in pair)]


def _fold(convolution: Convolution, norm: Norm) -> None:
    """As ``torch.nn.utils.fusion``, which gets transposed convolutions of several groups wrong."""
    values = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}  # which is which differs by the norm
    mean = values["running_mean"]
    scale = torch.rsqrt(values["running_var"] + norm.eps) * values.get("weight", 1.0)
    bias = -mean if convolution.bias is None else convolution.bias - mean
    if isinstance(convolution, nn.ConvTranspose2d):
        groups = convolution.groups  # axis 0 holds the inputs of all groups, axis 1 the outputs of one
        weight = convolution.weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, 1, 1)
        weight = weight.flatten(0, 1)
    else:
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(weight)
    convolution.bias = nn.Parameter(bias * scale + values.get("bias", 0.0))
