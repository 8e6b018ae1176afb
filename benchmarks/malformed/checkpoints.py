"""Malformed and hostile checkpoints, loaded into a small model."""

import io
import os
import pickle
import random
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from benchmarks.malformed.cases import CANARY, Broken, Case
from benchmarks.malformed.mutate import NASTY, damage_bytes
from d2x.checkpoint.files import Checkpointer


def make(rng: random.Random, folder: Path) -> Case:
    kind = rng.choice(("bytes", "bytes", "bytes", "values", "code", "code", "pickle in the archive"))
    if kind == "bytes":
        suffix, content = rng.choice(_whole())
        content = damage_bytes(rng, content)
        kind = f"{suffix} bytes"
    elif kind == "values":
        suffix, content = ".pth", _odd_values(rng)
    elif kind == "code":
        suffix = rng.choice((".pth", ".pt", ".bin", ".pkl", ".pyth", "", ".safetensors", ".ckpt"))
        content = _code(rng, str(folder / CANARY))
    else:
        suffix, content = ".pth", _other_pickle(rng, str(folder / CANARY))
    path = folder / f"model{suffix}"
    path.write_bytes(content)
    return Case(kind, path.name, lambda: _run(path))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def _run(path: Path) -> str:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        Checkpointer(model).load(str(path))
    except (ValueError, OSError):
        after = model.state_dict()
        if not all(torch.equal(before[name], after[name]) for name in before):
            raise Broken("a refused checkpoint has changed the model") from None
        raise
    for name, value in model.state_dict().items():
        if value.shape != before[name].shape or value.dtype != before[name].dtype:
            raise Broken(f"{name} has become {value.dtype} {tuple(value.shape)}")
    return "accepted"


class _Runs:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _payload(rng: random.Random, canary: str):
    touch = f"open({canary!r}, 'w').close()"
    return rng.choice(
        [
            _Runs(os.system, f"touch {canary}"),
            _Runs(eval, touch),
            _Runs(exec, touch),
            _Runs(__import__("subprocess").check_output, ["touch", canary]),
            _Runs(open, canary, "w"),
            _Runs(os.mkdir, canary),
            _Runs(Path(canary).touch),
            _Runs(pickle.loads, pickle.dumps(_Runs(exec, touch))),
            _Runs(torch.load, canary),
            _Runs(np.load, canary),
        ]
    )


def _code(rng: random.Random, canary: str) -> bytes:
    if rng.random() < 0.1:
        return f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()  # written by hand, as an attacker may
    payload = _payload(rng, canary)
    value = rng.choice([payload, {"model": payload}, {"model": {"0.weight": payload}}, [payload], {payload: 1}.copy()])
    if rng.random() < 0.5:
        return pickle.dumps(value, protocol=rng.choice((0, 2, 4)))
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    return file.getvalue()


def _odd_values(rng: random.Random) -> bytes:
    state = small_model().state_dict()
    key = rng.choice(list(state))
    odd = rng.choice(
        [
            torch.zeros(0),
            torch.zeros(7, 7),
            torch.full((4,), float("nan")),
            torch.zeros(4, dtype=torch.complex64),
            torch.zeros(4, dtype=torch.bool),
            torch.zeros(4).to_sparse(),
            torch.empty(4, 3, 3, 3, device="meta"),
            torch.zeros(4, dtype=torch.int8).expand(1000, 4),
            *NASTY,
        ]
    )
    value = rng.choice(
        [
            lambda: {"model": {**state, key: odd}},
            lambda: {**state, key: odd},
            lambda: {"model": {name: odd for name in state}},
            lambda: {"model": odd},
            lambda: odd,
            lambda: {"model": {**state, 5: torch.zeros(1)}},
            lambda: {"model": {**state, None: odd}},
            lambda: {"model": list(state.items())},
            lambda: {"model": {}},
            lambda: {"model": state, "matching_heuristics": odd},
            lambda: {"model": state, "iteration": odd, "optimizer": odd, "trainer": odd},
        ]
    )()
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _other_pickle(rng: random.Random, canary: str) -> bytes:
    """A torch archive, checksums right, with another pickle inside."""
    suffix, whole = _whole()[0]
    source, target = zipfile.ZipFile(io.BytesIO(whole)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = rng.choice(
                    (lambda c: damage_bytes(rng, c), lambda c: pickle.dumps(_payload(rng, canary), 2), lambda c: c[:-1])
                )(content)
            elif rng.random() < 0.2:
                content = damage_bytes(rng, content)
            if rng.random() < 0.95:
                archive.writestr(name, content)
    return target.getvalue()


@lru_cache
def _whole() -> list[tuple[str, bytes]]:
    """(suffix, whole file) of one model."""
    state, found = small_model().state_dict(), []
    for content, new in (({"model": state, "iteration": 3}, True), (dict(state), True), ({"model": state}, False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        found.append((".pth", file.getvalue()))
    found.append((".safetensors", save({name: value.contiguous() for name, value in state.items()})))
    arrays = {name: value.numpy() for name, value in state.items()}
    found.append((".pkl", pickle.dumps({"model": arrays, "__author__": "x"})))
    return found
