"""Checkpoints under the names of another program: read, renamed by rules, written in either format."""

import argparse
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from d2x.atomic_files import atomic_write
from d2x.checkpoint.files import read_checkpoint, to_safetensors


class Conversion(NamedTuple):
    """A converted state dict and what became of the names.

    Attributes:
        state: without what no rule knows.
        renamed: old name -> new name (the first of two, where a name has an alias).
        unmatched: names no rule knows.
        dropped: names that are known to have no counterpart.
        notes: what else was changed.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str]
    unmatched: Sequence[str] = ()
    dropped: Sequence[str] = ()
    notes: Sequence[str] = ()


class ReleasedNames(Protocol):
    """What a detector's module of released names has.

    Attributes:
        CLASS_LAYERS: parts of our names of the layers with one output for each class.
    """

    CLASS_LAYERS: tuple[str, ...]

    def convert(self, state: dict[str, Tensor], *, reverse: bool, keep_outputs: bool) -> Conversion:
        """From the released names to ours, or back; ``keep_outputs``: class heads keep their outputs."""
        ...


def renaming(rules: Iterable[tuple[str, str]], step: int = 0) -> Callable[[str], str | None]:
    """The function that renames by the first of the rules which fits; it gives None where none does.

    Args:
        rules: (beginning of an old name, that of the new one). A letter in braces is a number that is kept.
        step: what is added to the number "{i}".
    """
    compiled = [(_pattern(old), new) for old, new in rules]

    def rename(name: str) -> str | None:
        for pattern, new in compiled:
            if match := pattern.match(name):
                numbers = {letter: int(number) for letter, number in match.groupdict().items()}
                return new.format(**{**numbers, "i": numbers.get("i", 0) + step}) + name[match.end() :]
        return None

    return rename


def _pattern(template: str) -> re.Pattern:
    seen: set[str] = set()

    def group(match: re.Match) -> str:
        letter, again = match[1], match[1] in seen
        seen.add(letter)
        return rf"(?P={letter})" if again else rf"(?P<{letter}>\d+)"

    return re.compile(re.sub(r"\\\{(\w)\\\}", group, re.escape(template)))


def drop_layers(state: dict[str, Tensor], layers: Sequence[str]) -> Conversion:
    """Leave out the tensors whose names have one of ``layers`` in them; everything else stays under its name.

    Raises:
        ValueError: there is none.
    """
    kept = {name: value for name, value in state.items() if not any(part in name for part in layers)}
    if len(kept) == len(state):
        raise ValueError(f"no class layer ({', '.join(layers)}) in it: not a checkpoint of ours for this detector")
    return Conversion(kept, {}, dropped=[name for name in state if name not in kept])


def read_state(path: str, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the prefix of a parallel wrapper.

    Args:
        trust_pickle: run the code that a pickle may hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, without tensors, or in need of ``trust_pickle``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    # Released files keep the command line they were trained with, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state: Any = _read_pickle(path) if trust_pickle and not path.endswith(".safetensors") else read_checkpoint(path)
    if isinstance(state, dict):
        state = next(
            (state[key] for key in ("model", "state_dict", "teacher") if isinstance(state.get(key), dict)), state
        )
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not named tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensors in this file; it holds {', '.join(map(str, list(state)[:5]))}")
    return tensors


def _read_pickle(path: str) -> Any:
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return _as_tensors(pickle.load(file, encoding="latin1"))
        return torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:200]})") from error


def _as_tensors(content: Any) -> Any:
    """Nested dicts with their arrays as tensors: detectron2's own ``.pkl`` files hold numpy arrays."""
    if isinstance(content, dict):
        return {str(name): _as_tensors(value) for name, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) and content.dtype != object else content


def write_state(state: dict[str, Tensor], path: Path) -> None:
    """Write weights atomically, in the format that the suffix says; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(to_safetensors(state))
        else:
            torch.save({"model": state}, file)
