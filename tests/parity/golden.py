"""Finds and loads golden cases: inputs, weights and results computed by the original programs.

The folder is ``$GOLDENS`` (subfolders ``centerx/`` and ``plain_detr/``), by default the committed one. Every test is
parametrised over all cases of one *kind* found there, and reads its options from the case's json, so that new cases
can be dropped in without touching a test.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

COMMITTED = Path(__file__).resolve().parent.parent / "goldens"


class Golden(NamedTuple):
    """One case: ``tensors`` holds every stored tensor by its full name, ``state`` the assembled official state dict."""

    name: str
    info: dict
    tensors: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with ``prefix.``, keyed by the rest of the name."""
        start = prefix + "."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def folder(detector: str) -> Path:
    """The folder of one detector's cases, e.g. ``tests/goldens/centerx``."""
    return Path(os.environ.get("GOLDENS", COMMITTED)) / detector


@cache
def _kinds(detector: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(folder(detector).glob("*.json")):
        info = json.loads(path.read_text())
        kind = info.get("kind") or path.stem.split("__")[0]
        found.setdefault(kind, []).append(path.stem)
    return found


def cases(detector: str, kind: str) -> list[str]:
    """Names of all cases of a kind; json-only cases without a kind go by the part of their name before ``__``."""
    return _kinds(detector).get(kind, [])


def load(detector: str, case: str) -> Golden:
    """Load one case with its weights, following ``state_sources`` as the goldens' README describes."""
    where = folder(detector)
    info = json.loads((where / f"{case}.json").read_text())
    path = where / f"{case}.safetensors"
    tensors = load_file(path) if path.exists() else {}
    state = {}
    for source in info.get("state_sources") or []:
        for name, value in load_file(where / source["file"]).items():
            if name.startswith(source["select"]):
                name = source["prefix"] + name[len(source["select"]) :]
                if not any(part in name for part in source.get("exclude", [])):
                    state[name] = value
    if not info.get("state_sources"):
        state = {name[len("state.") :]: value for name, value in tensors.items() if name.startswith("state.")}
    return Golden(case, info, tensors, state)
