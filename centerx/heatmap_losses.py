"""Heatmap losses: penalty-reduced focal (CenterNet, arXiv:1904.07850, eq. 1), quality focal and squared error.

Nearly every cell has a target of 0. So the losses take logits, (N, K, Hf, Wf), and the cells that are not 0 alone: each
counts every cell as background first and then puts the few others in their place. An optional class mask, (N, K) bool,
is False where an image says nothing about a class, neither that it is there nor that it is not.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from centerx.predictions import SparseHeatmap
from d2x.engine.losses.normalizer import shared_normalizer

# (logits, target of each or 0 for all) -> loss of each cell.
CellLoss = Callable[[Tensor, Tensor | float], Tensor]

# Cells whose loss and gradient are made at a time: what the cache of a CPU holds, and what is little for a GPU.
BLOCK_CELLS_CPU = 1 << 18
BLOCK_CELLS_GPU = 1 << 23


def heatmap_focal_loss(
    logits: Tensor,
    target: SparseHeatmap,
    class_mask: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
    min_probability: float = 0.0,
) -> Tensor:
    """Penalty-reduced pixel-wise focal loss (CenterNet, eq. 1), divided by the positives of the whole batch.

    Cells with a target of exactly 1 are positives; all others are negatives that count ``(1 - target)^beta``. It works
    on logits, so no prediction, however certain, gives an infinite loss or gradient.

    Args:
        min_probability: predictions below it count as this and get no gradient. The released code uses 1e-12.
    """
    floor = math.log(min_probability) - math.log1p(-min_probability) if min_probability > 0 else None
    total = _sum(partial(_focal, alpha=alpha, beta=beta, floor=floor), logits, target, class_mask)
    return total / _num_positives(target, class_mask)


def quality_focal_loss(
    logits: Tensor, target: SparseHeatmap, class_mask: Tensor | None = None, *, beta: float = 2.0
) -> Tensor:
    """Cross-entropy towards the soft target, weighted by ``|target - probability|^beta`` (arXiv:2006.04388, eq. 2)."""
    return _sum(partial(_quality_focal, beta=beta), logits, target, class_mask) / _num_positives(target, class_mask)


def heatmap_mse_loss(logits: Tensor, target: SparseHeatmap, class_mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the probabilities over all cells (that are not masked)."""
    images, classes, height, width = target.shape
    maps = torch.tensor(images * classes, device=logits.device) if class_mask is None else class_mask.sum()
    total = _sum(_squared_error, logits, target, class_mask)
    return total / shared_normalizer(maps * (height * width), least=1)


def classes_with_objects(heatmap: SparseHeatmap) -> Tensor:
    """(N, K) bool: maps that are not empty. The released code's guess at what an image is labelled for."""
    images, classes = heatmap.shape[:2]
    present = torch.zeros(images * classes, dtype=torch.bool, device=heatmap.index.device)
    present[heatmap.map_index] = True
    return present.view(images, classes)


def _focal(logits: Tensor, target: Tensor | float, *, alpha: float, beta: float, floor: float | None) -> Tensor:
    if floor is not None:
        logits = logits.clamp(min=floor)
    rejected = F.softplus(logits) * torch.sigmoid(logits) ** alpha
    if not isinstance(target, Tensor):
        return rejected
    accepted = F.softplus(-logits) * torch.sigmoid(-logits) ** alpha
    return torch.where(target == 1, accepted, rejected * (1 - target) ** beta)


def _quality_focal(logits: Tensor, target: Tensor | float, *, beta: float) -> Tensor:
    entropy = F.softplus(logits) - logits * target
    return entropy * (target - logits.sigmoid()).abs() ** beta


def _squared_error(logits: Tensor, target: Tensor | float) -> Tensor:
    return (logits.sigmoid() - target) ** 2


def _sum(cell_loss: CellLoss, logits: Tensor, target: SparseHeatmap, class_mask: Tensor | None) -> Tensor:
    sums = _MapSums.apply(cell_loss, logits.float().flatten(0, 1).flatten(1), target.index, target.value)
    return (sums if class_mask is None else sums * class_mask.flatten()).sum()


class _MapSums(torch.autograd.Function):
    """Sum of a loss over the cells of each map, some maps at a time: (M, cells) logits -> (M,).

    Autograd would keep several numbers of every cell until the backward pass. Here a block's gradient is made with its
    loss, while its numbers are in the cache, and is all that is kept.
    """

    @staticmethod
    def forward(ctx, cell_loss: CellLoss, logits: Tensor, index: Tensor, value: Tensor):
        maps, cells = logits.shape
        limit = BLOCK_CELLS_GPU if logits.is_cuda else BLOCK_CELLS_CPU
        step = max(1, limit // cells)
        starts = torch.arange(0, maps + step, step, device=index.device) * cells
        bounds = torch.searchsorted(index, starts).tolist()
        needs_grad = ctx.needs_input_grad[1]
        sums, grad = logits.new_empty(maps), torch.empty_like(logits if needs_grad else logits[:0])
        for number, start in enumerate(range(0, maps, step)):
            touched = slice(*bounds[number : number + 2])
            block = logits[start : start + step].detach().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                loss = _block_loss(cell_loss, block, index[touched] - start * cells, value[touched])
            sums[start : start + step] = loss.detach()
            if needs_grad:
                (grad[start : start + step],) = torch.autograd.grad(loss, block, torch.ones_like(loss))
        if needs_grad:
            ctx.save_for_backward(grad)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator's)
        (grad,), (grad_sums,) = ctx.saved_tensors, grad_outputs
        return None, grad * grad_sums[:, None], None, None


def _block_loss(cell_loss: CellLoss, logits: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """(M, cells) -> (M,)."""
    background = cell_loss(logits, 0.0)
    loss = background.flatten().index_put((index,), cell_loss(logits.flatten()[index], value))
    return loss.view_as(background).sum(1)


def _num_positives(target: SparseHeatmap, class_mask: Tensor | None) -> Tensor:
    positive = target.value == 1
    if class_mask is not None:
        positive = positive & class_mask.flatten()[target.map_index]
    return shared_normalizer(positive.sum(), least=1)
