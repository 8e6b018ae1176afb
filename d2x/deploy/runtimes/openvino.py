"""OpenVINO."""

import functools
from pathlib import Path

import numpy as np
import openvino

from d2x.deploy.manifest import Manifest


@functools.cache
def shared_core() -> openvino.Core:
    """The process' one ``openvino.Core``, never given up.

    OpenVINO's CPU plugin gives the calling thread an alternate signal stack when a core first uses it, and puts back
    the one before when that core ends. Of two cores, the one that ends last may put back the other's, which is gone:
    the next signal that Python handles (that of an ended child, once a DataLoader had workers) kills the process.
    """
    return openvino.Core()


class Runtime:
    """Runs ``model.xml`` on the CPU.

    Left alone, OpenVINO computes in bfloat16 on CPUs that have it; a model of precision "fp32" is held to float32.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision == "fp32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        model = shared_core().compile_model(str(folder / manifest.file), "CPU", settings)
        self._request = model.create_infer_request()
        self._outputs = list(manifest.outputs)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = self._request.infer(inputs)
        return {name: np.array(result[name]) for name in self._outputs}
