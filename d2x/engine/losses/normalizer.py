"""Normalizer of a loss when the batch is spread over processes."""

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def shared_normalizer(count: Tensor, *, least: float = 0.0, epsilon: float = 0.0) -> Tensor:
    """The divisor that makes N processes train as one process with all their images would.

    Gradients are averaged over processes. A sum of losses divided by (the count of all processes) / N gives, after
    that, the sum of all losses over the count of all: the mean over objects, wherever they are. Dividing by a process's
    own count would weigh objects in crowded images less.

    Args:
        count: scalar of this process, e.g. its number of objects; no gradient goes through it.
        least: the count of all processes is taken to be at least this.
        epsilon: added to the count of all processes.

    Returns:
        float32 scalar, the same in every process; with one process ``max(count, least) + epsilon``. Every process must
        call it, also one without objects.
    """
    total = count.detach().float()
    world = comm.get_world_size()
    if world > 1:
        total = total.clone()
        dist.all_reduce(total)
    return (total.clamp(min=least) + epsilon) / world
