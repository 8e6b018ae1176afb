"""ncnn on the CPU."""

from pathlib import Path

import ncnn  # pyright takes this file for the package: hence what is ignored below
import numpy as np

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Arrays, Runtime


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.ncnn.param`` and ``model.ncnn.bin``, one image at a time."""
    net = ncnn.Net()  # pyright: ignore[reportAttributeAccessIssue]
    if threads:
        net.opt.num_threads = threads
    if precision == "fp32":
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
    net.load_param(str(file))
    net.load_model(str(file.with_suffix(".bin")))

    def run_one(image: np.ndarray) -> Arrays:
        outputs = {}
        with net.create_extractor() as extractor:
            pixels = ncnn.Mat(np.ascontiguousarray(image))  # pyright: ignore[reportAttributeAccessIssue]
            extractor.input("in0", pixels.clone())
            for i, name in enumerate(manifest.outputs):
                status, value = extractor.extract(f"out{i}")
                if status:
                    raise RuntimeError(f"ncnn: no output out{i} ({name}), status {status}")
                outputs[name] = np.asarray(value)  # keeps the Mat, which owns its memory
        return outputs

    def run(inputs: Arrays) -> Arrays:
        rows = [run_one(image) for image in inputs["images"]]
        if len(rows) == 1:  # without a copy
            return {name: value[None] for name, value in rows[0].items()}
        return {name: np.stack([row[name] for row in rows]) for name in manifest.outputs}

    return run
