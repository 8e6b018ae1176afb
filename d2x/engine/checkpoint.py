"""Checkpoints written atomically, read without executing code, and refused when they belong to another model."""

import os
import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import load_file

# Loading is an error when fewer of the model's tensors than this are found, by name and shape, in the file.
LEAST_MATCH = 0.5


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes, safe reads (``weights_only``, or safetensors) and a match check.

    Raises (from ``load``):
        FileNotFoundError: the file does not exist.
        ValueError: not a checkpoint, damaged, holds code, or holds another model; names the file.
    """

    def __init__(self, model: torch.nn.Module, save_dir: str = "", **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        self._loading = ""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(f"checkpoint not found: {path}")
        self._loading = path
        return super().load(path, *args, **kwargs)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pth", ".pt", ".bin", ".safetensors")):
            checkpoint = read_checkpoint(filename)
        else:
            checkpoint = super()._load_file(filename)
        return checkpoint if "model" in checkpoint else {"model": checkpoint}

    def _load_model(self, checkpoint: dict[str, Any]):
        if not checkpoint.get("matching_heuristics", False):
            _require_match(self.model, checkpoint["model"], self._loading)
        return super()._load_model(checkpoint)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pth`` (tensors and plain containers only) or ``.safetensors`` file onto the CPU."""
    try:
        if path.endswith(".safetensors"):
            return {"model": load_file(path)}
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it holds pickled code or is not a checkpoint; if you trust its source, convert it with"
            " tools/convert_checkpoint.py --trust-pickle"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    except Exception as error:  # safetensors raises its own type
        raise ValueError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error


def _require_match(model: torch.nn.Module, state: dict[str, Any], path: str) -> None:
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stripped = {name.removeprefix("module."): tuple(value.shape) for name, value in state.items()}
    matched = sum(stripped.get(name) == shape for name, shape in ours.items())
    if matched < LEAST_MATCH * len(ours):
        wrong = [name for name, shape in ours.items() if stripped.get(name, shape) != shape]
        example = f"; e.g. {wrong[0]} is {stripped[wrong[0]]} there, {ours[wrong[0]]} here" if wrong else ""
        raise ValueError(
            f"{path}: checkpoint of another architecture: only {matched} of {len(ours)} tensors of "
            f"{type(model).__name__} are in it{example}"
        )
    for name, shape in ours.items():
        if name in stripped and stripped[name] != shape and _is_class_count(stripped[name], shape):
            raise ValueError(
                f"{path}: class count mismatch, or another width: {name} is {stripped[name]} in the checkpoint, "
                f"{shape} in the model"
            )


def _is_class_count(theirs: tuple, ours: tuple) -> bool:
    return len(theirs) == len(ours) and theirs[1:] == ours[1:] and theirs[:1] != ours[:1]


class atomic_write:
    """Context manager: a binary file that appears under ``path`` complete, or not at all."""

    def __init__(self, path: str):
        self._path, self._temporary = path, f"{path}.{os.getpid()}.tmp"

    def __enter__(self):
        self._file = open(self._temporary, "wb")  # noqa: SIM115
        return self._file

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            os.unlink(self._temporary)
