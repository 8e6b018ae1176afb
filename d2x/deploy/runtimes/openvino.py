"""OpenVINO on the CPU."""

import functools
from pathlib import Path

import numpy as np
import openvino

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Arrays, Runtime


@functools.cache
def shared_core() -> openvino.Core:
    """The process' one ``openvino.Core``, never given up.

    OpenVINO's CPU plugin gives the calling thread an alternate signal stack when a core first uses it, and puts back
    the one before when that core ends. Of two cores, the one that ends last may put back the other's, which is gone:
    the next signal that Python handles (that of an ended child, once a DataLoader had workers) kills the process.
    """
    return openvino.Core()


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.xml`` on the CPU.

    Left alone, OpenVINO computes in bfloat16 on CPUs that have it; a model of precision "fp32" is held to float32.
    """
    settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = shared_core().compile_model(str(file), "CPU", settings).create_infer_request()

    def run(inputs: Arrays) -> Arrays:
        result = request.infer(inputs)
        return {name: np.array(result[name]) for name in manifest.outputs}

    return run
