"""TensorRT, or TensorRT for RTX; torch holds the memory on the GPU."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Arrays, Runtime

trt: Any = importlib.import_module("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_rtx")


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.engine``.

    Raises:
        ValueError: no GPU, or the engine was built for another kind or by another version.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError("a TensorRT engine runs on an NVIDIA GPU, and there is none here")
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise ValueError(f"{file}: built for another GPU or by another version of TensorRT")
    context = engine.create_execution_context()

    def run(inputs: Arrays) -> Arrays:
        held = {name: torch.from_numpy(np.ascontiguousarray(value)).cuda() for name, value in inputs.items()}
        for name, value in held.items():
            context.set_input_shape(name, tuple(value.shape))
        for name in manifest.outputs:
            kind = getattr(torch, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name)
            held[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
        for name, value in held.items():
            context.set_tensor_address(name, value.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT: the engine failed to run")
        stream.synchronize()
        return {name: held[name].cpu().numpy() for name in manifest.outputs}

    return run
