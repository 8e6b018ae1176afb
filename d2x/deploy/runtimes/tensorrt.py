"""TensorRT, or TensorRT for RTX; torch holds the memory on the GPU."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from d2x.deploy.manifest import Manifest

trt: Any = importlib.import_module("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_rtx")


class Runtime:
    """Runs ``model.engine``.

    Raises:
        ValueError: no GPU, or the engine was built for another kind or by another version.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError("a TensorRT engine runs on an NVIDIA GPU, and there is none here")
        self._torch = torch
        self._engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(
            (folder / manifest.file).read_bytes()
        )
        if self._engine is None:
            raise ValueError(f"{folder / manifest.file}: built for another GPU or by another version of TensorRT")
        self._context = self._engine.create_execution_context()
        self._outputs = list(manifest.outputs)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        held = {name: torch.from_numpy(np.ascontiguousarray(value)).cuda() for name, value in inputs.items()}
        for name, value in held.items():
            self._context.set_input_shape(name, tuple(value.shape))
        for name in self._outputs:
            kind = getattr(torch, np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name)
            held[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=kind, device="cuda")
        for name, value in held.items():
            self._context.set_tensor_address(name, value.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT: the engine failed to run")
        stream.synchronize()
        return {name: held[name].cpu().numpy() for name in self._outputs}
