"""Comparison of two checkpoints to the last bit."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def fingerprint(content: Any) -> str:
    """SHA-256 of everything in a checkpoint: names, plain values, and the bytes of every tensor."""
    digest = hashlib.sha256()
    for name, value in flattened(content):
        digest.update(f"{name}:".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def differences(first: Any, second: Any) -> list[str]:
    """Names of what only one of two checkpoints has, or what is not the same in both."""
    ours, theirs = dict(flattened(first)), dict(flattened(second))
    return [
        name
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if name not in ours or name not in theirs or fingerprint(ours[name]) != fingerprint(theirs[name])
    ]


def flattened(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts, lists and tuples with its path, such as ``model/head.weight``, ordered by it."""
    if isinstance(content, dict):
        for key in sorted(content, key=str):
            yield from flattened(content[key], f"{name}/{key}" if name else str(key))
    elif isinstance(content, (list, tuple)):
        yield f"{name}/length", len(content)
        for number, item in enumerate(content):
            yield from flattened(item, f"{name}/{number}")
    else:
        yield name, content
