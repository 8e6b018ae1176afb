"""Batch norm whose statistics are those of the images of all processes."""

from detectron2.layers import NaiveSyncBatchNorm
from torch import nn


def synchronize_batch_norms(model: nn.Module) -> int:
    """Replace every ``BatchNorm2d`` of a model, in place, by one that computes its statistics over all processes.

    On a GPU that is torch's ``SyncBatchNorm``; for CPUs, where it does not exist, detectron2's, which needs the same
    number of images in every process. Parameters stay the same objects, and names in the state dict stay the same.

    Returns:
        How many were replaced.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _synchronized(child))
                count += 1
    return count


def _synchronized(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.running_mean is not None and norm.running_mean.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    new = NaiveSyncBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    return new.train(norm.training)
