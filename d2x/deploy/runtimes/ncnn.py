"""ncnn."""

from pathlib import Path

import ncnn  # pyright takes this file for the package: hence what is ignored below
import numpy as np

from d2x.deploy.manifest import Manifest


class Runtime:
    """Runs ``model.ncnn.param`` and ``model.ncnn.bin`` on the CPU, one image at a time."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        self._net = ncnn.Net()  # pyright: ignore[reportAttributeAccessIssue]
        options = self._net.opt
        if threads:
            options.num_threads = threads
        if precision == "fp32":
            options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
            options.use_bf16_storage = False
        parameters = folder / manifest.file
        self._net.load_param(str(parameters))
        self._net.load_model(str(parameters.with_suffix(".bin")))
        self._outputs = list(manifest.outputs)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._run(image) for image in inputs["images"]]
        if len(rows) == 1:
            return {name: value[None] for name, value in rows[0].items()}
        return {name: np.stack([row[name] for row in rows]) for name in self._outputs}

    def _run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        with self._net.create_extractor() as extractor:
            pixels = ncnn.Mat(np.ascontiguousarray(image))  # pyright: ignore[reportAttributeAccessIssue]
            extractor.input("in0", pixels.clone())
            for i, name in enumerate(self._outputs):
                status, value = extractor.extract(f"out{i}")
                if status:
                    raise RuntimeError(f"ncnn: no output out{i} ({name}), status {status}")
                found[name] = np.asarray(value)  # keeps the Mat, which owns its memory
        return found
