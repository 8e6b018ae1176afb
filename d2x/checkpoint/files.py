"""Checkpoints written atomically, read without executing code, and refused when they belong to another model."""

import os
import pickle
import re
import zipfile
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from safetensors.torch import load_file, save

from d2x.atomic_files import atomic_write
from d2x.distributed import from_main

# Loading is an error when fewer of the model's tensors than this are found, by name and shape, in the file.
LEAST_MATCH = 0.5
RESUMABLE = re.compile(r"model_(\d+|final)\.pth$")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file."""


class DamagedCheckpoint(CheckpointError):
    """A file that is cut off, whose checksums are wrong, or that is no checkpoint at all."""


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes, safe and checked reads, and a way back from a damaged file.

    Raises:
        FileNotFoundError: (``load``) the file does not exist.
        CheckpointError: (``load``) not a checkpoint, damaged, holds code, or holds another model; names the file.
        WriteError: (``save``) the disk is full and so on; what was saved before is untouched.
    """

    def __init__(self, model: torch.nn.Module, save_dir: str = "", **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        self._loading = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Everything needed to resume, as ``name.pth``; then ``last_checkpoint`` names it."""
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

    def save_weights(self, name: str, **values: Any) -> str:
        """The model's weights alone; a run is not resumed from this file. Returns its path, "" if nothing is written.

        Args:
            name: with its suffix, ``.pth`` or ``.safetensors``.
            values: further plain values; of a ``.safetensors`` file they become metadata, as text.
        """
        if not self.save_dir or not self.save_to_disk:
            return ""
        path = os.path.join(self.save_dir, name)
        with atomic_write(path) as file:
            if name.endswith(".safetensors"):
                file.write(to_safetensors(self.model.state_dict(), values))
            else:
                torch.save({"model": self.model.state_dict(), **values}, file)
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether the folder holds a checkpoint to resume from, with ``last_checkpoint`` or without."""
        return super().has_checkpoint() or bool(self.resumable_files())

    def resumable_files(self) -> list[str]:
        """Paths of the checkpoints that a run can be resumed from, the latest first."""
        if not self.save_dir or not os.path.isdir(self.save_dir):
            return []
        names = filter(RESUMABLE.match, os.listdir(self.save_dir))
        return sorted((os.path.join(self.save_dir, name) for name in names), key=_iteration, reverse=True)

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint that is whole: what ``last_checkpoint`` names, or else the latest before it.

        A checkpoint that is damaged or gone is passed over with a warning that names it and the one taken instead.

        Raises:
            DamagedCheckpoint: there are checkpoints, and none is whole.
        """
        chosen = from_main(self._newest_whole() if comm.is_main_process() else "")
        if isinstance(chosen, CheckpointError):
            raise chosen
        return chosen

    def _newest_whole(self) -> str | CheckpointError:
        named = super().get_checkpoint_file()
        files = self.resumable_files()
        if named:
            files = [named, *(file for file in files if file != named)]
        problems: list[str] = []
        for file in files:
            problem = find_damage(file)
            if problem is None:
                if problems:
                    self.logger.warning("%s; going on from %s instead", "; ".join(problems), file)
                return file
            problems.append(f"{file}: {problem}")
        return DamagedCheckpoint(
            f"no checkpoint in {self.save_dir} is whole ({'; '.join(problems)}); remove them to start again"
        )

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and not os.path.isfile(path):
            where = "; OUTPUT_DIR must be a folder that all machines share" if comm.get_world_size() > 1 else ""
            raise FileNotFoundError(f"checkpoint not found: {path}{where}")
        self._loading = path
        try:
            return super().load(path, *args, **kwargs)
        except (ValueError, OSError):
            raise
        except Exception as error:  # torch's loaders raise anything for values of another kind than they wrote
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise CheckpointError(f"{path}: does not fit this run ({reason})") from error
        finally:
            self._parsed_url_during_load = None  # detectron2 leaves it after an error, and then refuses to load again

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):  # detectron2 would unpickle them
            raise CheckpointError(f"{filename}: refused, a pickle can run code; {_convert_hint()}")
        checkpoint = read_checkpoint(filename)
        state = _weights(checkpoint, filename)
        checkpoint = checkpoint if "model" in checkpoint else {"model": state}
        # With it detectron2 would match tensors by the ends of their names and take what it finds, however little.
        if checkpoint.pop("matching_heuristics", False) is not False:
            self.logger.warning("%s: its key matching_heuristics is not followed: names must be the model's", filename)
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        _require_match(self.model, checkpoint["model"], self._loading)
        return super()._load_model(checkpoint)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pth`` (tensors and plain containers only) or ``.safetensors`` file onto the CPU, checksums and all.

    Raises:
        DamagedCheckpoint: cut off, changed, or something else.
        CheckpointError: holds pickled code.
    """
    damage = find_damage(path, must_be_zip=False)
    if damage is not None:
        raise DamagedCheckpoint(f"{path}: not a readable checkpoint ({damage})")
    try:
        if path.endswith(".safetensors"):
            return {"model": load_file(path)}
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds pickled code or is not a checkpoint; {_convert_hint()}"
        ) from error
    except Exception as error:  # the readers of zip, pickle, tar and safetensors raise anything for wrong bytes
        raise DamagedCheckpoint(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def read_state(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, without the prefix that data-parallel training adds to names.

    Raises:
        CheckpointError: see ``read_checkpoint``; or it holds no weights by name.
    """
    state = _weights(read_checkpoint(path), path)
    return {name.removeprefix("module."): value for name, value in state.items()}


def find_damage(path: str, *, must_be_zip: bool = True) -> str | None:
    """What is wrong with a file as such, in a few words; None if nothing is. Reads all of it, runs nothing.

    ``torch.load`` does not look at the checksums that ``torch.save`` writes: a flipped bit would go into the weights.

    Args:
        must_be_zip: what this project saves always is; older torch files are not.
    """
    if not os.path.isfile(path):
        return "it does not exist"
    if not zipfile.is_zipfile(path):
        return "it is cut off or not a checkpoint" if must_be_zip else None
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # zipfile raises BadZipFile, zlib.error, EOFError, NotImplementedError, ...
        return _first_line(error)
    return None if record is None else f"the checksum of its record {record} is wrong"


def to_safetensors(state: dict[str, torch.Tensor], values: dict[str, Any] | None = None) -> bytes:
    """A state dict as the content of a ``.safetensors`` file; tensors that share memory are written once each."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    return save(tensors, {name: str(value) for name, value in (values or {}).items()} or None)


def _iteration(path: str) -> float:
    """The iteration of a checkpoint; a final one may be of a shorter training that was continued."""
    number = os.path.basename(path).removeprefix("model_").removesuffix(".pth")
    if number != "final":
        return int(number)
    try:
        return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["iteration"])
    except Exception:  # damaged: whoever wants to load it will be told
        return float("inf")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _convert_hint() -> str:
    return "if you trust its source, convert it with tools/convert_checkpoint.py --trust-pickle (--model any)"


def _weights(checkpoint: Any, path: str) -> dict[str, torch.Tensor]:
    """The state dict of {"model": state dict, ...}, or what is one; refused if it is not {name: dense real tensor}."""
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: not a checkpoint: it holds no weights by name")
    for name, value in state.items():
        usable = isinstance(name, str) and isinstance(value, torch.Tensor)
        if not usable or value.layout != torch.strided or value.is_complex() or value.is_meta or value.is_quantized:
            raise CheckpointError(f"{path}: not a checkpoint: {str(name)[:100]!r} is no dense tensor of real numbers")
    return state


def _require_match(model: torch.nn.Module, state: dict[str, Any], path: str) -> None:
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stripped = {name.removeprefix("module."): tuple(value.shape) for name, value in state.items()}
    matched = sum(stripped.get(name) == shape for name, shape in ours.items())
    if matched < LEAST_MATCH * len(ours):
        wrong = [name for name, shape in ours.items() if stripped.get(name, shape) != shape]
        example = f"; e.g. {wrong[0]} is {stripped[wrong[0]]} there, {ours[wrong[0]]} here" if wrong else ""
        raise CheckpointError(
            f"{path}: checkpoint of another architecture: only {matched} of {len(ours)} tensors of "
            f"{type(model).__name__} are in it{example}"
        )
    for name, shape in ours.items():
        if name in stripped and stripped[name] != shape and _is_class_count(stripped[name], shape):
            raise CheckpointError(
                f"{path}: class count mismatch, or another width: {name} is {stripped[name]} in the checkpoint, "
                f"{shape} in the model"
            )


def _is_class_count(theirs: tuple, ours: tuple) -> bool:
    return len(theirs) == len(ours) and theirs[1:] == ours[1:] and theirs[:1] != ours[:1]
