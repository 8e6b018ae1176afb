"""The released recipe's learning-rate schedule, off-by-ones included."""


def released_multiplier(iteration: int, *, warmup: int, drop_at: int, factor: float = 0.1) -> float:
    """What the released training multiplies every learning rate by.

    It differs from detectron2's ``WarmupMultiStepLR`` (the default here) in two places: the very first step has rate 0
    instead of ``WARMUP_FACTOR``, and the drop comes one iteration late. Use with ``torch.optim.lr_scheduler.LambdaLR``,
    stepped once an iteration.

    Args:
        iteration: 0-based; the value is used by that optimizer step.
        warmup: iterations of linear warm-up; 0 for none.
        drop_at: first iteration of the epoch in which the rate drops; that one iteration still has the full rate.
        factor: after the drop.
    """
    if iteration < warmup:
        return iteration / warmup
    return factor if iteration > drop_at else 1.0
